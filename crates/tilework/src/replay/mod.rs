//! Replaying a trace on a manager.
//!
//! ```text
//!   for each pass:   reset_peaks
//!                    every step of the trace      ← the timed loop
//!                    free what is left, oldest first
//!                    end_of_execution             ← its device calls belong to this pass
//! ```
//!
//! The next pass begins on the same manager, so that the later ones show what it has learnt.
#![forbid(unsafe_code)]

mod report;
mod verify;
mod watch;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod toy;

use std::hint::black_box;
use std::time::{Duration, Instant};

pub use report::{PassReport, Report};
use verify::Verifier;
use watch::{Bare, Made, Watch, Watched};

use crate::device::DeviceError;
use crate::error::Error;
use crate::manager::{BlockId, Manager};
use crate::timeline::Timeline;
use crate::trace::{Step, Trace};
use crate::units::exact;

/// So many steps at a time the replay reads ahead in its own table of blocks.
const AHEAD: usize = 32;

/// A table of so many blocks stays in the caches (128 KiB).
const CACHED: usize = 16_384;

/// How to replay.
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// Passes over the trace.
    pub repeat: u32,
    /// Fill each block with a pattern of its own, check it before the free, and compare the bytes held
    /// by the manager's books with the device's own answer as each pass ends.
    pub verify: bool,
    /// Keep a timeline of this many samples, by event. Costs a few nanoseconds an event.
    pub timeline: Option<usize>,
}

impl Default for ReplayOptions {
    /// One pass, nothing else.
    fn default() -> ReplayOptions {
        ReplayOptions { repeat: 1, verify: false, timeline: None }
    }
}

/// Is told how far a replay has come. The unit type does nothing.
pub trait Observer {
    /// `events` of this replay, all passes together, are done. Called every few thousand events, every
    /// few when verifying: what it costs is in the time reported.
    fn progress(&mut self, events: u64) {
        let _ = events;
    }
}

impl Observer for () {}

/// Why a replay stopped. What it had allocated has been freed: the manager is as usable as before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The manager could not serve a line of the trace.
    #[error("{trace}: line {line}, pass {pass}: {error}")]
    Refused {
        /// The trace.
        trace: String,
        /// The line that was not served.
        line: u64,
        /// The pass, counted from 1.
        pass: u32,
        /// What the manager said.
        error: Error,
    },
    /// A block did not hold what was written to it.
    #[error(
        "{trace}: line {line}, pass {pass}: the block of id {id} ({bytes} bytes, allocated at line {since}) \
         holds {found:#04x} at offset {offset}, {expected:#04x} was written"
    )]
    Corrupt {
        /// The trace.
        trace: String,
        /// The line that frees the block; one past the last for what the end of the pass frees.
        line: u64,
        /// The pass, counted from 1.
        pass: u32,
        /// The block's name in the trace.
        id: u64,
        /// Its size.
        bytes: u64,
        /// The line that allocated it.
        since: u64,
        /// The first wrong byte.
        offset: u64,
        /// What is there.
        found: u8,
        /// What should be there.
        expected: u8,
    },
    /// A pattern could not be written or read.
    #[error("{trace}: line {line}, pass {pass}: verifying: {error}")]
    Unverified {
        /// The trace.
        trace: String,
        /// The line being replayed.
        line: u64,
        /// The pass, counted from 1.
        pass: u32,
        /// What the device said.
        error: DeviceError,
    },
    /// The manager's books disagree with the device.
    #[error(
        "{trace}: line {line}, pass {pass}: the manager holds {} by its books, {} by the device",
        exact(*books),
        exact(*device)
    )]
    HeldMismatch {
        /// The trace.
        trace: String,
        /// The line of the step behind which they were compared.
        line: u64,
        /// The pass, counted from 1.
        pass: u32,
        /// Bytes held, says the manager.
        books: u64,
        /// Bytes held, says the device.
        device: u64,
    },
    /// The end of an execution failed.
    #[error("{trace}: end of pass {pass}: {error}")]
    EndOfPass {
        /// The trace.
        trace: String,
        /// The pass, counted from 1.
        pass: u32,
        /// What the manager said.
        error: Error,
    },
    /// Asked to verify where there is nothing to read.
    #[error("device {device} has no memory that could be verified: choose one that has, such as host")]
    NoMemory {
        /// The device.
        device: &'static str,
    },
}

/// Replays `trace` on `manager`, which may have served before: blocks it has live stay.
///
/// # Errors
/// When the manager or the device refuses something, or verifying finds a wrong byte. The replay stops
/// there and frees what it had allocated.
pub fn replay(
    trace: &Trace,
    manager: &mut dyn Manager,
    options: &ReplayOptions,
    observer: &mut dyn Observer,
) -> Result<Report, ReplayError> {
    if options.verify && !manager.device().caps().memory {
        return Err(ReplayError::NoMemory { device: manager.device().name() });
    }
    let mut blocks = vec![BlockId(u64::MAX); trace.slots()];
    let mut watched = (options.verify || options.timeline.is_some()).then(|| Watched {
        verifier: options.verify.then(|| Verifier::new(trace.slots())),
        highest: 0,
        timeline: options.timeline.map(Timeline::new),
    });
    let leftovers = trace.live_after(trace.steps().len());
    let mut passes = Vec::new();
    for pass in 1..=options.repeat {
        let mut run = Pass { trace, number: pass, manager, blocks: &mut blocks, leftovers: &leftovers };
        passes.push(match &mut watched {
            Some(watched) => run.run(watched, observer)?,
            None => run.run(&mut Bare, observer)?,
        });
        if options.verify {
            let end = trace.steps().len();
            compare_held(run.manager)
                .map_err(|failure| run.describe(&Stop { step: end, done: end, failure }))?;
        }
    }
    Ok(Report {
        trace: trace.name().to_owned(),
        manager: manager.kind(),
        device: manager.device().name(),
        why: None,
        fallback: None,
        peak_live_bytes: passes.iter().map(|p| p.peak_live_bytes).max().unwrap_or(0),
        peak_held_bytes: passes.iter().map(|p| p.peak_held_bytes).max().unwrap_or(0),
        passes,
        timeline: watched.and_then(|w| w.timeline),
    })
}

/// Compares what is held by the manager's books with what the device's witness says.
fn compare_held(manager: &dyn Manager) -> Result<(), Failure> {
    let device = manager.device().held_bytes().map_err(Failure::Unverified)?;
    let books = manager.usage().held;
    if books == device { Ok(()) } else { Err(Failure::HeldMismatch { books, device }) }
}

/// One pass over the trace.
struct Pass<'a> {
    trace: &'a Trace,
    number: u32,
    manager: &'a mut dyn Manager,
    /// The block in each slot; of an empty slot, the one that was there last.
    blocks: &'a mut [BlockId],
    /// The steps that allocated what the trace leaves live.
    leftovers: &'a [usize],
}

/// A step that failed, and how many steps had taken effect by then.
struct Stop {
    step: usize,
    done: usize,
    failure: Failure,
}

/// What can fail in a step.
enum Failure {
    Refused(Error),
    Unverified(DeviceError),
    Corrupt(verify::Wrong),
    HeldMismatch { books: u64, device: u64 },
}

impl Pass<'_> {
    fn run<W: Watch>(
        &mut self,
        watch: &mut W,
        observer: &mut dyn Observer,
    ) -> Result<PassReport, ReplayError> {
        self.manager.reset_peaks();
        watch.begin(self.number);
        let calls = self.manager.device().calls();

        let start = Instant::now();
        let stepped = self.steps(watch, observer);
        let wall = start.elapsed().saturating_sub(watch.aside());
        let in_loop = self.manager.device().calls().since(&calls);

        if let Err(stop) = stepped {
            let error = self.describe(&stop);
            self.free_after(stop.done);
            return Err(error);
        }
        self.free_leftovers(watch)?;
        self.manager.end_of_execution().map_err(|error| ReplayError::EndOfPass {
            trace: self.trace.name().to_owned(),
            pass: self.number,
            error,
        })?;

        // The time a real device takes is part of the wall time and not the policy's. Simulated devices
        // charge time that never passes; it is they that have no memory.
        let device_time = match self.manager.device().caps().memory {
            true => Duration::from_nanos(in_loop.nanos),
            false => Duration::ZERO,
        };
        let policy = wall.saturating_sub(device_time).as_nanos() as f64;
        let device_calls = self.manager.device().calls().since(&calls);
        let usage = self.manager.usage();
        Ok(PassReport {
            allocations: self.trace.allocations(),
            frees: self.trace.frees() + self.leftovers.len() as u64,
            peak_live_bytes: usage.peak_live,
            peak_held_bytes: usage.peak_held,
            device_calls,
            device_us: device_calls.nanos as f64 / 1000.0,
            policy_ns_per_op: policy / self.trace.steps().len().max(1) as f64,
        })
    }

    /// The timed loop. Compiled once without any watching, so that it is the manager that is timed.
    fn steps<W: Watch>(&mut self, watch: &mut W, observer: &mut dyn Observer) -> Result<(), Stop> {
        let steps = self.trace.steps();
        let before = u64::from(self.number - 1) * steps.len() as u64;
        for (chunk_number, chunk) in steps.chunks(W::CHUNK).enumerate() {
            let first = chunk_number * W::CHUNK;
            for (in_chunk, step) in chunk.iter().enumerate() {
                let at = first + in_chunk;
                if at.is_multiple_of(AHEAD) && self.blocks.len() > CACHED {
                    self.touch(&steps[at..steps.len().min(at + AHEAD)]);
                }
                match *step {
                    Step::Alloc { slot, bytes, stream } => {
                        let block = self.manager.alloc(bytes, stream).map_err(|e| Stop {
                            step: at,
                            done: at,
                            failure: Failure::Refused(e),
                        })?;
                        self.blocks[slot as usize] = block.id;
                        let made = Made { step: at, slot, address: block.address, bytes };
                        watch.allocated(made, self.manager).map_err(|failure| Stop {
                            step: at,
                            done: at + 1,
                            failure,
                        })?;
                    }
                    Step::Free { slot } => {
                        watch
                            .freeing(slot, self.manager)
                            .and_then(|()| {
                                self.manager.free(self.blocks[slot as usize]).map_err(Failure::Refused)
                            })
                            .map_err(|failure| Stop { step: at, done: at, failure })?;
                    }
                }
                watch.stepped(before + at as u64, self.manager);
            }
            observer.progress(before + (first + chunk.len()) as u64);
        }
        Ok(())
    }

    /// Reads the slots that `steps` use, all at once, and makes nothing of them. A table of a million blocks is not
    /// in the caches; its misses, each waited for, would be counted as the manager's time.
    fn touch(&self, steps: &[Step]) {
        let ids = steps
            .iter()
            .map(|&(Step::Alloc { slot, .. } | Step::Free { slot })| self.blocks[slot as usize].0);
        black_box(ids.fold(0, |all, id| all ^ id));
    }

    /// Frees what the trace leaves live.
    fn free_leftovers<W: Watch>(&mut self, watch: &mut W) -> Result<(), ReplayError> {
        let end = self.trace.steps().len();
        for (freed, &owner) in self.leftovers.iter().enumerate() {
            let slot = self.slot(owner);
            let result = watch
                .freeing(slot, self.manager)
                .and_then(|()| self.manager.free(self.blocks[slot as usize]).map_err(Failure::Refused));
            if let Err(failure) = result {
                let error = self.describe(&Stop { step: end, done: end, failure });
                for &owner in &self.leftovers[freed..] {
                    self.give_up(owner);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Frees what is live after the first `done` steps, whatever comes of it: there is an error to
    /// report already.
    fn free_after(&mut self, done: usize) {
        for owner in self.trace.live_after(done) {
            self.give_up(owner);
        }
    }

    fn give_up(&mut self, owner: usize) {
        let id = self.blocks[self.slot(owner) as usize];
        if let Err(error) = self.manager.free(id) {
            tracing::warn!("{id} stays live after a failed replay: {error}");
        }
    }

    fn slot(&self, step: usize) -> u32 {
        match self.trace.steps()[step] {
            Step::Alloc { slot, .. } | Step::Free { slot } => slot,
        }
    }

    fn describe(&self, stop: &Stop) -> ReplayError {
        let (trace, pass) = (self.trace.name().to_owned(), self.number);
        let line = self.trace.line(stop.step);
        match &stop.failure {
            Failure::Refused(error) => ReplayError::Refused { trace, line, pass, error: error.clone() },
            Failure::Unverified(error) => ReplayError::Unverified { trace, line, pass, error: error.clone() },
            &Failure::HeldMismatch { books, device } => {
                ReplayError::HeldMismatch { trace, line, pass, books, device }
            }
            Failure::Corrupt(wrong) => ReplayError::Corrupt {
                trace,
                line,
                pass,
                id: self.trace.id(wrong.step),
                bytes: wrong.bytes,
                since: self.trace.line(wrong.step),
                offset: wrong.offset,
                found: wrong.found,
                expected: wrong.expected,
            },
        }
    }
}

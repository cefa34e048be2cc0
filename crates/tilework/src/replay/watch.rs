//! What is done beside the manager's calls while a trace is replayed.

use std::time::Duration;

use super::verify::Verifier;
use super::{Failure, compare_held};
use crate::manager::Manager;
use crate::timeline::Timeline;

/// A block just made for a step.
#[derive(Clone, Copy, Default)]
pub(super) struct Made {
    /// The step.
    pub step: usize,
    /// Where the replay keeps it.
    pub slot: u32,
    /// Where it begins, by the manager.
    pub address: u64,
    /// How long it has to be, by the trace.
    pub bytes: u64,
}

/// Looks on at every step.
pub(super) trait Watch {
    /// Steps between two reports of progress.
    const CHUNK: usize;

    /// Pass number `pass` begins.
    fn begin(&mut self, pass: u32);

    /// A block was made.
    fn allocated(&mut self, made: Made, manager: &dyn Manager) -> Result<(), Failure>;

    /// The block in `slot` is about to be freed.
    fn freeing(&mut self, slot: u32, manager: &dyn Manager) -> Result<(), Failure>;

    /// A step is over; `event` counts through all passes.
    fn stepped(&mut self, event: u64, manager: &dyn Manager);

    /// Time spent here in this pass that is not the manager's.
    fn aside(&self) -> Duration;
}

/// Does nothing, and compiles to nothing.
pub(super) struct Bare;

impl Watch for Bare {
    const CHUNK: usize = 4096;

    fn begin(&mut self, _pass: u32) {}

    #[inline(always)]
    fn allocated(&mut self, _: Made, _: &dyn Manager) -> Result<(), Failure> {
        Ok(())
    }

    #[inline(always)]
    fn freeing(&mut self, _: u32, _: &dyn Manager) -> Result<(), Failure> {
        Ok(())
    }

    #[inline(always)]
    fn stepped(&mut self, _: u64, _: &dyn Manager) {}

    fn aside(&self) -> Duration {
        Duration::ZERO
    }
}

/// Verifies, keeps a timeline, or both.
pub(super) struct Watched {
    pub verifier: Option<Verifier>,
    /// The most that was held in this pass when it was last compared.
    pub highest: u64,
    pub timeline: Option<Timeline>,
}

impl Watch for Watched {
    // A step may fill gigabytes.
    const CHUNK: usize = 16;

    fn begin(&mut self, pass: u32) {
        self.highest = 0;
        if let Some(verifier) = &mut self.verifier {
            verifier.begin(pass);
        }
    }

    fn allocated(&mut self, made: Made, manager: &dyn Manager) -> Result<(), Failure> {
        let Some(verifier) = &mut self.verifier else { return Ok(()) };
        verifier.fill(made, manager.device())?;
        // What is reported is the most there was, so that is compared, and not only what is left at the end.
        let held = manager.usage().held;
        if held <= self.highest {
            return Ok(());
        }
        self.highest = held;
        compare_held(manager)
    }

    fn freeing(&mut self, slot: u32, manager: &dyn Manager) -> Result<(), Failure> {
        match &mut self.verifier {
            Some(verifier) => verifier.check(slot, manager.device()),
            None => Ok(()),
        }
    }

    fn stepped(&mut self, event: u64, manager: &dyn Manager) {
        if let Some(timeline) = &mut self.timeline {
            timeline.push(event, &manager.usage());
        }
    }

    fn aside(&self) -> Duration {
        self.verifier.as_ref().map_or(Duration::ZERO, |v| v.spent)
    }
}

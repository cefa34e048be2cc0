//! A whole trace, checked and compacted.

use std::path::Path;

use rustc_hash::FxHashMap;

use super::{Event, MAX_BYTES, Op, Problem, Reader, TraceError};
use crate::manager::Stream;

/// What one event asks of a manager.
///
/// Blocks are named by *slots*, dense numbers that are used again after a free, so that a replay keeps
/// its blocks in an array no longer than the most that are ever live at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Request `bytes` for `stream` and keep the block in `slot`, which is empty.
    Alloc {
        /// Where to keep the block.
        slot: u32,
        /// Bytes requested, at least one.
        bytes: u64,
        /// For which stream.
        stream: Stream,
    },
    /// Free the block in `slot`.
    Free {
        /// Where the block is.
        slot: u32,
    },
}

/// A trace that makes sense from its first line to its last, ready to be replayed without lookups.
#[derive(Debug, Clone)]
pub struct Trace {
    name: String,
    steps: Vec<Step>,
    /// Of each step, what the file said and a replay does not need.
    origins: Vec<Origin>,
    /// Where lines are left out, such as remarks: a step, and the line it is in. Those behind it follow line by line.
    lines: Vec<(usize, u64)>,
    slots: u32,
    allocations: u64,
    peak_live_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Origin {
    time_us: u64,
    id: u64,
}

impl Trace {
    /// Reads the whole trace in a file and checks it. Its name is the path as given.
    ///
    /// # Errors
    /// The first thing that is wrong with it, with its line.
    pub fn load(path: impl AsRef<Path>) -> Result<Trace, TraceError> {
        let path = path.as_ref();
        Trace::read(&path.display().to_string(), Reader::open(path)?)
    }

    /// Reads what is left in `reader` and checks it.
    ///
    /// # Errors
    /// The first thing that is wrong with it, with its line.
    pub fn read(name: &str, mut reader: Reader) -> Result<Trace, TraceError> {
        let mut building = Building::new(name);
        while let Some(event) = reader.next() {
            building.push(&event?, reader.line()).map_err(|problem| TraceError {
                file: reader.file().map(Path::to_owned),
                line: Some(reader.line()),
                problem,
            })?;
        }
        Ok(building.trace)
    }

    /// Makes a trace of events, as if each were a line of a file, the first one line 2.
    ///
    /// # Errors
    /// The first thing that is wrong with them, with its line.
    pub fn from_events(name: &str, events: impl IntoIterator<Item = Event>) -> Result<Trace, TraceError> {
        let mut building = Building::new(name);
        for (event, line) in events.into_iter().zip(2..) {
            building.push(&event, line).map_err(|problem| TraceError {
                file: None,
                line: Some(line),
                problem,
            })?;
        }
        Ok(building.trace)
    }

    /// The same requests with every size multiplied by `factor` and rounded up to whole bytes.
    ///
    /// # Errors
    /// [`Problem::Scale`] when the factor is not above zero or makes a size, or the bytes live at
    /// once, too large.
    pub fn scaled(&self, factor: f64) -> Result<Trace, TraceError> {
        let wrong = || TraceError { file: None, line: None, problem: Problem::Scale { factor } };
        if !(factor.is_finite() && factor > 0.0) {
            return Err(wrong());
        }
        let mut scaled = self.clone();
        if factor == 1.0 {
            return Ok(scaled);
        }
        let mut live = Live::default();
        let mut sizes = vec![0; self.slots as usize];
        for step in &mut scaled.steps {
            match step {
                Step::Alloc { slot, bytes, .. } => {
                    let size = (*bytes as f64 * factor).ceil().max(1.0);
                    // The conversion saturates, so what is too large stays too large.
                    *bytes = size as u64;
                    if *bytes > MAX_BYTES {
                        return Err(wrong());
                    }
                    sizes[*slot as usize] = *bytes;
                    live.grow(*bytes).map_err(|_| wrong())?;
                }
                Step::Free { slot } => live.shrink(sizes[*slot as usize]),
            }
        }
        scaled.peak_live_bytes = live.peak;
        Ok(scaled)
    }

    /// What it is called in reports: the path of its file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What to ask of the manager, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether it has no events at all.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Slots used: the most blocks that are live at once.
    pub fn slots(&self) -> usize {
        self.slots as usize
    }

    /// Requests in the trace.
    pub fn allocations(&self) -> u64 {
        self.allocations
    }

    /// Frees in the trace. What is live at its end is not among them.
    pub fn frees(&self) -> u64 {
        self.steps.len() as u64 - self.allocations
    }

    /// The most bytes that are live at once: no manager can hold less.
    pub fn peak_live_bytes(&self) -> u64 {
        self.peak_live_bytes
    }

    /// The line in the file of step number `step`, counted from 1, the header.
    pub fn line(&self, step: usize) -> u64 {
        let at = self.lines.partition_point(|&(first, _)| first <= step);
        let (first, line) = at.checked_sub(1).map_or((0, 2), |at| self.lines[at]);
        line + (step - first) as u64
    }

    /// When step number `step` happened, microseconds from the start of the recording.
    pub fn time_us(&self, step: usize) -> u64 {
        self.origins[step].time_us
    }

    /// The name the trace gives the block of step number `step`.
    pub fn id(&self, step: usize) -> u64 {
        self.origins[step].id
    }

    /// The steps that allocated what is live after the first `steps` steps, oldest first.
    pub fn live_after(&self, steps: usize) -> Vec<usize> {
        let mut owners = vec![None; self.slots()];
        for (at, step) in self.steps[..steps].iter().enumerate() {
            match *step {
                Step::Alloc { slot, .. } => owners[slot as usize] = Some(at),
                Step::Free { slot } => owners[slot as usize] = None,
            }
        }
        let mut live: Vec<usize> = owners.into_iter().flatten().collect();
        live.sort_unstable();
        live
    }
}

/// Bytes live, and the most there were.
#[derive(Default)]
struct Live {
    now: u64,
    peak: u64,
}

impl Live {
    fn grow(&mut self, bytes: u64) -> Result<(), Problem> {
        // Both are at most MAX_BYTES, so the sum fits.
        let now = self.now + bytes;
        if now > MAX_BYTES {
            return Err(Problem::LiveTooLarge);
        }
        self.now = now;
        self.peak = self.peak.max(now);
        Ok(())
    }

    fn shrink(&mut self, bytes: u64) {
        self.now -= bytes;
    }
}

/// A trace in the making.
struct Building {
    trace: Trace,
    /// Every id seen, and what became of its block.
    blocks: FxHashMap<u64, Fate>,
    empty_slots: Vec<u32>,
    live: Live,
}

enum Fate {
    Live { slot: u32, bytes: u64, line: u64 },
    Freed { line: u64 },
}

impl Building {
    fn new(name: &str) -> Building {
        Building {
            trace: Trace {
                name: name.to_owned(),
                steps: Vec::new(),
                origins: Vec::new(),
                lines: Vec::new(),
                slots: 0,
                allocations: 0,
                peak_live_bytes: 0,
            },
            blocks: FxHashMap::default(),
            empty_slots: Vec::new(),
            live: Live::default(),
        }
    }

    fn push(&mut self, event: &Event, line: u64) -> Result<(), Problem> {
        let &Event { time_us, op, id, bytes, stream } = event;
        let step = match op {
            Op::Alloc => {
                if bytes == 0 {
                    return Err(Problem::ZeroSize { id });
                }
                if bytes > MAX_BYTES {
                    return Err(Problem::TooLarge { bytes: bytes.to_string() });
                }
                if let Some(&Fate::Live { line: since, .. }) = self.blocks.get(&id) {
                    return Err(Problem::AlreadyLive { id, since });
                }
                self.live.grow(bytes)?;
                let slot = self.empty_slots.pop().unwrap_or_else(|| {
                    self.trace.slots += 1;
                    self.trace.slots - 1
                });
                self.blocks.insert(id, Fate::Live { slot, bytes, line });
                self.trace.allocations += 1;
                self.trace.peak_live_bytes = self.live.peak;
                Step::Alloc { slot, bytes, stream }
            }
            Op::Free => {
                let Some(fate) = self.blocks.get_mut(&id) else {
                    return Err(Problem::UnknownId { id });
                };
                match *fate {
                    Fate::Freed { line: first } => return Err(Problem::DoubleFree { id, first }),
                    Fate::Live { bytes: allocated, line: since, .. } if allocated != bytes => {
                        return Err(Problem::SizeMismatch { id, allocated, since, freed: bytes });
                    }
                    Fate::Live { slot, .. } => {
                        *fate = Fate::Freed { line };
                        self.live.shrink(bytes);
                        self.empty_slots.push(slot);
                        Step::Free { slot }
                    }
                }
            }
        };
        let at = self.trace.steps.len();
        if self.trace.line(at) != line {
            self.trace.lines.push((at, line));
        }
        self.trace.steps.push(step);
        self.trace.origins.push(Origin { time_us, id });
        Ok(())
    }
}

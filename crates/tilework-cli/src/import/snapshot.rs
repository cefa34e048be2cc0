//! The parts of PyTorch's memory snapshots that say who asked for what.
//!
//! ```text
//!   segments:       what the allocator holds at the end, cut into blocks, in order of addresses
//!   device_traces:  for each GPU, the last events, in order of time
//! ```

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use tilework::manager::Stream;

use super::pickle::{Pickle, Value};

/// A snapshot, as `torch.cuda.memory._snapshot()` returns it.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// What is live at the end, in order of segments.
    pub live: Vec<Block>,
    /// One list for each GPU, by its number.
    pub traces: Vec<Vec<Entry>>,
}

/// A block that somebody has, or that a stream may still use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    pub device: usize,
    pub address: u64,
    pub bytes: u64,
    pub stream: Stream,
}

/// What an event does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Alloc,
    /// The program is done with the block.
    FreeRequested,
    /// The streams that the program named are done with it, too.
    FreeCompleted,
}

/// An event about a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub action: Action,
    pub address: u64,
    /// Bytes requested.
    pub bytes: u64,
    pub stream: Stream,
    pub time_us: u64,
}

impl Snapshot {
    /// Reads a pickle. Nothing in it is executed.
    pub fn read(file: Vec<u8>) -> Result<Snapshot> {
        let pickle = Pickle::read(file).context("it is no pickle of a memory snapshot")?;
        let at = At { pickle: &pickle, value: pickle.root() };
        if pickle.items(at.value).is_some() {
            bail!(
                "it is a list of segments, as torch.cuda.memory_snapshot() returns: the events are only in \
                 what torch.cuda.memory._dump_snapshot() writes"
            );
        }
        let mut snapshot = Snapshot::default();
        for trace in at.list("device_traces").context("it is no memory snapshot of PyTorch")? {
            let events = pickle.items(trace.value).context("a trace is no list of events")?;
            let entries = events.iter().map(|&value| entry(At { pickle: &pickle, value }));
            snapshot.traces.push(entries.filter_map(Result::transpose).collect::<Result<_>>()?);
        }
        for segment in at.list("segments").context("it is no memory snapshot of PyTorch")? {
            live_blocks(segment, &mut snapshot.live)?;
        }
        Ok(snapshot)
    }

    /// The GPUs that have an event or a live block.
    pub fn devices(&self) -> Vec<usize> {
        let traced = self.traces.iter().enumerate().filter(|(_, trace)| !trace.is_empty()).map(|(n, _)| n);
        let live = self.live.iter().map(|block| block.device);
        traced.chain(live).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// The event, unless it is one about segments, a snapshot or a failure.
fn entry(at: At) -> Result<Option<Entry>> {
    let action = match at.text("action")? {
        "alloc" => Action::Alloc,
        "free_requested" | "free" => Action::FreeRequested,
        "free_completed" => Action::FreeCompleted,
        _ => return Ok(None),
    };
    Ok(Some(Entry {
        action,
        address: at.number("addr")?,
        bytes: at.number("size")?,
        stream: Stream(at.optional("stream")?.unwrap_or(0)),
        // Not there before PyTorch 2.2.
        time_us: at.optional("time_us")?.unwrap_or(0),
    }))
}

fn live_blocks(segment: At, live: &mut Vec<Block>) -> Result<()> {
    let device = usize::try_from(segment.optional("device")?.unwrap_or(0))?;
    let stream = Stream(segment.optional("stream")?.unwrap_or(0));
    let mut follows = segment.number("address")?;
    for block in segment.list("blocks")? {
        let size = block.number("size")?;
        // Not there before PyTorch 2.1: the blocks of a segment lie one after the other.
        let address = block.optional("address")?.unwrap_or(follows);
        follows = address.wrapping_add(size);
        if block.text("state")?.starts_with("active") {
            let requested = block.optional("requested_size")?.filter(|&bytes| bytes > 0);
            live.push(Block { device, address, bytes: requested.unwrap_or(size), stream });
        }
    }
    Ok(())
}

/// A dictionary in the pickle.
#[derive(Clone, Copy)]
struct At<'a> {
    pickle: &'a Pickle,
    value: Value,
}

impl<'a> At<'a> {
    fn text(self, key: &str) -> Result<&'a str> {
        let value = self.pickle.get(self.value, key).and_then(|v| self.pickle.text(v));
        value.with_context(|| format!("a text {key:?} is not where it should be"))
    }

    fn number(self, key: &str) -> Result<u64> {
        self.optional(key)?.with_context(|| format!("a number {key:?} is not where it should be"))
    }

    fn optional(self, key: &str) -> Result<Option<u64>> {
        match self.pickle.get(self.value, key) {
            None | Some(Value::None) => Ok(None),
            // Addresses and streams are 64 bits; Python's C interface may have given them a sign.
            Some(Value::Int(number)) => Ok(Some(number.cast_unsigned())),
            Some(_) => bail!("{key:?} is no number"),
        }
    }

    fn list(self, key: &str) -> Result<impl Iterator<Item = At<'a>>> {
        let value = self.pickle.get(self.value, key).and_then(|v| self.pickle.items(v));
        let items = value.with_context(|| format!("a list {key:?} is not where it should be"))?;
        Ok(items.iter().map(move |&value| At { pickle: self.pickle, value }))
    }
}

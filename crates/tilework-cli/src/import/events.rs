//! The requests and frees in a snapshot.
//!
//! PyTorch keeps the latest events only, so a recording begins in the middle of things:
//!
//! ```text
//!   before       recorded events                          the end
//!     ?     alloc A   free B   alloc C   free A           segments: C and D are live
//! ```
//!
//! B and D were live when it began: the free of B says so, and D is there without a request.

use std::collections::{BTreeMap, HashMap, HashSet};

use tilework::trace::{Event, Op};

use super::snapshot::{Action, Block, Entry, Snapshot};

/// The requests and frees of one GPU, in order of time. What was live before is requested first.
pub fn of(snapshot: &Snapshot, device: usize) -> Vec<Event> {
    let entries = snapshot.traces.get(device).map_or(&[][..], Vec::as_slice);
    let free = free_action(entries);
    let mut recording = Recording::default();
    for block in live_before(snapshot, device, entries, free) {
        recording.alloc(&Entry {
            action: Action::Alloc,
            address: block.address,
            bytes: block.bytes,
            stream: block.stream,
            time_us: 0,
        });
    }
    let start = entries.iter().map(|entry| entry.time_us).min().unwrap_or(0);
    for entry in entries {
        // Clocks may be set back; a trace's time does not go back.
        recording.now = recording.now.max(entry.time_us - start);
        if entry.action == Action::Alloc {
            recording.alloc(entry);
        } else if entry.action == free {
            recording.free(entry.address);
        }
    }
    recording.events
}

/// The action that ends a block: the one after which a manager could give it away again, unless the
/// recording was told to leave that one out.
fn free_action(entries: &[Entry]) -> Action {
    let completed = entries.iter().any(|entry| entry.action == Action::FreeCompleted);
    if completed { Action::FreeCompleted } else { Action::FreeRequested }
}

/// What was live when the recording began, in order of addresses.
fn live_before(snapshot: &Snapshot, device: usize, entries: &[Entry], free: Action) -> Vec<Block> {
    let mut before = BTreeMap::new();
    // The first event of an address tells what was there before; so does the end where there is no event.
    let mut named = HashSet::new();
    for entry in entries.iter().filter(|e| e.action == Action::Alloc || e.action == free) {
        let &Entry { address, bytes, stream, .. } = entry;
        if named.insert(address) && entry.action == free {
            before.insert(address, Block { device, address, bytes, stream });
        }
    }
    for block in &snapshot.live {
        if block.device == device && !named.contains(&block.address) {
            before.insert(block.address, *block);
        }
    }
    before.into_values().collect()
}

#[derive(Default)]
struct Recording {
    events: Vec<Event>,
    /// The request of the block at each address.
    live: HashMap<u64, Event>,
    requests: u64,
    now: u64,
}

impl Recording {
    fn alloc(&mut self, entry: &Entry) {
        // Nothing is at an address twice: a free that is not there was left out.
        self.free(entry.address);
        // Managers are not asked for nothing.
        if entry.bytes > 0 {
            let &Entry { address, bytes, stream, .. } = entry;
            let event = Event { time_us: self.now, op: Op::Alloc, id: self.requests, bytes, stream };
            self.requests += 1;
            self.live.insert(address, event);
            self.events.push(event);
        }
    }

    fn free(&mut self, address: u64) {
        if let Some(block) = self.live.remove(&address) {
            self.events.push(Event { time_us: self.now, op: Op::Free, ..block });
        }
    }
}

#[cfg(test)]
mod tests;

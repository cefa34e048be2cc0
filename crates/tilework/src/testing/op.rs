//! The one operation type of property tests, fuzzing and replayed traces.

use std::collections::HashMap;
use std::hash::Hash;

/// One operation on a manager. Every sequence of them makes sense: a [`Rig`](super::Rig) skips a free
/// when nothing is live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Request `bytes` for work on `stream`.
    Alloc {
        /// Bytes to ask for.
        bytes: u64,
        /// The stream to ask for.
        stream: u64,
    },
    /// Free a live block: number `nth` modulo how many there are. New blocks go to the end of the list
    /// and the last takes the place of the one freed.
    Free {
        /// Which.
        nth: usize,
    },
    /// One execution of the model has ended.
    EndOfExecution,
    /// Give back everything unused.
    Trim,
    /// Let the peaks start again.
    ResetPeaks,
}

/// Writes [`Op`]s from a story that names its blocks, as traces do: the bridge from ids to `nth`.
#[derive(Debug, Clone)]
pub struct Script<Id> {
    ops: Vec<Op>,
    /// The live list as whoever runs the operations will have it.
    live: Vec<Id>,
    places: HashMap<Id, usize>,
}

impl<Id: Copy + Eq + Hash> Script<Id> {
    /// Nothing happened yet.
    pub fn new() -> Script<Id> {
        Script { ops: Vec::new(), live: Vec::new(), places: HashMap::new() }
    }

    /// Requests a block that the story calls `id`. The name must not be in use.
    pub fn alloc(&mut self, id: Id, bytes: u64, stream: u64) -> &mut Self {
        let before = self.places.insert(id, self.live.len());
        assert!(before.is_none(), "the name is in use");
        self.live.push(id);
        self.push(Op::Alloc { bytes, stream })
    }

    /// Frees the block that the story calls `id`. It must be live.
    pub fn free(&mut self, id: Id) -> &mut Self {
        let nth = self.places.remove(&id).expect("a live block");
        self.live.swap_remove(nth);
        if let Some(moved) = self.live.get(nth) {
            self.places.insert(*moved, nth);
        }
        self.push(Op::Free { nth })
    }

    /// Any operation that names no block.
    pub fn push(&mut self, op: Op) -> &mut Self {
        self.ops.push(op);
        self
    }

    /// The story so far, followed by freeing whatever is live and the end of the execution: one pass
    /// that may be repeated on the same manager.
    pub fn pass(mut self) -> Vec<Op> {
        self.ops.extend(self.live.iter().map(|_| Op::Free { nth: 0 }));
        self.ops.push(Op::EndOfExecution);
        self.ops
    }

    /// The story so far.
    pub fn ops(self) -> Vec<Op> {
        self.ops
    }
}

impl<Id: Copy + Eq + Hash> Default for Script<Id> {
    fn default() -> Self {
        Script::new()
    }
}

#[cfg(test)]
mod tests;

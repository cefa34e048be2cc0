//! Blocks by id: a slot map whose ids are never issued twice.
//!
//! ```text
//!   BlockId   63          32 31           0
//!            ┌──────────────┬──────────────┐
//!            │  generation  │     slot     │
//!            └──────────────┴──────────────┘
//!   slots     [0] generation 3, live      ← id 3:0 is live, 1:0 and 2:0 were freed
//!             [1] generation 1, vacant ─┐ ← 1:1 was never issued: it is the next to be
//!             [2] generation 7, vacant ◄┘ ← 6:2 and below were freed
//! ```
//!
//! A slot is reused at once, with the next generation, so the table stays as long as the most blocks
//! that were ever live together and a lookup is one index and one comparison. Generations start at 1:
//! no id is 0, which leaves 0 to callers for "none".

use std::fmt;

use crate::error::{Error, Result};
use crate::manager::BlockId;

/// No slot: the end of the list of vacant ones.
const NONE: u32 = u32::MAX;

/// What a manager knows of each live block, found by the block's id.
#[derive(Clone)]
pub struct Blocks<T> {
    slots: Vec<Slot<T>>,
    /// The first vacant slot; the others follow through `State::Vacant`.
    vacant: u32,
    live: usize,
}

#[derive(Clone)]
struct Slot<T> {
    /// Live: the generation of its block. Vacant: that of its next one, so every lower one was freed.
    generation: u32,
    state: State<T>,
}

#[derive(Clone)]
enum State<T> {
    Live(T),
    Vacant { next: u32 },
}

impl<T> Blocks<T> {
    /// No blocks yet.
    pub const fn new() -> Blocks<T> {
        Blocks { slots: Vec::new(), vacant: NONE, live: 0 }
    }

    /// Takes a block in and names it.
    #[inline]
    pub fn insert(&mut self, value: T) -> BlockId {
        self.live += 1;
        let Some(slot) = self.slots.get_mut(self.vacant as usize) else {
            return self.grow(value);
        };
        let index = self.vacant;
        if let State::Vacant { next } = std::mem::replace(&mut slot.state, State::Live(value)) {
            self.vacant = next;
        }
        pack(slot.generation, index)
    }

    #[cold]
    fn grow(&mut self, value: T) -> BlockId {
        let index = self.slots.len() as u32;
        assert!(index < NONE, "more than 2^32 blocks live at once");
        self.slots.push(Slot { generation: 1, state: State::Live(value) });
        pack(1, index)
    }

    /// Takes a block out.
    ///
    /// # Errors
    /// [`Error::DoubleFree`] when it was taken out before, [`Error::UnknownBlock`] when this id was
    /// never issued.
    #[inline]
    pub fn remove(&mut self, id: BlockId) -> Result<T> {
        let (generation, index) = unpack(id);
        let next = self.vacant;
        if let Some(slot) = self.slots.get_mut(index as usize)
            && slot.generation == generation
            && matches!(slot.state, State::Live(_))
        {
            // A slot that has used up its generations is left out of the list for good.
            slot.generation = generation.wrapping_add(1);
            if slot.generation != 0 {
                self.vacant = index;
            }
            self.live -= 1;
            if let State::Live(value) = std::mem::replace(&mut slot.state, State::Vacant { next }) {
                return Ok(value);
            }
        }
        Err(self.refuse(id))
    }

    /// Looks a live block up.
    ///
    /// # Errors
    /// As [`remove`](Blocks::remove).
    #[inline]
    pub fn get(&self, id: BlockId) -> Result<&T> {
        let (generation, index) = unpack(id);
        match self.slots.get(index as usize) {
            Some(Slot { generation: g, state: State::Live(value) }) if *g == generation => Ok(value),
            _ => Err(self.refuse(id)),
        }
    }

    #[cold]
    fn refuse(&self, id: BlockId) -> Error {
        let (generation, index) = unpack(id);
        // A retired slot says generation 0: all the others were issued and freed.
        match self.slots.get(index as usize) {
            Some(slot) if generation != 0 && (generation < slot.generation || slot.generation == 0) => {
                Error::DoubleFree(id)
            }
            _ => Error::UnknownBlock(id),
        }
    }

    /// The live blocks, in the order of their slots.
    pub fn iter(&self) -> impl Iterator<Item = (BlockId, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| match &slot.state {
            State::Live(value) => Some((pack(slot.generation, index as u32), value)),
            State::Vacant { .. } => None,
        })
    }

    /// How many blocks are live.
    pub fn len(&self) -> usize {
        self.live
    }

    /// True when no block is live.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }
}

impl<T> Default for Blocks<T> {
    fn default() -> Self {
        Blocks::new()
    }
}

impl<T: fmt::Debug> fmt::Debug for Blocks<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

fn pack(generation: u32, slot: u32) -> BlockId {
    BlockId(u64::from(generation) << 32 | u64::from(slot))
}

fn unpack(id: BlockId) -> (u32, u32) {
    ((id.0 >> 32) as u32, id.0 as u32)
}

#[cfg(test)]
mod tests;

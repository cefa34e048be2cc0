//! Blocks that outlive their free, until the fences of those who use them have passed.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::device::{Device, DeviceError};
use crate::error::{Error, Result};
use crate::manager::{Block, BlockId, Kind, Manager, Rounding, Stats, Stream, Usage};
use crate::shared::streams::Event;

/// A manager around another, for an executor whose work runs on more than one queue.
///
/// One queue needs nothing of it: what is freed there serves later work of the same queue at once. A block that
/// another queue, or a copy the host waits for, uses too is [retained](Fenced::retain) with that user's fence. When it
/// is freed it goes back once all its fences have passed; until then it counts as live.
///
/// When memory lacks, the host waits for the fences of what was freed. Everything else never waits.
pub struct Fenced {
    inner: Box<dyn Manager>,
    /// The fences of each live block.
    live: FxHashMap<BlockId, Vec<Event>>,
    /// Those of each block that was freed before they passed.
    freed: FxHashMap<BlockId, Vec<Event>>,
    /// What is in `freed`, in the order in which it was freed.
    order: VecDeque<BlockId>,
}

impl Fenced {
    /// A manager around `inner`, which has handed nothing out yet.
    pub fn new(inner: Box<dyn Manager>) -> Fenced {
        Fenced { inner, live: FxHashMap::default(), freed: FxHashMap::default(), order: VecDeque::new() }
    }

    /// Keeps a live block until `fence` has passed, also beyond its free.
    ///
    /// # Errors
    /// [`Error::UnknownBlock`] when it is not live; [`Error::DoubleFree`] when it was freed and still waits.
    pub fn retain(&mut self, id: BlockId, fence: Event) -> Result<()> {
        let Some(fences) = self.live.get_mut(&id) else {
            return Err(self.unknown(id));
        };
        fences.retain(|fence| !fence.passed());
        fences.push(fence);
        Ok(())
    }

    /// Blocks that were freed and still wait for a fence.
    pub fn waiting(&self) -> usize {
        self.freed.len()
    }

    fn unknown(&self, id: BlockId) -> Error {
        if self.freed.contains_key(&id) { Error::DoubleFree(id) } else { Error::UnknownBlock(id) }
    }

    /// Gives the block freed first back if its fences have passed, and so on. Asks for no more than the first that
    /// has not: each costs a call of the driver.
    fn reap(&mut self) -> Result<()> {
        while let Some(&first) = self.order.front()
            && self.has_passed(first)
        {
            self.order.pop_front();
            self.freed.remove(&first);
            self.inner.free(first)?;
        }
        Ok(())
    }

    /// Gives all back whose fences have passed.
    fn reap_all(&mut self) -> Result<()> {
        let (passed, waiting) =
            std::mem::take(&mut self.order).into_iter().partition(|&id| self.has_passed(id));
        let passed: VecDeque<BlockId> = passed;
        self.order = waiting;
        // All of them, whatever one meets: those left out would wait for ever.
        let mut outcome = Ok(());
        for id in passed {
            self.freed.remove(&id);
            outcome = outcome.and(self.inner.free(id));
        }
        outcome
    }

    fn has_passed(&self, id: BlockId) -> bool {
        self.freed[&id].iter().all(|fence| fence.passed())
    }

    /// Waits on the host for all that was freed.
    fn wait(&self) -> Result<(), DeviceError> {
        self.freed.values().flatten().try_for_each(|fence| fence.synchronize())
    }
}

impl Manager for Fenced {
    fn kind(&self) -> Kind {
        self.inner.kind()
    }

    fn alloc(&mut self, bytes: u64, stream: Stream) -> Result<Block> {
        self.reap()?;
        let mut served = self.inner.alloc(bytes, stream);
        if matches!(served, Err(Error::OutOfMemory { .. })) && !self.freed.is_empty() {
            self.wait()?;
            self.reap_all()?;
            served = self.inner.alloc(bytes, stream);
        }
        let block = served?;
        self.live.insert(block.id, Vec::new());
        Ok(block)
    }

    fn free(&mut self, id: BlockId) -> Result<()> {
        let Some(fences) = self.live.remove(&id) else {
            // The one inside tells what was freed before from what never was.
            return if self.freed.contains_key(&id) {
                Err(Error::DoubleFree(id))
            } else {
                self.inner.free(id)
            };
        };
        if fences.iter().all(|fence| fence.passed()) {
            return self.inner.free(id);
        }
        self.freed.insert(id, fences);
        self.order.push_back(id);
        Ok(())
    }

    fn set_rounding(&mut self, rounding: Rounding) {
        self.inner.set_rounding(rounding);
    }

    fn end_of_execution(&mut self) -> Result<()> {
        let reaped = self.reap_all();
        reaped.and(self.inner.end_of_execution())
    }

    fn trim(&mut self) -> Result<u64> {
        self.reap_all()?;
        self.inner.trim()
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn reset_peaks(&mut self) {
        self.inner.reset_peaks();
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }

    fn device(&self) -> &dyn Device {
        self.inner.device()
    }

    fn check_invariants(&self) {
        self.inner.check_invariants();
        assert_eq!(self.order.len(), self.freed.len(), "what waits, and its order");
        assert!(self.order.iter().all(|id| self.freed.contains_key(id)), "the order knows what waits");
        let blocks = (self.live.len() + self.freed.len()) as u64;
        assert_eq!(self.stats().blocks, blocks, "blocks of the manager and blocks known");
    }
}

#[cfg(test)]
mod tests;

//! The pools of graphs: which requests go to one, and how long one lasts.
//!
//! ```text
//!   begin: open, referenced ──end──► referenced ──last release──► retired ──device synchronised──► free memory
//! ```
//!
//! A pool is a *slot*: its lanes are those with the slot's number, one for each stream. Slots, and with them
//! lanes, are used again once a pool is gone and its last block freed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Filter, PoolId};
use crate::manager::Stream;

/// The pools there are.
#[derive(Default)]
pub(super) struct Pools {
    /// How many are open. Most programs have none, and find out by one relaxed load.
    open: Arc<AtomicUsize>,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    pools: Vec<GraphPool>,
    /// Open pools in the order in which they began.
    filters: Vec<(u32, Filter)>,
    /// Slots of pools that nobody refers to any more, whose graphs may still be running.
    retired: Vec<u32>,
    /// Slots of pools that are gone, with blocks that may still be live.
    draining: Vec<u32>,
    /// Slots to use again.
    free: Vec<u32>,
    /// The highest slot that was ever used; zero stands for no pool.
    last: u32,
}

struct GraphPool {
    id: PoolId,
    slot: u32,
    references: u64,
}

impl State {
    fn close(&mut self, slot: u32) -> Option<Filter> {
        let at = self.filters.iter().position(|&(of, _)| of == slot)?;
        Some(self.filters.remove(at).1)
    }
}

impl Pools {
    /// The slot of the pool that serves a request for `stream`, zero where none does.
    #[inline]
    pub fn slot_for(&self, stream: Stream) -> u32 {
        // A thread that opens a pool and then makes a request sees what it wrote itself.
        if self.any_open() { self.ask(stream) } else { 0 }
    }

    #[cold]
    fn ask(&self, stream: Stream) -> u32 {
        // Held while a filter is asked: its owner may destroy what it stands on once `end` has returned.
        let state = self.read();
        state.filters.iter().find(|(_, filter)| filter(stream)).map_or(0, |&(slot, _)| slot)
    }

    /// Takes a reference, and opens the pool if there is a filter. Returns the slot if it is a new pool's.
    pub fn begin(&self, id: PoolId, filter: Option<Filter>) -> Option<u32> {
        let mut state = self.write();
        let known = state.pools.iter_mut().find(|pool| pool.id == id);
        let (slot, new) = match known {
            Some(pool) => {
                pool.references += 1;
                (pool.slot, None)
            }
            None => {
                let slot = state.free.pop().unwrap_or_else(|| {
                    state.last += 1;
                    state.last
                });
                state.pools.push(GraphPool { id, slot, references: 1 });
                (slot, Some(slot))
            }
        };
        if let Some(filter) = filter {
            // A capture that failed may have left one behind, of which nothing is alive any more.
            let _older = state.close(slot);
            state.filters.push((slot, filter));
        }
        self.count(&state);
        new
    }

    /// Closes the pool. Does nothing for one that is not open.
    pub fn end(&self, id: PoolId) {
        let mut state = self.write();
        if let Some(slot) = state.pools.iter().find(|pool| pool.id == id).map(|pool| pool.slot) {
            let _closed = state.close(slot);
        }
        self.count(&state);
    }

    /// Gives a reference back. Does nothing for a pool that is not known.
    pub fn release(&self, id: PoolId) {
        let mut state = self.write();
        let Some(at) = state.pools.iter().position(|pool| pool.id == id) else { return };
        state.pools[at].references -= 1;
        if state.pools[at].references == 0 {
            let GraphPool { slot, .. } = state.pools.remove(at);
            let _closed = state.close(slot);
            state.retired.push(slot);
        }
        self.count(&state);
    }

    /// The number of open pools, for those who have to know it under a lock of theirs.
    pub fn open(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.open)
    }

    /// Whether any pool is open.
    pub fn any_open(&self) -> bool {
        self.open.load(Ordering::Relaxed) != 0
    }

    /// Retires slots again that a late request has come to: one that chose the pool while it was open, and was served
    /// once it was gone. In a slot whose graph is through it finds or makes a lane that `is_pinned`; in one to be
    /// used again, where all are, one that `has_memory`.
    pub fn recall(&self, is_pinned: impl Fn(u32) -> bool, has_memory: impl Fn(u32) -> bool) {
        let state = self.read();
        if state.draining.is_empty() && state.free.is_empty() {
            return;
        }
        drop(state);
        let State { draining, free, retired, .. } = &mut *self.write();
        retired.extend(draining.extract_if(.., |slot| is_pinned(*slot)));
        retired.extend(free.extract_if(.., |slot| has_memory(*slot)));
    }

    /// The slots that are retired at present.
    pub fn retired(&self) -> Vec<u32> {
        self.read().retired.clone()
    }

    /// Notes that the graphs of these slots are through.
    pub fn drain(&self, slots: &[u32]) {
        let mut state = self.write();
        state.retired.retain(|slot| !slots.contains(slot));
        state.draining.extend_from_slice(slots);
    }

    /// Makes the slots of pools that are gone usable again where `is_empty` finds nothing live in them.
    pub fn reuse(&self, is_empty: impl Fn(u32) -> bool) {
        if self.read().draining.is_empty() {
            return;
        }
        let State { draining, free, .. } = &mut *self.write();
        draining.retain(|&slot| {
            let empty = is_empty(slot);
            if empty {
                free.push(slot);
            }
            !empty
        });
    }

    fn count(&self, state: &State) {
        self.open.store(state.filters.len(), Ordering::Relaxed);
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Where memory comes from for a request that no free run of its lane is long enough for.
//!
//! In this order: what the lane gets back, what is pending, its stream waiting, what idle lanes do not use, new
//! memory; then what busy lanes do not use, its stream waiting; then everything unused anywhere, the host waiting; then
//! one group after the other, evicted; then, where that is allowed, memory of the host. What would not fit by itself is
//! refused before.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use super::Shared;
use super::lane::{Books, Lane, Wait};
use crate::error::{Error, Result};
use crate::manager::{Block, Manager, Served};

impl Shared {
    /// Serves a request that no free run of the lane is long enough for.
    #[cold]
    pub(super) fn alloc_slow<'a>(
        &'a self,
        lane: &'a Lane,
        mut books: MutexGuard<'a, Books>,
        bytes: u64,
    ) -> Result<u64> {
        let group = lane.home.group();
        let longest = self.depot.caps().max_range_bytes;
        let never_fits = self.depot.limit().is_some_and(|limit| bytes > limit) && !self.depot.spills();
        if never_fits && bytes <= longest {
            // To try would give back all that is cached, and take from other programs, for a while, what they could have.
            return Err(self.refused(self.depot.refusal(bytes, self.live.now())));
        }
        let mut served = self.serve(lane, &mut books, bytes);
        let mut waits = [Wait::Stream, Wait::Host].into_iter();
        while matches!(served, Err(Error::OutOfMemory { .. })) {
            // Nobody may wait for a lane while he has one. Nothing was placed, so nothing can be lost.
            let lacks = bytes.saturating_sub(books.pool.free_bytes());
            drop(books);
            let relieved = match waits.next() {
                Some(wait) => {
                    self.retries.fetch_add(1, Ordering::Relaxed);
                    self.relieve(lane, bytes, wait);
                    true
                }
                None => self.evict_one(group, lacks),
            };
            books = lane.lock();
            let spills = !relieved && self.depot.spills();
            if !relieved && !spills {
                break;
            }
            if lane.home.is_odd() || lane.home.group() != group {
                self.look_closer(lane, group)?;
            }
            lane.home.begin();
            lane.home.set_pressed(true);
            lane.home.set_spilling(spills);
            served = books.pool.alloc(bytes, lane.key.stream);
            lane.home.set_pressed(false);
            lane.home.set_spilling(false);
            if spills {
                self.remark_spilled();
                break;
            }
        }
        match served {
            Ok(block) => {
                self.hand_out(&mut books, block, lane.key.stream);
                Ok(block.address)
            }
            Err(Error::OutOfMemory { request, .. }) => {
                Err(self.refused(self.depot.out_of_memory(request, self.live.now())))
            }
            Err(error) => Err(error),
        }
    }

    /// Counts a request that is refused for want of memory.
    fn refused(&self, error: Error) -> Error {
        self.ooms.fetch_add(1, Ordering::Relaxed);
        self.remark(&format!("refused: {error}"));
        error
    }

    /// Serves a request from what the lane has, from what it gets back, from what others have to spare, and
    /// from new memory, in this order.
    fn serve(&self, lane: &Lane, books: &mut Books, bytes: u64) -> Result<Block> {
        lane.home.begin();
        self.absorb(lane, books, false)?;
        let mut lacks = match books.pool.serve(bytes)? {
            Served::Block(block) => return Ok(block),
            Served::Lacks(lacks) => lacks,
        };
        if books.pending_bytes >= lacks {
            self.absorb(lane, books, true)?;
            lacks = match books.pool.serve(bytes)? {
                Served::Block(block) => return Ok(block),
                Served::Lacks(lacks) => lacks,
            };
        }
        // What others took of this lane it replaces by new memory. Took it theirs in turn, streams that work by
        // turns would hand the same heaps to and fro at every step, by the device.
        let replaced = lacks.min(books.given_up);
        self.take_from_others(lane, lacks - replaced, Wait::Nobody);
        let block = books.pool.alloc(bytes, lane.key.stream)?;
        books.given_up -= replaced;
        Ok(block)
    }

    pub(super) fn absorb(&self, lane: &Lane, books: &mut Books, queue: bool) -> Result<()> {
        books.absorb(&self.depot, &lane.home, queue)
    }

    /// Has other lanes give heaps up that they do not use, of `lacks` bytes together at most. With
    /// [`Wait::Nobody`] only those whose streams have nothing to do. A lane that somebody is in is left alone.
    pub(super) fn take_from_others(&self, lane: &Lane, lacks: u64, wait: Wait) {
        let caps = self.depot.caps();
        if !caps.tiling {
            return;
        }
        let mut found = 0;
        for other in self.lanes.iter().filter(|other| other.key != lane.key) {
            if found >= lacks {
                return;
            }
            let Some(mut books) = other.try_lock() else { continue };
            // The driver is asked last: it costs a call, and a stream that has nothing may be no more.
            if books.pool.free_bytes() < caps.tile_bytes || !self.depot.may_give(&other.home) {
                continue;
            }
            other.home.begin();
            let event = self.depot.mark(&other.home);
            if wait == Wait::Nobody && !event.is_some_and(|event| event.passed()) {
                continue;
            }
            match books.pool.give_up(lacks - found) {
                Ok(bytes) => {
                    books.given_up += bytes;
                    found += bytes;
                }
                Err(error) => tracing::warn!(%error, "a stream could not give its memory up"),
            }
        }
    }

    /// Makes room for a request of `bytes` on a lane: memory that its stream has to wait for, or, with
    /// [`Wait::Host`], all there is. The caller has no lane.
    fn relieve(&self, lane: &Lane, bytes: u64, wait: Wait) {
        if wait == Wait::Host {
            return self.give_back_for_room();
        }
        if let Err(error) = self.absorb(lane, &mut lane.lock(), true) {
            tracing::warn!(%error, "not everything unused could be given back");
        }
        self.take_from_others(lane, bytes, Wait::Stream);
    }
}

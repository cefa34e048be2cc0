//! How memory goes back: after an execution, when a stream ends, and when everything unused is wanted back.

use std::sync::atomic::Ordering;

use super::Shared;
use super::lane::{Books, Lane, Wait};
use crate::error::{Error, Result};
use crate::manager::{Manager, Stream};

impl Shared {
    /// Tells that `stream` is about to be destroyed: waits for it, and gives its free memory to others. Its
    /// live blocks stay valid. The stream is not asked for anything again, unless a request names it.
    ///
    /// # Errors
    /// [`Error::Device`] when the stream cannot be waited for; it counts as alive then.
    pub fn forget_stream(&self, stream: Stream) -> Result<()> {
        if !self.process.is_this() {
            return Ok(());
        }
        self.depot.streams().record(stream)?.synchronize()?;
        self.forget_user(stream);
        let mut outcome = Ok(());
        for lane in self.lanes.iter() {
            let mut books = lane.lock();
            books.forget(stream);
            if lane.key.stream == stream && !lane.key.is_guest() {
                lane.home.set_orphan(true);
                self.depot.let_others_out();
                if self.depot.may_give(&lane.home) {
                    lane.home.begin();
                    outcome = outcome.and(self.absorb(lane, &mut books, false));
                    outcome = outcome.and(books.pool.trim().map(drop));
                }
            }
        }
        outcome
    }

    /// Tells that one execution of the model has ended: the clock by which unused mappings and heaps grow old
    /// and are given back, on a thread of its own where it is much. Never waits, but for the streams of what is given back where nothing is
    /// mapped elsewhere; a stream that is being captured is left for the next time.
    ///
    /// # Errors
    /// As [`Manager::end_of_execution`].
    pub fn end_of_execution(&self) -> Result<()> {
        if !self.process.is_this() {
            return Ok(());
        }
        let mut outcome = Ok(());
        self.reuse_slots();
        for lane in self.lanes.iter() {
            let mut books = lane.lock();
            outcome = outcome.and(self.absorb(lane, &mut books, false));
            if self.depot.may_give(&lane.home) {
                lane.home.begin();
                lane.home.set_aging(true);
                outcome = outcome.and(books.pool.end_of_execution());
                lane.home.set_aging(false);
            } else {
                outcome = outcome.and(self.retry_absent(lane, &mut books));
            }
        }
        let aged = self.depot.end_of_execution(u64::from(self.options.heap_age.max(1)));
        outcome.and(aged.map_err(Error::Device))
    }

    /// Gives back everything unused, waiting for the work that uses it yet, and returns the bytes of physical
    /// memory released. Streams that are being captured and the pools of graphs that are referenced keep what
    /// they have.
    ///
    /// # Errors
    /// As [`Manager::trim`].
    pub fn trim(&self) -> Result<u64> {
        let released = self.give_back(true)?;
        if released > 0 {
            self.remark(&format!("trimmed: {released} bytes released"));
        }
        Ok(released)
    }

    /// Gives back everything unused but the host's memory, since memory lacks. The caller has no lane.
    pub(super) fn give_back_for_room(&self) {
        self.give_backs.fetch_add(1, Ordering::Relaxed);
        match self.give_back(false) {
            Ok(released) => self.remark(&format!("memory lacked: {released} bytes released")),
            Err(error) => tracing::warn!(%error, "not everything unused could be given back"),
        }
    }

    /// Gives back everything unused, of the host's memory only if `spilled`.
    fn give_back(&self, spilled: bool) -> Result<u64> {
        if !self.process.is_this() {
            return Ok(0);
        }
        let mut outcome = self.retire_pools();
        for lane in self.lanes.iter() {
            outcome = outcome.and(self.trim_lane(lane, Wait::Host));
        }
        self.reuse_slots();
        let released = self.depot.empty(spilled)?;
        outcome.map(|()| released)
    }

    /// Gives back what a lane does not use.
    pub(super) fn trim_lane(&self, lane: &Lane, wait: Wait) -> Result<()> {
        if wait == Wait::Host {
            let awaited = lane.lock().awaited(&self.depot);
            for event in awaited.iter().filter(|event| !event.passed()) {
                if let Err(error) = event.synchronize() {
                    tracing::warn!(%error, "what another stream used cannot be waited for and stays pending");
                }
            }
        }
        let mut books = lane.lock();
        let absorbed = self.absorb(lane, &mut books, false);
        if !self.depot.may_give(&lane.home) {
            return absorbed.and(self.retry_absent(lane, &mut books));
        }
        lane.home.begin();
        absorbed.and(books.pool.trim().map(drop))
    }

    /// Tries again to give back what was left of a lane when its group went.
    fn retry_absent(&self, lane: &Lane, books: &mut Books) -> Result<()> {
        if !books.pool.is_absent() {
            return Ok(());
        }
        lane.home.settle(self.depot.done());
        books.pool.retry().map(drop)
    }

    /// Waits for the graphs of pools that nobody refers to any more, and makes their lanes like others.
    fn retire_pools(&self) -> Result<()> {
        let lanes_of = |slot| self.lanes.iter().filter(move |lane| lane.key.slot == slot);
        self.pools.recall(
            |slot| lanes_of(slot).any(|lane| lane.home.is_pinned()),
            |slot| lanes_of(slot).any(|lane| lane.lock().pool.usage().held > 0),
        );
        let slots = self.pools.retired();
        let capturing = |lane: &Lane| self.depot.is_capturing(&lane.home);
        // While a stream is being captured the device may not be waited for; with a pool open one that no lane
        // knows of may be.
        if slots.is_empty() || self.pools.any_open() || self.lanes.iter().any(capturing) {
            return Ok(());
        }
        self.depot.streams().synchronize_device()?;
        for lane in self.lanes.iter().filter(|lane| slots.contains(&lane.key.slot)) {
            lane.home.set_pinned(false);
        }
        self.pools.drain(&slots);
        Ok(())
    }

    /// Makes the slots of pools usable again that are gone and of which nothing is live.
    fn reuse_slots(&self) {
        self.pools.reuse(|slot| {
            let lanes = || self.lanes.iter().filter(|lane| lane.key.slot == slot);
            let empty = lanes().all(|lane| {
                self.depot.may_give(&lane.home)
                    && self.trim_lane(lane, Wait::Nobody).is_ok()
                    && lane.lock().is_idle()
                    && self.depot.has_marked_all(&lane.home)
            });
            if empty {
                lanes().for_each(|lane| lane.home.set_pinned(true));
            }
            empty
        });
    }
}

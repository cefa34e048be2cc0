//! What a front has to say of itself: running figures, the full report, and whether its books agree.

use std::sync::atomic::Ordering;

use serde::Serialize;

use super::depot::lock;
use super::lane::Lane;
use super::{GroupStats, Shared};
use crate::device::Calls;
use crate::manager::{Manager, Serving, Usage};

/// What is counted as it goes, over all streams: the figures that programs ask for at every step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// The running figures.
    pub usage: Usage,
    /// See [`SharedStats::stock`].
    pub stock: u64,
    /// See [`SharedStats::pending`].
    pub pending: u64,
    /// See [`SharedStats::ooms`].
    pub ooms: u64,
    /// See [`SharedStats::retries`].
    pub retries: u64,
    /// See [`SharedStats::device_calls`].
    pub device_calls: Calls,
}

/// The report of a [`Shared`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SharedStats {
    /// The running figures, over all streams.
    pub usage: Usage,
    /// The part of what is held that no stream has: ready to be given to any, bytes.
    pub stock: u64,
    /// Freed by their owner and waiting for the streams that used them, bytes.
    pub pending: u64,
    /// Held, but not yet taken back by the device, which refused, bytes.
    pub leftover: u64,
    /// Contents of evicted groups on the host, bytes.
    pub kept: u64,
    /// Memory of the host that the device uses for want of its own, bytes; not among what is held.
    pub spilled: u64,
    /// Blocks live.
    pub blocks: u64,
    /// Requests served.
    pub allocations: u64,
    /// Blocks freed.
    pub frees: u64,
    /// Requests that were refused for want of memory.
    pub ooms: u64,
    /// Requests that had everything unused given back before they were served or refused.
    pub retries: u64,
    /// Groups that were evicted for want of memory. Those evicted by request are in their own figures only.
    pub evictions: u64,
    /// Times that everything unused was given back for want of memory.
    pub give_backs: u64,
    /// Heaps that were made of the host's memory for want of the device's.
    pub spills: u64,
    /// Calls the driver has served.
    pub device_calls: Calls,
    /// The streams known, in the order of their first requests.
    pub streams: Vec<StreamStats>,
    /// The groups, in the order in which they were made.
    pub groups: Vec<GroupStats>,
}

/// The part of a [`SharedStats`] that belongs to one stream, or to one stream of a graph's pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct StreamStats {
    /// The stream's number; that of its lane for a guest.
    pub stream: u64,
    /// True: the part of a graph's pool that serves the stream.
    pub graph: bool,
    /// The number of the group whose part it is.
    pub group: Option<u32>,
    /// Requested and not yet freed, bytes.
    pub live: u64,
    /// Physical memory the stream has, bytes.
    pub held: u64,
    /// The largest request that could be served in one piece without the device, bytes.
    pub largest_free_run: u64,
    /// Blocks live.
    pub blocks: u64,
}

impl Shared {
    /// The running figures, over all streams. `mapped` counts what waits to be unmapped too, `held` the stock.
    pub fn usage(&self) -> Usage {
        Usage { live: self.live.now(), peak_live: self.live.peak(), ..self.depot.usage() }
    }

    /// The part of what is live that is not on the device, its groups being evicted, bytes. Takes each lane's lock.
    pub fn absent_bytes(&self) -> u64 {
        if !self.process.is_this() {
            return 0;
        }
        let absent = |lane: &Lane| {
            let books = lane.lock();
            if books.pool.is_absent() { books.pool.usage().live - books.pending_bytes } else { 0 }
        };
        self.lanes.iter().map(absent).sum()
    }

    /// The kind of manager that the lanes have, and why.
    pub fn serving(&self) -> &Serving {
        &self.serving
    }

    /// What was asked of the device so far. Waits for a call that is under way.
    pub fn calls(&self) -> Calls {
        if self.process.is_this() { self.depot.calls() } else { Calls::default() }
    }

    /// The figures that no lane has to be asked for. Waits for a call of the device's that is under way.
    pub fn totals(&self) -> Totals {
        Totals {
            usage: self.usage(),
            stock: self.depot.stock_bytes(),
            pending: self.depot.pending_bytes(),
            ooms: self.ooms.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
            device_calls: self.calls(),
        }
    }

    /// The full report. Takes each lane's lock in turn and walks its free runs; not for hot paths.
    pub fn stats(&self) -> SharedStats {
        let Totals { usage, stock, pending, ooms, retries, device_calls } = self.totals();
        let mut stats =
            SharedStats { usage, stock, pending, ooms, retries, device_calls, ..SharedStats::default() };
        stats.evictions = self.evictions.load(Ordering::Relaxed);
        stats.give_backs = self.give_backs.load(Ordering::Relaxed);
        stats.spills = self.depot.spills_made();
        if !self.process.is_this() {
            return stats;
        }
        let mut lanes: Vec<&Lane> = self.lanes.iter().collect();
        lanes.sort_unstable_by_key(|lane| lane.serial);
        for lane in lanes {
            let books = lane.lock();
            let pool = books.pool.stats();
            let blocks = books.blocks.len() as u64;
            stats.leftover += pool.leftover;
            stats.blocks += blocks;
            stats.allocations += books.served();
            stats.frees += books.freed;
            stats.streams.push(StreamStats {
                stream: lane.key.stream.0,
                graph: lane.key.is_graph(),
                group: lane.home.group().map(|group| group.0),
                live: pool.usage.live - books.pending_bytes,
                held: pool.usage.held,
                largest_free_run: pool.largest_free_run,
                blocks,
            });
        }
        stats.kept = self.store.kept_bytes();
        stats.spilled = self.depot.spilled_bytes();
        stats.groups = self.groups();
        stats
    }

    /// Makes the peaks start again from what is live and held now.
    pub fn reset_peaks(&self) {
        if self.process.is_this() {
            let _none_is_made = lock(&self.making);
            let only = if self.live.is_shared() { None } else { self.lanes.iter().next() };
            let _nobody_counts = only.map(Lane::lock);
            self.live.reset_peak();
            self.depot.reset_peaks();
        }
    }

    /// Panics with a description when the books contradict themselves. For tests, while no other thread is
    /// in the front.
    pub fn check_invariants(&self) {
        let mut live = 0;
        let mut held = self.depot.stock_bytes();
        let mut pending = 0;
        for lane in self.lanes.iter() {
            let books = lane.lock();
            books.pool.check_invariants();
            let usage = books.pool.usage();
            let here: u64 = books.blocks.iter().map(|block| block.bytes).sum();
            assert_eq!(usage.live, here + books.pending_bytes, "bytes live and pending on {:?}", lane.key);
            live += here;
            held += usage.held;
            pending += books.pending_bytes;
        }
        assert_eq!(self.depot.pending_bytes(), pending, "bytes pending, over all streams");
        let usage = self.usage();
        assert_eq!(usage.live, live, "bytes live, over all streams");
        let spilled = self.depot.spilled_bytes();
        assert_eq!(usage.held + spilled, held, "bytes held and spilled, over all streams and the stock");
        assert!(usage.live <= usage.peak_live && usage.held <= usage.peak_held, "peaks: {usage:?}");
    }
}

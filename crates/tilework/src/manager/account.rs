//! What a manager counts: bytes live, held, mapped and reserved, and their peaks.

use crate::manager::{Stats, Usage};

/// The running figures of a manager. Plain counters: the hot path touches two words of them.
#[derive(Debug, Clone, Default)]
pub struct Account {
    usage: Usage,
    heaps: u64,
    allocations: u64,
    frees: u64,
    /// Bytes of heaps that blocks lie in and that are not there.
    absent: u64,
}

impl Account {
    /// The running figures.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Makes the peaks start again from what is live and held now.
    pub fn reset_peaks(&mut self) {
        self.usage.peak_live = self.usage.live;
        self.usage.peak_held = self.usage.held;
    }

    /// The part of a report that follows from counting alone; the rest is zero.
    pub fn stats(&self) -> Stats {
        Stats {
            usage: self.usage,
            largest_free_run: 0,
            cached_mappings: 0,
            leftover: 0,
            heaps: self.heaps,
            blocks: self.allocations - self.frees,
            allocations: self.allocations,
            frees: self.frees,
        }
    }

    /// `bytes` were handed out.
    #[inline]
    pub fn lent(&mut self, bytes: u64) {
        self.allocations += 1;
        self.usage.live += bytes;
        self.usage.peak_live = self.usage.peak_live.max(self.usage.live);
    }

    /// `bytes` handed out earlier came back.
    #[inline]
    pub fn returned(&mut self, bytes: u64) {
        self.frees += 1;
        self.usage.live -= bytes;
    }

    /// A heap was created.
    pub fn created(&mut self, bytes: u64) {
        self.heaps += 1;
        self.usage.held += bytes;
        self.usage.peak_held = self.usage.peak_held.max(self.usage.held);
    }

    /// A heap was released.
    pub fn released(&mut self, bytes: u64) {
        self.heaps -= 1;
        self.usage.held -= bytes;
    }

    /// Address space was backed by memory.
    pub fn mapped(&mut self, bytes: u64) {
        self.usage.mapped += bytes;
    }

    /// Address space lost its backing.
    pub fn unmapped(&mut self, bytes: u64) {
        self.usage.mapped -= bytes;
    }

    /// A range was reserved.
    pub fn reserved(&mut self, bytes: u64) {
        self.usage.reserved += bytes;
    }

    /// A range was given back.
    pub fn unreserved(&mut self, bytes: u64) {
        self.usage.reserved -= bytes;
    }

    /// Blocks lie in `bytes` of heaps that are not held for the time being.
    pub fn set_absent(&mut self, bytes: u64) {
        self.absent = bytes;
    }

    /// Panics when the figures contradict each other.
    pub fn check_invariants(&self) {
        let Usage { live, peak_live, held, peak_held, mapped, reserved } = self.usage;
        assert!(live <= peak_live, "{live} bytes live, but the peak is {peak_live}");
        assert!(held <= peak_held, "{held} bytes held, but the peak is {peak_held}");
        assert!(live <= held + self.absent, "{live} bytes live in {held} bytes held, {} absent", self.absent);
        assert!(mapped <= reserved, "{mapped} bytes mapped in {reserved} bytes reserved");
        assert!(self.frees <= self.allocations, "{} frees of {} blocks", self.frees, self.allocations);
    }
}

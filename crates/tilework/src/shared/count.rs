//! Bytes live over all lanes, and the most there were: exact at every moment.
//!
//! Who counts has the lock of a lane. While there is one lane, as in most programs, that lock orders all who count, and
//! plain reads and writes do; an atomic addition costs as much as finding a block.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The count. Every request of every thread writes it: aligned so that what they only read lies in other cache lines.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Count {
    now: AtomicU64,
    peak: AtomicU64,
    /// There is more than one lane.
    is_shared: AtomicBool,
}

impl Count {
    /// `bytes` were handed out, by a lane whose lock is held.
    #[inline]
    pub fn add(&self, bytes: u64) {
        if self.is_shared.load(Ordering::Relaxed) {
            return self.add_with_others(bytes);
        }
        let now = self.now.load(Ordering::Relaxed) + bytes;
        self.now.store(now, Ordering::Relaxed);
        if now > self.peak.load(Ordering::Relaxed) {
            self.peak.store(now, Ordering::Relaxed);
        }
    }

    fn add_with_others(&self, bytes: u64) {
        let now = self.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if now > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(now, Ordering::Relaxed);
        }
    }

    /// `bytes` came back, to a lane whose lock is held.
    #[inline]
    pub fn take(&self, bytes: u64) {
        if self.is_shared.load(Ordering::Relaxed) {
            self.now.fetch_sub(bytes, Ordering::Relaxed);
        } else {
            self.now.store(self.now.load(Ordering::Relaxed) - bytes, Ordering::Relaxed);
        }
    }

    pub fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Relaxed)
    }

    /// Says that a second lane is about to be made. Until the caller has had the first one's lock, who is in it may count
    /// as if alone.
    pub fn share(&self) {
        self.is_shared.store(true, Ordering::Relaxed);
    }

    /// Bytes live now.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// The most bytes there were since the last reset.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed).max(self.now())
    }

    /// Makes the peak start again from what is live now. Nobody may count meanwhile while there is one lane.
    pub fn reset_peak(&self) {
        self.peak.store(self.now(), Ordering::Relaxed);
    }
}

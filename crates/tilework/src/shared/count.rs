//! Bytes live over all lanes, and the most there were: exact at every moment.

use std::sync::atomic::{AtomicU64, Ordering};

/// The count. Every request of every thread writes it: aligned so that what they only read lies in other cache lines.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Count {
    now: AtomicU64,
    peak: AtomicU64,
}

impl Count {
    /// `bytes` were handed out.
    #[inline]
    pub fn add(&self, bytes: u64) {
        let now = self.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if now > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(now, Ordering::Relaxed);
        }
    }

    /// `bytes` came back.
    #[inline]
    pub fn take(&self, bytes: u64) {
        self.now.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes live now.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// The most bytes there were since the last reset.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed).max(self.now())
    }

    /// Makes the peak start again from what is live now.
    pub fn reset_peak(&self) {
        self.peak.store(self.now(), Ordering::Relaxed);
    }
}

//! In which lane blocks near an address were last found.
//!
//! The ranges that lanes have reserved lie in a list behind a lock, which a free would have to take and search
//! before it knows its lane. Here it reads two words. They may be old, or of two writers: whoever asks looks
//! the block up in the lane, and goes by the list if it is not there.

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::lane::Lane;

/// Addresses that differ in lower bits only have one hint (32 MiB): ranges are seldom shorter, so lanes seldom
/// share one.
const GRANULE_BITS: u32 = 25;

/// As many granules next to each other as have hints of their own (32 GiB).
const HINTS: usize = 1024;

/// For each granule, by its low bits, the lane that one was found in.
pub(super) struct Hints(Box<[Hint; HINTS]>);

struct Hint {
    granule: AtomicU64,
    lane: AtomicPtr<Lane>,
}

impl Hints {
    pub fn new() -> Hints {
        let hint = || Hint { granule: AtomicU64::new(0), lane: AtomicPtr::new(ptr::null_mut()) };
        Hints(Box::new(std::array::from_fn(|_| hint())))
    }

    /// A lane that was [noted](Hints::note) once, and may be the one that has what is live at an address.
    #[inline]
    pub fn get(&self, address: u64) -> Option<NonNull<Lane>> {
        let granule = address >> GRANULE_BITS;
        let hint = &self.0[granule as usize % HINTS];
        let lane = NonNull::new(hint.lane.load(Ordering::Acquire));
        lane.filter(|_| hint.granule.load(Ordering::Relaxed) == granule)
    }

    /// Notes the lane in whose address space an address lies.
    pub fn note(&self, address: u64, lane: &Lane) {
        let granule = address >> GRANULE_BITS;
        let hint = &self.0[granule as usize % HINTS];
        hint.granule.store(granule, Ordering::Relaxed);
        hint.lane.store(ptr::from_ref(lane).cast_mut(), Ordering::Release);
    }
}

//! Which heaps are resident, and who needs them to be.
//!
//! Direct3D counts: an object is resident while it was made so more often than it was evicted, and it begins with one.
//! Who makes heaps resident before each use, to be sure, finds that one eviction evicts nothing any more. So there is
//! one place that asks, and it asks for changes only: **a heap was evicted by us at most once more than made resident**.
//!
//! ```text
//!                 evict, and nobody refers to it
//!   resident  ───────────────────────────────────►  evicted
//!             ◄───────────────────────────────────
//!                 make resident, or somebody refers to it
//! ```

use std::collections::BTreeMap;

use tilework::device::HeapId;

#[derive(Debug, Clone, Copy, Default)]
struct Heap {
    /// Who needs it.
    references: u64,
    /// True iff `Evict` was called and `MakeResident` was not since.
    evicted: bool,
}

/// The heaps of one device. By rising id, so that the same calls have the same order.
#[derive(Debug, Default)]
pub struct Residency(BTreeMap<HeapId, Heap>);

impl Residency {
    /// Notes a heap that was created, and so is resident.
    pub fn created(&mut self, heap: HeapId) {
        self.0.insert(heap, Heap::default());
    }

    /// Notes that a heap was released: nothing is to be done for it any more.
    pub fn released(&mut self, heap: HeapId) {
        self.0.remove(&heap);
    }

    /// The heaps that may be evicted: resident, and nobody refers to them.
    pub fn evictable(&self) -> Vec<HeapId> {
        self.ids(|heap| !heap.evicted && heap.references == 0)
    }

    /// The heaps that are evicted.
    pub fn evicted(&self) -> Vec<HeapId> {
        self.ids(|heap| heap.evicted)
    }

    /// Those of `heaps` that are evicted.
    pub fn evicted_of(&self, heaps: &[HeapId]) -> Vec<HeapId> {
        heaps.iter().copied().filter(|heap| self.0.get(heap).is_some_and(|heap| heap.evicted)).collect()
    }

    /// Notes that `Evict` was called for these, or `MakeResident`.
    pub fn set_evicted(&mut self, heaps: &[HeapId], evicted: bool) {
        for heap in heaps {
            if let Some(heap) = self.0.get_mut(heap) {
                debug_assert_ne!(heap.evicted, evicted, "asked for twice");
                heap.evicted = evicted;
            }
        }
    }

    /// Refers to heaps: until [`let_go`](Residency::let_go) they are not evicted.
    pub fn refer(&mut self, heaps: &[HeapId]) {
        for heap in heaps {
            if let Some(heap) = self.0.get_mut(heap) {
                heap.references += 1;
            }
        }
    }

    /// Takes a reference back. Heaps that were released meanwhile are forgotten already.
    pub fn let_go(&mut self, heaps: &[HeapId]) {
        for heap in heaps {
            if let Some(heap) = self.0.get_mut(heap) {
                heap.references -= 1;
            }
        }
    }

    fn ids(&self, want: impl Fn(&Heap) -> bool) -> Vec<HeapId> {
        self.0.iter().filter(|(_, heap)| want(heap)).map(|(&id, _)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// What a device counts for each heap: times made resident less times evicted, the first for its creation.
    type Counts = BTreeMap<HeapId, i64>;

    fn evict(residency: &mut Residency, counts: &mut Counts) -> Vec<HeapId> {
        let heaps = residency.evictable();
        for heap in &heaps {
            *counts.get_mut(heap).unwrap() -= 1;
        }
        residency.set_evicted(&heaps, true);
        heaps
    }

    fn make_resident(residency: &mut Residency, counts: &mut Counts, heaps: &[HeapId]) {
        for heap in heaps {
            *counts.get_mut(heap).unwrap() += 1;
        }
        residency.set_evicted(heaps, false);
    }

    #[test]
    fn one_eviction_is_undone_by_one_making_resident() {
        let heap = HeapId(3);
        let (mut residency, mut counts) = (Residency::default(), Counts::from([(heap, 1)]));
        residency.created(heap);
        // Asked for many times over, as before each use.
        for _ in 0..5 {
            let heaps = residency.evicted();
            make_resident(&mut residency, &mut counts, &heaps);
        }
        assert_eq!(evict(&mut residency, &mut counts), [heap]);
        assert_eq!(counts[&heap], 0, "one eviction evicts");
        assert_eq!(evict(&mut residency, &mut counts), []);
        assert_eq!(residency.evicted(), [heap]);
        let heaps = residency.evicted();
        make_resident(&mut residency, &mut counts, &heaps);
        assert_eq!(counts[&heap], 1, "one call makes resident");
    }

    #[test]
    fn what_somebody_refers_to_is_not_evicted() {
        let (one, other) = (HeapId(1), HeapId(2));
        let mut residency = Residency::default();
        residency.created(one);
        residency.created(other);
        residency.refer(&[one]);
        residency.refer(&[one, other]);
        residency.let_go(&[one, other]);
        assert_eq!(residency.evictable(), [other]);
        residency.let_go(&[one]);
        assert_eq!(residency.evictable(), [one, other]);
        // Released under a reference: the reference is to nothing then.
        residency.refer(&[one]);
        residency.released(one);
        residency.let_go(&[one]);
        assert_eq!(residency.evictable(), [other]);
    }

    proptest! {
        /// Whatever is asked in whatever order: no heap's count leaves 0 and 1, one that is referred to has 1.
        #[test]
        fn counts_stay_one_or_none(steps in proptest::collection::vec((0..6_u8, 0..12_u64), 1..120)) {
            let (mut residency, mut counts) = (Residency::default(), Counts::new());
            let mut references: Vec<Vec<HeapId>> = Vec::new();
            let mut next = 0;
            for (what, which) in steps {
                match what {
                    0 => {
                        residency.created(HeapId(next));
                        counts.insert(HeapId(next), 1);
                        next += 1;
                    }
                    1 => {
                        residency.released(HeapId(which));
                        counts.remove(&HeapId(which));
                    }
                    2 => drop(evict(&mut residency, &mut counts)),
                    3 => {
                        let heaps = residency.evicted();
                        make_resident(&mut residency, &mut counts, &heaps);
                    }
                    4 => {
                        let mut heaps = [which, which + 1].map(HeapId).to_vec();
                        heaps.retain(|heap| counts.contains_key(heap));
                        let absent = residency.evicted_of(&heaps);
                        make_resident(&mut residency, &mut counts, &absent);
                        residency.refer(&heaps);
                        references.push(heaps);
                    }
                    _ if references.is_empty() => {}
                    _ => {
                        let heaps = references.swap_remove(which as usize % references.len());
                        residency.let_go(&heaps);
                    }
                }
                prop_assert!(counts.values().all(|count| (0..=1).contains(count)), "{:?}", counts);
                for heap in references.iter().flatten() {
                    prop_assert_eq!(counts.get(heap).copied().unwrap_or(1), 1, "{:?} is needed", heap);
                }
                let evicted: Vec<_> = counts.iter().filter(|&(_, &count)| count == 0).map(|(&heap, _)| heap).collect();
                prop_assert_eq!(residency.evicted(), evicted);
            }
        }
    }
}

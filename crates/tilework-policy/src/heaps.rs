//! Where heaps stand in home space, and where a run may be cut for mapping.

use std::collections::BTreeMap;

/// What the device can map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Any multiple of this many grains within a heap.
    Tiles(u32),
    /// Whole heaps only: each is one tile of its own size.
    Heaps,
}

/// When a heap was created: by which growth, and as which of its heaps. Heaps are ordered by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Serial {
    /// The growth, counted from 0.
    pub growth: u64,
    /// Which of its heaps, counted from 0.
    pub part: u32,
}

impl Serial {
    /// That of the first heap of all.
    pub(crate) const FIRST: Serial = Serial { growth: 0, part: 0 };
}

/// A heap's place in home space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heap {
    /// Its position, grains.
    pub start: u32,
    /// Its length, grains.
    pub len: u32,
    /// The device's name for it.
    pub id: u64,
    /// When it was created.
    pub serial: Serial,
}

impl Heap {
    /// The position behind it.
    pub fn end(&self) -> u32 {
        self.start + self.len
    }
}

/// Every heap, in order of position. All look-ups are O(log heaps).
#[derive(Debug, Clone)]
pub struct Heaps {
    by_start: BTreeMap<u32, Heap>,
    cut: Cut,
}

impl Heaps {
    /// No heaps yet.
    pub fn new(cut: Cut) -> Heaps {
        Heaps { by_start: BTreeMap::new(), cut }
    }

    /// What the device can map of them.
    pub fn cut(&self) -> Cut {
        self.cut
    }

    /// Adds a heap; its place must be free of others.
    pub fn insert(&mut self, heap: Heap) {
        self.by_start.insert(heap.start, heap);
    }

    /// Takes the heap at `start` away.
    pub fn remove(&mut self, start: u32) -> Option<Heap> {
        self.by_start.remove(&start)
    }

    /// The heap at `start`.
    pub fn get(&self, start: u32) -> Option<Heap> {
        self.by_start.get(&start).copied()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_start.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    /// The heaps that hold any of the grains from `start` to `end`, in order.
    pub fn within(&self, start: u32, end: u32) -> impl Iterator<Item = Heap> {
        let first = self.by_start.range(..=start).next_back().map_or(start, |(&s, _)| s);
        self.by_start.range(first..end).map(|(_, &heap)| heap).filter(move |h| h.end() > start)
    }

    /// The last place at or before `at` where a mapping may be cut. `at` lies in a heap or at its end.
    pub fn floor(&self, at: u32) -> u32 {
        match self.cut {
            Cut::Tiles(tile) => at / tile * tile,
            Cut::Heaps => match self.by_start.range(..at).next_back() {
                Some((_, heap)) if heap.end() > at => heap.start,
                _ => at,
            },
        }
    }

    /// The first place at or behind `at` where a mapping may be cut. `at` lies in a heap or at its end.
    pub fn ceil(&self, at: u32) -> u32 {
        match self.cut {
            Cut::Tiles(tile) => at.div_ceil(tile) * tile,
            Cut::Heaps => match self.by_start.range(..at).next_back() {
                Some((_, heap)) if heap.end() > at => heap.end(),
                _ => at,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heaps(cut: Cut) -> Heaps {
        let mut heaps = Heaps::new(cut);
        for (start, len, id) in [(0, 100, 1), (100, 50, 2), (200, 8, 3)] {
            heaps.insert(Heap { start, len, id, serial: Serial { growth: id, part: 0 } });
        }
        heaps
    }

    #[test]
    fn cuts_at_heap_boundaries() {
        let heaps = heaps(Cut::Heaps);
        assert_eq!([0, 1, 99, 100, 149, 150, 201].map(|at| heaps.floor(at)), [0, 0, 0, 100, 100, 150, 200]);
        assert_eq!(
            [0, 1, 99, 100, 149, 150, 201].map(|at| heaps.ceil(at)),
            [0, 100, 100, 100, 150, 150, 208]
        );
    }

    #[test]
    fn cuts_at_tiles() {
        let heaps = heaps(Cut::Tiles(16));
        assert_eq!([15, 16, 17].map(|at| heaps.floor(at)), [0, 16, 16]);
        assert_eq!([15, 16, 17].map(|at| heaps.ceil(at)), [16, 16, 32]);
    }

    #[test]
    fn finds_the_heaps_of_a_run() {
        let heaps = heaps(Cut::Heaps);
        let ids = |start, end| heaps.within(start, end).map(|h| h.id).collect::<Vec<_>>();
        assert_eq!(ids(0, 100), [1]);
        assert_eq!(ids(99, 101), [1, 2]);
        assert_eq!(ids(150, 200), []);
        assert_eq!(ids(0, 500), [1, 2, 3]);
    }
}

//! A set of free intervals, for what is handed out rarely: positions for regions, voids for heaps.

use std::collections::{BTreeMap, BTreeSet};

/// Disjoint intervals, neighbours merged; the smallest that fits is found in O(log n).
#[derive(Debug, Default, Clone)]
pub(crate) struct Intervals {
    by_start: BTreeMap<u32, u32>,
    by_len: BTreeSet<(u32, u32)>,
}

impl Intervals {
    /// Adds an interval that overlaps none in the set.
    pub(crate) fn insert(&mut self, mut start: u32, mut len: u32) {
        if len == 0 {
            return;
        }
        if let Some((&s, &l)) = self.by_start.range(..start).next_back()
            && s + l == start
        {
            self.take(s);
            (start, len) = (s, l + len);
        }
        if let Some(&l) = self.by_start.get(&(start + len)) {
            self.take(start + len);
            len += l;
        }
        self.by_start.insert(start, len);
        self.by_len.insert((len, start));
    }

    /// The smallest interval of at least `len`, the lowest of several.
    pub(crate) fn smallest(&self, len: u32) -> Option<(u32, u32)> {
        self.by_len.range((len, 0)..).next().map(|&(l, s)| (s, l))
    }

    /// Takes `len` from the low end of the interval that starts at `start`.
    pub(crate) fn carve(&mut self, start: u32, len: u32) {
        let whole = self.take(start);
        assert!(len <= whole, "an interval of {whole} cannot give {len}");
        self.insert(start + len, whole - len);
    }

    fn take(&mut self, start: u32) -> u32 {
        let len = self.by_start.remove(&start).expect("an interval of the set");
        self.by_len.remove(&(len, start));
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_merge_and_the_smallest_fit_is_found() {
        let mut set = Intervals::default();
        set.insert(0, 10);
        set.insert(20, 5);
        assert_eq!(set.smallest(5), Some((20, 5)));
        set.insert(10, 10);
        assert_eq!(set.smallest(1), Some((0, 25)));
        set.carve(0, 7);
        assert_eq!(set.smallest(1), Some((7, 18)));
        assert_eq!(set.smallest(19), None);
    }
}

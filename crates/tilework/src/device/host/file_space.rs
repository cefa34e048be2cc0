//! Which parts of the file belong to no heap: offsets, used again so that the file stays as long as the
//! most that was ever held, and heaps made one after another stay neighbours.

use std::collections::{BTreeMap, BTreeSet};

/// The longest file there can be: offsets are signed in the kernel.
const LONGEST_FILE: u64 = i64::MAX as u64;

/// The free parts of a file; bytes.
///
/// Invariants: gaps are disjoint, never touch, and none touches `end`; `by_size` has (bytes, offset) iff
/// `gaps` has offset with bytes.
#[derive(Debug, Default)]
pub(super) struct FileSpace {
    gaps: BTreeMap<u64, u64>,
    by_size: BTreeSet<(u64, u64)>,
    /// Everything from here on is free.
    end: u64,
}

impl FileSpace {
    /// An offset at which `bytes` are free, taken from the smallest gap that fits, the lowest of its
    /// size, and from the end when none does. `None` when a file cannot be that long.
    pub(super) fn take(&mut self, bytes: u64) -> Option<u64> {
        if let Some(&(gap, offset)) = self.by_size.range((bytes, 0)..).next() {
            self.remove(offset, gap);
            if gap > bytes {
                self.insert(offset + bytes, gap - bytes);
            }
            return Some(offset);
        }
        let offset = self.end;
        self.end = offset.checked_add(bytes).filter(|&end| end <= LONGEST_FILE)?;
        Some(offset)
    }

    /// Makes a part that was taken free again.
    pub(super) fn give(&mut self, offset: u64, bytes: u64) {
        let (mut start, mut end) = (offset, offset + bytes);
        if let Some((&before, &gap)) = self.gaps.range(..start).next_back()
            && before + gap == start
        {
            self.remove(before, gap);
            start = before;
        }
        if let Some(&gap) = self.gaps.get(&end) {
            self.remove(end, gap);
            end += gap;
        }
        if end == self.end {
            self.end = start;
        } else {
            self.insert(start, end - start);
        }
    }

    fn insert(&mut self, offset: u64, bytes: u64) {
        self.gaps.insert(offset, bytes);
        self.by_size.insert((bytes, offset));
    }

    fn remove(&mut self, offset: u64, bytes: u64) {
        self.gaps.remove(&offset);
        self.by_size.remove(&(bytes, offset));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_gap_that_fits_is_used_first() {
        let mut space = FileSpace::default();
        let [a, _b, c, _d] = [4, 1, 2, 1].map(|bytes| space.take(bytes).unwrap());
        space.give(a, 4);
        space.give(c, 2);
        assert_eq!(space.take(2), Some(c));
        assert_eq!(space.take(3), Some(a));
        assert_eq!(space.take(2), Some(8));
        assert_eq!(space.take(1), Some(a + 3));
    }

    #[test]
    fn neighbouring_gaps_join_and_the_end_recedes() {
        let mut space = FileSpace::default();
        let offsets = [0; 5].map(|_| space.take(2).unwrap());
        for which in [1, 3, 2] {
            space.give(offsets[which], 2);
        }
        assert_eq!(space.gaps, BTreeMap::from([(2, 6)]));
        space.give(offsets[4], 2);
        assert!(space.gaps.is_empty() && space.by_size.is_empty());
        assert_eq!(space.end, 2);
    }

    #[test]
    fn a_file_has_a_longest_length() {
        let mut space = FileSpace::default();
        assert_eq!(space.take(u64::MAX), None);
        assert_eq!(space.take(LONGEST_FILE), Some(0));
        assert_eq!(space.take(1), None);
    }
}

//! Free runs by length: the smallest that fits.

use std::collections::BTreeSet;

use crate::extents::{Extent, NIL};
use crate::lowest::Lowest;

/// Runs of at least this length, grains (1 MiB), are *long*.
pub(crate) const LONG_RUN: u32 = 2048;

const WORDS: usize = LONG_RUN as usize / 64;

/// Free runs, found by length.
///
/// A short run hangs in the list of its exact length: bit `len` of `filled` is set iff `lists[len]` is
/// not empty, and bit `w` of `summary` iff word `w` of `filled` is not zero, so the smallest fit is two
/// bit scans away. A long run stands in `long`, ordered by length and then by position, and in `lowest`,
/// ordered by position. Long runs are few: there is at most one to a mebibyte of free memory.
#[derive(Debug, Clone)]
pub(crate) struct Runs {
    lists: Vec<u32>,
    filled: [u64; WORDS],
    summary: u32,
    long: BTreeSet<u64>,
    lowest: Lowest,
    /// The extent whose long run starts in a granule of [`LONG_RUN`] grains.
    starts: Vec<u32>,
}

impl Runs {
    pub(crate) fn new() -> Runs {
        Runs {
            lists: vec![NIL; LONG_RUN as usize],
            filled: [0; WORDS],
            summary: 0,
            long: BTreeSet::new(),
            lowest: Lowest::default(),
            starts: Vec::new(),
        }
    }

    /// The smallest short run of at least `len`. LIFO among equals.
    #[inline]
    pub(crate) fn smallest_short(&self, len: u32) -> Option<u32> {
        if len >= LONG_RUN {
            return None;
        }
        let (word, bit) = (len as usize / 64, len % 64);
        let here = self.filled[word] & (!0 << bit);
        if here != 0 {
            return Some(self.lists[word * 64 + here.trailing_zeros() as usize]);
        }
        let above = self.summary & (!0u32).checked_shl(word as u32 + 1).unwrap_or(0);
        if above == 0 {
            return None;
        }
        let word = above.trailing_zeros() as usize;
        Some(self.lists[word * 64 + self.filled[word].trailing_zeros() as usize])
    }

    /// The smallest long run of at least `len`. The lowest among equals.
    #[inline]
    pub(crate) fn smallest_long(&self, len: u32) -> Option<u32> {
        self.long.range(key(len, 0)..).next().map(|&key| self.long_at(key as u32))
    }

    /// The lowest long run of at least `len`.
    #[inline]
    pub(crate) fn lowest_long(&self, len: u32) -> Option<u32> {
        self.lowest.find(len).map(|granule| self.starts[granule])
    }

    /// Every long run as (length, position), the longest first.
    pub(crate) fn longest_first(&self) -> impl Iterator<Item = (u32, u32)> {
        self.long.iter().rev().map(|&key| ((key >> 32) as u32, key as u32))
    }

    /// The long run that starts at `start`.
    pub(crate) fn long_at(&self, start: u32) -> u32 {
        self.starts[(start / LONG_RUN) as usize]
    }

    /// Every run of at least `len`.
    pub(crate) fn at_least<'a>(&'a self, extents: &'a [Extent], len: u32) -> impl Iterator<Item = u32> + 'a {
        let lists = self.lists.get(len as usize..).unwrap_or_default();
        let short = lists.iter().filter(|&&head| head != NIL).flat_map(|&head| {
            std::iter::successors(Some(head), |&at| Some(extents[at as usize].b).filter(|&next| next != NIL))
        });
        short.chain(self.long.range(key(len, 0)..).map(|&key| self.long_at(key as u32)))
    }

    #[inline]
    pub(crate) fn insert(&mut self, extents: &mut [Extent], at: u32) {
        let Extent { start, len, .. } = extents[at as usize];
        if len >= LONG_RUN {
            self.long.insert(key(len, start));
            let granule = (start / LONG_RUN) as usize;
            if granule >= self.starts.len() {
                self.starts.resize((granule + 1).next_power_of_two(), NIL);
            }
            self.starts[granule] = at;
            self.lowest.set(granule, len);
            return;
        }
        let list = &mut self.lists[len as usize];
        let head = *list;
        *list = at;
        if head != NIL {
            extents[head as usize].a = at;
        }
        extents[at as usize].a = NIL;
        extents[at as usize].b = head;
        self.filled[len as usize / 64] |= 1 << (len % 64);
        self.summary |= 1 << (len / 64);
    }

    #[inline]
    pub(crate) fn remove(&mut self, extents: &mut [Extent], at: u32) {
        let Extent { start, len, a: before, b: after, .. } = extents[at as usize];
        if len >= LONG_RUN {
            self.long.remove(&key(len, start));
            self.lowest.set((start / LONG_RUN) as usize, 0);
            return;
        }
        if after != NIL {
            extents[after as usize].a = before;
        }
        if before != NIL {
            extents[before as usize].b = after;
            return;
        }
        self.lists[len as usize] = after;
        if after == NIL {
            let word = &mut self.filled[len as usize / 64];
            *word &= !(1 << (len % 64));
            if *word == 0 {
                self.summary &= !(1 << (len / 64));
            }
        }
    }

    /// Changes the length of a run that keeps its start.
    #[inline]
    pub(crate) fn resize(&mut self, extents: &mut [Extent], at: u32, len: u32) {
        let Extent { start, len: before, .. } = extents[at as usize];
        if before < LONG_RUN || len < LONG_RUN {
            self.remove(extents, at);
            extents[at as usize].len = len;
            self.insert(extents, at);
            return;
        }
        self.long.remove(&key(before, start));
        self.long.insert(key(len, start));
        extents[at as usize].len = len;
        self.lowest.set((start / LONG_RUN) as usize, len);
    }

    /// Whether the run at `at` can be found here. For tests.
    pub(crate) fn contains(&self, extents: &[Extent], at: u32) -> bool {
        let Extent { start, len, .. } = extents[at as usize];
        if len >= LONG_RUN {
            return self.long.contains(&key(len, start)) && self.starts[(start / LONG_RUN) as usize] == at;
        }
        let mut next = self.lists[len as usize];
        while next != NIL && next != at {
            next = extents[next as usize].b;
        }
        next == at
    }
}

/// A long run as one number, ordered by length and then by position.
fn key(len: u32, start: u32) -> u64 {
    u64::from(len) << 32 | u64::from(start)
}

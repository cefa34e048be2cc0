//! Free runs by length: the smallest that fits.

use std::iter::successors;

use crate::bits::Bits;
use crate::by_length::ByLength;
use crate::extents::{Extent, NIL};
use crate::lowest::Lowest;

/// Runs of at least this length, grains (1 MiB), are *long*.
pub(crate) const LONG_RUN: u32 = 2048;

const WORDS: usize = LONG_RUN as usize / 64;

/// Free runs, found by length.
///
/// A short run hangs in the list of its exact length, and `filled` says which lists are not empty. A long
/// run stands in `long`, ordered by length, and in `lowest`, ordered by position. Long runs are few: there is
/// at most one to a mebibyte of free memory.
#[derive(Debug, Clone)]
pub(crate) struct Runs {
    lists: Box<[u32; LONG_RUN as usize]>,
    filled: Bits<WORDS>,
    long: ByLength,
    lowest: Lowest,
    /// The extent whose long run starts in a granule of [`LONG_RUN`] grains.
    starts: Vec<u32>,
    long_runs: u32,
}

impl Runs {
    pub(crate) fn new() -> Runs {
        Runs {
            lists: Box::new([NIL; LONG_RUN as usize]),
            filled: Bits::new(),
            long: ByLength::new(),
            lowest: Lowest::default(),
            starts: Vec::new(),
            long_runs: 0,
        }
    }

    /// The smallest short run of at least `len`. LIFO among equals.
    #[inline]
    pub(crate) fn smallest_short(&self, len: u32) -> Option<u32> {
        self.filled.at_least(len as usize).map(|len| self.lists[len])
    }

    /// The smallest long run of at least `len`. The lowest among equals.
    #[inline]
    pub(crate) fn smallest_long(&self, len: u32) -> Option<u32> {
        self.long.at_least(len.max(LONG_RUN), 0).map(|(_, start)| self.long_at(start))
    }

    /// The lowest long run of at least `len`.
    #[inline]
    pub(crate) fn lowest_long(&mut self, len: u32) -> Option<u32> {
        self.lowest.find(len).map(|granule| self.starts[granule])
    }

    /// Every long run, the longest first.
    pub(crate) fn longest_first(&self) -> impl Iterator<Item = u32> {
        let below = |(len, start)| self.long.below(len, start);
        successors(below((u32::MAX, u32::MAX)), move |&run| below(run)).map(|(_, start)| self.long_at(start))
    }

    /// Every short run of at least `len`, the longest first. LIFO among equals.
    pub(crate) fn longest_short<'a>(
        &'a self,
        extents: &'a [Extent],
        len: u32,
    ) -> impl Iterator<Item = u32> + 'a {
        let below = |len| self.filled.below(len);
        let lens = successors(below(LONG_RUN as usize), move |&len| below(len));
        lens.take_while(move |&at| at >= len as usize).flat_map(|len| list(extents, self.lists[len]))
    }

    /// How many long runs there are.
    pub(crate) fn long_runs(&self) -> u32 {
        self.long_runs
    }

    /// The long run that starts at `start`.
    fn long_at(&self, start: u32) -> u32 {
        self.starts[granule(start)]
    }

    /// Every run of at least `len`.
    pub(crate) fn at_least<'a>(&'a self, extents: &'a [Extent], len: u32) -> impl Iterator<Item = u32> + 'a {
        let lists = self.lists.get(len as usize..).unwrap_or_default();
        let short = lists.iter().flat_map(|&head| list(extents, head));
        let long = successors(self.long.at_least(len.max(LONG_RUN), 0), |&(len, start)| {
            self.long.at_least(len, start + 1)
        });
        short.chain(long.map(|(_, start)| self.long_at(start)))
    }

    #[inline]
    pub(crate) fn insert(&mut self, extents: &mut [Extent], at: u32) {
        let Extent { start, len, .. } = extents[at as usize];
        if len >= LONG_RUN {
            self.long_runs += 1;
            self.long.insert(start, len);
            self.lowest.set(granule(start), len);
            self.starts_at(start, at);
            return;
        }
        let head = std::mem::replace(&mut self.lists[len as usize], at);
        if head == NIL {
            self.filled.insert(len as usize);
        } else {
            extents[head as usize].a = at;
        }
        extents[at as usize].a = NIL;
        extents[at as usize].b = head;
    }

    #[inline]
    pub(crate) fn remove(&mut self, extents: &mut [Extent], at: u32) {
        let Extent { start, len, a: before, b: after, .. } = extents[at as usize];
        if len >= LONG_RUN {
            self.long_runs -= 1;
            self.long.remove(start, len);
            self.lowest.set(granule(start), 0);
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
            self.filled.remove(len as usize);
        }
    }

    /// Gives a run another position and length.
    #[inline]
    pub(crate) fn reshape(&mut self, extents: &mut [Extent], at: u32, start: u32, len: u32) {
        let Extent { start: from, len: before, .. } = extents[at as usize];
        if before < LONG_RUN || len < LONG_RUN {
            self.remove(extents, at);
            (extents[at as usize].start, extents[at as usize].len) = (start, len);
            self.insert(extents, at);
            return;
        }
        (extents[at as usize].start, extents[at as usize].len) = (start, len);
        self.long.reshape((from, before), (start, len));
        if granule(from) != granule(start) {
            self.lowest.set(granule(from), 0);
        }
        self.lowest.set(granule(start), len);
        self.starts_at(start, at);
    }

    #[inline]
    fn starts_at(&mut self, start: u32, at: u32) {
        let granule = granule(start);
        if granule >= self.starts.len() {
            self.starts.resize((granule + 1).next_power_of_two(), NIL);
        }
        self.starts[granule] = at;
    }

    /// Whether the run at `at` can be found here. For tests.
    pub(crate) fn contains(&self, extents: &[Extent], at: u32) -> bool {
        let Extent { start, len, .. } = extents[at as usize];
        if len >= LONG_RUN {
            let lowest = self.lowest.len_at(granule(start)) == len && self.long_at(start) == at;
            return lowest && self.long.at_least(len, start) == Some((len, start));
        }
        let mut next = self.lists[len as usize];
        while next != NIL && next != at {
            next = extents[next as usize].b;
        }
        next == at
    }
}

/// The short runs from `head` on, all of one length.
fn list(extents: &[Extent], head: u32) -> impl Iterator<Item = u32> {
    let some = |at| Some(at).filter(|&at| at != NIL);
    successors(some(head), move |&at| some(extents[at as usize].b))
}

#[inline]
fn granule(start: u32) -> usize {
    (start / LONG_RUN) as usize
}

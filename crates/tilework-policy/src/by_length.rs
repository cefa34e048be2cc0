//! Long free runs by length and then by position.

use std::collections::BTreeSet;

use crate::bits::Bits;
use crate::runs::LONG_RUN;

/// Lengths from one power of two to the next are divided into as many classes as this many bits count.
const CLASS_BITS: u32 = 5;

const CLASSES: usize = ((u32::BITS - LONG_RUN.ilog2()) as usize) << CLASS_BITS;

/// Long runs in order of their length, and of their position among equals.
///
/// Most classes of lengths have no run or one, and then there is nothing to search. The order stands apart from
/// the extents: a search through these would wait for memory at each step once they outgrow the caches.
#[derive(Debug, Clone)]
pub(crate) struct ByLength {
    classes: Box<[Class; CLASSES]>,
    filled: Bits<{ CLASSES.div_ceil(64) }>,
}

/// The runs of a class, each as its [`key`].
#[derive(Debug, Clone, Default)]
struct Class {
    /// The first of them; anything when there is none.
    first: u64,
    /// The others.
    rest: BTreeSet<u64>,
}

impl ByLength {
    pub(crate) fn new() -> ByLength {
        ByLength { classes: Box::new(std::array::from_fn(|_| Class::default())), filled: Bits::new() }
    }

    #[inline]
    pub(crate) fn insert(&mut self, start: u32, len: u32) {
        let (at, mut key) = (class(len), key(len, start));
        let class = &mut self.classes[at];
        if self.filled.contains(at) {
            if key < class.first {
                std::mem::swap(&mut key, &mut class.first);
            }
            class.rest.insert(key);
        } else {
            self.filled.insert(at);
            class.first = key;
        }
    }

    #[inline]
    pub(crate) fn remove(&mut self, start: u32, len: u32) {
        let (at, key) = (class(len), key(len, start));
        let class = &mut self.classes[at];
        if key != class.first {
            class.rest.remove(&key);
        } else if let Some(next) = class.rest.pop_first() {
            class.first = next;
        } else {
            self.filled.remove(at);
        }
    }

    /// Gives the run of `before` grains at `from` another position and length.
    #[inline]
    pub(crate) fn reshape(&mut self, (from, before): (u32, u32), (start, len): (u32, u32)) {
        let (old, new) = (class(before), class(len));
        let Class { first, rest } = &mut self.classes[old];
        let was_first = *first == key(before, from);
        // Most runs are the first of their class, and stay it: no set changes.
        if was_first && old == new && (key(len, start) < *first || rest.is_empty()) {
            *first = key(len, start);
        } else if was_first && rest.is_empty() && !self.filled.contains(new) {
            self.filled.remove(old);
            self.filled.insert(new);
            self.classes[new].first = key(len, start);
        } else {
            self.resort((from, before), (start, len));
        }
    }

    #[inline(never)]
    fn resort(&mut self, (from, before): (u32, u32), (start, len): (u32, u32)) {
        self.remove(from, before);
        self.insert(start, len);
    }

    /// The first run that does not come before a run of `len` at `start`, as (length, position).
    #[inline]
    pub(crate) fn at_least(&self, len: u32, start: u32) -> Option<(u32, u32)> {
        let (at, wanted) = (class(len), key(len, start));
        if self.filled.contains(at) {
            let Class { first, rest } = &self.classes[at];
            if wanted <= *first {
                return Some(run(*first));
            }
            if let Some(&key) = rest.range(wanted..).next() {
                return Some(run(key));
            }
        }
        self.filled.at_least(at + 1).map(|at| run(self.classes[at].first))
    }

    /// The last run that comes before a run of `len` at `start`, as (length, position).
    pub(crate) fn below(&self, len: u32, start: u32) -> Option<(u32, u32)> {
        let (at, wanted) = (class(len), key(len, start));
        if self.filled.contains(at) {
            let Class { first, rest } = &self.classes[at];
            if *first < wanted {
                return Some(run(*rest.range(..wanted).next_back().unwrap_or(first)));
            }
        }
        let Class { first, rest } = &self.classes[self.filled.below(at)?];
        Some(run(*rest.last().unwrap_or(first)))
    }
}

/// The class of a length: its highest bit and the `CLASS_BITS` that follow.
#[inline]
fn class(len: u32) -> usize {
    let exponent = len.ilog2();
    let steps = len >> (exponent - CLASS_BITS) & ((1 << CLASS_BITS) - 1);
    ((exponent - LONG_RUN.ilog2()) << CLASS_BITS | steps) as usize
}

/// A run as one number, ordered by length and then by position.
#[inline]
fn key(len: u32, start: u32) -> u64 {
    u64::from(len) << 32 | u64::from(start)
}

/// The length and the position in a key.
#[inline]
fn run(key: u64) -> (u32, u32) {
    ((key >> 32) as u32, key as u32)
}

#[cfg(test)]
mod tests;

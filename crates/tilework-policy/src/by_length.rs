//! Long free runs by length and then by position.

use crate::bits::Bits;
use crate::extents::{Extent, NIL};
use crate::runs::LONG_RUN;

/// Lengths from one power of two to the next are divided into as many classes as this many bits count.
const CLASS_BITS: u32 = 5;

const CLASSES: usize = ((u32::BITS - LONG_RUN.ilog2()) as usize) << CLASS_BITS;

/// Long runs in order of their length, and of their position among equals.
///
/// The runs of a class of lengths make a search tree whose links are the extents' own `a` and `b`; most
/// classes have no run or one, and then there is nothing to search. A tree is a treap: its shape follows
/// from the extents in it, no matter in which order they came, and it is O(log n) deep as if they had
/// come in random order.
#[derive(Debug, Clone)]
pub(crate) struct ByLength {
    roots: Box<[u32; CLASSES]>,
    filled: Bits<{ CLASSES.div_ceil(64) }>,
}

impl ByLength {
    pub(crate) fn new() -> ByLength {
        ByLength { roots: Box::new([NIL; CLASSES]), filled: Bits::new() }
    }

    #[inline]
    pub(crate) fn insert(&mut self, extents: &mut [Extent], at: u32) {
        let class = class(extents[at as usize].len);
        let root = self.roots[class];
        self.roots[class] = if root == NIL {
            self.filled.insert(class);
            (extents[at as usize].a, extents[at as usize].b) = (NIL, NIL);
            at
        } else {
            grafted(extents, root, at)
        };
    }

    #[inline]
    pub(crate) fn remove(&mut self, extents: &mut [Extent], at: u32) {
        let class = class(extents[at as usize].len);
        let rest = without(extents, self.roots[class], at);
        self.roots[class] = rest;
        if rest == NIL {
            self.filled.remove(class);
        }
    }

    /// Gives a run another position and length.
    #[inline]
    pub(crate) fn reshape(&mut self, extents: &mut [Extent], at: u32, start: u32, len: u32) {
        let Extent { len: before, a, b, .. } = extents[at as usize];
        let (from, to) = (class(before), class(len));
        let alone = self.roots[from] == at && a == NIL && b == NIL;
        if alone && (from == to || self.roots[to] == NIL) {
            // Most runs are the only ones of their class, and stay it: no tree changes.
            (extents[at as usize].start, extents[at as usize].len) = (start, len);
            if from != to {
                self.roots[from] = NIL;
                self.filled.remove(from);
                self.roots[to] = at;
                self.filled.insert(to);
            }
            return;
        }
        self.regraft(extents, at, start, len);
    }

    #[inline(never)]
    fn regraft(&mut self, extents: &mut [Extent], at: u32, start: u32, len: u32) {
        self.remove(extents, at);
        (extents[at as usize].start, extents[at as usize].len) = (start, len);
        self.insert(extents, at);
    }

    /// The first run that does not come before a run of `len` at `start`.
    #[inline]
    pub(crate) fn at_least(&self, extents: &[Extent], len: u32, start: u32) -> Option<u32> {
        let class = class(len);
        let (wanted, mut at, mut found) = (key(len, start), self.roots[class], NIL);
        while at != NIL {
            if key_of(extents, at) >= wanted {
                (found, at) = (at, extents[at as usize].a);
            } else {
                at = extents[at as usize].b;
            }
        }
        if found != NIL {
            return Some(found);
        }
        let mut at = self.roots[self.filled.at_least(class + 1)?];
        while extents[at as usize].a != NIL {
            at = extents[at as usize].a;
        }
        Some(at)
    }

    /// The last run that comes before a run of `len` at `start`.
    pub(crate) fn below(&self, extents: &[Extent], len: u32, start: u32) -> Option<u32> {
        let class = class(len);
        let (wanted, mut at, mut found) = (key(len, start), self.roots[class], NIL);
        while at != NIL {
            if key_of(extents, at) < wanted {
                (found, at) = (at, extents[at as usize].b);
            } else {
                at = extents[at as usize].a;
            }
        }
        if found != NIL {
            return Some(found);
        }
        let mut at = self.roots[self.filled.below(class)?];
        while extents[at as usize].b != NIL {
            at = extents[at as usize].b;
        }
        Some(at)
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

#[inline]
fn key_of(extents: &[Extent], at: u32) -> u64 {
    let Extent { start, len, .. } = extents[at as usize];
    key(len, start)
}

/// Parents have a higher rank than their children. No two extents have the same.
#[inline]
fn rank(at: u32) -> u32 {
    let mixed = (at ^ at >> 16).wrapping_mul(0x7FEB_352D);
    let mixed = (mixed ^ mixed >> 15).wrapping_mul(0x846C_A68B);
    mixed ^ mixed >> 16
}

/// The tree `root` and the extent `at`.
fn grafted(extents: &mut [Extent], root: u32, at: u32) -> u32 {
    if root == NIL || rank(root) < rank(at) {
        let (a, b) = parted(extents, root, key_of(extents, at));
        (extents[at as usize].a, extents[at as usize].b) = (a, b);
        return at;
    }
    let Extent { a, b, .. } = extents[root as usize];
    if key_of(extents, at) < key_of(extents, root) {
        extents[root as usize].a = grafted(extents, a, at);
    } else {
        extents[root as usize].b = grafted(extents, b, at);
    }
    root
}

/// The tree `root` in two: what comes before `key`, and the rest.
fn parted(extents: &mut [Extent], root: u32, key: u64) -> (u32, u32) {
    if root == NIL {
        return (NIL, NIL);
    }
    let Extent { a, b, .. } = extents[root as usize];
    if key_of(extents, root) < key {
        let (low, high) = parted(extents, b, key);
        extents[root as usize].b = low;
        (root, high)
    } else {
        let (low, high) = parted(extents, a, key);
        extents[root as usize].a = high;
        (low, root)
    }
}

/// The tree `root` less the extent `at`, which is in it.
fn without(extents: &mut [Extent], root: u32, at: u32) -> u32 {
    let Extent { a, b, .. } = extents[root as usize];
    if root == at {
        return joined(extents, a, b);
    }
    if key_of(extents, at) < key_of(extents, root) {
        extents[root as usize].a = without(extents, a, at);
    } else {
        extents[root as usize].b = without(extents, b, at);
    }
    root
}

/// Two trees in one; all of `low` comes before all of `high`.
fn joined(extents: &mut [Extent], low: u32, high: u32) -> u32 {
    if low == NIL {
        return high;
    }
    if high == NIL {
        return low;
    }
    if rank(low) > rank(high) {
        extents[low as usize].b = joined(extents, extents[low as usize].b, high);
        low
    } else {
        extents[high as usize].a = joined(extents, low, extents[high as usize].a);
        high
    }
}

#[cfg(test)]
mod tests;

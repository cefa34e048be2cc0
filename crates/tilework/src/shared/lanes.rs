//! The lanes by stream: found without a lock.
//!
//! A table that only grows. Each bucket is a chain whose links are written once, so that a reader needs no
//! lock to walk it, and a lane once found stays where it is.

use std::sync::OnceLock;

use super::lane::{Key, Lane};

const BUCKETS: usize = 256;

/// Every lane there is.
pub(super) struct Lanes(Box<[Link]>);

type Link = OnceLock<Box<Node>>;

struct Node {
    lane: Lane,
    next: Link,
}

impl Lanes {
    pub fn new() -> Lanes {
        Lanes((0..BUCKETS).map(|_| Link::new()).collect())
    }

    /// The lane of a key, if there is one.
    #[inline]
    pub fn get(&self, key: Key) -> Option<&Lane> {
        let mut link = &self.0[bucket(key)];
        while let Some(node) = link.get() {
            if node.lane.key == key {
                return Some(&node.lane);
            }
            link = &node.next;
        }
        None
    }

    /// The lane of a key; makes it where there is none.
    #[cold]
    pub fn get_or_make(&self, key: Key, make: impl Fn() -> Lane) -> &Lane {
        let mut link = &self.0[bucket(key)];
        loop {
            // Whoever comes second walks on behind what the first one made.
            let node = link.get_or_init(|| Box::new(Node { lane: make(), next: Link::new() }));
            if node.lane.key == key {
                return &node.lane;
            }
            link = &node.next;
        }
    }

    /// Every lane, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = &Lane> {
        self.0.iter().flat_map(|first| {
            std::iter::successors(first.get(), |node| node.next.get()).map(|node| &node.lane)
        })
    }
}

/// Streams are addresses or small numbers: the high bits of the product depend on all bits of either.
#[inline]
fn bucket(key: Key) -> usize {
    let mixed = (key.stream.0 ^ u64::from(key.slot).rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as usize
}

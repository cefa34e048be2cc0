//! The live blocks of a lane, by address.
//!
//! Every request enters one and every free takes one out, so this is on the way of both. A table with linear
//! probing: what is entered is known not to be there, so nothing is searched, and what is taken out leaves no
//! mark, as those behind it move up. A map for every purpose takes twice as long.
//!
//! The block that came last stands beside the table until the next one comes: many are temporaries, freed before
//! anything else is requested, and these never enter it.

use rustc_hash::FxHashMap;

use crate::manager::{BlockId, Stream};

/// A live block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Live {
    pub address: u64,
    pub id: BlockId,
    pub bytes: u64,
}

/// No block: not the address of one, which is a multiple of 512.
const EMPTY: Live = Live { address: u64::MAX, id: BlockId(0), bytes: 0 };

const FIRST: usize = 32;

/// The live blocks.
pub(super) struct Blocks {
    /// At most half full, so that there is always an empty place to stop at. A power of two.
    places: Box<[Live]>,
    /// The block that came last, if it is live, in none of the places.
    last: Live,
    /// Blocks, `last` among them.
    len: usize,
    /// The streams that use a block beside the lane's own. Most programs have none.
    users: FxHashMap<u64, Vec<Stream>>,
}

impl Blocks {
    pub fn new() -> Blocks {
        Blocks { places: vec![EMPTY; FIRST].into(), last: EMPTY, len: 0, users: FxHashMap::default() }
    }

    /// Enters a block, of an address at which none is live.
    #[inline]
    pub fn insert(&mut self, block: Live) {
        let before = std::mem::replace(&mut self.last, block);
        if before.address != EMPTY.address {
            if self.len * 2 > self.places.len() {
                self.grow();
            }
            self.place(before);
        }
        self.len += 1;
    }

    #[inline]
    fn place(&mut self, block: Live) {
        let mut at = self.first(block.address);
        while self.places[at].address != EMPTY.address {
            at = self.after(at);
        }
        self.places[at] = block;
    }

    #[cold]
    fn grow(&mut self) {
        let longer = vec![EMPTY; self.places.len() * 2].into();
        for block in std::mem::replace(&mut self.places, longer) {
            if block.address != EMPTY.address {
                self.place(block);
            }
        }
    }

    /// Takes the block at an address out. Who used it is to be asked next.
    #[inline(always)]
    pub fn remove(&mut self, address: u64) -> Option<Live> {
        if self.last.address == address && address != EMPTY.address {
            self.len -= 1;
            return Some(std::mem::replace(&mut self.last, EMPTY));
        }
        let mut gap = self.find(address)?;
        let block = self.places[gap];
        let mut at = self.after(gap);
        while self.places[at].address != EMPTY.address {
            // Moves up unless its search begins behind the gap.
            let first = self.first(self.places[at].address);
            let mask = self.places.len() - 1;
            if at.wrapping_sub(first) & mask >= at.wrapping_sub(gap) & mask {
                self.places[gap] = self.places[at];
                gap = at;
            }
            at = self.after(at);
        }
        self.places[gap] = EMPTY;
        self.len -= 1;
        Some(block)
    }

    /// Takes out the streams that used a block beside the lane's own, if there were any.
    #[inline]
    pub fn remove_users(&mut self, address: u64) -> Option<Vec<Stream>> {
        if self.users.is_empty() { None } else { self.users.remove(&address) }
    }

    /// The streams that use any block beside the lane's own; one may come twice.
    pub fn users(&self) -> impl Iterator<Item = Stream> {
        self.users.values().flatten().copied()
    }

    /// The block at an address.
    pub fn get(&self, address: u64) -> Option<Live> {
        let last = Some(self.last).filter(|last| last.address == address && address != EMPTY.address);
        last.or_else(|| self.find(address).map(|at| self.places[at]))
    }

    /// Notes that a stream uses the block at an address beside the lane's own.
    pub fn used_on(&mut self, address: u64, stream: Stream) {
        let users = self.users.entry(address).or_default();
        if !users.contains(&stream) {
            users.push(stream);
        }
    }

    /// Strikes out a stream that is no more and has done all it was to do.
    pub fn forget(&mut self, stream: Stream) {
        self.users.retain(|_, users| {
            users.retain(|&user| user != stream);
            !users.is_empty()
        });
    }

    /// The blocks, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = Live> {
        self.places.iter().chain([&self.last]).copied().filter(|block| block.address != EMPTY.address)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn find(&self, address: u64) -> Option<usize> {
        let mut at = self.first(address);
        loop {
            match self.places[at].address {
                found if found == EMPTY.address => return None,
                found if found == address => return Some(at),
                _ => at = self.after(at),
            }
        }
    }

    /// Where the search for an address begins: the high bits of the product depend on all bits of it.
    #[inline]
    fn first(&self, address: u64) -> usize {
        let mixed = (address / 512).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32) as usize & (self.places.len() - 1)
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.places.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map(ops in vec((0..200_u64, any::<bool>()), 1..600)) {
            let mut blocks = Blocks::new();
            let mut known = BTreeMap::new();
            for (n, (place, insert)) in (0..).zip(ops) {
                // Near ones, and such that differ in high bits only, so that searches run into each other.
                let address = place % 50 * 512 + ((place / 50) << 50);
                prop_assert_eq!(blocks.get(address), known.get(&address).copied());
                if insert && !known.contains_key(&address) {
                    let block = Live { address, id: BlockId(n), bytes: n };
                    blocks.insert(block);
                    known.insert(address, block);
                } else {
                    prop_assert_eq!(blocks.remove(address), known.remove(&address));
                }
                let mut all: Vec<Live> = blocks.iter().collect();
                all.sort_unstable_by_key(|block| block.address);
                prop_assert_eq!(all, known.values().copied().collect::<Vec<_>>());
                prop_assert_eq!(blocks.len(), known.len());
            }
        }
    }

    #[test]
    fn what_is_no_address_is_not_found() {
        let mut blocks = Blocks::new();
        blocks.insert(Live { address: 512, id: BlockId(1), bytes: 1 });
        for wrong in [EMPTY.address, 0, 513, 1024] {
            assert_eq!(blocks.get(wrong), None);
            assert_eq!(blocks.remove(wrong), None);
        }
    }

    #[test]
    fn the_streams_of_a_block_go_with_it() {
        let mut blocks = Blocks::new();
        let block = |address| Live { address, id: BlockId(address), bytes: 1 };
        [512, 1024, 1536].into_iter().for_each(|address| blocks.insert(block(address)));
        for (address, stream) in [(512, 1), (512, 2), (512, 1), (1024, 1)] {
            blocks.used_on(address, Stream(stream));
        }
        blocks.forget(Stream(2));
        assert_eq!((blocks.remove(512), blocks.remove_users(512)), (Some(block(512)), Some(vec![Stream(1)])));
        blocks.insert(block(512));
        blocks.forget(Stream(1));
        for address in [512, 1024, 1536] {
            assert_eq!((blocks.remove(address), blocks.remove_users(address)), (Some(block(address)), None));
        }
    }
}

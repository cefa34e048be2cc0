//! A set of small numbers: the next member is two bit scans away.

/// A subset of `0..64 * WORDS`, where `WORDS` is at most 64. Bit `w` of `summary` is set iff word `w` is not
/// zero.
#[derive(Debug, Clone)]
pub(crate) struct Bits<const WORDS: usize> {
    words: [u64; WORDS],
    summary: u64,
}

impl<const WORDS: usize> Bits<WORDS> {
    pub(crate) const fn new() -> Self {
        Bits { words: [0; WORDS], summary: 0 }
    }

    #[inline]
    pub(crate) fn contains(&self, at: usize) -> bool {
        self.words[at / 64] >> (at % 64) & 1 == 1
    }

    #[inline]
    pub(crate) fn insert(&mut self, at: usize) {
        self.words[at / 64] |= 1 << (at % 64);
        self.summary |= 1 << (at / 64);
    }

    #[inline]
    pub(crate) fn remove(&mut self, at: usize) {
        let word = &mut self.words[at / 64];
        *word &= !(1 << (at % 64));
        if *word == 0 {
            self.summary &= !(1 << (at / 64));
        }
    }

    /// The least member that is at least `at`.
    #[inline]
    pub(crate) fn at_least(&self, at: usize) -> Option<usize> {
        let word = at / 64;
        let here = self.words.get(word)? & (!0 << (at % 64));
        if here != 0 {
            return Some(word * 64 + here.trailing_zeros() as usize);
        }
        let above = self.summary & (!1 << word);
        if above == 0 {
            return None;
        }
        let word = above.trailing_zeros() as usize;
        Some(word * 64 + self.words[word].trailing_zeros() as usize)
    }

    /// The greatest member that is below `at`.
    pub(crate) fn below(&self, at: usize) -> Option<usize> {
        let word = at / 64;
        let here = self.words.get(word).map_or(0, |bits| bits & !(!0 << (at % 64)));
        if here != 0 {
            return Some(word * 64 + here.ilog2() as usize);
        }
        let under = self.summary & !(!0u64).checked_shl(word as u32).unwrap_or(0);
        let word = under.checked_ilog2()? as usize;
        Some(word * 64 + self.words[word].ilog2() as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_set(changes in prop::collection::vec((0usize..4096, any::<bool>()), 1..100), at in 0usize..4097) {
            let mut bits = Bits::<64>::new();
            let mut set = BTreeSet::new();
            for (member, there) in changes {
                if there {
                    bits.insert(member);
                    set.insert(member);
                } else {
                    bits.remove(member);
                    set.remove(&member);
                }
                prop_assert_eq!(bits.contains(member), set.contains(&member));
                for at in [at, member, member + 1] {
                    prop_assert_eq!(bits.at_least(at), set.range(at..).next().copied());
                    prop_assert_eq!(bits.below(at), set.range(..at).next_back().copied());
                }
            }
        }
    }
}

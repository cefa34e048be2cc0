//! The lowest run that is long enough, among the long ones.

const FANOUT: usize = 16;

/// A tree of maxima over granules of home space. A leaf holds the length of the long run that starts
/// in its granule, zero where none does; a node holds the greatest of its sixteen children. Both
/// operations touch one node a level: O(log granules), a cache line each.
///
/// A long run is at least one granule long and two free runs never touch, so no two start in the
/// same granule.
#[derive(Debug, Default, Clone)]
pub(crate) struct Lowest {
    levels: Vec<Vec<u32>>,
}

impl Lowest {
    /// Sets the length of the run that starts in `granule`; zero when none does any more.
    pub(crate) fn set(&mut self, granule: usize, len: u32) {
        if self.levels.first().is_none_or(|leaves| granule >= leaves.len()) {
            self.grow(granule + 1);
        }
        let mut at = granule;
        let mut before = std::mem::replace(&mut self.levels[0][at], len);
        let mut now = len;
        for level in 1..self.levels.len() {
            let (children, parents) = self.levels.split_at_mut(level);
            let parent = &mut parents[0][at / FANOUT];
            if now < before {
                if before < *parent {
                    return; // another child is the greatest
                }
                let first = at / FANOUT * FANOUT;
                now = greatest(&children[level - 1][first..first + FANOUT]);
            } else if now <= *parent {
                return;
            }
            before = std::mem::replace(parent, now);
            at /= FANOUT;
        }
    }

    /// The lowest granule in which a run of at least `len` starts. `len` must not be zero.
    pub(crate) fn find(&self, len: u32) -> Option<usize> {
        let mut at = 0;
        for level in self.levels.iter().rev() {
            at += level[at..at + FANOUT].iter().position(|&max| max >= len)?;
            at *= FANOUT;
        }
        self.levels.first().map(|_| at / FANOUT)
    }

    fn grow(&mut self, granules: usize) {
        let mut len = granules.next_power_of_two().next_multiple_of(FANOUT);
        let mut depth = 0;
        loop {
            if self.levels.len() == depth {
                self.levels.push(Vec::new());
            }
            self.levels[depth].resize(len, 0);
            depth += 1;
            if len == FANOUT {
                break;
            }
            len = (len / FANOUT).next_multiple_of(FANOUT);
        }
        for level in 1..self.levels.len() {
            for at in 0..self.levels[level - 1].len() / FANOUT {
                let first = at * FANOUT;
                self.levels[level][at] = greatest(&self.levels[level - 1][first..first + FANOUT]);
            }
        }
    }
}

fn greatest(children: &[u32]) -> u32 {
    children.iter().copied().fold(0, u32::max)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_plain_search(sets in prop::collection::vec((0usize..5000, 0u32..50), 1..200), want in 1u32..60) {
            let mut tree = Lowest::default();
            let mut plain = vec![0; 5000];
            for (granule, len) in sets {
                tree.set(granule, len);
                plain[granule] = len;
                prop_assert_eq!(tree.find(want), plain.iter().position(|&l| l >= want));
            }
        }
    }

    #[test]
    fn empty_finds_nothing() {
        assert_eq!(Lowest::default().find(1), None);
    }
}

//! The lowest run that is long enough, among the long ones.

const FANOUT: usize = 16;

/// A tree over granules of home space. A leaf holds the length of the long run that starts in its granule, zero where
/// none does; an entry further up is no less than any of the sixteen below it. What becomes shorter tells nobody: a
/// search that finds less than it was promised corrects the promise. So a block that comes and goes at the edge of a
/// long run changes leaves only, and a change is corrected at most once a level: O(log granules) for each change, a cache
/// line each.
///
/// A long run is at least one granule long and two free runs never touch, so no two start in the
/// same granule.
#[derive(Debug, Default, Clone)]
pub(crate) struct Lowest {
    /// The root, then the sixteen nodes below it, and so on. Node `n` is summed up by entry `(n - 1) % 16`
    /// of node `(n - 1) / 16`.
    nodes: Vec<[u32; FANOUT]>,
    /// The node with the first leaves.
    first: usize,
}

impl Lowest {
    /// Sets the length of the run that starts in `granule`; zero when none does any more.
    #[inline]
    pub(crate) fn set(&mut self, granule: usize, len: u32) {
        self.reach(granule);
        let mut node = self.first + granule / FANOUT;
        self.nodes[node][granule % FANOUT] = len;
        while node > 0 {
            let promised = &mut self.nodes[(node - 1) / FANOUT][(node - 1) % FANOUT];
            if len <= *promised {
                return;
            }
            *promised = len;
            node = (node - 1) / FANOUT;
        }
    }

    /// The lowest granule in which a run of at least `len` starts. `len` must not be zero.
    #[inline]
    pub(crate) fn find(&mut self, len: u32) -> Option<usize> {
        let mut node = 0;
        while let Some(entries) = self.nodes.get(node) {
            if let Some(entry) = entries.iter().position(|&most| most >= len) {
                node = node * FANOUT + entry + 1;
            } else {
                node = self.correct(node)?;
            }
        }
        // Where the node would stand that has no place any more is where the leaf is.
        node.checked_sub(self.first * FANOUT + 1)
    }

    /// Corrects what was promised of a node, and returns the one above it.
    #[cold]
    fn correct(&mut self, node: usize) -> Option<usize> {
        let above = node.checked_sub(1)?;
        self.nodes[above / FANOUT][above % FANOUT] = greatest(&self.nodes[node]);
        Some(above / FANOUT)
    }

    /// The length of the run that starts in `granule`.
    pub(crate) fn len_at(&self, granule: usize) -> u32 {
        self.nodes.get(self.first + granule / FANOUT).map_or(0, |leaves| leaves[granule % FANOUT])
    }

    #[inline]
    fn reach(&mut self, granule: usize) {
        if self.first + granule / FANOUT >= self.nodes.len() {
            self.grow(granule / FANOUT + 1);
        }
    }

    /// Makes room for leaves in that many nodes.
    #[cold]
    fn grow(&mut self, nodes: usize) {
        let leaves = self.nodes.split_off(self.first.min(self.nodes.len()));
        let (mut first, mut level) = (0, 1);
        while level < nodes {
            (first, level) = (first + level, level * FANOUT);
        }
        self.first = first;
        self.nodes.clear();
        self.nodes.resize(first, [0; FANOUT]);
        self.nodes.extend(leaves);
        self.nodes.resize(first + nodes.next_power_of_two(), [0; FANOUT]);
        for node in (1..self.nodes.len()).rev() {
            self.nodes[(node - 1) / FANOUT][(node - 1) % FANOUT] = greatest(&self.nodes[node]);
        }
    }
}

fn greatest(entries: &[u32; FANOUT]) -> u32 {
    entries.iter().copied().fold(0, u32::max)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_plain_search(
            changes in prop::collection::vec((0usize..5000, 0u32..50), 1..200),
            want in 1u32..60,
        ) {
            let mut tree = Lowest::default();
            let mut plain = vec![0; 5000];
            for (granule, len) in changes {
                tree.set(granule, len);
                plain[granule] = len;
                prop_assert_eq!(tree.len_at(granule), plain[granule]);
                for want in [want, len.max(1), len + 1] {
                    prop_assert_eq!(tree.find(want), plain.iter().position(|&l| l >= want));
                }
            }
        }
    }

    #[test]
    fn empty_finds_nothing() {
        assert_eq!(Lowest::default().find(1), None);
    }
}

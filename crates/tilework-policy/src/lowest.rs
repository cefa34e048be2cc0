//! The lowest run that is long enough, among the long ones.

const FANOUT: usize = 16;

/// A tree of maxima over granules of home space. A leaf holds the length of the long run that starts
/// in its granule, zero where none does; an entry further up holds the greatest of the sixteen below it.
/// Every operation touches one node a level: O(log granules), a cache line each.
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
        let node = self.first + granule / FANOUT;
        let before = std::mem::replace(&mut self.nodes[node][granule % FANOUT], len);
        self.rise(node, before, len);
    }

    /// The run that starts in `from` starts in `to` from now on and has another length.
    #[inline]
    pub(crate) fn shift(&mut self, from: usize, to: usize, len: u32) {
        if from / FANOUT != to / FANOUT {
            self.set(from, 0);
            self.set(to, len);
            return;
        }
        let node = self.first + from / FANOUT;
        let leaves = &mut self.nodes[node];
        let before = std::mem::take(&mut leaves[from % FANOUT]);
        leaves[to % FANOUT] = len;
        self.rise(node, before, len);
    }

    /// Brings what stands above `node` up to date, one of whose entries was `before` and is `now`.
    #[inline]
    fn rise(&mut self, mut node: usize, mut before: u32, mut now: u32) {
        while node > 0 {
            let (parent, entry) = ((node - 1) / FANOUT, (node - 1) % FANOUT);
            let max = self.nodes[parent][entry];
            let max_now = if now >= before {
                now.max(max)
            } else if before < max {
                max // another entry is the greatest
            } else {
                greatest(&self.nodes[node])
            };
            if max_now == max {
                return;
            }
            self.nodes[parent][entry] = max_now;
            (node, before, now) = (parent, max, max_now);
        }
    }

    /// The lowest granule in which a run of at least `len` starts. `len` must not be zero.
    #[inline]
    pub(crate) fn find(&self, len: u32) -> Option<usize> {
        let mut node = 0;
        while let Some(entries) = self.nodes.get(node) {
            let entry = entries.iter().position(|&max| max >= len)?;
            node = node * FANOUT + entry + 1;
        }
        // Where the node would stand that has no place any more is where the leaf is.
        node.checked_sub(self.first * FANOUT + 1)
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
            changes in prop::collection::vec((0usize..5000, prop::option::of(0usize..40), 0u32..50), 1..200),
            want in 1u32..60,
        ) {
            let mut tree = Lowest::default();
            let mut plain = vec![0; 5000];
            for (granule, further, len) in changes {
                match further.map(|by| (granule + by).min(4999)) {
                    Some(to) if plain[granule] > 0 && (to == granule || plain[to] == 0) => {
                        tree.shift(granule, to, len);
                        plain[granule] = 0;
                        plain[to] = len;
                    }
                    _ => {
                        tree.set(granule, len);
                        plain[granule] = len;
                    }
                }
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

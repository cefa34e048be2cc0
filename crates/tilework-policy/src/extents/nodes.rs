//! The nodes that stand for runs: cutting, joining, and using them again.

use super::{Extent, Extents, Kind, NIL, RETIRED};

impl Extents {
    /// Splits the first `len` grains off a run that is in no index, as a node of the same kind. `node`
    /// keeps the rest.
    pub(super) fn split(&mut self, node: u32, len: u32) -> u32 {
        let upper = &mut self.nodes[node as usize];
        upper.start += len;
        upper.len -= len;
        self.prepend(node, len)
    }

    /// Puts a node for `len` grains before a run that was shortened by as much.
    #[inline]
    pub(super) fn prepend(&mut self, node: u32, len: u32) -> u32 {
        let Extent { start, prev, kind, .. } = self.nodes[node as usize];
        let low = self.node(start - len, len, kind);
        self.nodes[node as usize].prev = low;
        let lower = &mut self.nodes[low as usize];
        lower.prev = prev;
        lower.next = node;
        if prev != NIL {
            self.nodes[prev as usize].next = low;
        }
        low
    }

    /// Puts a node for `len` grains behind a run that was shortened by as much.
    #[inline]
    pub(super) fn append(&mut self, node: u32, len: u32) -> u32 {
        let Extent { start, len: before, next, kind, .. } = self.nodes[node as usize];
        let high = self.node(start + before, len, kind);
        let upper = &mut self.nodes[high as usize];
        upper.prev = node;
        upper.next = next;
        if next != NIL {
            self.nodes[next as usize].prev = high;
        }
        self.nodes[node as usize].next = high;
        high
    }

    /// A node without neighbours.
    #[inline]
    pub(super) fn node(&mut self, start: u32, len: u32, kind: Kind) -> u32 {
        let node = self.spare;
        if node == NIL {
            let node = self.nodes.len() as u32;
            self.nodes.push(Extent {
                start,
                len,
                prev: NIL,
                next: NIL,
                a: NIL,
                b: NIL,
                generation: 1,
                slack: 0,
                kind,
                transient: false,
            });
            return node;
        }
        let extent = &mut self.nodes[node as usize];
        self.spare = extent.a;
        *extent = Extent { start, len, prev: NIL, next: NIL, a: NIL, b: NIL, kind, ..*extent };
        node
    }

    /// Takes a node out of its region.
    #[inline]
    pub(super) fn discard(&mut self, node: u32) {
        let Extent { prev, next, generation, .. } = self.nodes[node as usize];
        if prev != NIL {
            self.nodes[prev as usize].next = next;
        }
        if next != NIL {
            self.nodes[next as usize].prev = prev;
        }
        let extent = &mut self.nodes[node as usize];
        extent.kind = Kind::Spare;
        if generation < RETIRED {
            extent.a = self.spare;
            self.spare = node;
        }
    }

    /// Makes spare nodes come up in the order in which they lie in memory. After many blocks were freed in no
    /// order, each block made would else wait for a cache miss to learn its node. Walks over all nodes, at most once in
    /// as many operations.
    pub(super) fn order_spares(&mut self) {
        let since = self.operations.wrapping_sub(self.ordered);
        if (since as usize) < self.nodes.len() {
            return;
        }
        self.ordered = self.operations;
        self.spare = NIL;
        for (at, extent) in self.nodes.iter_mut().enumerate().rev() {
            if extent.kind == Kind::Spare && extent.generation < RETIRED {
                extent.a = self.spare;
                self.spare = at as u32;
            }
        }
    }
}

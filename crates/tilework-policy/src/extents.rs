//! The runs of home space, in address order.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::successors;

use crate::heaps::Serial;
use crate::intervals::Intervals;
use crate::lifetimes::Lifetimes;
use crate::runs::{LONG_RUN, Runs};
use crate::stitch::Piece;
use crate::{MAX_GRAINS, grains};

pub(crate) const NIL: u32 = u32::MAX;

/// A node of this generation is never the head of a block again.
const RETIRED: u32 = u32::MAX;

/// Regions start at multiples of this, grains (2 MiB).
const ALIGN: u32 = 4096;

/// A request nearly fills a run when what is left is at most this part of it.
const NEARLY: u32 = 4;

/// What a run is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Backed by a heap and in nobody's use.
    Free,
    /// A block, or the first piece of a stitched one.
    Head,
    /// A further piece of a stitched block.
    Part,
    /// Home space that no heap backs.
    Void,
    /// Home space that the device has not let go yet.
    Lost,
    /// A heap that is free from end to end and not to be placed in.
    Closed,
    /// Not a run: a node to be used again.
    Spare,
}

/// A run. The runs of a region cover it without gaps; no two neighbours are both free or both void.
///
/// `a` and `b` serve the kind: list neighbours of a short free run; for a head `a` is its entry in `parts` (`NIL` unless
/// stitched) and `b` the operation it was born at; for a spare node `a` is the next spare.
///
/// Aligned so that none crosses a cache line.
#[derive(Debug, Clone)]
#[repr(align(32))]
pub(crate) struct Extent {
    pub(crate) start: u32,
    pub(crate) len: u32,
    prev: u32,
    next: u32,
    pub(crate) a: u32,
    pub(crate) b: u32,
    generation: u32,
    /// Bytes of the last grain that were not requested, below [`GRAIN`](crate::GRAIN).
    slack: u16,
    kind: Kind,
    /// Of a head: whether it was placed as a transient block.
    transient: bool,
}

/// The name of a block: a node and the generation it was made in. Never given to a second block: a node
/// whose generations are used up is left unused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Which node.
    pub index: u32,
    /// Which use of it.
    pub generation: u32,
}

/// Where a block was placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its name.
    pub slot: Slot,
    /// Its position in home space, grains.
    pub start: u32,
}

/// What a freed block was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freed {
    /// Its length, bytes as requested.
    pub bytes: u64,
    /// What [`Extents::alloc_pieces`] was told with it; none for a block in one run.
    pub tag: Option<u32>,
}

/// Why a block could not be freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreeError {
    /// No such block was ever handed out.
    Unknown,
    /// The block has been freed before.
    Twice,
}

/// Home space that no heap backs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Void {
    /// Its position, grains.
    pub start: u32,
    /// Its length, grains.
    pub len: u32,
    node: u32,
}

#[derive(Debug, Clone, Copy)]
struct Closed {
    node: u32,
    start: u32,
    len: u32,
    /// The execution that follows its closing.
    since: u32,
}

#[derive(Debug, Clone)]
struct Parts {
    rest: Vec<u32>,
    tag: u32,
}

/// A free run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeRun {
    /// Its position, grains.
    pub start: u32,
    /// Its length, grains.
    pub len: u32,
    pub(crate) node: u32,
}

impl FreeRun {
    /// The position behind it.
    pub fn end(&self) -> u32 {
        self.start + self.len
    }
}

/// Home space: regions cut into runs.
///
/// Every operation on a block is O(log n) in the number of free runs of a mebibyte and more, taken over all
/// operations, and O(1) in everything else.
#[derive(Debug, Clone)]
pub struct Extents {
    nodes: Vec<Extent>,
    /// The first of the spare nodes.
    spare: u32,
    /// Operations at the time when the spare nodes were last put in order.
    ordered: u32,
    runs: Runs,
    voids: BTreeSet<(u32, u32, u32)>,
    /// Lost runs: position to node.
    lost: BTreeMap<u32, u32>,
    /// Positions that no region takes.
    positions: Intervals,
    /// Where regions start.
    regions: BTreeSet<u32>,
    parts: Vec<Parts>,
    spare_parts: Vec<u32>,
    lifetimes: Lifetimes,
    operations: u32,
    /// Live blocks that were placed as transient ones.
    transients: u32,
    /// Closed heaps by when they were created.
    closed: BTreeMap<Serial, Closed>,
    closed_by_len: BTreeSet<(u32, Serial)>,
    execution: u32,
    free: u64,
    blocks: u64,
}

impl Default for Extents {
    fn default() -> Self {
        Extents::new()
    }
}

impl Extents {
    /// Empty home space.
    pub fn new() -> Extents {
        let mut positions = Intervals::default();
        positions.insert(0, MAX_GRAINS as u32 / ALIGN * ALIGN);
        Extents {
            nodes: Vec::new(),
            spare: NIL,
            ordered: 0,
            runs: Runs::new(),
            voids: BTreeSet::new(),
            lost: BTreeMap::new(),
            positions,
            regions: BTreeSet::new(),
            parts: Vec::new(),
            spare_parts: Vec::new(),
            lifetimes: Lifetimes::new(),
            operations: 0,
            transients: 0,
            closed: BTreeMap::new(),
            closed_by_len: BTreeSet::new(),
            execution: 1,
            free: 0,
            blocks: 0,
        }
    }

    /// Places `bytes` in one run, or says that no run is long enough.
    ///
    /// Small requests fill the smallest short run that fits. Long-lived ones, and small ones that none fits,
    /// take the low end of the smallest long run if they nearly fill it, else of the lowest one. Transient
    /// requests take the high end of the smallest run that fits.
    #[inline]
    pub fn alloc(&mut self, bytes: u64) -> Option<Place> {
        let len = u32::try_from(grains(bytes)).ok()?;
        let (node, transient) = self.fit(len)?;
        Some(self.carve(node, bytes, len, transient, transient))
    }

    /// Places `bytes` like [`alloc`](Extents::alloc), right after the memory that lacked for it was added,
    /// and always at the low end: what is left over lies at the high end, where what is added next joins
    /// it. At the low end it would stay behind, once for every growth.
    pub fn alloc_in_added(&mut self, bytes: u64) -> Option<Place> {
        let len = u32::try_from(grains(bytes)).ok()?;
        let (node, transient) = self.fit(len)?;
        Some(self.carve(node, bytes, len, transient, false))
    }

    #[inline]
    fn carve(&mut self, node: u32, bytes: u64, len: u32, transient: bool, high: bool) -> Place {
        let Extent { start, len: whole, .. } = self.nodes[node as usize];
        let used = if whole == len {
            self.runs.remove(&mut self.nodes, node);
            node
        } else if high {
            self.runs.reshape(&mut self.nodes, node, start, whole - len);
            self.append(node, len)
        } else {
            self.runs.reshape(&mut self.nodes, node, start + len, whole - len);
            self.prepend(node, len)
        };
        self.free -= u64::from(len);
        self.adopt(used, bytes, len, transient, NIL)
    }

    /// Places `bytes` in `pieces`, free and disjoint, as one block, and notes `tag` with it.
    pub fn alloc_pieces(&mut self, bytes: u64, pieces: &[Piece], tag: u32) -> Place {
        let mut nodes = Vec::with_capacity(pieces.len());
        for piece in pieces {
            // The last piece may come from what the first left of its run: that keeps the node.
            nodes.push(self.cut_out(piece.node, piece.start, piece.len));
        }
        let len = pieces.iter().map(|p| p.len).sum();
        for &node in &nodes {
            self.nodes[node as usize].kind = Kind::Part;
        }
        let parts = Parts { rest: nodes[1..].to_vec(), tag };
        let entry = match self.spare_parts.pop() {
            Some(entry) => {
                self.parts[entry as usize] = parts;
                entry
            }
            None => {
                self.parts.push(parts);
                self.parts.len() as u32 - 1
            }
        };
        let transient = !self.lifetimes.long_lived(len);
        self.adopt(nodes[0], bytes, len, transient, entry)
    }

    /// Takes a block back.
    ///
    /// # Errors
    /// When there is no such block.
    #[inline(always)]
    pub fn free(&mut self, slot: Slot) -> Result<Freed, FreeError> {
        let head = self.nodes.get(slot.index as usize).ok_or(FreeError::Unknown)?;
        if slot.generation != head.generation || head.kind != Kind::Head {
            // Every generation below the node's own was some block's.
            let issued = slot.generation > 0 && slot.generation < head.generation;
            return Err(if issued { FreeError::Twice } else { FreeError::Unknown });
        }
        let (entry, born, slack) = (head.a, head.b, head.slack);
        self.transients -= u32::from(head.transient);
        let mut len = head.len;
        let mut tag = None;
        self.nodes[slot.index as usize].generation += 1;
        self.release(slot.index);
        if entry != NIL {
            let Parts { rest, tag: noted } =
                std::mem::replace(&mut self.parts[entry as usize], Parts { rest: Vec::new(), tag: NIL });
            self.spare_parts.push(entry);
            tag = Some(noted);
            for node in rest {
                len += self.nodes[node as usize].len;
                self.release(node);
            }
        }
        self.operations = self.operations.wrapping_add(1);
        self.lifetimes.learn(len, self.operations.wrapping_sub(born));
        self.blocks -= 1;
        if self.blocks == 0 {
            self.order_spares();
        }
        Ok(Freed { bytes: u64::from(len) * crate::GRAIN - u64::from(slack), tag })
    }

    /// Grains that no block uses, in open and in closed heaps.
    pub fn free_grains(&self) -> u64 {
        self.free + self.closed.values().map(|c| u64::from(c.len)).sum::<u64>()
    }

    /// Blocks that are live.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The runs that no block uses, of open and closed heaps, as (position, length) in order. Those next to each
    /// other may be apart.
    pub fn unused(&self) -> Vec<(u32, u32)> {
        let open = self.free_runs(1).into_iter().map(|run| (run.start, run.len));
        let mut runs: Vec<(u32, u32)> = open.chain(self.closed.values().map(|c| (c.start, c.len))).collect();
        runs.sort_unstable();
        runs
    }

    /// The longest run that no block uses, over open and closed heaps, grains. Walks all of them.
    pub fn longest(&self) -> u32 {
        let (mut longest, mut len, mut end) = (0, 0, 0);
        for (start, run) in self.unused() {
            len = if start == end && !self.starts_region(start) { len + run } else { run };
            end = start + run;
            longest = longest.max(len);
        }
        longest
    }

    fn starts_region(&self, start: u32) -> bool {
        self.regions.contains(&start)
    }

    /// Whether a request of `bytes` is expected to live long.
    pub fn long_lived(&self, bytes: u64) -> bool {
        u32::try_from(grains(bytes)).is_ok_and(|len| self.lifetimes.long_lived(len))
    }

    /// Begins the next execution. When nothing is live, what was learnt of lifetimes is forgotten: an
    /// empty pool has no history, so an execution that starts from nothing always goes the same way.
    pub fn end_of_execution(&mut self) {
        self.execution += 1;
        if self.blocks == 0 {
            self.lifetimes.forget();
        }
        self.order_spares();
    }

    /// Every free run of at least `len` grains, in address order.
    pub fn free_runs(&self, len: u32) -> Vec<FreeRun> {
        let mut runs: Vec<FreeRun> =
            self.runs.at_least(&self.nodes, len).map(|node| self.free_run(node)).collect();
        runs.sort_unstable_by_key(|r| r.start);
        runs
    }

    /// How many free runs of a mebibyte and more there are.
    pub fn holes(&self) -> u32 {
        self.runs.long_runs()
    }

    /// How many live blocks were placed as transient ones.
    pub fn transients(&self) -> u32 {
        self.transients
    }

    /// Long free runs, the longest first.
    pub(crate) fn longest_first(&self) -> impl Iterator<Item = FreeRun> {
        self.runs.longest_first().map(|node| self.free_run(node))
    }

    /// Short free runs of at least `len` grains, the longest first.
    pub(crate) fn longest_short(&self, len: u32) -> impl Iterator<Item = FreeRun> {
        self.runs.longest_short(&self.nodes, len).map(|node| self.free_run(node))
    }

    fn free_run(&self, node: u32) -> FreeRun {
        let Extent { start, len, .. } = self.nodes[node as usize];
        FreeRun { start, len, node }
    }

    /// A run for `len` grains, and whether they are transient and belong at its high end.
    #[inline]
    fn fit(&mut self, len: u32) -> Option<(u32, bool)> {
        if let Some(node) = self.runs.smallest_short(len) {
            return Some((node, false));
        }
        let smallest = self.runs.smallest_long(len)?;
        if !self.lifetimes.long_lived(len) {
            return Some((smallest, true));
        }
        if self.nodes[smallest as usize].len - len <= len / NEARLY {
            return Some((smallest, false));
        }
        self.runs.lowest_long(len).map(|node| (node, false))
    }

    #[inline]
    fn adopt(&mut self, mut node: u32, bytes: u64, len: u32, transient: bool, parts: u32) -> Place {
        if self.nodes[node as usize].generation == RETIRED {
            // A fresh node takes the run over, so that no name is given twice.
            let own = self.nodes[node as usize].len;
            let fresh = self.split(node, own);
            self.discard(node);
            node = fresh;
        }
        self.operations = self.operations.wrapping_add(1);
        self.blocks += 1;
        self.transients += u32::from(transient);
        let extent = &mut self.nodes[node as usize];
        extent.kind = Kind::Head;
        extent.a = parts;
        extent.b = self.operations;
        extent.slack = (u64::from(len) * crate::GRAIN - bytes) as u16;
        extent.transient = transient;
        Place { slot: Slot { index: node, generation: extent.generation }, start: extent.start }
    }

    /// Cuts `len` grains at `start` out of a free run, as a node in no index.
    fn cut_out(&mut self, mut node: u32, start: u32, len: u32) -> u32 {
        let Extent { start: run_start, len: run_len, kind, .. } = self.nodes[node as usize];
        assert!(kind == Kind::Free && run_start <= start && start + len <= run_start + run_len, "a free run");
        self.runs.remove(&mut self.nodes, node);
        self.free -= u64::from(len);
        if start > run_start {
            let low = self.split(node, start - run_start);
            self.runs.insert(&mut self.nodes, low);
        }
        if len < run_start + run_len - start {
            let cut = self.split(node, len);
            self.runs.insert(&mut self.nodes, node);
            node = cut;
        }
        node
    }

    /// Makes a run free and merges it with free neighbours.
    #[inline]
    fn release(&mut self, node: u32) {
        let Extent { start, mut len, prev, next, .. } = self.nodes[node as usize];
        self.free += u64::from(len);
        let free = |at: u32| at != NIL && self.nodes[at as usize].kind == Kind::Free;
        match (free(prev), free(next)) {
            (false, false) => {
                self.nodes[node as usize].kind = Kind::Free;
                self.runs.insert(&mut self.nodes, node);
            }
            (false, true) => {
                self.discard(node);
                len += self.nodes[next as usize].len;
                self.runs.reshape(&mut self.nodes, next, start, len);
            }
            (true, above) => {
                let Extent { start, len: below, .. } = self.nodes[prev as usize];
                if above {
                    self.runs.remove(&mut self.nodes, next);
                    len += self.nodes[next as usize].len;
                    self.discard(next);
                }
                self.discard(node);
                self.runs.reshape(&mut self.nodes, prev, start, below + len);
            }
        }
    }
}

impl Extents {
    /// Panics with a description when the books contradict each other. For tests: O(n log n).
    pub fn check_invariants(&self) {
        let mut listed = 0;
        let mut free = 0;
        let mut heads = 0;
        let mut transients = 0;
        let mut closed = 0;
        let mut lost = 0;
        for first in 0..self.nodes.len() as u32 {
            let node = &self.nodes[first as usize];
            if node.kind == Kind::Spare || node.prev != NIL {
                continue;
            }
            let (mut at, mut end, mut before) = (first, node.start, Kind::Spare);
            while at != NIL {
                let extent = &self.nodes[at as usize];
                assert_eq!(extent.start, end, "runs of a region follow each other");
                assert!(extent.len > 0, "a run is not empty");
                let merged = !matches!(extent.kind, Kind::Free | Kind::Void) || extent.kind != before;
                assert!(merged, "neighbours at {} are both {:?}", extent.start, extent.kind);
                match extent.kind {
                    Kind::Free => {
                        assert!(self.runs.contains(&self.nodes, at), "the free run at {end} is not listed");
                        free += u64::from(extent.len);
                        listed += 1;
                    }
                    Kind::Head => {
                        heads += 1;
                        transients += u32::from(extent.transient);
                    }
                    Kind::Void => {
                        assert!(
                            self.voids.contains(&(extent.len, end, at)),
                            "the void at {end} is not listed"
                        );
                    }
                    Kind::Part => {}
                    Kind::Lost => {
                        assert_eq!(self.lost.get(&end), Some(&at), "what is lost at {end} is listed");
                        lost += 1;
                    }
                    Kind::Closed => closed += 1,
                    Kind::Spare => panic!("a spare node at {end} stands in a region"),
                }
                (end, before) = (end + extent.len, extent.kind);
                at = extent.next;
            }
        }
        let spare = self.nodes.iter().filter(|n| n.kind == Kind::Spare && n.generation < RETIRED).count();
        let named = |at| Some(at).filter(|&at| at != NIL);
        let spares = successors(named(self.spare), |&at| named(self.nodes[at as usize].a)).take(spare + 1);
        assert_eq!(spares.count(), spare, "spare nodes listed");
        assert_eq!(free, self.free, "grains counted free");
        assert_eq!(heads, self.blocks, "blocks counted");
        assert_eq!(transients, self.transients, "transient blocks counted");
        assert_eq!(closed, self.closed.len(), "closed heaps counted");
        assert_eq!(closed, self.closed_by_len.len(), "closed heaps by length");
        assert_eq!(lost, self.lost.len(), "lost runs counted");
        assert_eq!(listed, self.runs.at_least(&self.nodes, 1).count(), "free runs listed");
        let holes = self.runs.at_least(&self.nodes, LONG_RUN).count();
        assert_eq!(holes, self.holes() as usize, "long free runs counted");
    }
}

mod backing;
mod nodes;
#[cfg(test)]
mod tests;

//! Which free pieces make up a block when no run is long enough.

use crate::extents::{Extents, FreeRun};
use crate::heaps::Heaps;
use crate::runs::LONG_RUN;

/// So many runs are looked at for the ends of a block beyond those whose whole tiles suffice for it.
const ENDS: usize = 32;

/// And so many that are shorter than a tile or a mebibyte, where these do not suffice.
const ENDS_WITHOUT: usize = 256;

/// A short run serves as an end from this length on, grains (256 KiB).
const LEAST_END: u32 = 512;

/// One piece of a stitched block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its position in home space, grains.
    pub start: u32,
    /// Its length, grains.
    pub len: u32,
    /// The free run that it is taken from, by its node.
    pub(crate) node: u32,
}

/// A free run as stitching sees it.
///
/// ```text
///     start      low                        high    end
///       │  head   │   whole tiles            │ tail  │
///   ────┼─────────┼─────────┼─────────┼──────┼───────┼────
///    heap or tile │         │         │      │  heap or tile
/// ```
///
/// Mapped elsewhere, the tiles of a block stand side by side, so its inner pieces must be whole tiles.
/// But the first piece may be the *end* of a tile and the last the *beginning* of one: the block starts
/// in the middle of its first tile and stops in the middle of its last. Both may come from one run, which
/// thus serves whole, with what it lacks mapped into its middle.
///
/// Heads and tails are lost to all but the two ends of a block. So they are looked for in runs that the block
/// does not need otherwise, too, and in short ones as in long ones.
#[derive(Debug, Clone, Copy)]
struct Run {
    node: u32,
    start: u32,
    low: u32,
    high: u32,
    end: u32,
}

impl Run {
    /// None when the run begins and ends inside one tile.
    fn new(run: FreeRun, heaps: &Heaps) -> Option<Run> {
        let (start, end) = (run.start, run.end());
        let (low, high) = (heaps.ceil(start), heaps.floor(end));
        (low <= high).then_some(Run { node: run.node, start, low, high, end })
    }

    fn whole(&self) -> u32 {
        self.high - self.low
    }

    fn head(&self) -> u32 {
        self.low - self.start
    }

    fn tail(&self) -> u32 {
        self.end - self.high
    }
}

/// The pieces of free memory that make up a block of `len` grains, in the order in which they are to be
/// mapped; or, when free memory does not suffice, how many grains of it could be used.
///
/// The longest runs first, so that pieces are few; the last one from the smallest run that covers what is
/// missing. `tile`: the length of the shortest heap, or of a tile. Looks at the runs of a tile and a mebibyte or more that
/// it takes, or at all of these where they do not suffice, and at a few hundred others at most.
///
/// # Errors
/// The grains that could be used, when they do not suffice.
pub fn compose(extents: &Extents, heaps: &Heaps, len: u32, tile: u32) -> Result<Vec<Piece>, u32> {
    let mut runs = Vec::new();
    let mut whole = 0u64;
    let (mut beyond, mut short_of_a_tile) = (0, 0);
    for run in extents.longest_first() {
        beyond += usize::from(whole >= u64::from(len));
        short_of_a_tile += usize::from(run.len < tile);
        if beyond > ENDS || short_of_a_tile > ENDS_WITHOUT {
            break;
        }
        if let Some(run) = Run::new(run, heaps) {
            whole += u64::from(run.whole());
            runs.push(run);
        }
    }
    // Where tiles are shorter than a long run, short ones hold some: they serve where the others do not suffice.
    let lacks = tile < LONG_RUN && whole < u64::from(len);
    let (least, most) = if lacks { (tile, ENDS_WITHOUT) } else { (LEAST_END, ENDS) };
    let short = extents.longest_short(least).take(most).filter_map(|run| Run::new(run, heaps));
    for run in short.filter(|run| lacks || run.whole() == 0) {
        whole += u64::from(run.whole());
        runs.push(run);
    }
    let (first, last) = ends(&runs, whole, len, tile)?;

    let mut missing = len;
    let mut head = None;
    if let Some(run) = first.map(|i| runs[i]) {
        let len = (run.high - run.start).min(missing);
        head = Some(Piece { start: run.start, len, node: run.node });
        missing -= len;
    }
    let mut tail = None;
    if let Some(run) = last.map(|i| runs[i])
        && missing > 0
    {
        // Of one run, the whole tiles go with the first piece: other tiles are mapped in between.
        let start = if first == last { run.high } else { run.low };
        let len = (run.end - start).min(missing);
        tail = Some(Piece { start, len, node: run.node });
        missing -= len;
    }

    let mut inner: Vec<Run> = (0..runs.len())
        .filter(|&i| Some(i) != first && Some(i) != last && runs[i].whole() > 0)
        .map(|i| runs[i])
        .collect();
    inner.sort_by_key(|r| (std::cmp::Reverse(r.whole()), r.start));
    let mut middle = Vec::new();
    let mut longest = inner.iter();
    while missing > 0 {
        let rest = longest.as_slice();
        let covering = rest.partition_point(|r| r.whole() >= missing);
        if covering == 0 {
            let run = longest.next().expect("the usable grains suffice");
            middle.push(Piece { start: run.low, len: run.whole(), node: run.node });
            missing -= run.whole();
            continue;
        }
        let run = rest[covering - 1];
        let mut len = missing;
        if let Some(piece) = &mut tail {
            // Something follows, so this piece must end with a tile, and the tail gives up as much.
            len = heaps.ceil(run.low + missing) - run.low;
            let spare = len - missing;
            if spare < piece.len {
                piece.len -= spare;
            } else {
                len = missing + piece.len;
                tail = None;
            }
        }
        middle.push(Piece { start: run.low, len, node: run.node });
        missing = 0;
    }
    Ok(head.into_iter().chain(middle).chain(tail).collect())
}

/// The runs in whose head a block of `len` grains begins and in whose tail it ends, where it needs them; or how
/// many grains could be used when all of `whole` do not suffice with them.
///
/// The longest ones save the most whole tiles. Of those that save as many, it takes the shortest, and leaves
/// the longer ones to blocks that need them.
fn ends(runs: &[Run], whole: u64, len: u32, tile: u32) -> Result<(Option<usize>, Option<usize>), u32> {
    let (len, tile) = (u64::from(len), u64::from(tile));
    let longest = |part: Part| runs.iter().map(|run| u64::from(part(run))).max().unwrap_or(0);
    let (head, tail) = (longest(Run::head), longest(Run::tail));
    if whole + head + tail < len {
        return Err((whole + head + tail) as u32);
    }
    let tiles = len.saturating_sub(head + tail).div_ceil(tile) * tile;
    let rest = len.saturating_sub(tiles.min(whole));
    let last = shortest(runs, Run::tail, rest.saturating_sub(head));
    let tail = last.map_or(0, |at| u64::from(runs[at].tail()));
    Ok((shortest(runs, Run::head, rest.saturating_sub(tail)), last))
}

type Part = fn(&Run) -> u32;

/// The run with the least of `part` that is at least `len`, if any is wanted. The first of several.
fn shortest(runs: &[Run], part: Part, len: u64) -> Option<usize> {
    let fits = |&at: &usize| u64::from(part(&runs[at])) >= len;
    if len == 0 { None } else { (0..runs.len()).filter(fits).min_by_key(|&at| part(&runs[at])) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cut, Heap, Serial};

    const MIB: u32 = 2048;

    /// Blocks of so many bytes side by side over heaps of 2 MiB, of which some are freed again.
    fn space(blocks: &[(u64, bool)]) -> (Extents, Heaps) {
        space_cut(Cut::Heaps, blocks)
    }

    fn space_cut(cut: Cut, blocks: &[(u64, bool)]) -> (Extents, Heaps) {
        let (mut extents, mut heaps) = (Extents::new(), Heaps::new(cut));
        let len = blocks.iter().map(|&(bytes, _)| crate::grains(bytes) as u32).sum();
        let start = extents.add_region(len).unwrap();
        for part in 0..len / (2 * MIB) {
            let serial = Serial { growth: 0, part };
            heaps.insert(Heap { start: start + part * 2 * MIB, len: 2 * MIB, id: u64::from(part), serial });
        }
        extents.back(extents.find_void(len).unwrap(), len);
        let places: Vec<_> = blocks.iter().map(|&(bytes, _)| extents.alloc(bytes).unwrap()).collect();
        assert!(places.is_sorted_by_key(|place| place.start));
        for (place, _) in places.iter().zip(blocks).filter(|(_, (_, freed))| *freed) {
            extents.free(place.slot).unwrap();
        }
        (extents, heaps)
    }

    fn shape(pieces: &[Piece]) -> Vec<(u32, u32)> {
        pieces.iter().map(|piece| (piece.start, piece.len)).collect()
    }

    #[test]
    fn a_block_ends_in_what_is_left_of_tiles_where_that_saves_one() {
        let mib = 1 << 20;
        let (extents, heaps) = space(&[
            (3 * mib / 2, false),
            (mib / 2, true), // the end of a tile, short
            (2 * mib, false),
            (4 * mib, true),
            (2 * mib, false),
            (4 * mib, true),
            (3 * mib / 4, true), // the beginning of one, with the tiles before it
            (5 * mib / 4, false),
        ]);
        let pieces = |len| shape(&compose(&extents, &heaps, len, 2 * MIB).unwrap());
        let (short, low, high) = (3 * MIB / 2, 4 * MIB, 10 * MIB);
        assert_eq!(pieces(8 * MIB), [(low, 4 * MIB), (high, 4 * MIB)], "whole tiles only");
        assert_eq!(pieces(6 * MIB + MIB / 2), [(short, MIB / 2), (low, 4 * MIB), (high, 2 * MIB)]);
        assert_eq!(pieces(8 * MIB + MIB * 3 / 4), [(low, 4 * MIB), (high, 4 * MIB + MIB * 3 / 4)]);
        assert_eq!(pieces(9 * MIB + MIB / 4).iter().map(|&(_, len)| len).sum::<u32>(), 9 * MIB + MIB / 4);
        assert_eq!(compose(&extents, &heaps, 10 * MIB, 2 * MIB), Err(9 * MIB + MIB / 4));
    }

    #[test]
    fn what_begins_and_ends_inside_a_tile_is_no_use() {
        let mib = 1 << 20;
        let (extents, heaps) = space(&[(mib / 2, false), (mib, true), (mib / 2, false), (2 * mib, true)]);
        assert_eq!(compose(&extents, &heaps, 3 * MIB, 2 * MIB), Err(2 * MIB));
    }

    #[test]
    fn short_runs_make_up_a_block_where_tiles_are_shorter() {
        const TILE: u32 = MIB / 16;
        let half = 1 << 19;
        let blocks = [(half, false), (half, true)].repeat(8);
        let (extents, heaps) = space_cut(Cut::Tiles(TILE), &blocks);
        let pieces = shape(&compose(&extents, &heaps, 3 * MIB, TILE).unwrap());
        assert_eq!(pieces.len(), 6);
        assert!(pieces.iter().all(|&(_, len)| len == MIB / 2));
        assert_eq!(compose(&extents, &heaps, 5 * MIB, TILE), Err(4 * MIB));
        let (extents, heaps) = space_cut(Cut::Heaps, &blocks);
        assert_eq!(compose(&extents, &heaps, 3 * MIB, 2 * MIB), Err(MIB / 2), "the end of a heap");
    }
}

//! Which free pieces make up a block when no run is long enough.

use crate::extents::Extents;
use crate::heaps::Heaps;

/// One piece of a stitched block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its position in home space, grains.
    pub start: u32,
    /// Its length, grains.
    pub len: u32,
    /// Where the free run begins that it is taken from.
    pub run: u32,
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
#[derive(Debug, Clone, Copy)]
struct Run {
    start: u32,
    low: u32,
    high: u32,
    end: u32,
}

impl Run {
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
/// missing.
pub fn compose(extents: &Extents, heaps: &Heaps, len: u32) -> Result<Vec<Piece>, u32> {
    let mut runs = Vec::new();
    let mut whole = 0u64;
    for (run_len, start) in extents.longest_first() {
        let end = start + run_len;
        let (low, high) = (heaps.ceil(start), heaps.floor(end));
        if low > high {
            continue; // inside one tile
        }
        let run = Run { start, low, high, end };
        whole += u64::from(run.whole());
        runs.push(run);
        if whole >= u64::from(len) {
            break;
        }
    }
    let first = longest(&runs, Run::head);
    let last = longest(&runs, Run::tail);
    let usable = whole
        + first.map_or(0, |i| u64::from(runs[i].head()))
        + last.map_or(0, |i| u64::from(runs[i].tail()));
    if usable < u64::from(len) {
        return Err(usable as u32);
    }

    let mut missing = len;
    let mut head = None;
    if let Some(run) = first.map(|i| runs[i]) {
        let len = (run.high - run.start).min(missing);
        head = Some(Piece { start: run.start, len, run: run.start });
        missing -= len;
    }
    let mut tail = None;
    if let Some(run) = last.map(|i| runs[i])
        && missing > 0
    {
        // Of one run, the whole tiles go with the first piece: other tiles are mapped in between.
        let start = if first == last { run.high } else { run.low };
        let len = (run.end - start).min(missing);
        tail = Some(Piece { start, len, run: run.start });
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
            middle.push(Piece { start: run.low, len: run.whole(), run: run.start });
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
        middle.push(Piece { start: run.low, len, run: run.start });
        missing = 0;
    }
    Ok(head.into_iter().chain(middle).chain(tail).collect())
}

/// The run with the most of `part`, if any has some. The first of several.
fn longest(runs: &[Run], part: impl Fn(&Run) -> u32) -> Option<usize> {
    let mut best = None;
    let mut most = 0;
    for (i, run) in runs.iter().enumerate() {
        if part(run) > most {
            (best, most) = (Some(i), part(run));
        }
    }
    best
}

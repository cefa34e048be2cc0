//! How much to create when memory lacks, and in heaps of what length.

use crate::heaps::Cut;

/// Growth for a small long-lived request is rounded up to this part of what is held where heaps map whole,
/// since each costs the driver's time, and to `AHEAD_TILES` where they do not. The rest serves the next
/// requests; at the peak, half of it is lost on average.
const AHEAD_HEAPS: u64 = 128;
const AHEAD_TILES: u64 = 512;

/// Heaps times holes may come to this part of what is held: for transient blocks, and for long-lived ones,
/// whose holes are fewer and whose heaps are many.
const HOLED: u64 = 100;
const HOLED_LONG_LIVED: u64 = 30;

/// A heap need not be shorter than this part of the request it is created for. A block fills the heaps
/// inside it from end to end whatever their length, so a long one gains little from short heaps and pays
/// for each.
const OF_REQUEST: u64 = 64;

/// Decides on growth.
///
/// A heap that maps whole cannot be stitched while a block uses any of it. So every hole between live
/// blocks strands up to a heap, and long heaps lose memory where short ones cost driver calls. How many
/// holes a workload leaves is seen only as it runs: heaps begin long, and get shorter as there are more.
#[derive(Debug, Clone)]
pub struct Growth {
    tile: u32,
    longest: u32,
    holes: u32,
    cut: Cut,
}

impl Growth {
    /// `longest`: the length a heap may have, grains, a multiple of `tile`.
    pub fn new(tile: u32, longest: u32, cut: Cut) -> Growth {
        Growth { tile, longest, holes: 0, cut }
    }

    /// Notes that memory lacks while there are so many long free runs. The most there ever were counts.
    pub fn note(&mut self, holes: u32) {
        self.holes = self.holes.max(holes);
    }

    /// Forgets the holes there were.
    pub fn forget(&mut self) {
        self.holes = 0;
    }

    /// How many grains to create when `lacks` of a request of `len` lack and `held` are held.
    pub fn amount(&self, lacks: u32, len: u32, held: u64, long_lived: bool) -> u32 {
        let part = if self.cut == Cut::Heaps { AHEAD_HEAPS } else { AHEAD_TILES };
        let ahead = (held / part).min(u64::from(self.share(3, 4))) as u32;
        let amount = if long_lived && len < ahead { lacks.max(ahead) } else { lacks };
        amount.div_ceil(self.tile).saturating_mul(self.tile)
    }

    /// The longest heap to create for a request of `len` grains when `held` are held.
    pub fn heap_len(&self, len: u32, held: u64, long_lived: bool) -> u32 {
        if self.cut != Cut::Heaps {
            return self.longest;
        }
        // The holes between long-lived blocks last, while transient blocks are large and each heap in one is
        // another to map.
        let (holed, longest) =
            if long_lived { (HOLED_LONG_LIVED, self.share(3, 8)) } else { (HOLED, self.share(3, 4)) };
        let fitting = held / (holed * (u64::from(self.holes) + 1));
        let wanted = fitting.max(u64::from(len) / OF_REQUEST).min(u64::from(longest)) as u32;
        (wanted / self.tile).max(1) * self.tile
    }

    /// A part of the longest heap, in whole tiles.
    fn share(&self, part: u32, of: u32) -> u32 {
        if self.cut != Cut::Heaps {
            return self.longest;
        }
        (self.longest / of * part / self.tile).max(1) * self.tile
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u32 = 2048;

    #[test]
    fn heaps_get_shorter_the_more_holes_there_are() {
        let mut growth = Growth::new(2 * MIB, 64 * MIB, Cut::Heaps);
        let held = 8000 * u64::from(MIB);
        assert_eq!(growth.heap_len(100 * MIB, held, false), 48 * MIB);
        assert_eq!(growth.heap_len(100 * MIB, held, true), 24 * MIB);
        growth.note(9);
        assert_eq!(growth.heap_len(100 * MIB, held, false), 8 * MIB);
        assert_eq!(growth.heap_len(100 * MIB, held, true), 24 * MIB);
        growth.note(3);
        assert_eq!(growth.heap_len(100 * MIB, held, false), 8 * MIB, "the most there were");
        growth.note(1000);
        assert_eq!(growth.heap_len(100 * MIB, held, false), 2 * MIB, "a tile at least");
        assert_eq!(growth.heap_len(1024 * MIB, held, false), 16 * MIB, "a long request has long heaps");
        growth.forget();
        assert_eq!(growth.heap_len(100 * MIB, held, false), 48 * MIB, "as in the beginning");
    }

    #[test]
    fn tiles_within_heaps_strand_nothing() {
        let mut growth = Growth::new(128, 64 * MIB, Cut::Tiles(128));
        growth.note(1000);
        assert_eq!(growth.heap_len(MIB, 0, false), 64 * MIB);
        assert_eq!(growth.heap_len(MIB, 0, true), 64 * MIB);
    }

    #[test]
    fn growth_is_what_lacks_in_whole_tiles() {
        let growth = Growth::new(2 * MIB, 64 * MIB, Cut::Heaps);
        assert_eq!(growth.amount(5 * MIB, 400 * MIB, 0, false), 6 * MIB);
        assert_eq!(growth.amount(1, 1, 0, true), 2 * MIB);
        assert_eq!(
            growth.amount(1, 1, 1280 * u64::from(MIB), true),
            10 * MIB,
            "a part of what is held, ahead"
        );
        assert_eq!(growth.amount(1, 1, 1 << 40, true), 48 * MIB);
    }
}

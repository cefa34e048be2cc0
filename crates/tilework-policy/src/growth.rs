//! How much to create when memory lacks, and in heaps of what length.

use crate::heaps::Cut;

/// Growth for a small long-lived request is rounded up to this part of what is held where heaps map whole,
/// since each costs the driver's time, and to `AHEAD_TILES` where they do not. The rest serves the next
/// requests; at the peak, half of it is lost on average.
const AHEAD_HEAPS: u64 = 256;
const AHEAD_TILES: u64 = 512;

/// What is stranded and what is created ahead may come to this many ten-thousandths of what is held.
const LOST_AHEAD: u64 = 22;

/// Heaps times holes may come to this part of what is held: for transient blocks, and for long-lived ones,
/// whose holes are fewer and whose heaps are many.
const HOLED: u64 = 75;
const HOLED_LONG_LIVED: u64 = 18;

/// Holes that are still to come, as long as none was seen.
const HOLES_TO_COME: u32 = 2;

/// A transient block is a hole to come: of so many together one stays open while memory lacks. A forward
/// pass leaves hundreds behind and no hole; the backward pass opens them.
const TRANSIENTS_TO_A_HOLE: u32 = 8;

/// A heap need not be shorter than this part of the request it is created for. A block fills the heaps
/// inside it from end to end whatever their length, so a long one gains little from short heaps and pays
/// for each.
const OF_REQUEST: u64 = 40;

/// But it must be, however long the request, once so many ten-thousandths of what is held are stranded.
const LOST_TO_LENGTH: u64 = 80;

/// Decides on growth.
///
/// A heap that maps whole cannot be stitched while a block uses any of it. So every hole between live
/// blocks strands up to a heap, and long heaps lose memory where short ones cost driver calls. How many
/// holes a workload leaves is seen only as it runs: heaps begin long, and get shorter as there are more, or
/// more to come, and as more is stranded.
#[derive(Debug, Clone)]
pub struct Growth {
    tile: u32,
    longest: u32,
    holes: u32,
    stranded: u64,
    cut: Cut,
    lasting: bool,
}

impl Growth {
    /// `longest`: the length a heap may have, grains, a multiple of `tile`.
    pub fn new(tile: u32, longest: u32, cut: Cut) -> Growth {
        Growth { tile, longest, holes: 0, stranded: 0, cut, lasting: false }
    }

    /// For memory in which blocks stay side by side: holes are not expected, and heaps are as long as may be.
    pub fn set_lasting(&mut self) {
        self.lasting = true;
    }

    /// Notes that memory lacks: how many long free runs there are, how many live blocks are transient, and
    /// how many grains are free and cannot be used. The most holes there ever were count.
    pub fn note(&mut self, holes: u32, transients: u32, stranded: u64) {
        self.holes = self.holes.max(holes).max(transients / TRANSIENTS_TO_A_HOLE);
        self.stranded = stranded;
    }

    /// Forgets the holes there were.
    pub fn forget(&mut self) {
        self.holes = 0;
    }

    /// How many grains to create when `lacks` of a request of `len` lack and `held` are held.
    pub fn amount(&self, lacks: u32, len: u32, held: u64, long_lived: bool) -> u32 {
        let part = if self.cut == Cut::Heaps { AHEAD_HEAPS } else { AHEAD_TILES };
        let may_be_lost = u64::from(lacks) + self.left(held, LOST_AHEAD);
        let ahead = (held / part).min(u64::from(self.longest) * 3 / 4).min(may_be_lost) as u32;
        let amount = if long_lived && len < ahead { ahead } else { lacks };
        amount.div_ceil(self.tile).saturating_mul(self.tile)
    }

    /// The longest heap to create for a request of `len` grains when `held` are held.
    pub fn heap_len(&self, len: u32, held: u64, long_lived: bool) -> u32 {
        if self.cut != Cut::Heaps || self.lasting {
            return self.longest;
        }
        // A request longer than all that is held is most of it once it is served.
        let held = held.max(len.into());
        // The holes between long-lived blocks last, while transient blocks are large and each heap in one is
        // another to map.
        let (holed, longest) =
            if long_lived { (HOLED_LONG_LIVED, self.longest / 8 * 3) } else { (HOLED, self.longest) };
        let fitting = held / (holed * u64::from(self.holes + HOLES_TO_COME + 1));
        let of_request = (u64::from(len) / OF_REQUEST).min(self.left(held, LOST_TO_LENGTH));
        let wanted = fitting.max(of_request).min(u64::from(longest)) as u32;
        (wanted / self.tile).max(1) * self.tile
    }

    /// What may still be lost of so many ten-thousandths of `held`, grains.
    fn left(&self, held: u64, parts: u64) -> u64 {
        (held * parts / 10_000).saturating_sub(self.stranded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u32 = 2048;
    const HELD: u64 = 8000 * MIB as u64;

    #[test]
    fn heaps_get_shorter_the_more_holes_there_are() {
        let mut growth = Growth::new(2 * MIB, 64 * MIB, Cut::Heaps);
        let first = growth.heap_len(100 * MIB, HELD, false);
        assert!(first > 32 * MIB && growth.heap_len(100 * MIB, HELD, true) == 24 * MIB);
        growth.note(9, 0, 0);
        let shorter = growth.heap_len(100 * MIB, HELD, false);
        assert!(shorter < first / 2 && growth.heap_len(100 * MIB, HELD, true) == 24 * MIB);
        growth.note(3, 0, 0);
        assert_eq!(growth.heap_len(100 * MIB, HELD, false), shorter, "the most there were");
        growth.note(1000, 0, 0);
        assert_eq!(growth.heap_len(50 * MIB, HELD, false), 2 * MIB, "a tile at least");
        assert!(growth.heap_len(1024 * MIB, HELD, false) > 16 * MIB, "a long request has long heaps");
        growth.forget();
        assert_eq!(growth.heap_len(100 * MIB, HELD, false), first, "as in the beginning");
        assert_eq!(growth.heap_len(10_240 * MIB, 0, false), 64 * MIB, "held once it is served");
    }

    #[test]
    fn live_transient_blocks_count_as_holes_to_come() {
        let (mut seen, mut to_come) =
            (Growth::new(2 * MIB, 64 * MIB, Cut::Heaps), Growth::new(2 * MIB, 64 * MIB, Cut::Heaps));
        seen.note(25, 0, 0);
        to_come.note(0, 25 * TRANSIENTS_TO_A_HOLE, 0);
        assert_eq!(seen.heap_len(100 * MIB, HELD, false), to_come.heap_len(100 * MIB, HELD, false));
    }

    #[test]
    fn once_much_is_stranded_long_requests_have_short_heaps_too() {
        let mut growth = Growth::new(2 * MIB, 64 * MIB, Cut::Heaps);
        growth.note(1000, 0, HELD / 10_000 * LOST_TO_LENGTH - 4 * u64::from(MIB));
        assert_eq!(growth.heap_len(1024 * MIB, HELD, false), 4 * MIB, "as long as may still be lost");
        growth.note(1000, 0, HELD / 10);
        assert_eq!(growth.heap_len(1024 * MIB, HELD, false), 2 * MIB);
    }

    #[test]
    fn tiles_within_heaps_strand_nothing() {
        let mut growth = Growth::new(128, 64 * MIB, Cut::Tiles(128));
        growth.note(1000, 1000, HELD);
        assert_eq!(growth.heap_len(MIB, 0, false), 64 * MIB);
        assert_eq!(growth.heap_len(MIB, 0, true), 64 * MIB);
    }

    #[test]
    fn memory_that_lasts_has_long_heaps() {
        let mut growth = Growth::new(2 * MIB, 64 * MIB, Cut::Heaps);
        growth.set_lasting();
        growth.note(1000, 1000, HELD);
        assert_eq!(growth.heap_len(MIB, 0, true), 64 * MIB);
    }

    #[test]
    fn growth_is_what_lacks_in_whole_tiles() {
        let growth = Growth::new(2 * MIB, 64 * MIB, Cut::Heaps);
        assert_eq!(growth.amount(5 * MIB, 400 * MIB, 0, false), 6 * MIB);
        assert_eq!(growth.amount(1, 1, 0, true), 2 * MIB);
    }

    #[test]
    fn small_long_lived_requests_have_memory_created_ahead_while_little_is_lost() {
        let mut growth = Growth::new(2 * MIB, 64 * MIB, Cut::Heaps);
        let amount = |growth: &Growth, held_mib| growth.amount(1, 1, held_mib * u64::from(MIB), true);
        assert_eq!(amount(&growth, 2000), 6 * MIB, "what may be lost, in whole tiles");
        assert_eq!(amount(&growth, 1 << 20), 48 * MIB);
        growth.note(0, 0, 2000 * u64::from(MIB) / 10_000 * LOST_AHEAD);
        assert_eq!(amount(&growth, 2000), 2 * MIB, "no more than lacks");
    }
}

//! How much to create when memory lacks, and in heaps of what length.

use crate::heaps::Cut;

/// Growth for a small long-lived request is rounded up to this part of what is held where heaps map whole,
/// since each costs the driver's time, and to `AHEAD_TILES` where they do not. The rest serves the next
/// requests; at the peak, half of it is lost on average.
const AHEAD_HEAPS: u64 = 128;
const AHEAD_TILES: u64 = 512;

/// The part of what is held that may be free and yet unusable, stranded in partly used heaps.
const STRANDED: u64 = 300;

/// Below this, what is held is too little to tell anything, grains (256 MiB).
const TELLING: u64 = 512 << 10;

/// The shortest heaps made to strand less, in tiles. With single tiles the driver's time doubles for a
/// thousandth of memory.
const SHORTEST: u32 = 2;

/// Decides on growth.
///
/// A heap that maps whole cannot be stitched while a block uses any of it, so long heaps strand memory, and
/// short ones cost driver calls. Heaps begin as long as is allowed; each time memory lacks, what is
/// stranded at that moment is measured, and where it is more than it may be, heaps are made shorter from
/// then on, in proportion: half as long a heap strands half as much.
#[derive(Debug, Clone)]
pub struct Growth {
    tile: u32,
    longest: u32,
    fitting: u32,
    cut: Cut,
}

impl Growth {
    /// `longest`: the length a heap may have, grains, a multiple of `tile`.
    pub fn new(tile: u32, longest: u32, cut: Cut) -> Growth {
        Growth { tile, longest, fitting: longest, cut }
    }

    /// Notes that memory lacked while `stranded` of the `held` grains were free and could not be used.
    pub fn note(&mut self, stranded: u64, held: u64) {
        if self.cut != Cut::Heaps || held < TELLING || stranded == 0 {
            return;
        }
        let fitting = u64::from(self.longest) * held / (stranded * STRANDED);
        let shortest = (self.tile * SHORTEST).min(self.longest);
        let fitting = fitting.min(u64::from(self.fitting)) as u32 / self.tile * self.tile;
        self.fitting = fitting.max(shortest);
    }

    /// How many grains to create when `lacks` of a request of `len` lack and `held` are held.
    pub fn amount(&self, lacks: u32, len: u32, held: u64, long_lived: bool) -> u32 {
        let part = if self.cut == Cut::Heaps { AHEAD_HEAPS } else { AHEAD_TILES };
        let ahead = (held / part).min(u64::from(self.longest)) as u32;
        let amount = if long_lived && len < ahead { lacks.max(ahead) } else { lacks };
        amount.div_ceil(self.tile).saturating_mul(self.tile)
    }

    /// The longest heap to create. Where heaps map whole those of long-lived blocks are half as long: the
    /// holes between such blocks last, while transient blocks are large and each heap in one is another to map.
    pub fn heap_len(&self, long_lived: bool) -> u32 {
        let half = (self.longest / 2 / self.tile).max(1) * self.tile;
        if self.cut == Cut::Heaps && long_lived { self.fitting.min(half) } else { self.fitting }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u32 = 2048;

    #[test]
    fn heaps_get_shorter_by_what_is_stranded() {
        let mut growth = Growth::new(2 * MIB, 64 * MIB, Cut::Heaps);
        let held = 3000 * u64::from(MIB);
        growth.note(10 * u64::from(MIB), held);
        assert_eq!(growth.heap_len(false), 64 * MIB);
        growth.note(20 * u64::from(MIB), held);
        assert_eq!(growth.heap_len(false), 32 * MIB);
        growth.note(10 * u64::from(MIB), held);
        assert_eq!(growth.heap_len(false), 32 * MIB, "they do not grow again");
        growth.note(held, held);
        assert_eq!(growth.heap_len(false), 4 * MIB);
    }

    #[test]
    fn tiles_within_heaps_strand_nothing() {
        let mut growth = Growth::new(128, 64 * MIB, Cut::Tiles(128));
        growth.note(1 << 20, 1 << 21);
        assert_eq!(growth.heap_len(false), 64 * MIB);
        assert_eq!(growth.heap_len(true), 64 * MIB);
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
        assert_eq!(growth.amount(1, 1, 1 << 40, true), 64 * MIB);
    }
}

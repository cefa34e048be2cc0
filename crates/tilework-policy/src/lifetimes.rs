//! Which end of memory a request belongs to.

/// Requests up to this length, grains (1 MiB), are packed among the long-lived ones: between large
/// transient blocks each would keep a whole tile from being stitched.
const SMALL: u32 = 2048;

/// A block that outlives this many operations is long-lived. One pass of a network makes hundreds to
/// thousands of operations, so its activations stay below and its weights and states above.
/// Half the value and double place most of the recorded workloads alike.
const LONG: u32 = 8192;

/// A length never seen before counts as transient beyond this one, grains (48 MiB), and as long-lived up to
/// it: weights and states come in many moderate blocks, activations in few large ones.
const LARGE: u32 = 98_304;

const ENTRIES: usize = 4096;

/// Learns from each freed block how long blocks of its length live, and tells long-lived requests from
/// transient ones.
///
/// Long-lived blocks are packed from the low end of memory, transient ones from the high end. Where
/// the two mix, every block that stays behind leaves a hole between tiles that are only partly free,
/// and memory in a partly used tile cannot be stitched: that, not rounding, is what a tiled pool of
/// large tiles loses.
///
/// The table is direct-mapped, so it neither grows nor depends on the order of a hash table: a length
/// that falls on another's entry replaces it.
#[derive(Debug, Clone)]
pub struct Lifetimes {
    entries: Box<[Entry; ENTRIES]>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    len: u32,
    life: u32,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Lifetimes::new()
    }
}

impl Lifetimes {
    /// Nothing learnt yet.
    pub fn new() -> Lifetimes {
        Lifetimes { entries: Box::new([Entry::default(); ENTRIES]) }
    }

    /// Whether a request of `len` grains is expected to live long.
    pub fn long_lived(&self, len: u32) -> bool {
        let entry = self.entries[slot(len)];
        len <= SMALL || if entry.len == len { entry.life > LONG } else { len <= LARGE }
    }

    /// Notes that a block of `len` grains was freed after `life` operations.
    pub fn learn(&mut self, len: u32, life: u32) {
        if len > SMALL {
            self.entries[slot(len)] = Entry { len, life };
        }
    }

    /// Forgets everything learnt.
    pub fn forget(&mut self) {
        self.entries.fill(Entry::default());
    }
}

/// Fibonacci hashing: the top bits of the product with 2^32 / φ.
fn slot(len: u32) -> usize {
    (len.wrapping_mul(0x9E37_79B9) >> (32 - ENTRIES.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_life_decides() {
        let mut lifetimes = Lifetimes::new();
        assert!(lifetimes.long_lived(50_000) && !lifetimes.long_lived(200_000));
        lifetimes.learn(50_000, 10);
        assert!(!lifetimes.long_lived(50_000));
        lifetimes.learn(50_000, LONG + 1);
        assert!(lifetimes.long_lived(50_000));
    }

    #[test]
    fn small_requests_always_go_with_the_long_lived() {
        let mut lifetimes = Lifetimes::new();
        lifetimes.learn(SMALL, 1);
        assert!(lifetimes.long_lived(SMALL));
    }
}

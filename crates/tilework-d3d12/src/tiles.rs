//! Binds as `UpdateTileMappings` takes them: one heap a call, in tiles, those made one that continue each other.

use tilework::device::{Bind, HeapId};

/// The length of a tile of a reserved resource, bytes.
pub const TILE: u64 = 64 << 10;

/// What one call maps: pieces of one heap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Which tile of the range each piece begins at.
    pub at: Vec<u32>,
    /// Which tile of the heap each piece begins at.
    pub from: Vec<u32>,
    /// How many tiles each piece has.
    pub tiles: Vec<u32>,
}

/// `binds` by heap, in the order in which the heaps first occur.
///
/// # Panics
/// When a bind lies beyond 2^32 tiles: ranges and heaps of a device are shorter.
pub fn batches(binds: &[Bind]) -> Vec<(HeapId, Batch)> {
    let mut batches: Vec<(HeapId, Batch)> = Vec::new();
    let mut before: Option<&Bind> = None;
    // Of one heap many pieces come in a row, and heaps are few; the last is found first.
    for bind in binds {
        let known = batches.iter().rposition(|(heap, _)| *heap == bind.heap);
        let known = known.unwrap_or_else(|| {
            batches.push((bind.heap, Batch::default()));
            batches.len() - 1
        });
        let batch = &mut batches[known].1;
        match batch.tiles.last_mut() {
            Some(last) if before.is_some_and(|before| before.continued_by(bind)) => {
                *last += tiles(bind.bytes)
            }
            _ => {
                batch.at.push(tiles(bind.range_offset));
                batch.from.push(tiles(bind.heap_offset));
                batch.tiles.push(tiles(bind.bytes));
            }
        }
        before = Some(bind);
    }
    batches
}

/// A length or an offset in tiles.
///
/// # Panics
/// As [`batches`].
pub fn tiles(bytes: u64) -> u32 {
    u32::try_from(bytes / TILE).expect("ranges and heaps are shorter than 2^32 tiles")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All in tiles.
    fn bind(at: u64, heap: u64, from: u64, tiles: u64) -> Bind {
        Bind { range_offset: at * TILE, heap: HeapId(heap), heap_offset: from * TILE, bytes: tiles * TILE }
    }

    fn batch(pieces: &[(u32, u32, u32)]) -> Batch {
        Batch {
            at: pieces.iter().map(|piece| piece.0).collect(),
            from: pieces.iter().map(|piece| piece.1).collect(),
            tiles: pieces.iter().map(|piece| piece.2).collect(),
        }
    }

    #[test]
    fn each_heap_has_a_call_and_what_continues_is_one_piece() {
        let binds = [
            bind(0, 1, 0, 2),
            bind(2, 1, 2, 1),
            bind(3, 1, 3, 5),
            // Goes on in the range, not in the heap; in the heap, not in the range; in both, but of another heap.
            bind(8, 1, 0, 1),
            bind(10, 1, 1, 1),
            bind(11, 2, 2, 1),
            // Back to the first heap, where its last piece ended: another piece lies between in the range.
            bind(12, 1, 2, 1),
            bind(13, 2, 3, 4),
        ];
        let expected = [
            (HeapId(1), batch(&[(0, 0, 8), (8, 0, 1), (10, 1, 1), (12, 2, 1)])),
            (HeapId(2), batch(&[(11, 2, 1), (13, 3, 4)])),
        ];
        assert_eq!(batches(&binds), expected);
        assert_eq!(batches(&[]), []);
    }

    #[test]
    fn the_last_tile_of_a_long_range_is_named() {
        let far = (1 << 31) - 1;
        assert_eq!(batches(&[bind(far, 1, far, 1)]), [(HeapId(1), batch(&[(far as u32, far as u32, 1)]))]);
    }

    proptest! {
        /// Tile by tile the calls map what the binds say, no call has a heap twice, and no two pieces could be one.
        #[test]
        fn calls_map_what_the_binds_say(
            parts in proptest::collection::vec((0..4_u64, 0..9_u64, 1..5_u64, 0..2_u64), 0..40),
        ) {
            let mut at = 0;
            let mut binds = Vec::new();
            for (heap, from, tiles, gap) in parts {
                at += gap;
                binds.push(bind(at, heap, from, tiles));
                at += tiles;
            }
            let mut expected: Vec<(u64, u64, u64)> = Vec::new();
            for bind in &binds {
                for tile in 0..bind.bytes / TILE {
                    expected.push((bind.range_offset / TILE + tile, bind.heap.0, bind.heap_offset / TILE + tile));
                }
            }
            let calls = batches(&binds);
            let mut found = Vec::new();
            let mut heaps = Vec::new();
            for (heap, batch) in &calls {
                prop_assert!(!heaps.contains(heap), "two calls of one heap");
                heaps.push(*heap);
                for ((&at, &from), &tiles) in batch.at.iter().zip(&batch.from).zip(&batch.tiles) {
                    found.extend((0..u64::from(tiles)).map(|tile| (u64::from(at) + tile, heap.0, u64::from(from) + tile)));
                }
                for n in 1..batch.at.len() {
                    let continues = batch.at[n - 1] + batch.tiles[n - 1] == batch.at[n]
                        && batch.from[n - 1] + batch.tiles[n - 1] == batch.from[n];
                    prop_assert!(!continues, "two pieces that are one");
                }
            }
            found.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}

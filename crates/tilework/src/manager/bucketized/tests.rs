use super::*;
use crate::device::null::Null;
use crate::device::{Caps, RangeId};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// On a device with tiles as small as the smallest bucket, so that each holds what it says.
fn bucketized(rounding: Rounding) -> Bucketized {
    let caps = Caps { tile_bytes: 64 * KIB, partial_maps: true, ..Null::new().caps().clone() };
    Bucketized::new(Box::new(Null::with_caps(caps)), rounding)
}

fn alloc(manager: &mut Bucketized, bytes: u64) -> Block {
    manager.alloc(bytes, Stream(0)).unwrap()
}

fn free_all(manager: &mut Bucketized, blocks: impl IntoIterator<Item = Block>) {
    blocks.into_iter().for_each(|block| manager.free(block.id).unwrap());
}

#[test]
fn the_seeds_example_holds_three_times_what_is_live() {
    let mut manager = bucketized(Rounding::PowerOfTwo);
    for (count, bytes) in [(100, 4 * MIB), (50, 8 * MIB), (25, 16 * MIB)] {
        let blocks: Vec<_> = (0..count).map(|_| alloc(&mut manager, bytes)).collect();
        free_all(&mut manager, blocks);
        manager.end_of_execution().unwrap();
    }
    assert_eq!(manager.usage().peak_live, 400 * MIB);
    assert_eq!(manager.usage().held, 1200 * MIB);
    assert_eq!(manager.trim(), Ok(0));
    assert_eq!(manager.usage().held, 1200 * MIB);
}

#[test]
fn rounding_takes_the_next_power_of_two_from_64_kib_up() {
    for (bytes, held) in [
        (1, 64 * KIB),
        (64 * KIB, 64 * KIB),
        (64 * KIB + 1, 128 * KIB),
        (128 * KIB, 128 * KIB),
        (1100 * MIB, 2048 * MIB),
    ] {
        let mut manager = bucketized(Rounding::PowerOfTwo);
        alloc(&mut manager, bytes);
        assert_eq!(manager.usage().held, held, "for {bytes} bytes");
    }
}

#[test]
fn the_entry_freed_last_is_lent_first_and_at_once() {
    let mut manager = bucketized(Rounding::PowerOfTwo);
    let [a, b, other] = [MIB, MIB - 5, 3 * MIB].map(|bytes| alloc(&mut manager, bytes));
    free_all(&mut manager, [b, other, a]);
    let calls = manager.device().calls();
    assert_eq!(alloc(&mut manager, MIB).range, a.range);
    assert_eq!(alloc(&mut manager, 600 * KIB).range, b.range);
    assert_eq!(manager.device().calls(), calls);
    // The bucket is empty now, and larger ones do not help out.
    let fresh = alloc(&mut manager, MIB).range;
    assert!(![a.range, b.range, other.range].contains(&fresh));
}

#[test]
fn without_rounding_only_sizes_equal_to_their_bucket_are_pooled() {
    let mut manager = bucketized(Rounding::Exact);
    let pooled = alloc(&mut manager, 128 * KIB);
    let made_to_size = [100, 32 * KIB, 5 * MIB + 1].map(|bytes| alloc(&mut manager, bytes));
    assert_eq!(manager.usage().held, (128 + 64 + 64 + 5 * 1024 + 64) * KIB);
    free_all(&mut manager, made_to_size);
    free_all(&mut manager, [pooled]);

    // Made to size is never lent again, not even for the same size, and goes behind the fence.
    let again = alloc(&mut manager, 100);
    assert_ne!(again.range, made_to_size[0].range);
    assert_eq!(manager.device().calls().release, 0);
    manager.end_of_execution().unwrap();
    assert_eq!(manager.usage().held, (128 + 64) * KIB);
    assert_eq!(alloc(&mut manager, 128 * KIB).range, pooled.range);
}

#[test]
fn a_block_made_to_size_is_rounded_to_four_bytes() {
    let caps = Caps { tile_bytes: 1, partial_maps: true, ..Null::new().caps().clone() };
    let mut manager = Bucketized::new(Box::new(Null::with_caps(caps)), Rounding::Exact);
    alloc(&mut manager, 101);
    assert_eq!(manager.usage().held, 104);
}

#[test]
fn a_bucket_beyond_the_device_is_refused_with_the_largest_there_is() {
    let caps = Caps { max_range_bytes: 3 * MIB, ..Null::new().caps().clone() };
    let mut manager = Bucketized::new(Box::new(Null::with_caps(caps)), Rounding::PowerOfTwo);
    let bytes = 2 * MIB + 1;
    let refused = manager.alloc(bytes, Stream(0));
    assert_eq!(refused, Err(Error::TooLarge { bytes, max: 2 * MIB }));
    alloc(&mut manager, 2 * MIB);
}

#[test]
fn the_report_knows_the_free_entries() {
    let mut manager = bucketized(Rounding::PowerOfTwo);
    let blocks = [MIB, 2 * MIB, 2 * MIB].map(|bytes| alloc(&mut manager, bytes));
    let ranges: Vec<RangeId> = blocks.iter().map(|block| block.range).collect();
    assert_eq!(ranges.len(), 3);
    free_all(&mut manager, blocks);
    let stats = manager.stats();
    assert_eq!((stats.largest_free_run, stats.cached_mappings, stats.heaps), (2 * MIB, 3, 3));
    manager.check_invariants();
}

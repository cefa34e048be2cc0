use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::testing::{Op, run};
use crate::{Cut, GRAIN, Heap, Serial};

const MIB: u32 = 2048;

/// One region, of which `len` grains are backed.
fn space(len: u32) -> Extents {
    let mut extents = Extents::new();
    extents.add_region(1 << 28).unwrap();
    extents.back(extents.find_void(len).unwrap(), len);
    extents
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![4 => 1..64_u64, 3 => 64..4096_u64, 4 => 4096..40_000_u64, 1 => 40_000..200_000_u64];
    prop_oneof![
        12 => (len, 0..GRAIN).prop_map(|(len, slack)| Op::Alloc { bytes: len * GRAIN - slack }),
        10 => any::<usize>().prop_map(|nth| Op::Free { nth }),
        1 => Just(Op::EndOfExecution),
        2 => Just(Op::Close),
        1 => (0..40_000_u32).prop_map(|len| Op::Open { len }),
        1 => (0..40_000_u32).prop_map(|len| Op::OpenFitting { len }),
        2 => prop_oneof![Just(0), any::<u8>()].prop_map(|lost| Op::Release { lost }),
        1 => Just(Op::Regain),
    ]
}

proptest! {
    #[test]
    fn blocks_never_overlap_over_whole_heaps(ops in vec(op(), 1..250)) {
        run(Cut::Heaps, ops);
    }

    #[test]
    fn blocks_never_overlap_over_tiles(ops in vec(op(), 1..250)) {
        run(Cut::Tiles(128), ops);
    }
}

#[test]
fn long_lived_blocks_go_low_and_transient_ones_high() {
    let mut extents = space(256 * MIB);
    let low = extents.alloc(8 << 20).unwrap();
    let high = extents.alloc(100 << 20).unwrap();
    assert_eq!(low.start, 0);
    assert_eq!(high.start, 156 * MIB);
    extents.free(high.slot).unwrap();
    extents.free(low.slot).unwrap();
    // A length that was freed soon counts as transient from then on.
    assert_eq!(extents.alloc(8 << 20).unwrap().start, 248 * MIB);
    assert_eq!(extents.longest(), 248 * MIB);
}

#[test]
fn what_added_memory_leaves_over_lies_at_its_end() {
    let mut extents = space(256 * MIB);
    assert_eq!(extents.alloc_in_added(100 << 20).unwrap().start, 0, "transient, and yet at the low end");
    assert_eq!(extents.alloc_in_added(100 << 20).unwrap().start, 100 * MIB);
    assert_eq!(extents.longest(), 56 * MIB);
}

#[test]
fn a_long_lived_block_takes_the_hole_it_nearly_fills() {
    let mut extents = space(256 * MIB);
    let [wide, _, narrow, _] = [20, 4, 10, 4].map(|mib| extents.alloc(mib << 20).unwrap());
    extents.free(wide.slot).unwrap();
    extents.free(narrow.slot).unwrap();
    assert_eq!(extents.alloc(9 << 20).unwrap().start, narrow.start);
    assert_eq!(extents.alloc(6 << 20).unwrap().start, wide.start, "the lowest, when none is nearly filled");
}

#[test]
fn what_was_created_together_opens_together() {
    let mut extents = space(16 * MIB);
    let growths = [0, 0, 0, 1];
    for (at, growth) in growths.into_iter().enumerate().rev() {
        let run = extents.free_runs(1)[0];
        let part = at as u32;
        let heap =
            Heap { start: part * 4 * MIB, len: 4 * MIB, id: at as u64, serial: Serial { growth, part } };
        extents.close(run, &heap);
    }
    assert_eq!(extents.open(1), u64::from(12 * MIB));
    assert_eq!(extents.open(1), u64::from(4 * MIB));
    assert_eq!(extents.open(1), 0);
    extents.check_invariants();
}

#[test]
fn a_node_out_of_generations_names_no_further_block() {
    let mut extents = space(4 * MIB);
    let place = extents.alloc(4 << 20).unwrap();
    extents.nodes[place.slot.index as usize].generation = RETIRED - 1;
    let last = Slot { generation: RETIRED - 1, ..place.slot };
    extents.free(last).unwrap();
    let next = extents.alloc(4 << 20).unwrap();
    assert_ne!(next.slot.index, last.index);
    assert_eq!(extents.free(last), Err(FreeError::Twice));
    extents.free(next.slot).unwrap();
    extents.check_invariants();
}

#[test]
fn after_an_execution_blocks_take_nodes_that_lie_side_by_side() {
    let mut extents = space(4 * MIB);
    let mut blocks: Vec<Place> = (0..1000).map(|_| extents.alloc(512).unwrap()).collect();
    let _never_freed = extents.alloc(512).unwrap();
    blocks.sort_unstable_by_key(|block| block.start.wrapping_mul(0x9E37_79B9));
    for block in blocks {
        extents.free(block.slot).unwrap();
    }
    extents.end_of_execution();
    extents.check_invariants();
    let blocks: Vec<Place> = (0..1000).map(|_| extents.alloc(512).unwrap()).collect();
    assert!(to_the_next_node(&blocks) > 990, "{} of 999 steps", to_the_next_node(&blocks));
}

#[test]
fn after_all_was_freed_blocks_take_nodes_that_lie_side_by_side() {
    let mut extents = space(4 * MIB);
    let mut blocks: Vec<Place> = (0..1000).map(|_| extents.alloc(512).unwrap()).collect();
    blocks.sort_unstable_by_key(|block| block.start.wrapping_mul(0x9E37_79B9));
    for block in blocks {
        extents.free(block.slot).unwrap();
    }
    extents.check_invariants();
    let blocks: Vec<Place> = (0..1000).map(|_| extents.alloc(512).unwrap()).collect();
    assert!(to_the_next_node(&blocks) > 990, "{} of 999 steps", to_the_next_node(&blocks));
}

/// How many blocks have the node behind that of the block before.
fn to_the_next_node(blocks: &[Place]) -> usize {
    blocks.windows(2).filter(|pair| pair[1].slot.index == pair[0].slot.index + 1).count()
}

#[test]
fn strangers_are_told_from_the_freed() {
    let mut extents = space(4 * MIB);
    let place = extents.alloc(100).unwrap();
    for (index, generation) in [(99, 1), (place.slot.index, 2), (place.slot.index, 0)] {
        assert_eq!(extents.free(Slot { index, generation }), Err(FreeError::Unknown));
    }
    extents.free(place.slot).unwrap();
    assert_eq!(extents.free(place.slot), Err(FreeError::Twice));
}

#[test]
fn what_was_lost_is_out_of_use_until_it_is_regained() {
    let mut extents = Extents::new();
    let start = extents.add_region(12).unwrap();
    extents.lose(extents.find_void(12).unwrap(), 4);
    extents.check_invariants();
    assert_eq!(extents.lost(), [start]);
    assert!(extents.find_void(9).is_none());
    extents.regain(start);
    extents.check_invariants();
    assert_eq!(extents.lost(), []);
    assert!(extents.is_void(start, 12), "it is not one with the void beside it");
}

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{Cut, Heap, Heaps, compose};

const MIB: u32 = 2048;

/// One region with `len` grains backed by heaps of at most `heap` grains.
fn space(len: u32, heap: u32, cut: Cut) -> (Extents, Heaps) {
    let mut extents = Extents::new();
    let mut heaps = Heaps::new(cut);
    extents.add_region(1 << 28).unwrap();
    grow(&mut extents, &mut heaps, len, heap);
    (extents, heaps)
}

fn grow(extents: &mut Extents, heaps: &mut Heaps, len: u32, heap: u32) {
    let void = extents.find_void(len).unwrap();
    let mut start = void.start;
    while start < void.start + len {
        let len = heap.min(void.start + len - start);
        heaps.insert(Heap { start, len, id: u64::from(start), serial: u64::from(start) });
        start += len;
    }
    extents.back(void, len);
}

#[derive(Debug, Clone)]
enum Op {
    Alloc(u32),
    Free(usize),
    Close,
    Trim,
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![4 => 1u32..64, 3 => 64..4096u32, 4 => 4096..40_000u32, 1 => 40_000..200_000u32];
    prop_oneof![6 => len.prop_map(Op::Alloc), 5 => any::<usize>().prop_map(Op::Free), 1 => Just(Op::Close), 1 => Just(Op::Trim)]
}

/// What a manager does around the policy, with a map of who owns which grains as the oracle.
struct Shadow {
    extents: Extents,
    heaps: Heaps,
    live: Vec<Live>,
    owned: BTreeMap<u32, u32>,
}

struct Live {
    slot: Slot,
    bytes: u64,
    runs: Vec<(u32, u32)>,
}

impl Shadow {
    fn claim(&mut self, slot: Slot, bytes: u64, runs: Vec<(u32, u32)>) {
        for &(start, len) in &runs {
            let end = start + len;
            let clear = self.owned.range(..end).next_back().is_none_or(|(&s, &l)| s + l <= start);
            assert!(clear, "{start}+{len} is in use already");
            let backed = self.heaps.within(start, end).map(|h| h.end().min(end) - h.start.max(start));
            assert_eq!(backed.sum::<u32>(), len, "{start}+{len} is backed");
            self.owned.insert(start, len);
        }
        self.live.push(Live { slot, bytes, runs });
    }

    fn alloc(&mut self, bytes: u64) {
        let len = grains(bytes) as u32;
        if let Some(place) = self.extents.alloc(bytes) {
            return self.claim(place.slot, bytes, vec![(place.start, len)]);
        }
        match compose(&self.extents, &self.heaps, len) {
            Ok(pieces) => {
                check_pieces(&pieces, &self.heaps, len);
                let place = self.extents.alloc_pieces(bytes, &pieces, 7);
                self.claim(place.slot, bytes, pieces.iter().map(|p| (p.start, p.len)).collect());
            }
            Err(usable) => {
                assert!(usable < len);
                let lacks = (len - usable).next_multiple_of(2 * MIB);
                if self.extents.open(lacks) < u64::from(lacks) {
                    grow(&mut self.extents, &mut self.heaps, lacks, 8 * MIB);
                }
                self.alloc(bytes);
            }
        }
    }

    fn free(&mut self, nth: usize) {
        if self.live.is_empty() {
            return;
        }
        let Live { slot, bytes, runs } = self.live.swap_remove(nth % self.live.len());
        let freed = self.extents.free(slot).unwrap();
        assert_eq!(freed.bytes, bytes);
        assert!(runs.len() == 1 || freed.tag == Some(7));
        assert_eq!(self.extents.free(slot), Err(FreeError::Twice));
        for (start, _) in runs {
            self.owned.remove(&start);
        }
    }

    fn close_all(&mut self) {
        for run in self.extents.free_runs(1) {
            let inside = |h: &Heap| h.start >= run.start && h.end() <= run.end();
            let whole: Vec<Heap> = self.heaps.within(run.start, run.end()).filter(inside).collect();
            let mut rest = Some(run);
            for heap in whole.into_iter().rev() {
                rest = self.extents.close(rest.unwrap(), &heap);
                self.extents.check_invariants();
            }
        }
    }

    fn trim(&mut self) {
        self.close_all();
        for (start, len) in self.extents.closed_for(0) {
            let heap = self.heaps.remove(start).unwrap();
            assert_eq!(heap.len, len);
            self.extents.unback(&heap, false);
            self.extents.check_invariants();
        }
    }
}

fn run(ops: &[Op], cut: Cut) {
    let (extents, heaps) = space(64 * MIB, 8 * MIB, cut);
    let mut shadow = Shadow { extents, heaps, live: Vec::new(), owned: BTreeMap::new() };
    for op in ops {
        match *op {
            Op::Alloc(len) => shadow.alloc(u64::from(len) * crate::GRAIN - u64::from(len) % crate::GRAIN),
            Op::Free(nth) => shadow.free(nth),
            Op::Close => shadow.close_all(),
            Op::Trim => shadow.trim(),
        }
        shadow.extents.check_invariants();
    }
    while !shadow.live.is_empty() {
        shadow.free(0);
    }
    shadow.extents.check_invariants();
    let held: u64 = shadow.heaps.within(0, 1 << 28).map(|h| u64::from(h.len)).sum();
    assert_eq!(shadow.extents.free_grains(), held, "nothing is lost");
}

/// Inner pieces are whole tiles, the first ends and the last begins with one, and none overlap.
fn check_pieces(pieces: &[crate::Piece], heaps: &Heaps, len: u32) {
    assert_eq!(pieces.iter().map(|p| p.len).sum::<u32>(), len);
    for (i, piece) in pieces.iter().enumerate() {
        let end = piece.start + piece.len;
        assert!(piece.len > 0);
        assert!(
            i == 0 || heaps.floor(piece.start) == piece.start,
            "piece {i} of {pieces:?} begins with a tile"
        );
        assert!(i + 1 == pieces.len() || heaps.ceil(end) == end, "piece {i} of {pieces:?} ends with a tile");
    }
}

proptest! {
    #[test]
    fn blocks_never_overlap_over_whole_heaps(ops in prop::collection::vec(op(), 1..250)) {
        run(&ops, Cut::Heaps);
    }

    #[test]
    fn blocks_never_overlap_over_tiles(ops in prop::collection::vec(op(), 1..250)) {
        run(&ops, Cut::Tiles(128));
    }
}

#[test]
fn long_lived_blocks_go_low_and_transient_ones_high() {
    let (mut extents, _) = space(256 * MIB, 64 * MIB, Cut::Heaps);
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
fn a_node_out_of_generations_names_no_further_block() {
    let (mut extents, _) = space(4 * MIB, 4 * MIB, Cut::Heaps);
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
fn strangers_are_told_from_the_freed() {
    let (mut extents, _) = space(4 * MIB, 4 * MIB, Cut::Heaps);
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

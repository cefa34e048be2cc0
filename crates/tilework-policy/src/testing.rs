//! The policy under any sequence of operations, with a map of who owns which grains as the oracle: what its
//! property tests and fuzzing share (feature `testing`).

use std::collections::BTreeMap;

use crate::{Cut, Extents, FreeError, Heap, Heaps, Piece, Serial, Slot, compose, grains};

/// The region that everything happens in, grains.
const REGION: u32 = 1 << 28;

/// Heaps are multiples of this, grains (2 MiB).
const HEAP: u32 = 4096;

/// Requests that need more heaps than this, all in all, are not served, so that any sequence ends soon.
const MOST: u32 = 1 << 22;

const TAG: u32 = 7;

/// One operation. Every sequence of them makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Request `bytes`, at least one.
    Alloc {
        /// Bytes to ask for.
        bytes: u64,
    },
    /// Free a live block: number `nth` modulo how many there are.
    Free {
        /// Which.
        nth: usize,
    },
    /// One execution has ended.
    EndOfExecution,
    /// Close every heap that is free from end to end.
    Close,
    /// Open closed heaps.
    Open {
        /// At least so many grains of them.
        len: u32,
    },
    /// Open a closed heap.
    OpenFitting {
        /// Of at least so many grains.
        len: u32,
    },
    /// Close what can be and give every closed heap back.
    Release {
        /// Bit `n % 8` of it: the device does not let go of heap number `n`.
        lost: u8,
    },
    /// The device lets go of everything.
    Regain,
}

/// Runs operations and checks everything after each; frees all in the end, and nothing may be left.
pub fn run(cut: Cut, ops: impl IntoIterator<Item = Op>) {
    let mut shadow = Shadow::new(cut);
    for op in ops {
        shadow.step(op);
        shadow.check();
    }
    while !shadow.live.is_empty() {
        shadow.free(0);
    }
    shadow.check();
    shadow.release(0);
    shadow.regain();
    shadow.check();
    assert!(shadow.extents.is_void(0, REGION), "something is left in home space");
}

/// What a manager does around the policy, and who owns what.
struct Shadow {
    extents: Extents,
    heaps: Heaps,
    /// Heaps made so far.
    made: u64,
    live: Vec<Live>,
    /// Position to length.
    owned: BTreeMap<u32, u32>,
}

struct Live {
    slot: Slot,
    bytes: u64,
    runs: Vec<(u32, u32)>,
}

impl Shadow {
    fn new(cut: Cut) -> Shadow {
        let mut extents = Extents::new();
        assert_eq!(extents.add_region(REGION), Some(0));
        Shadow { extents, heaps: Heaps::new(cut), made: 0, live: Vec::new(), owned: BTreeMap::new() }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Alloc { bytes } => self.alloc(bytes),
            Op::Free { .. } if self.live.is_empty() => {}
            Op::Free { nth } => self.free(nth),
            Op::EndOfExecution => self.extents.end_of_execution(),
            Op::Close => self.close(),
            Op::Open { len } => drop(self.extents.open(len)),
            Op::OpenFitting { len } => drop(self.extents.open_fitting(len)),
            Op::Release { lost } => self.release(lost),
            Op::Regain => self.regain(),
        }
    }

    fn alloc(&mut self, bytes: u64) {
        let len = grains(bytes) as u32;
        loop {
            if let Some(place) = self.extents.alloc(bytes) {
                return self.claim(place.slot, bytes, vec![(place.start, len)]);
            }
            let lacks = match compose(&self.extents, &self.heaps, len, HEAP) {
                Ok(pieces) => {
                    check_pieces(&pieces, &self.heaps, len);
                    let place = self.extents.alloc_pieces(bytes, &pieces, TAG);
                    let runs = pieces.iter().map(|piece| (piece.start, piece.len)).collect();
                    return self.claim(place.slot, bytes, runs);
                }
                Err(usable) => {
                    assert!(usable < len);
                    len - usable
                }
            };
            if self.extents.open(lacks) == 0 && !self.grow(lacks) {
                return;
            }
        }
    }

    /// Makes heaps of several lengths, `len` grains together; false when there are too many already.
    fn grow(&mut self, len: u32) -> bool {
        let len = len.next_multiple_of(HEAP);
        if self.backed() + len > MOST {
            return false;
        }
        let void = self.extents.find_void(len).expect("home space");
        let (mut start, end) = (void.start, void.start + len);
        while start < end {
            let len = (HEAP << (self.made % 4)).min(end - start);
            self.heaps.insert(Heap {
                start,
                len,
                id: self.made,
                serial: Serial { growth: self.made, part: 0 },
            });
            self.made += 1;
            start += len;
        }
        self.extents.back(void, len);
        true
    }

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

    fn free(&mut self, nth: usize) {
        let Live { slot, bytes, runs } = self.live.swap_remove(nth % self.live.len());
        let freed = self.extents.free(slot).expect("a live block");
        assert_eq!(freed.bytes, bytes);
        assert!(runs.len() == 1 || freed.tag == Some(TAG));
        assert_eq!(self.extents.free(slot), Err(FreeError::Twice));
        for (start, _) in runs {
            self.owned.remove(&start);
        }
    }

    fn close(&mut self) {
        for run in self.extents.free_runs(1) {
            let inside = |heap: &Heap| heap.start >= run.start && heap.end() <= run.end();
            let whole: Vec<Heap> = self.heaps.within(run.start, run.end()).filter(inside).collect();
            let mut rest = Some(run);
            for heap in whole.into_iter().rev() {
                rest = self.extents.close(rest.expect("the heap lies in what is left of the run"), &heap);
                self.extents.check_invariants();
            }
        }
    }

    fn release(&mut self, lost: u8) {
        self.close();
        for (n, (start, len)) in self.extents.closed_for(0).into_iter().enumerate() {
            let heap = self.heaps.remove(start).expect("a closed heap is held");
            assert_eq!(heap.len, len);
            self.extents.unback(&heap, lost >> (n % 8) & 1 == 1);
            self.extents.check_invariants();
        }
    }

    fn regain(&mut self) {
        for start in self.extents.lost() {
            self.extents.regain(start);
        }
    }

    fn backed(&self) -> u32 {
        self.heaps.within(0, REGION).map(|heap| heap.len).sum()
    }

    fn check(&self) {
        self.extents.check_invariants();
        let owned: u32 = self.owned.values().sum();
        assert_eq!(self.extents.free_grains(), u64::from(self.backed() - owned), "grains that nobody owns");
        assert_eq!(self.extents.blocks(), self.live.len() as u64);
    }
}

/// Inner pieces are whole tiles, the first ends and the last begins with one.
fn check_pieces(pieces: &[Piece], heaps: &Heaps, len: u32) {
    assert_eq!(pieces.iter().map(|p| p.len).sum::<u32>(), len);
    for (i, piece) in pieces.iter().enumerate() {
        let end = piece.start + piece.len;
        assert!(piece.len > 0);
        let begins = i == 0 || heaps.floor(piece.start) == piece.start;
        assert!(begins, "piece {i} of {pieces:?} begins with a tile");
        assert!(i + 1 == pieces.len() || heaps.ceil(end) == end, "piece {i} of {pieces:?} ends with a tile");
    }
}

//! Random calls against a shadow so naive that it is plainly right: a cell for every tile.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::Open;
use crate::device::{Bind, Caps, Device, DeviceError, HeapId, RangeId};

/// One random call. Lengths and offsets are in tiles.
#[derive(Debug, Clone)]
enum Step {
    Reserve(u64),
    Unreserve(Index),
    Create(u64),
    Release(Index),
    Map { range: Index, at: u64, pieces: Vec<Part> },
    Unmap { range: Index, at: u64, tiles: u64 },
    Access { range: Index, at: u64, tiles: u64 },
    Write { range: Index, at: u64, tiles: u64, stamp: u8 },
}

/// A part of a heap to map; the whole heap where that is all the device can do, unless `odd`.
#[derive(Debug, Clone)]
struct Part {
    heap: Index,
    from: u64,
    tiles: u64,
    odd: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<Index>;
    let part = (index(), 0..3u64, 1..4u64, prop::bool::weighted(0.1))
        .prop_map(|(heap, from, tiles, odd)| Part { heap, from, tiles, odd });
    let step = prop_oneof![
        2 => (1..7u64).prop_map(Step::Reserve),
        1 => index().prop_map(Step::Unreserve),
        3 => (1..4u64).prop_map(Step::Create),
        2 => index().prop_map(Step::Release),
        6 => (index(), 0..6u64, prop::collection::vec(part, 1..4))
            .prop_map(|(range, at, pieces)| Step::Map { range, at, pieces }),
        3 => (index(), 0..6u64, 1..5u64).prop_map(|(range, at, tiles)| Step::Unmap { range, at, tiles }),
        2 => (index(), 0..6u64, 1..5u64).prop_map(|(range, at, tiles)| Step::Access { range, at, tiles }),
        2 => (index(), 0..6u64, 1..4u64, 1..=u8::MAX)
            .prop_map(|(range, at, tiles, stamp)| Step::Write { range, at, tiles, stamp }),
    ];
    prop::collection::vec(step, 1..60)
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    heap: HeapId,
    tile: usize,
    /// Which bind it came with: cells of one piece share it.
    piece: u64,
    usable: bool,
}

#[derive(Debug)]
struct Space {
    address: u64,
    cells: Vec<Option<Cell>>,
}

#[derive(Debug)]
struct Shadow {
    caps: Caps,
    ranges: BTreeMap<RangeId, Space>,
    /// What each tile of a heap is filled with.
    heaps: BTreeMap<HeapId, Vec<u8>>,
    /// The latest of the dead, so that calls on them are tried too.
    dead_range: Option<RangeId>,
    dead_heap: Option<HeapId>,
    pieces: u64,
}

impl Shadow {
    fn range(&self, index: &Index) -> Option<RangeId> {
        let ids: Vec<_> = self.ranges.keys().copied().chain(self.dead_range).collect();
        (!ids.is_empty()).then(|| *index.get(&ids))
    }

    fn heap(&self, index: &Index) -> Option<HeapId> {
        let ids: Vec<_> = self.heaps.keys().copied().chain(self.dead_heap).collect();
        (!ids.is_empty()).then(|| *index.get(&ids))
    }

    fn held_tiles(&self) -> u64 {
        self.heaps.values().map(|tiles| tiles.len() as u64).sum()
    }

    fn mapped(&self, heap: HeapId) -> bool {
        self.ranges.values().any(|space| space.cells.iter().flatten().any(|cell| cell.heap == heap))
    }

    fn can_create(&self, tiles: u64) -> bool {
        self.caps.capacity_bytes.is_none_or(|most| (self.held_tiles() + tiles) * self.caps.tile_bytes <= most)
    }

    fn can_unreserve(&self, range: RangeId) -> bool {
        self.ranges.get(&range).is_some_and(|space| space.cells.iter().all(Option::is_none))
    }

    fn can_release(&self, heap: HeapId) -> bool {
        self.heaps.contains_key(&heap) && !self.mapped(heap)
    }

    fn binds(&self, at: u64, pieces: &[Part]) -> Option<Vec<Bind>> {
        let tile = self.caps.tile_bytes;
        let mut next = if self.caps.tiling { at } else { 0 };
        let mut binds = Vec::new();
        for part in pieces {
            let heap = self.heap(&part.heap)?;
            let (from, tiles) = match self.heaps.get(&heap) {
                Some(all) if !self.caps.partial_maps && !part.odd => (0, all.len() as u64),
                _ => (part.from, part.tiles),
            };
            binds.push(Bind {
                range_offset: next * tile,
                heap,
                heap_offset: from * tile,
                bytes: tiles * tile,
            });
            // An odd part leaves the next one lying over it.
            next += if part.odd { 0 } else { tiles };
        }
        Some(binds)
    }

    /// The cells after the map, if it is allowed.
    fn mapping(&self, range: RangeId, binds: &[Bind]) -> Option<Vec<Option<Cell>>> {
        let mut cells = self.ranges.get(&range)?.cells.clone();
        for (which, bind) in binds.iter().enumerate() {
            let heap = self.heaps.get(&bind.heap)?;
            let [at, from, tiles] = [bind.range_offset, bind.heap_offset, bind.bytes]
                .map(|bytes| (bytes / self.caps.tile_bytes) as usize);
            if !self.caps.partial_maps && tiles != heap.len() {
                return None;
            }
            let again = self.mapped(bind.heap) || binds[..which].iter().any(|b| b.heap == bind.heap);
            if !self.caps.tiling && (tiles != cells.len() || again) {
                return None;
            }
            let piece = self.pieces + which as u64;
            for i in 0..tiles {
                heap.get(from + i)?;
                let cell = cells.get_mut(at + i)?;
                if cell.is_some() {
                    return None;
                }
                let usable = !self.caps.needs_access;
                *cell = Some(Cell { heap: bind.heap, tile: from + i, piece, usable });
            }
        }
        Some(cells)
    }

    /// Whether the part is mapped throughout and cuts no piece.
    fn whole(&self, range: RangeId, at: u64, tiles: u64) -> bool {
        let Some(space) = self.ranges.get(&range) else { return false };
        let piece = |tile: usize| space.cells.get(tile).copied().flatten().map(|cell| cell.piece);
        let (first, end) = (at as usize, (at + tiles) as usize);
        (first..end).all(|tile| piece(tile).is_some())
            && (first == 0 || piece(first - 1) != piece(first))
            && piece(end) != piece(end - 1)
    }

    fn usable(&self, range: RangeId, at: u64, tiles: u64) -> bool {
        let Some(space) = self.ranges.get(&range) else { return false };
        (at..at + tiles)
            .all(|tile| space.cells.get(tile as usize).copied().flatten().is_some_and(|c| c.usable))
    }
}

struct Pair<'a> {
    device: &'a mut dyn Device,
    shadow: Shadow,
    enforcing: bool,
    held_before: u64,
}

impl Pair<'_> {
    /// Whether the device's answer is the shadow's.
    fn agree<T>(result: &Result<T, DeviceError>, allowed: bool) -> Result<(), TestCaseError> {
        match result {
            Ok(_) => prop_assert!(allowed, "the device took what breaks a rule"),
            Err(error) => prop_assert!(!allowed, "the device refused what is within the rules: {}", error),
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let tile = self.shadow.caps.tile_bytes;
        let shadow = &mut self.shadow;
        match *step {
            Step::Reserve(tiles) => {
                let range = self.device.reserve(tiles * tile);
                Self::agree(&range, true)?;
                if let Ok(range) = range {
                    let space = Space { address: range.address, cells: vec![None; tiles as usize] };
                    prop_assert!(shadow.ranges.insert(range.id, space).is_none());
                }
            }
            Step::Unreserve(ref index) => {
                let Some(range) = shadow.range(index) else { return Ok(()) };
                let allowed = shadow.can_unreserve(range);
                if !allowed && !self.enforcing {
                    return Ok(());
                }
                Self::agree(&self.device.unreserve(range), allowed)?;
                if allowed {
                    shadow.ranges.remove(&range);
                    shadow.dead_range = Some(range);
                }
            }
            Step::Create(tiles) => {
                // Real devices may be small: stay within what the module's doc promises.
                if shadow.held_tiles() + tiles > 16 {
                    return Ok(());
                }
                let heap = self.device.create(tiles * tile);
                Self::agree(&heap, shadow.can_create(tiles))?;
                if let Ok(heap) = heap {
                    prop_assert!(shadow.heaps.insert(heap, vec![0; tiles as usize]).is_none());
                }
            }
            Step::Release(ref index) => {
                let Some(heap) = shadow.heap(index) else { return Ok(()) };
                let allowed = shadow.can_release(heap);
                if !allowed && !self.enforcing {
                    return Ok(());
                }
                Self::agree(&self.device.release(heap), allowed)?;
                if allowed {
                    shadow.heaps.remove(&heap);
                    shadow.dead_heap = Some(heap);
                }
            }
            Step::Map { ref range, at, ref pieces } => {
                let Some(range) = shadow.range(range) else { return Ok(()) };
                let Some(binds) = shadow.binds(at, pieces) else { return Ok(()) };
                let cells = shadow.mapping(range, &binds);
                if cells.is_none() && !self.enforcing {
                    return Ok(());
                }
                Self::agree(&self.device.map(range, &binds), cells.is_some())?;
                if let (Some(cells), Some(space)) = (cells, shadow.ranges.get_mut(&range)) {
                    space.cells = cells;
                    shadow.pieces += binds.len() as u64;
                }
            }
            Step::Unmap { ref range, at, tiles } => {
                let Some(range) = shadow.range(range) else { return Ok(()) };
                let allowed = shadow.whole(range, at, tiles);
                if !allowed && !self.enforcing {
                    return Ok(());
                }
                Self::agree(&self.device.unmap(range, at * tile, tiles * tile), allowed)?;
                if allowed && let Some(space) = shadow.ranges.get_mut(&range) {
                    space.cells[at as usize..(at + tiles) as usize].fill(None);
                }
            }
            Step::Access { ref range, at, tiles } => {
                let Some(range) = shadow.range(range) else { return Ok(()) };
                let allowed = shadow.caps.needs_access && shadow.whole(range, at, tiles);
                if !allowed && (!self.enforcing || !shadow.caps.needs_access) {
                    return Ok(());
                }
                Self::agree(&self.device.set_access(range, at * tile, tiles * tile), allowed)?;
                if allowed && let Some(space) = shadow.ranges.get_mut(&range) {
                    let part = &mut space.cells[at as usize..(at + tiles) as usize];
                    part.iter_mut().flatten().for_each(|cell| cell.usable = true);
                }
            }
            Step::Write { ref range, at, tiles, stamp } => {
                let Some(range) = shadow.range(range) else { return Ok(()) };
                let Some(space) = shadow.ranges.get(&range) else { return Ok(()) };
                let allowed = shadow.usable(range, at, tiles);
                // Beyond the end another range may lie; across it none does.
                let starts_outside = at as usize >= space.cells.len();
                if starts_outside || (!allowed && !self.enforcing) {
                    return Ok(());
                }
                // Zeros that nobody reads cost no memory.
                let fill = if shadow.caps.memory { stamp } else { 0 };
                let bytes = vec![fill; (tiles * tile) as usize];
                Self::agree(&self.device.write(space.address + at * tile, &bytes), allowed)?;
                if allowed {
                    for cell in space.cells[at as usize..(at + tiles) as usize].iter().flatten() {
                        shadow.heaps.get_mut(&cell.heap).expect("mapped heaps live")[cell.tile] = fill;
                    }
                }
            }
        }
        Ok(())
    }

    /// Every tile has the contents the shadow expects, and what is held covers the heaps.
    fn compare(&self) -> Result<(), TestCaseError> {
        let tile = self.shadow.caps.tile_bytes;
        let held = self.device.held_bytes().map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert!(held - self.held_before >= self.shadow.held_tiles() * tile);
        for space in self.shadow.ranges.values() {
            for (at, cell) in space.cells.iter().enumerate() {
                let first = space.address + at as u64 * tile;
                let stamp =
                    cell.filter(|cell| cell.usable).map(|cell| self.shadow.heaps[&cell.heap][cell.tile]);
                for address in [first, first + tile - 8] {
                    let mut found = [0; 8];
                    let read = self.device.read(address, &mut found);
                    match stamp {
                        None if !self.enforcing => {}
                        None => prop_assert!(read.is_err(), "{:#x} can be read but is not usable", address),
                        Some(_) if read.is_err() => prop_assert!(false, "{:#x} cannot be read", address),
                        Some(stamp) if self.shadow.caps.memory => {
                            prop_assert_eq!(found, [stamp; 8], "at {:#x}", address);
                        }
                        Some(_) => {}
                    }
                }
            }
        }
        Ok(())
    }
}

/// Random calls, right and wrong ones, answered as a naive shadow answers them, with the contents the
/// shadow expects after each. A device that is not `enforcing` gets only calls within the rules.
///
/// # Panics
/// When device and shadow differ; the message has the shortest sequence of calls found that shows it.
pub fn random_calls_match_a_shadow(open: Open, enforcing: bool) {
    let config = Config { failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&steps(), |steps| {
        let mut device = open();
        let caps = device.caps().clone();
        let held_before = device.held_bytes().map_err(|error| TestCaseError::fail(error.to_string()))?;
        let shadow = Shadow {
            caps,
            ranges: BTreeMap::new(),
            heaps: BTreeMap::new(),
            dead_range: None,
            dead_heap: None,
            pieces: 0,
        };
        let mut pair = Pair { device: &mut device, shadow, enforcing, held_before };
        for step in &steps {
            pair.step(step)?;
            pair.compare()?;
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

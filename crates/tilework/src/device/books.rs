//! What every device must know to enforce its rules: ranges, heaps, and what is mapped where.
//!
//! A device asks its books before it calls its driver and tells them afterwards. Each rule of the
//! [`Device`](super::Device) contract has its one home here, and breaking it is a
//! [`DeviceError::Violation`] that names the rule and the figures. What the rules are follows from
//! [`Caps`].
//!
//! ```text
//!   range 7    ├── piece ──┼─ piece ─┼ (unmapped) ┼─ piece ─┤     ordered by offset
//!                   │          │                      │
//!                   ▼          ▼                      ▼
//!   heaps        heap 3      heap 4                 heap 3         each counts its pieces
//! ```
//!
//! Every operation costs O(log n) per piece it names, n being the pieces of the range.
//!
//! # How a device uses them
//!
//! * Where the driver can refuse: `check_reserve`, driver, [`reserve`](Books::reserve), and likewise for
//!   create, unreserve, release. The second step repeats the check, so it cannot be forgotten.
//! * Mapping is the other way round, since a call may overlap itself: [`map`](Books::map), driver, and
//!   [`undo_map`](Books::undo_map) when the driver refused.
//! * Unmapping: [`pieces`](Books::pieces), driver, [`unmap`](Books::unmap).

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::{Bind, Call, Caps, DeviceError, HeapId, Range, RangeId};
use crate::units::exact;

/// One piece of a heap as it was mapped; its offset in the range is its key.
#[derive(Debug, Clone, Copy)]
struct Piece {
    heap: HeapId,
    heap_offset: u64,
    bytes: u64,
    /// True iff `set_access` has covered it since it was mapped, or the device needs none.
    usable: bool,
}

impl Piece {
    fn at(&self, range_offset: u64) -> Bind {
        Bind { range_offset, heap: self.heap, heap_offset: self.heap_offset, bytes: self.bytes }
    }
}

#[derive(Debug)]
struct Space {
    range: Range,
    /// Disjoint, keyed by offset in the range.
    pieces: BTreeMap<u64, Piece>,
}

#[derive(Debug)]
struct Heap {
    bytes: u64,
    /// Pieces of it that are mapped, in any range.
    mapped: u64,
    /// True iff it lies on the host.
    on_host: bool,
}

/// The books of one device.
#[derive(Debug)]
pub struct Books {
    caps: Caps,
    ranges: FxHashMap<RangeId, Space>,
    /// First address of each range.
    by_address: BTreeMap<u64, RangeId>,
    heaps: FxHashMap<HeapId, Heap>,
    next_range: u64,
    next_heap: u64,
    /// The sum of the heaps on the device.
    held: u64,
    /// The sum of the heaps on the host.
    held_on_host: u64,
}

impl Books {
    /// Empty books for a device that can do what `caps` says.
    ///
    /// # Panics
    /// When `caps.tile_bytes` is not a power of two.
    pub fn new(caps: Caps) -> Books {
        assert!(caps.tile_bytes.is_power_of_two(), "a tile is a power of two, not {}", caps.tile_bytes);
        Books {
            caps,
            ranges: FxHashMap::default(),
            by_address: BTreeMap::new(),
            heaps: FxHashMap::default(),
            next_range: 0,
            next_heap: 0,
            held: 0,
            held_on_host: 0,
        }
    }

    /// What the device can do.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Physical memory held, bytes: the sum of all heaps but those on the host.
    pub fn held_bytes(&self) -> u64 {
        self.held
    }

    /// Physical memory held on the host, bytes.
    pub fn host_bytes(&self) -> u64 {
        self.held_on_host
    }

    /// Every range there is, in no particular order.
    pub fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.ranges.values().map(|space| space.range)
    }

    /// The range called `id`.
    ///
    /// # Errors
    /// When no such range is reserved; `call` is named in the error.
    pub fn range(&self, call: Call, id: RangeId) -> Result<Range, DeviceError> {
        self.space(call, id).map(|space| space.range)
    }

    /// The length of `heap`, bytes.
    ///
    /// # Errors
    /// When no such heap exists; `call` is named in the error.
    pub fn heap_bytes(&self, call: Call, heap: HeapId) -> Result<u64, DeviceError> {
        self.heap(call, heap).map(|heap| heap.bytes)
    }

    /// Whether `bytes` of address space may be reserved.
    ///
    /// # Errors
    /// When `bytes` is zero, misaligned, or more than [`Caps::max_range_bytes`].
    pub fn check_reserve(&self, bytes: u64) -> Result<(), DeviceError> {
        self.check_length(Call::Reserve, "length of a range", bytes)?;
        if bytes > self.caps.max_range_bytes {
            let reason = format!(
                "{} in one range exceed the {} possible",
                exact(bytes),
                exact(self.caps.max_range_bytes)
            );
            return Err(DeviceError::Failed { call: Call::Reserve, reason });
        }
        Ok(())
    }

    /// Records a range of `bytes` at `address`.
    ///
    /// # Errors
    /// As [`check_reserve`](Books::check_reserve).
    ///
    /// # Panics
    /// When the device put it across the end of the address space or over another range.
    pub fn reserve(&mut self, address: u64, bytes: u64) -> Result<Range, DeviceError> {
        self.check_reserve(bytes)?;
        let end = address.checked_add(bytes).expect("a range ends within the address space");
        if let Some((&before, id)) = self.by_address.range(..end).next_back() {
            let before_end = before + self.ranges[id].range.bytes;
            assert!(before_end <= address, "a range at {address:#x} lies over the one at {before:#x}");
        }
        let range = Range { id: RangeId(self.next_range), address, bytes };
        self.next_range += 1;
        self.by_address.insert(address, range.id);
        self.ranges.insert(range.id, Space { range, pieces: BTreeMap::new() });
        Ok(range)
    }

    /// Whether `range` may be given back; the range itself when it may.
    ///
    /// # Errors
    /// When it is not reserved, or a part of it is still mapped.
    pub fn check_unreserve(&self, range: RangeId) -> Result<Range, DeviceError> {
        let space = self.space(Call::Unreserve, range)?;
        if let Some((offset, piece)) = space.pieces.first_key_value() {
            return Err(violation(
                Call::Unreserve,
                format!(
                    "range {} has {} mapped pieces, the first being heap {} at {offset}",
                    range.0,
                    space.pieces.len(),
                    piece.heap.0
                ),
            ));
        }
        Ok(space.range)
    }

    /// Records that `range` was given back.
    ///
    /// # Errors
    /// As [`check_unreserve`](Books::check_unreserve).
    pub fn unreserve(&mut self, range: RangeId) -> Result<Range, DeviceError> {
        let gone = self.check_unreserve(range)?;
        self.by_address.remove(&gone.address);
        self.ranges.remove(&range);
        Ok(gone)
    }

    /// Whether a heap of `bytes` may be created.
    ///
    /// # Errors
    /// When `bytes` is zero or misaligned; [`DeviceError::OutOfMemory`] when it would exceed
    /// [`Caps::capacity_bytes`].
    pub fn check_create(&self, bytes: u64) -> Result<(), DeviceError> {
        self.check_length(Call::Create, "length of a heap", bytes)?;
        let left = self.caps.capacity_bytes.unwrap_or(u64::MAX) - self.held;
        if bytes > left {
            return Err(DeviceError::OutOfMemory { bytes });
        }
        Ok(())
    }

    /// Records a heap of `bytes`.
    ///
    /// # Errors
    /// As [`check_create`](Books::check_create).
    pub fn create(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        self.check_create(bytes)?;
        self.held += bytes;
        Ok(self.insert_heap(bytes, false))
    }

    /// Whether a heap of `bytes` may be created on the host.
    ///
    /// # Errors
    /// When the device has no such heaps, or `bytes` is zero or misaligned.
    pub fn check_create_on_host(&self, bytes: u64) -> Result<(), DeviceError> {
        if !self.caps.host_heaps {
            return Err(no_host_heaps());
        }
        self.check_length(Call::Create, "length of a heap", bytes)?;
        self.held_on_host.checked_add(bytes).map(drop).ok_or(DeviceError::OutOfMemory { bytes })
    }

    /// Records a heap of `bytes` on the host.
    ///
    /// # Errors
    /// As [`check_create_on_host`](Books::check_create_on_host).
    pub fn create_on_host(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        self.check_create_on_host(bytes)?;
        self.held_on_host += bytes;
        Ok(self.insert_heap(bytes, true))
    }

    /// Whether `heap` may be released; its length, bytes, when it may.
    ///
    /// # Errors
    /// When there is no such heap, or a piece of it is still mapped.
    pub fn check_release(&self, heap: HeapId) -> Result<u64, DeviceError> {
        let found = self.heap(Call::Release, heap)?;
        if found.mapped > 0 {
            return Err(violation(
                Call::Release,
                format!("heap {} is still mapped in {} places", heap.0, found.mapped),
            ));
        }
        Ok(found.bytes)
    }

    /// Records that `heap` was released. Returns its length, bytes.
    ///
    /// # Errors
    /// As [`check_release`](Books::check_release).
    pub fn release(&mut self, heap: HeapId) -> Result<u64, DeviceError> {
        let bytes = self.check_release(heap)?;
        let on_host = self.heaps.remove(&heap).is_some_and(|heap| heap.on_host);
        *(if on_host { &mut self.held_on_host } else { &mut self.held }) -= bytes;
        Ok(bytes)
    }

    /// Records the mapping of `binds` into `range`. Returns the range.
    ///
    /// # Errors
    /// When a bind is misaligned, names an unknown heap, reaches beyond its range or heap, lies over
    /// a mapped part or another bind of the call, or maps a heap in a way that [`Caps`] excludes. Then
    /// nothing is recorded.
    pub fn map(&mut self, range: RangeId, binds: &[Bind]) -> Result<Range, DeviceError> {
        let mapped = self.space(Call::Map, range)?.range;
        for (done, bind) in binds.iter().enumerate() {
            if let Err(refused) = self.map_piece(range, bind) {
                self.undo_map(range, &binds[..done]);
                return Err(refused);
            }
        }
        Ok(mapped)
    }

    /// Takes back a [`map`](Books::map) that the driver refused.
    ///
    /// # Panics
    /// When these very binds are not recorded.
    pub fn undo_map(&mut self, range: RangeId, binds: &[Bind]) {
        for bind in binds {
            self.remove_piece(range, bind);
        }
    }

    /// The pieces that make up `bytes` from `offset` of a range, in order.
    ///
    /// # Errors
    /// When the part is empty or misaligned, reaches beyond the range, cuts a piece, or has an unmapped
    /// hole; `call` is named in the error.
    pub fn pieces(
        &self,
        call: Call,
        range: RangeId,
        offset: u64,
        bytes: u64,
    ) -> Result<Vec<Bind>, DeviceError> {
        let space = self.space(call, range)?;
        self.check_aligned(call, "offset in the range", offset)?;
        self.check_length(call, "length of the part", bytes)?;
        let end = space.end_of(call, offset, bytes)?;
        if let Some((&at, piece)) = space.pieces.range(..offset).next_back()
            && at + piece.bytes > offset
        {
            return Err(cut(call, range, offset, at, piece));
        }
        let mut found = Vec::new();
        let mut next = offset;
        for (&at, piece) in space.pieces.range(offset..end) {
            if at > next {
                break;
            }
            next = at + piece.bytes;
            if next > end {
                return Err(cut(call, range, end, at, piece));
            }
            found.push(piece.at(at));
        }
        if next < end {
            return Err(violation(call, format!("range {} is not mapped at {next}", range.0)));
        }
        Ok(found)
    }

    /// Every piece of `range` that is mapped, in order. None when there is no such range.
    pub fn all_pieces(&self, range: RangeId) -> impl Iterator<Item = Bind> + '_ {
        let pieces = self.ranges.get(&range).map(|space| space.pieces.iter());
        pieces.into_iter().flatten().map(|(&at, piece)| piece.at(at))
    }

    /// Records that `bytes` from `offset` of `range` were unmapped. Returns the pieces that were there.
    ///
    /// # Errors
    /// As [`pieces`](Books::pieces).
    pub fn unmap(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<Vec<Bind>, DeviceError> {
        let pieces = self.pieces(Call::Unmap, range, offset, bytes)?;
        for piece in &pieces {
            self.remove_piece(range, piece);
        }
        Ok(pieces)
    }

    /// Records that `bytes` from `offset` of `range` were made usable. Returns the pieces there.
    ///
    /// # Errors
    /// As [`pieces`](Books::pieces), and when the device needs no such call.
    pub fn set_access(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<Vec<Bind>, DeviceError> {
        if !self.caps.needs_access {
            return Err(violation(Call::SetAccess, "this device needs no set_access".into()));
        }
        let pieces = self.pieces(Call::SetAccess, range, offset, bytes)?;
        let space = self.ranges.get_mut(&range).expect("the pieces were found in it");
        for (_, piece) in space.pieces.range_mut(offset..offset + bytes) {
            piece.usable = true;
        }
        Ok(pieces)
    }

    /// Whether `bytes` from `address` may be read or written. No bytes may be, anywhere.
    ///
    /// # Errors
    /// When they do not lie in one range, are not mapped throughout, or are without access; `call` is
    /// named in the error.
    pub fn check_use(&self, call: Call, address: u64, bytes: u64) -> Result<(), DeviceError> {
        if bytes == 0 {
            return Ok(());
        }
        let Some((&first, id)) = self.by_address.range(..=address).next_back() else {
            return Err(violation(call, format!("no range is reserved at {address:#x}")));
        };
        let space = &self.ranges[id];
        let offset = address - first;
        if offset >= space.range.bytes {
            return Err(violation(call, format!("no range is reserved at {address:#x}")));
        }
        let end = space.end_of(call, offset, bytes)?;
        // The piece that holds the first byte begins at or before it.
        let start = space.pieces.range(..=offset).next_back().map_or(offset, |(&at, _)| at);
        let mut next = start;
        for (&at, piece) in space.pieces.range(start..end) {
            if at > next {
                break;
            }
            if !piece.usable && at + piece.bytes > offset {
                return Err(violation(
                    call,
                    format!("range {} at {at} was mapped but set_access was not called", id.0),
                ));
            }
            next = at + piece.bytes;
        }
        if next < end {
            return Err(violation(call, format!("range {} is not mapped at {}", id.0, next.max(offset))));
        }
        Ok(())
    }

    /// The piece of `range` that ends at `offset`, if any. `None` when there is no such range.
    pub fn piece_before(&self, range: RangeId, offset: u64) -> Option<Bind> {
        let (&at, piece) = self.ranges.get(&range)?.pieces.range(..offset).next_back()?;
        (at + piece.bytes == offset).then(|| piece.at(at))
    }

    /// The piece of `range` that begins at `offset`, if any. `None` when there is no such range.
    pub fn piece_at(&self, range: RangeId, offset: u64) -> Option<Bind> {
        Some(self.ranges.get(&range)?.pieces.get(&offset)?.at(offset))
    }

    fn insert_heap(&mut self, bytes: u64, on_host: bool) -> HeapId {
        let heap = HeapId(self.next_heap);
        self.next_heap += 1;
        self.heaps.insert(heap, Heap { bytes, mapped: 0, on_host });
        heap
    }

    fn map_piece(&mut self, range: RangeId, bind: &Bind) -> Result<(), DeviceError> {
        const CALL: Call = Call::Map;
        self.check_aligned(CALL, "offset in the range", bind.range_offset)?;
        self.check_aligned(CALL, "offset in the heap", bind.heap_offset)?;
        self.check_length(CALL, "length of a bind", bind.bytes)?;

        let heap = self.heap(CALL, bind.heap)?;
        if bind.heap_offset.checked_add(bind.bytes).is_none_or(|end| end > heap.bytes) {
            return Err(violation(
                CALL,
                format!(
                    "{} bytes from {} reach beyond heap {} of {} bytes",
                    bind.bytes, bind.heap_offset, bind.heap.0, heap.bytes
                ),
            ));
        }
        if !self.caps.partial_maps && bind.bytes != heap.bytes {
            return Err(violation(
                CALL,
                format!(
                    "a heap maps whole or not at all: {} bytes from {} are part of heap {} of {} bytes",
                    bind.bytes, bind.heap_offset, bind.heap.0, heap.bytes
                ),
            ));
        }

        let space = self.space(CALL, range)?;
        let end = space.end_of(CALL, bind.range_offset, bind.bytes)?;
        if let Some((at, piece)) = space.pieces.range(..end).next_back()
            && at + piece.bytes > bind.range_offset
        {
            return Err(violation(
                CALL,
                format!(
                    "range {} from {} to {end} is already mapped: heap {} lies from {at} to {}",
                    range.0,
                    bind.range_offset,
                    piece.heap.0,
                    at + piece.bytes
                ),
            ));
        }

        if !self.caps.tiling {
            if bind.bytes != space.range.bytes || bind.bytes != heap.bytes {
                return Err(violation(
                    CALL,
                    format!(
                        "without tiling a heap backs a range of its own length: heap {} has {} bytes, \
                         range {} has {}",
                        bind.heap.0, heap.bytes, range.0, space.range.bytes
                    ),
                ));
            }
            if heap.mapped > 0 {
                return Err(violation(
                    CALL,
                    format!("without tiling a heap is mapped once, and heap {} is", bind.heap.0),
                ));
            }
        }

        let piece = Piece {
            heap: bind.heap,
            heap_offset: bind.heap_offset,
            bytes: bind.bytes,
            usable: !self.caps.needs_access,
        };
        self.ranges.get_mut(&range).expect("found above").pieces.insert(bind.range_offset, piece);
        self.heaps.get_mut(&bind.heap).expect("found above").mapped += 1;
        Ok(())
    }

    fn remove_piece(&mut self, range: RangeId, bind: &Bind) {
        let space = self.ranges.get_mut(&range).expect("a mapped piece lies in a range");
        let piece = space.pieces.remove(&bind.range_offset).expect("the piece is mapped");
        assert_eq!(piece.at(bind.range_offset), *bind, "the piece mapped is another one");
        self.heaps.get_mut(&bind.heap).expect("a mapped heap is not released").mapped -= 1;
    }

    fn space(&self, call: Call, id: RangeId) -> Result<&Space, DeviceError> {
        self.ranges.get(&id).ok_or_else(|| violation(call, format!("range {} is not reserved", id.0)))
    }

    fn heap(&self, call: Call, id: HeapId) -> Result<&Heap, DeviceError> {
        self.heaps.get(&id).ok_or_else(|| violation(call, format!("heap {} does not exist", id.0)))
    }

    fn check_aligned(&self, call: Call, what: &str, value: u64) -> Result<(), DeviceError> {
        if value.is_multiple_of(self.caps.tile_bytes) {
            return Ok(());
        }
        Err(violation(
            call,
            format!("the {what}, {value}, is no multiple of the tile of {} bytes", self.caps.tile_bytes),
        ))
    }

    fn check_length(&self, call: Call, what: &str, bytes: u64) -> Result<(), DeviceError> {
        if bytes == 0 {
            return Err(violation(call, format!("the {what} is zero")));
        }
        self.check_aligned(call, what, bytes)
    }
}

impl Space {
    /// Where `bytes` from `offset` end, when that is within the range.
    fn end_of(&self, call: Call, offset: u64, bytes: u64) -> Result<u64, DeviceError> {
        offset.checked_add(bytes).filter(|&end| end <= self.range.bytes).ok_or_else(|| {
            violation(
                call,
                format!(
                    "{bytes} bytes from {offset} reach beyond range {} of {} bytes",
                    self.range.id.0, self.range.bytes
                ),
            )
        })
    }
}

fn violation(call: Call, rule: String) -> DeviceError {
    DeviceError::Violation { call, rule }
}

/// The answer to [`create_on_host`](super::Device::create_on_host) where there is no such thing.
pub fn no_host_heaps() -> DeviceError {
    violation(Call::Create, "this device has no heaps on the host".into())
}

fn cut(call: Call, range: RangeId, edge: u64, at: u64, piece: &Piece) -> DeviceError {
    violation(
        call,
        format!(
            "a piece is taken whole: {edge} of range {} lies within heap {}, mapped from {at} to {}",
            range.0,
            piece.heap.0,
            at + piece.bytes
        ),
    )
}

#[cfg(test)]
mod tests;

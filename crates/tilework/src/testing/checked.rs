//! A device wrapper that knows the rules: it records every call, panics where a caller breaks the
//! contract of [`Device`], and resolves addresses to physical memory.
//!
//! It works around any device, and `null` under it is as strict as hardware.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device::forward::forward;
use crate::device::{Bind, Call, Caps, Device, DeviceError, HeapId, Range, RangeId};

/// The wrapper. Make it with [`Checked::over`].
pub struct Checked {
    inner: Box<dyn Device>,
    witness: Witness,
}

/// What a [`Checked`] device has recorded; stays readable while a manager owns the device.
#[derive(Clone, Default)]
pub struct Witness(Arc<Mutex<State>>);

/// A run of physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// In which heap.
    pub heap: HeapId,
    /// Where in it, bytes.
    pub offset: u64,
    /// How much, bytes.
    pub bytes: u64,
}

/// One call that succeeded. Ranges and heaps are numbered in the order they were made, so the logs of two
/// devices can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logged {
    /// Which call.
    pub call: Call,
    /// The number of its range; for create and release, of its heap.
    pub what: u64,
    /// Where in the range, bytes.
    pub offset: u64,
    /// How much, bytes.
    pub bytes: u64,
    /// For each piece mapped, the number of its heap and where in it, bytes.
    pub heap: Option<(u64, u64)>,
}

/// Physical memory and address space as the recorded calls leave them, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Created and not released.
    pub held: u64,
    /// The most that was ever held.
    pub peak_held: u64,
    /// Reserved and not given back.
    pub reserved: u64,
    /// Mapped and not unmapped.
    pub mapped: u64,
}

#[derive(Default)]
struct State {
    ranges: BTreeMap<RangeId, RangeState>,
    by_address: BTreeMap<u64, RangeId>,
    heaps: BTreeMap<HeapId, HeapState>,
    /// Every id ever seen, to catch one that comes twice.
    range_ids: BTreeSet<RangeId>,
    heap_ids: BTreeSet<HeapId>,
    totals: Totals,
    log: Vec<Logged>,
}

struct RangeState {
    range: Range,
    number: u64,
    pieces: BTreeMap<u64, Piece>,
}

struct Piece {
    bind: Bind,
    usable: bool,
}

struct HeapState {
    bytes: u64,
    number: u64,
    mappings: u32,
    on_host: bool,
}

impl Checked {
    /// Wraps `device` and hands out the witness on it.
    pub fn over(device: Box<dyn Device>) -> (Box<dyn Device>, Witness) {
        let witness = Witness::default();
        (Box::new(Checked { inner: device, witness: witness.clone() }), witness)
    }

    /// Passes an error on, unless it says that the caller broke a rule.
    fn passed<T>(answer: Result<T, DeviceError>) -> Result<T, DeviceError> {
        if let Err(violation @ DeviceError::Violation { .. }) = &answer {
            panic!("{violation}");
        }
        answer
    }
}

impl Witness {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a finding: let others still read what led to it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is taken from the device.
    pub fn totals(&self) -> Totals {
        self.state().totals
    }

    /// How many calls that changed something have succeeded.
    pub fn calls(&self) -> usize {
        self.state().log.len()
    }

    /// The calls that succeeded, from number `from` on.
    pub fn log(&self, from: usize) -> Vec<Logged> {
        self.state().log[from..].to_vec()
    }

    /// A live range and its number in order of reserving.
    pub fn range(&self, id: RangeId) -> Option<(Range, u64)> {
        self.state().ranges.get(&id).map(|range| (range.range, range.number))
    }

    /// The physical memory behind `bytes` from `address` on, in order of addresses, adjacent runs merged.
    ///
    /// # Errors
    /// A sentence, when any of these bytes is not mapped or not usable.
    pub fn resolve(&self, address: u64, bytes: u64) -> Result<Vec<Extent>, String> {
        let state = self.state();
        let (_, id) = state
            .by_address
            .range(..=address)
            .next_back()
            .ok_or_else(|| format!("address {address:#x} lies in no range"))?;
        let RangeState { range, pieces, .. } = &state.ranges[id];
        let begin = address - range.address;
        let end = begin + bytes;
        if end > range.bytes {
            return Err(format!("{bytes} bytes from {address:#x} run past the end of their range"));
        }
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = begin;
        while at < end {
            let piece = pieces.range(..=at).next_back().map(|(_, piece)| piece);
            let Some(piece) = piece.filter(|p| at < p.bind.range_offset + p.bind.bytes) else {
                return Err(format!("address {:#x} is not mapped", range.address + at));
            };
            if !piece.usable {
                return Err(format!("address {:#x} is mapped without access", range.address + at));
            }
            let Bind { range_offset, heap, heap_offset, bytes } = piece.bind;
            let taken = (range_offset + bytes).min(end) - at;
            let offset = heap_offset + (at - range_offset);
            match extents.last_mut() {
                Some(last) if last.heap == heap && last.offset + last.bytes == offset => last.bytes += taken,
                _ => extents.push(Extent { heap, offset, bytes: taken }),
            }
            at += taken;
        }
        Ok(extents)
    }
}

impl Checked {
    fn create_in(&mut self, bytes: u64, on_host: bool) -> Result<HeapId, DeviceError> {
        let tile = self.caps().tile_bytes;
        assert!(bytes > 0 && bytes.is_multiple_of(tile), "create of {bytes} bytes: no whole tiles");
        let inner = &mut self.inner;
        let heap = Self::passed(if on_host { inner.create_on_host(bytes) } else { inner.create(bytes) })?;
        let mut state = self.witness.state();
        assert!(state.heap_ids.insert(heap), "{heap:?} was given twice");
        let number = state.heap_ids.len() as u64;
        state.heaps.insert(heap, HeapState { bytes, number, mappings: 0, on_host });
        if !on_host {
            state.totals.held += bytes;
            state.totals.peak_held = state.totals.peak_held.max(state.totals.held);
        }
        state.log.push(Logged { call: Call::Create, what: number, offset: 0, bytes, heap: None });
        Ok(heap)
    }
}

impl Device for Checked {
    forward!(|this| this.inner => name, caps, add_peer, calls, held_bytes, free_bytes, ready);

    fn reserve(&mut self, bytes: u64) -> Result<Range, DeviceError> {
        let tile = self.caps().tile_bytes;
        assert!(bytes > 0 && bytes.is_multiple_of(tile), "reserve of {bytes} bytes: no whole tiles");
        let range = Self::passed(self.inner.reserve(bytes))?;
        let mut state = self.witness.state();
        assert!(state.range_ids.insert(range.id), "{:?} was given twice", range.id);
        assert_eq!(range.bytes, bytes, "the range is not as long as asked for");
        assert!(range.address.is_multiple_of(tile), "range at {:#x}, not at a tile", range.address);
        let before = state.by_address.range(..range.address + bytes).next_back();
        if let Some((&address, id)) = before {
            assert!(address + state.ranges[id].range.bytes <= range.address, "two ranges overlap");
        }
        let number = state.range_ids.len() as u64;
        state.by_address.insert(range.address, range.id);
        let fresh = RangeState { range, number, pieces: BTreeMap::new() };
        state.ranges.insert(range.id, fresh);
        state.totals.reserved += bytes;
        state.log.push(Logged { call: Call::Reserve, what: number, offset: 0, bytes, heap: None });
        Ok(range)
    }

    fn unreserve(&mut self, range: RangeId) -> Result<(), DeviceError> {
        {
            let state = self.witness.state();
            let known = state.ranges.get(&range).unwrap_or_else(|| panic!("unreserve of unknown {range:?}"));
            assert!(known.pieces.is_empty(), "unreserve of {range:?}, part of which is mapped");
        }
        Self::passed(self.inner.unreserve(range))?;
        let mut state = self.witness.state();
        let RangeState { range, number, .. } = state.ranges.remove(&range).expect("seen above");
        state.by_address.remove(&range.address);
        state.totals.reserved -= range.bytes;
        let bytes = range.bytes;
        state.log.push(Logged { call: Call::Unreserve, what: number, offset: 0, bytes, heap: None });
        Ok(())
    }

    fn create(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        self.create_in(bytes, false)
    }

    fn create_on_host(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        self.create_in(bytes, true)
    }

    fn release(&mut self, heap: HeapId) -> Result<(), DeviceError> {
        {
            let state = self.witness.state();
            let known = state.heaps.get(&heap).unwrap_or_else(|| panic!("release of unknown {heap:?}"));
            assert_eq!(known.mappings, 0, "release of {heap:?}, which is mapped");
        }
        Self::passed(self.inner.release(heap))?;
        let mut state = self.witness.state();
        let HeapState { bytes, number, on_host, .. } = state.heaps.remove(&heap).expect("seen above");
        if !on_host {
            state.totals.held -= bytes;
        }
        state.log.push(Logged { call: Call::Release, what: number, offset: 0, bytes, heap: None });
        Ok(())
    }

    fn map(&mut self, range: RangeId, binds: &[Bind]) -> Result<(), DeviceError> {
        self.witness.state().judge_map(self.inner.caps(), range, binds);
        Self::passed(self.inner.map(range, binds))?;
        let usable = !self.caps().needs_access;
        let state = &mut *self.witness.state();
        let target = state.ranges.get_mut(&range).expect("judged above");
        for &bind in binds {
            let heap = state.heaps.get_mut(&bind.heap).expect("judged above");
            heap.mappings += 1;
            target.pieces.insert(bind.range_offset, Piece { bind, usable });
            state.totals.mapped += bind.bytes;
            state.log.push(Logged {
                call: Call::Map,
                what: target.number,
                offset: bind.range_offset,
                bytes: bind.bytes,
                heap: Some((heap.number, bind.heap_offset)),
            });
        }
        Ok(())
    }

    fn set_access(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        assert!(self.caps().needs_access, "set_access on a device that needs none");
        let offsets = self.witness.state().whole_pieces(Call::SetAccess, range, offset, bytes);
        Self::passed(self.inner.set_access(range, offset, bytes))?;
        let state = &mut *self.witness.state();
        let target = state.ranges.get_mut(&range).expect("seen above");
        for at in offsets {
            target.pieces.get_mut(&at).expect("seen above").usable = true;
        }
        state.log.push(Logged { call: Call::SetAccess, what: target.number, offset, bytes, heap: None });
        Ok(())
    }

    fn unmap(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        let offsets = self.witness.state().whole_pieces(Call::Unmap, range, offset, bytes);
        Self::passed(self.inner.unmap(range, offset, bytes))?;
        let state = &mut *self.witness.state();
        let target = state.ranges.get_mut(&range).expect("seen above");
        for at in offsets {
            let piece = target.pieces.remove(&at).expect("seen above");
            state.heaps.get_mut(&piece.bind.heap).expect("a mapped heap is held").mappings -= 1;
        }
        state.totals.mapped -= bytes;
        state.log.push(Logged { call: Call::Unmap, what: target.number, offset, bytes, heap: None });
        Ok(())
    }

    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        Self::passed(self.inner.read(address, out))
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        Self::passed(self.inner.write(address, bytes))
    }
}

impl State {
    /// Panics when a call of map breaks the contract.
    fn judge_map(&self, caps: &Caps, id: RangeId, binds: &[Bind]) {
        let range = self.ranges.get(&id).unwrap_or_else(|| panic!("map into unknown {id:?}"));
        assert!(!binds.is_empty(), "map of nothing into {id:?}");
        for (n, bind) in binds.iter().enumerate() {
            let Bind { range_offset, heap, heap_offset, bytes } = *bind;
            let (end, tile) = (range_offset + bytes, caps.tile_bytes);
            let aligned = [range_offset, heap_offset, bytes].iter().all(|b| b.is_multiple_of(tile));
            assert!(aligned && bytes > 0, "{bind:?} is not made of tiles");
            assert!(end <= range.range.bytes, "{bind:?} runs past the end of {:?}", range.range);
            let before = range.pieces.range(..end).next_back().map(|(_, piece)| piece.bind);
            let taken = before.into_iter().chain(binds[..n].iter().copied());
            for other in taken {
                let apart = other.range_offset + other.bytes <= range_offset || end <= other.range_offset;
                assert!(apart, "{bind:?} maps over {other:?}");
            }
            let known = self.heaps.get(&heap).unwrap_or_else(|| panic!("map of unknown {heap:?}"));
            assert!(heap_offset + bytes <= known.bytes, "{bind:?} runs past the end of its heap");
            if !caps.partial_maps {
                assert!(bytes == known.bytes, "{bind:?} maps part of a heap of {} bytes", known.bytes);
            }
            if !caps.tiling {
                let whole = bytes == known.bytes && bytes == range.range.bytes;
                assert!(whole && known.mappings == 0, "{bind:?} tiles on a device that cannot");
            }
        }
    }

    /// The offsets of the pieces that make up this run of a range; panics unless they do so exactly.
    fn whole_pieces(&self, call: Call, id: RangeId, offset: u64, bytes: u64) -> Vec<u64> {
        let range = self.ranges.get(&id).unwrap_or_else(|| panic!("{call} on unknown {id:?}"));
        let end = offset + bytes;
        let mut at = offset;
        let mut offsets = Vec::new();
        while at < end {
            let piece = range.pieces.get(&at);
            let piece = piece.unwrap_or_else(|| panic!("{call} of {id:?} at {at}: no piece begins here"));
            offsets.push(at);
            at += piece.bind.bytes;
        }
        assert!(at == end && bytes > 0, "{call} of {id:?} from {offset}, {bytes} bytes: not whole pieces");
        offsets
    }
}

#[cfg(test)]
mod tests;

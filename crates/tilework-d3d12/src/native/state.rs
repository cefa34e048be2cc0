//! What a device and its views share: the books, the buffers of ranges, the memory of heaps, and what of it is resident.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use tilework::device::books::Books;
use tilework::device::{Bind, Call, DeviceError, HeapId, RangeId};
use windows::Win32::Graphics::Direct3D12::{ID3D12Pageable, ID3D12Resource};

use super::answer;
use super::gpu::{Counted, Memory};
use super::order::Order;
use crate::error::D3d12Error;
use crate::residency::Residency;

/// A range.
#[derive(Debug)]
pub struct Place {
    pub id: RangeId,
    /// Its length, bytes.
    pub bytes: u64,
    pub buffer: RangeBuffer,
}

/// The buffer of a range.
#[derive(Debug)]
pub enum RangeBuffer {
    /// Its own, into which tiles are mapped.
    Reserved(Counted<ID3D12Resource>),
    /// That of the heap that is mapped, if one is.
    OfHeap(Option<ID3D12Resource>),
}

impl RangeBuffer {
    /// The buffer, where there is one now.
    pub fn get(&self) -> Option<&ID3D12Resource> {
        match self {
            RangeBuffer::Reserved(buffer) => Some(buffer),
            RangeBuffer::OfHeap(buffer) => buffer.as_ref(),
        }
    }
}

/// The state of one device. Locked before the line of its [`Order`].
#[derive(Debug)]
pub struct State {
    pub books: Books,
    /// By first address.
    pub places: BTreeMap<u64, Place>,
    pub heaps: FxHashMap<HeapId, Memory>,
    pub residency: Residency,
}

impl State {
    /// Nothing, with these books.
    pub fn new(books: Books) -> State {
        State { books, places: BTreeMap::new(), heaps: FxHashMap::default(), residency: Residency::default() }
    }

    /// The range that `address` lies in, and how far from its beginning.
    pub fn find(&self, address: u64) -> Option<(&Place, u64)> {
        let (&first, place) = self.places.range(..=address).next_back()?;
        (address - first < place.bytes).then_some((place, address - first))
    }

    /// The heaps behind `bytes` from `address`, each once.
    ///
    /// # Errors
    /// When these are not mapped throughout.
    pub fn heaps_behind(&self, call: Call, address: u64, bytes: u64) -> Result<Vec<HeapId>, DeviceError> {
        self.books.check_use(call, address, bytes)?;
        let Some((place, offset)) = self.find(address) else { return Ok(Vec::new()) };
        let end = offset + bytes;
        let behind = |piece: &Bind| piece.range_offset < end && piece.range_offset + piece.bytes > offset;
        let mut heaps: Vec<_> =
            self.books.all_pieces(place.id).filter(behind).map(|piece| piece.heap).collect();
        heaps.sort_unstable();
        heaps.dedup();
        Ok(heaps)
    }

    /// Evicts every heap that is resident and that nobody refers to. Returns their bytes.
    ///
    /// # Errors
    /// What Direct3D refused; nothing has changed then.
    pub fn evict(&mut self, order: &Order) -> Result<u64, D3d12Error> {
        let heaps = self.residency.evictable();
        if heaps.is_empty() {
            return Ok(0);
        }
        // Nothing may use what is evicted.
        order.settle()?;
        // SAFETY: the objects are the device's and alive.
        let evicted = unsafe { order.gpu().device.Evict(&self.pageables(&heaps)) };
        answer("ID3D12Device::Evict", evicted).map_err(|error| order.explain(error))?;
        self.residency.set_evicted(&heaps, true);
        Ok(self.bytes(&heaps))
    }

    /// Makes these heaps resident, all of which were evicted. Returns their bytes.
    ///
    /// # Errors
    /// What Direct3D refused, as when memory lacks; nothing has changed then.
    pub fn make_resident(&mut self, order: &Order, heaps: &[HeapId]) -> Result<u64, D3d12Error> {
        if heaps.is_empty() {
            return Ok(0);
        }
        // SAFETY: as in `evict`.
        let resident = unsafe { order.gpu().device.MakeResident(&self.pageables(heaps)) };
        answer("ID3D12Device::MakeResident", resident).map_err(|error| order.explain(error))?;
        self.residency.set_evicted(heaps, false);
        Ok(self.bytes(heaps))
    }

    /// Refers to heaps, which are made resident for it.
    ///
    /// # Errors
    /// As [`make_resident`](State::make_resident).
    pub fn refer(&mut self, order: &Arc<Order>, heaps: &[HeapId]) -> Result<(), D3d12Error> {
        let absent = self.residency.evicted_of(heaps);
        self.make_resident(order, &absent)?;
        self.residency.refer(heaps);
        Ok(())
    }

    fn pageables(&self, heaps: &[HeapId]) -> Vec<Option<ID3D12Pageable>> {
        heaps.iter().filter_map(|heap| self.heaps.get(heap)?.pageable()).map(Some).collect()
    }

    fn bytes(&self, heaps: &[HeapId]) -> u64 {
        heaps.iter().filter_map(|&heap| self.books.heap_bytes(Call::Release, heap).ok()).sum()
    }
}

//! The device as the pool of one lane sees it: what it unmaps and releases goes behind the lane's event.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use rustc_hash::FxHashMap;

use super::{Depot, Home, Late, Reserved, Stocked, add, lock, refused, suits, take};
use crate::device::books::no_host_heaps;
use crate::device::{Bind, Calls, Caps, Device, DeviceError, HeapId, Range, RangeId};

/// The device as the pool of one lane sees it.
pub struct Door {
    depot: Arc<Depot>,
    home: Arc<Home>,
    /// Length of each heap the lane has, bytes.
    lengths: FxHashMap<HeapId, u64>,
    /// By range and offset: what is mapped there.
    binds: BTreeMap<(RangeId, u64), HeapId>,
}

impl Door {
    pub fn new(depot: Arc<Depot>, home: Arc<Home>) -> Door {
        Door { depot, home, lengths: FxHashMap::default(), binds: BTreeMap::new() }
    }
}

impl Device for Door {
    fn name(&self) -> &'static str {
        self.depot.name
    }

    fn caps(&self) -> &Caps {
        &self.depot.caps
    }

    fn reserve(&mut self, bytes: u64) -> Result<Range, DeviceError> {
        let range = lock(&self.depot.state).device.reserve(bytes)?;
        add(&self.depot.books.reserved, range.bytes);
        let mut ranges = self.depot.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let at = ranges.partition_point(|r| r.range.address < range.address);
        ranges.insert(at, Reserved { range, key: self.home.key });
        Ok(range)
    }

    fn unreserve(&mut self, range: RangeId) -> Result<(), DeviceError> {
        let depot = &*self.depot;
        let known = |ranges: &[Reserved]| ranges.iter().position(|r| r.range.id == range);
        let whole = {
            let ranges = depot.ranges.read().unwrap_or_else(PoisonError::into_inner);
            known(&ranges).map(|at| ranges[at].range)
        };
        let Some(whole) = whole else { return Err(refused("the range is not reserved")) };
        let mut state = lock(&depot.state);
        if state.late.iter().any(|late| late.range == range) {
            state.unreserve.push(whole);
        } else {
            state.device.unreserve(range)?;
            take(&depot.books.reserved, whole.bytes);
        }
        // Before the lock goes: the device may give the same addresses out again.
        let mut ranges = depot.ranges.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = known(&ranges) {
            ranges.remove(at);
        }
        Ok(())
    }

    fn create(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        let heap = self.depot.create(&self.home, bytes)?;
        self.lengths.insert(heap, bytes);
        Ok(heap)
    }

    fn create_on_host(&mut self, _: u64) -> Result<HeapId, DeviceError> {
        Err(no_host_heaps())
    }

    fn release(&mut self, heap: HeapId) -> Result<(), DeviceError> {
        let depot = &*self.depot;
        let bytes = *self.lengths.get(&heap).ok_or_else(|| refused("the heap is not this lane's"))?;
        let mut state = lock(&depot.state);
        if depot.caps.tiling {
            let event = depot.mark(&self.home);
            let since = (!self.home.is_aging()).then_some(state.executions);
            let spilled = state.spilled.contains(&heap);
            if spilled {
                self.home.take_spilled(bytes);
            }
            depot.put_in_stock(
                &mut state,
                bytes,
                Stocked { heap, home: Arc::clone(&self.home), event, since, spilled },
            );
        } else {
            // Where a heap has one address for good, the next lane would have no use for it.
            state.device.release(heap)?;
            take(&depot.books.held, bytes);
        }
        self.lengths.remove(&heap);
        Ok(())
    }

    fn map(&mut self, range: RangeId, binds: &[Bind]) -> Result<(), DeviceError> {
        let mut state = self.depot.clear_way(range, binds)?;
        state.device.map(range, binds)?;
        self.binds.extend(binds.iter().map(|bind| ((range, bind.range_offset), bind.heap)));
        add(&self.depot.books.mapped, binds.iter().map(|bind| bind.bytes).sum());
        Ok(())
    }

    fn set_access(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        lock(&self.depot.state).device.set_access(range, offset, bytes)
    }

    fn unmap(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        let depot = &*self.depot;
        let event = depot.mark(&self.home);
        if !depot.caps.tiling {
            // Whoever cannot map a heap twice cannot give it on before it is unmapped either.
            let Some(event) = &event else {
                return Err(refused("work on the stream cannot be waited for at present"));
            };
            event.synchronize()?;
        }
        let here = (range, offset)..(range, offset + bytes);
        let mut state = lock(&depot.state);
        // What has grown old can be much, and is unmapped as it is released: beside whoever ended the execution.
        let now = !self.home.is_aging() && event.as_ref().is_some_and(|event| event.passed());
        if !depot.caps.tiling || now {
            depot.unmap(&mut state, range, offset, bytes)?;
        } else {
            let heaps = self.binds.range(here.clone()).map(|(_, &heap)| heap).collect();
            state.late.push(Late { range, offset, bytes, heaps, home: Arc::clone(&self.home), event });
        }
        while let Some((&at, _)) = self.binds.range(here.clone()).next() {
            self.binds.remove(&at);
        }
        Ok(())
    }

    fn add_peer(&mut self, peer: u32) -> Result<(), DeviceError> {
        self.depot.add_peer(peer)
    }

    fn calls(&self) -> Calls {
        self.depot.calls()
    }

    fn held_bytes(&self) -> Result<u64, DeviceError> {
        lock(&self.depot.state).device.held_bytes()
    }

    fn free_bytes(&self) -> Option<u64> {
        lock(&self.depot.state).device.free_bytes()
    }

    fn ready(&self, most: u64) -> Option<u64> {
        let state = lock(&self.depot.state);
        let mut shorter = state.stock.range(..=most).rev();
        shorter.find(|(_, heaps)| heaps.iter().any(|entry| suits(&self.home, entry))).map(|(&bytes, _)| bytes)
    }

    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        self.depot.read(address, out)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.depot.write(address, bytes)
    }
}

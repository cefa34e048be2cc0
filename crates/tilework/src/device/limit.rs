//! A device with less physical memory than it has.

use rustc_hash::FxHashMap;

use super::{Bind, Calls, Caps, Device, DeviceError, HeapId, Range, RangeId};

/// A device that refuses to hold more than a limit. Everything else is the device's own.
#[derive(Debug)]
pub struct Limit<D> {
    inner: D,
    caps: Caps,
    /// Length of each heap, bytes.
    heaps: FxHashMap<HeapId, u64>,
    /// The sum of `heaps`.
    held: u64,
}

impl<D: Device> Limit<D> {
    /// `inner`, which must hold nothing yet, limited to `bytes` of physical memory.
    ///
    /// [`Caps::capacity_bytes`] becomes `bytes`, or stays where it is less already.
    pub fn new(inner: D, bytes: u64) -> Limit<D> {
        let mut caps = inner.caps().clone();
        caps.capacity_bytes = Some(caps.capacity_bytes.map_or(bytes, |own| own.min(bytes)));
        Limit { inner, caps, heaps: FxHashMap::default(), held: 0 }
    }
}

impl<D: Device> Device for Limit<D> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn reserve(&mut self, bytes: u64) -> Result<Range, DeviceError> {
        self.inner.reserve(bytes)
    }

    fn unreserve(&mut self, range: RangeId) -> Result<(), DeviceError> {
        self.inner.unreserve(range)
    }

    fn create(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        let limit = self.caps.capacity_bytes.unwrap_or(u64::MAX);
        let held = self.held.checked_add(bytes).filter(|&held| held <= limit);
        let held = held.ok_or(DeviceError::OutOfMemory { bytes })?;
        let heap = self.inner.create(bytes)?;
        self.heaps.insert(heap, bytes);
        self.held = held;
        Ok(heap)
    }

    fn release(&mut self, heap: HeapId) -> Result<(), DeviceError> {
        self.inner.release(heap)?;
        self.held -= self.heaps.remove(&heap).unwrap_or(0);
        Ok(())
    }

    fn map(&mut self, range: RangeId, binds: &[Bind]) -> Result<(), DeviceError> {
        self.inner.map(range, binds)
    }

    fn set_access(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        self.inner.set_access(range, offset, bytes)
    }

    fn unmap(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        self.inner.unmap(range, offset, bytes)
    }

    fn add_peer(&mut self, peer: u32) -> Result<(), DeviceError> {
        self.inner.add_peer(peer)
    }

    fn calls(&self) -> Calls {
        self.inner.calls()
    }

    fn held_bytes(&self) -> Result<u64, DeviceError> {
        self.inner.held_bytes()
    }

    fn free_bytes(&self) -> Option<u64> {
        self.inner.free_bytes()
    }

    fn ready(&self, most: u64) -> Option<u64> {
        self.inner.ready(most)
    }

    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        self.inner.read(address, out)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.inner.write(address, bytes)
    }
}

#[cfg(test)]
mod tests;

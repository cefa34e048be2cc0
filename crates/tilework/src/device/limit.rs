//! A device with less physical memory than it has.

use rustc_hash::FxHashMap;

use super::forward::forward;
use super::{Caps, Device, DeviceError, HeapId};

/// A device that refuses to hold more than a limit. Everything else is the device's own; what it holds on the
/// host does not count.
#[derive(Debug)]
pub struct Limit<D> {
    inner: D,
    caps: Caps,
    /// Length of each heap that counts, bytes.
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
    forward!(|this| this.inner =>
        name, reserve, unreserve, map, set_access, unmap, add_peer, calls, held_bytes, free_bytes,
        ready, read, write
    );

    fn caps(&self) -> &Caps {
        &self.caps
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

    fn create_on_host(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        self.inner.create_on_host(bytes)
    }

    fn release(&mut self, heap: HeapId) -> Result<(), DeviceError> {
        self.inner.release(heap)?;
        self.held -= self.heaps.remove(&heap).unwrap_or(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests;

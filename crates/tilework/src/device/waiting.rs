//! A device whose work is waited for before any of its memory is taken away.

use std::fmt;

use super::{Bind, Calls, Caps, Device, DeviceError, HeapId, Range, RangeId};

/// Waits on the host for all work of a device.
pub type Wait = Box<dyn Fn() -> Result<(), DeviceError> + Send>;

/// A device on which work runs later than the host queues it, for managers that know of one queue only: before
/// anything is unmapped, the host waits for all work of the device. Everything else is the device's own.
///
/// Memory that is not mapped cannot be in use, so nothing else needs to wait. A manager that is warm unmaps
/// nothing and pays nothing.
pub struct Waiting<D> {
    inner: D,
    wait: Wait,
}

impl<D: Device> Waiting<D> {
    /// `inner`, whose work `wait` waits for.
    pub fn new(inner: D, wait: Wait) -> Waiting<D> {
        Waiting { inner, wait }
    }
}

impl<D: Device> Device for Waiting<D> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn caps(&self) -> &Caps {
        self.inner.caps()
    }

    fn reserve(&mut self, bytes: u64) -> Result<Range, DeviceError> {
        self.inner.reserve(bytes)
    }

    fn unreserve(&mut self, range: RangeId) -> Result<(), DeviceError> {
        self.inner.unreserve(range)
    }

    fn create(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        self.inner.create(bytes)
    }

    fn release(&mut self, heap: HeapId) -> Result<(), DeviceError> {
        self.inner.release(heap)
    }

    fn map(&mut self, range: RangeId, binds: &[Bind]) -> Result<(), DeviceError> {
        self.inner.map(range, binds)
    }

    fn set_access(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        self.inner.set_access(range, offset, bytes)
    }

    fn unmap(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        (self.wait)()?;
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

impl<D: fmt::Debug> fmt::Debug for Waiting<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

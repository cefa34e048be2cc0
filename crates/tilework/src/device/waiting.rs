//! A device whose work is waited for before any of its memory is taken away.

use std::fmt;

use super::forward::forward;
use super::{Device, DeviceError, RangeId};

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
    forward!(|this| this.inner =>
        name, caps, reserve, unreserve, create, create_on_host, release, map, set_access, add_peer, calls, held_bytes,
        free_bytes, ready, read, write
    );

    fn unmap(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        (self.wait)()?;
        self.inner.unmap(range, offset, bytes)
    }
}

impl<D: fmt::Debug> fmt::Debug for Waiting<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

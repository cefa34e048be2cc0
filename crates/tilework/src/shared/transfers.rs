//! How contents travel between a device and the host: buffers that the device copies to and from by itself.

use std::fmt;

use super::streams::Event;
use crate::device::DeviceError;

/// Makes the buffers. May be called from any thread.
pub trait Transfers: Send + Sync {
    /// Makes a buffer of `bytes`, zeroed. Dear, so that buffers are kept and used again.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] when the host has no such memory, or none that the device could reach.
    fn staging(&self, bytes: usize) -> Result<Box<dyn Staging>, DeviceError>;
}

/// A buffer of host memory, and the copies queued for it.
///
/// Copies are queued for queues of the device's own, on which nothing else runs: they are ordered behind no
/// work of any stream. Those of one buffer happen in the order in which they were queued; buffers do not wait
/// for each other. Dropping a buffer waits for its copies.
pub trait Staging: Send + Sync + fmt::Debug {
    /// Its length, bytes.
    fn bytes(&self) -> usize;

    /// Queues a copy of `bytes` of device memory at `address` to `at` in the buffer.
    ///
    /// # Errors
    /// [`DeviceError::Violation`] when the buffer is too short; [`DeviceError::Failed`] when the driver refuses,
    /// as it must for addresses that are not mapped. Nothing was queued then.
    fn download(&mut self, at: usize, address: u64, bytes: usize) -> Result<(), DeviceError>;

    /// Queues a copy of `bytes` at `at` in the buffer to device memory at `address`.
    ///
    /// # Errors
    /// As [`download`](Staging::download).
    fn upload(&mut self, at: usize, address: u64, bytes: usize) -> Result<(), DeviceError>;

    /// The place behind all copies queued for this buffer so far, and those of others queued the same way before.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] when the driver refuses.
    fn mark(&mut self) -> Result<Event, DeviceError>;

    /// Waits on the host for all copies queued for this buffer, and shows what is in it.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] when a copy failed, or the driver refuses to tell.
    fn contents(&mut self) -> Result<&mut [u8], DeviceError>;
}

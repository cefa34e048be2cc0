//! Staging for devices without copies of their own.

use std::collections::TryReserveError;
use std::fmt;
use std::sync::Arc;

use super::Depot;
use crate::device::{Call, DeviceError};
use crate::shared::streams::Event;
use crate::shared::transfers::Staging;

/// A buffer for a device that cannot copy beside its other work: it reads and writes when it is told to.
pub struct AtOnce {
    depot: Arc<Depot>,
    buffer: Vec<u8>,
}

impl fmt::Debug for AtOnce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AtOnce").field("bytes", &self.buffer.len()).finish_non_exhaustive()
    }
}

impl AtOnce {
    pub fn new(depot: Arc<Depot>, bytes: usize) -> Result<AtOnce, DeviceError> {
        let mut buffer = Vec::new();
        let lacking =
            |error: TryReserveError| DeviceError::Failed { call: Call::Read, reason: error.to_string() };
        buffer.try_reserve_exact(bytes).map_err(lacking)?;
        buffer.resize(bytes, 0);
        Ok(AtOnce { depot, buffer })
    }

    fn part(&mut self, call: Call, at: usize, bytes: usize) -> Result<&mut [u8], DeviceError> {
        let part = at.checked_add(bytes).and_then(|end| self.buffer.get_mut(at..end));
        let rule = "a copy lies within its buffer".to_owned();
        part.ok_or(DeviceError::Violation { call, rule })
    }
}

impl Staging for AtOnce {
    fn bytes(&self) -> usize {
        self.buffer.len()
    }

    fn download(&mut self, at: usize, address: u64, bytes: usize) -> Result<(), DeviceError> {
        let depot = Arc::clone(&self.depot);
        let part = self.part(Call::Read, at, bytes)?;
        depot.read(address, part)
    }

    fn upload(&mut self, at: usize, address: u64, bytes: usize) -> Result<(), DeviceError> {
        let depot = Arc::clone(&self.depot);
        let part = self.part(Call::Write, at, bytes)?;
        depot.write(address, part)
    }

    fn mark(&mut self) -> Result<Event, DeviceError> {
        Ok(Arc::clone(&self.depot.done))
    }

    fn contents(&mut self) -> Result<&mut [u8], DeviceError> {
        Ok(&mut self.buffer)
    }
}

//! A device that does nothing, in no time: for timing a policy alone.

use super::books::no_host_heaps;
use super::{Aliasing, Bind, Call, Calls, Caps, Device, DeviceError, HeapId, Range, RangeId};

/// Where the first range begins: as good as any address, and not null.
const FIRST_ADDRESS: u64 = 1 << 32;

/// The device that does nothing: `null`.
///
/// It hands out ids and addresses, adds up what is held, and counts calls. It trusts its caller: of the
/// rules of [`Device`] it enforces only [`Caps::max_range_bytes`], [`Caps::capacity_bytes`] and that a
/// released heap exists. There is no memory: reading and writing do nothing.
#[derive(Debug)]
pub struct Null {
    caps: Caps,
    calls: Calls,
    next_range: u64,
    next_address: u64,
    /// Length of each heap ever created, bytes, by id; zero once released.
    heaps: Vec<u64>,
    held: u64,
}

impl Null {
    /// With the capabilities of `sim-h200`, but for heaps on the host, and no bound on physical memory.
    pub fn new() -> Null {
        Null::with_caps(Caps {
            capacity_bytes: None,
            host_heaps: false,
            aliasing: Aliasing::Ordered,
            ..super::sim::Sim::h200().caps().clone()
        })
    }

    /// With other capabilities.
    ///
    /// # Panics
    /// When `caps.memory` or `caps.host_heaps` is set.
    pub fn with_caps(caps: Caps) -> Null {
        assert!(!caps.memory && !caps.host_heaps, "the null device has no memory, here or on the host");
        Null {
            caps,
            calls: Calls::default(),
            next_range: 0,
            next_address: FIRST_ADDRESS,
            heaps: Vec::new(),
            held: 0,
        }
    }
}

impl Default for Null {
    fn default() -> Null {
        Null::new()
    }
}

impl Device for Null {
    fn name(&self) -> &'static str {
        "null"
    }

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn reserve(&mut self, bytes: u64) -> Result<Range, DeviceError> {
        let failed = |reason: &str| DeviceError::Failed { call: Call::Reserve, reason: reason.into() };
        if bytes > self.caps.max_range_bytes {
            return Err(failed("more than one range can have"));
        }
        let address = self.next_address;
        self.next_address =
            address.checked_add(bytes).ok_or_else(|| failed("the address space is used up"))?;
        let id = RangeId(self.next_range);
        self.next_range += 1;
        self.calls.reserve += 1;
        Ok(Range { id, address, bytes })
    }

    fn unreserve(&mut self, _: RangeId) -> Result<(), DeviceError> {
        self.calls.reserve += 1;
        Ok(())
    }

    fn create(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        let held = self.held.checked_add(bytes).ok_or(DeviceError::OutOfMemory { bytes })?;
        if self.caps.capacity_bytes.is_some_and(|capacity| held > capacity) {
            return Err(DeviceError::OutOfMemory { bytes });
        }
        self.held = held;
        self.calls.create += 1;
        self.heaps.push(bytes);
        Ok(HeapId(self.heaps.len() as u64 - 1))
    }

    fn create_on_host(&mut self, _: u64) -> Result<HeapId, DeviceError> {
        Err(no_host_heaps())
    }

    fn release(&mut self, heap: HeapId) -> Result<(), DeviceError> {
        let bytes = usize::try_from(heap.0).ok().and_then(|index| self.heaps.get_mut(index));
        match bytes {
            Some(bytes) if *bytes > 0 => {
                self.held -= std::mem::take(bytes);
                self.calls.release += 1;
                Ok(())
            }
            _ => Err(DeviceError::Violation {
                call: Call::Release,
                rule: format!("heap {} does not exist", heap.0),
            }),
        }
    }

    fn map(&mut self, _: RangeId, binds: &[Bind]) -> Result<(), DeviceError> {
        self.calls.map += binds.len() as u64;
        Ok(())
    }

    fn set_access(&mut self, _: RangeId, _: u64, _: u64) -> Result<(), DeviceError> {
        self.calls.set_access += 1;
        Ok(())
    }

    fn unmap(&mut self, _: RangeId, _: u64, _: u64) -> Result<(), DeviceError> {
        self.calls.unmap += 1;
        Ok(())
    }

    fn add_peer(&mut self, _: u32) -> Result<(), DeviceError> {
        Ok(())
    }

    fn calls(&self) -> Calls {
        self.calls
    }

    fn held_bytes(&self) -> Result<u64, DeviceError> {
        Ok(self.held)
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }

    fn ready(&self, _: u64) -> Option<u64> {
        None
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;

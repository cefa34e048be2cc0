//! A device that fails on purpose: proves that its user rolls back.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Bind, Call, Calls, Caps, Device, DeviceError, HeapId, Range, RangeId};

/// Which calls fail, and how. Calls are counted from when the plan is set, beginning at one.
///
/// ```
/// # use tilework::device::{Call, fault::Plan};
/// let plan = Plan::every(7).of(Call::Map).halfway();
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    which: Which,
    /// Only calls of this kind are counted and fail; all kinds when `None`.
    call: Option<Call>,
    halfway: bool,
    out_of_memory: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Nth(u64),
    Every(u64),
}

impl Plan {
    /// Only the `n`-th call fails; none when `n` is zero.
    pub fn nth(n: u64) -> Plan {
        Plan { which: Which::Nth(n), call: None, halfway: false, out_of_memory: false }
    }

    /// Every `n`-th call fails; none when `n` is zero.
    pub fn every(n: u64) -> Plan {
        Plan { which: Which::Every(n), ..Plan::nth(0) }
    }

    /// Count and fail only calls of this kind. Without this, calls of every kind are counted.
    #[must_use]
    pub fn of(self, call: Call) -> Plan {
        Plan { call: Some(call), ..self }
    }

    /// A `map` of two binds or more that fails does so half way: the first half is mapped, then
    /// unmapped again, as a driver that takes one heap a call would have it. Other calls fail at once.
    #[must_use]
    pub fn halfway(self) -> Plan {
        Plan { halfway: true, ..self }
    }

    /// A `create` that fails answers [`DeviceError::OutOfMemory`]. Without this, and in all other calls,
    /// the answer is [`DeviceError::Failed`].
    #[must_use]
    pub fn out_of_memory(self) -> Plan {
        Plan { out_of_memory: true, ..self }
    }
}

#[derive(Debug, Default)]
struct State {
    plan: Option<Plan>,
    /// Calls the plan applies to, since it was set.
    seen: u64,
    /// Calls failed, ever.
    failed: u64,
}

/// The hand on a [`Fault`] that has gone into a manager: it changes the plan while the device is in use.
/// Copies steer the same device.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

impl Faults {
    /// From here on calls fail after `plan`, counted from one.
    pub fn set(&self, plan: Plan) {
        self.with(|state| (state.plan, state.seen) = (Some(plan), 0));
    }

    /// From here on no call fails.
    pub fn clear(&self) {
        self.with(|state| (state.plan, state.seen) = (None, 0));
    }

    /// Calls that the present plan has counted, those that failed included.
    pub fn seen(&self) -> u64 {
        self.with(|state| state.seen)
    }

    /// Calls that were made to fail since the device was wrapped.
    pub fn failed(&self) -> u64 {
        self.with(|state| state.failed)
    }

    /// Counts a call; the plan when it is to fail.
    fn due(&self, call: Call) -> Option<Plan> {
        self.with(|state| {
            let plan = state.plan.filter(|plan| plan.call.is_none_or(|only| only == call))?;
            state.seen += 1;
            let due = match plan.which {
                Which::Nth(n) => state.seen == n,
                Which::Every(n) => n > 0 && state.seen.is_multiple_of(n),
            };
            if !due {
                return None;
            }
            state.failed += 1;
            Some(plan)
        })
    }

    /// Fails when the call is due to.
    fn check(&self, call: Call) -> Result<(), DeviceError> {
        self.due(call).map_or(Ok(()), |_| Err(injected(call)))
    }

    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        // Plain counters: what another thread left behind in a panic is still a valid state.
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Any device, made to fail after a [`Plan`]. Without one it changes nothing.
#[derive(Debug)]
pub struct Fault<D> {
    inner: D,
    faults: Faults,
}

impl<D: Device> Fault<D> {
    /// `inner`, with no plan yet; set one through [`faults`](Fault::faults).
    pub fn new(inner: D) -> Fault<D> {
        Fault { inner, faults: Faults::default() }
    }

    /// A handle that sets the plan, also once the device belongs to a manager.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    /// Maps the first half and takes it back.
    fn map_half(&mut self, range: RangeId, binds: &[Bind]) -> Result<(), DeviceError> {
        let half = &binds[..binds.len() / 2];
        self.inner.map(range, half)?;
        for bind in half {
            self.inner.unmap(range, bind.range_offset, bind.bytes)?;
        }
        Ok(())
    }
}

impl<D: Device> Device for Fault<D> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn caps(&self) -> &Caps {
        self.inner.caps()
    }

    fn reserve(&mut self, bytes: u64) -> Result<Range, DeviceError> {
        self.faults.check(Call::Reserve)?;
        self.inner.reserve(bytes)
    }

    fn unreserve(&mut self, range: RangeId) -> Result<(), DeviceError> {
        self.faults.check(Call::Unreserve)?;
        self.inner.unreserve(range)
    }

    fn create(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        match self.faults.due(Call::Create) {
            Some(plan) if plan.out_of_memory => Err(DeviceError::OutOfMemory { bytes }),
            Some(_) => Err(injected(Call::Create)),
            None => self.inner.create(bytes),
        }
    }

    fn release(&mut self, heap: HeapId) -> Result<(), DeviceError> {
        self.faults.check(Call::Release)?;
        self.inner.release(heap)
    }

    fn map(&mut self, range: RangeId, binds: &[Bind]) -> Result<(), DeviceError> {
        match self.faults.due(Call::Map) {
            None => self.inner.map(range, binds),
            Some(plan) => {
                if plan.halfway && binds.len() > 1 {
                    self.map_half(range, binds)?;
                }
                Err(injected(Call::Map))
            }
        }
    }

    fn set_access(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        self.faults.check(Call::SetAccess)?;
        self.inner.set_access(range, offset, bytes)
    }

    fn unmap(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        self.faults.check(Call::Unmap)?;
        self.inner.unmap(range, offset, bytes)
    }

    fn add_peer(&mut self, peer: u32) -> Result<(), DeviceError> {
        self.faults.check(Call::SetAccess)?;
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
        self.faults.check(Call::Read)?;
        self.inner.read(address, out)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.faults.check(Call::Write)?;
        self.inner.write(address, bytes)
    }
}

fn injected(call: Call) -> DeviceError {
    DeviceError::Failed { call, reason: "a fault was injected".into() }
}

#[cfg(test)]
mod tests;

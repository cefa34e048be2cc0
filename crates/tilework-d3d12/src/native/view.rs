//! What a program holds of a device that a manager has: where blocks are, when they may be used, and whether they are
//! resident.

use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tilework::device::{Call, DeviceError, HeapId, RangeId};
use windows::Win32::Graphics::Direct3D12::{
    D3D12_RESOURCE_ALIASING_BARRIER, D3D12_RESOURCE_BARRIER, D3D12_RESOURCE_BARRIER_0,
    D3D12_RESOURCE_BARRIER_FLAG_NONE, D3D12_RESOURCE_BARRIER_TYPE_ALIASING, ID3D12CommandQueue, ID3D12Device,
    ID3D12Fence, ID3D12Resource,
};

use super::gpu::Live;
use super::order::Order;
use super::state::State;
use crate::choice::Choice;
use crate::error::D3d12Error;

/// Where an address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The buffer to name in descriptors and copies. Who keeps it keeps it alive, and without tiling its memory, too.
    pub resource: ID3D12Resource,
    /// Where in the buffer, bytes.
    pub offset: u64,
    /// The GPU's address of it.
    pub gpu_address: u64,
    /// The range that the buffer is. Never used for another: what was recorded for a block holds while its ranges and
    /// offsets are the same.
    pub range: RangeId,
}

/// What a program holds of a device that went into a manager: by it addresses become buffers, other queues are ordered
/// with the device's, and memory is evicted. It may be cloned and used from any thread, also after the device is gone.
///
/// Command lists that are executed on the device's own [queue](View::queue) need nothing else: what was mapped before is
/// there, and what is unmapped or given back afterwards waits for them. For another queue:
///
/// 1. It waits for [`ready`](View::ready), asked for when its blocks had been allocated.
/// 2. It signals a fence of the program's afterwards, of which [`used_by`](View::used_by) is told.
///
/// In either case memory that one block had may be another's now, in another buffer: an [`aliasing_barrier`] comes before
/// the first use. No barrier reaches another queue: who uses what had been freed under its work waits for its fence, or
/// blocks are kept until then ([`Fenced`](tilework::manager::Fenced)).
#[derive(Debug, Clone)]
pub struct View {
    order: Arc<Order>,
    state: Arc<Mutex<State>>,
}

impl View {
    pub(super) fn new(order: Arc<Order>, state: Arc<Mutex<State>>) -> View {
        View { order, state }
    }

    /// The buffer that `address` lies in. `None` where nothing is reserved, and without tiling where nothing is mapped.
    pub fn find(&self, address: u64) -> Option<Slice> {
        let state = lock(&self.state);
        let (place, offset) = state.find(address)?;
        let resource = place.buffer.get()?.clone();
        // SAFETY: a buffer that is held.
        let gpu_address = unsafe { resource.GetGPUVirtualAddress() } + offset;
        Some(Slice { resource, offset, gpu_address, range: place.id })
    }

    /// The device's fence, and the value it has once all that is queued now has passed, mappings above all. Another queue
    /// that uses blocks waits for it.
    ///
    /// # Errors
    /// When the device was removed.
    pub fn ready(&self) -> Result<(ID3D12Fence, u64), D3d12Error> {
        self.order.ready()
    }

    /// Tells that what was executed so far on another queue has used the device's memory for the last time when `fence`
    /// has `value`. What is unmapped, given back or read from here on waits for it, on the device. Per fence the greatest
    /// value counts.
    ///
    /// # Safety
    /// `fence` must be of the device, and something queued that signals the value and waits for nothing that comes after
    /// it on the device's queue.
    pub unsafe fn used_by(&self, fence: &ID3D12Fence, value: u64) {
        // SAFETY: the same contract.
        unsafe { self.order.used_by(fence, value) };
    }

    /// Evicts what the device holds, but for heaps to which somebody [refers](View::hold), and returns how many bytes that
    /// were: the system may use the memory for others. Contents stay. It waits on the host until what was queued
    /// has passed. What is evicted already is not evicted again.
    ///
    /// Nothing may be executed that uses blocks until they are [resident](View::make_resident).
    ///
    /// # Errors
    /// What Direct3D refused; all is as before then.
    pub fn evict(&self) -> Result<u64, D3d12Error> {
        lock(&self.state).evict(&self.order)
    }

    /// Makes all that was evicted resident, and returns how many bytes that were. It returns once they are there. What is
    /// resident is left as it is, so that one eviction evicts however often this was called.
    ///
    /// # Errors
    /// What Direct3D refused, as when memory lacks; all is as before then.
    pub fn make_resident(&self) -> Result<u64, D3d12Error> {
        let mut state = lock(&self.state);
        let heaps = state.residency.evicted();
        state.make_resident(&self.order, &heaps)
    }

    /// Refers to the memory behind `bytes` from `address`: it is made resident, and not evicted while the answer lives. For
    /// what is used outside of an execution, such as an output that is handed on.
    ///
    /// # Errors
    /// When these bytes are not mapped throughout, or memory lacks.
    pub fn hold(&self, address: u64, bytes: u64) -> Result<Held, DeviceError> {
        self.hold_for(Call::Read, address, bytes)
    }

    /// The same, for a call that is named in the error.
    pub(super) fn hold_for(&self, call: Call, address: u64, bytes: u64) -> Result<Held, DeviceError> {
        let mut state = lock(&self.state);
        let heaps = state.heaps_behind(call, address, bytes)?;
        state.refer(&self.order, &heaps).map_err(|error| failed_for(error, call, bytes))?;
        Ok(Held { state: Arc::clone(&self.state), heaps })
    }

    /// The queue that tiles are mapped on.
    pub fn queue(&self) -> &ID3D12CommandQueue {
        &self.order.gpu().queue
    }

    /// The Direct3D 12 device.
    pub fn device(&self) -> &ID3D12Device {
        &self.order.gpu().device
    }

    /// What the device's memory is made of, and why.
    pub fn choice(&self) -> &Choice {
        &self.order.gpu().choice
    }

    /// Objects of Direct3D's that the device has alive, those included that wait for what is queued.
    pub fn live(&self) -> Live {
        self.order.gpu().live()
    }
}

/// A reference to memory, which is not evicted while this lives. It does not keep a block from being freed.
#[derive(Debug)]
pub struct Held {
    state: Arc<Mutex<State>>,
    heaps: Vec<HeapId>,
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.state).residency.let_go(&self.heaps);
    }
}

/// What a command list has before it uses memory that was another block's: it names no buffer, so any may have been
/// before and any come after. Within one buffer the usual barriers do (one for unordered access, or a transition).
pub fn aliasing_barrier() -> D3D12_RESOURCE_BARRIER {
    let none = D3D12_RESOURCE_ALIASING_BARRIER::default();
    D3D12_RESOURCE_BARRIER {
        Type: D3D12_RESOURCE_BARRIER_TYPE_ALIASING,
        Flags: D3D12_RESOURCE_BARRIER_FLAG_NONE,
        Anonymous: D3D12_RESOURCE_BARRIER_0 { Aliasing: ManuallyDrop::new(none) },
    }
}

/// The state of a device.
pub(super) fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // The books change last, and what a panic leaves beside them is at worst memory that is held too long.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As the failure of a device's call.
pub(super) fn failed(error: D3d12Error, call: Call) -> DeviceError {
    DeviceError::Failed { call, reason: error.to_string() }
}

/// As the failure of a device's call that takes physical memory for `bytes`.
pub(super) fn failed_for(error: D3d12Error, call: Call, bytes: u64) -> DeviceError {
    if error.is_out_of_memory() { DeviceError::OutOfMemory { bytes } } else { failed(error, call) }
}

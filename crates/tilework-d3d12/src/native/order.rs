//! The queue, and one fence along it.
//!
//! Direct3D does what is queued in order: tiles that were mapped are there for command lists that are executed later on
//! the same queue, and still there for those executed before they were unmapped. The fence is for what is not on the
//! queue: the host, which must not destroy what is in use, and the user's other queues.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use windows::Win32::Foundation::{CloseHandle, HANDLE};
use windows::Win32::Graphics::Direct3D12::{
    D3D12_FENCE_FLAG_NONE, D3D12_TILE_MAPPING_FLAG_NONE, D3D12_TILE_RANGE_FLAG_NONE,
    D3D12_TILE_RANGE_FLAG_NULL, D3D12_TILE_REGION_SIZE, D3D12_TILED_RESOURCE_COORDINATE,
    ID3D12CommandAllocator, ID3D12CommandList, ID3D12Fence, ID3D12GraphicsCommandList, ID3D12Heap,
    ID3D12Resource,
};
use windows::Win32::System::Threading::{CreateEventW, INFINITE, WaitForSingleObject};

use super::answer;
use super::gpu::{Counted, Gpu, Memory};
use crate::error::{D3d12Error, Hresult};
use crate::line::Line;
use crate::tiles::{Batch, tiles};

/// The value that a fence has once its device is removed.
const REMOVED: u64 = u64::MAX;

/// Something that goes once the queue has passed it.
#[derive(Debug)]
#[expect(dead_code, reason = "what is held is dropped")]
pub enum Dead {
    Buffer(Counted<ID3D12Resource>),
    Memory(Memory),
    Commands(ID3D12CommandAllocator, ID3D12GraphicsCommandList),
}

/// What something queued waits for, beside all that was queued before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Nothing.
    Earlier,
    /// The uses that were told of.
    Uses,
}

/// The fence, and what is queued along it.
#[derive(Debug)]
pub struct Order {
    gpu: Arc<Gpu>,
    fence: ID3D12Fence,
    line: Mutex<Line<ID3D12Fence, Dead>>,
}

impl Order {
    /// A fence on which nothing has happened.
    pub fn new(gpu: Arc<Gpu>) -> Result<Order, D3d12Error> {
        // SAFETY: interfaces that are held are alive, here and in all calls of this module.
        let fence = answer("CreateFence", unsafe { gpu.device.CreateFence(0, D3D12_FENCE_FLAG_NONE) })?;
        Ok(Order { gpu, fence, line: Mutex::new(Line::new()) })
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The fence, and a value it has once all that is queued now has passed.
    pub fn ready(&self) -> Result<(ID3D12Fence, u64), D3d12Error> {
        let value = self.signal(&mut self.lock(), After::Earlier)?;
        Ok((self.fence.clone(), value))
    }

    /// From here on what is [after the uses](After::Uses) waits until `fence` has `value`.
    ///
    /// # Safety
    /// As for [`View::used_by`](crate::View::used_by).
    pub unsafe fn used_by(&self, fence: &ID3D12Fence, value: u64) {
        self.lock().used_by(fence.clone(), value);
    }

    /// Queues the mapping of pieces of a heap.
    ///
    /// # Safety
    /// `range` must be a reserved buffer of the device, `heap` one of its heaps; the pieces must lie within both. Until
    /// they are unmapped both stay alive.
    pub unsafe fn map(&self, range: &ID3D12Resource, heap: &ID3D12Heap, batch: &Batch) {
        let count = batch.at.len() as u32;
        let at: Vec<_> = batch.at.iter().map(|&tile| coordinate(tile)).collect();
        let sizes: Vec<_> = batch.tiles.iter().map(|&tiles| size(tiles)).collect();
        let flags = vec![D3D12_TILE_RANGE_FLAG_NONE; batch.at.len()];
        // SAFETY: all lists have `count` entries; the rest is this function's contract.
        unsafe {
            self.gpu.queue.UpdateTileMappings(
                range,
                count,
                Some(at.as_ptr()),
                Some(sizes.as_ptr()),
                heap,
                count,
                Some(flags.as_ptr()),
                Some(batch.from.as_ptr()),
                Some(batch.tiles.as_ptr()),
                D3D12_TILE_MAPPING_FLAG_NONE,
            );
        }
    }

    /// Queues the unmapping of `bytes` from `offset`, behind every use that was told of.
    ///
    /// # Safety
    /// `range` must be a reserved buffer of the device, and the bytes whole tiles of it.
    pub unsafe fn unmap(&self, range: &ID3D12Resource, offset: u64, bytes: u64) -> Result<(), D3d12Error> {
        self.wait_for_uses(&mut self.lock())?;
        let (at, size) = (coordinate(tiles(offset)), size(tiles(bytes)));
        let (flags, count) = (D3D12_TILE_RANGE_FLAG_NULL, tiles(bytes));
        // SAFETY: one entry each, valid for the call; no heap and no offset, which is right for this flag.
        unsafe {
            self.gpu.queue.UpdateTileMappings(
                range,
                1,
                Some(&at),
                Some(&size),
                None,
                1,
                Some(&flags),
                None,
                Some(&count),
                D3D12_TILE_MAPPING_FLAG_NONE,
            );
        }
        Ok(())
    }

    /// Queues a command list. Returns the value the fence has once it has been executed.
    ///
    /// # Safety
    /// The list must be closed and of the queue's type; all that it names must stay alive until the value has passed.
    pub unsafe fn execute(&self, after: After, list: ID3D12CommandList) -> Result<u64, D3d12Error> {
        let mut line = self.lock();
        if after == After::Uses {
            self.wait_for_uses(&mut line)?;
        }
        // SAFETY: by this function's contract.
        unsafe { self.gpu.queue.ExecuteCommandLists(&[Some(list)]) };
        self.signal(&mut line, After::Earlier)
    }

    /// Destroys something once all that is queued now has passed, by whomever, and all uses that were told of.
    pub fn bury(&self, dead: Dead) {
        let mut line = self.lock();
        let until = self.signal(&mut line, After::Uses).unwrap_or_else(|error| {
            tracing::warn!(%error, "what was given back stays until the device goes");
            line.next()
        });
        line.bury(until, dead);
        self.reap(&mut line);
    }

    /// Waits until all that was queued has passed, and destroys what is buried. True when something was.
    pub fn settle(&self) -> Result<bool, D3d12Error> {
        let value = self.signal(&mut self.lock(), After::Uses)?;
        self.wait(value)?;
        let mut line = self.lock();
        let waiting = !line.is_empty();
        self.reap(&mut line);
        Ok(waiting)
    }

    /// Waits on the host until the fence has `value`.
    pub fn wait(&self, value: u64) -> Result<(), D3d12Error> {
        // SAFETY: the fence is ours.
        let mut passed = unsafe { self.fence.GetCompletedValue() };
        if passed < value {
            let event = Event::new()?;
            // SAFETY: the event is alive, and waited for below.
            let set = unsafe { self.fence.SetEventOnCompletion(value, event.0) };
            answer("SetEventOnCompletion", set)?;
            // SAFETY: as above.
            unsafe { WaitForSingleObject(event.0, INFINITE) };
            // SAFETY: as above.
            passed = unsafe { self.fence.GetCompletedValue() };
        }
        // Of what was to be done nothing may have been, whatever the fence has.
        self.gpu.check_that_it_is_there()?;
        if passed == REMOVED {
            return Err(D3d12Error::Removed { reason: Hresult::DEVICE_REMOVED });
        }
        Ok(())
    }

    /// Waits for the uses that were told of, and for all that was queued, also by others; then destroys what is buried.
    /// For the end: a device that is removed uses nothing any more.
    pub fn finish(&self) {
        if let Err(error) = self.settle() {
            tracing::warn!(%error, "the device does not tell when it has finished");
            if let D3d12Error::Removed { .. } = error {
                drop(self.lock().passed(REMOVED));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Line<ID3D12Fence, Dead>> {
        // A panic in between leaves at worst something buried longer than it must be.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_uses(&self, line: &mut Line<ID3D12Fence, Dead>) -> Result<(), D3d12Error> {
        for (fence, value) in line.uses() {
            // SAFETY: a fence of the device's, by the contract of `used_by`.
            let waits = unsafe { self.gpu.queue.Wait(fence, *value) };
            answer("ID3D12CommandQueue::Wait", waits).map_err(|error| self.explain(error))?;
        }
        line.waited();
        Ok(())
    }

    /// Signals the next value behind all that is queued.
    fn signal(&self, line: &mut Line<ID3D12Fence, Dead>, after: After) -> Result<u64, D3d12Error> {
        if after == After::Uses {
            self.wait_for_uses(line)?;
        }
        // SAFETY: the fence is ours; values only rise, since the line is locked.
        let signals = unsafe { self.gpu.queue.Signal(&self.fence, line.next()) };
        answer("ID3D12CommandQueue::Signal", signals).map_err(|error| self.explain(error))?;
        line.signalled();
        Ok(line.last())
    }

    /// Destroys what is buried and has passed.
    fn reap(&self, line: &mut Line<ID3D12Fence, Dead>) {
        // SAFETY: the fence is ours.
        let passed = unsafe { self.fence.GetCompletedValue() };
        drop(line.passed(passed));
    }

    /// `error`, or that the device is removed where this is why.
    pub fn explain(&self, error: D3d12Error) -> D3d12Error {
        self.gpu.check_that_it_is_there().err().unwrap_or(error)
    }
}

/// An event of the system's.
struct Event(HANDLE);

impl Event {
    fn new() -> Result<Event, D3d12Error> {
        // SAFETY: no attributes, no name.
        answer("CreateEventW", unsafe { CreateEventW(None, true, false, None) }).map(Event)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by `new`, closed once. A failure would leave it open, no more.
        let _ = unsafe { CloseHandle(self.0) };
    }
}

/// The tile of a buffer with this number.
fn coordinate(tile: u32) -> D3D12_TILED_RESOURCE_COORDINATE {
    D3D12_TILED_RESOURCE_COORDINATE { X: tile, ..Default::default() }
}

fn size(tiles: u32) -> D3D12_TILE_REGION_SIZE {
    D3D12_TILE_REGION_SIZE { NumTiles: tiles, ..Default::default() }
}

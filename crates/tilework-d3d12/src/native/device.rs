//! A Direct3D 12 device whose reserved buffers take memory tile by tile, or where there are none, heaps with a buffer each.
//!
//! | trait | with tiled resources | without |
//! |---|---|---|
//! | `reserve`, `unreserve` | a reserved buffer, which goes once the queue has passed it | a name |
//! | `create`, `release` | an `ID3D12Heap`; goes likewise | a placed buffer over a heap, or a committed buffer; zeroed on the queue |
//! | `map` | `UpdateTileMappings`, one call for each heap, pieces that continue each other made one | the heap's buffer is the range's |
//! | `unmap` | `UpdateTileMappings` of nothing, behind the last use that was told of | it is no more |
//! | `read`, `write` | copies through buffers that the host reaches; the host waits | the same |
//!
//! Addresses only name places: [`View::find`] tells buffer, offset and the GPU's address.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tilework::device::books::{Books, no_host_heaps};
use tilework::device::{Aliasing, Bind, Call, Calls, Caps, Device, DeviceError, HeapId, Range, RangeId};
use windows::Win32::Graphics::Direct3D12::ID3D12Resource;

use super::adapters;
use super::gpu::{Gpu, Memory, Parts};
use super::order::{Dead, Order};
use super::staging::Staging;
use super::state::{Place, RangeBuffer, State};
use super::view::{View, failed, failed_for, lock};
use super::zeros::Zeros;
use crate::choice::{Backing, Choice};
use crate::error::{D3d12Error, Hresult};
use crate::tiles::{TILE, batches};

/// Where addresses begin: what is below lies in no range.
const FIRST_ADDRESS: u64 = 1 << 32;

/// A Direct3D 12 device: `d3d12`. [`Caps::tiling`] is false where it has no tiled resources.
///
/// Dropping it waits until its queue has passed what was queued.
///
/// What is held is by its own books. Memory that was released counts as given back, though the system has it
/// only once the queue has passed its last use.
#[derive(Debug)]
pub struct D3d12 {
    name: &'static str,
    caps: Caps,
    order: Arc<Order>,
    state: Arc<Mutex<State>>,
    /// Made by the first that needs it.
    staging: Mutex<Option<Staging>>,
    /// Likewise.
    zeros: Option<Zeros>,
    /// Where the next range is.
    next_address: u64,
    calls: Calls,
}

impl D3d12 {
    /// Makes a device and a queue on the adapter with this index, counted from 0 as DXGI counts.
    ///
    /// # Errors
    /// When there is no such adapter, or it is none of Direct3D 12; when the driver refuses.
    pub fn open(index: u32) -> Result<D3d12, D3d12Error> {
        let mut device = D3d12::on(adapters::open(index)?)?;
        device.name = device_name(index);
        Ok(device)
    }

    /// A device on a device and a queue of the user's.
    ///
    /// # Errors
    /// When the queue is neither direct nor compute; when no kind of buffer can be made.
    ///
    /// # Safety
    /// The queue was made by the device, which is the adapter's if there is one; nobody else maps tiles of what is made here.
    pub unsafe fn over(parts: Parts) -> Result<D3d12, D3d12Error> {
        D3d12::on(Gpu::new(parts)?)
    }

    /// A device that takes no tiles, whatever its tier: each heap is a placed buffer, or a committed one. For programs
    /// that compare, and for drivers whose tiled resources are found wanting. With [`Backing::Tiled`] it is as
    /// [`over`](D3d12::over).
    ///
    /// # Errors
    /// As [`over`](D3d12::over), and when such buffers cannot be made.
    ///
    /// # Safety
    /// As [`over`](D3d12::over).
    pub unsafe fn without_tiling(parts: Parts, backing: Backing) -> Result<D3d12, D3d12Error> {
        let mut gpu = Gpu::new(parts)?;
        if backing != Backing::Tiled {
            gpu.memory(backing, TILE)?;
            gpu.longest_range = gpu.longest_heap;
            gpu.choice = Choice { backing, reason: "asked for".to_owned(), ..gpu.choice };
        }
        D3d12::on(gpu)
    }

    fn on(gpu: Gpu) -> Result<D3d12, D3d12Error> {
        let tiling = gpu.choice.backing == Backing::Tiled;
        let caps = Caps {
            tile_bytes: TILE,
            tiling,
            partial_maps: tiling,
            needs_access: false,
            max_range_bytes: gpu.longest_range,
            memory: true,
            capacity_bytes: gpu.total_bytes,
            host_heaps: false,
            aliasing: Aliasing::AliasingBarrier,
        };
        Ok(D3d12 {
            name: device_name(0),
            order: Arc::new(Order::new(Arc::new(gpu))?),
            state: Arc::new(Mutex::new(State::new(Books::new(caps.clone())))),
            caps,
            staging: Mutex::new(None),
            zeros: None,
            next_address: FIRST_ADDRESS,
            calls: Calls::default(),
        })
    }

    /// What the program keeps when the device goes into a manager.
    pub fn view(&self) -> View {
        View::new(Arc::clone(&self.order), Arc::clone(&self.state))
    }

    /// Waits on the host until all that was queued has passed, so that what was given back is. True when something was.
    ///
    /// # Errors
    /// When the device was removed.
    pub fn settle(&self) -> Result<bool, D3d12Error> {
        self.order.settle()
    }

    /// Memory of `bytes`, zeroed; waits for what is buried if there is none otherwise.
    fn take(&mut self, bytes: u64) -> Result<Memory, D3d12Error> {
        let gpu = self.order.gpu();
        if bytes > gpu.longest_heap {
            return Err(D3d12Error::Refused { function: "CreateHeap", code: Hresult::OUT_OF_MEMORY });
        }
        let backing = gpu.choice.backing;
        let mut taken = gpu.memory(backing, bytes);
        if taken.as_ref().is_err_and(D3d12Error::is_out_of_memory) && self.order.settle()? {
            taken = gpu.memory(backing, bytes);
        }
        let memory = taken.map_err(|error| self.order.explain(error))?;
        if let Some(buffer) = memory.buffer() {
            let zeros = match &mut self.zeros {
                Some(zeros) => zeros,
                none => none.insert(Zeros::new(self.order.gpu())?),
            };
            // SAFETY: the buffer is the memory's and as long. From here on it goes through a grave, unless this fails: then
            // nothing was executed, or the device is removed.
            unsafe { zeros.fill(&self.order, buffer, bytes) }?;
        }
        Ok(memory)
    }

    /// Copies one way or the other, with the staging buffers; what is copied is resident for it.
    fn copy(
        &self,
        call: Call,
        address: u64,
        bytes: usize,
        copy: impl FnOnce(&mut Staging, &Order, &ID3D12Resource, u64) -> Result<(), D3d12Error>,
    ) -> Result<(), DeviceError> {
        let held = self.view().hold_for(call, address, bytes as u64)?;
        let found = {
            let state = lock(&self.state);
            state.find(address).and_then(|(place, offset)| Some((place.buffer.get()?.clone(), offset)))
        };
        let (buffer, offset) = found.expect("what is mapped has a buffer");
        // Each copy waits for its end; one that panicked has left nothing half done but bytes.
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let staging = match &mut *staging {
            Some(staging) => staging,
            none => none.insert(Staging::new(self.order.gpu()).map_err(|error| failed(error, call))?),
        };
        let copied = copy(staging, &self.order, &buffer, offset);
        drop(held);
        copied.map_err(|error| failed(error, call))
    }
}

/// The name the device with this index is chosen by.
fn device_name(index: u32) -> &'static str {
    match index {
        0 => "d3d12",
        // Names live as long as the program, and devices are few: a handful of bytes each.
        _ => Box::leak(format!("d3d12:{index}").into_boxed_str()),
    }
}

/// Runs one call of the driver and adds the time it took, nanoseconds.
fn timed<T>(nanos: &mut u64, call: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let answer = call();
    *nanos += u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    answer
}

impl Device for D3d12 {
    fn name(&self) -> &'static str {
        self.name
    }

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn reserve(&mut self, bytes: u64) -> Result<Range, DeviceError> {
        const CALL: Call = Call::Reserve;
        let mut state = lock(&self.state);
        state.books.check_reserve(bytes)?;
        let buffer = if self.caps.tiling {
            let made = timed(&mut self.calls.nanos, || {
                let gpu = self.order.gpu();
                let made = gpu.reserved(bytes);
                // What is buried may hold the address space that lacks.
                if made.is_err() && self.order.settle()? { gpu.reserved(bytes) } else { made }
            });
            // Out of memory here means address space, which no release of physical memory brings back.
            let made = made.map_err(|error| failed(self.order.explain(error), CALL));
            self.calls.reserve += 1;
            RangeBuffer::Reserved(made?)
        } else {
            self.calls.reserve += 1;
            RangeBuffer::OfHeap(None)
        };
        let range = state.books.reserve(self.next_address, bytes)?;
        state.places.insert(range.address, Place { id: range.id, bytes, buffer });
        // A tile apart, so that no two touch.
        self.next_address += bytes + TILE;
        Ok(range)
    }

    fn unreserve(&mut self, range: RangeId) -> Result<(), DeviceError> {
        let mut state = lock(&self.state);
        let gone = state.books.unreserve(range)?;
        if let Some(Place { buffer: RangeBuffer::Reserved(buffer), .. }) = state.places.remove(&gone.address)
        {
            timed(&mut self.calls.nanos, || self.order.bury(Dead::Buffer(buffer)));
        }
        self.calls.reserve += 1;
        Ok(())
    }

    fn create(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        const CALL: Call = Call::Create;
        let mut nanos = 0;
        let shared = Arc::clone(&self.state);
        let mut state = lock(&shared);
        state.books.check_create(bytes)?;
        let taken = timed(&mut nanos, || self.take(bytes));
        self.calls.nanos += nanos;
        self.calls.create += 1;
        let memory = taken.map_err(|error| failed_for(error, CALL, bytes))?;
        let heap = state.books.create(bytes)?;
        state.heaps.insert(heap, memory);
        state.residency.created(heap);
        Ok(heap)
    }

    fn create_on_host(&mut self, _: u64) -> Result<HeapId, DeviceError> {
        Err(no_host_heaps())
    }

    fn release(&mut self, heap: HeapId) -> Result<(), DeviceError> {
        let mut state = lock(&self.state);
        state.books.release(heap)?;
        state.residency.released(heap);
        if let Some(memory) = state.heaps.remove(&heap) {
            timed(&mut self.calls.nanos, || self.order.bury(Dead::Memory(memory)));
        }
        self.calls.release += 1;
        Ok(())
    }

    fn map(&mut self, range: RangeId, binds: &[Bind]) -> Result<(), DeviceError> {
        let mut state = lock(&self.state);
        let State { books, places, heaps, .. } = &mut *state;
        let Range { address, .. } = books.map(range, binds)?;
        let place = places.get_mut(&address).expect("each range has a place");
        match &mut place.buffer {
            RangeBuffer::Reserved(buffer) => {
                for (heap, batch) in batches(binds) {
                    let Memory::Tiles(heap) = &heaps[&heap] else {
                        unreachable!("heaps of a device with tiling are mapped by tiles")
                    };
                    timed(&mut self.calls.nanos, || {
                        // SAFETY: the buffer is the range's, the heap is alive, and the books have found the pieces to be
                        // whole tiles of both; they keep either from going while it is mapped.
                        unsafe { self.order.map(buffer, heap, &batch) };
                    });
                    self.calls.map += 1;
                }
            }
            RangeBuffer::OfHeap(buffer) => {
                // One bind, by the books: a heap backs a range of its own length.
                for bind in binds {
                    *buffer = heaps[&bind.heap].buffer().cloned();
                    self.calls.map += 1;
                }
            }
        }
        Ok(())
    }

    fn set_access(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        lock(&self.state).books.set_access(range, offset, bytes).map(drop)
    }

    fn unmap(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        const CALL: Call = Call::Unmap;
        let mut state = lock(&self.state);
        let State { books, places, .. } = &mut *state;
        books.pieces(CALL, range, offset, bytes)?;
        let Range { address, .. } = books.range(CALL, range)?;
        let place = places.get_mut(&address).expect("each range has a place");
        match &mut place.buffer {
            RangeBuffer::Reserved(buffer) => {
                let unmapped = timed(&mut self.calls.nanos, || {
                    // SAFETY: the buffer is the range's, and the books have found the bytes to be whole tiles of it. That
                    // nothing uses them any more is the caller's to know, as `Device::unmap` says.
                    unsafe { self.order.unmap(buffer, offset, bytes) }
                });
                unmapped.map_err(|error| failed(error, CALL))?;
            }
            // The buffer stays with its heap, which goes once the queue has passed its last use.
            RangeBuffer::OfHeap(buffer) => *buffer = None,
        }
        self.calls.unmap += 1;
        books.unmap(range, offset, bytes).map(drop)
    }

    fn add_peer(&mut self, _: u32) -> Result<(), DeviceError> {
        Ok(())
    }

    fn calls(&self) -> Calls {
        self.calls
    }

    fn held_bytes(&self) -> Result<u64, DeviceError> {
        Ok(lock(&self.state).books.held_bytes())
    }

    fn free_bytes(&self) -> Option<u64> {
        self.order.gpu().free_bytes()
    }

    fn ready(&self, _: u64) -> Option<u64> {
        None
    }

    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        if out.is_empty() {
            return Ok(());
        }
        self.copy(Call::Read, address, out.len(), |staging, order, buffer, offset| {
            // SAFETY: the books have found these bytes mapped; none of it is unmapped while `self` is borrowed, nor evicted
            // while it is referred to.
            unsafe { staging.read(order, buffer, offset, out) }
        })
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.copy(Call::Write, address, bytes.len(), |staging, order, buffer, offset| {
            // SAFETY: as in `read`.
            unsafe { staging.write(order, buffer, offset, bytes) }
        })
    }
}

impl Drop for D3d12 {
    fn drop(&mut self) {
        self.order.finish();
        // Nothing queued names any of it any more; what is mapped goes with its buffer.
        *lock(&self.state) = State::new(Books::new(self.caps.clone()));
    }
}

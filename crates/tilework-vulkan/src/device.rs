//! A Vulkan device: sparse buffers that take memory piece by piece, or, where it has none, plain ones that take a whole
//! heap each.
//!
//! | trait | sparse | plain |
//! |---|---|---|
//! | `reserve`, `unreserve` | a sparse `VkBuffer`, destroyed once what is queued has passed | a name |
//! | `create`, `release` | a `VkDeviceMemory`, zeroed on the queue; freed once what is queued has passed | the same; zeroed by the host where it is for it |
//! | `map` | one `vkQueueBindSparse`, binds that continue each other made one | a `VkBuffer`, bound at once |
//! | `unmap` | one `vkQueueBindSparse` of nothing, behind the last use that was told of | the buffer destroyed behind it |
//! | `read`, `write` | copies through a staging buffer; the host waits | the same |
//!
//! The queue does it all, each after what came before ([`order`](crate::order)); but for `read` and `write` the host
//! waits only where memory or address space that is still buried lacks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ash::vk::{self, Handle};
use rustc_hash::FxHashMap;
use tilework::device::books::{Books, no_host_heaps};
use tilework::device::{Aliasing, Bind, Call, Calls, Caps, Device, DeviceError, HeapId, Range, RangeId};
use tilework::units::exact;

use crate::error::{VulkanError, answer};
use crate::gpu::{Gpu, Parts};
use crate::order::{After, Dead, Order};
use crate::own::Own;
use crate::staging::Staging;
use crate::view::{Host, Place, Places, View};

/// How many of the longest ranges the address space has room for. It is bounded, by 1 TiB on an H200 and by 2 GiB on
/// Mesa's lavapipe, and what is stitched needs room beside the homes.
const LONGEST_RANGES: u64 = 4;

/// Where addresses begin that only name places: what is below lies in no range.
const FIRST_ADDRESS: u64 = 1 << 32;

/// The memory of a heap.
#[derive(Debug, Clone, Copy)]
struct Heap {
    memory: vk::DeviceMemory,
    /// Where the host sees it, if that reaches it.
    host: Option<Host>,
}

/// A Vulkan device: `vulkan`.
///
/// Dropping it waits until its queue is idle.
///
/// What is held is by its own books. Memory that was released counts as given back, though the driver has it
/// until the queue has passed its last unmapping.
#[derive(Debug)]
pub struct Vulkan {
    name: &'static str,
    order: Arc<Order>,
    places: Arc<Places>,
    books: Books,
    heaps: FxHashMap<HeapId, Heap>,
    /// Made by the first that needs it.
    staging: Mutex<Option<Staging>>,
    /// Where the next range is, when addresses only name places.
    next_address: u64,
    calls: Calls,
}

impl Vulkan {
    /// Makes an instance, a device and a queue on the physical device with this index, counted from 0 as
    /// `vkEnumeratePhysicalDevices` counts.
    ///
    /// # Errors
    /// When there is no loader, no such device, or none that is fit; when the driver refuses.
    pub fn open(index: u32) -> Result<Vulkan, VulkanError> {
        let own = Own::new(index)?;
        // SAFETY: made by `Own` as is asked for, with every feature, and owned by the parts.
        let mut device = unsafe { Vulkan::over(own.into_parts()) }?;
        device.name = device_name(index);
        Ok(device)
    }

    /// A device on an instance, a device and a queue of the user's.
    ///
    /// # Errors
    /// When the device or the queue's family cannot do what the parts say, or is too old; when the driver refuses.
    /// Nothing of ours is left then.
    ///
    /// # Safety
    /// * All parts are alive, belong together, and stay alive until `owner` is dropped: that is when this device and
    ///   all its [views](View) are gone. An owner that holds the user's own objects makes sure of it.
    /// * The instance was made for Vulkan 1.2 or later; the device with the feature `timelineSemaphore`, and with those
    ///   that `sparse` and `addresses` say it has.
    /// * The queue is of the family that is named. Whoever else submits to it, or waits for it to be idle, holds the
    ///   lock around it meanwhile; and who waits for the device to be idle, too.
    pub unsafe fn over(parts: Parts) -> Result<Vulkan, VulkanError> {
        // SAFETY: the same contract.
        Vulkan::on(unsafe { Gpu::new(parts) }?)
    }

    /// A device on what was looked at.
    pub(crate) fn on(gpu: Gpu) -> Result<Vulkan, VulkanError> {
        let gpu = Arc::new(gpu);
        let order = Arc::new(Order::new(Arc::clone(&gpu))?);
        let together = if gpu.sparse {
            gpu.abilities.address_space / LONGEST_RANGES
        } else {
            gpu.abilities.longest_allocation
        };
        let longest = gpu.abilities.longest_buffer.min(together);
        let max_range_bytes = longest.saturating_sub(slack(&gpu)) / gpu.tile_bytes * gpu.tile_bytes;
        if max_range_bytes == 0 {
            let reason = format!("the longest has {}", exact(longest));
            return Err(VulkanError::Unusable { name: gpu.abilities.name.clone(), reason });
        }
        let caps = Caps {
            tile_bytes: gpu.tile_bytes,
            tiling: gpu.sparse,
            partial_maps: gpu.sparse,
            needs_access: false,
            max_range_bytes,
            memory: true,
            capacity_bytes: Some(gpu.total_bytes()),
            host_heaps: false,
            aliasing: Aliasing::MemoryBarrier,
        };
        Ok(Vulkan {
            name: device_name(0),
            order,
            places: Arc::default(),
            books: Books::new(caps),
            heaps: FxHashMap::default(),
            staging: Mutex::new(None),
            next_address: FIRST_ADDRESS,
            calls: Calls::default(),
        })
    }

    /// What the program keeps when the device goes into a manager.
    pub fn view(&self) -> View {
        View::new(Arc::clone(&self.order), Arc::clone(&self.places))
    }

    /// Waits on the host until all that was queued has passed, so that what was given back is. True when something was.
    ///
    /// # Errors
    /// What the driver refused, as when the device is lost.
    pub fn settle(&self) -> Result<bool, VulkanError> {
        self.order.settle()
    }

    fn gpu(&self) -> &Gpu {
        self.order.gpu()
    }

    /// A place for a range of `bytes`, and its first address: a sparse buffer with room for it, or a name for one that
    /// is made when memory is there.
    fn make_place(&mut self, bytes: u64) -> Result<(Place, u64), VulkanError> {
        // The id is known once the books have it.
        let id = RangeId(u64::MAX);
        let gpu = self.order.gpu();
        if !gpu.sparse {
            let place = Place { id, buffer: vk::Buffer::null(), host: None, base: 0, bytes, buffer_bytes: 0 };
            return Ok((place, self.make_name(bytes)));
        }
        let buffer_bytes = bytes + slack(gpu);
        self.order.take_address_space(buffer_bytes)?;
        let made = gpu.create_for_range(buffer_bytes).and_then(|buffer| {
            let address = self.check_buffer(buffer).inspect_err(|_| gpu.destroy_buffer(buffer))?;
            Ok((buffer, address))
        });
        let (buffer, found) = made.inspect_err(|_| self.order.give_address_space(buffer_bytes))?;
        let tile = gpu.tile_bytes;
        let (address, base) = match found {
            Some(address) => (address.next_multiple_of(tile), address.next_multiple_of(tile) - address),
            None => (self.make_name(bytes), 0),
        };
        Ok((Place { id, buffer, host: None, base, bytes, buffer_bytes }, address))
    }

    /// An address that only names a place of `bytes`.
    fn make_name(&mut self, bytes: u64) -> u64 {
        let address = self.next_address;
        // A tile apart, so that no two touch.
        self.next_address = address + bytes + self.gpu().tile_bytes;
        address
    }

    /// The buffer's address, where there are such. Refuses a buffer that memory cannot be bound to by tiles.
    fn check_buffer(&self, buffer: vk::Buffer) -> Result<Option<u64>, VulkanError> {
        let gpu = self.order.gpu();
        let unusable = |reason| VulkanError::Unusable { name: gpu.abilities.name.clone(), reason };
        let wants = gpu.requirements(buffer);
        if wants.alignment > gpu.alignment || wants.memory_type_bits & (1 << gpu.memory_type) == 0 {
            return Err(unusable(format!("a longer one wants other memory: {wants:?}")));
        }
        if !gpu.addresses {
            return Ok(None);
        }
        let info = vk::BufferDeviceAddressInfo::default().buffer(buffer);
        // SAFETY: the feature is on, and the buffer sparse and made to have an address.
        let address = unsafe { gpu.device.get_buffer_device_address(&info) };
        if address == 0 || !address.is_multiple_of(gpu.alignment) {
            return Err(unusable(format!("the address of one is {address:#x}")));
        }
        Ok(Some(address))
    }

    /// Memory of `bytes`; waits for what is buried if there is none otherwise.
    fn take(&self, bytes: u64) -> Result<vk::DeviceMemory, VulkanError> {
        let gpu = self.gpu();
        match gpu.allocate(bytes, gpu.memory_type) {
            Err(error) if error.is_out_of_memory() && self.order.settle()? => {
                gpu.allocate(bytes, gpu.memory_type)
            }
            taken => taken,
        }
    }

    /// Queues zeros for all of a heap. What is mapped later comes after it.
    fn zero(&self, memory: vk::DeviceMemory, bytes: u64) -> Result<(), VulkanError> {
        let gpu = self.gpu();
        let buffer = gpu.create_buffer(bytes, vk::BufferUsageFlags::TRANSFER_DST)?;
        let queued = self.fill(buffer, memory, bytes);
        match queued {
            Ok(()) => self.order.bury(Dead::Buffer(buffer)),
            Err(_) => gpu.destroy_buffer(buffer),
        }
        queued
    }

    /// Zeroes all of a heap that the host reaches, and says where it sees it. Not on the queue: what the host writes next
    /// must come after it.
    fn zero_by_host(&self, memory: vk::DeviceMemory, bytes: u64) -> Result<Host, VulkanError> {
        // SAFETY: allocated a moment ago, of a type that the host sees.
        let first = unsafe { self.gpu().show(memory) }?;
        // SAFETY: all of the memory's bytes are mapped from there on; nobody else knows of them.
        unsafe { first.write_bytes(0, bytes as usize) };
        Ok(Host(first))
    }

    /// Gives a new plain buffer all of a heap.
    fn back(&self, buffer: vk::Buffer, memory: vk::DeviceMemory, bytes: u64) -> Result<(), VulkanError> {
        let gpu = self.gpu();
        let wants = gpu.requirements(buffer);
        if wants.size > bytes || wants.memory_type_bits & (1 << gpu.memory_type) == 0 {
            let reason = format!("a plain one over {bytes} bytes wants other memory: {wants:?}");
            return Err(VulkanError::Unusable { name: gpu.abilities.name.clone(), reason });
        }
        // SAFETY: the buffer is new and not bound; the memory is as long and of a type as it wants.
        let bound = unsafe { gpu.device.bind_buffer_memory(buffer, memory, 0) };
        answer("vkBindBufferMemory", bound)
    }

    fn fill(&self, buffer: vk::Buffer, memory: vk::DeviceMemory, bytes: u64) -> Result<(), VulkanError> {
        self.back(buffer, memory, bytes)?;
        // SAFETY: the buffer is for such commands and has memory; it is destroyed, and the memory freed, only through
        // graves that are dug later.
        let filled = unsafe {
            self.order.submit(After::Earlier, |device, commands| {
                device.cmd_fill_buffer(commands, buffer, 0, vk::WHOLE_SIZE, 0);
            })
        };
        filled.map(drop)
    }

    /// The place of a range that the books have.
    fn place(&self, range: Range) -> Place {
        let (place, _) = self.places.find(range.address).expect("each range has a place");
        place
    }

    /// Makes the plain buffer of a range, over all of a heap.
    fn bind_plain(&self, range: Range, Heap { memory, host }: Heap) -> Result<(), VulkanError> {
        let gpu = self.gpu();
        let buffer = gpu.create_for_range(range.bytes)?;
        self.back(buffer, memory, range.bytes).inspect_err(|_| gpu.destroy_buffer(buffer))?;
        self.places.insert(range.address, Place { buffer, host, ..self.place(range) });
        Ok(())
    }

    /// Destroys the plain buffer of a range, behind the uses that were told of.
    fn unbind_plain(&self, range: Range) -> Result<(), VulkanError> {
        // SAFETY: nothing is recorded.
        unsafe { self.order.submit(After::Uses, |_, _| {}) }?;
        let place = self.place(range);
        self.places.insert(range.address, Place { buffer: vk::Buffer::null(), host: None, ..place });
        self.order.bury(Dead::Buffer(place.buffer));
        Ok(())
    }

    /// Queues `binds`, or their absence.
    fn bind(&self, range: Range, binds: &[vk::SparseMemoryBind], after: After) -> Result<(), VulkanError> {
        let place = self.place(range);
        let shifted: Vec<_> = binds
            .iter()
            .map(|bind| vk::SparseMemoryBind { resource_offset: bind.resource_offset + place.base, ..*bind })
            .collect();
        // SAFETY: the buffer is the range's, alive; the books have found the binds to be whole tiles of it and of heaps
        // that are alive, and tiles are multiples of the alignment, as is the base; heaps are of a type that
        // `check_buffer` found fit. Nothing is replaced by a map; that nothing uses what is unmapped is the caller's
        // to know, as `Device::unmap` says.
        unsafe { self.order.bind(place.buffer, &shifted, after) }
    }

    /// Copies one way or the other, with the staging buffer.
    fn copy(
        &self,
        address: u64,
        copy: impl FnOnce(&mut Staging, &Order, vk::Buffer, u64) -> Result<(), VulkanError>,
    ) -> Result<(), VulkanError> {
        // Each copy waits for its end; one that panicked has left nothing half done but bytes.
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let staging = match &mut *staging {
            Some(staging) => staging,
            none => none.insert(Staging::new(self.gpu())?),
        };
        let (place, offset) = self.places.find(address).expect("what is mapped has a place");
        copy(staging, &self.order, place.buffer, place.base + offset)
    }
}

/// The name the device with this index is chosen by.
fn device_name(index: u32) -> &'static str {
    match index {
        0 => "vulkan",
        // Names live as long as the program, and devices are few: a handful of bytes each.
        _ => Box::leak(format!("vulkan:{index}").into_boxed_str()),
    }
}

/// How much longer than its range a buffer is, bytes, so that the range can begin at a multiple of the tile whatever
/// address the buffer gets.
fn slack(gpu: &Gpu) -> u64 {
    if gpu.addresses { gpu.tile_bytes - gpu.alignment } else { 0 }
}

/// `binds` as Vulkan has them, those made one that continue each other.
fn merged(binds: &[Bind], heaps: &FxHashMap<HeapId, Heap>) -> Vec<vk::SparseMemoryBind> {
    let mut merged: Vec<vk::SparseMemoryBind> = Vec::with_capacity(binds.len());
    let mut before: Option<&Bind> = None;
    for bind in binds {
        match merged.last_mut() {
            Some(last) if before.is_some_and(|before| before.continued_by(bind)) => last.size += bind.bytes,
            _ => merged.push(vk::SparseMemoryBind {
                resource_offset: bind.range_offset,
                size: bind.bytes,
                memory: heaps[&bind.heap].memory,
                memory_offset: bind.heap_offset,
                flags: vk::SparseMemoryBindFlags::empty(),
            }),
        }
        before = Some(bind);
    }
    merged
}

/// Runs one call of the driver and adds the time it took, nanoseconds.
fn timed<T>(nanos: &mut u64, call: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let answer = call();
    *nanos += u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    answer
}

impl Device for Vulkan {
    fn name(&self) -> &'static str {
        self.name
    }

    fn caps(&self) -> &Caps {
        self.books.caps()
    }

    fn reserve(&mut self, bytes: u64) -> Result<Range, DeviceError> {
        self.books.check_reserve(bytes)?;
        let mut nanos = 0;
        let made = timed(&mut nanos, || self.make_place(bytes));
        self.calls.nanos += nanos;
        self.calls.reserve += 1;
        // Out of memory here means address space, which no release of physical memory brings back.
        let (place, address) = made.map_err(|error| error.failed(Call::Reserve))?;
        let range = self.books.reserve(address, bytes)?;
        self.places.insert(address, Place { id: range.id, ..place });
        Ok(range)
    }

    fn unreserve(&mut self, range: RangeId) -> Result<(), DeviceError> {
        let gone = self.books.unreserve(range)?;
        if let Some(place) = self.places.remove(gone.address).filter(|place| !place.buffer.is_null()) {
            let dead = Dead::Sparse(place.buffer, place.buffer_bytes);
            timed(&mut self.calls.nanos, || self.order.bury(dead));
        }
        self.calls.reserve += 1;
        Ok(())
    }

    fn create(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        const CALL: Call = Call::Create;
        self.books.check_create(bytes)?;
        let mut nanos = 0;
        let made = timed(&mut nanos, || {
            let memory = self.take(bytes)?;
            let zeroed = match self.gpu().usage.on_host() {
                true => self.zero_by_host(memory, bytes).map(Some),
                false => self.zero(memory, bytes).map(|()| None),
            };
            let host = zeroed.inspect_err(|_| self.gpu().free(memory))?;
            Ok(Heap { memory, host })
        });
        self.calls.nanos += nanos;
        self.calls.create += 1;
        let made = made.map_err(|error: VulkanError| error.failed_for(CALL, bytes))?;
        let heap = self.books.create(bytes)?;
        self.heaps.insert(heap, made);
        Ok(heap)
    }

    fn create_on_host(&mut self, _: u64) -> Result<HeapId, DeviceError> {
        Err(no_host_heaps())
    }

    fn release(&mut self, heap: HeapId) -> Result<(), DeviceError> {
        self.books.release(heap)?;
        if let Some(Heap { memory, .. }) = self.heaps.remove(&heap) {
            timed(&mut self.calls.nanos, || self.order.bury(Dead::Memory(memory)));
        }
        self.calls.release += 1;
        Ok(())
    }

    fn map(&mut self, range: RangeId, binds: &[Bind]) -> Result<(), DeviceError> {
        let whole = self.books.map(range, binds)?;
        if binds.is_empty() {
            return Ok(());
        }
        let mut nanos = 0;
        let bound = timed(&mut nanos, || match binds {
            [bind] if !self.gpu().sparse => self.bind_plain(whole, self.heaps[&bind.heap]),
            _ => self.bind(whole, &merged(binds, &self.heaps), After::Earlier),
        });
        self.calls.nanos += nanos;
        self.calls.map += 1;
        let bytes = binds.iter().map(|bind| bind.bytes).sum();
        bound.map_err(|error| error.failed_for(Call::Map, bytes)).inspect_err(|_| {
            self.books.undo_map(range, binds);
        })
    }

    fn set_access(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        self.books.set_access(range, offset, bytes).map(drop)
    }

    fn unmap(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        const CALL: Call = Call::Unmap;
        self.books.pieces(CALL, range, offset, bytes)?;
        let whole = self.books.range(CALL, range)?;
        let nothing = vk::SparseMemoryBind { resource_offset: offset, size: bytes, ..Default::default() };
        let mut nanos = 0;
        let unbound = timed(&mut nanos, || match self.gpu().sparse {
            true => self.bind(whole, &[nothing], After::Uses),
            false => self.unbind_plain(whole),
        });
        self.calls.nanos += nanos;
        self.calls.unmap += 1;
        unbound.map_err(|error| error.failed(CALL))?;
        self.books.unmap(range, offset, bytes).map(drop)
    }

    fn add_peer(&mut self, _: u32) -> Result<(), DeviceError> {
        Ok(())
    }

    fn calls(&self) -> Calls {
        self.calls
    }

    fn held_bytes(&self) -> Result<u64, DeviceError> {
        Ok(self.books.held_bytes())
    }

    fn free_bytes(&self) -> Option<u64> {
        self.gpu().free_bytes()
    }

    fn ready(&self, _: u64) -> Option<u64> {
        None
    }

    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        const CALL: Call = Call::Read;
        self.books.check_use(CALL, address, out.len() as u64)?;
        if out.is_empty() {
            return Ok(());
        }
        self.copy(address, |staging, order, buffer, offset| {
            // SAFETY: the books have found these bytes mapped, and none of it can be unmapped while `self` is borrowed.
            unsafe { staging.read(order, buffer, offset, out) }
        })
        .map_err(|error| error.failed(CALL))
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        const CALL: Call = Call::Write;
        self.books.check_use(CALL, address, bytes.len() as u64)?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.copy(address, |staging, order, buffer, offset| {
            // SAFETY: as in `read`.
            unsafe { staging.write(order, buffer, offset, bytes) }
        })
        .map_err(|error| error.failed(CALL))
    }
}

impl Drop for Vulkan {
    fn drop(&mut self) {
        self.order.finish();
        let gpu = self.order.gpu();
        // Nothing queued names any of it any more; what is bound goes with its buffer.
        for place in self.places.drain().into_iter().filter(|place| !place.buffer.is_null()) {
            gpu.destroy_buffer(place.buffer);
            self.order.give_address_space(place.buffer_bytes);
        }
        for (_, Heap { memory, .. }) in self.heaps.drain() {
            gpu.free(memory);
        }
        if let Some(staging) = self.staging.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            staging.destroy(gpu);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_that_continue_each_other_are_one() {
        let heap = |id| Heap { memory: vk::DeviceMemory::from_raw(id), host: None };
        let heaps = [1, 2].map(|id| (HeapId(id), heap(id)));
        let heaps: FxHashMap<_, _> = heaps.into_iter().collect();
        let bind = |range_offset, heap, heap_offset, bytes| Bind {
            range_offset,
            heap: HeapId(heap),
            heap_offset,
            bytes,
        };
        let binds = [
            bind(0, 1, 0, 2),
            bind(2, 1, 2, 1),
            bind(3, 1, 3, 5),
            // Goes on in the range, not in the heap; in the heap, not in the range; in both, but of another heap.
            bind(8, 1, 0, 1),
            bind(10, 1, 1, 1),
            bind(11, 2, 2, 1),
            bind(12, 2, 3, 1),
        ];
        let found: Vec<_> = merged(&binds, &heaps)
            .iter()
            .map(|bind| (bind.resource_offset, bind.memory.as_raw(), bind.memory_offset, bind.size))
            .collect();
        assert_eq!(found, [(0, 1, 0, 8), (8, 1, 0, 1), (10, 1, 1, 1), (11, 2, 2, 2)]);
    }
}

//! What a program holds of a device that a manager has: where blocks are, and when they may be used.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ash::vk::{self, Handle};
use tilework::device::RangeId;

use crate::gpu::{Live, Queue};
use crate::order::Order;

/// The buffer of a range.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub id: RangeId,
    /// Null where buffers are plain and nothing is mapped.
    pub buffer: vk::Buffer,
    /// Where the host sees the range, while something is mapped that it reaches.
    pub host: Option<Host>,
    /// Where the range begins in the buffer, bytes: where its first address is a multiple of the tile.
    pub base: u64,
    /// The range's length, bytes.
    pub bytes: u64,
    /// What the buffer takes of the address space, bytes.
    pub buffer_bytes: u64,
}

/// Where the host sees memory.
#[derive(Debug, Clone, Copy)]
pub struct Host(pub NonNull<u8>);

// SAFETY: it is read and written only through what `View::host` gives, by whose leave is the program's to see to.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

/// The buffers of all ranges, by their first address.
#[derive(Debug, Default)]
pub struct Places(Mutex<BTreeMap<u64, Place>>);

impl Places {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Place>> {
        // Each change is one call of the map's.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn insert(&self, address: u64, place: Place) {
        self.lock().insert(address, place);
    }

    pub fn remove(&self, address: u64) -> Option<Place> {
        self.lock().remove(&address)
    }

    /// Takes them all away.
    pub fn drain(&self) -> Vec<Place> {
        std::mem::take(&mut *self.lock()).into_values().collect()
    }

    /// The place that `address` lies in, and how far from its beginning.
    pub fn find(&self, address: u64) -> Option<(Place, u64)> {
        let places = self.lock();
        let (&first, &place) = places.range(..=address).next_back()?;
        (address - first < place.bytes).then_some((place, address - first))
    }
}

/// Where an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// The buffer to name in descriptors and copies. It is the device's: never to be destroyed.
    pub buffer: vk::Buffer,
    /// Where in the buffer, bytes.
    pub offset: u64,
    /// The range that the buffer is. Never used for another: what was recorded for a block holds while its ranges and
    /// offsets are the same.
    pub range: RangeId,
}

/// What a program holds of a device that went into a manager: by it addresses become buffers, and submissions and
/// binds are ordered. It may be cloned and used from any thread, also after the device is gone.
///
/// A submission does three things:
///
/// 1. It waits for [`ready`](View::ready), as it was when its blocks had been allocated.
/// 2. It uses blocks by [`find`](View::find), or by their addresses where the device
///    [has them](View::has_addresses).
/// 3. It signals a timeline semaphore of the program, of which [`used_by`](View::used_by) is told.
#[derive(Debug, Clone)]
pub struct View {
    order: Arc<Order>,
    places: Arc<Places>,
}

impl View {
    pub(crate) fn new(order: Arc<Order>, places: Arc<Places>) -> View {
        View { order, places }
    }

    /// The buffer that `address` lies in. `None` where nothing is reserved, and, where buffers are plain, mapped.
    pub fn find(&self, address: u64) -> Option<Slice> {
        let (place, offset) = self.places.find(address).filter(|(place, _)| !place.buffer.is_null())?;
        Some(Slice { buffer: place.buffer, offset: place.base + offset, range: place.id })
    }

    /// Where the host sees what is at `address`, to the end of its block, while that is allocated. `None` where the memory
    /// is [for the device](crate::MemoryUsage::Device), and where nothing is mapped.
    ///
    /// What the host writes is seen by what is submitted afterwards. What a submission has written is seen by the host
    /// once the submission, with a barrier to the host's reads at its end, has passed. Memory is used again at once
    /// when its block is freed: the host must not write to a block before all that used the memory has passed, so such
    /// blocks are freed once their uses have, or through [`Fenced`](tilework::manager::Fenced).
    pub fn host(&self, address: u64) -> Option<NonNull<u8>> {
        let (place, offset) = self.places.find(address)?;
        // SAFETY: the range is mapped, so as much memory as it has bytes is there; the offset lies in it.
        place.host.map(|Host(first)| unsafe { first.add(offset as usize) })
    }

    /// Whether addresses are the GPU's own (`bufferDeviceAddress`). If not they only name places.
    pub fn has_addresses(&self) -> bool {
        self.order.gpu().addresses
    }

    /// The device's timeline semaphore, and the value it has once all that was mapped so far is mapped. A submission
    /// that uses blocks waits for it, at all stages.
    pub fn ready(&self) -> (vk::Semaphore, u64) {
        self.order.ready()
    }

    /// Tells that what was submitted so far has used the device's memory for the last time when `semaphore` has
    /// `value`. What is unmapped or read from here on waits for it, on the device. Per semaphore the greatest value
    /// counts.
    ///
    /// # Safety
    /// `semaphore` must be a timeline semaphore of the device and live until a later value of
    /// [`ready`](View::ready) has passed with something unmapped before, or the device and its views are gone.
    /// Something must have been submitted that signals the value and waits for nothing that comes after it.
    pub unsafe fn used_by(&self, semaphore: vk::Semaphore, value: u64) {
        // SAFETY: the same contract.
        unsafe { self.order.used_by(semaphore, value) };
    }

    /// The queue that memory is bound on. Whoever submits to it holds its lock meanwhile.
    pub fn queue(&self) -> &Queue {
        &self.order.gpu().queue
    }

    /// The family of the queue.
    pub fn family(&self) -> u32 {
        self.order.gpu().family
    }

    /// The Vulkan device.
    pub fn device(&self) -> &ash::Device {
        &self.order.gpu().device
    }

    /// The Vulkan instance.
    pub fn instance(&self) -> &ash::Instance {
        &self.order.gpu().instance
    }

    /// The physical device.
    pub fn physical_device(&self) -> vk::PhysicalDevice {
        self.order.gpu().physical
    }

    /// Objects of Vulkan's that are alive, those included that wait for what is queued.
    pub fn live(&self) -> Live {
        self.order.gpu().live()
    }
}

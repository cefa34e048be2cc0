//! One Direct3D 12 device and one queue of it, and the objects that are made on it, counted.

use std::ffi::c_void;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use windows::Win32::Graphics::Direct3D12::{
    D3D12_COMMAND_LIST_TYPE, D3D12_COMMAND_LIST_TYPE_COMPUTE, D3D12_COMMAND_LIST_TYPE_DIRECT, D3D12_FEATURE,
    D3D12_FEATURE_ARCHITECTURE, D3D12_FEATURE_D3D12_OPTIONS, D3D12_FEATURE_DATA_ARCHITECTURE,
    D3D12_FEATURE_DATA_D3D12_OPTIONS, D3D12_FEATURE_DATA_GPU_VIRTUAL_ADDRESS_SUPPORT,
    D3D12_FEATURE_GPU_VIRTUAL_ADDRESS_SUPPORT, D3D12_HEAP_DESC, D3D12_HEAP_FLAG_ALLOW_ONLY_BUFFERS,
    D3D12_HEAP_FLAG_NONE, D3D12_HEAP_PROPERTIES, D3D12_HEAP_TYPE, D3D12_HEAP_TYPE_DEFAULT,
    D3D12_HEAP_TYPE_READBACK, D3D12_RESOURCE_DESC, D3D12_RESOURCE_DIMENSION_BUFFER,
    D3D12_RESOURCE_FLAG_ALLOW_UNORDERED_ACCESS, D3D12_RESOURCE_FLAG_NONE, D3D12_RESOURCE_STATE_COMMON,
    D3D12_RESOURCE_STATE_COPY_DEST, D3D12_RESOURCE_STATE_GENERIC_READ, D3D12_TEXTURE_LAYOUT_ROW_MAJOR,
    ID3D12CommandAllocator, ID3D12CommandQueue, ID3D12Device, ID3D12GraphicsCommandList, ID3D12Heap,
    ID3D12Pageable, ID3D12Resource,
};
use windows::Win32::Graphics::Dxgi::Common::DXGI_SAMPLE_DESC;
use windows::Win32::Graphics::Dxgi::{
    DXGI_MEMORY_SEGMENT_GROUP_LOCAL, DXGI_QUERY_VIDEO_MEMORY_INFO, IDXGIAdapter3,
};
use windows::core::Interface;

use super::adapters::Description;
use super::{answer, made};
use crate::choice::{Backing, Choice};
use crate::error::{D3d12Error, Hresult};
use crate::tiles::TILE;

/// How many of the longest ranges there must be room for at once: what is stitched lies beside the homes.
const LONGEST_RANGES: usize = 4;

/// No range and no heap is longer, in bits, so that tiles have numbers of 32 bits. Nor are they on any device.
const MOST_ADDRESS_BITS: u32 = 47;

/// How long a range is looked for where the memory is not known, bytes.
const LONGEST_LOOKED_FOR: u64 = 256 << 30;

/// A user's own device and queue. Direct3D counts who holds them: they stay as long as they are needed.
#[derive(Clone)]
pub struct Parts {
    /// The device.
    pub device: ID3D12Device,
    /// The queue that tiles are mapped on, direct or compute. Command lists that use blocks are best executed on it.
    pub queue: ID3D12CommandQueue,
    /// The adapter of the device, which tells its name and what memory is there and free; without it nothing does.
    pub adapter: Option<IDXGIAdapter3>,
}

/// Direct3D's objects that are alive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Live {
    /// Buffers: of ranges, of heaps, and for staging.
    pub buffers: u64,
    /// Heaps; committed buffers, which have one each, are not among them.
    pub heaps: u64,
}

/// An object of Direct3D's, counted while it is held.
#[derive(Debug)]
pub struct Counted<T> {
    object: T,
    count: Arc<AtomicU64>,
}

impl<T> Counted<T> {
    fn new(object: T, count: &Arc<AtomicU64>) -> Counted<T> {
        count.fetch_add(1, Relaxed);
        Counted { object, count: Arc::clone(count) }
    }
}

impl<T> Deref for Counted<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.object
    }
}

impl<T> Drop for Counted<T> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
    }
}

/// What a heap of the device's is.
#[derive(Debug)]
pub enum Memory {
    /// A heap whose tiles are mapped.
    Tiles(Counted<ID3D12Heap>),
    /// A heap with one buffer over all of it.
    Placed(Counted<ID3D12Resource>, Counted<ID3D12Heap>),
    /// A buffer with memory of its own.
    Committed(Counted<ID3D12Resource>),
}

impl Memory {
    /// The buffer over it, where tiles are not mapped.
    pub fn buffer(&self) -> Option<&ID3D12Resource> {
        match self {
            Memory::Tiles(_) => None,
            Memory::Placed(buffer, _) | Memory::Committed(buffer) => Some(buffer),
        }
    }

    /// What is evicted and made resident.
    pub fn pageable(&self) -> Option<ID3D12Pageable> {
        // Both are pageable by Direct3D's definition.
        match self {
            Memory::Tiles(heap) | Memory::Placed(_, heap) => heap.cast().ok(),
            Memory::Committed(buffer) => buffer.cast().ok(),
        }
    }
}

/// A device with what was found out about it.
pub struct Gpu {
    pub name: String,
    pub device: ID3D12Device,
    pub queue: ID3D12CommandQueue,
    /// Of the queue, and so of command lists.
    pub kind: D3D12_COMMAND_LIST_TYPE,
    pub choice: Choice,
    /// The longest range, bytes.
    pub longest_range: u64,
    /// The memory there is, bytes, where it is told.
    pub total_bytes: Option<u64>,
    /// No heap is longer, bytes.
    pub longest_heap: u64,
    adapter: Option<IDXGIAdapter3>,
    buffers: Arc<AtomicU64>,
    heaps: Arc<AtomicU64>,
}

impl Gpu {
    /// Looks at the parts and takes them over.
    pub fn new(parts: Parts) -> Result<Gpu, D3d12Error> {
        let Parts { device, queue, adapter } = parts;
        // SAFETY: interfaces that are held are alive, here and in all calls of this module.
        let kind = unsafe { queue.GetDesc() }.Type;
        if ![D3D12_COMMAND_LIST_TYPE_DIRECT, D3D12_COMMAND_LIST_TYPE_COMPUTE].contains(&kind) {
            return Err(D3d12Error::WrongQueue { kind: kind.0 });
        }
        let description = match &adapter {
            Some(adapter) => Some(Description::of(adapter)?),
            None => None,
        };
        let unified = is_unified(&device);
        let mut gpu = Gpu {
            total_bytes: description.as_ref().and_then(|description| description.memory_bytes(unified)),
            name: description.map_or_else(|| "the device".to_owned(), |description| description.name),
            kind,
            choice: Choice { tier: 0, backing: Backing::Committed, reason: String::new() },
            longest_range: 0,
            longest_heap: 1 << address_bits(&device),
            adapter,
            buffers: Arc::default(),
            heaps: Arc::default(),
            device,
            queue,
        };
        gpu.check_that_it_is_there()?;
        let mut options = D3D12_FEATURE_DATA_D3D12_OPTIONS::default();
        ask(&gpu.device, D3D12_FEATURE_D3D12_OPTIONS, &mut options)?;
        let tier = options.TiledResourcesTier.0.clamp(0, 4) as u8;
        let choice = Choice::of(tier, |backing| match backing {
            Backing::Tiled => gpu.reserved(TILE).map(drop),
            Backing::Placed | Backing::Committed => gpu.memory(backing, TILE).map(drop),
        });
        gpu.choice = choice
            .map_err(|error| D3d12Error::Unusable { name: gpu.name.clone(), reason: error.to_string() })?;
        gpu.longest_range = gpu.find_longest_range();
        Ok(gpu)
    }

    /// # Errors
    /// When the device was removed.
    pub fn check_that_it_is_there(&self) -> Result<(), D3d12Error> {
        // SAFETY: as above.
        let there = unsafe { self.device.GetDeviceRemovedReason() };
        there.map_err(|error| D3d12Error::Removed { reason: Hresult(error.code().0) })
    }

    /// What the device says of its address space is not what buffers may take of it: that is tried.
    fn find_longest_range(&self) -> u64 {
        if self.choice.backing != Backing::Tiled {
            // A range is as long as its heap there, and only a name before.
            return self.longest_heap;
        }
        // Room for all homes in one, and no page tables for more.
        let wanted = self.total_bytes.map_or(LONGEST_LOOKED_FOR, u64::next_power_of_two);
        let mut bytes = wanted.min(self.longest_heap).max(TILE);
        while bytes > TILE && !self.has_room_for(bytes) {
            bytes /= 2;
        }
        bytes
    }

    fn has_room_for(&self, bytes: u64) -> bool {
        // Collected, so that all are there at once.
        let ranges: Result<Vec<_>, _> = (0..LONGEST_RANGES).map(|_| self.reserved(bytes)).collect();
        ranges.is_ok()
    }

    /// Objects that are alive.
    pub fn live(&self) -> Live {
        Live { buffers: self.buffers.load(Relaxed), heaps: self.heaps.load(Relaxed) }
    }

    /// The memory that this process may still take, bytes, by the system's budget for it.
    pub fn free_bytes(&self) -> Option<u64> {
        let mut info = DXGI_QUERY_VIDEO_MEMORY_INFO::default();
        // SAFETY: the pointer is to a structure of the kind that is written.
        let told = unsafe {
            self.adapter.as_ref()?.QueryVideoMemoryInfo(0, DXGI_MEMORY_SEGMENT_GROUP_LOCAL, &mut info)
        };
        told.ok().map(|()| info.Budget.saturating_sub(info.CurrentUsage))
    }

    /// A buffer without memory, into which tiles are mapped.
    pub fn reserved(&self, bytes: u64) -> Result<Counted<ID3D12Resource>, D3d12Error> {
        let desc = buffer_desc(bytes);
        let mut buffer = None;
        // SAFETY: the description is valid, the pointer to a place for an interface; so in what follows.
        let created = unsafe {
            self.device.CreateReservedResource(&desc, D3D12_RESOURCE_STATE_COMMON, None, &mut buffer)
        };
        made("CreateReservedResource", created, buffer).map(|buffer| Counted::new(buffer, &self.buffers))
    }

    /// Memory of `bytes`, which Direct3D zeroes ([`Zeros`](super::zeros::Zeros) tells where that is not relied on).
    pub fn memory(&self, backing: Backing, bytes: u64) -> Result<Memory, D3d12Error> {
        if backing == Backing::Committed {
            return self.committed(D3D12_HEAP_TYPE_DEFAULT, bytes).map(Memory::Committed);
        }
        let desc = D3D12_HEAP_DESC {
            SizeInBytes: bytes,
            Properties: properties(D3D12_HEAP_TYPE_DEFAULT),
            Alignment: TILE,
            Flags: D3D12_HEAP_FLAG_ALLOW_ONLY_BUFFERS,
        };
        let mut heap: Option<ID3D12Heap> = None;
        // SAFETY: as above.
        let created = unsafe { self.device.CreateHeap(&desc, &mut heap) };
        let heap = Counted::new(made("CreateHeap", created, heap)?, &self.heaps);
        if backing == Backing::Tiled {
            return Ok(Memory::Tiles(heap));
        }
        let desc = buffer_desc(bytes);
        let mut buffer = None;
        // SAFETY: as above; the heap is for buffers and as long as this one.
        let created = unsafe {
            self.device.CreatePlacedResource(&*heap, 0, &desc, D3D12_RESOURCE_STATE_COMMON, None, &mut buffer)
        };
        let buffer = made("CreatePlacedResource", created, buffer)?;
        Ok(Memory::Placed(Counted::new(buffer, &self.buffers), heap))
    }

    /// A buffer with memory of its own, in a heap of this type.
    pub fn committed(
        &self,
        heap: D3D12_HEAP_TYPE,
        bytes: u64,
    ) -> Result<Counted<ID3D12Resource>, D3d12Error> {
        let mut desc = buffer_desc(bytes);
        // What the host reaches has one state for its life, and shaders do not write it.
        let state = match heap {
            D3D12_HEAP_TYPE_DEFAULT => D3D12_RESOURCE_STATE_COMMON,
            D3D12_HEAP_TYPE_READBACK => D3D12_RESOURCE_STATE_COPY_DEST,
            _ => D3D12_RESOURCE_STATE_GENERIC_READ,
        };
        if heap != D3D12_HEAP_TYPE_DEFAULT {
            desc.Flags = D3D12_RESOURCE_FLAG_NONE;
        }
        let mut buffer = None;
        // SAFETY: as above.
        let created = unsafe {
            self.device.CreateCommittedResource(
                &properties(heap),
                D3D12_HEAP_FLAG_NONE,
                &desc,
                state,
                None,
                &mut buffer,
            )
        };
        made("CreateCommittedResource", created, buffer).map(|buffer| Counted::new(buffer, &self.buffers))
    }

    /// A command list that is open, of the queue's type, and what it is recorded in.
    pub fn commands(&self) -> Result<(ID3D12CommandAllocator, ID3D12GraphicsCommandList), D3d12Error> {
        // SAFETY: the device is alive.
        let allocator = unsafe { self.device.CreateCommandAllocator(self.kind) };
        let allocator: ID3D12CommandAllocator = answer("CreateCommandAllocator", allocator)?;
        // SAFETY: the allocator is of the list's type, and nothing else is recorded in it.
        let list = unsafe { self.device.CreateCommandList(0, self.kind, &allocator, None) };
        Ok((allocator, answer("CreateCommandList", list)?))
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Whether the device has no memory but the system's.
pub fn is_unified(device: &ID3D12Device) -> bool {
    let mut architecture = D3D12_FEATURE_DATA_ARCHITECTURE::default();
    ask(device, D3D12_FEATURE_ARCHITECTURE, &mut architecture).is_ok() && architecture.UMA.as_bool()
}

/// How long addresses of one buffer are, bits.
fn address_bits(device: &ID3D12Device) -> u32 {
    let mut support = D3D12_FEATURE_DATA_GPU_VIRTUAL_ADDRESS_SUPPORT::default();
    let told = ask(device, D3D12_FEATURE_GPU_VIRTUAL_ADDRESS_SUPPORT, &mut support);
    // Every device has 31 bits, and one that does not tell has those.
    let bits = if told.is_ok() { support.MaxGPUVirtualAddressBitsPerResource } else { 0 };
    bits.clamp(31, MOST_ADDRESS_BITS)
}

/// Has the device fill in a structure of the kind that belongs to `feature`.
fn ask<T>(device: &ID3D12Device, feature: D3D12_FEATURE, data: &mut T) -> Result<(), D3d12Error> {
    // SAFETY: the pointer is to a structure of the length that is told; the device refuses another than the feature's.
    let told = unsafe {
        device.CheckFeatureSupport(feature, (&raw mut *data).cast::<c_void>(), size_of::<T>() as u32)
    };
    answer("CheckFeatureSupport", told)
}

fn properties(heap: D3D12_HEAP_TYPE) -> D3D12_HEAP_PROPERTIES {
    D3D12_HEAP_PROPERTIES { Type: heap, ..Default::default() }
}

/// A buffer that shaders write, too. Its state is COMMON in the beginning, as Direct3D has it for all buffers: the first
/// use in a command list promotes it to any state, unordered access above all, and it decays to COMMON when the list
/// has been executed. So an executor that takes its buffers to be in unordered access finds them so.
fn buffer_desc(bytes: u64) -> D3D12_RESOURCE_DESC {
    D3D12_RESOURCE_DESC {
        Dimension: D3D12_RESOURCE_DIMENSION_BUFFER,
        Width: bytes,
        Height: 1,
        DepthOrArraySize: 1,
        MipLevels: 1,
        SampleDesc: DXGI_SAMPLE_DESC { Count: 1, Quality: 0 },
        Layout: D3D12_TEXTURE_LAYOUT_ROW_MAJOR,
        Flags: D3D12_RESOURCE_FLAG_ALLOW_UNORDERED_ACCESS,
        ..Default::default()
    }
}

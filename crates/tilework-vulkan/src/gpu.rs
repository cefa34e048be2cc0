//! One logical device and one queue of it, and the objects that are made on it, counted.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ash::vk;

use crate::abilities::{Abilities, is_fit};
use crate::error::{PIECES, VulkanError, answer};
use crate::usage::MemoryUsage;

/// The shortest tile, bytes. Drivers on the host could map pages; nothing is gained by tiles as short.
const SHORTEST_TILE: u64 = 64 << 10;

/// What blocks may be used for.
const USAGE: vk::BufferUsageFlags = vk::BufferUsageFlags::from_raw(
    vk::BufferUsageFlags::TRANSFER_SRC.as_raw()
        | vk::BufferUsageFlags::TRANSFER_DST.as_raw()
        | vk::BufferUsageFlags::UNIFORM_BUFFER.as_raw()
        | vk::BufferUsageFlags::STORAGE_BUFFER.as_raw()
        | vk::BufferUsageFlags::INDEX_BUFFER.as_raw()
        | vk::BufferUsageFlags::VERTEX_BUFFER.as_raw()
        | vk::BufferUsageFlags::INDIRECT_BUFFER.as_raw(),
);

/// A queue, and the lock that whoever submits to it holds meanwhile: Vulkan wants queues used by one thread at a time.
pub type Queue = Arc<Mutex<vk::Queue>>;

/// A user's own instance, device and queue.
pub struct Parts {
    /// The instance, made for Vulkan 1.2 or later.
    pub instance: ash::Instance,
    /// The physical device that `device` was made of.
    pub physical: vk::PhysicalDevice,
    /// The device.
    pub device: ash::Device,
    /// The family of `queue`: one that copies, and binds sparse memory if `sparse` says so.
    pub family: u32,
    /// The queue that memory is bound on.
    pub queue: Queue,
    /// Whether the device was made with the features `sparseBinding`, `sparseResidencyBuffer` and
    /// `sparseResidencyAliased`. Without them memory is placed, not tiled.
    pub sparse: bool,
    /// Whether the device was made with the feature `bufferDeviceAddress`. Not used without `sparse`.
    pub addresses: bool,
    /// What memory is for. What the host is to reach is placed, whatever `sparse` says.
    pub usage: MemoryUsage,
    /// What keeps the others alive; dropped once nothing of them is used any more.
    pub owner: Box<dyn Any + Send + Sync>,
}

/// Vulkan's objects that are alive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Live {
    /// Buffers: of ranges, of heaps that are being zeroed, and for staging.
    pub buffers: u64,
    /// Pieces of device memory: heaps, and one for staging.
    pub memories: u64,
}

/// A logical device with what was found out about it.
pub struct Gpu {
    pub instance: ash::Instance,
    pub physical: vk::PhysicalDevice,
    pub device: ash::Device,
    pub family: u32,
    pub queue: Queue,
    pub sparse: bool,
    pub addresses: bool,
    pub usage: MemoryUsage,
    pub abilities: Abilities,
    /// What offsets of memory in buffers are multiples of, bytes.
    pub alignment: u64,
    pub tile_bytes: u64,
    /// Of the heaps.
    pub memory_type: u32,
    buffers: AtomicU64,
    memories: AtomicU64,
    /// Last, so that it is dropped last.
    _owner: Box<dyn Any + Send + Sync>,
}

impl Gpu {
    /// Looks at the parts and takes them over.
    ///
    /// # Errors
    /// Those of [`Abilities::read`], [`VulkanError::NoQueue`], [`VulkanError::Unusable`], or what the driver
    /// refused; nothing is left then.
    ///
    /// # Safety
    /// As for [`Vulkan::over`](crate::Vulkan::over).
    pub unsafe fn new(parts: Parts) -> Result<Gpu, VulkanError> {
        let Parts { instance, physical, device, family, queue, sparse, addresses, usage, owner } = parts;
        // SAFETY: alive and new enough, by this function's contract.
        let abilities = unsafe { Abilities::read(&instance, physical) }?;
        if let (true, Some(feature)) = (sparse, abilities.lacks) {
            return Err(VulkanError::Lacks { name: abilities.name, feature });
        }
        // SAFETY: alive, by this function's contract.
        let families = unsafe { instance.get_physical_device_queue_family_properties(physical) };
        if !families.get(family as usize).is_some_and(|family| is_fit(family, sparse)) {
            let what = format!("queue family {family} of {}", abilities.name);
            return Err(VulkanError::NoQueue { what });
        }
        let sparse = sparse && !usage.on_host();
        let mut gpu = Gpu {
            instance,
            physical,
            device,
            family,
            queue,
            sparse,
            // A range has a buffer only while it is mapped then, and so no address of its own.
            addresses: addresses && sparse,
            usage,
            abilities,
            alignment: 1,
            tile_bytes: SHORTEST_TILE,
            memory_type: 0,
            buffers: AtomicU64::new(0),
            memories: AtomicU64::new(0),
            _owner: owner,
        };
        gpu.probe()?;
        Ok(gpu)
    }

    /// Finds out which memory the buffers of ranges take, and how it is aligned, on one of a tile. What buffers for
    /// copies take matters, too: heaps are zeroed through one.
    fn probe(&mut self) -> Result<(), VulkanError> {
        let range = self.create_for_range(SHORTEST_TILE)?;
        let of_range = self.requirements(range);
        self.destroy_buffer(range);
        let plain = self.create_buffer(SHORTEST_TILE, vk::BufferUsageFlags::TRANSFER_DST)?;
        let of_plain = self.requirements(plain);
        self.destroy_buffer(plain);
        let unusable = |reason: String| VulkanError::Unusable { name: self.abilities.name.clone(), reason };
        if !of_range.alignment.is_power_of_two() {
            return Err(unusable(format!("their alignment is {}", of_range.alignment)));
        }
        let mask = of_range.memory_type_bits & of_plain.memory_type_bits;
        let memory_type = self
            .usage
            .memory_type(&self.abilities.memory, mask)
            .ok_or_else(|| unusable("no type of memory serves them and other buffers".to_owned()))?;
        self.memory_type = memory_type;
        self.alignment = of_range.alignment;
        self.tile_bytes = SHORTEST_TILE.max(of_range.alignment);
        Ok(())
    }

    /// Objects that are alive.
    pub fn live(&self) -> Live {
        Live { buffers: self.buffers.load(Relaxed), memories: self.memories.load(Relaxed) }
    }

    /// The heap of memory that ours come from.
    fn heap_index(&self) -> usize {
        self.abilities.memory.memory_types[self.memory_type as usize].heap_index as usize
    }

    /// The memory there is, bytes.
    pub fn total_bytes(&self) -> u64 {
        self.abilities.memory.memory_heaps[self.heap_index()].size
    }

    /// The memory that this process may still take, bytes, as the driver estimates.
    pub fn free_bytes(&self) -> Option<u64> {
        if !self.abilities.tells_budget {
            return None;
        }
        let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
        let mut memory = vk::PhysicalDeviceMemoryProperties2::default().push_next(&mut budget);
        // SAFETY: the device is alive and has the extension of the structure that is chained.
        unsafe { self.instance.get_physical_device_memory_properties2(self.physical, &mut memory) };
        let index = self.heap_index();
        Some(budget.heap_budget[index].saturating_sub(budget.heap_usage[index]))
    }

    /// The queue, for as long as the guard lives.
    pub fn lock_queue(&self) -> MutexGuard<'_, vk::Queue> {
        // What is behind the lock is a name, which no panic leaves half changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer of `bytes` for what blocks may be used for; a sparse one, to which memory may be bound piece by piece,
    /// here and elsewhere, where the device has such.
    pub fn create_for_range(&self, bytes: u64) -> Result<vk::Buffer, VulkanError> {
        let mut flags = vk::BufferCreateFlags::empty();
        if self.sparse {
            flags = vk::BufferCreateFlags::SPARSE_BINDING
                | vk::BufferCreateFlags::SPARSE_RESIDENCY
                | vk::BufferCreateFlags::SPARSE_ALIASED;
        }
        let mut usage = USAGE;
        if self.addresses {
            usage |= vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS;
        }
        self.make_buffer(vk::BufferCreateInfo::default().flags(flags).size(bytes).usage(usage))
    }

    /// A buffer of `bytes` without memory.
    pub fn create_buffer(&self, bytes: u64, usage: vk::BufferUsageFlags) -> Result<vk::Buffer, VulkanError> {
        self.make_buffer(vk::BufferCreateInfo::default().size(bytes).usage(usage))
    }

    fn make_buffer(&self, info: vk::BufferCreateInfo<'_>) -> Result<vk::Buffer, VulkanError> {
        if info.size > self.abilities.longest_buffer {
            return Err(VulkanError::Limit { limit: "maxBufferSize", most: self.abilities.longest_buffer });
        }
        // SAFETY: the device is alive; size and usage are not zero; sparse flags are passed only as a device with
        // these features takes them. That all sparse buffers together fit is seen to by who reserves.
        let buffer = answer("vkCreateBuffer", unsafe { self.device.create_buffer(&info, None) })?;
        self.buffers.fetch_add(1, Relaxed);
        Ok(buffer)
    }

    /// Destroys a buffer that was created here and that no unfinished work uses.
    pub fn destroy_buffer(&self, buffer: vk::Buffer) {
        // SAFETY: as said; handles are private to this crate's modules, which destroy each once.
        unsafe { self.device.destroy_buffer(buffer, None) };
        self.buffers.fetch_sub(1, Relaxed);
    }

    /// What memory a buffer wants.
    pub fn requirements(&self, buffer: vk::Buffer) -> vk::MemoryRequirements {
        // SAFETY: created here and alive.
        unsafe { self.device.get_buffer_memory_requirements(buffer) }
    }

    /// Takes `bytes` of memory of a type.
    pub fn allocate(&self, bytes: u64, memory_type: u32) -> Result<vk::DeviceMemory, VulkanError> {
        let Abilities { longest_allocation, allocations, .. } = self.abilities;
        if bytes > longest_allocation {
            return Err(VulkanError::Limit { limit: "maxMemoryAllocationSize", most: longest_allocation });
        }
        if self.memories.load(Relaxed) >= allocations {
            return Err(VulkanError::Limit { limit: PIECES, most: allocations });
        }
        let mut flags = vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
        let mut info =
            vk::MemoryAllocateInfo::default().allocation_size(bytes).memory_type_index(memory_type);
        if self.addresses {
            info = info.push_next(&mut flags);
        }
        // SAFETY: the device is alive and has the type; the size is not zero and within the limit; the flag is
        // passed only where its feature is on.
        let memory = answer("vkAllocateMemory", unsafe { self.device.allocate_memory(&info, None) })?;
        self.memories.fetch_add(1, Relaxed);
        Ok(memory)
    }

    /// Where the host sees a piece of memory, until that is freed.
    ///
    /// # Errors
    /// What the driver refused.
    ///
    /// # Safety
    /// `memory` must be alive, of a type that the host sees, and not mapped.
    pub unsafe fn show(&self, memory: vk::DeviceMemory) -> Result<NonNull<u8>, VulkanError> {
        let flags = vk::MemoryMapFlags::empty();
        // SAFETY: as this function demands.
        let mapped = unsafe { self.device.map_memory(memory, 0, vk::WHOLE_SIZE, flags) };
        let refused =
            VulkanError::Refused { function: "vkMapMemory", code: vk::Result::ERROR_MEMORY_MAP_FAILED };
        NonNull::new(answer("vkMapMemory", mapped)?.cast()).ok_or(refused)
    }

    /// Gives memory back that was allocated here and that no unfinished work uses.
    pub fn free(&self, memory: vk::DeviceMemory) {
        // SAFETY: as said; handles are private to this crate's modules, which free each once.
        unsafe { self.device.free_memory(memory, None) };
        self.memories.fetch_sub(1, Relaxed);
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("name", &self.abilities.name).finish_non_exhaustive()
    }
}

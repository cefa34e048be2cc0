//! What is compared: something that serves requests for device memory.

use std::sync::Arc;

use anyhow::Context;
use ash::vk;
use gpu_allocator::vulkan as gpu_allocator_vulkan;
use gpu_allocator::{AllocationSizes, MemoryLocation};
use gpu_allocator_vulkan::{AllocationCreateDesc, AllocationScheme};
use tilework::manager::{self, BlockId, Kind, Manager, Options, Stream};
use tilework_vulkan::{MemoryUsage, Parts, View, Vulkan};
use vk_mem::Alloc;

use crate::gpu::Gpu;

/// Serves requests. Blocks are named by slots, numbers below the one it was made with.
pub trait Subject {
    /// Takes `bytes` for a slot that is empty.
    fn alloc(&mut self, slot: usize, bytes: u64) -> anyhow::Result<()>;

    /// Gives back what a slot has.
    fn free(&mut self, slot: usize) -> anyhow::Result<()>;

    /// A pass has ended.
    fn end_of_pass(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// What a request is served with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A place in memory and nothing over it.
    Placement,
    /// A buffer that commands can name.
    Buffer,
}

/// Tilework's manager `tiled`. Its blocks are parts of sparse buffers, so that the one that commands can name is looked
/// up, and never made.
pub struct Tiled {
    manager: Box<dyn Manager>,
    view: View,
    what: What,
    blocks: Vec<Option<BlockId>>,
}

impl Tiled {
    pub fn new(gpu: &Gpu, what: What, heap_bytes: u64, slots: usize) -> anyhow::Result<Tiled> {
        let parts = Parts {
            instance: gpu.instance.clone(),
            physical: gpu.physical,
            device: gpu.device.clone(),
            family: gpu.family,
            queue: Arc::clone(&gpu.queue),
            sparse: true,
            addresses: gpu.addresses,
            usage: MemoryUsage::Device,
            owner: Box::new(()),
        };
        // SAFETY: all parts belong together and live as long as the process; the features are on; nobody else has the
        // queue.
        let device = unsafe { Vulkan::over(parts) }?;
        let view = device.view();
        let options = Options { heap_bytes, ..Options::default() };
        let manager = manager::build(Kind::Tiled, Box::new(device), &options)?.manager;
        Ok(Tiled { manager, view, what, blocks: vec![None; slots] })
    }
}

impl Subject for Tiled {
    fn alloc(&mut self, slot: usize, bytes: u64) -> anyhow::Result<()> {
        let block = self.manager.alloc(bytes, Stream(0))?;
        self.blocks[slot] = Some(block.id);
        if self.what == What::Buffer {
            self.view.find(block.address).context("a block without a buffer")?;
        }
        Ok(())
    }

    fn free(&mut self, slot: usize) -> anyhow::Result<()> {
        let block = self.blocks[slot].take().context("an empty slot")?;
        Ok(self.manager.free(block)?)
    }

    fn end_of_pass(&mut self) -> anyhow::Result<()> {
        Ok(self.manager.end_of_execution()?)
    }
}

/// The crate gpu-allocator.
pub struct GpuAllocator<'a> {
    gpu: &'a Gpu,
    allocator: gpu_allocator_vulkan::Allocator,
    /// What a placement wants; of buffers each is asked.
    wants: vk::MemoryRequirements,
    what: What,
    blocks: Vec<Option<(gpu_allocator_vulkan::Allocation, vk::Buffer)>>,
}

impl GpuAllocator<'_> {
    /// With blocks of memory of this length, or as it comes.
    pub fn new(
        gpu: &Gpu,
        what: What,
        block_bytes: Option<u64>,
        slots: usize,
    ) -> anyhow::Result<GpuAllocator<'_>> {
        let allocator = gpu_allocator_vulkan::Allocator::new(&gpu_allocator_vulkan::AllocatorCreateDesc {
            instance: gpu.instance.clone(),
            device: gpu.device.clone(),
            physical_device: gpu.physical,
            debug_settings: gpu_allocator::AllocatorDebugSettings::default(),
            buffer_device_address: gpu.addresses,
            // The second is for memory that the host sees, which on some devices is all there is.
            allocation_sizes: block_bytes
                .map_or_else(AllocationSizes::default, |bytes| AllocationSizes::new(bytes, bytes)),
        })?;
        let blocks = std::iter::repeat_with(|| None).take(slots).collect();
        Ok(GpuAllocator { gpu, allocator, wants: gpu.requirements()?, what, blocks })
    }
}

impl Subject for GpuAllocator<'_> {
    fn alloc(&mut self, slot: usize, bytes: u64) -> anyhow::Result<()> {
        let device = &self.gpu.device;
        let (buffer, requirements) = match self.what {
            What::Placement => {
                let size = bytes.next_multiple_of(self.wants.alignment);
                (vk::Buffer::null(), vk::MemoryRequirements { size, ..self.wants })
            }
            // SAFETY: the device is alive, and so is the buffer until its slot is freed; here and below.
            What::Buffer => unsafe {
                let buffer = device.create_buffer(&self.gpu.buffer_info(bytes), None)?;
                (buffer, device.get_buffer_memory_requirements(buffer))
            },
        };
        let allocation = self.allocator.allocate(&AllocationCreateDesc {
            name: "block",
            requirements,
            location: MemoryLocation::GpuOnly,
            linear: true,
            allocation_scheme: AllocationScheme::GpuAllocatorManaged,
        })?;
        if self.what == What::Buffer {
            // SAFETY: as above; the buffer is new, and the memory is as it wants it.
            unsafe { device.bind_buffer_memory(buffer, allocation.memory(), allocation.offset()) }?;
        }
        self.blocks[slot] = Some((allocation, buffer));
        Ok(())
    }

    fn free(&mut self, slot: usize) -> anyhow::Result<()> {
        let (allocation, buffer) = self.blocks[slot].take().context("an empty slot")?;
        // SAFETY: null, or made by `alloc` and never used by work.
        unsafe { self.gpu.device.destroy_buffer(buffer, None) };
        Ok(self.allocator.free(allocation)?)
    }
}

/// The Vulkan Memory Allocator, by the crate vk-mem: its virtual default pools, its own rule for dedicated memory.
pub struct Vma<'a> {
    gpu: &'a Gpu,
    allocator: vk_mem::Allocator,
    wants: vk::MemoryRequirements,
    what: What,
    strategy: vk_mem::AllocationCreateFlags,
    blocks: Vec<Option<(vk_mem::Allocation, vk::Buffer)>>,
}

impl Vma<'_> {
    /// With blocks of memory of this length, or as it comes, and the least memory rather than the least time if so wished.
    pub fn new(
        gpu: &Gpu,
        what: What,
        block_bytes: Option<u64>,
        least_memory: bool,
        slots: usize,
    ) -> anyhow::Result<Vma<'_>> {
        let mut info = vk_mem::AllocatorCreateInfo::new(&gpu.instance, &gpu.device, gpu.physical);
        info.vulkan_api_version = vk::API_VERSION_1_3;
        // One thread, and so no locks.
        info.flags = vk_mem::AllocatorCreateFlags::EXTERNALLY_SYNCHRONIZED;
        if gpu.addresses {
            info.flags |= vk_mem::AllocatorCreateFlags::BUFFER_DEVICE_ADDRESS;
        }
        info.preferred_large_heap_block_size = block_bytes.unwrap_or(0);
        // SAFETY: instance and devices live as long as the process.
        let allocator = unsafe { vk_mem::Allocator::new(info) }?;
        let strategy = match least_memory {
            true => vk_mem::AllocationCreateFlags::STRATEGY_MIN_MEMORY,
            false => vk_mem::AllocationCreateFlags::empty(),
        };
        Ok(Vma { gpu, allocator, wants: gpu.requirements()?, what, strategy, blocks: vec![None; slots] })
    }
}

impl Subject for Vma<'_> {
    fn alloc(&mut self, slot: usize, bytes: u64) -> anyhow::Result<()> {
        let mut info = vk_mem::AllocationCreateInfo { flags: self.strategy, ..Default::default() };
        let block = match self.what {
            What::Placement => {
                let size = bytes.next_multiple_of(self.wants.alignment);
                let wants = vk::MemoryRequirements { size, ..self.wants };
                info.required_flags = vk::MemoryPropertyFlags::DEVICE_LOCAL;
                // SAFETY: both structures are valid.
                (unsafe { self.allocator.allocate_memory(&wants, &info) }?, vk::Buffer::null())
            }
            What::Buffer => {
                info.usage = vk_mem::MemoryUsage::AutoPreferDevice;
                // SAFETY: as above.
                let made = unsafe { self.allocator.create_buffer(&self.gpu.buffer_info(bytes), &info) };
                let (buffer, allocation) = made?;
                (allocation, buffer)
            }
        };
        self.blocks[slot] = Some(block);
        Ok(())
    }

    fn free(&mut self, slot: usize) -> anyhow::Result<()> {
        let (mut allocation, buffer) = self.blocks[slot].take().context("an empty slot")?;
        // SAFETY: made by `alloc`, freed once, and never used by work; the buffer may be null.
        unsafe { self.allocator.destroy_buffer(buffer, &mut allocation) };
        Ok(())
    }
}

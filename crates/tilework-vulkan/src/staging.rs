//! Bytes to the device's memory and back, through a buffer that the host reaches. The host waits: for tests and
//! contents that move, not for a program's own copies.

use std::ptr::{self, NonNull};

use ash::vk;

use crate::error::{VulkanError, answer};
use crate::gpu::Gpu;
use crate::order::{After, Order};
use crate::usage::MemoryUsage;

/// The most that one copy moves, bytes.
const CHUNK: u64 = 4 << 20;

/// A buffer that both sides reach.
#[derive(Debug)]
pub struct Staging {
    buffer: vk::Buffer,
    memory: vk::DeviceMemory,
    /// Where the host sees its [`CHUNK`] bytes.
    bytes: NonNull<u8>,
    /// The value of the latest copy: passed, unless waiting for it failed.
    busy: u64,
}

// SAFETY: the pointer is to memory that is the buffer's own and mapped while it lives; calls borrow it one at a time.
unsafe impl Send for Staging {}

impl Staging {
    /// Makes one.
    pub fn new(gpu: &Gpu) -> Result<Staging, VulkanError> {
        let usage = vk::BufferUsageFlags::TRANSFER_SRC | vk::BufferUsageFlags::TRANSFER_DST;
        let buffer = gpu.create_buffer(CHUNK, usage)?;
        let made = Staging::back(gpu, buffer);
        made.map(|(memory, bytes)| Staging { buffer, memory, bytes, busy: 0 })
            .inspect_err(|_| gpu.destroy_buffer(buffer))
    }

    /// Gives a new buffer memory and maps it.
    fn back(gpu: &Gpu, buffer: vk::Buffer) -> Result<(vk::DeviceMemory, NonNull<u8>), VulkanError> {
        let wants = gpu.requirements(buffer);
        let memory_type = MemoryUsage::Readback
            .memory_type(&gpu.abilities.memory, wants.memory_type_bits)
            .ok_or_else(|| VulkanError::Unusable {
                name: gpu.abilities.name.clone(),
                reason: "the host reaches no memory of theirs".to_owned(),
            })?;
        let memory = gpu.allocate(wants.size, memory_type)?;
        // SAFETY: the buffer is new and not bound, the memory new, of a type and length the buffer takes.
        let bound = unsafe { gpu.device.bind_buffer_memory(buffer, memory, 0) };
        let mapped = answer("vkBindBufferMemory", bound).and_then(|()| {
            // SAFETY: the host sees this type of memory, and this piece is not mapped.
            unsafe { gpu.show(memory) }
        });
        Ok((memory, mapped.inspect_err(|_| gpu.free(memory))?))
    }

    /// Copies from `offset` of `buffer` to `out`, when all that was queued and every use told of has passed.
    ///
    /// # Safety
    /// `buffer` must be one of the device's for copies, alive, with memory for these bytes.
    pub unsafe fn read(
        &mut self,
        order: &Order,
        buffer: vk::Buffer,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), VulkanError> {
        let mut offset = offset;
        for part in out.chunks_mut(CHUNK as usize) {
            order.wait(self.busy)?;
            let bytes = part.len() as u64;
            let region = vk::BufferCopy { src_offset: offset, dst_offset: 0, size: bytes };
            let barrier = vk::MemoryBarrier::default()
                .src_access_mask(vk::AccessFlags::TRANSFER_WRITE)
                .dst_access_mask(vk::AccessFlags::HOST_READ);
            let staging = self.buffer;
            // SAFETY: both buffers are alive and have these bytes, one by this function's contract; they are not the
            // same. The barrier shows the copy to the host.
            self.busy = unsafe {
                order.submit(After::Uses, |device, commands| {
                    device.cmd_copy_buffer(commands, buffer, staging, &[region]);
                    device.cmd_pipeline_barrier(
                        commands,
                        vk::PipelineStageFlags::TRANSFER,
                        vk::PipelineStageFlags::HOST,
                        vk::DependencyFlags::empty(),
                        &[barrier],
                        &[],
                        &[],
                    );
                })
            }?;
            order.wait(self.busy)?;
            // SAFETY: mapped, coherent, at least CHUNK bytes; the copy is done and no other is queued.
            unsafe { ptr::copy_nonoverlapping(self.bytes.as_ptr(), part.as_mut_ptr(), part.len()) };
            offset += bytes;
        }
        Ok(())
    }

    /// Copies `bytes` to `offset` of `buffer`, when all that was queued and every use told of has passed. They have
    /// arrived when it returns.
    ///
    /// # Safety
    /// As for [`read`](Staging::read).
    pub unsafe fn write(
        &mut self,
        order: &Order,
        buffer: vk::Buffer,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), VulkanError> {
        let mut offset = offset;
        for part in bytes.chunks(CHUNK as usize) {
            order.wait(self.busy)?;
            // SAFETY: as in `read`; what is queued by this sees what the host wrote before.
            unsafe { ptr::copy_nonoverlapping(part.as_ptr(), self.bytes.as_ptr(), part.len()) };
            let size = part.len() as u64;
            let region = vk::BufferCopy { src_offset: 0, dst_offset: offset, size };
            let staging = self.buffer;
            // SAFETY: as in `read`.
            self.busy = unsafe {
                order.submit(After::Uses, |device, commands| {
                    device.cmd_copy_buffer(commands, staging, buffer, &[region]);
                })
            }?;
            order.wait(self.busy)?;
            offset += size;
        }
        Ok(())
    }

    /// Gives all back. Everything queued must have passed.
    pub fn destroy(self, gpu: &Gpu) {
        gpu.destroy_buffer(self.buffer);
        // Freeing unmaps.
        gpu.free(self.memory);
    }
}

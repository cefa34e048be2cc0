//! Zeros for new memory, where they are written here.
//!
//! Direct3D zeroes what is new, and with tiled resources that is relied on. Implementations without them mostly translate
//! to another interface, and one of these (vkd3d 1.6, as Wine 8 has it) hands out memory with what was in it before.

use windows::Win32::Graphics::Direct3D12::{D3D12_HEAP_TYPE_UPLOAD, ID3D12Resource};
use windows::core::Interface;

use super::answer;
use super::gpu::{Counted, Gpu};
use super::order::{After, Dead, Order};
use super::staging::{CHUNK, map, unmap};
use crate::error::D3d12Error;

/// A buffer full of zeros.
#[derive(Debug)]
pub struct Zeros(Counted<ID3D12Resource>);

impl Zeros {
    /// Makes one.
    pub fn new(gpu: &Gpu) -> Result<Zeros, D3d12Error> {
        let buffer = gpu.committed(D3D12_HEAP_TYPE_UPLOAD, CHUNK as u64)?;
        let mapped = map(&buffer, 0)?;
        // SAFETY: mapped, as long as CHUNK, and nothing uses it yet.
        unsafe { mapped.write_bytes(0, CHUNK) };
        unmap(&buffer, CHUNK);
        Ok(Zeros(buffer))
    }

    /// Queues zeros for the first `bytes` of `buffer`. What is queued later finds them.
    ///
    /// # Safety
    /// `buffer` must be one of the device's with memory for as many, and given back through graves that are dug later.
    pub unsafe fn fill(&self, order: &Order, buffer: &ID3D12Resource, bytes: u64) -> Result<(), D3d12Error> {
        let (allocator, list) = order.gpu().commands()?;
        // SAFETY: interfaces that are held are alive; all copies lie within both buffers. Of these the one is this function's
        // contract, the other goes after all that is queued; allocator and list are buried below.
        unsafe {
            for offset in (0..bytes).step_by(CHUNK) {
                list.CopyBufferRegion(buffer, offset, &*self.0, 0, (bytes - offset).min(CHUNK as u64));
            }
            answer("ID3D12GraphicsCommandList::Close", list.Close())?;
            order.execute(After::Earlier, answer("ID3D12GraphicsCommandList", list.cast())?)?;
        }
        order.bury(Dead::Commands(allocator, list));
        Ok(())
    }
}

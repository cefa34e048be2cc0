//! Bytes to the device's memory and back, through buffers that the host reaches. The host waits: for tests and contents
//! that move, not for a program's own copies.

use std::ptr;

use windows::Win32::Graphics::Direct3D12::{
    D3D12_HEAP_TYPE_READBACK, D3D12_HEAP_TYPE_UPLOAD, D3D12_RANGE, ID3D12CommandAllocator,
    ID3D12GraphicsCommandList, ID3D12Resource,
};
use windows::core::Interface;

use super::gpu::{Counted, Gpu};
use super::order::{After, Order};
use super::view::aliasing_barrier;
use super::{answer, made};
use crate::error::D3d12Error;

/// The most that one copy moves, bytes.
pub const CHUNK: usize = 4 << 20;

/// A buffer for each way, and a command list.
#[derive(Debug)]
pub struct Staging {
    upload: Counted<ID3D12Resource>,
    readback: Counted<ID3D12Resource>,
    allocator: ID3D12CommandAllocator,
    list: ID3D12GraphicsCommandList,
    /// The value of the latest copy: passed, unless waiting for it failed.
    busy: u64,
}

impl Staging {
    /// Makes one.
    pub fn new(gpu: &Gpu) -> Result<Staging, D3d12Error> {
        let (allocator, list) = gpu.commands()?;
        // Each copy begins with a closed one.
        // SAFETY: interfaces that are held are alive, here and in all calls of this module.
        answer("ID3D12GraphicsCommandList::Close", unsafe { list.Close() })?;
        Ok(Staging {
            upload: gpu.committed(D3D12_HEAP_TYPE_UPLOAD, CHUNK as u64)?,
            readback: gpu.committed(D3D12_HEAP_TYPE_READBACK, CHUNK as u64)?,
            allocator,
            list,
            busy: 0,
        })
    }

    /// Copies from `offset` of `buffer` to `out`, when all that was queued and every use told of has passed.
    ///
    /// # Safety
    /// `buffer` must be one of the device's, alive, with memory for these bytes that is resident.
    pub unsafe fn read(
        &mut self,
        order: &Order,
        buffer: &ID3D12Resource,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), D3d12Error> {
        let mut offset = offset;
        for part in out.chunks_mut(CHUNK) {
            let bytes = part.len() as u64;
            let readback = (*self.readback).clone();
            // SAFETY: both buffers are alive and have these bytes, one by this function's contract.
            unsafe { self.copy(order, &readback, 0, buffer, offset, bytes) }?;
            let mapped = map(&self.readback, part.len())?;
            // SAFETY: mapped, as long as CHUNK; the copy is done and no other is queued.
            unsafe { ptr::copy_nonoverlapping(mapped, part.as_mut_ptr(), part.len()) };
            unmap(&self.readback, 0);
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
        buffer: &ID3D12Resource,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), D3d12Error> {
        let mut offset = offset;
        for part in bytes.chunks(CHUNK) {
            // One that was queued and could not be waited for would read what is written now.
            order.wait(self.busy)?;
            let mapped = map(&self.upload, 0)?;
            // SAFETY: mapped, as long as CHUNK; no copy from it is unfinished.
            unsafe { ptr::copy_nonoverlapping(part.as_ptr(), mapped, part.len()) };
            unmap(&self.upload, part.len());
            let upload = (*self.upload).clone();
            // SAFETY: as in `read`.
            unsafe { self.copy(order, buffer, offset, &upload, 0, part.len() as u64) }?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Copies between two buffers, and waits for it.
    ///
    /// # Safety
    /// Both must be the device's, alive, with memory for these bytes that is resident.
    unsafe fn copy(
        &mut self,
        order: &Order,
        to: &ID3D12Resource,
        to_offset: u64,
        from: &ID3D12Resource,
        from_offset: u64,
        bytes: u64,
    ) -> Result<(), D3d12Error> {
        order.wait(self.busy)?;
        // SAFETY: nothing of the allocator or the list is unfinished. Buffers need no transition: in a new list they are in
        // the state COMMON, which the copy promotes. What was written through another buffer over the same memory is
        // behind the barrier. The rest is this function's contract.
        unsafe {
            answer("ID3D12CommandAllocator::Reset", self.allocator.Reset())?;
            answer("ID3D12GraphicsCommandList::Reset", self.list.Reset(&self.allocator, None))?;
            self.list.ResourceBarrier(&[aliasing_barrier()]);
            self.list.CopyBufferRegion(to, to_offset, from, from_offset, bytes);
            answer("ID3D12GraphicsCommandList::Close", self.list.Close())
                .map_err(|error| order.explain(error))?;
            let list = answer("ID3D12GraphicsCommandList", self.list.cast())?;
            self.busy = order.execute(After::Uses, list)?;
        }
        order.wait(self.busy)
    }
}

/// Where the host sees a buffer, of which it will read the first `reads` bytes.
pub fn map(buffer: &ID3D12Resource, reads: usize) -> Result<*mut u8, D3d12Error> {
    let range = D3D12_RANGE { Begin: 0, End: reads };
    let mut address = ptr::null_mut();
    // SAFETY: a buffer in memory that the host reaches; the pointers are valid for the call.
    let mapped = unsafe { buffer.Map(0, Some(&range), Some(&mut address)) };
    made("ID3D12Resource::Map", mapped, (!address.is_null()).then_some(address.cast()))
}

/// Undoes a map, after which the host has written the first `written` bytes.
pub fn unmap(buffer: &ID3D12Resource, written: usize) {
    let range = D3D12_RANGE { Begin: 0, End: written };
    // SAFETY: mapped before.
    unsafe { buffer.Unmap(0, Some(&range)) };
}

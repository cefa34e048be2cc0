//! A GPU whose driver maps physical memory to address space (CUDA's virtual memory management).
//!
//! | trait | driver |
//! |---|---|
//! | `reserve`, `unreserve` | `cuMemAddressReserve`, `cuMemAddressFree` |
//! | `create`, `release` | `cuMemCreate`, `cuMemRelease`: a heap is one physical handle |
//! | `create_on_host` | `cuMemCreate` on the node of the host that is next to the GPU |
//! | `map` | one `cuMemMap` a bind: a handle maps whole or not at all |
//! | `set_access` | one `cuMemSetAccess`, for the GPU and the peers |
//! | `add_peer` | one `cuMemSetAccess` a bind that is mapped |
//! | `unmap` | one `cuMemUnmap`, however many handles |
//!
//! None of them waits for work on the GPU or is ordered with it. Adding a mapping disturbs nothing;
//! unmapping what queued work still uses is a fault in that work.

use rustc_hash::FxHashMap;
use tilework::device::books::{Books, no_host_heaps};
use tilework::device::{Aliasing, Bind, Call, Calls, Caps, Device, DeviceError, HeapId, Range, RangeId};

use super::{device_name, timed};
use crate::driver::{AccessDesc, AllocationProp, MemoryHandle};
use crate::error::CudaError;
use crate::gpu::{Entered, Gpu, tell};

/// The longest range. More address space than any GPU has memory; an H200 was seen to grant it.
const LONGEST_RANGE: u64 = 16 << 40;

/// A GPU with memory that can be mapped: `cuda`.
///
/// What is held is by its own books: the driver tells what all processes hold of a GPU together, and
/// counts contexts and code in.
#[derive(Debug)]
pub struct Cuda {
    name: &'static str,
    gpu: Gpu,
    books: Books,
    prop: AllocationProp,
    /// The same on the host, where the GPU can use it.
    host_prop: Option<AllocationProp>,
    /// Who may use what is mapped: the GPU first, then its peers.
    access: Vec<AccessDesc>,
    heaps: FxHashMap<HeapId, MemoryHandle>,
    /// What a map that failed could not unmap again: address and bytes. Tried again before each map and
    /// unreserve, which it would make fail.
    strays: Vec<(u64, u64)>,
    calls: Calls,
}

// SAFETY: what is not `Send` by itself are the pointers in `prop` and `host_prop`, which are null.
unsafe impl Send for Cuda {}

impl Cuda {
    /// A device that holds nothing yet.
    ///
    /// # Errors
    /// When the GPU does not map memory, or the driver refuses.
    pub fn new(gpu: Gpu) -> Result<Cuda, CudaError> {
        let tile_bytes = gpu.granularity()?.next_power_of_two();
        // Memory of the host has a granularity of its own: no other is of use than one that tiles are multiples of.
        let host = gpu.host_location().filter(|&host| {
            gpu.granularity_at(host).is_ok_and(|bytes| bytes > 0 && tile_bytes.is_multiple_of(bytes))
        });
        let caps = Caps {
            tile_bytes,
            tiling: true,
            partial_maps: false,
            needs_access: true,
            max_range_bytes: LONGEST_RANGE,
            memory: true,
            capacity_bytes: Some(gpu.total_bytes()),
            host_heaps: host.is_some(),
            aliasing: Aliasing::Ordered,
        };
        Ok(Cuda {
            name: device_name(gpu.ordinal()),
            prop: AllocationProp::device(gpu.handle()),
            host_prop: host.map(AllocationProp::at),
            access: vec![AccessDesc::read_write(gpu.handle())],
            gpu,
            books: Books::new(caps),
            heaps: FxHashMap::default(),
            strays: Vec::new(),
            calls: Calls::default(),
        })
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Unmaps what an earlier failure left mapped.
    fn unmap_strays(&mut self, call: Call) -> Result<(), DeviceError> {
        if self.strays.is_empty() {
            return Ok(());
        }
        let entered = self.gpu.enter().map_err(|error| error.failed(call))?;
        while let Some(&(address, bytes)) = self.strays.last() {
            self.calls.unmap += 1;
            // SAFETY: mapped by a map that was refused as a whole, so nobody was told of it.
            timed(&mut self.calls.nanos, || unsafe { unmap(&entered, address, bytes) })
                .map_err(|error| error.failed(call))?;
            self.strays.pop();
        }
        Ok(())
    }

    /// Creates physical memory.
    fn take(&mut self, bytes: u64, prop: AllocationProp) -> Result<MemoryHandle, DeviceError> {
        const CALL: Call = Call::Create;
        let entered = self.gpu.enter().map_err(|error| error.failed(CALL))?;
        let mut handle = 0;
        let created = timed(&mut self.calls.nanos, || {
            entered.call("cuMemCreate", |f| {
                // SAFETY: `handle` is valid for the write and `prop` for the read.
                unsafe { (f.mem_create)(&mut handle, bytes as usize, &prop, 0) }
            })
        });
        self.calls.create += 1;
        created.map_err(|error| error.failed_for(CALL, bytes))?;
        Ok(handle)
    }

    /// Maps `binds`, all or none.
    fn map_all(&mut self, range: Range, binds: &[Bind]) -> Result<(), DeviceError> {
        let entered = self.gpu.enter().map_err(|error| error.failed(Call::Map))?;
        for (done, bind) in binds.iter().enumerate() {
            let address = range.address + bind.range_offset;
            let handle = self.heaps[&bind.heap];
            let mapped = timed(&mut self.calls.nanos, || {
                entered.call("cuMemMap", |f| {
                    // SAFETY: the books have found the part reserved and not mapped, the handle alive and
                    // of this length.
                    unsafe { (f.mem_map)(address, bind.bytes as usize, 0, handle, 0) }
                })
            });
            self.calls.map += 1;
            let Err(error) = mapped else { continue };
            for bind in &binds[..done] {
                let address = range.address + bind.range_offset;
                self.calls.unmap += 1;
                // SAFETY: mapped a moment ago by this very call, so nobody uses it.
                let undone = timed(&mut self.calls.nanos, || unsafe { unmap(&entered, address, bind.bytes) });
                if undone.is_err() {
                    self.strays.push((address, bind.bytes));
                }
            }
            return Err(error.failed_for(Call::Map, bind.bytes));
        }
        Ok(())
    }
}

/// Unmaps whole pieces.
///
/// # Safety
/// The part must consist of mapped pieces, and nothing on the GPU may use it any more.
unsafe fn unmap(entered: &Entered<'_>, address: u64, bytes: u64) -> Result<(), CudaError> {
    entered.call("cuMemUnmap", |f| {
        // SAFETY: by this function's contract.
        unsafe { (f.mem_unmap)(address, bytes as usize) }
    })
}

/// Gives address space back.
///
/// # Safety
/// It must be one whole reservation in which nothing is mapped.
unsafe fn address_free(entered: &Entered<'_>, address: u64, bytes: u64) -> Result<(), CudaError> {
    entered.call("cuMemAddressFree", |f| {
        // SAFETY: by this function's contract.
        unsafe { (f.mem_address_free)(address, bytes as usize) }
    })
}

impl Device for Cuda {
    fn name(&self) -> &'static str {
        self.name
    }

    fn caps(&self) -> &Caps {
        self.books.caps()
    }

    fn reserve(&mut self, bytes: u64) -> Result<Range, DeviceError> {
        const CALL: Call = Call::Reserve;
        self.books.check_reserve(bytes)?;
        let tile = self.caps().tile_bytes;
        let entered = self.gpu.enter().map_err(|error| error.failed(CALL))?;
        let mut address = 0;
        let reserved = timed(&mut self.calls.nanos, || {
            entered.call("cuMemAddressReserve", |f| {
                // SAFETY: `address` is valid for the write; the place is the driver's to choose.
                unsafe { (f.mem_address_reserve)(&mut address, bytes as usize, tile as usize, 0, 0) }
            })
        });
        self.calls.reserve += 1;
        // Out of memory here means address space, which no release of physical memory brings back.
        reserved.map_err(|error| error.failed(CALL))?;
        self.books.reserve(address, bytes)
    }

    fn unreserve(&mut self, range: RangeId) -> Result<(), DeviceError> {
        const CALL: Call = Call::Unreserve;
        let Range { address, bytes, .. } = self.books.check_unreserve(range)?;
        self.unmap_strays(CALL)?;
        let entered = self.gpu.enter().map_err(|error| error.failed(CALL))?;
        // SAFETY: the books have found the range reserved, as this, with nothing mapped.
        let freed = timed(&mut self.calls.nanos, || unsafe { address_free(&entered, address, bytes) });
        self.calls.reserve += 1;
        freed.map_err(|error| error.failed(CALL))?;
        self.books.unreserve(range).map(drop)
    }

    fn create(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        self.books.check_create(bytes)?;
        let handle = self.take(bytes, self.prop)?;
        let heap = self.books.create(bytes)?;
        self.heaps.insert(heap, handle);
        Ok(heap)
    }

    fn create_on_host(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        self.books.check_create_on_host(bytes)?;
        let handle = self.take(bytes, self.host_prop.ok_or_else(no_host_heaps)?)?;
        let heap = self.books.create_on_host(bytes)?;
        self.heaps.insert(heap, handle);
        Ok(heap)
    }

    fn release(&mut self, heap: HeapId) -> Result<(), DeviceError> {
        const CALL: Call = Call::Release;
        self.books.check_release(heap)?;
        let handle = self.heaps[&heap];
        let entered = self.gpu.enter().map_err(|error| error.failed(CALL))?;
        let released = timed(&mut self.calls.nanos, || {
            // SAFETY: the books have found the handle alive and mapped nowhere.
            entered.call("cuMemRelease", |f| unsafe { (f.mem_release)(handle) })
        });
        self.calls.release += 1;
        released.map_err(|error| error.failed(CALL))?;
        self.heaps.remove(&heap);
        self.books.release(heap).map(drop)
    }

    fn map(&mut self, range: RangeId, binds: &[Bind]) -> Result<(), DeviceError> {
        let whole = self.books.map(range, binds)?;
        let mapped = self.unmap_strays(Call::Map).and_then(|()| self.map_all(whole, binds));
        mapped.inspect_err(|_| self.books.undo_map(range, binds))
    }

    fn set_access(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        const CALL: Call = Call::SetAccess;
        self.books.pieces(CALL, range, offset, bytes)?;
        let address = self.books.range(CALL, range)?.address + offset;
        let entered = self.gpu.enter().map_err(|error| error.failed(CALL))?;
        let access = &self.access;
        let set = timed(&mut self.calls.nanos, || {
            entered.call("cuMemSetAccess", |f| {
                // SAFETY: the books have found the part mapped throughout; `access` is valid for the read
                // of its length.
                unsafe { (f.mem_set_access)(address, bytes as usize, access.as_ptr(), access.len()) }
            })
        });
        self.calls.set_access += 1;
        set.map_err(|error| error.failed_for(CALL, bytes))?;
        self.books.set_access(range, offset, bytes).map(drop)
    }

    fn unmap(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        const CALL: Call = Call::Unmap;
        self.books.pieces(CALL, range, offset, bytes)?;
        let address = self.books.range(CALL, range)?.address + offset;
        let entered = self.gpu.enter().map_err(|error| error.failed(CALL))?;
        // SAFETY: the books have found the part to be whole pieces; that nothing uses it any more is the
        // caller's to know, as `Device::unmap` says.
        let unmapped = timed(&mut self.calls.nanos, || unsafe { unmap(&entered, address, bytes) });
        self.calls.unmap += 1;
        unmapped.map_err(|error| error.failed(CALL))?;
        self.books.unmap(range, offset, bytes).map(drop)
    }

    fn add_peer(&mut self, peer: u32) -> Result<(), DeviceError> {
        const CALL: Call = Call::SetAccess;
        let peer = self.gpu.peer(peer).map_err(|error| error.failed(CALL))?;
        let access = AccessDesc::read_write(peer);
        if self.access.contains(&access) {
            return Ok(());
        }
        let entered = self.gpu.enter().map_err(|error| error.failed(CALL))?;
        for range in self.books.ranges() {
            for piece in self.books.all_pieces(range.id) {
                let address = range.address + piece.range_offset;
                let set = timed(&mut self.calls.nanos, || {
                    entered.call("cuMemSetAccess", |f| {
                        // SAFETY: the books have this piece as it was mapped; `access` is valid for the read.
                        unsafe { (f.mem_set_access)(address, piece.bytes as usize, &access, 1) }
                    })
                });
                self.calls.set_access += 1;
                set.map_err(|error| error.failed_for(CALL, piece.bytes))?;
            }
        }
        self.access.push(access);
        Ok(())
    }

    fn calls(&self) -> Calls {
        self.calls
    }

    fn held_bytes(&self) -> Result<u64, DeviceError> {
        Ok(self.books.held_bytes())
    }

    fn free_bytes(&self) -> Option<u64> {
        self.gpu.free_and_total().ok().map(|(free, _)| free)
    }

    fn ready(&self, _: u64) -> Option<u64> {
        None
    }

    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        const CALL: Call = Call::Read;
        self.books.check_use(CALL, address, out.len() as u64)?;
        let entered = self.gpu.enter().map_err(|error| error.failed(CALL))?;
        // SAFETY: the books have found these bytes mapped with access, and none of it can be unmapped
        // while `self` is borrowed.
        unsafe { entered.read(address, out) }.map_err(|error| error.failed(CALL))
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        const CALL: Call = Call::Write;
        self.books.check_use(CALL, address, bytes.len() as u64)?;
        let entered = self.gpu.enter().map_err(|error| error.failed(CALL))?;
        // SAFETY: as in `read`.
        unsafe { entered.write(address, bytes) }.map_err(|error| error.failed(CALL))
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let entered = match self.gpu.enter() {
            Ok(entered) => entered,
            Err(error) => return tell(Err(error)),
        };
        for (address, bytes) in self.strays.drain(..) {
            // SAFETY: as in `unmap_strays`.
            tell(unsafe { unmap(&entered, address, bytes) });
        }
        let ranges: Vec<Range> = self.books.ranges().collect();
        for range in &ranges {
            for piece in self.books.all_pieces(range.id) {
                // SAFETY: a piece as it was mapped. Whoever drops a device has nothing left that uses it.
                tell(unsafe { unmap(&entered, range.address + piece.range_offset, piece.bytes) });
            }
        }
        for &handle in self.heaps.values() {
            // SAFETY: created and not released; all its mappings are gone.
            tell(entered.call("cuMemRelease", |f| unsafe { (f.mem_release)(handle) }));
        }
        for range in ranges {
            // SAFETY: reserved as this, and nothing in it is mapped any more.
            tell(unsafe { address_free(&entered, range.address, range.bytes) });
        }
    }
}

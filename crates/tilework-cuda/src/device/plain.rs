//! A GPU whose driver cannot map: address and memory come together, from `cuMemAlloc`.
//!
//! The trait wants the address when a range is reserved, and an allocation has its address from its
//! first moment. So **the range is the allocation**: `reserve` allocates, `unreserve` frees, and a heap is
//! the right to use the range it is mapped to. Managers that do without tiling take both together, of the
//! same length, and give both back together, so what they count as held is what the driver has given;
//! only between two calls are the two apart.
//!
//! Since nothing moves, a heap is mapped once in its life: its contents could not follow it elsewhere.
//! And since the driver does not promise zeros, they are written when it is.

use rustc_hash::FxHashSet;
use tilework::device::books::Books;
use tilework::device::{Aliasing, Bind, Call, Calls, Caps, Device, DeviceError, HeapId, Range, RangeId};

use super::{device_name, timed};
use crate::error::CudaError;
use crate::gpu::{Entered, Gpu, tell};

/// What addresses of allocations are multiples of, bytes.
const ALIGNMENT: u64 = 512;

/// A GPU without mapping: `cuda` too, with [`Caps::tiling`] false.
#[derive(Debug)]
pub struct Plain {
    name: &'static str,
    gpu: Gpu,
    books: Books,
    /// The heaps that were mapped already.
    used: FxHashSet<HeapId>,
    calls: Calls,
}

impl Plain {
    /// A device that holds nothing yet.
    pub fn new(gpu: Gpu) -> Plain {
        let total = gpu.total_bytes();
        let caps = Caps {
            tile_bytes: ALIGNMENT,
            tiling: false,
            partial_maps: false,
            needs_access: false,
            max_range_bytes: (total - total % ALIGNMENT).max(ALIGNMENT),
            memory: true,
            capacity_bytes: Some(total),
            host_heaps: false,
            aliasing: Aliasing::Ordered,
        };
        Plain {
            name: device_name(gpu.ordinal()),
            gpu,
            books: Books::new(caps),
            used: FxHashSet::default(),
            calls: Calls::default(),
        }
    }
}

/// Frees an allocation.
///
/// # Safety
/// It must be one, and nothing may use it any more.
unsafe fn free(entered: &Entered<'_>, address: u64) -> Result<(), CudaError> {
    // SAFETY: by this function's contract.
    entered.call("cuMemFree", |f| unsafe { (f.mem_free)(address) })
}

/// The calls of the trait are counted, each as one, since they have no others of their names here.
impl Device for Plain {
    fn name(&self) -> &'static str {
        self.name
    }

    fn caps(&self) -> &Caps {
        self.books.caps()
    }

    fn reserve(&mut self, bytes: u64) -> Result<Range, DeviceError> {
        const CALL: Call = Call::Reserve;
        self.books.check_reserve(bytes)?;
        let entered = self.gpu.enter().map_err(|error| error.failed(CALL))?;
        let mut address = 0;
        let allocated = timed(&mut self.calls.nanos, || {
            entered.call("cuMemAlloc", |f| {
                // SAFETY: `address` is valid for the write.
                unsafe { (f.mem_alloc)(&mut address, bytes as usize) }
            })
        });
        self.calls.reserve += 1;
        allocated.map_err(|error| error.failed_for(CALL, bytes))?;
        if !address.is_multiple_of(ALIGNMENT) {
            // SAFETY: allocated a moment ago, and nobody was told.
            tell(unsafe { free(&entered, address) });
            let reason = format!("cuMemAlloc returned {address:#x}, no multiple of {ALIGNMENT}");
            return Err(DeviceError::Failed { call: CALL, reason });
        }
        self.books.reserve(address, bytes)
    }

    fn unreserve(&mut self, range: RangeId) -> Result<(), DeviceError> {
        const CALL: Call = Call::Unreserve;
        let Range { address, .. } = self.books.check_unreserve(range)?;
        let entered = self.gpu.enter().map_err(|error| error.failed(CALL))?;
        // SAFETY: the books have found the range reserved, so allocated, and nothing mapped to it, so
        // unused.
        let freed = timed(&mut self.calls.nanos, || unsafe { free(&entered, address) });
        self.calls.reserve += 1;
        freed.map_err(|error| error.failed(CALL))?;
        self.books.unreserve(range).map(drop)
    }

    fn create(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        let heap = self.books.create(bytes)?;
        self.calls.create += 1;
        Ok(heap)
    }

    fn create_on_host(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        self.books.create_on_host(bytes)
    }

    fn release(&mut self, heap: HeapId) -> Result<(), DeviceError> {
        self.books.release(heap)?;
        self.used.remove(&heap);
        self.calls.release += 1;
        Ok(())
    }

    fn map(&mut self, range: RangeId, binds: &[Bind]) -> Result<(), DeviceError> {
        const CALL: Call = Call::Map;
        let Range { address, .. } = self.books.map(range, binds)?;
        // One bind, by the books: a heap backs a range of its own length.
        for bind in binds {
            let cleared = if self.used.contains(&bind.heap) {
                let rule = format!("without mapping, memory cannot move: heap {} was used", bind.heap.0);
                Err(DeviceError::Violation { call: CALL, rule })
            } else {
                self.gpu
                    .enter()
                    .and_then(|entered| {
                        // SAFETY: the range is an allocation, and the heap as long as it.
                        timed(&mut self.calls.nanos, || unsafe { entered.clear(address, bind.bytes) })
                    })
                    .map_err(|error| error.failed(CALL))
            };
            self.calls.map += 1;
            cleared.inspect_err(|_| self.books.undo_map(range, binds))?;
            self.used.insert(bind.heap);
        }
        Ok(())
    }

    fn set_access(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        self.books.set_access(range, offset, bytes).map(drop)
    }

    fn unmap(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        self.books.unmap(range, offset, bytes)?;
        self.calls.unmap += 1;
        Ok(())
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
        self.gpu.free_and_total().ok().map(|(free, _)| free)
    }

    fn ready(&self, _: u64) -> Option<u64> {
        None
    }

    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        const CALL: Call = Call::Read;
        self.books.check_use(CALL, address, out.len() as u64)?;
        let entered = self.gpu.enter().map_err(|error| error.failed(CALL))?;
        // SAFETY: the books have found these bytes in a range, which is an allocation, and it cannot be
        // freed while `self` is borrowed.
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

impl Drop for Plain {
    fn drop(&mut self) {
        let entered = match self.gpu.enter() {
            Ok(entered) => entered,
            Err(error) => return tell(Err(error)),
        };
        for range in self.books.ranges() {
            // SAFETY: each range is an allocation. Whoever drops a device has nothing left that uses it.
            tell(unsafe { free(&entered, range.address) });
        }
    }
}

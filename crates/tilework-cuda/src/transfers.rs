//! Copies between a GPU and the host beside all other work: pinned memory, and two streams.
//!
//! ```text
//!   buffer   pinned: zeroed host memory, in huge pages where there are, registered with the driver
//!      │     last:   which way its latest copy goes, and the event behind it
//!      ▼
//!   link     two streams of its own, one for each direction, for all buffers; each has a copy engine to itself
//! ```
//!
//! A stream keeps the order of its copies; a buffer whose copies change direction has the one stream wait for
//! the event on the other. Buffers of which each goes one way do not wait for each other's other way.

use std::alloc::{self, Layout};
use std::ffi::c_void;
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

use tilework::device::{Call, DeviceError};
use tilework::shared::streams::{Event, InOrder};
use tilework::shared::transfers::{Staging, Transfers};
use tilework::units::exact;

use crate::driver::{
    self, ACCESS_READ_WRITE, Location, POINTER_ATTRIBUTE_HOST_POINTER, REGISTER_PORTABLE,
    STREAM_NON_BLOCKING, SUCCESS,
};
use crate::error::CudaError;
use crate::gpu::{Entered, Gpu, tell};
use crate::streams::{Events, Recorded};

/// What buffers are aligned to and come in multiples of, bytes: a huge page of the hosts that GPUs are in. A GPU
/// finds its way through few large pages sooner than through many small ones, and so does pinning them.
const HUGE_PAGE: usize = 2 << 20;

/// The copies of a GPU to and from the host. Streams are made when the first copy needs them.
#[derive(Debug)]
pub struct CudaTransfers {
    link: Arc<Link>,
}

impl CudaTransfers {
    pub(crate) fn new(events: Arc<Events>) -> CudaTransfers {
        CudaTransfers { link: Arc::new(Link { events, streams: Mutex::default() }) }
    }
}

impl Transfers for CudaTransfers {
    fn staging(&self, bytes: usize) -> Result<Box<dyn Staging>, DeviceError> {
        let failed = |reason| DeviceError::Failed { call: Call::Create, reason };
        let memory = Memory::new(bytes)
            .ok_or_else(|| failed(format!("the host has no {} left", exact(bytes as u64))))?;
        let start = memory.start.as_ptr().cast();
        let registered = self.link.gpu().enter().and_then(|entered| {
            entered.call("cuMemHostRegister", |f| {
                // SAFETY: the memory is ours, all of it, and stays until it was unregistered.
                unsafe { (f.mem_host_register)(start, memory.layout.size(), REGISTER_PORTABLE) }
            })
        });
        match registered {
            Ok(()) => Ok(Box::new(Buffer { link: Arc::clone(&self.link), memory, bytes, last: None })),
            Err(error) => {
                // SAFETY: nobody was told of it, the driver has refused it.
                unsafe { memory.free() };
                Err(error.failed(Call::Create))
            }
        }
    }
}

/// Which way a copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Down,
    Up,
}

/// `CUstream`.
#[derive(Debug, Clone, Copy)]
struct Handle(driver::Stream);

// SAFETY: a name that only the driver looks behind; its functions may be called from any thread.
unsafe impl Send for Handle {}

/// What all buffers have in common.
#[derive(Debug)]
struct Link {
    events: Arc<Events>,
    /// By [`Way`], once made.
    streams: Mutex<[Option<Handle>; 2]>,
}

impl Link {
    fn gpu(&self) -> &Gpu {
        &self.events.gpu
    }

    /// The stream of all copies that go this way. It exists as long as the link.
    fn stream(&self, way: Way) -> Result<driver::Stream, CudaError> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let place = &mut streams[way as usize];
        if let Some(Handle(stream)) = *place {
            return Ok(stream);
        }
        let mut stream = ptr::null_mut();
        self.gpu().enter()?.call("cuStreamCreate", |f| {
            // SAFETY: `stream` is valid for the write.
            unsafe { (f.stream_create)(&mut stream, STREAM_NON_BLOCKING) }
        })?;
        *place = Some(Handle(stream));
        Ok(stream)
    }

    /// Marks the end of what is queued this way now.
    fn record(&self, way: Way) -> Result<Arc<Recorded>, CudaError> {
        let stream = self.stream(way)?;
        // SAFETY: the stream is the link's own.
        unsafe { self.events.record(stream) }.map(Arc::new)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let streams = std::mem::take(self.streams.get_mut().unwrap_or_else(PoisonError::into_inner));
        if streams.iter().all(Option::is_none) {
            return;
        }
        let entered = match self.gpu().enter() {
            Ok(entered) => entered,
            Err(error) => return tell(Err(error)),
        };
        for Handle(stream) in streams.into_iter().flatten() {
            // SAFETY: made by `stream`, and the buffers whose copies went there are gone.
            tell(entered.call("cuStreamDestroy", |f| unsafe { (f.stream_destroy)(stream) }));
        }
    }
}

/// Memory of the host, initialized. Not freed by dropping it.
#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: memory that nobody else knows of.
unsafe impl Send for Memory {}
// SAFETY: as above; it is reached through exclusive references to the buffer only.
unsafe impl Sync for Memory {}

impl Memory {
    /// At least `bytes`, zeroed. `None` when there is no such memory.
    fn new(bytes: usize) -> Option<Memory> {
        let bytes = bytes.max(1).checked_next_multiple_of(HUGE_PAGE)?;
        let layout = Layout::from_size_align(bytes, HUGE_PAGE).ok()?;
        // SAFETY: the length is not zero.
        let start = NonNull::new(unsafe { alloc::alloc(layout) })?;
        #[cfg(target_os = "linux")]
        {
            use rustix::mm::{Advice, madvise};
            // A kernel without huge pages refuses; the memory serves all the same.
            // SAFETY: the advice changes what pages hold the memory, not what is in it, and the part is whole pages
            // of one allocation, all of it ours.
            let _ = unsafe { madvise(start.as_ptr().cast(), bytes, Advice::LinuxHugepage) };
        }
        // Only now, so that it is huge pages that are taken.
        // SAFETY: allocated above, in this length.
        unsafe { start.write_bytes(0, bytes) };
        Some(Memory { start, layout })
    }

    /// Gives it back.
    ///
    /// # Safety
    /// Nobody may use it any more, the device included.
    unsafe fn free(&self) {
        // SAFETY: allocated in `new` with this layout; freed once, by this function's contract.
        unsafe { alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// Registered memory, and the copies queued for it.
struct Buffer {
    link: Arc<Link>,
    memory: Memory,
    bytes: usize,
    /// Which way the copy queued last goes, and the place behind it, unless it could not be marked. It is behind
    /// all others of this buffer, since that copy is. `None`: all have been made.
    last: Option<(Way, Option<Arc<Recorded>>)>,
}

impl Buffer {
    fn queue(&mut self, way: Way, at: usize, address: u64, bytes: usize) -> Result<(), DeviceError> {
        let call = match way {
            Way::Down => Call::Read,
            Way::Up => Call::Write,
        };
        if at.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            let rule = format!("{bytes} bytes from {at} reach beyond a buffer of {}", self.bytes);
            return Err(DeviceError::Violation { call, rule });
        }
        if bytes == 0 {
            return Ok(());
        }
        let reason = match self.copy(way, at, address, bytes) {
            Ok(true) => return Ok(()),
            Ok(false) => format!("{address:#x} is memory of the host, not of the device"),
            Err(error) => return Err(error.failed(call)),
        };
        Err(DeviceError::Failed { call, reason })
    }

    /// Queues a copy of bytes that are in the buffer, behind the others of the buffer. False: the address is no
    /// device's.
    fn copy(&mut self, way: Way, at: usize, address: u64, bytes: usize) -> Result<bool, CudaError> {
        // The driver would copy to any memory of the process that is registered with it.
        let last = address.saturating_add(bytes as u64 - 1);
        let entered = self.link.gpu().enter()?;
        let gpu = Location::device(self.link.gpu().handle());
        if [address, last].into_iter().any(|address| is_the_hosts(&entered, gpu, address)) {
            return Ok(false);
        }
        drop(entered);
        let stream = self.link.stream(way)?;
        if self.last.as_ref().is_some_and(|(before, _)| *before != way)
            && let Some(place) = self.place()?
        {
            // SAFETY: the stream is the link's own.
            unsafe { place.wait_on(stream) }?;
        }
        let host = self.memory.start.as_ptr().wrapping_add(at).cast::<c_void>();
        let entered = self.link.gpu().enter()?;
        let name = match way {
            Way::Down => "cuMemcpyDtoHAsync",
            Way::Up => "cuMemcpyHtoDAsync",
        };
        entered.call(name, |f| {
            // SAFETY: the host's part lies in the buffer, as the caller has found. It is registered and stays until
            // the copy was made, which dropping waits for. Nobody looks at it or changes it before: what `contents`
            // shows is borrowed from the buffer, as `self` is here, and the copies of the buffer follow each
            // other. The device's part is mapped for it, or none of the host's memory, as seen above, and the driver
            // refuses what is not mapped. The stream is the link's own.
            unsafe {
                match way {
                    Way::Down => (f.memcpy_device_to_host_async)(host, address, bytes, stream),
                    Way::Up => (f.memcpy_host_to_device_async)(address, host, bytes, stream),
                }
            }
        })?;
        // What cannot be marked now is when somebody needs it.
        self.last = Some((way, self.link.record(way).ok()));
        Ok(true)
    }

    /// The place behind all copies queued so far; `None` when there is nothing to wait for.
    fn place(&mut self) -> Result<Option<Arc<Recorded>>, CudaError> {
        let Some((way, event)) = &mut self.last else { return Ok(None) };
        let event = match event {
            Some(event) => event,
            None => event.insert(self.link.record(*way)?),
        };
        Ok(Some(Arc::clone(event)))
    }

    /// Waits for all copies queued so far.
    fn wait(&mut self) -> Result<(), CudaError> {
        if let Some(place) = self.place()? {
            place.wait_here()?;
            self.last = None;
        }
        Ok(())
    }

    fn unregister(&self) -> Result<(), CudaError> {
        let start = self.memory.start.as_ptr().cast();
        self.link.gpu().enter()?.call("cuMemHostUnregister", |f| {
            // SAFETY: registered when the buffer was made, unregistered once; no copy is queued any more.
            unsafe { (f.mem_host_unregister)(start) }
        })
    }
}

/// Whether an address is one of the host's memory that was not mapped for the GPU. What was may lie on the host: it
/// spilled.
fn is_the_hosts(entered: &Entered<'_>, gpu: Location, address: u64) -> bool {
    // What is mapped is asked for first: the other question is answered by an error then, which sanitizers report.
    !is_mapped_for(entered, gpu, address) && is_reached_by_host(entered, address)
}

/// Whether the GPU may read and write what is mapped at this address.
fn is_mapped_for(entered: &Entered<'_>, gpu: Location, address: u64) -> bool {
    let mut flags = 0;
    let asked = entered.call("cuMemGetAccess", |f| {
        // SAFETY: `flags` is valid for the write, `gpu` for the read; any address may be asked for.
        unsafe { (f.mem_get_access)(&mut flags, &gpu, address) }
    });
    asked.is_ok() && flags == u64::from(ACCESS_READ_WRITE)
}

/// Whether the host reaches memory by this address. Of what is mapped for GPUs it depends on the driver.
fn is_reached_by_host(entered: &Entered<'_>, address: u64) -> bool {
    let mut pointer: *mut c_void = ptr::null_mut();
    // For memory of devices, and for what is none, the answer is an error, which is not worth its words here.
    let mut answer = SUCCESS;
    let asked = entered.call("cuPointerGetAttribute", |f| {
        // SAFETY: `pointer` is valid for the write of a pointer, which this attribute is; any address may be asked for.
        answer = unsafe {
            (f.pointer_get_attribute)((&raw mut pointer).cast(), POINTER_ATTRIBUTE_HOST_POINTER, address)
        };
        SUCCESS
    });
    asked.is_ok() && answer == SUCCESS
}

impl Staging for Buffer {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn download(&mut self, at: usize, address: u64, bytes: usize) -> Result<(), DeviceError> {
        self.queue(Way::Down, at, address, bytes)
    }

    fn upload(&mut self, at: usize, address: u64, bytes: usize) -> Result<(), DeviceError> {
        self.queue(Way::Up, at, address, bytes)
    }

    fn mark(&mut self) -> Result<Event, DeviceError> {
        let place = self.place().map_err(|error| error.failed(Call::Order))?;
        Ok(match place {
            Some(place) => place,
            None => Arc::new(InOrder),
        })
    }

    fn contents(&mut self) -> Result<&mut [u8], DeviceError> {
        self.wait().map_err(|error| error.failed(Call::Read))?;
        // SAFETY: the memory has at least this many bytes, initialized when it was made. It is the buffer's alone, so
        // that the borrow of `self` keeps everybody off it, and no copy is queued.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.memory.start.as_ptr(), self.bytes) })
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("bytes", &self.bytes).field("last", &self.last).finish_non_exhaustive()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self.wait().and_then(|()| self.unregister()) {
            // SAFETY: the driver no longer knows of it, and the buffer is gone.
            Ok(()) => unsafe { self.memory.free() },
            // What the driver may still know of stays until the process ends, which in a child of a fork, or once
            // the driver is gone, takes nothing from anybody.
            Err(error) => tell(Err(error)),
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests;

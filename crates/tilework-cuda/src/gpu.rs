//! One GPU: its primary context, and how calls get into it and out again.
//!
//! The primary context is the one that the CUDA runtime, and with it every library of a program, uses.
//! Which context is current belongs to the caller: each call here finds it, puts the GPU's in place if it
//! is another, and puts the caller's back.

use std::ffi::{c_int, c_uint};
use std::fmt;
use std::marker::PhantomData;
use std::process;
use std::ptr;
use std::sync::Arc;

use crate::driver::{
    self, ATTRIBUTE_CAPABILITY_MAJOR, ATTRIBUTE_CAPABILITY_MINOR, ATTRIBUTE_HOST_NUMA_ID,
    ATTRIBUTE_MAPS_HOST_MEMORY, ATTRIBUTE_MAPS_MEMORY, AllocationProp, CAPTURE_RELAXED, Code, Context,
    DeviceHandle, Driver, Functions, GRANULARITY_MINIMUM, Location,
};
use crate::error::CudaError;

/// A GPU whose primary context is kept alive.
pub struct Gpu {
    driver: Arc<Driver>,
    ordinal: u32,
    handle: DeviceHandle,
    context: Context,
    name: String,
    total_bytes: u64,
    maps_memory: bool,
    /// The node of the host whose memory can be mapped as the GPU's can.
    host_node: Option<c_int>,
    /// The process that opened it: CUDA does not survive a fork.
    pid: u32,
}

// SAFETY: the driver's functions may be called from any thread, and the context is a name that only the
// driver looks behind.
unsafe impl Send for Gpu {}
// SAFETY: as above; nothing in it changes once it is made.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Opens the GPU with this ordinal, counted from 0.
    ///
    /// # Errors
    /// [`CudaError::NoGpu`], [`CudaError::NoSuchGpu`], or what the driver refused.
    pub fn open(driver: Arc<Driver>, ordinal: u32) -> Result<Gpu, CudaError> {
        let handle = find(&driver, ordinal)?;
        let mut total = 0;
        // SAFETY: `total` is valid for the write, `handle` came from the driver.
        driver.call("cuDeviceTotalMem", |f| unsafe { (f.device_total_mem)(&mut total, handle) })?;
        let maps_memory = attribute(&driver, handle, ATTRIBUTE_MAPS_MEMORY)? != 0;
        // Drivers that do not know the attribute refuse; where there is but one node it is called zero.
        let maps_host = attribute(&driver, handle, ATTRIBUTE_MAPS_HOST_MEMORY).is_ok_and(|maps| maps != 0);
        let host_node = match maps_memory && maps_host {
            true => Some(attribute(&driver, handle, ATTRIBUTE_HOST_NUMA_ID)?.max(0)),
            false => None,
        };
        let name = name(&driver, handle)?;
        let mut context = ptr::null_mut();
        driver.call("cuDevicePrimaryCtxRetain", |f| {
            // SAFETY: `context` is valid for the write, `handle` came from the driver.
            unsafe { (f.device_primary_ctx_retain)(&mut context, handle) }
        })?;
        Ok(Gpu {
            driver,
            ordinal,
            handle,
            context,
            name,
            total_bytes: total as u64,
            maps_memory,
            host_node,
            pid: process::id(),
        })
    }

    /// The driver it belongs to.
    pub fn driver(&self) -> &Arc<Driver> {
        &self.driver
    }

    /// Its number, counted from 0.
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// The driver's name for it in calls.
    pub fn handle(&self) -> DeviceHandle {
        self.handle
    }

    /// What it is called, such as "NVIDIA H200".
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The memory it has, bytes.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Whether physical memory can be created apart from address space and mapped to it.
    pub fn maps_memory(&self) -> bool {
        self.maps_memory
    }

    /// Its compute capability, major and minor, such as 9 and 0.
    ///
    /// # Errors
    /// What the driver refused.
    pub fn compute_capability(&self) -> Result<(u32, u32), CudaError> {
        let number = |which| Ok(u32::try_from(attribute(&self.driver, self.handle, which)?).unwrap_or(0));
        Ok((number(ATTRIBUTE_CAPABILITY_MAJOR)?, number(ATTRIBUTE_CAPABILITY_MINOR)?))
    }

    /// Where memory of the host is that can be created and mapped as the GPU's own: next to the GPU. `None` where
    /// the GPU or its driver cannot do that.
    pub fn host_location(&self) -> Option<Location> {
        self.host_node.map(Location::host)
    }

    /// What physical memory comes in multiples of, bytes.
    ///
    /// # Errors
    /// What the driver refused; always on a GPU that does not map memory.
    pub fn granularity(&self) -> Result<u64, CudaError> {
        self.granularity_at(Location::device(self.handle))
    }

    /// What physical memory at a location comes in multiples of, bytes.
    ///
    /// # Errors
    /// What the driver refused.
    pub fn granularity_at(&self, location: Location) -> Result<u64, CudaError> {
        let prop = AllocationProp::at(location);
        let mut bytes = 0;
        self.enter()?.call("cuMemGetAllocationGranularity", |f| {
            // SAFETY: `bytes` is valid for the write and `prop` for the read.
            unsafe { (f.mem_get_allocation_granularity)(&mut bytes, &prop, GRANULARITY_MINIMUM) }
        })?;
        Ok(bytes as u64)
    }

    /// The handle of a GPU that reaches this one's memory.
    ///
    /// # Errors
    /// [`CudaError::NoSuchGpu`], [`CudaError::NoPeer`], [`CudaError::Forked`], or what the driver refused.
    pub fn peer(&self, ordinal: u32) -> Result<DeviceHandle, CudaError> {
        self.check_process()?;
        let peer = find(&self.driver, ordinal)?;
        let mut can = 0;
        self.driver.call("cuDeviceCanAccessPeer", |f| {
            // SAFETY: `can` is valid for the write, both handles came from the driver.
            unsafe { (f.device_can_access_peer)(&mut can, peer, self.handle) }
        })?;
        if can == 0 {
            return Err(CudaError::NoPeer { ordinal: self.ordinal, peer: ordinal });
        }
        Ok(peer)
    }

    /// Memory that is free on the GPU and memory it has, bytes, all processes together: the driver
    /// cannot tell what one process holds.
    ///
    /// # Errors
    /// What the driver refused.
    pub fn free_and_total(&self) -> Result<(u64, u64), CudaError> {
        let (mut free, mut total) = (0, 0);
        self.enter()?.call("cuMemGetInfo", |f| {
            // SAFETY: both are valid for the writes.
            unsafe { (f.mem_get_info)(&mut free, &mut total) }
        })?;
        Ok((free as u64, total as u64))
    }

    /// Makes the GPU's context the thread's until the guard is dropped, and calls legal that could break
    /// a capture of a stream, of which none of ours is one: they queue nothing.
    ///
    /// # Errors
    /// [`CudaError::Forked`] in a child process, or what the driver refused.
    pub fn enter(&self) -> Result<Entered<'_>, CudaError> {
        self.enter_context(self.context)
    }

    /// As [`enter`](Gpu::enter), for the context of a stream, which may be another GPU's.
    ///
    /// # Safety
    /// The stream must exist.
    ///
    /// # Errors
    /// [`CudaError::Forked`] in a child process, or what the driver refused.
    pub unsafe fn enter_for(&self, stream: driver::Stream) -> Result<Entered<'_>, CudaError> {
        let mut context = self.context;
        self.enter()?.call("cuStreamGetCtx", |f| {
            // SAFETY: `context` is valid for the write; the stream exists, by this function's contract.
            unsafe { (f.stream_get_ctx)(stream, &mut context) }
        })?;
        self.enter_context(context)
    }

    fn enter_context(&self, context: Context) -> Result<Entered<'_>, CudaError> {
        self.check_process()?;
        let mut current = ptr::null_mut();
        // SAFETY: `current` is valid for the write.
        self.driver.call("cuCtxGetCurrent", |f| unsafe { (f.ctx_get_current)(&mut current) })?;
        let pushed = current != context;
        if pushed {
            // SAFETY: the GPU's own is retained while `self` lives, another is that of a stream that exists.
            self.driver.call("cuCtxPushCurrent", |f| unsafe { (f.ctx_push_current)(context) })?;
        }
        let mut entered =
            Entered { gpu: self, context, pushed, capture_mode: None, of_this_thread: PhantomData };
        entered.capture_mode = Some(self.exchange_capture_mode(CAPTURE_RELAXED)?);
        Ok(entered)
    }

    /// Whether this is the process that opened the GPU.
    fn check_process(&self) -> Result<(), CudaError> {
        if process::id() == self.pid { Ok(()) } else { Err(CudaError::Forked) }
    }

    fn exchange_capture_mode(&self, mut mode: u32) -> Result<u32, CudaError> {
        self.driver.call("cuThreadExchangeStreamCaptureMode", |f| {
            // SAFETY: `mode` holds a mode and is valid for the write of the former one.
            unsafe { (f.thread_exchange_stream_capture_mode)(&mut mode) }
        })?;
        Ok(mode)
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu")
            .field("ordinal", &self.ordinal)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.check_process().is_err() {
            return;
        }
        let released = self.driver.call("cuDevicePrimaryCtxRelease", |f| {
            // SAFETY: retained once in `open`, released once here; nothing of it is used later.
            unsafe { (f.device_primary_ctx_release)(self.handle) }
        });
        tell(released);
    }
}

/// The time in which a GPU's context is the thread's.
pub struct Entered<'a> {
    gpu: &'a Gpu,
    context: Context,
    /// True iff the context was not the thread's before.
    pushed: bool,
    /// The thread's mode before, once it was changed.
    capture_mode: Option<u32>,
    /// Contexts and modes are the thread's.
    of_this_thread: PhantomData<*const ()>,
}

impl Entered<'_> {
    /// Whether the context is the GPU's own.
    pub fn is_home(&self) -> bool {
        self.context == self.gpu.context
    }

    /// Calls one function, named for errors.
    ///
    /// # Errors
    /// [`CudaError::Refused`].
    pub fn call(&self, name: &'static str, call: impl FnOnce(&Functions) -> Code) -> Result<(), CudaError> {
        self.gpu.driver.call(name, call)
    }

    /// Waits for what was queued on the default stream.
    fn finish(&self) -> Result<(), CudaError> {
        // SAFETY: null is the default stream, which always is.
        self.call("cuStreamSynchronize", |f| unsafe { (f.stream_synchronize)(ptr::null_mut()) })
    }

    /// Copies memory of the GPU at `address` to `out`.
    ///
    /// # Safety
    /// `out.len()` bytes from `address` must be mapped and readable.
    ///
    /// # Errors
    /// What the driver refused.
    pub unsafe fn read(&self, address: u64, out: &mut [u8]) -> Result<(), CudaError> {
        if out.is_empty() {
            return Ok(());
        }
        self.call("cuMemcpyDtoH", |f| {
            // SAFETY: the source is readable, by this function's contract; the destination is a slice.
            unsafe { (f.memcpy_device_to_host)(out.as_mut_ptr().cast(), address, out.len()) }
        })
    }

    /// Copies `bytes` to memory of the GPU at `address`. They have arrived when it returns.
    ///
    /// # Safety
    /// `bytes.len()` bytes from `address` must be mapped and writable.
    ///
    /// # Errors
    /// What the driver refused.
    pub unsafe fn write(&self, address: u64, bytes: &[u8]) -> Result<(), CudaError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.call("cuMemcpyHtoD", |f| {
            // SAFETY: the destination is writable, by this function's contract; the source is a slice.
            unsafe { (f.memcpy_host_to_device)(address, bytes.as_ptr().cast(), bytes.len()) }
        })?;
        // The driver may return while the last part is on its way from a buffer of its own, and an
        // unmapping does not wait for that.
        self.finish()
    }

    /// Sets `bytes` of the GPU's memory from `address` to zero. They are when it returns.
    ///
    /// # Safety
    /// As for [`write`](Entered::write).
    ///
    /// # Errors
    /// What the driver refused.
    pub unsafe fn clear(&self, address: u64, bytes: u64) -> Result<(), CudaError> {
        self.call("cuMemsetD8", |f| {
            // SAFETY: writable, by this function's contract.
            unsafe { (f.memset_d8)(address, 0, bytes as usize) }
        })?;
        // Filling is queued, and streams that do not wait for the default one would not see it.
        self.finish()
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if let Some(mode) = self.capture_mode {
            tell(self.gpu.exchange_capture_mode(mode).map(drop));
        }
        if self.pushed {
            let mut popped = ptr::null_mut();
            // SAFETY: `popped` is valid for the write; what is popped was pushed by this guard.
            tell(self.call("cuCtxPopCurrent", |f| unsafe { (f.ctx_pop_current)(&mut popped) }));
        }
    }
}

/// Logs what nobody can be told of otherwise, unless the driver is gone, which is no one's fault.
pub(crate) fn tell(outcome: Result<(), CudaError>) {
    if let Err(error) = outcome
        && !error.is_the_end()
    {
        tracing::warn!(%error, "the GPU did not take back what it had given");
    }
}

fn find(driver: &Driver, ordinal: u32) -> Result<DeviceHandle, CudaError> {
    let count = driver.count()?;
    let number = c_int::try_from(ordinal).ok().filter(|_| ordinal < count);
    let number = number.ok_or(CudaError::NoSuchGpu { ordinal, count })?;
    let mut handle = 0;
    // SAFETY: `handle` is valid for the write.
    driver.call("cuDeviceGet", |f| unsafe { (f.device_get)(&mut handle, number) })?;
    Ok(handle)
}

fn attribute(driver: &Driver, handle: DeviceHandle, which: c_uint) -> Result<c_int, CudaError> {
    let mut value = 0;
    driver.call("cuDeviceGetAttribute", |f| {
        // SAFETY: `value` is valid for the write, `handle` came from the driver.
        unsafe { (f.device_get_attribute)(&mut value, which, handle) }
    })?;
    Ok(value)
}

fn name(driver: &Driver, handle: DeviceHandle) -> Result<String, CudaError> {
    let mut name = [0u8; 256];
    driver.call("cuDeviceGetName", |f| {
        // SAFETY: `name` is valid for writes of the length that is passed, less than which is written.
        unsafe { (f.device_get_name)(name.as_mut_ptr().cast(), name.len() as c_int, handle) }
    })?;
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

#[cfg(test)]
mod tests;

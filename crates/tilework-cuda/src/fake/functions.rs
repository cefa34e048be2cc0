//! The fake's functions, in the order of the table.
//!
//! Every `out` pointer is written only when the call succeeds, and a null one is refused, so that the
//! one thing a caller answers for is that a pointer is valid where it is not null.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::memory::pointer;
use super::streams::{Copy, HostCall, Way};
use super::{CAPTURE_MODE, CONTEXTS, Fake, Needs, State, context_of, current, serve};
use crate::driver::{
    ACCESS_READ_WRITE, ALLOCATION_PINNED, ATTRIBUTE_CAPABILITY_MAJOR, ATTRIBUTE_CAPABILITY_MINOR,
    ATTRIBUTE_HOST_NUMA_ID, ATTRIBUTE_MAPS_HOST_MEMORY, ATTRIBUTE_MAPS_MEMORY, AccessDesc, Address,
    AllocationProp, CAPTURE_STATUS_ACTIVE, CAPTURE_STATUS_NONE, Code, Context, DEINITIALIZED, DeviceHandle,
    Event, Functions, HOST_MEMORY_ALREADY_REGISTERED, HOST_MEMORY_NOT_REGISTERED, HostFn, INVALID_CONTEXT,
    INVALID_DEVICE, INVALID_HANDLE, INVALID_VALUE, LOCATION_DEVICE, Location, MemoryHandle, NO_DEVICE,
    NOT_INITIALIZED, NOT_READY, NOT_SUPPORTED, OUT_OF_MEMORY, POINTER_ATTRIBUTE_HOST_POINTER,
    REGISTER_PORTABLE, STREAM_CAPTURE_UNSUPPORTED, SUCCESS, Stream,
};

pub(super) const TABLE: Functions = Functions {
    init,
    driver_get_version,
    get_error_name,
    get_error_string,
    device_get_count,
    device_get,
    device_get_name,
    device_get_attribute,
    device_total_mem,
    device_can_access_peer,
    device_primary_ctx_retain,
    device_primary_ctx_release,
    ctx_get_current,
    ctx_push_current,
    ctx_pop_current,
    ctx_synchronize,
    mem_get_info,
    mem_get_allocation_granularity,
    mem_address_reserve,
    mem_address_free,
    mem_create,
    mem_release,
    mem_map,
    mem_unmap,
    mem_set_access,
    mem_get_access,
    mem_alloc,
    mem_free,
    memcpy_host_to_device,
    memcpy_device_to_host,
    memcpy_host_to_device_async,
    memcpy_device_to_host_async,
    pointer_get_attribute,
    mem_host_register,
    mem_host_unregister,
    memset_d8,
    stream_create,
    stream_destroy,
    stream_synchronize,
    stream_query,
    stream_get_ctx,
    stream_wait_event,
    stream_is_capturing,
    thread_exchange_stream_capture_mode,
    event_create,
    event_record,
    event_query,
    event_synchronize,
    event_destroy,
    launch_host_func,
};

/// Writes what a call returns.
///
/// # Safety
/// `out` must be null or valid for the write.
unsafe fn put<T>(out: *mut T, value: T) -> Result<(), Code> {
    if out.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: valid for the write, by this function's contract.
    unsafe { out.write(value) };
    Ok(())
}

unsafe extern "system" fn init(flags: c_uint) -> Code {
    serve("cuInit", Needs::Nothing, |state| {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        if state.config.gpus == 0 {
            return Err(NO_DEVICE);
        }
        state.initialized = true;
        Ok(())
    })
}

unsafe extern "system" fn driver_get_version(version: *mut c_int) -> Code {
    // SAFETY: as the caller of the driver's function answers for.
    serve("cuDriverGetVersion", Needs::Nothing, |_| unsafe { put(version, 13_000) })
}

/// Names and sentences of codes: those that the fake returns, and a few for tests to fail with.
fn words(code: Code) -> Option<(&'static CStr, &'static CStr)> {
    Some(match code {
        SUCCESS => (c"CUDA_SUCCESS", c"no error"),
        INVALID_VALUE => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
        OUT_OF_MEMORY => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        NOT_INITIALIZED => (c"CUDA_ERROR_NOT_INITIALIZED", c"initialization error"),
        DEINITIALIZED => (c"CUDA_ERROR_DEINITIALIZED", c"driver shutting down"),
        NO_DEVICE => (c"CUDA_ERROR_NO_DEVICE", c"no CUDA-capable device is detected"),
        INVALID_DEVICE => (c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
        INVALID_CONTEXT => (c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"),
        INVALID_HANDLE => (c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
        NOT_READY => (c"CUDA_ERROR_NOT_READY", c"device not ready"),
        HOST_MEMORY_ALREADY_REGISTERED => (
            c"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
            c"part or all of the requested memory range is already mapped",
        ),
        HOST_MEMORY_NOT_REGISTERED => (
            c"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
            c"pointer does not correspond to a registered memory region",
        ),
        NOT_SUPPORTED => (c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported"),
        STREAM_CAPTURE_UNSUPPORTED => {
            (c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", c"operation not permitted when stream is capturing")
        }
        _ => return None,
    })
}

unsafe extern "system" fn get_error_name(code: Code, name: *mut *const c_char) -> Code {
    let Some((text, _)) = words(code) else { return INVALID_VALUE };
    // SAFETY: as the caller of the driver's function answers for.
    unsafe { put(name, text.as_ptr()) }.err().unwrap_or(SUCCESS)
}

unsafe extern "system" fn get_error_string(code: Code, out: *mut *const c_char) -> Code {
    let Some((_, text)) = words(code) else { return INVALID_VALUE };
    // SAFETY: as the caller of the driver's function answers for.
    unsafe { put(out, text.as_ptr()) }.err().unwrap_or(SUCCESS)
}

unsafe extern "system" fn device_get_count(count: *mut c_int) -> Code {
    // SAFETY: as the caller of the driver's function answers for.
    serve("cuDeviceGetCount", Needs::Init, |state| unsafe { put(count, state.config.gpus as c_int) })
}

unsafe extern "system" fn device_get(device: *mut DeviceHandle, ordinal: c_int) -> Code {
    serve("cuDeviceGet", Needs::Init, |state| {
        state.gpu(ordinal)?;
        // SAFETY: as the caller of the driver's function answers for.
        unsafe { put(device, ordinal) }
    })
}

unsafe extern "system" fn device_get_name(name: *mut c_char, len: c_int, device: DeviceHandle) -> Code {
    serve("cuDeviceGetName", Needs::Init, |state| {
        state.gpu(device)?;
        let text = c"Fake GPU".to_bytes_with_nul();
        if name.is_null() || usize::try_from(len).is_ok_and(|len| len < text.len()) {
            return Err(INVALID_VALUE);
        }
        // SAFETY: valid for writes of `len` bytes, as the caller answers for, which are enough.
        unsafe { name.copy_from_nonoverlapping(text.as_ptr().cast(), text.len()) };
        Ok(())
    })
}

unsafe extern "system" fn device_get_attribute(out: *mut c_int, attribute: c_uint, device: c_int) -> Code {
    serve("cuDeviceGetAttribute", Needs::Init, |state| {
        state.gpu(device)?;
        let value = match attribute {
            ATTRIBUTE_CAPABILITY_MAJOR => 9,
            ATTRIBUTE_CAPABILITY_MINOR => 0,
            ATTRIBUTE_MAPS_MEMORY => c_int::from(state.config.maps_memory),
            ATTRIBUTE_MAPS_HOST_MEMORY => c_int::from(state.config.maps_host_memory),
            ATTRIBUTE_HOST_NUMA_ID => NODE,
            _ => return Err(INVALID_VALUE),
        };
        // SAFETY: as the caller of the driver's function answers for.
        unsafe { put(out, value) }
    })
}

unsafe extern "system" fn device_total_mem(bytes: *mut usize, device: DeviceHandle) -> Code {
    serve("cuDeviceTotalMem", Needs::Init, |state| {
        state.gpu(device)?;
        // SAFETY: as the caller of the driver's function answers for.
        unsafe { put(bytes, state.config.total_bytes as usize) }
    })
}

unsafe extern "system" fn device_can_access_peer(out: *mut c_int, device: c_int, peer: c_int) -> Code {
    serve("cuDeviceCanAccessPeer", Needs::Init, |state| {
        let can = state.gpu(device)? != state.gpu(peer)?;
        // SAFETY: as the caller of the driver's function answers for.
        unsafe { put(out, c_int::from(can)) }
    })
}

unsafe extern "system" fn device_primary_ctx_retain(context: *mut Context, device: DeviceHandle) -> Code {
    serve("cuDevicePrimaryCtxRetain", Needs::Init, |state| {
        let gpu = state.gpu(device)?;
        // SAFETY: as the caller of the driver's function answers for.
        unsafe { put(context, context_of(gpu)) }?;
        state.retained[gpu] += 1;
        Ok(())
    })
}

unsafe extern "system" fn device_primary_ctx_release(device: DeviceHandle) -> Code {
    serve("cuDevicePrimaryCtxRelease", Needs::Init, |state| {
        let gpu = state.gpu(device)?;
        state.retained[gpu] = state.retained[gpu].checked_sub(1).ok_or(INVALID_CONTEXT)?;
        Ok(())
    })
}

unsafe extern "system" fn ctx_get_current(context: *mut Context) -> Code {
    serve("cuCtxGetCurrent", Needs::Init, |_| {
        // SAFETY: as the caller of the driver's function answers for.
        unsafe { put(context, std::ptr::without_provenance_mut(current())) }
    })
}

unsafe extern "system" fn ctx_push_current(context: Context) -> Code {
    serve("cuCtxPushCurrent", Needs::Init, |state| {
        if context.addr() > state.retained.len() {
            return Err(INVALID_CONTEXT);
        }
        CONTEXTS.with_borrow_mut(|contexts| contexts.push(context.addr()));
        Ok(())
    })
}

unsafe extern "system" fn ctx_pop_current(context: *mut Context) -> Code {
    serve("cuCtxPopCurrent", Needs::Init, |_| {
        let popped = CONTEXTS.with_borrow_mut(Vec::pop).ok_or(INVALID_CONTEXT)?;
        // SAFETY: as the caller of the driver's function answers for.
        unsafe { put(context, std::ptr::without_provenance_mut(popped)) }
    })
}

unsafe extern "system" fn ctx_synchronize() -> Code {
    let code = serve("cuCtxSynchronize", Needs::Context, |state| {
        if state.streams.any_capturing() { Err(STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    });
    if code == SUCCESS {
        Fake::of_this_thread().wait_until(|state| state.streams.all_done());
    }
    code
}

unsafe extern "system" fn mem_get_info(free: *mut usize, total: *mut usize) -> Code {
    serve("cuMemGetInfo", Needs::Context, |state| {
        let bytes = state.config.total_bytes;
        // SAFETY: as the caller of the driver's function answers for.
        unsafe { put(free, (bytes - state.memory.held_bytes()) as usize) }?;
        // SAFETY: as above.
        unsafe { put(total, bytes as usize) }
    })
}

/// The one node of the host.
const NODE: c_int = 0;

/// Whether memory is described that lies on the host.
///
/// # Errors
/// What is wrong with the description.
///
/// # Safety
/// `prop` must be null or valid for the read.
unsafe fn check_prop(prop: *const AllocationProp, state: &State) -> Result<bool, Code> {
    // SAFETY: valid for the read, by this function's contract.
    let prop = unsafe { prop.as_ref() }.ok_or(INVALID_VALUE)?;
    let known = prop.kind == ALLOCATION_PINNED
        && prop.requested_handle_types == 0
        && prop.win32_handle_metadata.is_null()
        && prop.flags.reserved == [0; 4];
    if !known {
        return Err(INVALID_VALUE);
    }
    if state.config.maps_host_memory && prop.location == Location::host(NODE) {
        return Ok(true);
    }
    check_location(prop.location, state.retained.len()).map(|_| false)
}

/// Which of `gpus` GPUs is named.
fn check_location(location: Location, gpus: usize) -> Result<usize, Code> {
    let gpu = usize::try_from(location.id).ok().filter(|&id| id < gpus && location.kind == LOCATION_DEVICE);
    gpu.ok_or(INVALID_DEVICE)
}

/// The GPU whose context is current.
fn current_gpu() -> Result<usize, Code> {
    let context = CONTEXTS.with_borrow(|contexts| contexts.last().copied()).unwrap_or(0);
    context.checked_sub(1).ok_or(INVALID_CONTEXT)
}

unsafe extern "system" fn mem_get_allocation_granularity(
    bytes: *mut usize,
    prop: *const AllocationProp,
    _: c_uint,
) -> Code {
    serve("cuMemGetAllocationGranularity", Needs::Init, |state| {
        // SAFETY: as the caller of the driver's function answers for.
        unsafe { check_prop(prop, state) }?;
        if !state.config.maps_memory {
            return Err(NOT_SUPPORTED);
        }
        // SAFETY: as above.
        unsafe { put(bytes, state.config.granularity as usize) }
    })
}

unsafe extern "system" fn mem_address_reserve(
    address: *mut Address,
    bytes: usize,
    alignment: usize,
    _hint: Address,
    flags: u64,
) -> Code {
    serve("cuMemAddressReserve", Needs::Memory, |state| {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        let reserved = state.memory.reserve(bytes as u64, alignment as u64)?;
        // SAFETY: as the caller of the driver's function answers for.
        unsafe { put(address, reserved) }
    })
}

unsafe extern "system" fn mem_address_free(address: Address, bytes: usize) -> Code {
    serve("cuMemAddressFree", Needs::Memory, |state| state.memory.unreserve(address, bytes as u64))
}

unsafe extern "system" fn mem_create(
    handle: *mut MemoryHandle,
    bytes: usize,
    prop: *const AllocationProp,
    flags: u64,
) -> Code {
    serve("cuMemCreate", Needs::Memory, |state| {
        // SAFETY: as the caller of the driver's function answers for.
        let on_host = unsafe { check_prop(prop, state) }?;
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        let created = state.memory.create(bytes as u64, on_host)?;
        // SAFETY: as above.
        unsafe { put(handle, created) }
    })
}

unsafe extern "system" fn mem_release(handle: MemoryHandle) -> Code {
    serve("cuMemRelease", Needs::Memory, |state| state.memory.release(handle))
}

unsafe extern "system" fn mem_map(
    address: Address,
    bytes: usize,
    offset: usize,
    handle: MemoryHandle,
    flags: u64,
) -> Code {
    serve("cuMemMap", Needs::Memory, |state| {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        state.memory.map(address, bytes as u64, offset as u64, handle)
    })
}

unsafe extern "system" fn mem_unmap(address: Address, bytes: usize) -> Code {
    serve("cuMemUnmap", Needs::Memory, |state| {
        state.memory.unmap(address, bytes as u64)?;
        state.unmapped_under_work += u64::from(state.streams.use_any_of(address, bytes as u64));
        Ok(())
    })
}

unsafe extern "system" fn mem_set_access(
    address: Address,
    bytes: usize,
    access: *const AccessDesc,
    count: usize,
) -> Code {
    serve("cuMemSetAccess", Needs::Memory, |state| {
        if access.is_null() || count == 0 {
            return Err(INVALID_VALUE);
        }
        // SAFETY: valid for reads of `count`, as the caller of the driver's function answers for.
        let access = unsafe { std::slice::from_raw_parts(access, count) };
        if access.iter().any(|desc| desc.flags != ACCESS_READ_WRITE) {
            return Err(NOT_SUPPORTED);
        }
        let gpus = access.iter().map(|desc| check_location(desc.location, state.retained.len()));
        state.memory.set_access(address, bytes as u64, &gpus.collect::<Result<Vec<_>, _>>()?)
    })
}

unsafe extern "system" fn mem_get_access(
    flags: *mut u64,
    location: *const Location,
    address: Address,
) -> Code {
    serve("cuMemGetAccess", Needs::Memory, |state| {
        if flags.is_null() || location.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: valid for the read, as the caller of the driver's function answers for.
        let gpu = check_location(unsafe { *location }, state.retained.len())?;
        let may_use = state.memory.access(gpu, address)?;
        // SAFETY: valid for the write, as above.
        unsafe { put(flags, if may_use { u64::from(ACCESS_READ_WRITE) } else { 0 }) }
    })
}

unsafe extern "system" fn mem_alloc(address: *mut Address, bytes: usize) -> Code {
    serve("cuMemAlloc", Needs::Memory, |state| {
        let allocated = state.memory.alloc(bytes as u64)?;
        // SAFETY: as the caller of the driver's function answers for.
        unsafe { put(address, allocated) }
    })
}

unsafe extern "system" fn mem_free(address: Address) -> Code {
    serve("cuMemFree", Needs::Memory, |state| state.memory.free(address))
}

unsafe extern "system" fn memcpy_host_to_device(to: Address, from: *const c_void, bytes: usize) -> Code {
    serve("cuMemcpyHtoD", Needs::Context, |state| {
        state.memory.check_use(current_gpu()?, to, bytes as u64)?;
        // SAFETY: the destination was found mapped and writable; the source is the caller's to answer for.
        unsafe { pointer(to).cast::<u8>().copy_from(from.cast(), bytes) };
        Ok(())
    })
}

unsafe extern "system" fn memcpy_device_to_host(to: *mut c_void, from: Address, bytes: usize) -> Code {
    serve("cuMemcpyDtoH", Needs::Context, |state| {
        state.memory.check_use(current_gpu()?, from, bytes as u64)?;
        // SAFETY: the source was found mapped and readable; the destination is the caller's to answer for.
        unsafe { to.cast::<u8>().copy_from(pointer(from).cast(), bytes) };
        Ok(())
    })
}

unsafe extern "system" fn memcpy_host_to_device_async(
    to: Address,
    from: *const c_void,
    bytes: usize,
    stream: Stream,
) -> Code {
    let host = from.expose_provenance() as u64;
    queue_copy("cuMemcpyHtoDAsync", stream, |gpu| Copy { way: Way::Up, gpu, device: to, host, bytes })
}

unsafe extern "system" fn memcpy_device_to_host_async(
    to: *mut c_void,
    from: Address,
    bytes: usize,
    stream: Stream,
) -> Code {
    let host = to.expose_provenance() as u64;
    queue_copy("cuMemcpyDtoHAsync", stream, |gpu| Copy { way: Way::Down, gpu, device: from, host, bytes })
}

/// Queues a copy. A real driver takes memory that is not registered, too, and makes the host wait; nobody here
/// relies on that, so it is refused.
fn queue_copy(function: &'static str, stream: Stream, copy: impl FnOnce(usize) -> Copy) -> Code {
    then_run(serve(function, Needs::Context, |state| {
        let copy = copy(current_gpu()?);
        state.memory.check_copied(copy)?;
        if !state.memory.is_registered(copy.host, copy.bytes as u64) {
            return Err(NOT_SUPPORTED);
        }
        state.streams.copy(stream, copy)
    }))
}

unsafe extern "system" fn pointer_get_attribute(
    value: *mut c_void,
    attribute: c_uint,
    address: Address,
) -> Code {
    serve("cuPointerGetAttribute", Needs::Context, |state| {
        let told = state.config.tells_host_addresses && state.memory.is_mapped_from_host(address);
        if attribute != POINTER_ATTRIBUTE_HOST_POINTER || !told && !state.memory.is_registered(address, 1) {
            return Err(INVALID_VALUE);
        }
        // SAFETY: valid for the write of a pointer, as the caller of the driver's function answers for.
        unsafe { put(value.cast(), pointer(address)) }
    })
}

unsafe extern "system" fn mem_host_register(start: *mut c_void, bytes: usize, flags: c_uint) -> Code {
    serve("cuMemHostRegister", Needs::Memory, |state| {
        if start.is_null() || bytes == 0 || flags != REGISTER_PORTABLE {
            return Err(INVALID_VALUE);
        }
        state.memory.register(start.expose_provenance() as u64, bytes as u64)
    })
}

unsafe extern "system" fn mem_host_unregister(start: *mut c_void) -> Code {
    serve("cuMemHostUnregister", Needs::Memory, |state| {
        let start = start.addr() as u64;
        let bytes = state.memory.unregister(start)?;
        state.unmapped_under_work += u64::from(state.streams.use_any_of(start, bytes));
        Ok(())
    })
}

unsafe extern "system" fn memset_d8(address: Address, value: u8, bytes: usize) -> Code {
    serve("cuMemsetD8", Needs::Context, |state| {
        state.memory.check_use(current_gpu()?, address, bytes as u64)?;
        // SAFETY: found mapped and writable.
        unsafe { pointer(address).cast::<u8>().write_bytes(value, bytes) };
        Ok(())
    })
}

unsafe extern "system" fn stream_create(stream: *mut Stream, _: c_uint) -> Code {
    serve("cuStreamCreate", Needs::Context, |state| {
        // SAFETY: as the caller of the driver's function answers for.
        unsafe { put(stream, state.streams.create(current())) }
    })
}

unsafe extern "system" fn stream_destroy(stream: Stream) -> Code {
    then_run(serve("cuStreamDestroy", Needs::Context, |state| state.streams.destroy(stream)))
}

unsafe extern "system" fn stream_synchronize(stream: Stream) -> Code {
    let code = serve("cuStreamSynchronize", Needs::Context, |state| state.streams.check(stream));
    if code == SUCCESS {
        Fake::of_this_thread().wait_until(|state| state.streams.is_done(stream));
    }
    code
}

unsafe extern "system" fn stream_query(stream: Stream) -> Code {
    serve("cuStreamQuery", Needs::Context, |state| {
        state.streams.check(stream)?;
        if state.streams.is_done(stream) { Ok(()) } else { Err(NOT_READY) }
    })
}

unsafe extern "system" fn stream_get_ctx(stream: Stream, context: *mut Context) -> Code {
    serve("cuStreamGetCtx", Needs::Context, |state| {
        state.streams.check(stream)?;
        // A name of the driver's is the stream of whatever context is current.
        let of = state.streams.context(stream).unwrap_or_else(current);
        // SAFETY: as the caller of the driver's function answers for.
        unsafe { put(context, std::ptr::without_provenance_mut(of)) }
    })
}

unsafe extern "system" fn stream_wait_event(stream: Stream, event: Event, _: c_uint) -> Code {
    then_run(serve("cuStreamWaitEvent", Needs::Context, |state| state.streams.wait(stream, event)))
}

unsafe extern "system" fn stream_is_capturing(stream: Stream, status: *mut c_uint) -> Code {
    serve("cuStreamIsCapturing", Needs::Context, |state| {
        state.streams.check(stream)?;
        let capturing = state.streams.is_capturing(stream);
        // SAFETY: as the caller of the driver's function answers for.
        unsafe { put(status, if capturing { CAPTURE_STATUS_ACTIVE } else { CAPTURE_STATUS_NONE }) }
    })
}

unsafe extern "system" fn thread_exchange_stream_capture_mode(mode: *mut c_uint) -> Code {
    serve("cuThreadExchangeStreamCaptureMode", Needs::Init, |_| {
        // SAFETY: null or valid, as the caller of the driver's function answers for.
        let mode = unsafe { mode.as_mut() }.filter(|mode| **mode <= 2).ok_or(INVALID_VALUE)?;
        *mode = CAPTURE_MODE.replace(*mode);
        Ok(())
    })
}

unsafe extern "system" fn event_create(event: *mut Event, _: c_uint) -> Code {
    serve("cuEventCreate", Needs::Context, |state| {
        // SAFETY: as the caller of the driver's function answers for.
        unsafe { put(event, state.streams.create_event(current())) }
    })
}

unsafe extern "system" fn event_record(event: Event, stream: Stream) -> Code {
    then_run(serve("cuEventRecord", Needs::Context, |state| state.streams.record(event, stream, current())))
}

unsafe extern "system" fn event_query(event: Event) -> Code {
    serve("cuEventQuery", Needs::Context, |state| {
        if state.streams.is_reached(event)? { Ok(()) } else { Err(NOT_READY) }
    })
}

unsafe extern "system" fn event_synchronize(event: Event) -> Code {
    let code = serve("cuEventSynchronize", Needs::Context, |state| state.streams.is_reached(event).map(drop));
    if code == SUCCESS {
        Fake::of_this_thread().wait_until(|state| state.streams.is_reached(event).unwrap_or(true));
    }
    code
}

unsafe extern "system" fn event_destroy(event: Event) -> Code {
    then_run(serve("cuEventDestroy", Needs::Context, |state| state.streams.destroy_event(event)))
}

unsafe extern "system" fn launch_host_func(stream: Stream, function: HostFn, data: *mut c_void) -> Code {
    then_run(serve("cuLaunchHostFunc", Needs::Context, |state| {
        let function = function.ok_or(INVALID_VALUE)?;
        state.streams.launch_host(stream, HostCall { function, data })
    }))
}

/// After a call that changed a queue: what may run does.
fn then_run(code: Code) -> Code {
    if code == SUCCESS {
        Fake::of_this_thread().run_queues();
    }
    code
}

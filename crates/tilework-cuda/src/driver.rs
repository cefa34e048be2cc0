//! The CUDA driver's functions, found at run time and never linked.
//!
//! Types have the layout of `cuda.h` and Rust names; the C name is in the documentation of each. What a
//! function does and needs is in NVIDIA's *CUDA Driver API*. The names loaded are those that `cuda.h`
//! of CUDA 11 and later turns the plain names into (`cuMemAlloc` is `cuMemAlloc_v2`), so that sizes and
//! addresses have 64 bits. The stream called null is the legacy default stream.

use std::error::Error;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::{offset_of, size_of};
use std::ptr;
use std::sync::Arc;

use libloading::Library;

use crate::error::CudaError;

/// `CUresult`.
pub type Code = c_uint;
/// `CUdevice`.
pub type DeviceHandle = c_int;
/// `CUcontext`.
pub type Context = *mut c_void;
/// `CUstream`. Null is the legacy default stream.
pub type Stream = *mut c_void;
/// `CUevent`.
pub type Event = *mut c_void;
/// `CUdeviceptr`.
pub type Address = u64;
/// `CUmemGenericAllocationHandle`: physical memory.
pub type MemoryHandle = u64;
/// `CUhostFn`.
pub type HostFn = Option<unsafe extern "system" fn(*mut c_void)>;

/// `CUDA_SUCCESS`.
pub const SUCCESS: Code = 0;
/// `CUDA_ERROR_INVALID_VALUE`.
pub const INVALID_VALUE: Code = 1;
/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub const OUT_OF_MEMORY: Code = 2;
/// `CUDA_ERROR_NOT_INITIALIZED`.
pub const NOT_INITIALIZED: Code = 3;
/// `CUDA_ERROR_DEINITIALIZED`: the process is ending and the driver has ended already.
pub const DEINITIALIZED: Code = 4;
/// `CUDA_ERROR_NO_DEVICE`.
pub const NO_DEVICE: Code = 100;
/// `CUDA_ERROR_INVALID_DEVICE`.
pub const INVALID_DEVICE: Code = 101;
/// `CUDA_ERROR_INVALID_CONTEXT`.
pub const INVALID_CONTEXT: Code = 201;
/// `CUDA_ERROR_INVALID_HANDLE`.
pub const INVALID_HANDLE: Code = 400;
/// `CUDA_ERROR_NOT_READY`: queued work has not finished.
pub const NOT_READY: Code = 600;
/// `CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED`.
pub const HOST_MEMORY_ALREADY_REGISTERED: Code = 712;
/// `CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED`.
pub const HOST_MEMORY_NOT_REGISTERED: Code = 713;
/// `CUDA_ERROR_NOT_SUPPORTED`.
pub const NOT_SUPPORTED: Code = 801;
/// `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED`.
pub const STREAM_CAPTURE_UNSUPPORTED: Code = 900;

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`.
pub const ATTRIBUTE_CAPABILITY_MAJOR: c_uint = 75;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR`.
pub const ATTRIBUTE_CAPABILITY_MINOR: c_uint = 76;
/// `CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED`.
pub const ATTRIBUTE_MAPS_MEMORY: c_uint = 102;
/// `CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID`: the node of the host that is next to the GPU; below zero where the host has
/// but one.
pub const ATTRIBUTE_HOST_NUMA_ID: c_uint = 134;
/// `CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED`. Drivers before CUDA 12.9 do not know it.
pub const ATTRIBUTE_MAPS_HOST_MEMORY: c_uint = 141;
/// `CU_MEM_ALLOCATION_TYPE_PINNED`.
pub const ALLOCATION_PINNED: c_uint = 1;
/// `CU_MEM_LOCATION_TYPE_DEVICE`.
pub const LOCATION_DEVICE: c_uint = 1;
/// `CU_MEM_LOCATION_TYPE_HOST_NUMA`.
pub const LOCATION_HOST_NUMA: c_uint = 3;
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
pub const ACCESS_READ_WRITE: c_uint = 3;
/// `CU_MEM_ALLOC_GRANULARITY_MINIMUM`.
pub const GRANULARITY_MINIMUM: c_uint = 0;
/// `CU_STREAM_CAPTURE_MODE_GLOBAL`: what a thread starts with.
pub const CAPTURE_GLOBAL: c_uint = 0;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
pub const CAPTURE_RELAXED: c_uint = 2;
/// `CU_STREAM_CAPTURE_STATUS_NONE`.
pub const CAPTURE_STATUS_NONE: c_uint = 0;
/// `CU_STREAM_CAPTURE_STATUS_ACTIVE`.
pub const CAPTURE_STATUS_ACTIVE: c_uint = 1;
/// `CU_STREAM_NON_BLOCKING`.
pub const STREAM_NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`.
pub const EVENT_DISABLE_TIMING: c_uint = 2;
/// `CU_POINTER_ATTRIBUTE_HOST_POINTER`: by what address the host reaches memory.
pub const POINTER_ATTRIBUTE_HOST_POINTER: c_uint = 4;
/// `CU_MEMHOSTREGISTER_PORTABLE`: pinned for all contexts.
pub const REGISTER_PORTABLE: c_uint = 1;

/// `CUmemLocation`: whose memory, or whose access.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// `type`.
    pub kind: c_uint,
    /// `id`: the device for [`LOCATION_DEVICE`], the node for [`LOCATION_HOST_NUMA`].
    pub id: c_int,
}

/// `CUmemAllocationProp`: what kind of physical memory.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AllocationProp {
    /// `type`.
    pub kind: c_uint,
    /// `requestedHandleTypes`: zero where it is not shared with other processes.
    pub requested_handle_types: c_uint,
    /// Where.
    pub location: Location,
    /// `win32HandleMetaData`: null unless shared on Windows.
    pub win32_handle_metadata: *mut c_void,
    /// `allocFlags`.
    pub flags: AllocationFlags,
}

/// `CUmemAllocationProp::allocFlags`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct AllocationFlags {
    /// `compressionType`.
    pub compression_type: u8,
    /// `gpuDirectRDMACapable`.
    pub gpu_direct_rdma_capable: u8,
    /// `usage`.
    pub usage: u16,
    /// `reserved`: zero.
    pub reserved: [u8; 4],
}

/// `CUmemAccessDesc`: who may do what.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessDesc {
    /// Who.
    pub location: Location,
    /// What.
    pub flags: c_uint,
}

impl Location {
    /// The memory of a device.
    pub fn device(device: DeviceHandle) -> Location {
        Location { kind: LOCATION_DEVICE, id: device }
    }

    /// The memory of a node of the host.
    pub fn host(node: c_int) -> Location {
        Location { kind: LOCATION_HOST_NUMA, id: node }
    }
}

impl AllocationProp {
    /// Plain memory of a device, not shared with other processes.
    pub fn device(device: DeviceHandle) -> AllocationProp {
        AllocationProp::at(Location::device(device))
    }

    /// Plain memory, not shared with other processes.
    pub fn at(location: Location) -> AllocationProp {
        AllocationProp {
            kind: ALLOCATION_PINNED,
            requested_handle_types: 0,
            location,
            win32_handle_metadata: ptr::null_mut(),
            flags: AllocationFlags::default(),
        }
    }
}

impl AccessDesc {
    /// Reading and writing by a device.
    pub fn read_write(device: DeviceHandle) -> AccessDesc {
        AccessDesc { location: Location::device(device), flags: ACCESS_READ_WRITE }
    }
}

// `CUdeviceptr` and `size_t` have 64 bits here; no driver of today serves programs with less.
#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<Location>() == 8);
    assert!(size_of::<AccessDesc>() == 12 && offset_of!(AccessDesc, flags) == 8);
    assert!(size_of::<AllocationFlags>() == 8 && offset_of!(AllocationFlags, usage) == 2);
    assert!(size_of::<AllocationProp>() == 32);
    assert!(offset_of!(AllocationProp, location) == 8);
    assert!(offset_of!(AllocationProp, win32_handle_metadata) == 16);
    assert!(offset_of!(AllocationProp, flags) == 24);
};

/// Defines the table and how it is filled.
macro_rules! functions {
    ($($field:ident = $symbol:literal ($($argument:ident: $type:ty),*);)*) => {
        /// The driver's functions. The documentation of each field is the symbol it is loaded from.
        #[derive(Clone, Copy)]
        #[repr(C)]
        pub struct Functions {
            $(
                #[doc = concat!("`", $symbol, "`")]
                pub $field: unsafe extern "system" fn($($argument: $type),*) -> Code,
            )*
        }

        impl Functions {
            /// Finds every function in `library`.
            ///
            /// # Safety
            /// What the library exports under these names must have the types of the CUDA driver's
            /// functions, and the library must stay loaded while the table is used.
            unsafe fn find(library: &Library) -> Result<Functions, CudaError> {
                Ok(Functions {
                    $(
                        // SAFETY: the type is that of the symbol, by this function's contract.
                        $field: *unsafe { library.get(concat!($symbol, "\0").as_bytes()) }
                            .map_err(|_| CudaError::TooOld { symbol: $symbol })?,
                    )*
                })
            }
        }
    };
}

functions! {
    init = "cuInit"(flags: c_uint);
    driver_get_version = "cuDriverGetVersion"(version: *mut c_int);
    get_error_name = "cuGetErrorName"(code: Code, name: *mut *const c_char);
    get_error_string = "cuGetErrorString"(code: Code, text: *mut *const c_char);
    device_get_count = "cuDeviceGetCount"(count: *mut c_int);
    device_get = "cuDeviceGet"(device: *mut DeviceHandle, ordinal: c_int);
    device_get_name = "cuDeviceGetName"(name: *mut c_char, len: c_int, device: DeviceHandle);
    device_get_attribute = "cuDeviceGetAttribute"(value: *mut c_int, attribute: c_uint, device: DeviceHandle);
    device_total_mem = "cuDeviceTotalMem_v2"(bytes: *mut usize, device: DeviceHandle);
    device_can_access_peer = "cuDeviceCanAccessPeer"(can: *mut c_int, device: DeviceHandle, peer: DeviceHandle);
    device_primary_ctx_retain = "cuDevicePrimaryCtxRetain"(context: *mut Context, device: DeviceHandle);
    device_primary_ctx_release = "cuDevicePrimaryCtxRelease_v2"(device: DeviceHandle);
    ctx_get_current = "cuCtxGetCurrent"(context: *mut Context);
    ctx_push_current = "cuCtxPushCurrent_v2"(context: Context);
    ctx_pop_current = "cuCtxPopCurrent_v2"(context: *mut Context);
    ctx_synchronize = "cuCtxSynchronize"();
    mem_get_info = "cuMemGetInfo_v2"(free: *mut usize, total: *mut usize);
    mem_get_allocation_granularity = "cuMemGetAllocationGranularity"(
        bytes: *mut usize, prop: *const AllocationProp, option: c_uint);
    mem_address_reserve = "cuMemAddressReserve"(
        address: *mut Address, bytes: usize, alignment: usize, hint: Address, flags: u64);
    mem_address_free = "cuMemAddressFree"(address: Address, bytes: usize);
    mem_create = "cuMemCreate"(
        handle: *mut MemoryHandle, bytes: usize, prop: *const AllocationProp, flags: u64);
    mem_release = "cuMemRelease"(handle: MemoryHandle);
    mem_map = "cuMemMap"(address: Address, bytes: usize, offset: usize, handle: MemoryHandle, flags: u64);
    mem_unmap = "cuMemUnmap"(address: Address, bytes: usize);
    mem_set_access = "cuMemSetAccess"(
        address: Address, bytes: usize, access: *const AccessDesc, count: usize);
    mem_get_access = "cuMemGetAccess"(flags: *mut u64, location: *const Location, address: Address);
    mem_alloc = "cuMemAlloc_v2"(address: *mut Address, bytes: usize);
    mem_free = "cuMemFree_v2"(address: Address);
    memcpy_host_to_device = "cuMemcpyHtoD_v2"(to: Address, from: *const c_void, bytes: usize);
    memcpy_device_to_host = "cuMemcpyDtoH_v2"(to: *mut c_void, from: Address, bytes: usize);
    memcpy_host_to_device_async = "cuMemcpyHtoDAsync_v2"(
        to: Address, from: *const c_void, bytes: usize, stream: Stream);
    memcpy_device_to_host_async = "cuMemcpyDtoHAsync_v2"(
        to: *mut c_void, from: Address, bytes: usize, stream: Stream);
    pointer_get_attribute = "cuPointerGetAttribute"(value: *mut c_void, attribute: c_uint, address: Address);
    mem_host_register = "cuMemHostRegister_v2"(start: *mut c_void, bytes: usize, flags: c_uint);
    mem_host_unregister = "cuMemHostUnregister"(start: *mut c_void);
    memset_d8 = "cuMemsetD8_v2"(address: Address, value: u8, bytes: usize);
    stream_create = "cuStreamCreate"(stream: *mut Stream, flags: c_uint);
    stream_destroy = "cuStreamDestroy_v2"(stream: Stream);
    stream_synchronize = "cuStreamSynchronize"(stream: Stream);
    stream_query = "cuStreamQuery"(stream: Stream);
    stream_get_ctx = "cuStreamGetCtx"(stream: Stream, context: *mut Context);
    stream_wait_event = "cuStreamWaitEvent"(stream: Stream, event: Event, flags: c_uint);
    stream_is_capturing = "cuStreamIsCapturing"(stream: Stream, status: *mut c_uint);
    thread_exchange_stream_capture_mode = "cuThreadExchangeStreamCaptureMode"(mode: *mut c_uint);
    event_create = "cuEventCreate"(event: *mut Event, flags: c_uint);
    event_record = "cuEventRecord"(event: Event, stream: Stream);
    event_query = "cuEventQuery"(event: Event);
    event_synchronize = "cuEventSynchronize"(event: Event);
    event_destroy = "cuEventDestroy_v2"(event: Event);
    launch_host_func = "cuLaunchHostFunc"(stream: Stream, function: HostFn, data: *mut c_void);
}

/// A driver whose functions can be called.
pub struct Driver {
    functions: Functions,
}

impl Driver {
    /// Loads the system's driver.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`] when there is none, [`CudaError::TooOld`] when it lacks a function.
    pub fn load() -> Result<Arc<Driver>, CudaError> {
        let name = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
        // SAFETY: under this name systems have NVIDIA's driver, or nothing.
        unsafe { Driver::load_from(name) }
    }

    /// Loads a driver by the name of its library.
    ///
    /// # Safety
    /// The library must be one that is safe to load, and what it exports under the names of the driver's
    /// functions must behave as these.
    unsafe fn load_from(name: &str) -> Result<Arc<Driver>, CudaError> {
        // SAFETY: safe to load, by this function's contract.
        let library = unsafe { Library::new(name) }.map_err(|error| {
            // The loader's own words are the source.
            let reason = error.source().map_or_else(|| error.to_string(), |source| source.to_string());
            CudaError::NoDriver { reason }
        })?;
        // SAFETY: the symbols are those of the driver, by this function's contract; the library stays
        // loaded, as is seen to below.
        let functions = unsafe { Functions::find(&library) }?;
        // Never unloaded: the driver has threads and handlers of its own that run until the process ends.
        std::mem::forget(library);
        Ok(Arc::new(Driver { functions }))
    }

    /// A driver of these functions: for tests.
    ///
    /// # Safety
    /// Each function must keep to what NVIDIA's documentation says of its namesake.
    pub unsafe fn from_functions(functions: Functions) -> Arc<Driver> {
        Arc::new(Driver { functions })
    }

    /// The CUDA that the driver speaks, major and minor, such as 12 and 9.
    ///
    /// # Errors
    /// What the driver refused.
    pub fn version(&self) -> Result<(u32, u32), CudaError> {
        let mut version = 0;
        // SAFETY: `version` is valid for the write.
        self.call("cuDriverGetVersion", |f| unsafe { (f.driver_get_version)(&mut version) })?;
        let version = u32::try_from(version).unwrap_or(0);
        Ok((version / 1000, version % 1000 / 10))
    }

    /// How many GPUs there are. Starts the driver, if nobody has.
    ///
    /// # Errors
    /// [`CudaError::NoGpu`], or what the driver refused.
    pub fn count(&self) -> Result<u32, CudaError> {
        // SAFETY: no flags are defined, so zero.
        self.call("cuInit", |f| unsafe { (f.init)(0) }).map_err(|error| match error.code() {
            Some(NO_DEVICE) => CudaError::NoGpu,
            _ => error,
        })?;
        let mut count = 0;
        // SAFETY: `count` is valid for the write.
        self.call("cuDeviceGetCount", |f| unsafe { (f.device_get_count)(&mut count) })?;
        match u32::try_from(count).unwrap_or(0) {
            0 => Err(CudaError::NoGpu),
            count => Ok(count),
        }
    }

    /// Calls one function, named for errors.
    ///
    /// # Errors
    /// [`CudaError::Refused`] when it does not return [`SUCCESS`].
    pub fn call(&self, name: &'static str, call: impl FnOnce(&Functions) -> Code) -> Result<(), CudaError> {
        match call(&self.functions) {
            SUCCESS => Ok(()),
            code => Err(self.refused(name, code)),
        }
    }

    /// The error for a code that `function` returned, in the driver's words.
    pub fn refused(&self, function: &'static str, code: Code) -> CudaError {
        let words = |of: unsafe extern "system" fn(Code, *mut *const c_char) -> Code| {
            let mut text = ptr::null();
            // SAFETY: `text` is valid for the one pointer that is written.
            let found = unsafe { of(code, &mut text) };
            if found != SUCCESS || text.is_null() {
                return "unknown to the driver".to_owned();
            }
            // SAFETY: the driver returned a C string of its own that stays.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        let name = words(self.functions.get_error_name);
        let text = words(self.functions.get_error_string);
        CudaError::Refused { function, code, name, text }
    }
}

#[cfg(test)]
mod tests;

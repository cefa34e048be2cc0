//! Managers for C on a Direct3D 12 device of the program's: where blocks are, and the order of queues.
//!
//! Interfaces are passed as pointers to anything, so that the header needs none of Direct3D's. Each is asked for what it has
//! to be, whatever version of it the program has.

use std::ffi::c_void;
use std::sync::Arc;

use tilework::device::DeviceError;
use tilework_d3d12::bindings::Win32::Graphics::Direct3D12::ID3D12Fence;
use tilework_d3d12::bindings::core::{IUnknown, Interface};
use tilework_d3d12::{D3d12, D3d12Error, Held, Parts, View};

use crate::call::{Failure, Result, TileworkStatus};
use crate::manager::{TileworkManager, TileworkOptions, put, put_if_wanted};
use crate::references::References;
use crate::views::{Views, nowhere};

/// A program's own Direct3D 12. Set `size` to `sizeof(tilework_d3d12_parts)` and everything else to zero, then the rest.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TileworkD3d12Parts {
    /// `sizeof(tilework_d3d12_parts)`: a later version of this structure is longer.
    pub size: usize,
    /// The `ID3D12Device`.
    pub device: *mut c_void,
    /// The `ID3D12CommandQueue` of it that memory is mapped on, direct or compute.
    pub queue: *mut c_void,
    /// The `IDXGIAdapter3` of the device, by any of its interfaces, which tells how much memory there is; null if that
    /// need not be known.
    pub adapter: *mut c_void,
}

/// Where an address is.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TileworkD3d12Slice {
    /// The `ID3D12Resource` to name in descriptors and copies, a buffer. It is the manager's and not counted for the
    /// caller: who keeps it longer than the block calls `AddRef`.
    pub resource: *mut c_void,
    /// Where in the buffer, bytes.
    pub offset: u64,
    /// The GPU's address of it.
    pub gpu_address: u64,
    /// A number of the buffer's that is never another's, as the pointer may be: what was recorded for a block holds
    /// while this and the offset are the same.
    pub range: u64,
}

/// What is kept of a manager's device.
#[derive(Clone)]
struct Kept {
    view: View,
    /// What the program refers to.
    held: Arc<References<Held>>,
}

static VIEWS: Views<Kept> = Views::new("d3d12");

/// Does something with the view of a manager's device.
fn with_view(manager: *mut TileworkManager, body: impl FnOnce(&View) -> Result<()>) -> TileworkStatus {
    VIEWS.with(manager, |kept| body(&kept.view))
}

/// Lets go of what belongs to a manager that is no more.
pub(crate) fn forget(handle: usize) {
    VIEWS.forget(handle);
}

fn refused(error: D3d12Error) -> Failure {
    let status = match error.is_out_of_memory() {
        true => TileworkStatus::OutOfMemory,
        false => TileworkStatus::DeviceFailed,
    };
    Failure::new(status, error.to_string())
}

/// The interface `T` of a caller's object, counted as long as it is held.
///
/// # Safety
/// `object` must be null, or a COM object that is alive.
unsafe fn interface<T: Interface>(object: *mut c_void, what: &str, name: &str) -> Result<T> {
    // SAFETY: null or alive, and as a COM object an IUnknown; it is borrowed for this function only.
    let object = unsafe { IUnknown::from_raw_borrowed(&object) };
    let object = object.ok_or_else(|| Failure::argument(format!("{what} is null")))?;
    object.cast().map_err(|_| Failure::argument(format!("{what} is no {name}")))
}

/// The parts that a caller gives.
///
/// # Safety
/// As for [`tilework_create_on_d3d12`].
unsafe fn parts(given: *const TileworkD3d12Parts) -> Result<Parts> {
    if given.is_null() {
        return Err(Failure::argument("the parts are null"));
    }
    // SAFETY: not null, so the first field is there; it says how long the structure is.
    if unsafe { (*given).size } < size_of::<TileworkD3d12Parts>() {
        return Err(Failure::argument("the parts' size must be sizeof(tilework_d3d12_parts)"));
    }
    // SAFETY: the structure is as long as it has to be.
    let given = unsafe { *given };
    // SAFETY: null or alive, by the caller's contract.
    unsafe {
        Ok(Parts {
            device: interface(given.device, "the device", "ID3D12Device")?,
            queue: interface(given.queue, "the queue", "ID3D12CommandQueue")?,
            adapter: match given.adapter.is_null() {
                true => None,
                false => Some(interface(given.adapter, "the adapter", "IDXGIAdapter3")?),
            },
        })
    }
}

/// Makes a manager on a Direct3D 12 device of the program's and stores its handle. The options' device may be null, or
/// "d3d12". Where the device has no tiled resources, memory is placed and not tiled, and there are no groups. Device, queue
/// and adapter are counted (`AddRef`) until `tilework_destroy` has returned.
///
/// Memory is mapped and unmapped on the queue, in order with the command lists that are executed on it. There nothing waits
/// for anything: a block may be freed as soon as the last list that uses it was handed to `ExecuteCommandLists`, and later
/// lists use the memory. Each list has an aliasing barrier that names no resource before it first uses a block. Other
/// queues wait for `tilework_d3d12_ready`, and `tilework_d3d12_used_by` is told of their end. Streams are names only:
/// there is one queue.
///
/// # Safety
/// `options` must point to the structure, with its `size` set and its texts null or terminated. `parts` must point to
/// the structure, with its `size` set: each part null or alive, the queue made by the device, and the adapter the device's.
/// `out` must be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_create_on_d3d12(
    options: *const TileworkOptions,
    parts: *const TileworkD3d12Parts,
    out: *mut *mut TileworkManager,
) -> TileworkStatus {
    let open = || {
        // SAFETY: as this function demands.
        let device = unsafe { D3d12::over(self::parts(parts)?) }.map_err(refused)?;
        let kept = Kept { view: device.view(), held: Arc::default() };
        Ok((device, kept))
    };
    // SAFETY: as this function demands.
    unsafe { VIEWS.create(options, out, open) }
}

/// Stores the buffer that a live block's address lies in, and where.
///
/// # Safety
/// `out` must be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_d3d12_find(
    manager: *mut TileworkManager,
    address: u64,
    out: *mut TileworkD3d12Slice,
) -> TileworkStatus {
    with_view(manager, |view| {
        let slice = view.find(address).ok_or_else(|| nowhere(address))?;
        let slice = TileworkD3d12Slice {
            // The block, or the range it lies in, keeps the buffer.
            resource: slice.resource.as_raw(),
            offset: slice.offset,
            gpu_address: slice.gpu_address,
            range: slice.range.0,
        };
        // SAFETY: as this function demands.
        unsafe { put(out, slice) }
    })
}

/// Stores an `ID3D12Fence` of the manager's, and the value it has once the manager's queue has passed all that is on it now,
/// the mapping of everything allocated so far included. Another queue waits for it before it uses blocks. The fence is not
/// counted for the caller, and always the same: it lives until `tilework_destroy`.
///
/// # Safety
/// `fence` and `value` must each be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_d3d12_ready(
    manager: *mut TileworkManager,
    fence: *mut *mut c_void,
    value: *mut u64,
) -> TileworkStatus {
    with_view(manager, |view| {
        let (ready, at) = view.ready().map_err(refused)?;
        // SAFETY: as this function demands.
        unsafe {
            put(fence, ready.as_raw())?;
            put(value, at)
        }
    })
}

/// Tells that what was executed so far on another queue has used the manager's memory for the last time when the
/// `ID3D12Fence` has `value`. What is unmapped or given back from here on waits for it, on the device; blocks may be freed
/// then. Their memory may be another block's at once, with nothing mapped: the queue that uses it then waits for the fence,
/// too (`ID3D12CommandQueue::Wait`), or blocks are freed once the fence has the value. Per fence the greatest value counts.
/// The fence is counted (`AddRef`) as long as it is needed.
///
/// # Safety
/// `fence` must be null, or alive and of the device. Something must have been queued that signals the value and waits for
/// nothing that comes after it on the manager's queue.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_d3d12_used_by(
    manager: *mut TileworkManager,
    fence: *mut c_void,
    value: u64,
) -> TileworkStatus {
    with_view(manager, |view| {
        // SAFETY: as this function demands.
        let fence: ID3D12Fence = unsafe { interface(fence, "the fence", "ID3D12Fence")? };
        // SAFETY: as this function demands.
        unsafe { view.used_by(&fence, value) };
        Ok(())
    })
}

/// Lets the system have the memory of all that the manager holds, contents kept (`ID3D12Device::Evict`), but for heaps to
/// which somebody refers by `tilework_d3d12_hold`, and stores how many bytes that were; `bytes` may be null. The host waits
/// until what was queued has passed. Nothing that uses blocks, but those referred to, may be executed before
/// `tilework_d3d12_make_resident`. What is evicted already is not evicted again.
///
/// # Safety
/// `bytes` must be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_d3d12_evict(
    manager: *mut TileworkManager,
    bytes: *mut u64,
) -> TileworkStatus {
    with_view(manager, |view| {
        let evicted = view.evict().map_err(refused)?;
        // SAFETY: as this function demands.
        unsafe { put_if_wanted(bytes, evicted) }
    })
}

/// Brings back all that was evicted, and stores how many bytes that were; `bytes` may be null. It returns once they are
/// there. What is resident is left as it is, so that one eviction evicts however often this was called.
///
/// # Safety
/// `bytes` must be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_d3d12_make_resident(
    manager: *mut TileworkManager,
    bytes: *mut u64,
) -> TileworkStatus {
    with_view(manager, |view| {
        let resident = view.make_resident().map_err(refused)?;
        // SAFETY: as this function demands.
        unsafe { put_if_wanted(bytes, resident) }
    })
}

/// Refers to the memory behind `bytes` from `address`, and stores the number of the reference: the memory is made resident,
/// and `tilework_d3d12_evict` leaves it until `tilework_d3d12_let_go`. For what is used outside of an execution, such as an
/// output that is handed on. It keeps neither a block from being freed nor a group from going to the host. Numbers are
/// never 0, and none comes twice. What is not let go ends with the manager.
///
/// # Safety
/// `out` must be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_d3d12_hold(
    manager: *mut TileworkManager,
    address: u64,
    bytes: u64,
    out: *mut u64,
) -> TileworkStatus {
    VIEWS.with(manager, |kept| {
        if out.is_null() {
            return Err(Failure::argument("the place for the reference is null"));
        }
        if bytes == 0 {
            return Err(Failure::argument("a reference to zero bytes"));
        }
        let held = kept.view.hold(address, bytes).map_err(|error| {
            let status = match error {
                DeviceError::Violation { .. } => {
                    let text =
                        format!("not all of {bytes} bytes from {address:#x} has memory of the manager's");
                    return Failure::new(TileworkStatus::UnknownAddress, text);
                }
                DeviceError::OutOfMemory { .. } => TileworkStatus::OutOfMemory,
                _ => TileworkStatus::DeviceFailed,
            };
            Failure::new(status, error.to_string())
        })?;
        // SAFETY: as this function demands.
        unsafe { put(out, kept.held.keep(held)) }
    })
}

/// Takes back a reference that `tilework_d3d12_hold` made, by its number. Refused where the manager has none of this
/// number, as when it was let go before.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_d3d12_let_go(manager: *mut TileworkManager, reference: u64) -> TileworkStatus {
    VIEWS.with(manager, |kept| kept.held.take(reference).map(drop))
}

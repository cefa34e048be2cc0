//! A device whose calls about memory are counted: the witness that is the same for everyone.
//!
//! The functions of a device come from a table, which every subject is given. Here three of them count, and then call
//! the driver's.

use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::mem::transmute;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use ash::vk;

/// What was counted since the last [`reset`], and what is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// `vkAllocateMemory`.
    pub allocates: u64,
    /// `vkQueueBindSparse`.
    pub binds: u64,
    /// Device memory allocated and not freed, bytes, and the most there was.
    pub held: u64,
    pub peak_held: u64,
}

struct Real {
    allocate: vk::PFN_vkAllocateMemory,
    free: vk::PFN_vkFreeMemory,
    bind_sparse: vk::PFN_vkQueueBindSparse,
}

#[derive(Default)]
struct Books {
    counts: Counts,
    /// The bytes of each piece of memory.
    pieces: HashMap<vk::DeviceMemory, u64>,
}

static REAL: OnceLock<Real> = OnceLock::new();
static BOOKS: OnceLock<Mutex<Books>> = OnceLock::new();

fn books() -> MutexGuard<'static, Books> {
    BOOKS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

fn real() -> &'static Real {
    REAL.get().expect("the table that has these functions is made after the driver's are known")
}

/// The counts so far.
pub fn counts() -> Counts {
    books().counts
}

/// Begins to count anew, from what is held.
pub fn reset() {
    let counts = &mut books().counts;
    *counts = Counts { held: counts.held, peak_held: counts.held, ..Counts::default() };
}

/// The device again, with functions that count.
///
/// # Safety
/// `device` must be alive, made of `instance`, and the only one that is ever passed.
pub unsafe fn counted(instance: &ash::Instance, device: &ash::Device) -> ash::Device {
    let table = device.fp_v1_0();
    REAL.get_or_init(|| Real {
        allocate: table.allocate_memory,
        free: table.free_memory,
        bind_sparse: table.queue_bind_sparse,
    });
    let find = |name: &CStr| -> *const c_void {
        match name.to_bytes() {
            b"vkAllocateMemory" => allocate as *const c_void,
            b"vkFreeMemory" => free as *const c_void,
            b"vkQueueBindSparse" => bind_sparse as *const c_void,
            // SAFETY: the device is alive, by this function's contract; a function or none are pointers alike.
            _ => unsafe {
                transmute::<vk::PFN_vkVoidFunction, *const c_void>((instance.fp_v1_0().get_device_proc_addr)(
                    device.handle(),
                    name.as_ptr(),
                ))
            },
        }
    };
    // SAFETY: the functions are the device's, or have the same types and do the same.
    unsafe { ash::Device::load_with(find, device.handle()) }
}

unsafe extern "system" fn allocate(
    device: vk::Device,
    info: *const vk::MemoryAllocateInfo<'_>,
    callbacks: *const vk::AllocationCallbacks<'_>,
    memory: *mut vk::DeviceMemory,
) -> vk::Result {
    // SAFETY: the caller's own call, passed on.
    let result = unsafe { (real().allocate)(device, info, callbacks, memory) };
    let mut books = books();
    books.counts.allocates += 1;
    if result == vk::Result::SUCCESS {
        // SAFETY: the driver has read the one and written the other.
        let (bytes, memory) = unsafe { ((*info).allocation_size, *memory) };
        books.pieces.insert(memory, bytes);
        books.counts.held += bytes;
        books.counts.peak_held = books.counts.peak_held.max(books.counts.held);
    }
    result
}

unsafe extern "system" fn free(
    device: vk::Device,
    memory: vk::DeviceMemory,
    callbacks: *const vk::AllocationCallbacks<'_>,
) {
    let mut books = books();
    if let Some(bytes) = books.pieces.remove(&memory) {
        books.counts.held -= bytes;
    }
    drop(books);
    // SAFETY: the caller's own call, passed on.
    unsafe { (real().free)(device, memory, callbacks) }
}

unsafe extern "system" fn bind_sparse(
    queue: vk::Queue,
    count: u32,
    infos: *const vk::BindSparseInfo<'_>,
    fence: vk::Fence,
) -> vk::Result {
    books().counts.binds += 1;
    // SAFETY: the caller's own call, passed on.
    unsafe { (real().bind_sparse)(queue, count, infos, fence) }
}

//! Managers for C on a Vulkan device of the program's: where blocks are, and the order of binds and submissions.
//!
//! Vulkan's handles are passed as the header of Vulkan has them: those of instances, devices and queues are pointers,
//! the others numbers of 64 bits (`VK_USE_64_BIT_PTR_DEFINES` or not: cast them).

use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use tilework::device::DeviceError;
use tilework_vulkan::ash::{self, vk, vk::Handle};
use tilework_vulkan::{MemoryUsage, Parts, View, Vulkan};

use crate::call::{Failure, Result, TileworkStatus};
use crate::manager::{TileworkManager, TileworkOptions, put};
use crate::views::{Views, nowhere};

/// A program's own Vulkan. Set `size` to `sizeof(tilework_vulkan_parts)` and everything else to zero, then the rest.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TileworkVulkanParts {
    /// `sizeof(tilework_vulkan_parts)`: a later version of this structure is longer.
    pub size: usize,
    /// `vkGetInstanceProcAddr`, of the loader.
    pub get_instance_proc_addr: *const c_void,
    /// A `VkInstance`, made for Vulkan 1.2 or later.
    pub instance: *mut c_void,
    /// The `VkPhysicalDevice`.
    pub physical_device: *mut c_void,
    /// The `VkDevice` made of it, with the feature `timelineSemaphore`.
    pub device: *mut c_void,
    /// The `VkQueue` that everything is submitted to, and memory bound on.
    pub queue: *mut c_void,
    /// The queue's family: one that copies, and binds sparse memory if `sparse` is set.
    pub queue_family: u32,
    /// Whether the device was made with `sparseBinding`, `sparseResidencyBuffer` and `sparseResidencyAliased`. Without
    /// them memory is placed and not tiled.
    pub sparse: bool,
    /// Whether the device was made with `bufferDeviceAddress`: then addresses are the GPU's own.
    pub buffer_addresses: bool,
    /// What memory is for. 0: work on the device. 1: upload, written by the host and read by the device. 2: readback,
    /// written by the device and read by the host. What the host is to reach is placed, whatever `sparse` says.
    pub usage: u32,
}

/// Where an address is.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TileworkVulkanSlice {
    /// The `VkBuffer` to name in descriptors and copies. It is the manager's.
    pub buffer: u64,
    /// Where in the buffer, bytes.
    pub offset: u64,
    /// A number of the buffer's that is never another's: what was recorded for a block holds while this and the offset
    /// are the same.
    pub range: u64,
    /// Where the host sees the address, to the end of its block, while that is allocated; null where memory is for work
    /// on the device. What the host writes is seen by later submissions. It must not write before all that used the
    /// memory has passed, also work on a block that had the memory before: free such blocks once their work is done.
    pub host: *mut c_void,
}

static VIEWS: Views<View> = Views::new("vulkan");

/// Lets go of what belongs to a manager that is no more.
pub(crate) fn forget(handle: usize) {
    VIEWS.forget(handle);
}

fn refused(error: &impl ToString) -> Failure {
    Failure::new(TileworkStatus::DeviceFailed, error.to_string())
}

/// The parts that a caller gives.
///
/// # Safety
/// As for [`tilework_create_on_vulkan`].
unsafe fn parts(given: *const TileworkVulkanParts) -> Result<Parts> {
    if given.is_null() {
        return Err(Failure::argument("the parts are null"));
    }
    // SAFETY: not null, so the first field is there; it says how long the structure is.
    if unsafe { (*given).size } < size_of::<TileworkVulkanParts>() {
        return Err(Failure::argument("the parts' size must be sizeof(tilework_vulkan_parts)"));
    }
    // SAFETY: the structure is as long as it has to be.
    let given = unsafe { *given };
    for (part, name) in [
        (given.get_instance_proc_addr, "vkGetInstanceProcAddr"),
        (given.instance.cast_const(), "the instance"),
        (given.physical_device.cast_const(), "the physical device"),
        (given.device.cast_const(), "the device"),
        (given.queue.cast_const(), "the queue"),
    ] {
        if part.is_null() {
            return Err(Failure::argument(format!("{name} is null")));
        }
    }
    let usage = match given.usage {
        0 => MemoryUsage::Device,
        1 => MemoryUsage::Upload,
        2 => MemoryUsage::Readback,
        other => return Err(Failure::argument(format!("the usage must be 0, 1 or 2, and is {other}"))),
    };
    let handle = |part: *mut c_void| part.expose_provenance() as u64;
    // SAFETY: not null, so the loader's function, by the caller's contract.
    let get_instance_proc_addr = unsafe {
        std::mem::transmute::<*const c_void, vk::PFN_vkGetInstanceProcAddr>(given.get_instance_proc_addr)
    };
    // SAFETY: the loader's function, and an instance and a device of its, alive.
    let (instance, device) = unsafe {
        let loader = ash::StaticFn { get_instance_proc_addr };
        let instance = ash::Instance::load(&loader, vk::Instance::from_raw(handle(given.instance)));
        let device = ash::Device::load(instance.fp_v1_0(), vk::Device::from_raw(handle(given.device)));
        (instance, device)
    };
    Ok(Parts {
        instance,
        physical: vk::PhysicalDevice::from_raw(handle(given.physical_device)),
        device,
        family: given.queue_family,
        queue: Arc::new(Mutex::new(vk::Queue::from_raw(handle(given.queue)))),
        sparse: given.sparse,
        addresses: given.buffer_addresses,
        usage,
        // The caller keeps them alive.
        owner: Box::new(()),
    })
}

/// Makes a manager on a Vulkan device of the program's and stores its handle. The options' device may be null, or
/// "vulkan".
///
/// Memory is mapped and unmapped on the queue, without a wait of the host. A submission that uses blocks waits for
/// `tilework_vulkan_ready`, and `tilework_vulkan_used_by` is told of its end; then blocks may be freed while it is
/// queued, and later work of the queue uses the memory behind a memory barrier. Streams are names only: there is one
/// queue. While another thread may be inside a function of this manager, submit by `tilework_vulkan_submit`.
///
/// # Safety
/// `options` must point to the structure, with its `size` set and its texts null or terminated. `parts` must point to
/// the structure, with its `size` set: all parts null or alive, of one another, as their descriptions say, until
/// `tilework_destroy` has returned. `out` must be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_create_on_vulkan(
    options: *const TileworkOptions,
    parts: *const TileworkVulkanParts,
    out: *mut *mut TileworkManager,
) -> TileworkStatus {
    let open = || {
        // SAFETY: as this function demands.
        let device = unsafe { Vulkan::over(self::parts(parts)?) }.map_err(|error| refused(&error))?;
        let view = device.view();
        Ok((device, view))
    };
    // SAFETY: as this function demands.
    unsafe { VIEWS.create(options, out, open) }
}

/// Stores the buffer that a live block's address lies in, and where.
///
/// # Safety
/// `out` must be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_vulkan_find(
    manager: *mut TileworkManager,
    address: u64,
    out: *mut TileworkVulkanSlice,
) -> TileworkStatus {
    VIEWS.with(manager, |view| {
        let slice = view.find(address).ok_or_else(|| nowhere(address))?;
        let (buffer, range) = (slice.buffer.as_raw(), slice.range.0);
        let host = view.host(address).map_or(ptr::null_mut(), |first| first.as_ptr().cast());
        // SAFETY: as this function demands.
        unsafe { put(out, TileworkVulkanSlice { buffer, offset: slice.offset, range, host }) }
    })
}

/// Stores a timeline `VkSemaphore` of the manager's, and the value it has once everything is mapped that was allocated
/// so far. A submission that uses blocks waits for it, at all stages.
///
/// # Safety
/// `semaphore` and `value` must each be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_vulkan_ready(
    manager: *mut TileworkManager,
    semaphore: *mut u64,
    value: *mut u64,
) -> TileworkStatus {
    VIEWS.with(manager, |view| {
        let (ready, at) = view.ready();
        // SAFETY: as this function demands.
        unsafe {
            put(semaphore, ready.as_raw())?;
            put(value, at)
        }
    })
}

/// Tells that what was submitted so far has used the manager's memory for the last time when the timeline `VkSemaphore`
/// has `value`. What is unmapped from here on waits for it, on the device. Per semaphore the greatest value counts.
///
/// # Safety
/// `semaphore` must be one of the device's and live until `tilework_destroy` has returned. Something must have been
/// submitted that signals the value and waits for nothing that comes after it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_vulkan_used_by(
    manager: *mut TileworkManager,
    semaphore: u64,
    value: u64,
) -> TileworkStatus {
    VIEWS.with(manager, |view| {
        if semaphore == 0 {
            return Err(Failure::argument("the semaphore is null"));
        }
        // SAFETY: as this function demands.
        unsafe { view.used_by(vk::Semaphore::from_raw(semaphore), value) };
        Ok(())
    })
}

/// `vkQueueSubmit`, while no other thread of this manager's binds on the queue: `count` structures `VkSubmitInfo` at
/// `submits`, and a `VkFence` or 0.
///
/// # Safety
/// As for `vkQueueSubmit`; who submits to the queue otherwise keeps out of it meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_vulkan_submit(
    manager: *mut TileworkManager,
    count: u32,
    submits: *const c_void,
    fence: u64,
) -> TileworkStatus {
    VIEWS.with(manager, |view| {
        if submits.is_null() && count > 0 {
            return Err(Failure::argument("the submissions are null"));
        }
        let batches: &[vk::SubmitInfo<'_>] = match count {
            0 => &[],
            // SAFETY: not null, so as many structures, as this function demands.
            _ => unsafe { std::slice::from_raw_parts(submits.cast(), count as usize) },
        };
        // What is behind the lock is a name, which no panic leaves half changed.
        let queue = view.queue().lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: as this function demands; the queue's lock is held.
        let submitted = unsafe { view.device().queue_submit(*queue, batches, vk::Fence::from_raw(fence)) };
        submitted.map_err(|code| {
            let reason = format!("vkQueueSubmit: {code:?}");
            refused(&DeviceError::Failed { call: tilework::device::Call::Order, reason })
        })
    })
}

#[cfg(test)]
mod tests;

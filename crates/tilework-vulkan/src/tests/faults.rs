//! Every call of the driver that can fail, failing in turn; and devices that lack something.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::mem;

use ash::vk;
use tilework::device::{Bind, Device, DeviceError};

use super::rig::Rig;
use crate::abilities::Abilities;
use crate::gpu::{Gpu, Parts};
use crate::{Live, Vulkan, VulkanError};

thread_local! {
    /// The driver's own functions behind the shims of this thread.
    static REAL: RefCell<HashMap<&'static CStr, *const c_void>> = RefCell::default();
    /// Calls to go until one fails; none fails at zero.
    static TO_GO: Cell<u32> = const { Cell::new(0) };
    /// Whether the device is lost.
    static LOST: Cell<bool> = const { Cell::new(false) };
    /// What a physical device is made to lack.
    static LACKS: Cell<Lacks> = const { Cell::new(Lacks::Nothing) };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lacks {
    Nothing,
    Binding,
    Residency,
    Aliasing,
    Timeline,
    Version,
    Queue,
}

/// How a function fails, by its name, where it does.
fn failure(name: &CStr) -> Option<vk::Result> {
    if LOST.get() && TELLS_OF_LOSS.contains(&name) {
        return Some(vk::Result::ERROR_DEVICE_LOST);
    }
    if ONLY_WHEN_LOST.contains(&name) {
        return None;
    }
    let to_go = TO_GO.get();
    TO_GO.set(to_go.saturating_sub(1));
    (to_go == 1).then_some(vk::Result::ERROR_OUT_OF_DEVICE_MEMORY)
}

/// What Vulkan lets tell of a device that is lost. Everything else goes on as if it were there.
const TELLS_OF_LOSS: [&CStr; 5] = [
    c"vkQueueSubmit",
    c"vkQueueBindSparse",
    c"vkQueueWaitIdle",
    c"vkWaitSemaphores",
    c"vkGetSemaphoreCounterValue",
];

/// What fails for nothing else here.
const ONLY_WHEN_LOST: [&CStr; 2] = [c"vkQueueWaitIdle", c"vkGetSemaphoreCounterValue"];

/// The driver's own function, as a type of function pointer.
fn real<F: Copy>(name: &'static CStr) -> F {
    let function = REAL.with_borrow(|real| real[name]);
    assert_eq!(size_of::<F>(), size_of_val(&function));
    // SAFETY: a function pointer of the type that Vulkan gives this name, as long as any pointer.
    unsafe { mem::transmute_copy(&function) }
}

/// Functions that fail when it is their turn, and else do what the driver does.
macro_rules! shims {
    ($($shim:ident $name:literal $pfn:ident ($($argument:ident: $of:ty),* $(,)?);)*) => {
        $(
            unsafe extern "system" fn $shim($($argument: $of),*) -> vk::Result {
                if let Some(code) = failure($name) {
                    return code;
                }
                // SAFETY: the caller's arguments, for the function they are meant for.
                unsafe { real::<vk::$pfn>($name)($($argument),*) }
            }
        )*

        /// The shim for a function of the device, if it has one.
        fn shim(name: &CStr) -> Option<(&'static CStr, *const c_void)> {
            $(
                if name == $name {
                    let shim: vk::$pfn = $shim;
                    return Some(($name, shim as *const c_void));
                }
            )*
            None
        }
    };
}

type Callbacks<'a> = *const vk::AllocationCallbacks<'a>;

shims! {
    create_buffer c"vkCreateBuffer" PFN_vkCreateBuffer (
        device: vk::Device, info: *const vk::BufferCreateInfo<'_>, with: Callbacks<'_>, made: *mut vk::Buffer,
    );
    allocate_memory c"vkAllocateMemory" PFN_vkAllocateMemory (
        device: vk::Device, info: *const vk::MemoryAllocateInfo<'_>, with: Callbacks<'_>, made: *mut vk::DeviceMemory,
    );
    bind_buffer_memory c"vkBindBufferMemory" PFN_vkBindBufferMemory (
        device: vk::Device, buffer: vk::Buffer, memory: vk::DeviceMemory, offset: u64,
    );
    map_memory c"vkMapMemory" PFN_vkMapMemory (
        device: vk::Device, memory: vk::DeviceMemory, offset: u64, bytes: u64, flags: vk::MemoryMapFlags,
        mapped: *mut *mut c_void,
    );
    create_semaphore c"vkCreateSemaphore" PFN_vkCreateSemaphore (
        device: vk::Device, info: *const vk::SemaphoreCreateInfo<'_>, with: Callbacks<'_>, made: *mut vk::Semaphore,
    );
    create_command_pool c"vkCreateCommandPool" PFN_vkCreateCommandPool (
        device: vk::Device, info: *const vk::CommandPoolCreateInfo<'_>, with: Callbacks<'_>,
        made: *mut vk::CommandPool,
    );
    allocate_command_buffers c"vkAllocateCommandBuffers" PFN_vkAllocateCommandBuffers (
        device: vk::Device, info: *const vk::CommandBufferAllocateInfo<'_>, made: *mut vk::CommandBuffer,
    );
    begin_command_buffer c"vkBeginCommandBuffer" PFN_vkBeginCommandBuffer (
        commands: vk::CommandBuffer, info: *const vk::CommandBufferBeginInfo<'_>,
    );
    end_command_buffer c"vkEndCommandBuffer" PFN_vkEndCommandBuffer (commands: vk::CommandBuffer);
    queue_submit c"vkQueueSubmit" PFN_vkQueueSubmit (
        queue: vk::Queue, count: u32, batches: *const vk::SubmitInfo<'_>, fence: vk::Fence,
    );
    queue_bind_sparse c"vkQueueBindSparse" PFN_vkQueueBindSparse (
        queue: vk::Queue, count: u32, batches: *const vk::BindSparseInfo<'_>, fence: vk::Fence,
    );
    wait_semaphores c"vkWaitSemaphores" PFN_vkWaitSemaphores (
        device: vk::Device, info: *const vk::SemaphoreWaitInfo<'_>, timeout: u64,
    );
    queue_wait_idle c"vkQueueWaitIdle" PFN_vkQueueWaitIdle (queue: vk::Queue);
    get_semaphore_counter_value c"vkGetSemaphoreCounterValue" PFN_vkGetSemaphoreCounterValue (
        device: vk::Device, semaphore: vk::Semaphore, value: *mut u64,
    );
}

/// A rig's parts with shims in the device's functions.
fn shimmed() -> Option<Parts> {
    let parts = Rig::new()?.into_parts();
    let handle = parts.device.handle();
    let find = |name: &CStr| {
        // SAFETY: device and instance are alive.
        let found = unsafe { (parts.instance.fp_v1_0().get_device_proc_addr)(handle, name.as_ptr()) };
        let found = found.map_or(std::ptr::null(), |function| function as *const c_void);
        let Some((name, shim)) = shim(name) else { return found };
        REAL.with_borrow_mut(|real| real.insert(name, found));
        shim
    };
    // SAFETY: what is found are the device's functions, or shims with their types.
    let device = unsafe { ash::Device::load_with(find, handle) };
    Some(Parts { device, ..parts })
}

/// Every call a device serves, from its making to its end; each must fail without a trace when the driver does, and
/// then succeed.
fn live_through(parts: Parts, failed: &mut u32) {
    /// Once as it comes, and again if it failed.
    fn insist<T, E>(failed: &mut u32, mut call: impl FnMut() -> Result<T, E>) -> T
    where
        E: std::fmt::Debug,
    {
        call()
            .or_else(|_| {
                *failed += 1;
                call()
            })
            .expect("nothing else fails")
    }

    // SAFETY: the rig's own parts, with its functions behind the shims.
    let mut device = match unsafe { Vulkan::over(parts) } {
        Ok(device) => device,
        // All went with the parts, and the rig found nothing left.
        Err(VulkanError::Refused { code: vk::Result::ERROR_OUT_OF_DEVICE_MEMORY, .. }) => {
            *failed += 1;
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let view = device.view();
    let tile = device.caps().tile_bytes;
    let check = |failed: &mut u32, device: &Vulkan, buffers, memories| {
        insist(failed, || device.settle());
        assert_eq!(view.live(), Live { buffers, memories });
    };
    // Whatever fails, the figures are those of a call that succeeded at last, and once.
    let range = insist(failed, || device.reserve(4 * tile));
    check(failed, &device, 1, 0);
    let heap = insist(failed, || device.create(2 * tile));
    check(failed, &device, 1, 1);
    assert_eq!(device.held_bytes(), Ok(2 * tile));
    let bind = |at| Bind { range_offset: at * tile, heap, heap_offset: 0, bytes: 2 * tile };
    insist(failed, || device.map(range.id, &[bind(0), bind(2)]));
    insist(failed, || device.write(range.address, &[7; 100]));
    check(failed, &device, 2, 2);
    let mut found = [0; 100];
    insist(failed, || device.read(range.address + 2 * tile, &mut found));
    assert_eq!(found, [7; 100]);
    insist(failed, || device.unmap(range.id, 0, 4 * tile));
    insist(failed, || device.map(range.id, &[bind(1)]));
    insist(failed, || device.unmap(range.id, tile, 2 * tile));
    device.release(heap).unwrap();
    device.unreserve(range.id).unwrap();
    check(failed, &device, 1, 1);
    drop(device);
    assert_eq!(view.live(), Live::default());
}

#[test]
fn each_call_of_the_driver_may_fail_and_leaves_nothing() {
    let mut turns = 0;
    for turn in 1.. {
        let Some(parts) = shimmed() else { return };
        TO_GO.set(turn);
        let mut failed = 0;
        live_through(parts, &mut failed);
        if TO_GO.take() > 0 {
            // Its turn did not come.
            assert_eq!(failed, 0);
            break;
        }
        turns = turn;
    }
    assert!(turns > 20, "only {turns} calls of the driver had their turn");
}

#[test]
fn out_of_memory_is_told_as_that() {
    let Some(parts) = shimmed() else { return };
    // SAFETY: as above.
    let mut device = unsafe { Vulkan::over(parts) }.unwrap();
    let bytes = device.caps().tile_bytes;
    TO_GO.set(1);
    assert_eq!(device.create(bytes), Err(DeviceError::OutOfMemory { bytes }));
}

/// Whatever is asked of a device that is lost is refused or done, and at the end nothing waits for it and nothing is left:
/// the layer would tell of that.
#[test]
fn a_lost_device_says_so_and_goes_without_waiting() {
    let Some(parts) = shimmed() else { return };
    // SAFETY: as above.
    let mut device = unsafe { Vulkan::over(parts) }.unwrap();
    let view = device.view();
    let tile = device.caps().tile_bytes;
    let (range, other) = (device.reserve(4 * tile).unwrap(), device.reserve(tile).unwrap());
    let (heap, given_back) = (device.create(2 * tile).unwrap(), device.create(tile).unwrap());
    let bind = |at| Bind { range_offset: at * tile, heap, heap_offset: 0, bytes: 2 * tile };
    device.map(range.id, &[bind(0)]).unwrap();
    device.write(range.address, &[7; 100]).unwrap();
    // What runs when a driver loses a device is the driver's; here nothing does.
    device.settle().unwrap();
    let (calls, live) = (device.calls(), view.live());
    LOST.set(true);
    for refused in [
        device.create(tile).map(drop),
        device.map(range.id, &[bind(2)]),
        device.unmap(range.id, 0, 2 * tile),
        device.read(range.address, &mut [0; 100]),
        device.write(range.address, &[8; 100]),
    ] {
        let error = refused.unwrap_err();
        assert!(error.to_string().contains("ERROR_DEVICE_LOST"), "{error}");
    }
    assert_eq!(device.settle().map_err(|error| error.to_string().contains("ERROR_DEVICE_LOST")), Err(true));
    assert_eq!((device.held_bytes(), view.live()), (Ok(3 * tile), live), "what was refused has left nothing");
    assert!(device.calls().map > calls.map);
    // Nobody can tell when these may go: they wait for the end.
    device.release(given_back).unwrap();
    device.unreserve(other.id).unwrap();
    assert_eq!(view.live(), live);
    drop(device);
    assert!(view.find(range.address).is_none());
    assert_eq!(
        view.live(),
        Live { buffers: 1, memories: 1 },
        "what was given back, until the last view goes"
    );
    drop(view);
    LOST.set(false);
}

/// Limits that drivers tell of: what would exceed one is refused with its name, and leaves nothing.
#[test]
fn a_limit_of_the_device_is_named() {
    const TILE: u64 = 64 << 10;
    let device = |bound: fn(&mut Abilities)| {
        // SAFETY: a rig's parts.
        let mut gpu = unsafe { Gpu::new(Rig::new()?.into_parts()) }.unwrap();
        bound(&mut gpu.abilities);
        Some(Vulkan::on(gpu).unwrap())
    };
    let Some(mut short) = device(|abilities| abilities.longest_buffer = 8 * TILE) else { return };
    let longest = short.caps().max_range_bytes;
    assert!((6 * TILE..=8 * TILE).contains(&longest), "{longest}");
    short.reserve(longest).unwrap();
    let error = short.reserve(9 * TILE).unwrap_err().to_string();
    assert!(error.contains(&tilework::units::exact(longest)), "{error}");
    let error = short.create(9 * TILE).unwrap_err().to_string();
    assert!(error.contains("maxBufferSize"), "heaps are filled through a buffer: {error}");
    assert_eq!((short.held_bytes(), short.view().live()), (Ok(0), Live { buffers: 1, memories: 0 }));
    drop(short);

    let Some(mut narrow) = device(|abilities| abilities.longest_allocation = 8 * TILE) else { return };
    narrow.create(8 * TILE).unwrap();
    let error = narrow.create(9 * TILE).unwrap_err().to_string();
    assert!(error.contains(&format!("maxMemoryAllocationSize of the device is {}", 8 * TILE)), "{error}");
    drop(narrow);

    // Room for four of the longest ranges, and nothing.
    let Some(mut full) = device(|abilities| abilities.address_space = 32 * TILE) else { return };
    let longest = full.caps().max_range_bytes;
    for _ in 0..4 {
        full.reserve(longest).unwrap();
    }
    let error = full.reserve(longest).unwrap_err().to_string();
    assert!(error.contains(&format!("sparseAddressSpaceSize of the device is {}", 32 * TILE)), "{error}");
    drop(full);
}

/// Memory in more pieces than the device lets there be at once: what is buried makes room, and else memory lacks.
#[test]
fn the_number_of_pieces_is_memory_that_lacks() {
    const TILE: u64 = 64 << 10;
    let Some(rig) = Rig::new() else { return };
    // SAFETY: a rig's parts.
    let mut gpu = unsafe { Gpu::new(rig.into_parts()) }.unwrap();
    gpu.abilities.allocations = 3;
    let mut device = Vulkan::on(gpu).unwrap();
    let heaps = [(); 3].map(|()| device.create(TILE).unwrap());
    assert_eq!(device.create(TILE), Err(DeviceError::OutOfMemory { bytes: TILE }));
    assert_eq!(device.held_bytes(), Ok(3 * TILE));
    for heap in heaps {
        device.release(heap).unwrap();
        device.create(TILE).unwrap();
        assert_eq!(device.held_bytes(), Ok(3 * TILE));
    }
}

unsafe extern "system" fn features(
    physical: vk::PhysicalDevice,
    features: *mut vk::PhysicalDeviceFeatures2<'_>,
) {
    // SAFETY: the caller's arguments; of what is chained here the only structure is the one of 1.2.
    unsafe {
        real::<vk::PFN_vkGetPhysicalDeviceFeatures2>(c"vkGetPhysicalDeviceFeatures2")(physical, features);
        let vulkan12 = (*features).p_next.cast::<vk::PhysicalDeviceVulkan12Features<'_>>();
        let features = &mut (*features).features;
        match LACKS.get() {
            Lacks::Binding => features.sparse_binding = vk::FALSE,
            Lacks::Residency => features.sparse_residency_buffer = vk::FALSE,
            Lacks::Aliasing => features.sparse_residency_aliased = vk::FALSE,
            Lacks::Timeline => (*vulkan12).timeline_semaphore = vk::FALSE,
            Lacks::Nothing | Lacks::Version | Lacks::Queue => {}
        }
    }
}

unsafe extern "system" fn properties(
    physical: vk::PhysicalDevice,
    properties: *mut vk::PhysicalDeviceProperties,
) {
    // SAFETY: the caller's arguments.
    unsafe {
        real::<vk::PFN_vkGetPhysicalDeviceProperties>(c"vkGetPhysicalDeviceProperties")(physical, properties);
        if LACKS.get() == Lacks::Version {
            (*properties).api_version = vk::API_VERSION_1_1;
        }
    }
}

unsafe extern "system" fn families(
    physical: vk::PhysicalDevice,
    count: *mut u32,
    families: *mut vk::QueueFamilyProperties,
) {
    const NAME: &CStr = c"vkGetPhysicalDeviceQueueFamilyProperties";
    // SAFETY: the caller's arguments: null, or room for as many as are counted.
    unsafe {
        real::<vk::PFN_vkGetPhysicalDeviceQueueFamilyProperties>(NAME)(physical, count, families);
        if LACKS.get() == Lacks::Queue && !families.is_null() {
            for family in std::slice::from_raw_parts_mut(families, *count as usize) {
                family.queue_flags &= !vk::QueueFlags::SPARSE_BINDING;
            }
        }
    }
}

/// A rig's parts with an instance that tells of devices that lack something.
fn lacking(lacks: Lacks) -> Option<Parts> {
    let rig = Rig::new()?;
    let handle = rig.instance.handle();
    let find = |name: &CStr| {
        // SAFETY: the instance is alive.
        let found = unsafe { rig.entry.get_instance_proc_addr(handle, name.as_ptr()) };
        let found = found.map_or(std::ptr::null(), |function| function as *const c_void);
        let (name, shim) = match name.to_bytes() {
            b"vkGetPhysicalDeviceFeatures2" => {
                let shim: vk::PFN_vkGetPhysicalDeviceFeatures2 = features;
                (c"vkGetPhysicalDeviceFeatures2", shim as *const c_void)
            }
            b"vkGetPhysicalDeviceProperties" => {
                let shim: vk::PFN_vkGetPhysicalDeviceProperties = properties;
                (c"vkGetPhysicalDeviceProperties", shim as *const c_void)
            }
            b"vkGetPhysicalDeviceQueueFamilyProperties" => {
                let shim: vk::PFN_vkGetPhysicalDeviceQueueFamilyProperties = families;
                (c"vkGetPhysicalDeviceQueueFamilyProperties", shim as *const c_void)
            }
            _ => return found,
        };
        REAL.with_borrow_mut(|real| real.insert(name, found));
        shim
    };
    // SAFETY: what is found are the instance's functions, or shims with their types.
    let instance = unsafe { ash::Instance::load_with(find, handle) };
    LACKS.set(lacks);
    Some(Parts { instance, ..rig.into_parts() })
}

#[test]
fn what_a_device_lacks_is_named() {
    for (lacks, says) in [
        (Lacks::Binding, "it lacks sparseBinding"),
        (Lacks::Residency, "it lacks sparseResidencyBuffer"),
        (Lacks::Aliasing, "it lacks sparseResidencyAliased"),
        (Lacks::Timeline, "it lacks timelineSemaphore"),
        (Lacks::Version, "speaks Vulkan 1.1; 1.2 or later is needed"),
        (Lacks::Queue, "can not copy, or not bind sparse memory"),
    ] {
        let Some(parts) = lacking(lacks) else { return };
        // SAFETY: a rig's parts.
        let error = unsafe { Vulkan::over(parts) }.map(drop).unwrap_err().to_string();
        assert!(error.contains(says), "{lacks:?}: {error}");
    }
    let Some(parts) = lacking(Lacks::Nothing) else { return };
    // SAFETY: as above.
    unsafe { Vulkan::over(parts) }.map(drop).unwrap();
}

#[test]
fn a_family_that_is_not_there_is_refused() {
    let Some(rig) = Rig::new() else { return };
    let parts = Parts { family: 99, ..rig.into_parts() };
    // SAFETY: a rig's parts; the family is looked at before it is used.
    let error = unsafe { Vulkan::over(parts) }.map(drop).unwrap_err();
    assert!(matches!(error, VulkanError::NoQueue { .. }), "{error}");
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    if Rig::new().is_none() {
        return;
    }
    let error = Vulkan::open(4096).map(drop).unwrap_err();
    assert!(matches!(error, VulkanError::NoSuchDevice { index: 4096, count: 1.. }), "{error}");
}

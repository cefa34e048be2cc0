use std::ptr;

use super::*;
use crate::manager::{tilework_alloc, tilework_destroy, tilework_free, tilework_trim};
use crate::open::{self, Settings};
use crate::{call, handles};

/// Held by a test that uses Vulkan: drivers are not what is tested here.
static ALONE: Mutex<()> = Mutex::new(());

/// A Vulkan that a program would have: instance, device and queue, kept by the view.
fn own() -> Option<(View, TileworkVulkanParts, ash::Entry)> {
    if std::env::var_os("TILEWORK_TEST_VULKAN").is_none() {
        println!("skipped: TILEWORK_TEST_VULKAN is not set");
        return None;
    }
    let view = Vulkan::open(0).unwrap().view();
    // SAFETY: the system's loader.
    let entry = unsafe { ash::Entry::load() }.unwrap();
    let queue = *view.queue().lock().unwrap();
    let pointer = |handle: u64| ptr::with_exposed_provenance_mut(handle as usize);
    let parts = TileworkVulkanParts {
        size: size_of::<TileworkVulkanParts>(),
        get_instance_proc_addr: entry.static_fn().get_instance_proc_addr as *const c_void,
        instance: pointer(view.instance().handle().as_raw()),
        physical_device: pointer(view.physical_device().as_raw()),
        device: pointer(view.device().handle().as_raw()),
        queue: pointer(queue.as_raw()),
        queue_family: view.family(),
        sparse: true,
        buffer_addresses: view.has_addresses(),
        usage: 0,
    };
    Some((view, parts, entry))
}

fn options() -> TileworkOptions {
    TileworkOptions {
        size: size_of::<TileworkOptions>(),
        device: ptr::null(),
        manager: ptr::null(),
        heap_bytes: 1 << 20,
        limit_bytes: 0,
        mapping_age: 0,
        heap_age: 0,
    }
}

fn create(parts: &TileworkVulkanParts) -> Result<*mut TileworkManager, (TileworkStatus, String)> {
    let mut manager = ptr::null_mut();
    // SAFETY: both structures are complete, and the parts alive or null.
    let status = unsafe { tilework_create_on_vulkan(&options(), parts, &mut manager) };
    if status == TileworkStatus::Ok {
        return Ok(manager);
    }
    // SAFETY: after a failure there is a sentence, valid until the next.
    let text = unsafe { std::ffi::CStr::from_ptr(call::last_error()) };
    Err((status, text.to_str().unwrap().to_owned()))
}

#[test]
fn work_is_ordered_with_binds_by_what_c_is_told() {
    for usage in 0..3 {
        work_is_ordered(usage);
    }
}

fn work_is_ordered(usage: u32) {
    let _alone = ALONE.lock();
    let Some((view, parts, _entry)) = own() else { return };
    let manager = create(&TileworkVulkanParts { usage, ..parts }).unwrap();
    let device = view.device();
    let mut timeline = vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE);
    let info = vk::SemaphoreCreateInfo::default().push_next(&mut timeline);
    let pool = vk::CommandPoolCreateInfo::default().queue_family_index(view.family());
    // SAFETY: the device is alive with the view, and the family is its queue's.
    let (done, pool) = unsafe {
        (device.create_semaphore(&info, None).unwrap(), device.create_command_pool(&pool, None).unwrap())
    };
    let info = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
    let mut seen = Vec::new();
    for value in 1..=6_u64 {
        let (mut address, mut ready, mut at) = (0, 0, 0);
        let mut slice = TileworkVulkanSlice { buffer: 0, offset: 0, range: 0, host: ptr::null_mut() };
        let bytes = value % 3 * (700 << 10) + 4096;
        // SAFETY: places for all results; what is recorded fills the block; all is alive until the end.
        unsafe {
            assert_eq!(tilework_alloc(manager, bytes, ptr::null_mut(), &mut address), TileworkStatus::Ok);
            assert_eq!(tilework_vulkan_find(manager, address, &mut slice), TileworkStatus::Ok);
            assert_eq!(tilework_vulkan_ready(manager, &mut ready, &mut at), TileworkStatus::Ok);
            let commands = device.allocate_command_buffers(&info).unwrap();
            device.begin_command_buffer(commands[0], &vk::CommandBufferBeginInfo::default()).unwrap();
            let buffer = vk::Buffer::from_raw(slice.buffer);
            device.cmd_fill_buffer(commands[0], buffer, slice.offset, bytes, value as u32);
            let to_host = vk::MemoryBarrier::default()
                .src_access_mask(vk::AccessFlags::TRANSFER_WRITE)
                .dst_access_mask(vk::AccessFlags::HOST_READ);
            let stages = (vk::PipelineStageFlags::TRANSFER, vk::PipelineStageFlags::HOST);
            let none = vk::DependencyFlags::empty();
            device.cmd_pipeline_barrier(commands[0], stages.0, stages.1, none, &[to_host], &[], &[]);
            device.end_command_buffer(commands[0]).unwrap();
            let (waits, values) = ([vk::Semaphore::from_raw(ready)], [at]);
            let (signals, signalled) = ([done], [value]);
            let mut order = vk::TimelineSemaphoreSubmitInfo::default()
                .wait_semaphore_values(&values)
                .signal_semaphore_values(&signalled);
            let batch = vk::SubmitInfo::default()
                .wait_semaphores(&waits)
                .wait_dst_stage_mask(&[vk::PipelineStageFlags::ALL_COMMANDS])
                .command_buffers(&commands)
                .signal_semaphores(&signals)
                .push_next(&mut order);
            let submitted = tilework_vulkan_submit(manager, 1, (&raw const batch).cast(), 0);
            assert_eq!(submitted, TileworkStatus::Ok);
            assert_eq!(tilework_vulkan_used_by(manager, done.as_raw(), value), TileworkStatus::Ok);
            // Read behind the use that was told of.
            let mut word = [0; 4];
            crate::manager::with(manager, |shared| Ok(shared.read(address + bytes - 4, &mut word)?));
            assert_eq!(u32::from_ne_bytes(word), value as u32);
            assert_eq!(slice.host.is_null(), usage == 0);
            if usage > 0 {
                assert_eq!(slice.host.cast::<u32>().add(bytes as usize / 4 - 1).read(), value as u32);
            }
            assert_eq!(tilework_free(manager, address), TileworkStatus::Ok);
            assert_eq!(tilework_trim(manager, ptr::null_mut()), TileworkStatus::Ok);
        }
        seen.push(slice.range);
    }
    seen.sort_unstable();
    seen.dedup();
    assert!(seen.len() > 1, "everything was given back in between, and a range is never used again");
    assert_eq!(tilework_destroy(manager), TileworkStatus::Ok);
    let mut slice = TileworkVulkanSlice { buffer: 0, offset: 0, range: 0, host: ptr::null_mut() };
    // SAFETY: a place for the result.
    let after = unsafe { tilework_vulkan_find(manager, 0, &mut slice) };
    assert_eq!(after, TileworkStatus::InvalidArgument);
    // SAFETY: the manager's device has waited for all that was told of.
    unsafe {
        device.destroy_command_pool(pool, None);
        device.destroy_semaphore(done, None);
    }
}

#[test]
fn parts_that_cannot_be_used_are_named() {
    let _alone = ALONE.lock();
    let nothing = TileworkVulkanParts {
        size: size_of::<TileworkVulkanParts>(),
        get_instance_proc_addr: ptr::null(),
        instance: ptr::null_mut(),
        physical_device: ptr::null_mut(),
        device: ptr::null_mut(),
        queue: ptr::null_mut(),
        queue_family: 0,
        sparse: false,
        buffer_addresses: false,
        usage: 0,
    };
    let says = |parts: &TileworkVulkanParts| create(parts).unwrap_err();
    assert_eq!(says(&nothing), (TileworkStatus::InvalidArgument, "vkGetInstanceProcAddr is null".into()));
    let short = TileworkVulkanParts { size: 8, ..nothing };
    assert!(says(&short).1.contains("sizeof(tilework_vulkan_parts)"));

    let Some((_view, parts, _entry)) = own() else { return };
    for (broken, text) in [
        (TileworkVulkanParts { instance: ptr::null_mut(), ..parts }, "the instance is null"),
        (TileworkVulkanParts { device: ptr::null_mut(), ..parts }, "the device is null"),
        (TileworkVulkanParts { queue: ptr::null_mut(), ..parts }, "the queue is null"),
        (TileworkVulkanParts { usage: 3, ..parts }, "the usage must be 0, 1 or 2, and is 3"),
    ] {
        assert_eq!(says(&broken), (TileworkStatus::InvalidArgument, text.into()));
    }
    let (failed, text) = says(&TileworkVulkanParts { queue_family: 99, ..parts });
    assert_eq!(failed, TileworkStatus::DeviceFailed);
    assert!(text.contains("queue family 99"), "{text}");
}

#[test]
fn a_manager_elsewhere_has_no_buffers() {
    let host = open::shared("null", &Settings::default()).unwrap();
    let handle = handles::register(Arc::new(host));
    let manager: *mut TileworkManager = ptr::without_provenance_mut(handle);
    let (mut semaphore, mut value) = (0, 0);
    // SAFETY: places for both results.
    let answer = unsafe { tilework_vulkan_ready(manager, &mut semaphore, &mut value) };
    assert_eq!(answer, TileworkStatus::InvalidArgument);
    assert_eq!(tilework_destroy(manager), TileworkStatus::Ok);
}

use ash::vk;
use tilework::device::conformance::device_conformance;
use tilework::device::{self, Device};
use tilework::manager::Kind;
use tilework::testing::conformance::Subject;

use super::*;
use crate::gpu::Gpu;
use rig::Rig;

mod executor;
mod faults;
mod program;
mod rig;
#[path = "../examples/shader/mod.rs"]
mod shader;
mod usage;

#[test]
fn names_mean_indices() {
    for (name, index) in [
        ("vulkan", Some(0)),
        ("vulkan:0", Some(0)),
        ("vulkan:12", Some(12)),
        ("vulkan:", None),
        ("vulkan:x", None),
        ("vulkan:-1", None),
        ("vulkan1", None),
        ("cuda", None),
        ("", None),
    ] {
        assert_eq!(super::index(name), index, "{name:?}");
    }
}

/// A device with validation on.
fn vulkan() -> Option<Vulkan> {
    // SAFETY: the rig is made with all that is asked for and owned by the parts; nobody else has its queue.
    Rig::new().map(|rig| unsafe { Vulkan::over(rig.into_parts()) }.unwrap())
}

/// The same without `bufferDeviceAddress`, as far as the device is told.
fn without_addresses() -> Option<Vulkan> {
    let parts = Parts { addresses: false, ..Rig::new()?.into_parts() };
    // SAFETY: as above.
    Some(unsafe { Vulkan::over(parts) }.unwrap())
}

/// The same without sparse buffers, as far as the device is told.
fn plain() -> Option<Vulkan> {
    let parts = Parts { sparse: false, ..Rig::new()?.into_parts() };
    // SAFETY: as above.
    Some(unsafe { Vulkan::over(parts) }.unwrap())
}

/// The same for what the host reads.
fn for_readback() -> Option<Vulkan> {
    let parts = Parts { usage: MemoryUsage::Readback, ..Rig::new()?.into_parts() };
    // SAFETY: as above.
    Some(unsafe { Vulkan::over(parts) }.unwrap())
}

/// The checks of the suite cannot be skipped one by one: without Vulkan they run on the host's device.
fn or_host(device: Option<impl Device + 'static>) -> Box<dyn Device> {
    device.map_or_else(|| device::open("host").unwrap(), |device| Box::new(device))
}

device_conformance!(sparse, || or_host(vulkan()));
device_conformance!(sparse_without_addresses, || or_host(without_addresses()));
device_conformance!(plain_buffers, || or_host(plain()));
device_conformance!(for_readback, || or_host(for_readback()));

/// What lavapipe has free is what the host has, which changes under a test that looks twice.
fn without_budget(sparse: bool) -> Box<dyn Device> {
    or_host(Rig::new().map(|rig| {
        // SAFETY: as above.
        let mut gpu = unsafe { Gpu::new(Parts { sparse, ..rig.into_parts() }) }.unwrap();
        gpu.abilities.tells_budget = false;
        Vulkan::on(gpu).unwrap()
    }))
}

tilework::manager_conformance! {
    tiled_on_vulkan: Subject::of(Kind::Tiled, || without_budget(true));
    bucketized_on_vulkan: Subject::of(Kind::Bucketized, || without_budget(true));
    committed_on_vulkan: Subject::of(Kind::Committed, || without_budget(true));
    placed_on_plain_buffers: Subject::of(Kind::Placed, || without_budget(false));
}

#[test]
fn what_is_free_is_told() {
    let Some(device) = vulkan() else { return };
    let capacity = device.caps().capacity_bytes.unwrap();
    assert!(device.free_bytes().is_some_and(|free| 0 < free && free <= capacity));
}

/// What all other tests rest on: a mistake is told of.
#[test]
fn validation_is_on() {
    let Some(mut rig) = Rig::new() else { return };
    rig.strict = false;
    let nothing = vk::BufferCreateInfo::default().usage(vk::BufferUsageFlags::TRANSFER_SRC);
    // SAFETY: a buffer of no bytes is a mistake that the layer stops or the driver survives.
    let buffer = unsafe { rig.made.device.create_buffer(&nothing, None) };
    if let Ok(buffer) = buffer {
        // SAFETY: created above.
        unsafe { rig.made.device.destroy_buffer(buffer, None) };
    }
    let messages = rig.messages.lock().unwrap().clone();
    assert!(messages.iter().any(|text| text.contains("size")), "{messages:?}");
}

#[test]
fn every_physical_device_is_listed() {
    let Some(rig) = Rig::new() else { return };
    let listed = list().unwrap();
    // SAFETY: the instance is alive.
    let there = unsafe { rig.instance.enumerate_physical_devices() }.unwrap();
    assert_eq!(listed.len(), there.len());
    for (index, physical) in (0..).zip(&listed) {
        let opened = open(index);
        if let Some(unfit) = &physical.unfit {
            assert_eq!(opened.map(drop).as_ref(), Err(unfit), "{}", physical.name);
            continue;
        }
        assert!(physical.features.iter().all(|(name, has)| *has || *name == "bufferDeviceAddress"));
        assert!(
            physical.address_space >= opened.unwrap().caps().max_range_bytes && physical.version >= (1, 2, 0)
        );
    }
}

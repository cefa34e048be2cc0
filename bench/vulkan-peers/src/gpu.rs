//! The Vulkan device that all subjects share.

use std::ffi::CStr;
use std::sync::{Arc, Mutex};

use anyhow::{Context, bail};
use ash::vk;

use crate::counted;

/// What blocks are for: what tilework-vulkan's are.
const USAGE: vk::BufferUsageFlags = vk::BufferUsageFlags::from_raw(
    vk::BufferUsageFlags::TRANSFER_SRC.as_raw()
        | vk::BufferUsageFlags::TRANSFER_DST.as_raw()
        | vk::BufferUsageFlags::UNIFORM_BUFFER.as_raw()
        | vk::BufferUsageFlags::STORAGE_BUFFER.as_raw()
        | vk::BufferUsageFlags::INDEX_BUFFER.as_raw()
        | vk::BufferUsageFlags::VERTEX_BUFFER.as_raw()
        | vk::BufferUsageFlags::INDIRECT_BUFFER.as_raw(),
);

/// An instance, a device with [counted](counted::counted) functions and its queue. Never destroyed: the process ends.
pub struct Gpu {
    pub name: String,
    pub driver: String,
    pub instance: ash::Instance,
    pub physical: vk::PhysicalDevice,
    pub device: ash::Device,
    pub family: u32,
    pub queue: Arc<Mutex<vk::Queue>>,
    /// Whether buffers have addresses.
    pub addresses: bool,
}

impl Gpu {
    /// Opens the device with this index.
    pub fn open(index: usize) -> anyhow::Result<Gpu> {
        // SAFETY: the library with this name is the system's Vulkan loader, whose initialisers may run anywhere.
        let entry = unsafe { ash::Entry::load() }.context("no Vulkan loader")?;
        // The functions stay for as long as the process.
        let entry = Box::leak(Box::new(entry));
        let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
        let info = vk::InstanceCreateInfo::default().application_info(&application);
        // SAFETY: `info` is alive during the call.
        let instance = unsafe { entry.create_instance(&info, None) }.context("no Vulkan driver")?;
        // SAFETY: the instance is alive, here and below.
        let all = unsafe { instance.enumerate_physical_devices() }?;
        let &physical = all.get(index).with_context(|| format!("there are {} devices", all.len()))?;
        let mut driver = vk::PhysicalDeviceDriverProperties::default();
        let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut driver);
        // SAFETY: as above; the chained structure is of Vulkan 1.2, and an older device is refused below.
        unsafe { instance.get_physical_device_properties2(physical, &mut properties) };
        let properties = properties.properties;
        if properties.api_version < vk::API_VERSION_1_3 {
            bail!("VMA's bindings want functions of Vulkan 1.3");
        }
        let text =
            |text: Result<&CStr, _>| text.map(|t| t.to_string_lossy().into_owned()).unwrap_or_default();
        let name = text(properties.device_name_as_c_str());
        let driver =
            format!("{} {}", text(driver.driver_name_as_c_str()), text(driver.driver_info_as_c_str()));
        // SAFETY: as above.
        let families = unsafe { instance.get_physical_device_queue_family_properties(physical) };
        let wanted = vk::QueueFlags::SPARSE_BINDING | vk::QueueFlags::COMPUTE;
        let family = families.iter().position(|family| family.queue_flags.contains(wanted));
        let family = family.context("no queue family computes and binds sparse memory")? as u32;

        let mut vulkan12 = vk::PhysicalDeviceVulkan12Features::default();
        let mut features = vk::PhysicalDeviceFeatures2::default().push_next(&mut vulkan12);
        // SAFETY: as above.
        unsafe { instance.get_physical_device_features2(physical, &mut features) };
        let addresses = vulkan12.buffer_device_address == vk::TRUE;
        let queues =
            [vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(&[1.0])];
        let features = vk::PhysicalDeviceFeatures::default()
            .sparse_binding(true)
            .sparse_residency_buffer(true)
            .sparse_residency_aliased(true);
        let mut vulkan12 = vk::PhysicalDeviceVulkan12Features::default()
            .timeline_semaphore(true)
            .buffer_device_address(addresses);
        let mut vulkan13 = vk::PhysicalDeviceVulkan13Features::default().maintenance4(true);
        let info = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queues)
            .enabled_features(&features)
            .push_next(&mut vulkan12)
            .push_next(&mut vulkan13);
        // SAFETY: `info` and all it names is alive during the call; features that lack are refused.
        let device = unsafe { instance.create_device(physical, &info, None) };
        let device = device.context("a device with sparse buffers")?;
        // SAFETY: alive, of the instance, and the only one.
        let device = unsafe { counted::counted(&instance, &device) };
        // SAFETY: the device was made with one queue of the family.
        let queue = unsafe { device.get_device_queue(family, 0) };
        Ok(Gpu {
            name,
            driver,
            instance,
            physical,
            device,
            family,
            queue: Arc::new(Mutex::new(queue)),
            addresses,
        })
    }

    /// How a buffer of `bytes` is made.
    pub fn buffer_info(&self, bytes: u64) -> vk::BufferCreateInfo<'static> {
        let address = vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS;
        let usage = if self.addresses { USAGE | address } else { USAGE };
        vk::BufferCreateInfo::default().size(bytes).usage(usage)
    }

    /// What memory buffers want; the size is that of the one that was asked.
    pub fn requirements(&self) -> anyhow::Result<vk::MemoryRequirements> {
        // SAFETY: the device is alive; the buffer is destroyed once it was asked.
        unsafe {
            let buffer = self.device.create_buffer(&self.buffer_info(1 << 20), None)?;
            let requirements = self.device.get_buffer_memory_requirements(buffer);
            self.device.destroy_buffer(buffer, None);
            Ok(requirements)
        }
    }
}

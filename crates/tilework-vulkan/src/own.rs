//! Instance, device and queue of our own, for programs that have none.

use std::any::Any;
use std::ffi::CStr;
use std::sync::{Arc, Mutex};

use ash::vk;

use crate::abilities::{Abilities, is_fit};
use crate::error::{VulkanError, answer};
use crate::gpu::Parts;
use crate::usage::MemoryUsage;

/// The Vulkan that instances are made for.
const VERSION: u32 = vk::API_VERSION_1_2;

/// An instance and a device on it, destroyed when it is dropped.
pub struct Own {
    instance: ash::Instance,
    made: Made,
    /// Behind the functions of the others: dropped, and so unloaded, after all use of them.
    _entry: ash::Entry,
}

/// A device with one queue that copies, and binds where memory can be bound piece by piece.
#[derive(Clone)]
pub struct Made {
    pub physical: vk::PhysicalDevice,
    pub device: ash::Device,
    pub family: u32,
    /// Whether it was made with the features of sparse buffers.
    pub sparse: bool,
    /// Whether it was made with the feature `bufferDeviceAddress`.
    pub addresses: bool,
}

impl Own {
    /// A device with all that this crate uses, on the physical device with this index.
    ///
    /// # Errors
    /// [`VulkanError::NoDevice`], [`VulkanError::NoSuchDevice`], those of [`Abilities::read`],
    /// [`VulkanError::NoQueue`], or what the driver refused; nothing is left then.
    pub fn new(index: u32) -> Result<Own, VulkanError> {
        let entry = load()?;
        let instance = make_instance(&entry, &[], &[])?;
        // SAFETY: the instance was made a moment ago, as is asked for.
        match unsafe { make_device(&instance, index) } {
            Ok(made) => Ok(Own { instance, made, _entry: entry }),
            Err(error) => {
                // SAFETY: made above; nothing was made of it that is left.
                unsafe { instance.destroy_instance(None) };
                Err(error)
            }
        }
    }

    /// Its parts, which own it.
    pub fn into_parts(self) -> Parts {
        let (instance, made) = (self.instance.clone(), self.made.clone());
        made.into_parts(instance, Box::new(self))
    }
}

impl Made {
    /// All parts there are, kept alive by `owner`.
    pub fn into_parts(self, instance: ash::Instance, owner: Box<dyn Any + Send + Sync>) -> Parts {
        let Made { physical, device, family, sparse, addresses } = self;
        // SAFETY: the device was made with one queue of the family.
        let queue = Arc::new(Mutex::new(unsafe { device.get_device_queue(family, 0) }));
        let usage = MemoryUsage::Device;
        Parts { instance, physical, device, family, queue, sparse, addresses, usage, owner }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // SAFETY: both were made by `new`. It is dropped by its parts' owner, once all that was made of them is
        // destroyed; nobody else has them.
        unsafe {
            self.made.device.destroy_device(None);
            self.instance.destroy_instance(None);
        }
    }
}

/// Loads the system's Vulkan loader.
pub fn load() -> Result<ash::Entry, VulkanError> {
    // SAFETY: the library with this name is the system's Vulkan loader, whose initialisers may run anywhere.
    unsafe { ash::Entry::load() }.map_err(|error| VulkanError::NoLoader { reason: error.to_string() })
}

/// An instance with these layers and extensions.
pub fn make_instance(
    entry: &ash::Entry,
    layers: &[&CStr],
    extensions: &[&CStr],
) -> Result<ash::Instance, VulkanError> {
    // SAFETY: the loader is loaded.
    let version = unsafe { entry.try_enumerate_instance_version() };
    let version = answer("vkEnumerateInstanceVersion", version)?.unwrap_or(vk::API_VERSION_1_0);
    if version < VERSION {
        let (major, minor) = (vk::api_version_major(version), vk::api_version_minor(version));
        return Err(VulkanError::TooOld { what: "the Vulkan loader".to_owned(), major, minor });
    }
    let application = vk::ApplicationInfo::default().engine_name(c"tilework").api_version(VERSION);
    let layers: Vec<_> = layers.iter().map(|name| name.as_ptr()).collect();
    let extensions: Vec<_> = extensions.iter().map(|name| name.as_ptr()).collect();
    let info = vk::InstanceCreateInfo::default()
        .application_info(&application)
        .enabled_layer_names(&layers)
        .enabled_extension_names(&extensions);
    // SAFETY: `info` and all it names is alive during the call; a missing layer or extension is refused.
    match unsafe { entry.create_instance(&info, None) } {
        // The loader's answer when it finds no driver at all.
        Err(vk::Result::ERROR_INCOMPATIBLE_DRIVER) => Err(VulkanError::NoDevice),
        made => answer("vkCreateInstance", made),
    }
}

/// A device with one queue that copies, and binds where memory can be bound piece by piece, on the physical device with this index.
///
/// # Safety
/// `instance` must be alive and made for [`VERSION`] or later.
pub unsafe fn make_device(instance: &ash::Instance, index: u32) -> Result<Made, VulkanError> {
    // SAFETY: the instance is alive.
    let all = answer("vkEnumeratePhysicalDevices", unsafe { instance.enumerate_physical_devices() })?;
    let count = u32::try_from(all.len()).unwrap_or(u32::MAX);
    if count == 0 {
        return Err(VulkanError::NoDevice);
    }
    let &physical = all.get(index as usize).ok_or(VulkanError::NoSuchDevice { index, count })?;
    // SAFETY: the instance is alive and the device its own, here and below.
    let abilities = unsafe { Abilities::read(instance, physical) }?;
    let sparse = abilities.lacks.is_none();
    // SAFETY: as above.
    let families = unsafe { instance.get_physical_device_queue_family_properties(physical) };
    // One that computes, too, if there is: programs have but this queue.
    let computes = |family: &vk::QueueFamilyProperties| family.queue_flags.contains(vk::QueueFlags::COMPUTE);
    let family = families
        .iter()
        .position(|family| is_fit(family, sparse) && computes(family))
        .or_else(|| families.iter().position(|family| is_fit(family, sparse)))
        .and_then(|at| u32::try_from(at).ok())
        .ok_or_else(|| VulkanError::NoQueue { what: format!("no queue of {}", abilities.name) })?;

    let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(&[1.0])];
    let features = vk::PhysicalDeviceFeatures::default()
        .sparse_binding(sparse)
        .sparse_residency_buffer(sparse)
        .sparse_residency_aliased(sparse);
    let mut vulkan12 = vk::PhysicalDeviceVulkan12Features::default()
        .timeline_semaphore(true)
        .buffer_device_address(abilities.addresses);
    let info = vk::DeviceCreateInfo::default()
        .queue_create_infos(&queues)
        .enabled_features(&features)
        .push_next(&mut vulkan12);
    // SAFETY: `info` and all it names is alive during the call; the features are there, as their reading has shown,
    // and the family has a queue, since families with none are not listed.
    let device = answer("vkCreateDevice", unsafe { instance.create_device(physical, &info, None) })?;
    Ok(Made { physical, device, family, sparse, addresses: abilities.addresses })
}

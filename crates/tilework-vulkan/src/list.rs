//! The physical devices that the loader finds, fit or not: for programs that tell their user what there is.

use std::ffi::CStr;

use ash::vk;

use crate::abilities::{self, Abilities, is_fit};
use crate::error::{VulkanError, answer};
use crate::own;

/// A physical device.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Physical {
    /// What it is called, such as "NVIDIA H200".
    pub name: String,
    /// What it is.
    pub kind: vk::PhysicalDeviceType,
    /// The Vulkan it speaks: major, minor and patch.
    pub version: (u32, u32, u32),
    /// Its driver's name and version in the driver's own words; empty where the device is older than Vulkan 1.2.
    pub driver: String,
    /// The features that matter here by their names in Vulkan, and whether it has them; it cannot do without
    /// `timelineSemaphore`.
    pub features: Vec<(&'static str, bool)>,
    /// Its queue families.
    pub families: Vec<vk::QueueFamilyProperties>,
    /// The most address space that all sparse resources may have together, bytes.
    pub address_space: u64,
    /// How many pieces of physical memory there may be at once.
    pub allocations: u64,
    /// Whether it tells what memory is left (`VK_EXT_memory_budget`).
    pub tells_budget: bool,
    /// The device-local memory it has, bytes.
    pub total_bytes: u64,
    /// Why it cannot be a device of Tilework's, as far as can be told before it is opened.
    pub unfit: Option<VulkanError>,
}

/// Asks the loader for every physical device, in the order of their indices.
///
/// # Errors
/// [`VulkanError::NoLoader`], [`VulkanError::TooOld`], [`VulkanError::NoDevice`], or what a driver refused.
pub fn list() -> Result<Vec<Physical>, VulkanError> {
    let entry = own::load()?;
    let instance = own::make_instance(&entry, &[], &[])?;
    // SAFETY: the instance was made a moment ago, as is asked for.
    let listed = unsafe { all(&instance) };
    // SAFETY: made above; nothing was made of it.
    unsafe { instance.destroy_instance(None) };
    listed
}

/// # Safety
/// As for [`Abilities::read`].
unsafe fn all(instance: &ash::Instance) -> Result<Vec<Physical>, VulkanError> {
    // SAFETY: the instance is alive.
    let all = answer("vkEnumeratePhysicalDevices", unsafe { instance.enumerate_physical_devices() })?;
    if all.is_empty() {
        return Err(VulkanError::NoDevice);
    }
    // SAFETY: the same contract; the device is the instance's.
    all.into_iter().map(|physical| unsafe { read(instance, physical) }).collect()
}

/// # Safety
/// As for [`Abilities::read`].
unsafe fn read(instance: &ash::Instance, physical: vk::PhysicalDevice) -> Result<Physical, VulkanError> {
    // SAFETY: both are alive, by this function's contract; so in all calls below.
    let plain = unsafe { instance.get_physical_device_properties(physical) };
    // SAFETY: as above.
    let families = unsafe { instance.get_physical_device_queue_family_properties(physical) };
    // SAFETY: as above.
    let memory = unsafe { instance.get_physical_device_memory_properties(physical) };
    // SAFETY: the same contract.
    let (features, tells_budget, abilities) = unsafe {
        (
            abilities::features(instance, physical),
            abilities::tells_budget(instance, physical)?,
            Abilities::read(instance, physical),
        )
    };
    let name = plain.device_name_as_c_str().map(CStr::to_string_lossy).unwrap_or_default().into_owned();
    let unfit = match abilities {
        Err(error) => Some(error),
        Ok(abilities) if families.iter().any(|family| is_fit(family, abilities.lacks.is_none())) => None,
        Ok(_) => Some(VulkanError::NoQueue { what: format!("no queue of {name}") }),
    };
    let local = memory.memory_heaps_as_slice().iter();
    let local = local.filter(|heap| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
    let version = plain.api_version;
    let (major, minor) = (vk::api_version_major(version), vk::api_version_minor(version));
    Ok(Physical {
        name,
        kind: plain.device_type,
        version: (major, minor, vk::api_version_patch(version)),
        // SAFETY: the device speaks 1.2 where it is asked.
        driver: if (major, minor) >= (1, 2) { unsafe { driver(instance, physical) } } else { String::new() },
        features,
        families,
        address_space: plain.limits.sparse_address_space_size,
        allocations: plain.limits.max_memory_allocation_count.into(),
        tells_budget,
        total_bytes: local.map(|heap| heap.size).sum(),
        unfit,
    })
}

/// # Safety
/// As for [`Abilities::read`]; the device speaks Vulkan 1.2.
unsafe fn driver(instance: &ash::Instance, physical: vk::PhysicalDevice) -> String {
    let mut driver = vk::PhysicalDeviceDriverProperties::default();
    let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut driver);
    // SAFETY: alive, and the device knows the structure that is chained, by this function's contract.
    unsafe { instance.get_physical_device_properties2(physical, &mut properties) };
    let words = [driver.driver_name_as_c_str(), driver.driver_info_as_c_str()];
    let words = words.map(|text| text.map(CStr::to_string_lossy).unwrap_or_default());
    words.join(" ").trim().to_owned()
}

//! What a physical device can do, read before anything is made on it.

use std::ffi::CStr;

use ash::vk;

use crate::error::{VulkanError, answer};

/// The features by which memory is bound to buffers piece by piece.
const SPARSE: [&str; 3] = ["sparseBinding", "sparseResidencyBuffer", "sparseResidencyAliased"];

/// The feature that gives buffers addresses.
const ADDRESSES: &str = "bufferDeviceAddress";

/// The feature that no device can do without.
const TIMELINES: &str = "timelineSemaphore";

/// What matters here of a physical device.
#[derive(Debug, Clone)]
pub struct Abilities {
    /// What it is called, such as "NVIDIA H200".
    pub name: String,
    /// Whether buffers have addresses that shaders can use.
    pub addresses: bool,
    /// The feature that lacks for binding memory to buffers piece by piece.
    pub lacks: Option<&'static str>,
    /// The most address space that all sparse resources may have together, bytes.
    pub address_space: u64,
    /// The longest buffer, bytes.
    pub longest_buffer: u64,
    /// The longest piece of physical memory, bytes.
    pub longest_allocation: u64,
    /// How many pieces of physical memory there may be at once.
    pub allocations: u64,
    /// Whether it tells what memory is left.
    pub tells_budget: bool,
    /// Its heaps and types of memory.
    pub memory: vk::PhysicalDeviceMemoryProperties,
}

impl Abilities {
    /// Reads them.
    ///
    /// # Errors
    /// [`VulkanError::TooOld`], [`VulkanError::Lacks`], or what the driver refused.
    ///
    /// # Safety
    /// `instance` must be alive and made for Vulkan 1.2 or later, and `physical` one of its devices.
    pub unsafe fn read(
        instance: &ash::Instance,
        physical: vk::PhysicalDevice,
    ) -> Result<Abilities, VulkanError> {
        // SAFETY: both are alive, by this function's contract; so in all calls below.
        let plain = unsafe { instance.get_physical_device_properties(physical) };
        let name = plain.device_name_as_c_str().map(CStr::to_string_lossy).unwrap_or_default().into_owned();
        let version = plain.api_version;
        let (major, minor) = (vk::api_version_major(version), vk::api_version_minor(version));
        if (major, minor) < (1, 2) {
            return Err(VulkanError::TooOld { what: name, major, minor });
        }

        // SAFETY: as above.
        let features = unsafe { features(instance, physical) };
        if !features.contains(&(TIMELINES, true)) {
            return Err(VulkanError::Lacks { name, feature: TIMELINES });
        }
        let lacks = SPARSE.into_iter().find(|&feature| !features.contains(&(feature, true)));

        let mut maintenance3 = vk::PhysicalDeviceMaintenance3Properties::default();
        let mut maintenance4 = vk::PhysicalDeviceMaintenance4Properties::default();
        let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut maintenance3);
        if (major, minor) >= (1, 3) {
            properties = properties.push_next(&mut maintenance4);
        }
        // SAFETY: the device speaks the versions that the chained structures are of.
        unsafe { instance.get_physical_device_properties2(physical, &mut properties) };
        let limits = properties.properties.limits;
        Ok(Abilities {
            name,
            addresses: features.contains(&(ADDRESSES, true)),
            lacks,
            address_space: limits.sparse_address_space_size,
            // Older devices do not tell; what the address space allows bounds it then.
            longest_buffer: match maintenance4.max_buffer_size {
                0 => u64::MAX,
                bytes => bytes,
            },
            longest_allocation: maintenance3.max_memory_allocation_size,
            allocations: limits.max_memory_allocation_count.into(),
            // SAFETY: as above.
            tells_budget: unsafe { tells_budget(instance, physical) }?,
            // SAFETY: as above.
            memory: unsafe { instance.get_physical_device_memory_properties(physical) },
        })
    }
}

/// The features that matter here by their names in Vulkan, and whether a device has them. It cannot do without
/// [`TIMELINES`].
///
/// # Safety
/// As for [`Abilities::read`].
pub unsafe fn features(instance: &ash::Instance, physical: vk::PhysicalDevice) -> Vec<(&'static str, bool)> {
    // SAFETY: both are alive, by this function's contract; so in all calls below.
    let version = unsafe { instance.get_physical_device_properties(physical) }.api_version;
    let mut vulkan12 = vk::PhysicalDeviceVulkan12Features::default();
    let mut features = vk::PhysicalDeviceFeatures2::default();
    if version >= vk::API_VERSION_1_2 {
        features = features.push_next(&mut vulkan12);
        // SAFETY: the device speaks 1.2, so it knows the structure that is chained.
        unsafe { instance.get_physical_device_features2(physical, &mut features) };
    } else {
        // SAFETY: as above; an older device may know no structure but the first.
        features.features = unsafe { instance.get_physical_device_features(physical) };
    }
    let plain = features.features;
    [
        (SPARSE[0], plain.sparse_binding),
        (SPARSE[1], plain.sparse_residency_buffer),
        (SPARSE[2], plain.sparse_residency_aliased),
        (TIMELINES, vulkan12.timeline_semaphore),
        (ADDRESSES, vulkan12.buffer_device_address),
    ]
    .map(|(name, has)| (name, has == vk::TRUE))
    .to_vec()
}

/// Whether a device tells what memory is left.
///
/// # Errors
/// What the driver refused.
///
/// # Safety
/// As for [`Abilities::read`].
pub unsafe fn tells_budget(
    instance: &ash::Instance,
    physical: vk::PhysicalDevice,
) -> Result<bool, VulkanError> {
    // SAFETY: both are alive, by this function's contract.
    let extensions = unsafe { instance.enumerate_device_extension_properties(physical) };
    let extensions = answer("vkEnumerateDeviceExtensionProperties", extensions)?;
    let is_it = |extension: &vk::ExtensionProperties| {
        extension.extension_name_as_c_str() == Ok(ash::ext::memory_budget::NAME)
    };
    Ok(extensions.iter().any(is_it))
}

/// Whether a family of queues can do all that a device does: copy and fill, and bind memory piece by piece if `sparse`.
pub fn is_fit(family: &vk::QueueFamilyProperties, sparse: bool) -> bool {
    // Families that draw or compute can copy, whether they say so or not.
    let copies = vk::QueueFlags::TRANSFER | vk::QueueFlags::COMPUTE | vk::QueueFlags::GRAPHICS;
    let binds = family.queue_flags.contains(vk::QueueFlags::SPARSE_BINDING);
    (binds || !sparse) && family.queue_flags.intersects(copies)
}

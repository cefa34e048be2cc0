//! Vulkan devices, by the loader.

use serde::{Deserialize, Serialize};
use tilework_vulkan::ash::vk;
use tilework_vulkan::{Physical, VulkanError};

use super::found::Found;
use crate::units;

/// What there is to tell of a device beyond its capabilities.
#[derive(Serialize, Deserialize)]
pub struct Details {
    /// What it is: "discrete GPU", "CPU" and so on.
    kind: String,
    /// The Vulkan it speaks, such as "1.4.305".
    vulkan_version: String,
    /// Its driver's name and version, in its own words.
    driver: String,
    /// The features that matter, by their names in Vulkan.
    features: Vec<Feature>,
    queue_families: Vec<Family>,
    /// The most address space of all sparse buffers together, bytes.
    sparse_address_space_bytes: u64,
    /// How many pieces of physical memory there may be at once.
    memory_allocations: u64,
    /// Whether it tells what memory is left (`VK_EXT_memory_budget`).
    memory_budget: bool,
}

#[derive(Serialize, Deserialize)]
struct Feature {
    name: String,
    has: bool,
}

#[derive(Serialize, Deserialize)]
struct Family {
    queues: u32,
    /// What they do: "graphics", "compute", "transfer", "sparse binding".
    does: Vec<String>,
}

impl Details {
    fn of(physical: &Physical) -> Details {
        let (major, minor, patch) = physical.version;
        Details {
            kind: kind(physical.kind).to_owned(),
            vulkan_version: format!("{major}.{minor}.{patch}"),
            driver: physical.driver.clone(),
            features: physical
                .features
                .iter()
                .map(|&(name, has)| Feature { name: name.to_owned(), has })
                .collect(),
            queue_families: physical.families.iter().map(Family::of).collect(),
            sparse_address_space_bytes: physical.address_space,
            memory_allocations: physical.allocations,
            memory_budget: physical.tells_budget,
        }
    }

    /// The lines to print.
    pub fn lines(&self) -> Vec<String> {
        let yes = |has| if has { "yes" } else { "no" };
        let features: Vec<_> =
            self.features.iter().map(|feature| format!("{} {}", feature.name, yes(feature.has))).collect();
        let families: Vec<_> =
            self.queue_families.iter().map(|f| format!("{} ({})", f.queues, f.does.join(", "))).collect();
        vec![
            format!("{}, Vulkan {}, driver {}", self.kind, self.vulkan_version, self.driver),
            format!("features: {}, VK_EXT_memory_budget {}", features.join(", "), yes(self.memory_budget)),
            format!("queues of each family: {}", families.join("; ")),
            format!(
                "address space of sparse buffers: {}; pieces of memory at once: {}",
                units::bytes(self.sparse_address_space_bytes),
                match self.memory_allocations {
                    // What drivers without such a limit say.
                    count if count >= u32::MAX.into() => "any number".to_owned(),
                    count => units::count(count),
                }
            ),
        ]
    }
}

impl Family {
    fn of(family: &vk::QueueFamilyProperties) -> Family {
        let does = [
            (vk::QueueFlags::GRAPHICS, "graphics"),
            (vk::QueueFlags::COMPUTE, "compute"),
            (vk::QueueFlags::TRANSFER, "transfer"),
            (vk::QueueFlags::SPARSE_BINDING, "sparse binding"),
        ];
        let does = does.into_iter().filter(|(flag, _)| family.queue_flags.contains(*flag));
        Family { queues: family.queue_count, does: does.map(|(_, name)| name.to_owned()).collect() }
    }
}

fn kind(kind: vk::PhysicalDeviceType) -> &'static str {
    match kind {
        vk::PhysicalDeviceType::DISCRETE_GPU => "discrete GPU",
        vk::PhysicalDeviceType::INTEGRATED_GPU => "integrated GPU",
        vk::PhysicalDeviceType::VIRTUAL_GPU => "virtual GPU",
        vk::PhysicalDeviceType::CPU => "CPU",
        _ => "something else",
    }
}

/// Every device that the loader finds, or why there is none.
pub fn find() -> Vec<Found> {
    match tilework_vulkan::list() {
        Ok(all) => (0..).zip(&all).map(|(index, physical)| look(index, physical)).collect(),
        Err(error) => vec![Found::broken("vulkan", "", &error, fix(&error))],
    }
}

fn look(index: u32, physical: &Physical) -> Found {
    let opened = match &physical.unfit {
        Some(error) => Err(error.clone()),
        None => tilework_vulkan::open(index),
    };
    let mut found = match opened {
        Ok(device) => {
            let mut found = Found::working(&*device, &physical.name);
            if !device.caps().tiling {
                let fix = "nothing needs to be done; mapping tiles takes sparse buffers, which a later driver may have: on \
                           the CPU Mesa's lavapipe from 25.0 on (in Debian 12's backports)";
                found.fix = Some(fix.to_owned());
            }
            found
        }
        Err(error) => {
            let name = if index == 0 { "vulkan".to_owned() } else { format!("vulkan:{index}") };
            Found {
                total_bytes: Some(physical.total_bytes),
                ..Found::broken(name, &physical.name, &error, fix(&error))
            }
        }
    };
    found.vulkan = Some(Details::of(physical));
    found
}

/// What to do about an error.
fn fix(error: &VulkanError) -> String {
    let fix = match error {
        VulkanError::NoLoader { .. } => {
            "install the Vulkan loader (libvulkan1 on Debian, vulkan-loader elsewhere)"
        }
        VulkanError::NoDevice => {
            // The loader's own variables, which hide every other driver.
            for variable in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
                if std::env::var_os(variable).is_some() {
                    return format!(
                        "unset {variable}, which names the only drivers that the loader looks at"
                    );
                }
            }
            "install a driver: NVIDIA's own, or mesa-vulkan-drivers on Debian for AMD and Intel GPUs and for the CPU"
        }
        VulkanError::TooOld { .. } => "update the driver, and the loader with it, to Vulkan 1.2 or later",
        VulkanError::Lacks { .. } | VulkanError::NoQueue { .. } | VulkanError::Unusable { .. } => {
            "use another device, or update the driver"
        }
        _ => "see what vulkaninfo and the kernel's log (dmesg) say of the device",
    };
    fix.to_owned()
}

//! What can go wrong with Vulkan, and how a device tells it.

use ash::vk;
use tilework::device::{Call, DeviceError};

/// Why a Vulkan device cannot be used, or what its driver answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VulkanError {
    /// The loader's library could not be loaded.
    #[error("no Vulkan loader was found: {reason}; install it (libvulkan1 on Debian), or use another device")]
    NoLoader {
        /// What the system's loader said.
        reason: String,
    },
    /// The loader works and finds no device.
    #[error(
        "the Vulkan loader found no device: install a driver (mesa-vulkan-drivers on Debian) and check vulkaninfo"
    )]
    NoDevice,
    /// There are devices, but not this one.
    #[error("there is no Vulkan device {index}: the loader has {count}, counted from 0")]
    NoSuchDevice {
        /// Which was asked for.
        index: u32,
        /// How many there are.
        count: u32,
    },
    /// The loader or the device speaks an older Vulkan.
    #[error("{what} speaks Vulkan {major}.{minor}; 1.2 or later is needed")]
    TooOld {
        /// The loader, or the device's name.
        what: String,
        /// What it speaks.
        major: u32,
        /// What it speaks.
        minor: u32,
    },
    /// The device lacks a feature.
    #[error("{name} cannot be used: it lacks {feature}; use another device")]
    Lacks {
        /// The device's name.
        name: String,
        /// The feature's name in `VkPhysicalDeviceFeatures` or its extensions.
        feature: &'static str,
    },
    /// No queue, or not the one that was given, can do what is needed.
    #[error(
        "{what} can not copy, or not bind sparse memory where the device has it; use a queue of a family that can"
    )]
    NoQueue {
        /// The family that was given, or all of the device's.
        what: String,
    },
    /// The device's buffers ask for something that this crate has no answer to.
    #[error("{name} has buffers that cannot be used: {reason}")]
    Unusable {
        /// The device's name.
        name: String,
        /// What does not fit.
        reason: String,
    },
    /// A limit of the device would be exceeded.
    #[error("{limit} of the device is {most}, which this would exceed")]
    Limit {
        /// The limit's name in Vulkan.
        limit: &'static str,
        /// Its value.
        most: u64,
    },
    /// The driver refused a call.
    #[error("{function}: {code:?}")]
    Refused {
        /// The driver's function.
        function: &'static str,
        /// What it returned.
        code: vk::Result,
    },
}

/// The limit of how many pieces of memory there may be at once.
pub(crate) const PIECES: &str = "maxMemoryAllocationCount";

impl VulkanError {
    /// True when the driver had no memory, its own or the host's, or will not have it in more pieces: what is given back
    /// makes room for either.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        match self {
            VulkanError::Refused { code, .. } => matches!(
                *code,
                vk::Result::ERROR_OUT_OF_DEVICE_MEMORY
                    | vk::Result::ERROR_OUT_OF_HOST_MEMORY
                    | vk::Result::ERROR_TOO_MANY_OBJECTS
            ),
            VulkanError::Limit { limit, .. } => *limit == PIECES,
            _ => false,
        }
    }

    /// As the failure of a device's call.
    pub(crate) fn failed(self, call: Call) -> DeviceError {
        DeviceError::Failed { call, reason: self.to_string() }
    }

    /// As the failure of a device's call that takes physical memory for `bytes`.
    pub(crate) fn failed_for(self, call: Call, bytes: u64) -> DeviceError {
        if !self.is_out_of_memory() {
            return self.failed(call);
        }
        if let VulkanError::Limit { .. } = self {
            // Which the error itself has no room for.
            tracing::warn!(error = %self, "memory in longer heaps would do");
        }
        DeviceError::OutOfMemory { bytes }
    }
}

/// Names the function whose answer this is.
pub(crate) fn answer<T>(function: &'static str, result: Result<T, vk::Result>) -> Result<T, VulkanError> {
    result.map_err(|code| VulkanError::Refused { function, code })
}

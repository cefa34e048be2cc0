//! Vulkan devices with sparse buffers as a Tilework device: `vulkan`, and `vulkan:1` and so on where there are several.
//!
//! ```text
//!   device   Vulkan: a range is a sparse buffer, a heap a piece of device memory, mapping a bind on the queue
//!   view     View: what the program keeps; addresses to buffers, the order of binds and submissions
//!      │
//!   staging  bytes to the device and back
//!   order    one timeline semaphore: each thing queued waits for the one before it
//!      │
//!   gpu      one logical device and its queue; the objects made on it, counted
//!   abilities, own  what a physical device can do; instance and device of our own
//!   usage    what memory is for, and which type that takes
//!   list     every physical device there is, fit or not
//! ```
//!
//! Nothing of Vulkan is needed to build this crate or a program that uses it: a missing loader is an error of
//! [`open`].
//!
//! ```no_run
//! use tilework::manager::{Kind, Options, Stream, build};
//! use tilework_vulkan::Vulkan;
//!
//! let device = Vulkan::open(0)?;
//! let view = device.view();
//! let mut manager = build(Kind::Tiled, Box::new(device), &Options::default())?.manager;
//! let block = manager.alloc(3 << 20, Stream(0))?;
//! let place = view.find(block.address).expect("an allocated block has a place");
//! let (timeline, value) = view.ready(); // a submission that uses place.buffer waits for this
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod abilities;
mod device;
mod error;
mod gpu;
mod list;
mod order;
mod own;
mod staging;
mod usage;
mod view;

use tilework::device::Device;

pub use ash;

pub use self::device::Vulkan;
pub use self::error::VulkanError;
pub use self::gpu::{Live, Parts, Queue};
pub use self::list::{Physical, list};
pub use self::usage::MemoryUsage;
pub use self::view::{Slice, View};

/// The index of the device that a name means: 0 for `vulkan`, N for `vulkan:N`. `None` when the name is not one of a
/// Vulkan device.
pub fn index(name: &str) -> Option<u32> {
    match name.strip_prefix("vulkan")? {
        "" => Some(0),
        rest => rest.strip_prefix(':')?.parse().ok(),
    }
}

/// Opens the Vulkan device with this index, counted from 0 as the loader counts them.
///
/// # Errors
/// As [`Vulkan::open`].
pub fn open(index: u32) -> Result<Box<dyn Device>, VulkanError> {
    Ok(Box::new(Vulkan::open(index)?))
}

#[cfg(test)]
mod tests;

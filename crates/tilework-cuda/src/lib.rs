//! NVIDIA GPUs as a Tilework device: `cuda`, and `cuda:1` and so on where there are several.
//!
//! ```text
//!   device   Cuda: heaps are physical handles, mapped whole into reserved address space
//!            Plain: the fallback on GPUs that cannot map; a range is one cuMemAlloc
//!   streams  CudaStreams: order between streams, by events
//!      │
//!   gpu      one GPU's primary context; entering and leaving it around every call
//!      │
//!   driver   the driver's functions, found at run time in libcuda.so.1 or nvcuda.dll
//! ```
//!
//! Nothing of CUDA is needed to build this crate or a program that uses it: a missing or old driver is
//! an error of [`open`].
//!
//! ```no_run
//! use tilework::manager::{Kind, Options, build};
//!
//! let device = tilework_cuda::open(0)?;
//! let manager = build(Kind::Tiled, device, &Options::default());
//! # Ok::<(), tilework_cuda::CudaError>(())
//! ```

pub mod device;
pub mod driver;
mod error;
#[cfg(all(target_os = "linux", any(test, feature = "testing")))]
pub mod fake;
pub mod gpu;
pub mod streams;

use tilework::device::Device;

pub use self::error::CudaError;
use crate::device::{Cuda, Plain};
use crate::driver::Driver;
use crate::gpu::Gpu;

/// The ordinal of the GPU that a device's name means: 0 for `cuda`, N for `cuda:N`. `None` when the name
/// is not one of a GPU.
pub fn ordinal(name: &str) -> Option<u32> {
    match name.strip_prefix("cuda")? {
        "" => Some(0),
        rest => rest.strip_prefix(':')?.parse().ok(),
    }
}

/// Opens the GPU with this ordinal, counted from 0 as the driver counts them, as a device.
///
/// A GPU without virtual memory management becomes a device without
/// [tiling](tilework::device::Caps::tiling).
///
/// # Errors
/// When there is no driver, or one too old; when there is no such GPU; when the driver refuses.
pub fn open(ordinal: u32) -> Result<Box<dyn Device>, CudaError> {
    open_on(Gpu::open(Driver::load()?, ordinal)?)
}

/// Makes the device that `gpu` can be.
///
/// # Errors
/// When the driver refuses.
pub fn open_on(gpu: Gpu) -> Result<Box<dyn Device>, CudaError> {
    if gpu.maps_memory() { Ok(Box::new(Cuda::new(gpu)?)) } else { Ok(Box::new(Plain::new(gpu))) }
}

#[cfg(test)]
mod tests;

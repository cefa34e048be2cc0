//! A shared manager by the name of its device.

use tilework::device::Device;
use tilework::manager::{Choice, Kind, Options};
use tilework::shared::Shared;
use tilework::shared::streams::{InOrder, Streams};
use tilework_cuda::driver::Driver;
use tilework_cuda::gpu::Gpu;
use tilework_cuda::streams::CudaStreams;

use crate::call::{Failure, Result, TileworkStatus};

/// What a manager is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The device's name; `None` where none was given.
    pub device: Option<String>,
    /// Who serves.
    pub choice: Choice,
    /// How.
    pub options: Options,
    /// The most that may be held, bytes.
    pub limit: Option<u64>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { device: None, choice: Choice::Auto, options: Options::default(), limit: None }
    }
}

/// Whether there can be such a manager.
pub fn check(settings: &Settings) -> Result<()> {
    if !matches!(settings.choice, Choice::Auto | Choice::Of(Kind::Tiled | Kind::Placed)) {
        let text =
            format!("{} does not serve threads and streams: auto, tiled and placed do", settings.choice);
        return Err(Failure::new(TileworkStatus::Unsupported, text));
    }
    Ok(())
}

/// A manager on the device called `device`.
pub fn shared(device: &str, settings: &Settings) -> Result<Shared> {
    check(settings)?;
    let (device, streams) = open(device)?;
    let shared = over(device, streams, settings)?;
    shared.set_limit(settings.limit)?;
    Ok(shared)
}

/// A manager over a device.
pub fn over(device: Box<dyn Device>, streams: Box<dyn Streams>, settings: &Settings) -> Result<Shared> {
    let front = if settings.choice == Choice::Of(Kind::Placed) { Shared::placed } else { Shared::new };
    Ok(front(device, streams, &settings.options)?)
}

/// The GPU with this ordinal, for what is not done through a device.
pub fn gpu(ordinal: u32) -> Result<Gpu> {
    let gpu = Driver::load().and_then(|driver| Gpu::open(driver, ordinal));
    gpu.map_err(|e| Failure::new(TileworkStatus::DeviceFailed, e.to_string()))
}

fn open(name: &str) -> Result<(Box<dyn Device>, Box<dyn Streams>)> {
    let failed = |text: String| Failure::new(TileworkStatus::DeviceFailed, text);
    match tilework_cuda::ordinal(name) {
        Some(ordinal) => {
            let gpu = gpu(ordinal)?;
            let device = tilework_cuda::open(ordinal).map_err(|e| failed(e.to_string()))?;
            Ok((device, Box::new(CudaStreams::new(gpu))))
        }
        None if tilework::device::NAMES.contains(&name) => {
            Ok((tilework::device::open(name).map_err(|e| failed(e.to_string()))?, Box::new(InOrder)))
        }
        // Memory is unmapped in the order of a queue: the program has to have it.
        None if tilework_vulkan::index(name).is_some() => Err(own(name, "tilework_create_on_vulkan")),
        None if tilework_d3d12::index(name).is_some() => {
            Err(own(name, "tilework_create_on_d3d12, which the library for Windows has"))
        }
        None => {
            let known = tilework::device::NAMES.join(", ");
            let text = format!("unknown device {name:?}: the devices are {known}, cuda and cuda:N");
            Err(Failure::argument(text))
        }
    }
}

/// A device that cannot be opened by its name.
fn own(name: &str, create: &str) -> Failure {
    let text = format!("{name} is the program's own to open: use {create}");
    Failure::new(TileworkStatus::Unsupported, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_opened_is_named() {
        for (name, status, says) in [
            ("vulkan:1", TileworkStatus::Unsupported, "use tilework_create_on_vulkan"),
            ("d3d12", TileworkStatus::Unsupported, "use tilework_create_on_d3d12"),
            ("vulkan:x", TileworkStatus::InvalidArgument, "unknown device \"vulkan:x\""),
        ] {
            let Err(failure) = shared(name, &Settings::default()) else { panic!("{name} was opened") };
            assert_eq!(failure.status, status);
            assert!(failure.text.contains(says), "{}", failure.text);
        }
    }
}

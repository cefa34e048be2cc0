//! Devices by name.

use super::null::Null;
use super::sim::Sim;
use super::{Device, DeviceError};

/// The names [`open`] knows, on every system.
pub const NAMES: [&str; 4] = ["host", "sim-h200", "sim-d3d12", "null"];

/// Why a device could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No device has this name.
    #[error("unknown device {name:?}: the devices are {}", NAMES.join(", "))]
    Unknown {
        /// The name that was asked for.
        name: String,
    },
    /// The device does not exist on this system.
    #[error("device {name:?} needs {needs}, which this system is not")]
    Unsupported {
        /// The name that was asked for.
        name: &'static str,
        /// The system it exists on.
        needs: &'static str,
    },
    /// The device exists but could not be started.
    #[error("device {name:?} could not be started: {cause}")]
    Start {
        /// The name that was asked for.
        name: &'static str,
        /// What went wrong.
        #[source]
        cause: DeviceError,
    },
}

/// Opens the device called `name`, one of [`NAMES`].
///
/// # Errors
/// When there is no such device, here or anywhere, or the system refuses to start it.
pub fn open(name: &str) -> Result<Box<dyn Device>, OpenError> {
    match name {
        "host" => open_host(),
        "sim-h200" => Ok(Box::new(Sim::h200())),
        "sim-d3d12" => Ok(Box::new(Sim::d3d12())),
        "null" => Ok(Box::new(Null::new())),
        _ => Err(OpenError::Unknown { name: name.into() }),
    }
}

#[cfg(target_os = "linux")]
fn open_host() -> Result<Box<dyn Device>, OpenError> {
    match super::host::Host::new() {
        Ok(host) => Ok(Box::new(host)),
        Err(cause) => Err(OpenError::Start { name: "host", cause }),
    }
}

#[cfg(not(target_os = "linux"))]
fn open_host() -> Result<Box<dyn Device>, OpenError> {
    Err(OpenError::Unsupported { name: "host", needs: "Linux" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_opens_the_device_of_that_name() {
        for name in NAMES {
            if name == "host" && !cfg!(target_os = "linux") {
                continue;
            }
            assert_eq!(open(name).unwrap().name(), name);
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = open("cuda").map(|_| ()).unwrap_err().to_string();
        assert_eq!(message, "unknown device \"cuda\": the devices are host, sim-h200, sim-d3d12, null");
    }
}

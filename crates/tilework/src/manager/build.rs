//! A manager by its kind, with the fallback for devices that lack what it needs.

use crate::device::Device;
use crate::error::Result;
use crate::manager::bucketized::Bucketized;
use crate::manager::committed::Committed;
use crate::manager::pool::Pool;
use crate::manager::{Choice, Kind, Manager, Options, Serving};

/// A manager ready for use.
pub struct Built {
    /// The manager. Its [`kind`](Manager::kind) is the one that serves.
    pub manager: Box<dyn Manager>,
    /// Which that is, and why.
    pub serving: Serving,
}

/// Makes a manager over `device`, which nothing was taken from yet. `choice` is a [`Kind`] or a [`Choice`].
///
/// [`Choice::serving`] tells which kind serves; it and the reason are in [`Built::serving`] and in the log. `tiled` on
/// a device without [tiling](crate::device::Caps::tiling) becomes `placed`, and the log has a warning.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) when the device refuses what the manager takes at its start.
pub fn build(choice: impl Into<Choice>, device: Box<dyn Device>, options: &Options) -> Result<Built> {
    let serving = choice.into().serving(&*device);
    serving.log();
    let manager: Box<dyn Manager> = match serving.kind {
        Kind::Tiled => Box::new(Pool::tiled(device, options)),
        Kind::Placed => Box::new(Pool::placed(device, options)),
        Kind::Bucketized => Box::new(Bucketized::new(device, options.rounding)),
        Kind::Committed => Box::new(Committed::new(device)),
    };
    Ok(Built { manager, serving })
}

#[cfg(test)]
mod tests;

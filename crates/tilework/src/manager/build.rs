//! A manager by its kind, with the fallback for devices that lack what it needs.

use crate::device::Device;
use crate::error::Result;
use crate::manager::bucketized::Bucketized;
use crate::manager::committed::Committed;
use crate::manager::pool::Pool;
use crate::manager::{Kind, Manager, Options};

/// A manager ready for use.
pub struct Built {
    /// The manager. Its [`kind`](Manager::kind) is the one that serves.
    pub manager: Box<dyn Manager>,
    /// When another kind serves than was asked for: one sentence that says which and why, for reports.
    pub fallback: Option<String>,
}

/// Makes a manager of `kind` over `device`, which nothing was taken from yet.
///
/// `tiled` on a device without [tiling](crate::device::Caps::tiling) becomes `placed`, with one warning in
/// the log and the same sentence in [`Built::fallback`].
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) when the device refuses what the manager takes at its start.
pub fn build(kind: Kind, device: Box<dyn Device>, options: &Options) -> Result<Built> {
    let (serving, fallback) = serving(kind, &*device);
    if let Some(sentence) = &fallback {
        tracing::warn!("{sentence}");
    }
    let manager: Box<dyn Manager> = match serving {
        Kind::Tiled => Box::new(Pool::tiled(device, options)),
        Kind::Placed => Box::new(Pool::placed(device, options)),
        Kind::Bucketized => Box::new(Bucketized::new(device, options.rounding)),
        Kind::Committed => Box::new(Committed::new(device)),
    };
    Ok(Built { manager, fallback })
}

/// The kind that serves when `kind` is asked for on `device`, and why if it is another.
pub(crate) fn serving(kind: Kind, device: &dyn Device) -> (Kind, Option<String>) {
    if kind == Kind::Tiled && !device.caps().tiling {
        let sentence = format!(
            "the device {} cannot map tiles: the manager {} serves in place of {kind}",
            device.name(),
            Kind::Placed,
        );
        return (Kind::Placed, Some(sentence));
    }
    (kind, None)
}

#[cfg(test)]
mod tests;

//! Which manager is to serve: one by its name, or the one that suits the device.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::device::{Caps, Device};
use crate::manager::Kind;

/// What is asked for where a manager is chosen by name.
///
/// `auto` takes the best kind that the device can serve: the safe default. Of the devices there are:
///
/// | device | `auto` takes | why |
/// |---|---|---|
/// | `host`, `sim-h200`, `sim-d3d12`, `null` | `tiled` | they map tiles |
/// | `cuda` | `tiled` | where the GPU has virtual memory management |
/// | | `placed` | where it has not |
/// | `vulkan` | `tiled` | where the device has sparse buffers |
/// | | `placed` | where it has none |
/// | `d3d12` | `tiled` | where the adapter has tiled resources |
/// | | `placed` | where it has none: in placed buffers, or in committed ones |
///
/// The rule is that of [`serving`](Choice::serving), and knows capabilities only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Choice {
    /// The best that the device can serve.
    #[default]
    Auto,
    /// This one, or what takes its place where the device cannot serve it.
    Of(Kind),
}

/// Which kind serves, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// The kind.
    pub kind: Kind,
    /// One sentence, for reports and logs.
    pub why: String,
    /// Whether it takes the place of the kind that was asked for, by [`Choice::Auto`] of the best there is.
    pub fell_back: bool,
}

impl Choice {
    /// The kind that serves on `device`.
    ///
    /// [`Choice::Auto`] asks for `tiled`. Where the device lacks what a kind needs another takes its place: of `tiled`,
    /// which needs [`Caps::tiling`], `placed` does.
    pub fn serving(self, device: &dyn Device) -> Serving {
        let asked = match self {
            Choice::Auto => Kind::Tiled,
            Choice::Of(kind) => kind,
        };
        let mut kind = asked;
        let mut lacking = Vec::new();
        while let Some((lack, instead)) = lack(kind, device.caps()) {
            lacking.push(lack);
            kind = instead;
        }
        let name = device.name();
        let why = match asked {
            _ if !lacking.is_empty() => {
                let lacking = lacking.join(" nor ");
                format!("the device {name} cannot {lacking}: the manager {kind} serves in place of {asked}")
            }
            Kind::Tiled => format!("{kind} serves, since the device {name} maps tiles"),
            _ => format!("{kind} serves, since it was asked for"),
        };
        Serving { kind, why, fell_back: kind != asked }
    }
}

/// The log's target of what is said about who serves, for programs that want to hear it apart.
const LOG: &str = "tilework::serving";

impl Serving {
    /// The sentence, if another kind serves than was asked for.
    pub fn fallback(&self) -> Option<&str> {
        self.fell_back.then_some(&*self.why)
    }

    /// Writes it to the log: a warning after a fall-back, information otherwise.
    pub(crate) fn log(&self) {
        match self.fell_back {
            true => tracing::warn!(target: LOG, "{}", self.why),
            false => tracing::info!(target: LOG, "{}", self.why),
        }
    }
}

/// What a device lacks for a kind, as in "the device cannot …", and the kind that takes its place.
fn lack(kind: Kind, caps: &Caps) -> Option<(&'static str, Kind)> {
    match kind {
        Kind::Tiled if !caps.tiling => Some(("map tiles", Kind::Placed)),
        // Here is the place for devices whose heaps serve one block each: `placed` gives way to `committed` there.
        _ => None,
    }
}

impl From<Kind> for Choice {
    fn from(kind: Kind) -> Choice {
        Choice::Of(kind)
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Auto => f.pad("auto"),
            Choice::Of(kind) => kind.fmt(f),
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(name: &str) -> Result<Choice, String> {
        match name {
            "auto" => Ok(Choice::Auto),
            _ => name.parse().map(Choice::Of).map_err(|error: String| error + "; or auto, which chooses"),
        }
    }
}

#[cfg(test)]
mod tests;

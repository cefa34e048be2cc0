//! A device as the doctor sees it.

use serde::{Deserialize, Serialize};
use tilework::device::{Caps, Device};
use tilework::manager::{Choice, Kind, Serving};

use super::{cuda, d3d12, vulkan};

/// A device, there or not.
#[derive(Serialize, Deserialize)]
pub struct Found {
    /// The name it is chosen by.
    pub name: String,
    /// What it is, such as "NVIDIA H200"; empty where nothing was found.
    pub what: String,
    /// Whether it opened.
    pub works: bool,
    /// Why it did not.
    pub problem: Option<String>,
    /// What there is to do about that, or about what it lacks.
    pub fix: Option<String>,
    pub capabilities: Option<Capabilities>,
    /// The memory it has, bytes.
    pub total_bytes: Option<u64>,
    /// What is free of it.
    pub free_bytes: Option<u64>,
    pub auto: Option<Auto>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda: Option<cuda::Details>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vulkan: Option<vulkan::Details>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d3d12: Option<d3d12::Details>,
}

/// What `auto` takes.
#[derive(Serialize, Deserialize)]
pub struct Auto {
    pub manager: Kind,
    pub why: String,
}

/// What a device can do; see [`Caps`].
#[derive(Serialize, Deserialize)]
pub struct Capabilities {
    pub tier: Tier,
    pub tile_bytes: u64,
    pub tiling: bool,
    pub partial_maps: bool,
    pub needs_access: bool,
    pub longest_range_bytes: u64,
    pub memory: bool,
    pub host_heaps: bool,
}

/// How physical memory and address space meet.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Any part of a heap maps to any range.
    Tiles,
    /// Heaps map whole, each a tile of its own size.
    Heaps,
    /// Nothing maps: a heap has one place.
    None,
}

impl Tier {
    pub fn name(self) -> &'static str {
        match self {
            Tier::Tiles => "tiles",
            Tier::Heaps => "whole heaps",
            Tier::None => "none",
        }
    }
}

impl Capabilities {
    fn of(caps: &Caps) -> Capabilities {
        Capabilities {
            tier: match (caps.tiling, caps.partial_maps) {
                (true, true) => Tier::Tiles,
                (true, false) => Tier::Heaps,
                (false, _) => Tier::None,
            },
            tile_bytes: caps.tile_bytes,
            tiling: caps.tiling,
            partial_maps: caps.partial_maps,
            needs_access: caps.needs_access,
            longest_range_bytes: caps.max_range_bytes,
            memory: caps.memory,
            host_heaps: caps.host_heaps,
        }
    }
}

impl Found {
    /// A device that opened.
    pub fn working(device: &dyn Device, what: impl Into<String>) -> Found {
        let caps = device.caps();
        let Serving { kind, why, .. } = Choice::Auto.serving(device);
        Found {
            name: device.name().to_owned(),
            what: what.into(),
            works: true,
            problem: None,
            fix: None,
            capabilities: Some(Capabilities::of(caps)),
            total_bytes: caps.capacity_bytes,
            free_bytes: device.free_bytes(),
            auto: Some(Auto { manager: kind, why }),
            cuda: None,
            vulkan: None,
            d3d12: None,
        }
    }

    /// One that did not.
    pub fn broken(
        name: impl Into<String>,
        what: impl Into<String>,
        problem: impl ToString,
        fix: impl Into<String>,
    ) -> Found {
        Found {
            name: name.into(),
            what: what.into(),
            works: false,
            problem: Some(problem.to_string()),
            fix: Some(fix.into()),
            capabilities: None,
            total_bytes: None,
            free_bytes: None,
            auto: None,
            cuda: None,
            vulkan: None,
            d3d12: None,
        }
    }
}

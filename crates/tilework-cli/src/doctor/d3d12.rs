//! Direct3D 12 adapters, by DXGI.

use serde::{Deserialize, Serialize};
use tilework_d3d12::{Choice, D3d12Error};

use super::found::Found;

/// What there is to tell of an adapter beyond its capabilities.
#[derive(Serialize, Deserialize)]
pub struct Details {
    /// Its `TiledResourcesTier`, 0 to 4.
    tiled_resources_tier: u8,
    /// What its memory is made of: "reserved buffers", "placed buffers" or "committed buffers".
    backing: String,
    /// Why.
    reason: String,
}

impl Details {
    fn of(choice: &Choice) -> Details {
        Details {
            tiled_resources_tier: choice.tier,
            backing: choice.backing.to_string(),
            reason: choice.reason.clone(),
        }
    }

    /// The lines to print.
    pub fn lines(&self) -> Vec<String> {
        vec![format!(
            "TiledResourcesTier {}, its memory in {}: {}",
            self.tiled_resources_tier, self.backing, self.reason
        )]
    }
}

/// Every adapter, or why there is none.
pub fn find() -> Vec<Found> {
    match tilework_d3d12::list() {
        Ok(all) => all.iter().map(look).collect(),
        Err(error) => vec![Found::broken("d3d12", "", &error, fix(&error))],
    }
}

fn look(adapter: &tilework_d3d12::Found) -> Found {
    let opened = adapter.choice.clone().and_then(|choice| {
        let device = tilework_d3d12::open(adapter.index)?;
        Ok(Found { d3d12: Some(Details::of(&choice)), ..Found::working(&*device, &adapter.name) })
    });
    let mut found = opened.unwrap_or_else(|error| {
        let name = match adapter.index {
            0 => "d3d12".to_owned(),
            index => format!("d3d12:{index}"),
        };
        Found::broken(name, &adapter.name, &error, fix(&error))
    });
    if found.total_bytes.is_none() {
        found.total_bytes = (adapter.memory_bytes > 0).then_some(adapter.memory_bytes);
    }
    found
}

/// What to do about an error.
fn fix(error: &D3d12Error) -> &'static str {
    match error {
        D3d12Error::NotWindows { .. } => "use another device, such as vulkan",
        D3d12Error::NoAdapter => "install a graphics driver",
        _ => "update the graphics driver, or use another device",
    }
}

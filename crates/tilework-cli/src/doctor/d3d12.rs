//! Direct3D 12 adapters, by DXGI.

use serde::{Deserialize, Serialize};
use tilework_d3d12::D3d12Error;

use super::found::Found;

/// What there is to tell of an adapter beyond its capabilities.
#[derive(Serialize, Deserialize)]
pub struct Details {
    /// Its `TiledResourcesTier`, 0 to 4.
    tiled_resources_tier: u8,
    /// What ranges and heaps are made of.
    backing: String,
    /// Why.
    reason: String,
}

impl Details {
    /// The lines to print.
    pub fn lines(&self) -> Vec<String> {
        vec![format!("TiledResourcesTier {}; {}: {}", self.tiled_resources_tier, self.backing, self.reason)]
    }
}

/// Every adapter that DXGI finds, or why there is none. None anywhere but on Windows.
pub fn find() -> Vec<Found> {
    match tilework_d3d12::list() {
        Err(D3d12Error::NotWindows { .. }) => Vec::new(),
        Ok(adapters) if adapters.is_empty() => {
            vec![Found::broken("d3d12", "", "DXGI finds no adapter", FIX)]
        }
        Ok(adapters) => adapters.into_iter().map(look).collect(),
        Err(error) => vec![Found::broken("d3d12", "", &error, FIX)],
    }
}

fn look(adapter: tilework_d3d12::Found) -> Found {
    let opened = adapter.choice.and_then(|choice| Ok((choice, tilework_d3d12::open(adapter.index)?)));
    match opened {
        Ok((choice, device)) => Found {
            d3d12: Some(Details {
                tiled_resources_tier: choice.tier,
                backing: choice.backing.to_string(),
                reason: choice.reason,
            }),
            ..Found::working(&*device, adapter.name)
        },
        Err(error) => {
            let name =
                if adapter.index == 0 { "d3d12".to_owned() } else { format!("d3d12:{}", adapter.index) };
            Found {
                total_bytes: (adapter.memory_bytes > 0).then_some(adapter.memory_bytes),
                ..Found::broken(name, adapter.name, &error, FIX)
            }
        }
    }
}

const FIX: &str = "install the driver of the GPU's maker, with Direct3D 12";

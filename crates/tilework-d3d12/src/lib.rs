//! Direct3D 12 devices as a Tilework device: `d3d12`, and `d3d12:1` and so on where there are several adapters.
//!
//! ```text
//!   device   D3d12: a range is a reserved buffer, a heap an ID3D12Heap, mapping a call on the queue;
//!            without tiled resources a heap is a placed or a committed buffer, and a range its name
//!   view     View: what the program keeps; addresses to buffers, order, residency
//!      │
//!   staging, zeros  bytes to the device and back; zeros for new memory, where they are needed
//!   order    one fence: what is given back goes once the queue has passed it
//!   state    books, buffers and heaps, which device and views share
//!      │
//!   gpu      one ID3D12Device and its queue; the objects made on it, counted
//!   adapters what DXGI finds
//!      ·
//!   choice, line, residency, tiles    what is decided and remembered, without a call of Direct3D
//! ```
//!
//! The crate builds everywhere. Where there is no Windows, [`open`] and [`list`] say so.
//!
#![cfg_attr(windows, doc = "```no_run")]
#![cfg_attr(not(windows), doc = "```ignore")]
//! use tilework::manager::{Kind, Options, Stream, build};
//! use tilework_d3d12::D3d12;
//!
//! let device = D3d12::open(0)?;
//! let view = device.view();
//! let mut manager = build(Kind::Tiled, Box::new(device), &Options::default())?.manager;
//! let block = manager.alloc(3 << 20, Stream(0))?;
//! let slice = view.find(block.address).expect("an allocated block has a place");
//! // Command lists name slice.resource and slice.offset, or slice.gpu_address.
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod choice;
mod error;
#[cfg(any(windows, test))]
mod line;
#[cfg(windows)]
mod native;
#[cfg(any(windows, test))]
mod residency;
#[cfg(any(windows, test))]
mod tiles;

use tilework::device::Device;

pub use self::choice::{Backing, Choice, Found};
pub use self::error::{D3d12Error, Hresult};
#[cfg(windows)]
pub use self::native::{D3d12, Held, Live, Parts, Slice, View, aliasing_barrier};
/// The crate whose interfaces [`Parts`] and [`Slice`] hold.
#[cfg(windows)]
pub use windows as bindings;

/// The index of the adapter that a device's name means: 0 for `d3d12`, N for `d3d12:N`. `None` when the name is not one
/// of a Direct3D 12 device.
pub fn index(name: &str) -> Option<u32> {
    match name.strip_prefix("d3d12")? {
        "" => Some(0),
        rest => rest.strip_prefix(':')?.parse().ok(),
    }
}

/// Opens the adapter with this index, counted from 0 as DXGI counts them, as a device.
///
/// One without tiled resources becomes a device without [tiling](tilework::device::Caps::tiling).
///
/// # Errors
/// When this is not Windows, there is no such adapter, or it is none of Direct3D 12; when the driver refuses.
pub fn open(index: u32) -> Result<Box<dyn Device>, D3d12Error> {
    #[cfg(windows)]
    return Ok(Box::new(D3d12::open(index)?));
    #[cfg(not(windows))]
    return Err(D3d12Error::NotWindows { index });
}

/// Every adapter that DXGI finds, by rising index, with what it would be as a device. Each is opened for it, and closed
/// again.
///
/// # Errors
/// When this is not Windows, or DXGI refuses. An adapter that refuses is told of in its [`Found::choice`].
pub fn list() -> Result<Vec<Found>, D3d12Error> {
    #[cfg(windows)]
    return native::list();
    #[cfg(not(windows))]
    return Err(D3d12Error::NotWindows { index: 0 });
}

#[cfg(test)]
mod tests;

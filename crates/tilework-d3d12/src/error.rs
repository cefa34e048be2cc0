//! What can go wrong with Direct3D 12.

use std::fmt;

/// A code that Direct3D returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hresult(pub i32);

impl Hresult {
    /// Neither the device nor the system had memory.
    pub const OUT_OF_MEMORY: Hresult = Hresult(0x8007_000e_u32 as i32);
    /// There is no such thing.
    pub const NOT_FOUND: Hresult = Hresult(0x887a_0002_u32 as i32);
    /// The device was removed, or its driver reset.
    pub const DEVICE_REMOVED: Hresult = Hresult(0x887a_0005_u32 as i32);
}

impl fmt::Display for Hresult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 as u32 {
            0x8000_4001 => "E_NOTIMPL",
            0x8000_4002 => "E_NOINTERFACE",
            0x8000_4005 => "E_FAIL",
            0x8007_000e => "E_OUTOFMEMORY",
            0x8007_0057 => "E_INVALIDARG",
            0x887a_0001 => "DXGI_ERROR_INVALID_CALL",
            0x887a_0002 => "DXGI_ERROR_NOT_FOUND",
            0x887a_0004 => "DXGI_ERROR_UNSUPPORTED",
            0x887a_0005 => "DXGI_ERROR_DEVICE_REMOVED",
            0x887a_0006 => "DXGI_ERROR_DEVICE_HUNG",
            0x887a_0007 => "DXGI_ERROR_DEVICE_RESET",
            0x887a_0020 => "DXGI_ERROR_DRIVER_INTERNAL_ERROR",
            code => return write!(f, "{code:#010x}"),
        };
        f.write_str(name)
    }
}

/// Why a Direct3D 12 device cannot be used, or what it answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum D3d12Error {
    /// This is not Windows.
    #[error(
        "there is no Direct3D 12 adapter {index}: this is not Windows; use another device, such as vulkan"
    )]
    NotWindows {
        /// Which was asked for.
        index: u32,
    },
    /// DXGI finds no adapter.
    #[error("DXGI found no adapter: install a graphics driver, or use another device")]
    NoAdapter,
    /// There are adapters, but not this one.
    #[error("there is no adapter {index}: DXGI has {count}, counted from 0")]
    NoSuchAdapter {
        /// Which was asked for.
        index: u32,
        /// How many there are.
        count: u32,
    },
    /// The adapter's driver knows no Direct3D 12.
    #[error(
        "{name} is no Direct3D 12 device of feature level 11_0 ({code}): update its driver, or use another"
    )]
    NotD3d12 {
        /// The adapter's name.
        name: String,
        /// What D3D12CreateDevice returned.
        code: Hresult,
    },
    /// The queue that was given cannot do what is needed.
    #[error("a queue of type {kind} cannot both map tiles and copy: use a direct or a compute queue")]
    WrongQueue {
        /// Its D3D12_COMMAND_LIST_TYPE.
        kind: i32,
    },
    /// No kind of buffer can be made.
    #[error("{name} makes neither reserved, placed nor committed buffers: {reason}")]
    Unusable {
        /// The adapter's name.
        name: String,
        /// What it answered.
        reason: String,
    },
    /// The device is gone, and with it all that was in it.
    #[error(
        "the Direct3D 12 device was removed ({reason}): its memory is lost; close what uses it and open it again"
    )]
    Removed {
        /// What GetDeviceRemovedReason says.
        reason: Hresult,
    },
    /// A call was refused.
    #[error("{function}: {code}")]
    Refused {
        /// The function.
        function: &'static str,
        /// What it returned.
        code: Hresult,
    },
}

impl D3d12Error {
    /// True when there was no memory, the device's or the system's.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, D3d12Error::Refused { code, .. } if *code == Hresult::OUT_OF_MEMORY)
    }
}

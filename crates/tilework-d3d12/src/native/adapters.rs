//! The adapters that DXGI finds, and devices made on them.

use windows::Win32::Graphics::Direct3D::D3D_FEATURE_LEVEL_11_0;
use windows::Win32::Graphics::Direct3D12::{
    D3D12_COMMAND_LIST_TYPE_DIRECT, D3D12_COMMAND_QUEUE_DESC, D3D12CreateDevice, ID3D12Device,
};
use windows::Win32::Graphics::Dxgi::{
    CreateDXGIFactory1, DXGI_ADAPTER_DESC1, IDXGIAdapter1, IDXGIAdapter3, IDXGIFactory1,
};
use windows::core::Interface;

use super::gpu::{Gpu, Parts, is_unified};
use super::{answer, made};
use crate::choice::Found;
use crate::error::{D3d12Error, Hresult};

/// What DXGI tells of an adapter.
pub struct Description {
    pub name: String,
    /// Its own memory, bytes.
    pub dedicated_bytes: u64,
    /// What it may use of the system's, bytes.
    pub shared_bytes: u64,
}

impl Description {
    pub fn of(adapter: &IDXGIAdapter1) -> Result<Description, D3d12Error> {
        // SAFETY: the adapter is alive, as every interface is while it is held; so in all calls of this module.
        let desc: DXGI_ADAPTER_DESC1 = answer("IDXGIAdapter1::GetDesc1", unsafe { adapter.GetDesc1() })?;
        let end = desc.Description.iter().position(|&unit| unit == 0).unwrap_or(desc.Description.len());
        Ok(Description {
            name: String::from_utf16_lossy(&desc.Description[..end]),
            dedicated_bytes: desc.DedicatedVideoMemory as u64,
            shared_bytes: desc.SharedSystemMemory as u64,
        })
    }

    /// The memory that buffers in default heaps may lie in, bytes, where it is told.
    pub fn memory_bytes(&self, unified: bool) -> Option<u64> {
        let bytes = self.dedicated_bytes + if unified { self.shared_bytes } else { 0 };
        (bytes > 0).then_some(bytes)
    }
}

/// All adapters, in DXGI's order.
fn adapters() -> Result<Vec<IDXGIAdapter1>, D3d12Error> {
    // SAFETY: no preconditions.
    let factory: IDXGIFactory1 = answer("CreateDXGIFactory1", unsafe { CreateDXGIFactory1() })?;
    let mut found = Vec::new();
    loop {
        // SAFETY: as above.
        match answer("IDXGIFactory1::EnumAdapters1", unsafe { factory.EnumAdapters1(found.len() as u32) }) {
            Ok(adapter) => found.push(adapter),
            Err(D3d12Error::Refused { code: Hresult::NOT_FOUND, .. }) => return Ok(found),
            Err(error) => return Err(error),
        }
    }
}

/// A device and a queue of our own on an adapter.
fn make(adapter: &IDXGIAdapter1, name: &str) -> Result<Parts, D3d12Error> {
    let mut device: Option<ID3D12Device> = None;
    // SAFETY: the pointer is to a place for an interface.
    let created = unsafe { D3D12CreateDevice(adapter, D3D_FEATURE_LEVEL_11_0, &mut device) };
    let device = made("D3D12CreateDevice", created, device).map_err(|error| match error {
        D3d12Error::Refused { code, .. } => D3d12Error::NotD3d12 { name: name.to_owned(), code },
        other => other,
    })?;
    let desc = D3D12_COMMAND_QUEUE_DESC { Type: D3D12_COMMAND_LIST_TYPE_DIRECT, ..Default::default() };
    // SAFETY: the description is valid for the call.
    let queue = answer("CreateCommandQueue", unsafe { device.CreateCommandQueue(&desc) })?;
    // Known since Windows 10; where it is not, nothing tells the budget.
    let adapter = adapter.cast::<IDXGIAdapter3>().ok();
    Ok(Parts { device, queue, adapter })
}

/// A device and a queue of our own on the adapter with this index.
pub fn open(index: u32) -> Result<Gpu, D3d12Error> {
    let adapters = adapters()?;
    let Some(adapter) = adapters.get(index as usize) else {
        let count = adapters.len() as u32;
        return Err(if count == 0 {
            D3d12Error::NoAdapter
        } else {
            D3d12Error::NoSuchAdapter { index, count }
        });
    };
    Gpu::new(make(adapter, &Description::of(adapter)?.name)?)
}

/// As [`crate::list`].
pub fn list() -> Result<Vec<Found>, D3d12Error> {
    let mut list = Vec::new();
    for (index, adapter) in adapters()?.iter().enumerate() {
        let description = Description::of(adapter)?;
        let parts = make(adapter, &description.name);
        let unified = parts.as_ref().is_ok_and(|parts| is_unified(&parts.device));
        list.push(Found {
            index: index as u32,
            memory_bytes: description.memory_bytes(unified).unwrap_or(0),
            choice: parts.and_then(Gpu::new).map(|gpu| gpu.choice.clone()),
            name: description.name,
        });
    }
    Ok(list)
}

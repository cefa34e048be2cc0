//! The device that the checks are for: one of Direct3D's for the process, and as many of ours as they ask for.

use std::sync::{Mutex, OnceLock};

use tilework::device::Device;
use tilework_d3d12::bindings::Win32::Graphics::Direct3D::D3D_FEATURE_LEVEL_11_0;
use tilework_d3d12::bindings::Win32::Graphics::Direct3D12::{
    D3D12_COMMAND_LIST_TYPE, D3D12_COMMAND_LIST_TYPE_DIRECT, D3D12_COMMAND_QUEUE_DESC, D3D12CreateDevice,
    ID3D12CommandQueue, ID3D12Device,
};
use tilework_d3d12::{Backing, D3d12, D3d12Error, Live, Parts, View};

/// Views of all devices that were made.
static VIEWS: Mutex<Vec<View>> = Mutex::new(Vec::new());

/// A device and a queue of Direct3D's, without an adapter: what is free changes under a check that looks twice.
pub fn parts() -> Parts {
    static PARTS: OnceLock<Parts> = OnceLock::new();
    PARTS
        .get_or_init(|| {
            let mut device: Option<ID3D12Device> = None;
            // SAFETY: the default adapter, and a place for an interface.
            unsafe { D3D12CreateDevice(None, D3D_FEATURE_LEVEL_11_0, &mut device) }
                .expect("a Direct3D 12 device");
            let device = device.expect("what was created");
            let queue = queue(&device, D3D12_COMMAND_LIST_TYPE_DIRECT);
            Parts { device, queue, adapter: None }
        })
        .clone()
}

/// A queue of this type.
pub fn queue(device: &ID3D12Device, kind: D3D12_COMMAND_LIST_TYPE) -> ID3D12CommandQueue {
    let desc = D3D12_COMMAND_QUEUE_DESC { Type: kind, ..Default::default() };
    // SAFETY: the device is alive and the description valid.
    unsafe { device.CreateCommandQueue(&desc) }.expect("a queue")
}

/// A device of ours on it, with this backing.
pub fn open(backing: Backing) -> D3d12 {
    // SAFETY: made as is asked for, and used by one check.
    let device = unsafe {
        match backing {
            Backing::Tiled => D3d12::over(parts()),
            other => D3d12::without_tiling(parts(), other),
        }
    };
    let device = device.expect("a device");
    assert_eq!(device.view().choice().backing, backing, "{:?}", device.view().choice());
    VIEWS.lock().unwrap().push(device.view());
    device
}

/// The same, for the suites.
pub fn boxed(backing: Backing) -> Box<dyn Device> {
    Box::new(open(backing))
}

/// Whether the device maps tiles.
pub fn has_tiles() -> Result<bool, D3d12Error> {
    // SAFETY: as above.
    let device = unsafe { D3d12::over(parts()) }?;
    Ok(device.view().choice().backing == Backing::Tiled)
}

/// All devices are gone, and with them every object that was made on them.
pub fn check_that_nothing_is_left() {
    for view in VIEWS.lock().unwrap().iter() {
        assert_eq!(view.live(), Live::default(), "a device has left objects behind");
    }
}

/// What there is, one line an adapter, and what is put to the test.
pub fn describe() -> Result<Vec<String>, D3d12Error> {
    // SAFETY: as above.
    let longest = unsafe { D3d12::over(parts()) }?.caps().max_range_bytes >> 20;
    let lines = tilework_d3d12::list()?.into_iter().map(|found| {
        let what = match found.choice {
            Ok(choice) => format!("{}: {}", choice.backing, choice.reason),
            Err(error) => error.to_string(),
        };
        format!("adapter {}: {}, {} MiB; {what}", found.index, found.name, found.memory_bytes >> 20)
    });
    Ok(lines.chain([format!("the default adapter is tested; its longest range has {longest} MiB")]).collect())
}

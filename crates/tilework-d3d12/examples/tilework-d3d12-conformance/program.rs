//! What programs of Direct3D are made of: command lists, buffers that the host reaches, fences.

use std::ptr;

use tilework_d3d12::bindings::Win32::Foundation::{CloseHandle, HANDLE};
use tilework_d3d12::bindings::Win32::Graphics::Direct3D12::{
    D3D12_COMMAND_LIST_TYPE, D3D12_FENCE_FLAG_NONE, D3D12_HEAP_FLAG_NONE, D3D12_HEAP_PROPERTIES,
    D3D12_HEAP_TYPE, D3D12_HEAP_TYPE_DEFAULT, D3D12_HEAP_TYPE_READBACK, D3D12_HEAP_TYPE_UPLOAD,
    D3D12_RESOURCE_DESC, D3D12_RESOURCE_DIMENSION_BUFFER, D3D12_RESOURCE_STATE_COMMON,
    D3D12_RESOURCE_STATE_COPY_DEST, D3D12_RESOURCE_STATE_GENERIC_READ, D3D12_TEXTURE_LAYOUT_ROW_MAJOR,
    ID3D12CommandAllocator, ID3D12CommandList, ID3D12CommandQueue, ID3D12Device, ID3D12Fence,
    ID3D12GraphicsCommandList, ID3D12Resource,
};
use tilework_d3d12::bindings::Win32::Graphics::Dxgi::Common::DXGI_SAMPLE_DESC;
use tilework_d3d12::bindings::Win32::System::Threading::{CreateEventW, WaitForSingleObject};
use tilework_d3d12::bindings::core::Interface;
use tilework_d3d12::{Slice, aliasing_barrier};

/// How long anything may take that was queued, milliseconds: far longer than it does.
const PATIENCE: u32 = 60_000;

/// A buffer of 32-bit words, of the program's own.
pub struct Words {
    pub buffer: ID3D12Resource,
    count: usize,
}

impl Words {
    /// One that the device reads.
    pub fn upload(device: &ID3D12Device, words: &[u32]) -> Words {
        let made = Words::new(device, D3D12_HEAP_TYPE_UPLOAD, words.len());
        // SAFETY: as long as the words, and nothing uses it yet.
        unsafe { ptr::copy_nonoverlapping(words.as_ptr(), made.map(), words.len()) };
        made
    }

    /// One that the device writes.
    pub fn readback(device: &ID3D12Device, count: usize) -> Words {
        Words::new(device, D3D12_HEAP_TYPE_READBACK, count)
    }

    /// One that the device has to itself.
    pub fn relay(device: &ID3D12Device, count: usize) -> Words {
        Words::new(device, D3D12_HEAP_TYPE_DEFAULT, count)
    }

    /// What is in it, one of those that the device writes; the device must have finished with it.
    pub fn read(&self) -> Vec<u32> {
        // SAFETY: as long as this.
        unsafe { std::slice::from_raw_parts(self.map(), self.count) }.to_vec()
    }

    fn new(device: &ID3D12Device, heap: D3D12_HEAP_TYPE, count: usize) -> Words {
        let state = match heap {
            D3D12_HEAP_TYPE_DEFAULT => D3D12_RESOURCE_STATE_COMMON,
            D3D12_HEAP_TYPE_READBACK => D3D12_RESOURCE_STATE_COPY_DEST,
            _ => D3D12_RESOURCE_STATE_GENERIC_READ,
        };
        let properties = D3D12_HEAP_PROPERTIES { Type: heap, ..Default::default() };
        let desc = D3D12_RESOURCE_DESC {
            Dimension: D3D12_RESOURCE_DIMENSION_BUFFER,
            Width: 4 * count as u64,
            Height: 1,
            DepthOrArraySize: 1,
            MipLevels: 1,
            SampleDesc: DXGI_SAMPLE_DESC { Count: 1, Quality: 0 },
            Layout: D3D12_TEXTURE_LAYOUT_ROW_MAJOR,
            ..Default::default()
        };
        let mut buffer = None;
        // SAFETY: descriptions are valid, and there is a place for an interface.
        unsafe {
            device.CreateCommittedResource(&properties, D3D12_HEAP_FLAG_NONE, &desc, state, None, &mut buffer)
        }
        .expect("a buffer");
        Words { buffer: buffer.expect("what was created"), count }
    }

    fn map(&self) -> *mut u32 {
        let mut address = ptr::null_mut();
        // SAFETY: in memory that the host reaches, where it may stay mapped.
        unsafe { self.buffer.Map(0, None, Some(&mut address)) }.expect("a place in the host's memory");
        address.cast()
    }
}

/// Records a command list that may be executed any number of times.
pub fn record(
    device: &ID3D12Device,
    kind: D3D12_COMMAND_LIST_TYPE,
    record: impl FnOnce(&ID3D12GraphicsCommandList),
) -> Recorded {
    // SAFETY: allocator and list are of one type, and new.
    unsafe {
        let allocator: ID3D12CommandAllocator = device.CreateCommandAllocator(kind).expect("an allocator");
        let list: ID3D12GraphicsCommandList =
            device.CreateCommandList(0, kind, &allocator, None).expect("a command list");
        list.ResourceBarrier(&[aliasing_barrier()]);
        record(&list);
        list.Close().expect("what was recorded is right");
        Recorded { list, _allocator: allocator }
    }
}

/// A command list with what it was recorded in. To be kept until it has been executed for the last time.
pub struct Recorded {
    list: ID3D12GraphicsCommandList,
    _allocator: ID3D12CommandAllocator,
}

impl Recorded {
    pub fn execute(&self, queue: &ID3D12CommandQueue) {
        let list: ID3D12CommandList = self.list.cast().expect("every command list is one");
        // SAFETY: closed, and of the queue's type.
        unsafe { queue.ExecuteCommandLists(&[Some(list)]) };
    }
}

/// Copies `bytes` from one place to another.
pub fn copy(
    list: &ID3D12GraphicsCommandList,
    to: (&ID3D12Resource, u64),
    from: (&ID3D12Resource, u64),
    bytes: u64,
) {
    // SAFETY: both are alive until the list has been executed, as `Recorded` says.
    unsafe { list.CopyBufferRegion(to.0, to.1, from.0, from.1, bytes) };
}

/// Where a slice is, as copies have it.
pub fn at(slice: &Slice) -> (&ID3D12Resource, u64) {
    (&slice.resource, slice.offset)
}

/// A fence.
pub fn fence(device: &ID3D12Device) -> ID3D12Fence {
    // SAFETY: the device is alive.
    unsafe { device.CreateFence(0, D3D12_FENCE_FLAG_NONE) }.expect("a fence")
}

/// What a fence has.
pub fn value_of(fence: &ID3D12Fence) -> u64 {
    // SAFETY: the fence is alive.
    unsafe { fence.GetCompletedValue() }
}

/// Waits on the host until a fence has a value.
pub fn wait(fence: &ID3D12Fence, value: u64) {
    // SAFETY: the event is alive until it is closed, when nothing waits for it.
    unsafe {
        let event: HANDLE = CreateEventW(None, true, false, None).expect("an event");
        fence.SetEventOnCompletion(value, event).expect("an event for the fence");
        WaitForSingleObject(event, PATIENCE);
        CloseHandle(event).expect("it is open");
    }
    assert!(value_of(fence) >= value, "the fence has {} and not {value}", value_of(fence));
}

/// Queues whatever comes next behind a fence's value, and gives it that at the end, also of a check that fails: a device
/// waits for what it was told of.
pub struct Gate(pub ID3D12Fence, pub u64);

impl Gate {
    pub fn open(&self) {
        // SAFETY: the fence is alive, and has no greater value.
        unsafe { self.0.Signal(self.1) }.expect("the device works");
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if value_of(&self.0) < self.1 {
            self.open();
        }
    }
}

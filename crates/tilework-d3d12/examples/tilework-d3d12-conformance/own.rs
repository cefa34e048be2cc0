//! What only Direct3D has: other queues, residency, adapters; and what it is given that is wrong.

use std::thread;
use std::time::Duration;

use tilework::device::{Bind, Device, DeviceError, Range};
use tilework_d3d12::bindings::Win32::Graphics::Direct3D12::{
    D3D12_COMMAND_LIST_TYPE_COMPUTE, D3D12_COMMAND_LIST_TYPE_COPY, ID3D12CommandAllocator, ID3D12Device5,
    ID3D12GraphicsCommandList,
};
use tilework_d3d12::bindings::core::Interface;
use tilework_d3d12::{Backing, D3d12, D3d12Error, Parts, View};

use crate::device::{open, parts, queue};
use crate::program::{Gate, Words, at, copy, fence, record, value_of, wait};

const TILE: u64 = 64 << 10;

/// A range of `tiles` with a heap of its own behind it.
fn home(device: &mut D3d12, tiles: u64) -> (Range, Bind) {
    let bytes = tiles * TILE;
    let range = device.reserve(bytes).expect("a few tiles of address space");
    let heap = device.create(bytes).expect("a few tiles of memory");
    let bind = Bind { range_offset: 0, heap, heap_offset: 0, bytes };
    device.map(range.id, &[bind]).expect("a map within the rules");
    (range, bind)
}

fn give_back(device: &mut D3d12, range: Range, bind: Bind) {
    device.unmap(range.id, 0, range.bytes).expect("unmapping what is mapped");
    device.release(bind.heap).expect("releasing what is not mapped");
    device.unreserve(range.id).expect("giving back what is not mapped");
}

/// Gives whatever is queued half a moment, in which it must not happen.
fn linger() {
    thread::sleep(Duration::from_millis(50));
}

/// What another queue uses is unmapped and given back when its fence has the value that was told of, and not before.
pub fn giving_back_waits_for_the_use_that_was_told_of(backing: Backing) {
    let mut device = open(backing);
    let view = device.view();
    let gate = Gate(fence(view.device()), 5);
    let (range, bind) = home(&mut device, 2);
    let (own, mapped) = view.ready().expect("the device works");
    wait(&own, mapped);
    let live = view.live();
    // SAFETY: a fence of the device; the gate gives it the value.
    unsafe { view.used_by(&gate.0, gate.1) };
    // Without tiles there is nothing to unmap, and what is given back waits.
    if backing == Backing::Tiled {
        device.unmap(range.id, 0, TILE).expect_err("part of a piece");
        device.unmap(range.id, 0, range.bytes).expect("unmapping what is mapped");
        view.ready().expect("the device works");
        linger();
        assert_eq!(value_of(&own), mapped, "unmapped under a use");
        device.map(range.id, &[bind]).expect("a map within the rules");
    }
    give_back(&mut device, range, bind);
    let (_, after) = view.ready().expect("the device works");
    linger();
    assert_eq!((value_of(&own), view.live()), (mapped, live), "given back under a use");
    // SAFETY: the fence is alive, and has no greater value.
    unsafe { gate.0.Signal(4) }.expect("the device works");
    linger();
    assert_eq!((value_of(&own), view.live()), (mapped, live), "an earlier value is not the one told of");
    gate.open();
    wait(&own, after);
    assert!(device.settle().expect("the device works"), "nothing was buried");
    assert_eq!(view.live().heaps, 0);
}

/// Another queue that waits for `ready` finds what was mapped, though the device's queue is held back.
pub fn another_queue_finds_what_was_mapped(backing: Backing) {
    const WORDS: usize = 3 * TILE as usize / 4;
    let mut device = open(backing);
    let view = device.view();
    let other = queue(view.device(), D3D12_COMMAND_LIST_TYPE_COMPUTE);
    let gate = Gate(fence(view.device()), 1);
    // SAFETY: a fence of the device; the gate gives it the value.
    unsafe { view.queue().Wait(&gate.0, gate.1) }.expect("the device works");
    let (range, bind) = home(&mut device, 3);
    let expected: Vec<u32> = (0..WORDS as u32).map(|word| word ^ 0xa5a5).collect();
    let (input, output) = (Words::upload(view.device(), &expected), Words::readback(view.device(), WORDS));
    let slice = view.find(range.address).expect("a range that is mapped");
    let list = record(view.device(), D3D12_COMMAND_LIST_TYPE_COMPUTE, |list| {
        copy(list, at(&slice), (&input.buffer, 0), range.bytes);
    });
    let back = record(view.device(), D3D12_COMMAND_LIST_TYPE_COMPUTE, |list| {
        copy(list, (&output.buffer, 0), at(&slice), range.bytes);
    });
    let (own, value) = view.ready().expect("the device works");
    let done = fence(view.device());
    // SAFETY: fences of the device; something was queued that signals each value.
    unsafe {
        other.Wait(&own, value).expect("the device works");
        list.execute(&other);
        back.execute(&other);
        other.Signal(&done, 1).expect("the device works");
        view.used_by(&done, 1);
    }
    give_back(&mut device, range, bind);
    linger();
    assert_eq!(value_of(&done), 0, "the other queue waits for nothing");
    gate.open();
    wait(&done, 1);
    assert_eq!(output.read(), expected);
}

/// One eviction evicts, one making resident undoes it, however often either is asked for; contents stay; what somebody
/// refers to is left.
pub fn what_is_evicted_comes_back(backing: Backing) {
    let mut device = open(backing);
    let view = device.view();
    let homes: Vec<_> = (1..=3).map(|tiles| home(&mut device, tiles)).collect();
    for (n, (range, _)) in homes.iter().enumerate() {
        device
            .write(range.address, &vec![n as u8 + 1; range.bytes as usize])
            .expect("writing what is mapped");
    }
    for _ in 0..5 {
        assert_eq!(view.make_resident(), Ok(0), "all is resident");
    }
    assert_eq!(view.evict(), Ok(6 * TILE));
    assert_eq!(view.evict(), Ok(0), "evicted twice");
    assert_eq!(view.make_resident(), Ok(6 * TILE));
    let held = view.hold(homes[1].0.address + TILE, TILE).expect("what is mapped");
    assert_eq!(view.evict(), Ok(4 * TILE), "all but what is referred to");
    // Reading makes resident what it reads.
    check(&device, &homes);
    assert_eq!(view.make_resident(), Ok(0));
    drop(held);
    assert_eq!(view.evict(), Ok(6 * TILE));
    let again = view.hold(homes[2].0.address, 3 * TILE).expect("what is mapped");
    assert_eq!(view.make_resident(), Ok(3 * TILE), "a reference makes resident, and the rest is asked for");
    check(&device, &homes);
    drop(again);
    // Given back while it is evicted.
    assert_eq!(view.evict(), Ok(6 * TILE));
    for (range, bind) in homes {
        give_back(&mut device, range, bind);
    }
    assert_eq!(view.make_resident(), Ok(0));
    let nowhere = view.hold(1, 1);
    assert!(matches!(nowhere, Err(DeviceError::Violation { .. })), "{nowhere:?}");
}

fn check(device: &D3d12, homes: &[(Range, Bind)]) {
    for (n, (range, _)) in homes.iter().enumerate() {
        let mut found = vec![0; range.bytes as usize];
        device.read(range.address, &mut found).expect("reading what is mapped");
        assert!(found.iter().all(|&byte| byte == n as u8 + 1), "contents of home {n}");
    }
}

/// A view outlives its device, and finds nothing then.
pub fn a_view_outlives_its_device(backing: Backing) {
    let mut device = open(backing);
    let view = device.view();
    let (range, _) = home(&mut device, 1);
    let slice = view.find(range.address + 20).expect("a range that is mapped");
    assert_eq!((slice.range, slice.offset), (range.id, 20));
    // SAFETY: a buffer that is held.
    assert_eq!(slice.gpu_address, unsafe { slice.resource.GetGPUVirtualAddress() } + 20);
    assert!(view.find(range.address - 1).is_none() && view.find(range.address + range.bytes).is_none());
    // What is mapped when the device goes is given back with it.
    drop(device);
    assert!(view.find(range.address).is_none());
    assert_eq!((view.evict(), view.make_resident()), (Ok(0), Ok(0)));
}

/// Adapters that are not there, and queues that cannot do it.
pub fn wrong_parts_are_refused() {
    let count = tilework_d3d12::list().expect("DXGI").len() as u32;
    let error = tilework_d3d12::open(count + 7).err().expect("no such adapter");
    assert_eq!(error, D3d12Error::NoSuchAdapter { index: count + 7, count });
    let copies = queue(&parts().device, D3D12_COMMAND_LIST_TYPE_COPY);
    // SAFETY: a queue of the device.
    let error = unsafe { D3d12::over(Parts { queue: copies, ..parts() }) }.expect_err("a copy queue");
    assert_eq!(error, D3d12Error::WrongQueue { kind: D3D12_COMMAND_LIST_TYPE_COPY.0 });
}

/// The adapter by its index: memory and what is free of it are told where they are.
pub fn an_adapter_opens_by_its_index() {
    let list = tilework_d3d12::list().expect("DXGI");
    let Some(found) = list.iter().find(|found| found.choice.is_ok()) else { panic!("no adapter: {list:?}") };
    let mut device = D3d12::open(found.index).expect("it was opened before");
    assert_eq!(Ok(device.view().choice()), found.choice.as_ref());
    assert_eq!(device.caps().capacity_bytes.unwrap_or(0), found.memory_bytes);
    assert!(device.free_bytes().is_none_or(|free| free > 0));
    assert_eq!(tilework_d3d12::index(device.name()), Some(found.index));
    let (range, bind) = home(&mut device, 4);
    device.write(range.address + 5, b"tiles").expect("writing what is mapped");
    let mut found = [0; 6];
    device.read(range.address + 4, &mut found).expect("reading what is mapped");
    assert_eq!(&found, b"\0tiles");
    give_back(&mut device, range, bind);
}

/// A device that is removed says so, and goes without waiting.
pub fn a_removed_device_says_so(backing: Backing) {
    let mut device = open(backing);
    let view: View = device.view();
    let (range, bind) = home(&mut device, 1);
    remove(&view);
    let error = device.read(range.address, &mut [0]).expect_err("the device is gone");
    assert!(error.to_string().contains("was removed"), "{error}");
    assert!(matches!(view.evict(), Err(D3d12Error::Removed { .. })));
    // SAFETY: parts that belong together.
    let again = unsafe { D3d12::over(parts()) };
    assert!(matches!(again, Err(D3d12Error::Removed { .. })), "{again:?}");
    let _refused = device.unmap(range.id, 0, range.bytes);
    let _refused = device.release(bind.heap);
}

/// Removes the device of this process: by the function for it, or where that does nothing by a mistake that costs a device
/// by Direct3D's rules, the execution of what is still recorded.
fn remove(view: &View) {
    let (device, queue) = (view.device(), view.queue());
    if let Ok(removable) = device.cast::<ID3D12Device5>() {
        // SAFETY: the device is alive, and this process has no other use for it.
        unsafe { removable.RemoveDevice() };
    }
    // SAFETY: the device is alive, here and below.
    if unsafe { device.GetDeviceRemovedReason() }.is_ok() {
        // SAFETY: allocator and list are of the queue's type; whatever becomes of the device, they are not used again.
        unsafe {
            let kind = queue.GetDesc().Type;
            let allocator: ID3D12CommandAllocator =
                device.CreateCommandAllocator(kind).expect("an allocator");
            let open: ID3D12GraphicsCommandList =
                device.CreateCommandList(0, kind, &allocator, None).expect("a command list");
            queue.ExecuteCommandLists(&[Some(open.cast().expect("every command list is one"))]);
        }
    }
    // SAFETY: as above.
    assert!(unsafe { device.GetDeviceRemovedReason() }.is_err(), "this implementation removes no device");
}

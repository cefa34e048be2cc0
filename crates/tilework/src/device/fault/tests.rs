use super::*;
use crate::device::Calls;
use crate::device::conformance::device_conformance;
use crate::device::sim::Sim;

const TILE: u64 = 64 << 10;

device_conformance!(without_a_plan, || Fault::new(Sim::d3d12()));

fn failures(device: &mut Fault<Sim>, calls: u32) -> Vec<u32> {
    (1..=calls).filter(|_| device.create(TILE).is_err()).collect()
}

#[test]
fn the_nth_call_fails_once() {
    let mut device = Fault::new(Sim::d3d12());
    let faults = device.faults();
    faults.set(Plan::nth(3));
    let failed: Vec<bool> = (0..8).map(|_| device.create(TILE).is_err()).collect();
    assert_eq!(failed, [false, false, true, false, false, false, false, false]);
    assert_eq!((faults.seen(), faults.failed()), (8, 1));
    faults.set(Plan::nth(1));
    assert_eq!(failures(&mut device, 4).len(), 1);
    faults.set(Plan::nth(0));
    assert_eq!(failures(&mut device, 4).len(), 0);
}

#[test]
fn every_nth_call_fails_until_the_plan_is_cleared() {
    let mut device = Fault::new(Sim::d3d12());
    let faults = device.faults();
    faults.set(Plan::every(2));
    let failed: Vec<bool> = (0..5).map(|_| device.create(TILE).is_err()).collect();
    assert_eq!(failed, [false, true, false, true, false]);
    faults.clear();
    assert_eq!(failures(&mut device, 5).len(), 0);
    assert_eq!(faults.failed(), 2);
}

#[test]
fn only_the_planned_kind_is_counted() {
    let mut device = Fault::new(Sim::d3d12());
    device.faults().set(Plan::nth(2).of(Call::Create).out_of_memory());
    device.reserve(TILE).unwrap();
    device.create(TILE).unwrap();
    device.reserve(TILE).unwrap();
    assert_eq!(device.create(TILE), Err(DeviceError::OutOfMemory { bytes: TILE }));
    assert_eq!(device.held_bytes(), Ok(TILE));
}

#[test]
fn a_map_that_fails_half_way_leaves_nothing_mapped() {
    let mut device = Fault::new(Sim::d3d12());
    let heap = device.create(4 * TILE).unwrap();
    let range = device.reserve(4 * TILE).unwrap().id;
    let binds: Vec<Bind> = (0..4)
        .map(|i| Bind { range_offset: i * TILE, heap, heap_offset: (3 - i) * TILE, bytes: TILE })
        .collect();
    device.faults().set(Plan::nth(1).of(Call::Map).halfway());
    let before = device.calls();
    assert_eq!(device.map(range, &binds), Err(injected(Call::Map)));
    let spent = device.calls().since(&before);
    assert_eq!((spent.map, spent.unmap), (1, 2), "the first half reached the device and was undone");
    device.map(range, &binds).unwrap();
}

#[test]
fn every_call_of_the_seam_can_fail() {
    let mut device = Fault::new(Sim::h200());
    device.faults().set(Plan::every(1));
    let (range, heap) = (RangeId(0), HeapId(0));
    for (result, call) in [
        (device.reserve(TILE).map(|_| ()), Call::Reserve),
        (device.unreserve(range), Call::Unreserve),
        (device.create(TILE).map(|_| ()), Call::Create),
        (device.release(heap), Call::Release),
        (device.map(range, &[]), Call::Map),
        (device.set_access(range, 0, TILE), Call::SetAccess),
        (device.unmap(range, 0, TILE), Call::Unmap),
        (device.read(0, &mut []), Call::Read),
        (device.write(0, &[]), Call::Write),
    ] {
        assert_eq!(result, Err(injected(call)));
    }
    assert_eq!(device.calls(), Calls::default());
}

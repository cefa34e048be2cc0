use super::*;
use crate::device::conformance::device_conformance;
use crate::device::sim::Sim;

const MIB: u64 = 1 << 20;

device_conformance!(limited, || Limit::new(Sim::h200(), 64 * MIB));

#[test]
fn held_bytes_stay_within_the_limit() {
    let mut device = Limit::new(Sim::d3d12(), 3 * MIB);
    assert_eq!(device.caps().capacity_bytes, Some(3 * MIB));
    let two = device.create(2 * MIB).unwrap();
    assert_eq!(device.create(2 * MIB), Err(DeviceError::OutOfMemory { bytes: 2 * MIB }));
    device.create(MIB).unwrap();
    assert_eq!(device.held_bytes(), Ok(3 * MIB));
    device.release(two).unwrap();
    device.create(2 * MIB).unwrap();
}

#[test]
fn heaps_on_the_host_do_not_count() {
    let mut device = Limit::new(Sim::h200(), 4 * MIB);
    device.create(4 * MIB).unwrap();
    let there = device.create_on_host(8 * MIB).unwrap();
    assert_eq!(device.create(2 * MIB), Err(DeviceError::OutOfMemory { bytes: 2 * MIB }));
    device.release(there).unwrap();
    assert_eq!(device.create(2 * MIB), Err(DeviceError::OutOfMemory { bytes: 2 * MIB }));
}

#[test]
fn the_lesser_of_two_limits_holds() {
    let device = Limit::new(Limit::new(Sim::h200(), 4 * MIB), 8 * MIB);
    assert_eq!(device.caps().capacity_bytes, Some(4 * MIB));
}

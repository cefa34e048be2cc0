use super::*;
use crate::device::conformance::device_conformance;

device_conformance!(like_the_h200, Null::new, trusting);
device_conformance!(
    like_d3d12,
    || Null::with_caps(crate::device::sim::Sim::d3d12().caps().clone()),
    trusting
);

#[test]
fn a_heap_is_released_once() {
    let mut device = Null::new();
    let heap = device.create(2 << 20).unwrap();
    device.release(heap).unwrap();
    assert!(matches!(device.release(heap), Err(DeviceError::Violation { .. })));
    assert!(matches!(device.release(HeapId(7)), Err(DeviceError::Violation { .. })));
    assert_eq!(device.held_bytes(), Ok(0));
}

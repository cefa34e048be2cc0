use super::*;
use crate::device::conformance::device_conformance;

device_conformance!(h200, Sim::h200);
device_conformance!(d3d12, Sim::d3d12);
device_conformance!(h200_without_tiling, || Sim::h200().without_tiling());
device_conformance!(d3d12_without_tiling, || Sim::d3d12().without_tiling());
device_conformance!(small, || Sim::d3d12().with_capacity(MIB));

fn bind(range_offset: u64, heap: HeapId, heap_offset: u64, bytes: u64) -> Bind {
    Bind { range_offset, heap, heap_offset, bytes }
}

#[test]
fn cuda_takes_a_call_for_each_handle_and_one_for_access_and_unmapping() {
    let mut device = Sim::h200();
    let heaps = [2, 64, 2].map(|mib| device.create(mib * MIB).unwrap());
    let range = device.reserve(68 * MIB).unwrap().id;
    let binds = [
        bind(0, heaps[0], 0, 2 * MIB),
        bind(2 * MIB, heaps[1], 0, 64 * MIB),
        bind(66 * MIB, heaps[2], 0, 2 * MIB),
    ];
    let before = device.calls();
    device.map(range, &binds).unwrap();
    assert_eq!(device.calls().since(&before), Calls { map: 3, nanos: 700 + 600 + 700, ..Calls::default() });

    let before = device.calls();
    device.set_access(range, 0, 68 * MIB).unwrap();
    let nanos = 32_700 + (33_600 - 6_700) + 26_000;
    assert_eq!(device.calls().since(&before), Calls { set_access: 1, nanos, ..Calls::default() });

    let before = device.calls();
    device.unmap(range, 0, 68 * MIB).unwrap();
    let nanos = 20_500 + (20_800 - 3_900) + 16_600;
    assert_eq!(device.calls().since(&before), Calls { unmap: 1, nanos, ..Calls::default() });
}

#[test]
fn d3d12_takes_a_call_for_each_run_of_binds_on_one_heap() {
    let mut device = Sim::d3d12();
    let tile = device.caps().tile_bytes;
    let (a, b) = (device.create(8 * tile).unwrap(), device.create(8 * tile).unwrap());
    let range = device.reserve(8 * tile).unwrap().id;
    let binds = [
        bind(0, a, 0, tile),
        bind(tile, a, tile, 2 * tile),
        bind(3 * tile, a, 7 * tile, tile),
        bind(4 * tile, b, 0, tile),
        bind(5 * tile, a, 3 * tile, tile),
    ];
    let before = device.calls();
    device.map(range, &binds).unwrap();
    let MapCosts::Tiles(costs) = costs::D3D12.map else { unreachable!() };
    let nanos = costs.of(2, 4) + costs.of(1, 1) + costs.of(1, 1);
    assert_eq!(device.calls().since(&before), Calls { map: 3, nanos, ..Calls::default() });

    let before = device.calls();
    device.unmap(range, 0, 6 * tile).unwrap();
    assert_eq!(device.calls().since(&before), Calls { unmap: 1, nanos: costs.of(1, 6), ..Calls::default() });
}

#[test]
fn memory_on_the_host_is_dearer_to_make() {
    let mut device = Sim::h200();
    device.create_on_host(256 * MIB).unwrap();
    let nanos = costs::H200.create_on_host.at(256 * MIB);
    assert_eq!(device.calls(), Calls { create: 1, nanos, ..Calls::default() });
    assert!(nanos > 100 * costs::H200.create.at(256 * MIB));
}

#[test]
fn a_refused_call_costs_nothing() {
    let mut device = Sim::h200();
    let heap = device.create(4 * MIB).unwrap();
    let range = device.reserve(4 * MIB).unwrap().id;
    let before = device.calls();
    device.map(range, &[bind(0, heap, 0, 2 * MIB)]).unwrap_err();
    device.create(MIB).unwrap_err();
    device.unmap(range, 0, 4 * MIB).unwrap_err();
    assert_eq!(device.calls(), before);
}

#[test]
#[should_panic(expected = "in use")]
fn capabilities_do_not_change_in_use() {
    let mut device = Sim::h200();
    device.reserve(2 * MIB).unwrap();
    let _ = device.without_tiling();
}

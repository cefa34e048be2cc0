use super::*;
use crate::device::null::Null;

const TILE: u64 = 2 << 20;

/// Over a device that trusts its caller, so that what is refused is refused here.
fn checked() -> (Box<dyn Device>, Witness) {
    Checked::over(Box::new(Null::new()))
}

fn bind(range_offset: u64, heap: HeapId, bytes: u64) -> Bind {
    Bind { range_offset, heap, heap_offset: 0, bytes }
}

#[test]
fn an_address_resolves_to_the_memory_behind_it() {
    let (mut device, witness) = checked();
    let range = device.reserve(4 * TILE).unwrap();
    let [small, large] = [TILE, 2 * TILE].map(|bytes| device.create(bytes).unwrap());
    device.map(range.id, &[bind(0, large, 2 * TILE), bind(2 * TILE, small, TILE)]).unwrap();
    assert!(witness.resolve(range.address, 1).unwrap_err().contains("without access"));
    device.set_access(range.id, 0, 3 * TILE).unwrap();

    let extents = witness.resolve(range.address + TILE + 512, TILE).unwrap();
    let expected = [
        Extent { heap: large, offset: TILE + 512, bytes: TILE - 512 },
        Extent { heap: small, offset: 0, bytes: 512 },
    ];
    assert_eq!(extents, expected);
    assert!(witness.resolve(range.address + 2 * TILE, TILE + 1).unwrap_err().contains("not mapped"));
    assert!(witness.resolve(range.address - 1, 1).is_err());
    assert!(witness.resolve(range.address + 4 * TILE, 1).is_err());
    let totals = Totals { held: 3 * TILE, peak_held: 3 * TILE, reserved: 4 * TILE, mapped: 3 * TILE };
    assert_eq!(witness.totals(), totals);
}

#[test]
#[should_panic(expected = "which is mapped")]
fn releasing_what_is_mapped_is_caught() {
    let (mut device, _) = checked();
    let range = device.reserve(TILE).unwrap();
    let heap = device.create(TILE).unwrap();
    device.map(range.id, &[bind(0, heap, TILE)]).unwrap();
    let _panics = device.release(heap);
}

#[test]
#[should_panic(expected = "part of which is mapped")]
fn unreserving_what_is_mapped_is_caught() {
    let (mut device, _) = checked();
    let range = device.reserve(TILE).unwrap();
    let heap = device.create(TILE).unwrap();
    device.map(range.id, &[bind(0, heap, TILE)]).unwrap();
    let _panics = device.unreserve(range.id);
}

#[test]
#[should_panic(expected = "maps over")]
fn mapping_over_a_mapping_is_caught() {
    let (mut device, _) = checked();
    let range = device.reserve(4 * TILE).unwrap();
    let [one, other] = [TILE, 2 * TILE].map(|bytes| device.create(bytes).unwrap());
    device.map(range.id, &[bind(TILE, one, TILE)]).unwrap();
    let _panics = device.map(range.id, &[bind(0, other, 2 * TILE)]);
}

#[test]
#[should_panic(expected = "maps part of a heap")]
fn mapping_part_of_a_heap_that_maps_whole_is_caught() {
    let (mut device, _) = checked();
    let range = device.reserve(2 * TILE).unwrap();
    let heap = device.create(2 * TILE).unwrap();
    let _panics = device.map(range.id, &[bind(0, heap, TILE)]);
}

#[test]
#[should_panic(expected = "not whole pieces")]
fn unmapping_half_a_piece_is_caught() {
    let (mut device, _) = checked();
    let range = device.reserve(2 * TILE).unwrap();
    let heap = device.create(2 * TILE).unwrap();
    device.map(range.id, &[bind(0, heap, 2 * TILE)]).unwrap();
    let _panics = device.unmap(range.id, 0, TILE);
}

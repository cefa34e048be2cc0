use super::*;
use crate::device::Aliasing;

const TILE: u64 = 64 << 10;

fn caps() -> Caps {
    Caps {
        tile_bytes: TILE,
        tiling: true,
        partial_maps: true,
        needs_access: false,
        max_range_bytes: 64 * TILE,
        memory: false,
        capacity_bytes: Some(32 * TILE),
        host_heaps: true,
        aliasing: Aliasing::Ordered,
    }
}

/// Books with a range of 8 tiles at tile 100 and heaps of 4 and 2 tiles.
fn books(caps: Caps) -> (Books, RangeId, HeapId, HeapId) {
    let mut books = Books::new(caps);
    let range = books.reserve(100 * TILE, 8 * TILE).unwrap().id;
    let (four, two) = (books.create(4 * TILE).unwrap(), books.create(2 * TILE).unwrap());
    (books, range, four, two)
}

/// All in tiles.
fn bind(at: u64, heap: HeapId, from: u64, tiles: u64) -> Bind {
    Bind { range_offset: at * TILE, heap, heap_offset: from * TILE, bytes: tiles * TILE }
}

#[test]
fn heaps_on_the_host_are_counted_apart() {
    let (mut books, range, four, _) = books(caps());
    let held = books.held_bytes();
    let there = books.create_on_host(64 * TILE).unwrap();
    assert_eq!((books.held_bytes(), books.host_bytes()), (held, 64 * TILE));
    books.map(range, &[bind(0, there, 60, 4), bind(4, four, 0, 4)]).unwrap();
    assert!(books.release(there).is_err());
    books.unmap(range, 0, 8 * TILE).unwrap();
    assert_eq!(books.release(there), Ok(64 * TILE));
    books.release(four).unwrap();
    assert_eq!((books.held_bytes(), books.host_bytes()), (held - 4 * TILE, 0));
    assert_eq!(books.create_on_host(u64::MAX - (TILE - 1)).map(drop), Ok(()));
    assert_eq!(books.create_on_host(TILE), Err(DeviceError::OutOfMemory { bytes: TILE }));
    let mut books = Books::new(Caps { host_heaps: false, ..caps() });
    assert_eq!(books.create_on_host(TILE), Err(no_host_heaps()));
}

#[test]
fn all_pieces_are_found_in_order() {
    let (mut books, range, four, two) = books(caps());
    assert_eq!(books.all_pieces(range).next(), None);
    let binds = [bind(5, two, 0, 1), bind(0, four, 1, 2), bind(2, four, 0, 1)];
    books.map(range, &binds).unwrap();
    assert_eq!(books.all_pieces(range).collect::<Vec<_>>(), [binds[1], binds[2], binds[0]]);
    assert_eq!(books.all_pieces(RangeId(77)).next(), None);
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, DeviceError>, call: Call, words: &str) {
    match result {
        Err(DeviceError::Violation { call: named, rule }) => {
            assert_eq!(named, call, "{rule}");
            assert!(rule.contains(words), "{rule:?} does not say {words:?}");
        }
        other => panic!("expected a violation saying {words:?}, not {other:?}"),
    }
}

#[test]
fn lengths_are_whole_tiles() {
    let mut books = Books::new(caps());
    refused(books.reserve(0, 0), Call::Reserve, "is zero");
    refused(books.reserve(0, TILE + 1), Call::Reserve, "no multiple of the tile");
    refused(books.create(0), Call::Create, "is zero");
    refused(books.create(TILE / 2), Call::Create, "no multiple of the tile");
}

#[test]
fn ranges_and_heaps_are_bounded() {
    let mut books = Books::new(caps());
    assert!(matches!(books.reserve(0, 65 * TILE), Err(DeviceError::Failed { .. })));
    assert_eq!(books.create(33 * TILE), Err(DeviceError::OutOfMemory { bytes: 33 * TILE }));
    let all = books.create(32 * TILE).unwrap();
    assert_eq!(books.create(TILE), Err(DeviceError::OutOfMemory { bytes: TILE }));
    assert_eq!(books.release(all), Ok(32 * TILE));
    assert_eq!(books.held_bytes(), 0);
    books.create(TILE).unwrap();
}

#[test]
fn ids_are_never_reused() {
    let mut books = Books::new(caps());
    let range = books.reserve(0, TILE).unwrap().id;
    books.unreserve(range).unwrap();
    assert_ne!(books.reserve(0, TILE).unwrap().id, range);
    let heap = books.create(TILE).unwrap();
    books.release(heap).unwrap();
    assert_ne!(books.create(TILE), Ok(heap));
}

#[test]
#[should_panic(expected = "lies over")]
fn a_device_that_puts_a_range_over_another_is_stopped() {
    let mut books = Books::new(caps());
    books.reserve(0, 8 * TILE).unwrap();
    let _ = books.reserve(4 * TILE, TILE);
}

#[test]
fn unknown_ids_are_named() {
    let (mut books, range, four, _) = books(caps());
    refused(books.map(RangeId(9), &[]), Call::Map, "range 9 is not reserved");
    refused(books.map(range, &[bind(0, HeapId(9), 0, 1)]), Call::Map, "heap 9 does not exist");
    refused(books.unmap(RangeId(9), 0, TILE), Call::Unmap, "range 9 is not reserved");
    refused(books.unreserve(RangeId(9)), Call::Unreserve, "range 9 is not reserved");
    refused(books.release(HeapId(9)), Call::Release, "heap 9 does not exist");
    books.release(four).unwrap();
    refused(books.release(four), Call::Release, "does not exist");
    books.unreserve(range).unwrap();
    refused(books.unreserve(range), Call::Unreserve, "is not reserved");
}

#[test]
fn a_bind_is_aligned_and_within_its_range_and_heap() {
    let (mut books, range, four, _) = books(caps());
    let good = bind(0, four, 0, 1);
    for (bad, words) in [
        (Bind { range_offset: 1, ..good }, "offset in the range, 1,"),
        (Bind { heap_offset: 512, ..good }, "offset in the heap, 512,"),
        (Bind { bytes: 0, ..good }, "is zero"),
        (Bind { bytes: TILE - 1, ..good }, "length of a bind"),
        (bind(0, four, 3, 2), "reach beyond heap"),
        (bind(7, four, 0, 2), "reach beyond range"),
        (Bind { heap_offset: u64::MAX - TILE + 1, ..good }, "reach beyond heap"),
        (Bind { range_offset: u64::MAX - TILE + 1, ..good }, "reach beyond range"),
    ] {
        refused(books.map(range, &[bad]), Call::Map, words);
    }
    books.map(range, &[good]).unwrap();
}

#[test]
fn nothing_is_mapped_over_what_is_mapped() {
    let (mut books, range, four, two) = books(caps());
    books.map(range, &[bind(2, four, 0, 3)]).unwrap();
    for over in [bind(1, two, 0, 2), bind(2, two, 0, 1), bind(3, two, 0, 1), bind(4, two, 0, 2)] {
        refused(books.map(range, &[over]), Call::Map, "already mapped");
    }
    let around = bind(1, four, 0, 4);
    refused(books.map(range, &[around]), Call::Map, "already mapped");
    books.map(range, &[bind(0, two, 0, 2), bind(5, two, 0, 2)]).unwrap();
}

#[test]
fn a_refused_map_leaves_no_trace() {
    let (mut books, range, four, two) = books(caps());
    let binds = [bind(0, four, 0, 2), bind(2, two, 0, 2), bind(3, four, 0, 1)];
    refused(books.map(range, &binds), Call::Map, "already mapped");
    books.map(range, &binds[..2]).unwrap();
    books.undo_map(range, &binds[..2]);
    books.release(four).unwrap();
    books.release(two).unwrap();
    books.unreserve(range).unwrap();
}

#[test]
fn what_is_mapped_is_neither_released_nor_unreserved() {
    let (mut books, range, four, two) = books(caps());
    books.map(range, &[bind(0, four, 0, 1), bind(1, four, 0, 1)]).unwrap();
    refused(books.release(four), Call::Release, "still mapped in 2 places");
    refused(books.unreserve(range), Call::Unreserve, "2 mapped pieces");
    books.release(two).unwrap();
    books.unmap(range, 0, 2 * TILE).unwrap();
    books.release(four).unwrap();
    books.unreserve(range).unwrap();
}

#[test]
fn whole_pieces_are_unmapped_with_no_hole() {
    let (mut books, range, four, two) = books(caps());
    let binds = [bind(1, four, 0, 2), bind(3, two, 0, 1), bind(5, two, 0, 2)];
    books.map(range, &binds).unwrap();
    for (at, tiles, words) in [
        (0, 1, "not mapped at 0"),
        (0, 3, "not mapped at 0"),
        (1, 1, "taken whole"),
        (2, 1, "taken whole"),
        (2, 2, "taken whole"),
        (1, 5, "not mapped at 262144"),
        (3, 2, "not mapped at 262144"),
        (7, 1, "not mapped"),
        (7, 2, "reach beyond range"),
    ] {
        refused(books.unmap(range, at * TILE, tiles * TILE), Call::Unmap, words);
    }
    refused(books.unmap(range, 1, TILE), Call::Unmap, "no multiple of the tile");
    refused(books.unmap(range, 0, 0), Call::Unmap, "is zero");
    refused(books.unmap(range, TILE, u64::MAX - TILE + 1), Call::Unmap, "reach beyond range");
    assert_eq!(books.unmap(range, TILE, 3 * TILE), Ok(binds[..2].to_vec()));
    refused(books.unmap(range, TILE, TILE), Call::Unmap, "not mapped");
    assert_eq!(books.unmap(range, 5 * TILE, 2 * TILE), Ok(binds[2..].to_vec()));
}

#[test]
fn a_heap_that_maps_whole_has_no_parts() {
    let (mut books, range, four, two) = books(Caps { partial_maps: false, ..caps() });
    refused(books.map(range, &[bind(0, four, 0, 2)]), Call::Map, "maps whole or not at all");
    refused(books.map(range, &[bind(0, four, 1, 3)]), Call::Map, "maps whole or not at all");
    books.map(range, &[bind(0, four, 0, 4), bind(4, two, 0, 2), bind(6, two, 0, 2)]).unwrap();
}

#[test]
fn without_tiling_a_heap_backs_one_range_of_its_length() {
    let (mut books, eight, four, two) = books(Caps { tiling: false, partial_maps: false, ..caps() });
    refused(books.map(eight, &[bind(0, four, 0, 4)]), Call::Map, "its own length");
    let range = books.reserve(0, 2 * TILE).unwrap().id;
    let other = books.reserve(50 * TILE, 2 * TILE).unwrap().id;
    books.map(range, &[bind(0, two, 0, 2)]).unwrap();
    refused(books.map(other, &[bind(0, two, 0, 2)]), Call::Map, "mapped once");
    books.unmap(range, 0, 2 * TILE).unwrap();
    books.map(other, &[bind(0, two, 0, 2)]).unwrap();
}

#[test]
fn use_stays_within_what_is_mapped() {
    let (mut books, range, four, two) = books(caps());
    books.map(range, &[bind(1, four, 0, 2), bind(3, two, 0, 1)]).unwrap();
    let base = 100 * TILE;
    let check = |books: &Books, at: u64, bytes: u64| books.check_use(Call::Read, base + at, bytes);
    check(&books, TILE, 3 * TILE).unwrap();
    check(&books, 2 * TILE + 5, TILE).unwrap();
    check(&books, 4 * TILE - 1, 1).unwrap();
    check(&books, 4 * TILE, 0).unwrap();
    for (at, bytes) in [(0, 1), (TILE - 1, 2), (4 * TILE, 1), (4 * TILE - 1, 2), (6 * TILE, 1)] {
        refused(check(&books, at, bytes), Call::Read, "is not mapped");
    }
    refused(check(&books, 8 * TILE, 1), Call::Read, "no range is reserved");
    refused(check(&books, 8 * TILE - 1, 2), Call::Read, "reach beyond range");
    refused(check(&books, TILE, u64::MAX), Call::Read, "reach beyond range");
    refused(books.check_use(Call::Write, 0, 1), Call::Write, "no range is reserved");
}

#[test]
fn a_mapping_without_access_cannot_be_used() {
    let (mut books, range, four, two) = books(Caps { needs_access: true, ..caps() });
    let binds = [bind(0, four, 0, 2), bind(2, two, 0, 1), bind(3, two, 1, 1)];
    books.map(range, &binds).unwrap();
    let check = |books: &Books, tile: u64| books.check_use(Call::Write, (100 + tile) * TILE, TILE);
    refused(check(&books, 0), Call::Write, "set_access was not called");
    refused(books.set_access(range, 0, TILE), Call::SetAccess, "taken whole");
    refused(books.set_access(range, 0, 5 * TILE), Call::SetAccess, "not mapped");
    assert_eq!(books.set_access(range, 0, 3 * TILE), Ok(binds[..2].to_vec()));
    check(&books, 1).unwrap();
    check(&books, 2).unwrap();
    refused(check(&books, 3), Call::Write, "set_access was not called");

    // Access belongs to the mapping, not to the address.
    books.unmap(range, 0, 2 * TILE).unwrap();
    books.map(range, &binds[..1]).unwrap();
    refused(check(&books, 1), Call::Write, "set_access was not called");
    check(&books, 2).unwrap();
}

#[test]
fn access_is_not_asked_for_in_vain() {
    let (mut books, range, four, _) = books(caps());
    books.map(range, &[bind(0, four, 0, 1)]).unwrap();
    refused(books.set_access(range, 0, TILE), Call::SetAccess, "needs no set_access");
}

#[test]
fn neighbours_are_found_at_their_edges() {
    let (mut books, range, four, two) = books(caps());
    let (left, right) = (bind(1, four, 1, 2), bind(3, two, 0, 1));
    books.map(range, &[left, right]).unwrap();
    assert_eq!(books.piece_before(range, 3 * TILE), Some(left));
    assert_eq!(books.piece_at(range, 3 * TILE), Some(right));
    assert_eq!(books.piece_before(range, 2 * TILE), None);
    assert_eq!(books.piece_at(range, 2 * TILE), None);
    assert_eq!(books.piece_before(range, TILE), None);
    assert_eq!(books.piece_at(range, 4 * TILE), None);
}

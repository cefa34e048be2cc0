//! What callers are told: errors, limits, hints and recordings.

use super::*;

#[test]
fn running_out_names_every_figure() {
    let mut rig = Rig::limited(4 * TILE);
    let live = rig.used(TILE, A);
    let error = rig.try_alloc(4 * TILE, B).unwrap_err();
    let Error::OutOfMemory { request, live: told, mapped, held, limit, .. } = error else {
        panic!("{error}")
    };
    assert_eq!((request, told, limit), (4 * TILE, TILE, Some(4 * TILE)));
    assert_eq!((mapped, held), (rig.front.usage().mapped, rig.front.usage().held));
    let stats = rig.front.stats();
    assert_eq!((stats.ooms, stats.retries), (1, 2));
    rig.free(live);
    rig.check();
    rig.used(4 * TILE, B);
}

#[test]
fn a_limit_changes_while_memory_is_in_use() {
    let mut rig = Rig::new();
    let first = rig.used(8 * TILE, A);
    rig.front.set_limit(Some(4 * TILE)).unwrap();
    assert!(rig.try_alloc(TILE, A).is_err());
    rig.free(first);
    rig.used(4 * TILE, B);
    rig.world.run(A);
    rig.front.trim().unwrap();
    assert_eq!(rig.front.usage().held, 4 * TILE);
    rig.front.set_limit(None).unwrap();
    rig.used(16 * TILE, A);
    rig.check();
}

#[test]
fn addresses_that_are_not_live_are_errors_and_harm_nothing() {
    let mut rig = Rig::new();
    let block = rig.alloc(TILE, A);
    for wrong in [0, 512, block + 512, u64::MAX] {
        assert_eq!(rig.front.free(wrong), Err(Error::UnknownAddress(wrong)));
        assert_eq!(rig.front.free_on(wrong, A), Err(Error::UnknownAddress(wrong)));
        assert_eq!(rig.front.record_stream(wrong, B), Err(Error::UnknownAddress(wrong)));
    }
    assert_eq!(rig.front.block_of(block + 512), Some((block, TILE)));
    assert_eq!(rig.front.block_of(block + TILE), None);
    assert_eq!(rig.front.alloc(0, A), Err(Error::ZeroSize));
    assert!(matches!(rig.front.alloc(u64::MAX, A), Err(Error::TooLarge { .. })));
    rig.front.free_on(block, B).unwrap();
    rig.live.clear();
    assert_eq!(rig.front.free(block), Err(Error::UnknownAddress(block)));
    rig.check();
}

#[test]
fn a_hint_that_is_wrong_costs_a_look_and_no_more() {
    let mut rig = Rig::new();
    let (a, b) = (rig.alloc(TILE, A), rig.alloc(TILE, B));
    let lane = |stream| rig.front.lanes.get(Key { slot: 0, stream }).unwrap();
    rig.front.hints.note(a, lane(B));
    rig.front.hints.note(b, lane(A));
    rig.front.free(a).unwrap();
    assert_eq!(rig.front.hinted(a).unwrap().key.stream, A, "it is right from then on");
    assert_eq!(rig.front.free(a), Err(Error::UnknownAddress(a)));
    rig.front.free(b).unwrap();
    assert_eq!(rig.front.free(b), Err(Error::UnknownAddress(b)));
    rig.live.clear();
    rig.check();
}

#[test]
fn a_recording_has_the_requests_of_all_streams() {
    let mut rig = Rig::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.csv.gz");
    let before = rig.alloc(TILE, A);
    rig.front.record_to(&path).unwrap();
    let (a, b) = (rig.alloc(TILE, A), rig.alloc(MIB, B));
    rig.free(before);
    rig.free(a);
    rig.alloc(TILE, A);
    rig.free(b);
    rig.front.stop_recording().unwrap();
    rig.front.stop_recording().unwrap();
    let events: Vec<(String, u64, u64, u64)> = crate::trace::Reader::open(&path)
        .unwrap()
        .map(|event| event.unwrap())
        .map(|e| (e.op.to_string(), e.id, e.bytes, e.stream.0))
        .collect();
    let expected = [
        ("alloc", 0, TILE, 0),
        ("alloc", 1, MIB, 1),
        ("free", 0, TILE, 0),
        ("alloc", 2, TILE, 0),
        ("free", 1, MIB, 1),
    ];
    let expected: Vec<_> = expected.into_iter().map(|(op, id, n, s)| (op.to_owned(), id, n, s)).collect();
    assert_eq!(events, expected);
}

#[test]
fn a_request_longer_than_all_that_is_held_takes_long_heaps() {
    let options = Options::default();
    let capacity = 80 << 30;
    let device = device::sim::Sim::h200().with_capacity(capacity);
    let front = Shared::new(Box::new(device), Box::new(streams::InOrder), &options).unwrap();
    for bytes in [10 << 30, capacity / 2] {
        let before = front.calls();
        let block = front.alloc(bytes, A).unwrap();
        let made = front.calls().since(&before);
        assert_eq!(made.create, bytes.div_ceil(options.heap_bytes), "{bytes} bytes");
        front.free(block).unwrap();
        front.trim().unwrap();
    }
    // One that there is no memory for is tried again, and once more after all was given back.
    let block = front.alloc(512, A).unwrap();
    let before = front.calls();
    assert!(matches!(front.alloc(capacity, A), Err(Error::OutOfMemory { .. })));
    let made = front.calls().since(&before);
    assert!((1..=2 * capacity / options.heap_bytes).contains(&made.create), "{made:?}");
    assert_eq!((front.usage().held, made.map), (TILE, 0));
    front.free(block).unwrap();
    front.check_invariants();
}

#[test]
fn what_never_fits_is_refused_and_nothing_is_given_back_for_it() {
    let mut rig = Rig::limited(4 * TILE);
    let (kept, cached) = (rig.used(TILE, A), rig.used(2 * TILE, A));
    rig.free(cached);
    let (held, calls) = (rig.front.usage().held, rig.front.calls());
    let error = rig.try_alloc(4 * TILE + 1, A).unwrap_err();
    let Error::OutOfMemory { request, live, held: told, limit, .. } = error else { panic!("{error}") };
    assert_eq!((request, live, told, limit), (4 * TILE + 1, TILE, held, Some(4 * TILE)));
    assert_eq!((rig.front.calls(), rig.front.stats().ooms), (calls, 1));
    rig.free(kept);
    rig.check();
    // The host's memory is beside the limit.
    rig.front.set_spill(true).unwrap();
    rig.used(5 * TILE, A);
    assert!(rig.front.stats().spilled > 0);
}

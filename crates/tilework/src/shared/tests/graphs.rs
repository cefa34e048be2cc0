//! Graphs' pools, and streams that are being captured.

use super::*;

#[test]
fn nothing_is_recorded_on_a_stream_that_is_captured() {
    let mut rig = Rig::limited(4 * TILE);
    let block = rig.used(TILE, A);
    let other = rig.used(TILE, B);
    rig.front.record_stream(block, B).unwrap();
    rig.world.capture(B, true);
    rig.free(block);
    rig.free(other);
    // All of these look at B; the world panics where they record on it.
    rig.front.end_of_execution().unwrap();
    rig.front.trim().unwrap();
    let error = rig.try_alloc(8 * TILE, A).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    assert_eq!(rig.front.stats().pending, TILE);
    rig.world.capture(B, false);
    rig.front.trim().unwrap();
    assert_eq!(rig.front.stats().pending, 0);
    assert_eq!(rig.front.usage().held, 0);
    rig.check();
}

#[test]
fn a_graphs_pool_keeps_addresses_and_tiles_until_it_is_released() {
    let mut rig = Rig::limited(16 * TILE);
    let pool = PoolId(7, 0);
    rig.front.begin_pool(pool, Box::new(|stream| stream == B)).unwrap();
    rig.world.capture(B, true);
    let blocks: Vec<(u64, u64)> =
        [TILE, 3 * MIB, 512, 5 * TILE].into_iter().map(|bytes| (rig.alloc(bytes, B), bytes)).collect();
    let behind: Vec<_> = blocks.iter().map(|&(at, bytes)| rig.witness.resolve(at, bytes).unwrap()).collect();
    for &(address, _) in &blocks {
        rig.free(address);
    }
    rig.world.capture(B, false);
    rig.front.end_pool(pool).unwrap();
    // Others, on the same stream too, get none of it.
    let eager = rig.used(TILE, B);
    let mut taken = vec![eager];
    for _ in 0..10 {
        rig.front.end_of_execution().unwrap();
        rig.front.trim().unwrap();
    }
    while let Ok(address) = rig.try_alloc(TILE, A) {
        taken.push(address);
    }
    assert!(rig.front.usage().held <= 16 * TILE);
    for (&(address, bytes), behind) in blocks.iter().zip(&behind) {
        assert_eq!(rig.witness.resolve(address, bytes).as_ref(), Ok(behind));
        for &other in &taken {
            let theirs = rig.witness.resolve(other, TILE).unwrap();
            assert!(
                theirs.iter().all(|a| behind.iter().all(|b| a.heap != b.heap)),
                "a graph's heap was given away"
            );
        }
        // A replay that is queued when the pool is released.
        rig.world.launch(C, address, bytes, &rig.witness);
    }
    rig.front.release_pool(pool).unwrap();
    let host_waits = rig.world.host_waits();
    let room = rig.alloc(4 * TILE, A);
    assert!(rig.world.host_waits() > host_waits, "the device was waited for");
    taken.push(room);
    rig.check();
    for address in taken {
        rig.free(address);
    }
    rig.front.trim().unwrap();
    assert_eq!(rig.front.usage().held, 0);
}

#[test]
fn a_pool_lasts_as_long_as_its_references() {
    let mut rig = Rig::new();
    let pool = PoolId(0, 1);
    rig.front.retain_pool(pool).unwrap();
    for _ in 0..2 {
        rig.front.begin_pool(pool, Box::new(|_| true)).unwrap();
        let block = rig.used(TILE, A);
        rig.free(block);
        rig.front.end_pool(pool).unwrap();
        rig.front.release_pool(pool).unwrap();
        rig.world.run(A);
        rig.front.trim().unwrap();
        assert_ne!(rig.front.usage().held, 0);
    }
    rig.front.release_pool(pool).unwrap();
    rig.front.release_pool(pool).unwrap();
    rig.front.trim().unwrap();
    assert_eq!(rig.front.usage().held, 0);
}

#[test]
fn blocks_outlive_their_pool_and_slots_are_used_again() {
    let mut rig = Rig::new();
    for n in 0..5 {
        let pool = PoolId(n, 0);
        rig.front.begin_pool(pool, Box::new(|_| true)).unwrap();
        let block = rig.used(TILE, A);
        rig.front.end_pool(pool).unwrap();
        rig.front.release_pool(pool).unwrap();
        rig.front.trim().unwrap();
        rig.check();
        rig.launch(A, block);
        rig.free(block);
        rig.front.trim().unwrap();
        assert_eq!(rig.front.usage().held, 0);
    }
    assert_eq!(rig.front.stats().streams.len(), 1, "one lane served all pools");
}

#[test]
fn the_first_open_pool_that_wants_a_request_has_it() {
    let mut rig = Rig::new();
    rig.front.begin_pool(PoolId(1, 0), Box::new(|stream| stream == A)).unwrap();
    rig.front.begin_pool(PoolId(2, 0), Box::new(|_| true)).unwrap();
    rig.alloc(512, A);
    rig.alloc(512, B);
    rig.front.end_pool(PoolId(1, 0)).unwrap();
    rig.alloc(512, A);
    rig.front.end_pool(PoolId(2, 0)).unwrap();
    rig.alloc(512, A);
    let graphs: Vec<bool> = rig.front.stats().streams.iter().map(|lane| lane.graph).collect();
    assert_eq!(graphs, [true, true, true, false]);
}

#[test]
fn many_graphs_fit_in_the_address_space_and_large_ones_find_room() {
    const GIB: u64 = 1 << 30;
    let rig = Rig::new();
    for n in 0..1000 {
        rig.front.begin_pool(PoolId(n, 0), Box::new(|_| true)).unwrap();
        rig.front.alloc(TILE, A).unwrap();
        rig.front.end_pool(PoolId(n, 0)).unwrap();
    }
    assert!(rig.front.usage().reserved <= 1000 * 8 * GIB, "{} bytes reserved", rig.front.usage().reserved);
    let before = rig.front.usage().reserved;
    rig.front.begin_pool(PoolId(0, 0), Box::new(|_| true)).unwrap();
    for _ in 0..100 {
        rig.front.alloc(GIB, A).unwrap();
    }
    assert_eq!(rig.front.usage().reserved - before, (16 + 32 + 64) * GIB, "each range is twice as long");
    rig.front.check_invariants();
}

#[test]
fn memory_that_came_to_a_pool_too_late_is_given_back() {
    let mut rig = Rig::new();
    // Requests find the pool open; by the time they are served it is closed, its graph through, its slot to be used again.
    rig.front.begin_pool(PoolId(1, 0), Box::new(|_| true)).unwrap();
    let slot = rig.front.pools.slot_for(A);
    let first = rig.used(TILE, A);
    rig.front.end_pool(PoolId(1, 0)).unwrap();
    rig.front.release_pool(PoolId(1, 0)).unwrap();
    rig.front.trim().unwrap();
    for stream in [B, A, C] {
        let late = rig.front.alloc_in(Key { slot, stream }, None, TILE).unwrap();
        rig.front.free(late).unwrap();
        rig.front.trim().unwrap();
        let stats = rig.front.stats();
        let theirs = stats.streams.iter().filter(|lane| lane.graph && lane.stream == stream.0);
        assert_eq!(theirs.map(|lane| lane.held - lane.live).sum::<u64>(), 0, "on stream {stream:?}");
        if stream == B {
            rig.free(first);
        }
    }
    rig.front.trim().unwrap();
    assert_eq!(rig.front.usage().held, 0);
    rig.check();
}

//! Which groups make room for others under a limit, and what lies on the host where none can.

use super::*;

/// The limit holds two groups of 8 MiB and 4 MiB more. One is pinned, the second idle, the third evicted.
fn pipeline() -> (Rig, [GroupId; 3]) {
    let mut rig = rig();
    let groups = ["text encoder", "unet", "vae"].map(|name| rig.group(name));
    for group in groups.into_iter().rev() {
        let block = rig.used_for(group, 8 * MIB, A);
        rig.left_out(&[block]);
    }
    rig.front.evict(groups[2]).unwrap();
    rig.front.trim().unwrap();
    rig.front.pin(groups[0]).unwrap();
    rig.front.set_limit(Some(20 * MIB)).unwrap();
    (rig, groups)
}

#[test]
fn what_is_prefetched_beside_others_evicts_only_what_makes_all_the_room() {
    use Residence::{Arriving, Evicted, Resident};
    let (mut rig, groups) = pipeline();
    let residence = |rig: &Rig| groups.map(|group| rig.residence(group));
    // What the pinned one will want yet does not fit with the third, whoever leaves.
    assert_eq!(rig.front.prefetch_beside(groups[2], 5 * MIB), Ok(false));
    assert_eq!(residence(&rig), [Resident, Resident, Evicted]);
    rig.world.waits();
    rig.front.reset_peaks();
    assert_eq!(rig.front.prefetch_beside(groups[2], 4 * MIB), Ok(true));
    assert_eq!(residence(&rig), [Resident, Evicted, Arriving]);
    assert_eq!(rig.world.waits(), [], "other work goes on beside it");
    assert_eq!(rig.front.prefetch_beside(groups[2], 4 * MIB), Ok(true), "it is on its way");
    // What was spared is there, and the prefetched one stays.
    rig.used(4 * MIB, B);
    assert_eq!(residence(&rig), [Resident, Evicted, Arriving]);
    rig.front.restore(groups[2], Some(A)).unwrap();
    assert_eq!(residence(&rig), [Resident, Evicted, Resident]);
    assert!(rig.front.usage().peak_held <= 20 * MIB, "{:?}", rig.front.usage());
    rig.front.check_invariants();
}

#[test]
fn what_is_prefetched_beside_others_takes_nothing_from_streams() {
    let (mut rig, groups) = pipeline();
    rig.front.discard(groups[1]).unwrap();
    // Free, but had by a stream that will want it again.
    let block = rig.used(6 * MIB, B);
    rig.free(block);
    rig.world.run(B);
    let held = rig.front.usage().held;
    assert_eq!(rig.front.prefetch_beside(groups[2], 0), Ok(false));
    rig.front.set_spill(true).unwrap();
    assert_eq!(rig.front.prefetch_beside(groups[2], 0), Ok(false), "nor is memory of the host made");
    assert_eq!((rig.residence(groups[2]), rig.front.stats().spilled), (Residence::Evicted, 0));
    assert_eq!(rig.front.usage().held, held);
    let calls = rig.witness.calls();
    rig.used(6 * MIB, B);
    assert_eq!(rig.witness.calls(), calls, "the stream has it yet");
    // It comes all the same once it is asked for.
    rig.front.set_spill(false).unwrap();
    rig.front.set_limit(None).unwrap();
    assert_eq!(rig.front.prefetch_beside(groups[2], 0), Ok(true));
    assert_eq!(rig.front.prefetch_beside(GroupId(9), 0), Err(Error::UnknownGroup(9)));
    rig.front.check_invariants();
}

#[test]
fn what_a_group_left_serves_shorter_requests_as_it_is() {
    let mut rig = rig();
    let group = rig.group("unet");
    let block = rig.used_for(group, 8 * MIB, A);
    rig.front.evict(group).unwrap();
    rig.left_out(&[block]);
    rig.world.run(A);
    let (held, calls) = (rig.front.usage().held, rig.front.calls());
    let blocks = [MIB, 2 * MIB].map(|bytes| rig.used(bytes, A));
    assert_eq!(rig.front.usage().held, held, "it is held anyway");
    let made = rig.front.calls().since(&calls);
    assert_eq!(
        (made.create, made.release, made.map),
        (0, 0, 1),
        "a heap longer than the first has room for both"
    );
    blocks.into_iter().for_each(|block| rig.free(block));
    rig.front.check_invariants();
}

#[test]
fn a_limit_evicts_what_was_used_longest_ago() {
    let mut rig = rig();
    let groups = ["text encoder", "unet", "vae"].map(|name| rig.group(name));
    for group in groups {
        let block = rig.used_for(group, 8 * MIB, A);
        rig.left_out(&[block]);
    }
    rig.front.set_limit(Some(24 * MIB)).unwrap();
    // Used again, so the second is the oldest.
    rig.front.restore(groups[0], None).unwrap();
    let first = rig.used(8 * MIB, A);
    let residence = || groups.map(|group| rig.residence(group));
    use Residence::{Evicted, Resident};
    assert_eq!(residence(), [Resident, Evicted, Resident]);
    rig.free(first);
    rig.world.run(A);
    assert!(rig.front.restore(groups[1], None).is_ok(), "what is free is taken first");
    let residence = || groups.map(|group| rig.residence(group));
    assert_eq!(residence(), [Resident, Resident, Resident]);
    rig.front.pin(groups[0]).unwrap();
    rig.front.pin(groups[2]).unwrap();
    rig.used(8 * MIB, B);
    let residence = || groups.map(|group| rig.residence(group));
    assert_eq!(residence(), [Resident, Evicted, Resident]);
    assert!(matches!(rig.try_alloc(8 * MIB, B), Err(Error::OutOfMemory { .. })), "what is pinned stays");
    let (limit, pinned) = (15 * MIB, 16 * MIB);
    assert_eq!(rig.front.set_limit(Some(limit)), Err(Error::LimitBelowPinned { limit, pinned }));
    rig.front.check_invariants();
}

#[test]
fn a_group_that_does_not_fit_stays_evicted_with_what_is_kept_of_it() {
    let mut rig = rig();
    let [group, other] = ["unet", "vae"].map(|name| rig.group(name));
    let block = rig.used_for(group, 16 * MIB, A);
    rig.front.evict(group).unwrap();
    rig.left_out(&[block]);
    let theirs = rig.used_for(other, 8 * MIB, B);
    rig.front.pin(other).unwrap();
    rig.front.set_limit(Some(16 * MIB)).unwrap();
    let refused = rig.front.restore(group, None);
    assert!(matches!(refused, Err(Error::OutOfMemory { request, .. }) if request == 16 * MIB), "{refused:?}");
    assert_eq!((rig.residence(group), rig.front.groups()[0].kept), (Residence::Evicted, 16 * MIB));
    rig.front.unpin(other).unwrap();
    rig.left_out(&[theirs]);
    rig.front.restore(group, Some(A)).unwrap();
    rig.enter(block, 16 * MIB, A);
    rig.launch(A, block);
    rig.front.check_invariants();
}

#[test]
fn what_does_not_fit_spills_where_that_is_allowed() {
    let mut rig = rig();
    let group = rig.group("unet");
    rig.front.set_limit(Some(8 * MIB)).unwrap();
    let kept = rig.used_for(group, 8 * MIB, A);
    rig.left_out(&[kept]);
    assert!(matches!(rig.try_alloc(12 * MIB, A), Err(Error::OutOfMemory { .. })), "too long for the limit");
    rig.front.set_spill(true).unwrap();
    let long = rig.used(12 * MIB, A);
    let stats = rig.front.stats();
    assert!(stats.usage.held <= 8 * MIB && stats.spilled > 0, "{stats:?}");
    assert_eq!(rig.residence(group), Residence::Evicted, "groups go before anything spills");
    // A group longer than the limit comes back all the same.
    rig.front.restore(group, Some(A)).unwrap();
    rig.front.check_invariants();
    rig.enter(kept, 8 * MIB, A);
    rig.launch(A, kept);
    rig.free(long);
    rig.world.run(A);
    rig.front.trim().unwrap();
    rig.front.evict(group).unwrap();
    rig.left_out(&[kept]);
    rig.front.restore(group, Some(A)).unwrap();
    assert_eq!(
        rig.front.group_stats(group).unwrap().held,
        8 * MIB,
        "what is free on the device is taken first"
    );
    rig.front.set_spill(false).unwrap();
    assert!(matches!(rig.try_alloc(12 * MIB, A), Err(Error::OutOfMemory { .. })));
    rig.front.check_invariants();
}

#[test]
fn what_was_done_for_want_of_memory_is_counted_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.csv.gz");
    let mut rig = rig();
    rig.front.record_to(&path).unwrap();
    rig.front.set_limit(Some(8 * MIB)).unwrap();
    let counts = |rig: &Rig| {
        let stats = rig.front.stats();
        (stats.evictions, stats.give_backs, stats.spills, stats.ooms)
    };
    let group = rig.group("unet");
    let kept = rig.used_for(group, 8 * MIB, A);
    rig.left_out(&[kept]);
    rig.front.evict(group).unwrap();
    rig.front.restore(group, None).unwrap();
    assert_eq!(counts(&rig), (0, 0, 0, 0), "nothing lacked");
    let block = rig.used(4 * MIB, A);
    assert_eq!(counts(&rig), (1, 1, 0, 0));
    assert!(rig.try_alloc(12 * MIB, A).is_err());
    assert_eq!(counts(&rig), (1, 1, 0, 1), "what would never fit costs nobody anything");
    rig.front.set_spill(true).unwrap();
    let long = rig.used(12 * MIB, A);
    let (evictions, give_backs, spills, ooms) = counts(&rig);
    assert_eq!((evictions, give_backs, ooms), (1, 2, 1));
    assert!(spills > 0);
    [block, long].into_iter().for_each(|block| rig.free(block));
    rig.world.run(A);
    let held = rig.front.usage().held;
    assert_eq!(rig.front.trim(), Ok(held));
    assert_eq!(rig.front.trim(), Ok(0), "of which there is nothing to tell");
    rig.front.stop_recording().unwrap();

    let trimmed = format!("trimmed: {held} bytes released");
    let told = [
        "evicted \"unet\": 8388608 bytes released, 8388608 bytes kept",
        "restored \"unet\": 8388608 bytes copied",
        "memory lacked: 0 bytes released",
        "evicted \"unet\": 8388608 bytes released, 8388608 bytes kept",
        "refused: out of memory: ",
        "memory lacked: 4194304 bytes released",
        "spilled: ",
        &trimmed,
    ];
    let remarks = remarks(&path);
    assert_eq!(remarks.len(), told.len(), "{remarks:#?}");
    for (remark, told) in remarks.iter().zip(told) {
        assert!(remark.starts_with(told), "{remarks:#?}");
    }
}

#[test]
fn what_no_eviction_could_serve_evicts_nothing() {
    let mut rig = rig();
    let group = rig.group("unet");
    rig.front.set_limit(Some(24 * MIB)).unwrap();
    rig.used_for(group, 8 * MIB, A);
    assert!(matches!(rig.try_alloc(1024 * MIB, B), Err(Error::OutOfMemory { .. })));
    assert_eq!(rig.residence(group), Residence::Resident);
    rig.check();
}

#[test]
fn a_prefetched_group_makes_room_like_others() {
    let mut rig = rig();
    let group = rig.group("unet");
    rig.front.set_limit(Some(16 * MIB)).unwrap();
    let block = rig.used_for(group, 8 * MIB, A);
    rig.front.evict(group).unwrap();
    rig.left_out(&[block]);
    rig.front.prefetch(group).unwrap();
    rig.used(12 * MIB, B);
    assert_eq!(rig.residence(group), Residence::Evicted);
    rig.front.check_invariants();
}

#[test]
fn what_is_on_the_host_counts_against_no_limit() {
    let mut rig = rig();
    rig.front.set_limit(Some(8 * MIB)).unwrap();
    rig.front.set_spill(true).unwrap();
    let group = rig.front.group("unet").unwrap();
    rig.used_for(group, 16 * MIB, A);
    let held = rig.front.group_stats(group).unwrap().held;
    assert!(held <= 8 * MIB, "{held}");
    rig.front.set_limit(Some(8 * MIB)).unwrap();
    rig.front.check_invariants();
}

#[test]
fn a_lowered_limit_empties_the_stock() {
    let mut rig = rig();
    let group = rig.group("unet");
    let block = rig.used_for(group, 8 * MIB, A);
    rig.left_out(&[block]);
    rig.front.evict(group).unwrap();
    rig.front.set_limit(Some(4 * MIB)).unwrap();
    assert!(rig.front.usage().held <= 4 * MIB);
    assert!(matches!(rig.front.restore(group, None), Err(Error::OutOfMemory { .. })));
    rig.front.check_invariants();
}

#[test]
fn memory_on_the_host_is_used_again_before_more_is_made() {
    let mut rig = rig();
    rig.front.set_limit(Some(8 * MIB)).unwrap();
    rig.front.set_spill(true).unwrap();
    let mut nanos = Vec::new();
    for stream in [A, B, A, B] {
        let before = rig.front.calls();
        let block = rig.used(20 * MIB, stream);
        rig.free(block);
        rig.world.run(stream);
        assert_eq!(rig.front.stats().spilled, 12 * MIB);
        nanos.push(rig.front.calls().since(&before).nanos);
    }
    // Memory of the host costs hundreds of times as much to make as the device's.
    assert!(nanos[1..].iter().all(|&later| later * 3 < nanos[0]), "{nanos:?}");
    rig.front.trim().unwrap();
    assert_eq!((rig.front.stats().spilled, rig.front.usage().held), (0, 0));
}

use super::super::{GroupId, Hosting, Residence};
use super::world::BUS;
use super::*;

/// Contents stay in buffers, so that the host has nothing to copy.
fn rig() -> Rig {
    let rig = Rig::new();
    rig.front.set_hosting(Hosting { pinned_bytes: 1 << 40, directory: None });
    rig
}

impl Rig {
    /// A group that may be evicted.
    fn group(&self, name: &str) -> GroupId {
        let group = self.front.group(name).unwrap();
        self.front.unpin(group).unwrap();
        group
    }

    /// A block of a group's whose first use is queued.
    fn used_for(&mut self, group: GroupId, bytes: u64, stream: Stream) -> u64 {
        let address = self.front.alloc_for(group, bytes, stream).unwrap();
        self.enter(address, bytes, stream);
        self.launch(stream, address);
        address
    }

    /// What is behind blocks of these will not stay.
    fn left_out(&mut self, blocks: &[u64]) {
        blocks.iter().for_each(|block| drop(self.live.remove(block)));
    }

    /// What is behind a block is not what was there before: looked up anew.
    fn moved(&mut self, address: u64) {
        let (bytes, stream, _) = self.live[&address];
        self.live.remove(&address);
        self.enter(address, bytes, stream);
    }

    fn residence(&self, group: GroupId) -> Residence {
        self.front.groups()[group.0 as usize].residence
    }
}

#[test]
fn an_evicted_group_holds_nothing_and_comes_back_to_its_addresses() {
    let mut rig = rig();
    let group = rig.group("unet");
    let blocks = [3 * MIB, 5 * MIB, 700].map(|bytes| rig.used_for(group, bytes, A));
    let held = rig.front.usage().held;
    assert_eq!(rig.front.evict(group), Ok(held));
    rig.front.check_invariants();
    assert_eq!(
        (rig.residence(group), rig.front.trim(), rig.front.usage().held),
        (Residence::Evicted, Ok(held), 0)
    );
    assert!(
        blocks.iter().all(|&block| rig.witness.resolve(block, 1).is_err()),
        "nothing is behind the addresses"
    );
    assert_eq!(rig.front.usage().live, 8 * MIB + 700);
    assert!(rig.front.restore(group, None).unwrap() >= 8 * MIB + 700);
    for block in blocks {
        rig.moved(block);
        rig.launch(A, block);
    }
    assert_eq!(rig.front.usage().held, held);
    rig.check();
}

#[test]
fn an_eviction_waits_for_the_work_of_its_group_only() {
    let mut rig = rig();
    let group = rig.group("unet");
    rig.used_for(group, TILE, A);
    let other = rig.used(TILE, B);
    rig.front.evict(group).unwrap();
    assert!(rig.world.is_idle(A) && !rig.world.is_idle(B));
    rig.launch(B, other);
}

#[test]
fn an_eviction_waits_for_streams_that_blocks_were_recorded_for() {
    let mut rig = rig();
    let group = rig.group("unet");
    let [block, freed] = [TILE, TILE].map(|bytes| rig.used_for(group, bytes, A));
    for (block, stream) in [(block, B), (freed, C)] {
        rig.world.order(stream, A);
        rig.front.record_stream(block, stream).unwrap();
        rig.launch(stream, block);
    }
    rig.free(freed);
    rig.front.evict(group).unwrap();
    assert!(rig.world.is_idle(B) && rig.world.is_idle(C));
}

#[test]
fn an_eviction_waits_for_streams_that_the_group_was_restored_for() {
    let mut rig = rig();
    let group = rig.group("unet");
    let block = rig.used_for(group, TILE, A);
    rig.front.restore(group, Some(B)).unwrap();
    rig.world.order(B, A);
    rig.launch(B, block);
    rig.front.evict(group).unwrap();
    assert!(rig.world.is_idle(B));
    rig.front.restore(group, Some(C)).unwrap();
    rig.moved(block);
    rig.launch(C, block);
    rig.world.run(C);
    rig.front.forget_stream(C).unwrap();
    rig.world.destroy(C);
    rig.front.evict(group).unwrap();
}

#[test]
fn streams_wait_for_contents_and_the_host_does_not() {
    let mut rig = rig();
    let group = rig.group("unet");
    let block = rig.used_for(group, 40 * MIB, A);
    rig.front.evict(group).unwrap();
    rig.world.waits();
    let waited = rig.world.host_waits();
    rig.front.restore(group, Some(B)).unwrap();
    assert_eq!(rig.world.host_waits(), waited);
    assert_eq!(rig.world.waits(), [(A.0, BUS.0), (B.0, BUS.0)]);
    rig.moved(block);
    rig.launch(A, block);
    // A further stream, later.
    rig.front.restore(group, Some(C)).unwrap();
    assert_eq!(rig.world.waits(), [(C.0, BUS.0)]);
}

#[test]
fn what_is_prefetched_is_used_once_it_is_restored() {
    let mut rig = rig();
    let group = rig.group("unet");
    let block = rig.used_for(group, 40 * MIB, A);
    rig.front.evict(group).unwrap();
    rig.world.waits();
    rig.front.prefetch(group).unwrap();
    rig.front.prefetch(group).unwrap();
    assert_eq!(rig.residence(group), Residence::Arriving);
    assert!(rig.front.usage().held >= 40 * MIB);
    assert_eq!(rig.world.waits(), [], "other work goes on beside it");
    assert!(matches!(rig.front.alloc_for(group, 1, A), Err(Error::Evicted { .. })));
    rig.front.end_of_execution().unwrap();
    rig.front.trim().unwrap();
    rig.front.restore(group, Some(A)).unwrap();
    rig.moved(block);
    rig.launch(A, block);
    rig.front.prefetch(group).unwrap();
    rig.check();
}

#[test]
fn a_prefetched_group_can_be_evicted_again() {
    let mut rig = rig();
    let group = rig.group("unet");
    let block = rig.used_for(group, 40 * MIB, A);
    rig.front.evict(group).unwrap();
    rig.front.prefetch(group).unwrap();
    rig.front.evict(group).unwrap();
    assert_eq!(rig.residence(group), Residence::Evicted);
    rig.front.restore(group, None).unwrap();
    rig.moved(block);
    rig.check();
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
fn blocks_of_an_evicted_group_are_freed_and_its_contents_with_the_last() {
    let mut rig = rig();
    let group = rig.group("unet");
    let blocks = [40 * MIB, 6 * MIB].map(|bytes| rig.used_for(group, bytes, A));
    rig.front.evict(group).unwrap();
    assert_eq!(rig.front.stats().kept, 46 * MIB);
    rig.free(blocks[0]);
    let restored = rig.front.restore(group, Some(A)).unwrap();
    assert!((6 * MIB..40 * MIB).contains(&restored), "{restored} bytes came back for one block");
    rig.moved(blocks[1]);
    rig.launch(A, blocks[1]);
    rig.front.evict(group).unwrap();
    rig.free(blocks[1]);
    assert_eq!(rig.front.stats().kept, 0);
    rig.front.restore(group, None).unwrap();
    assert_eq!((rig.front.usage().live, rig.front.usage().mapped), (0, 0));
    rig.used_for(group, MIB, A);
    rig.check();
}

#[test]
fn states_are_idempotent_and_refusals_say_why() {
    let mut rig = rig();
    let group = rig.group("unet");
    assert_eq!(rig.front.group("unet"), Ok(group), "a name is one group's");
    let block = rig.used_for(group, 3 * MIB, A);
    assert_eq!(rig.front.restore(group, None), Ok(0), "it is resident");
    let made = rig.front.group("vae").unwrap();
    assert!(matches!(rig.front.evict(made), Err(Error::Pinned { .. })), "its maker has to let it go first");
    rig.front.remove_group(made).unwrap();
    rig.front.pin(group).unwrap();
    assert_eq!(rig.front.evict(group).unwrap_err().to_string(), "group \"unet\" is pinned: unpin it first");
    rig.front.unpin(group).unwrap();
    assert!(matches!(rig.front.unpin(group), Err(Error::NotPinned { .. })));
    rig.front.evict(group).unwrap();
    assert_eq!((rig.front.evict(group), rig.front.discard(group)), (Ok(0), Ok(0)));
    assert_eq!(rig.front.stats().kept, 0, "what is discarded is not kept");
    let evicted = "group \"unet\" is evicted: restore it first";
    assert_eq!(rig.front.alloc_for(group, 1, A).unwrap_err().to_string(), evicted);
    assert_eq!(rig.front.alloc_for(group, 1, B).unwrap_err().to_string(), evicted);
    assert_eq!(rig.front.read(block, &mut [0]).unwrap_err().to_string(), evicted);
    assert!(matches!(rig.front.remove_group(group), Err(Error::GroupInUse { blocks: 1, .. })));
    assert_eq!(rig.front.evict(GroupId(7)), Err(Error::UnknownGroup(7)));
    rig.free(block);
    rig.front.remove_group(group).unwrap();
    for refused in [rig.front.evict(group).map(drop), rig.front.alloc_for(group, 1, A).map(drop)] {
        assert_eq!(refused, Err(Error::UnknownGroup(0)));
    }
    assert_ne!(rig.group("unet"), group);
    rig.front.trim().unwrap();
    assert_eq!(rig.front.usage().held, 0);
}

#[test]
fn a_group_whose_stream_is_captured_stays() {
    let mut rig = rig();
    let group = rig.group("unet");
    let block = rig.used_for(group, 3 * MIB, A);
    rig.world.capture(A, true);
    assert!(matches!(rig.front.evict(group), Err(Error::Device(_))));
    rig.world.capture(A, false);
    assert_eq!(rig.residence(group), Residence::Resident);
    rig.launch(A, block);
    let more = rig.front.alloc_for(group, MIB, A).unwrap();
    rig.enter(more, MIB, A);
    rig.check();
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
fn a_trace_tells_when_groups_went_and_came() {
    use std::io::Read;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.csv.gz");
    let mut rig = rig();
    rig.front.record_to(&path).unwrap();
    let group = rig.group("unet\n");
    let block = rig.used_for(group, 4 * MIB, A);
    rig.front.evict(group).unwrap();
    rig.front.restore(group, None).unwrap();
    rig.free(block);
    rig.front.stop_recording().unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(&path).unwrap()).read_to_string(&mut text).unwrap();
    let remarks: Vec<&str> = text.lines().filter(|line| line.starts_with('#')).collect();
    assert_eq!(remarks.len(), 2, "{text}");
    assert!(
        remarks[0].ends_with("evicted \"unet\\n\": 4194304 bytes released, 4194304 bytes kept"),
        "{text}"
    );
    assert!(remarks[1].ends_with("restored \"unet\\n\": 4194304 bytes copied"), "{text}");
    assert_eq!(crate::trace::Trace::load(&path).unwrap().steps().len(), 2, "remarks are no events");
}

#[test]
fn a_directory_that_is_not_there_leaves_the_group_resident() {
    let mut rig = rig();
    rig.front.set_hosting(Hosting { pinned_bytes: 0, directory: Some("/nowhere/at/all".into()) });
    let group = rig.group("unet");
    let block = rig.used_for(group, 4 * MIB, A);
    let refused = rig.front.evict(group).unwrap_err().to_string();
    assert!(refused.contains("cannot be kept on the host: no file in /nowhere/at/all"), "{refused}");
    assert_eq!((rig.residence(group), rig.front.stats().kept), (Residence::Resident, 0));
    rig.launch(A, block);
    rig.used_for(group, MIB, A);
    rig.check();
}

#[test]
fn what_is_constant_is_copied_once() {
    let mut rig = rig();
    let group = rig.group("unet");
    rig.front.set_constant(group, true).unwrap();
    let block = rig.used_for(group, 6 * MIB, A);
    let out = |rig: &Rig| rig.front.groups()[0].bytes_out;
    for _ in 0..3 {
        rig.front.evict(group).unwrap();
        rig.front.restore(group, Some(A)).unwrap();
        rig.moved(block);
        rig.launch(A, block);
        assert_eq!((out(&rig), rig.front.stats().kept), (6 * MIB, 6 * MIB));
    }
    // A further block is not on the host.
    let more = rig.used_for(group, 2 * MIB, A);
    rig.front.evict(group).unwrap();
    assert_eq!(out(&rig), 14 * MIB);
    rig.front.restore(group, None).unwrap();
    rig.left_out(&[block, more]);
    rig.enter(block, 6 * MIB, A);
    rig.enter(more, 2 * MIB, A);
    rig.front.set_constant(group, false).unwrap();
    assert_eq!(rig.front.stats().kept, 0);
    rig.front.evict(group).unwrap();
    assert_eq!(out(&rig), 22 * MIB);
    rig.front.discard(group).unwrap();
    rig.front.restore(group, None).unwrap();
    rig.left_out(&[block, more]);
    rig.enter(block, 6 * MIB, A);
    rig.enter(more, 2 * MIB, A);
    rig.free(block);
    rig.free(more);
    rig.check();
}

/// A block of a group's that a stream, which is being captured by now, uses too.
fn captured_user(rig: &mut Rig, group: GroupId) -> u64 {
    let block = rig.used_for(group, 4 * MIB, A);
    rig.world.order(B, A);
    rig.front.record_stream(block, B).unwrap();
    rig.launch(B, block);
    rig.world.capture(B, true);
    block
}

#[test]
fn an_eviction_is_refused_while_it_cannot_be_told_what_a_freed_block_waits_for() {
    let mut rig = rig();
    let group = rig.group("unet");
    let block = captured_user(&mut rig, group);
    let other = rig.used_for(group, MIB, A);
    rig.free(block);
    assert!(matches!(rig.front.evict(group), Err(Error::Device(_))));
    assert!(matches!(rig.front.remove_group(group), Err(Error::GroupInUse { .. })));
    rig.free(other);
    assert!(matches!(rig.front.remove_group(group), Err(Error::GroupInUse { blocks: 0, .. })));
    rig.world.capture(B, false);
    rig.world.run(B);
    rig.front.remove_group(group).unwrap();
    rig.front.trim().unwrap();
    assert_eq!(rig.front.usage().held, 0);
}

#[test]
fn a_stream_that_is_captured_waits_for_no_contents() {
    let mut rig = rig();
    let group = rig.group("unet");
    let block = rig.used_for(group, 40 * MIB, A);
    rig.front.evict(group).unwrap();
    rig.world.capture(B, true);
    rig.front.restore(group, Some(B)).unwrap();
    rig.moved(block);
    assert!(rig.world.is_idle(BUS), "the host waited in its place");
}

#[test]
fn numbers_that_no_group_has_are_refused() {
    let rig = rig();
    let group = rig.group("unet");
    rig.front.begin_pool(PoolId(1, 1), Box::new(|stream| stream == B)).unwrap();
    for wrong in [group.0 + 1, 1 << 31, 1 << 31 | group.0, u32::MAX] {
        for stream in [A, B] {
            assert_eq!(rig.front.alloc_for(GroupId(wrong), MIB, stream), Err(Error::UnknownGroup(wrong)));
        }
    }
}

#[test]
fn contents_go_with_the_last_block_whoever_used_it() {
    let mut rig = rig();
    let group = rig.group("unet");
    let block = rig.used_for(group, 40 * MIB, A);
    rig.front.record_stream(block, B).unwrap();
    rig.front.evict(group).unwrap();
    rig.free(block);
    assert_eq!(rig.front.stats().kept, 0);
    rig.check();
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
fn what_an_eviction_could_not_give_back_is_tried_again() {
    let mut rig = rig();
    let group = rig.group("unet");
    let block = rig.used_for(group, 8 * MIB, A);
    rig.faults.set(Plan::every(1).of(Call::Unmap));
    assert!(matches!(rig.front.evict(group), Err(Error::Device(_))));
    rig.faults.clear();
    assert_eq!((rig.residence(group), rig.front.usage().held), (Residence::Evicted, 8 * MIB));
    rig.front.trim().unwrap();
    assert_eq!(rig.front.usage().held, 0);
    rig.front.restore(group, None).unwrap();
    rig.moved(block);
    rig.check();
}

#[test]
fn a_save_that_fails_leaves_no_copy_under_way() {
    let mut rig = rig();
    let group = rig.group("unet");
    let block = rig.used_for(group, 80 * MIB, A);
    rig.world.run(A);
    rig.world.limit_copies(Some(1));
    assert!(matches!(rig.front.evict(group), Err(Error::Device(_))));
    rig.world.limit_copies(None);
    assert_eq!((rig.residence(group), rig.front.stats().kept), (Residence::Resident, 0));
    rig.free(block);
    rig.front.trim().unwrap();
    assert_eq!(rig.front.usage().held, 0);
}

#[test]
fn a_load_that_fails_leaves_the_group_evicted_with_all_that_is_kept() {
    for hosting in [Hosting { pinned_bytes: 1 << 40, directory: None }, Hosting::default()] {
        let mut rig = rig();
        rig.front.set_hosting(hosting);
        let group = rig.group("unet");
        let blocks = [(80 * MIB, A), (40 * MIB, B)].map(|(bytes, stream)| rig.used_for(group, bytes, stream));
        rig.front.evict(group).unwrap();
        rig.left_out(&blocks);
        rig.world.limit_copies(Some(2));
        assert!(matches!(rig.front.restore(group, None), Err(Error::Device(_))));
        rig.front.prefetch(group).unwrap();
        assert!(matches!(rig.front.evict(group), Err(Error::Device(_))), "of the prefetch");
        rig.world.limit_copies(None);
        assert_eq!((rig.residence(group), rig.front.stats().kept), (Residence::Evicted, 120 * MIB));
        rig.front.restore(group, None).unwrap();
        rig.enter(blocks[0], 80 * MIB, A);
        rig.enter(blocks[1], 40 * MIB, B);
        rig.check();
    }
}

#[test]
fn the_front_goes_after_its_copies() {
    let mut rig = rig();
    let group = rig.group("unet");
    rig.used_for(group, 80 * MIB, A);
    rig.front.evict(group).unwrap();
    rig.front.restore(group, Some(A)).unwrap();
    assert!(!rig.world.is_idle(BUS));
    drop(rig.front);
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

fn many_fronts(rounds: u64, body: impl Fn(&Shared, GroupId, u64)) {
    for round in 0..rounds {
        let streams = Box::new(crate::shared::streams::InOrder);
        let front = Shared::new(device::open("sim-h200").unwrap(), streams, &Options::default()).unwrap();
        let group = front.group("unet").unwrap();
        front.unpin(group).unwrap();
        body(&front, group, round);
        front.check_invariants();
    }
}

#[test]
fn no_lane_is_made_unseen_while_its_group_goes() {
    many_fronts(300, |front, group, round| {
        front.alloc_for(group, MIB, A).unwrap();
        let all = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                all.wait();
                (0..round % 60).for_each(|_| std::hint::spin_loop());
                let _either = front.alloc_for(group, MIB, B);
            });
            all.wait();
            front.evict(group).unwrap();
        });
        assert_eq!(front.group_stats(group).unwrap().held, 0);
    });
}

#[test]
fn a_group_that_is_removed_while_it_is_asked_leaks_nothing() {
    many_fronts(100, |front, group, round| {
        let ask = || (1..=20).filter_map(|stream| front.alloc_for(group, MIB, Stream(stream)).ok()).collect();
        let served: Vec<u64> = ask();
        served.into_iter().for_each(|block| front.free(block).unwrap());
        let all = std::sync::Barrier::new(2);
        let served: Vec<u64> = std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                all.wait();
                (0..round * 20).for_each(|_| std::hint::spin_loop());
                ask()
            });
            all.wait();
            let _either = front.remove_group(group);
            asking.join().unwrap()
        });
        served.into_iter().for_each(|block| front.free(block).unwrap());
        let _either = front.remove_group(group);
        front.trim().unwrap();
        assert_eq!(front.usage().held, 0);
    });
}

#[test]
fn groups_that_come_at_once_do_not_keep_each_other_out() {
    many_fronts(1, |front, first, _| {
        front.set_limit(Some(24 * MIB)).unwrap();
        let second = front.group("vae").unwrap();
        front.unpin(second).unwrap();
        for group in [first, second] {
            for stream in 1..5 {
                front.alloc_for(group, 4 * MIB, Stream(stream)).unwrap();
            }
            front.evict(group).unwrap();
        }
        std::thread::scope(|scope| {
            for group in [first, second] {
                scope.spawn(move || {
                    for _ in 0..1000 {
                        front.restore(group, None).unwrap();
                    }
                });
            }
        });
    });
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

#[test]
fn a_lane_that_goes_back_waits_for_what_was_queued_for_it() {
    let mut rig = rig();
    rig.front.set_hosting(Hosting::default());
    let group = rig.group("unet");
    let of = [(48 * MIB, A), (8 * MIB, B)];
    let blocks = of.map(|(bytes, stream)| rig.used_for(group, bytes, stream));
    rig.front.evict(group).unwrap();
    rig.left_out(&blocks);
    // The first lane's copies are under way when the second's is refused.
    rig.world.limit_copies(Some(6));
    assert!(matches!(rig.front.restore(group, None), Err(Error::Device(_))));
    rig.world.limit_copies(None);
    rig.front.restore(group, None).unwrap();
    for (block, (bytes, stream)) in blocks.into_iter().zip(of) {
        rig.enter(block, bytes, stream);
    }
    rig.check();
}

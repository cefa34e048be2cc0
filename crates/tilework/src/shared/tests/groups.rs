//! Groups: what they are asked for, and where they are.

mod failing;
mod host;
mod removed;
mod room;
mod threads;
mod waiting;

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use flate2::read::GzDecoder;

use super::super::{GroupId, Hosting, Residence};
use super::world::BUS;
use super::*;

/// Contents stay in buffers, so that the host has nothing to copy.
fn rig() -> Rig {
    let rig = Rig::new();
    rig.front.set_hosting(Hosting { pinned_bytes: 1 << 40, directory: None });
    rig
}

/// What a trace tells beside requests and frees, without its time.
fn remarks(trace: &Path) -> Vec<String> {
    let mut text = String::new();
    GzDecoder::new(File::open(trace).unwrap()).read_to_string(&mut text).unwrap();
    let remarks = text.lines().filter_map(|line| line.strip_prefix("# "));
    remarks.map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
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
fn with_a_trap_nothing_is_at_the_addresses_before_the_restore() {
    let mut rig = rig();
    let group = rig.group("unet");
    let block = rig.used_for(group, 40 * MIB, A);
    rig.world.run(A);
    rig.front.set_trap(true);
    rig.front.evict(group).unwrap();
    rig.front.prefetch(group).unwrap();
    assert_eq!(rig.front.prefetch_beside(group, 0), Ok(false));
    assert_eq!((rig.residence(group), rig.front.usage().mapped), (Residence::Evicted, 0));
    assert!(rig.witness.resolve(block, 1).is_err());
    rig.front.restore(group, Some(A)).unwrap();
    rig.moved(block);
    rig.launch(A, block);
    rig.front.set_trap(false);
    rig.front.evict(group).unwrap();
    rig.front.prefetch(group).unwrap();
    assert_eq!(rig.residence(group), Residence::Arriving);
    rig.front.restore(group, Some(A)).unwrap();
    rig.moved(block);
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
fn a_trace_tells_when_groups_went_and_came() {
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
    let told = [
        "evicted \"unet\\n\": 4194304 bytes released, 4194304 bytes kept",
        "restored \"unet\\n\": 4194304 bytes copied",
    ];
    assert_eq!(remarks(&path), told);
    assert_eq!(crate::trace::Trace::load(&path).unwrap().steps().len(), 2, "remarks are no events");
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

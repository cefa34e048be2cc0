//! Who waits for whom when groups go and come.

use super::*;

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

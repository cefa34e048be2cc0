//! Groups whose going or coming fails half way, and fronts that go meanwhile.

use super::*;

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
fn a_prefetch_that_fails_keeps_no_memory_from_others() {
    let mut rig = rig();
    let group = rig.group("unet");
    let block = rig.used_for(group, 8 * MIB, A);
    rig.front.evict(group).unwrap();
    rig.left_out(&[block]);
    rig.front.set_limit(Some(16 * MIB)).unwrap();
    rig.world.limit_copies(Some(0));
    assert_eq!(rig.front.prefetch_beside(group, 0), Ok(true));
    let other = rig.used(12 * MIB, B);
    assert_eq!((rig.residence(group), rig.front.stats().kept), (Residence::Evicted, 8 * MIB));
    rig.world.limit_copies(None);
    rig.free(other);
    rig.front.restore(group, Some(A)).unwrap();
    rig.enter(block, 8 * MIB, A);
    rig.check();
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

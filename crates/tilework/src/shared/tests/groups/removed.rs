//! Groups that are removed: what they had serves those that come later.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::AtomicBool;

use super::*;

const GIB: u64 = 1 << 30;

fn front() -> Shared {
    let streams = Box::new(crate::shared::streams::InOrder);
    Shared::new(device::open("sim-h200").unwrap(), streams, &Options::default()).unwrap()
}

fn lanes(front: &Shared) -> usize {
    front.stats().streams.len()
}

/// A group that one block was allocated for on each of two streams.
fn used_group(front: &Shared, name: &str) -> (GroupId, [u64; 2]) {
    let group = front.group(name).unwrap();
    (group, [A, B].map(|stream| front.alloc_for(group, 3 * MIB, stream).unwrap()))
}

#[test]
fn groups_that_come_after_each_other_have_the_same_lanes_and_numbers_of_their_own() {
    let front = front();
    let mut numbers = BTreeSet::new();
    for n in 0..10_000 {
        let (group, blocks) = used_group(&front, &format!("model {n}"));
        assert!(numbers.insert(group), "{group:?} was another's");
        if n % 2 == 0 {
            front.unpin(group).unwrap();
            front.evict(group).unwrap();
        }
        blocks.into_iter().for_each(|block| front.free(block).unwrap());
        front.remove_group(group).unwrap();
    }
    assert_eq!((lanes(&front), front.usage().reserved), (2, 0));
    front.trim().unwrap();
    assert_eq!(front.usage().held, 0);
    let stats = front.stats();
    assert_eq!((stats.allocations, stats.frees), (20_000, 20_000), "what was counted stays counted");
    assert_eq!(stats.groups, []);
    assert!(stats.streams.iter().all(|lane| lane.group.is_none()));
    // A lane begins with as little address space as the first group had.
    let (group, _) = used_group(&front, "the last");
    assert_eq!(front.usage().reserved, 2 * 8 * GIB);
    assert!(front.stats().streams.iter().all(|lane| lane.group == Some(group.0)));
    front.check_invariants();
}

#[test]
fn a_number_is_never_given_again_though_a_slot_runs_out_of_them() {
    let front = front();
    let mut numbers = BTreeSet::new();
    for _ in 0..33_000 {
        let group = front.group("model").unwrap();
        assert!(numbers.insert(group), "{group:?} was another's");
        let block = front.alloc_for(group, MIB, A).unwrap();
        front.free(block).unwrap();
        front.remove_group(group).unwrap();
    }
    assert_eq!(lanes(&front), 2, "of two slots");
    let (first, last) = (*numbers.first().unwrap(), *numbers.last().unwrap());
    for gone in [first, last] {
        assert_eq!(front.alloc_for(gone, MIB, A), Err(Error::UnknownGroup(gone.0)));
    }
}

#[test]
fn as_many_lanes_are_kept_as_groups_had_at_once() {
    let mut rig = Rig::new();
    let mut random = xorshift(7);
    let mut groups: BTreeMap<GroupId, Vec<u64>> = BTreeMap::new();
    for n in 0..400 {
        if groups.len() == 6 {
            let nth = random() as usize % groups.len();
            let (&group, _) = groups.iter().nth(nth).unwrap();
            groups.remove(&group).unwrap().into_iter().for_each(|block| rig.free(block));
            // Its work may still be queued: what comes to its lanes is behind it.
            rig.front.remove_group(group).unwrap();
            assert_eq!(rig.front.alloc_for(group, MIB, A), Err(Error::UnknownGroup(group.0)));
        }
        let group = rig.front.group(&format!("model {n}")).unwrap();
        let mut blocks = Vec::new();
        for stream in [A, B] {
            let bytes = 1 + random() % (3 * TILE);
            let block = rig.front.alloc_for(group, bytes, stream).unwrap();
            rig.enter(block, bytes, stream);
            rig.launch(stream, block);
            blocks.push(block);
        }
        groups.insert(group, blocks);
        rig.check();
    }
    assert_eq!(lanes(&rig.front), 6 * 2);
    let stats = rig.front.groups();
    assert!(
        stats.iter().map(|group| group.name.as_str()).is_sorted(),
        "in the order in which they were made"
    );
}

#[test]
fn who_asks_for_a_group_that_is_gone_gets_nothing_of_the_next() {
    for round in 0..300_u64 {
        let front = front();
        let first = front.group("unet").unwrap();
        let block = front.alloc_for(first, MIB, A).unwrap();
        front.free(block).unwrap();
        let (all, over) = (Barrier::new(2), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                all.wait();
                while !over.load(Ordering::Relaxed) {
                    let Ok(block) = front.alloc_for(first, MIB, A) else { continue };
                    let lane = front.lane_at(block).unwrap();
                    assert_eq!(lane.home.group(), Some(first), "round {round}");
                    front.free(block).unwrap();
                }
            });
            all.wait();
            while front.remove_group(first).is_err() {
                std::thread::yield_now();
            }
            let (next, _) = used_group(&front, "vae");
            (0..round * 10).for_each(|_| std::hint::spin_loop());
            over.store(true, Ordering::Relaxed);
            assert_eq!(front.group_stats(next).unwrap().name, "vae");
        });
        assert_eq!((lanes(&front), front.usage().live), (2, 6 * MIB));
        front.check_invariants();
    }
}

#[test]
fn nothing_is_served_for_a_group_once_it_is_removed() {
    for round in 0..300_u64 {
        let front = front();
        let group = front.group("unet").unwrap();
        // Lanes that take their time to close, while who asks waits to make one more.
        for stream in 1..50 {
            let block = front.alloc_for(group, MIB, Stream(stream)).unwrap();
            front.free(block).unwrap();
        }
        let all = Barrier::new(2);
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                all.wait();
                (0..round * 5).for_each(|_| std::hint::spin_loop());
                front.alloc_for(group, MIB, A)
            });
            all.wait();
            let removed = front.remove_group(group);
            let served = asking.join().unwrap();
            match removed {
                Ok(()) => assert_eq!(served, Err(Error::UnknownGroup(group.0)), "round {round}"),
                Err(error) => assert!(matches!(error, Error::GroupInUse { .. }) && served.is_ok(), "{error}"),
            }
        });
        front.check_invariants();
    }
}

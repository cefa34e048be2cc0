//! Groups that several threads use at once.

use super::*;

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
fn a_group_that_is_removed_while_it_is_moved_leaks_nothing() {
    many_fronts(200, |front, group, round| {
        front.set_hosting(Hosting { pinned_bytes: 64 * MIB, directory: None });
        let blocks = [A, B].map(|stream| front.alloc_for(group, 40 * MIB, stream).unwrap());
        let all = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                all.wait();
                let moves: [&dyn Fn() -> Result<()>; 4] = [
                    &|| front.evict(group).map(drop),
                    &|| front.prefetch(group),
                    &|| front.restore(group, Some(A)).map(drop),
                    &|| front.discard(group).map(drop),
                ];
                // Each of them is met, in whatever state the group is, until it is gone.
                for n in 0.. {
                    match moves[(round as usize + n) % 4]() {
                        Ok(()) => {}
                        Err(Error::UnknownGroup(_)) => break,
                        Err(error) => panic!("round {round}: {error}"),
                    }
                }
            });
            all.wait();
            (0..round * 20).for_each(|_| std::hint::spin_loop());
            blocks.into_iter().for_each(|block| front.free(block).unwrap());
            front.remove_group(group).unwrap();
        });
        assert_eq!(front.stats().kept, 0);
        front.trim().unwrap();
        assert_eq!(front.usage().held, 0);
    });
}

#[test]
fn a_front_that_is_dropped_while_a_group_arrives_waits_for_it() {
    for _ in 0..20 {
        let mut rig = rig();
        let group = rig.group("unet");
        let block = rig.used_for(group, 100 * MIB, A);
        rig.world.run(A);
        rig.front.evict(group).unwrap();
        rig.front.prefetch(group).unwrap();
        rig.left_out(&[block]);
        let Rig { front, world, .. } = rig;
        drop(front);
        assert!(world.is_alone());
    }
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

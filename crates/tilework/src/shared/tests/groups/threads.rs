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

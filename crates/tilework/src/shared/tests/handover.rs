//! Memory that is freed on a stream, and who has it next: the same stream, another one, or the device.

use super::*;
use crate::device::sim::Sim;

#[test]
fn what_is_freed_on_a_stream_is_used_again_there_at_once() {
    let mut rig = Rig::new();
    let first = rig.used(3 * MIB, A);
    rig.free(first);
    let calls = rig.witness.calls();
    rig.used(3 * MIB, A);
    assert_eq!((rig.witness.calls(), rig.world.recorded()), (calls, 0));
    rig.check();
}

#[test]
fn another_stream_does_not_touch_what_is_in_use() {
    let mut rig = Rig::new();
    let first = rig.used(TILE, A);
    rig.free(first);
    let held = rig.front.usage().held;
    let second = rig.used(TILE, B);
    assert_ne!(first, second);
    assert!(rig.front.usage().held > held, "a stream that has work to do keeps what it has");
    assert_eq!(rig.world.waits(), []);
    rig.check();
}

#[test]
fn another_stream_takes_what_is_no_longer_in_use() {
    let mut rig = Rig::new();
    let first = rig.used(TILE, A);
    rig.free(first);
    rig.world.run(A);
    let held = rig.front.usage().held;
    rig.used(TILE, B);
    assert_eq!(rig.front.usage().held, held);
    assert_eq!(rig.world.waits(), [], "nothing is left to wait for");
    rig.check();
}

#[test]
fn streams_that_work_by_turns_do_not_hand_memory_to_and_fro() {
    let mut rig = Rig::new();
    let mut calls = Vec::new();
    for _ in 0..4 {
        for (stream, bytes) in [(A, 8 * TILE), (B, 6 * TILE)] {
            let block = rig.used(bytes, stream);
            rig.free(block);
            rig.world.run(stream);
        }
        calls.push(rig.witness.calls());
    }
    assert_eq!(calls[1], calls[3], "each has what it needs");
    assert!(rig.front.usage().held <= 14 * TILE);
    rig.check();
}

#[test]
fn when_memory_is_out_the_stream_waits_and_the_host_does_not() {
    let mut rig = Rig::limited(4 * TILE);
    let first = rig.used(4 * TILE, A);
    rig.free(first);
    rig.used(4 * TILE, B);
    let mut waits = rig.world.waits();
    waits.dedup();
    assert_eq!(waits, [(B.0, A.0)]);
    assert_eq!(rig.world.host_waits(), 0);
    assert!(rig.front.usage().mapped > 4 * TILE, "the old mappings stay until their work is over");
    rig.world.run(B);
    rig.front.end_of_execution().unwrap();
    assert_eq!(rig.front.usage().mapped, 4 * TILE);
    rig.check();
}

#[test]
fn a_heap_comes_home_to_a_place_that_is_still_mapped_only_behind_its_work() {
    let mut rig = Rig::limited(4 * TILE);
    let first = rig.used(4 * TILE, A);
    rig.free(first);
    let second = rig.used(4 * TILE, B);
    rig.free(second);
    // A's old addresses are late; B's work waits for A's, so what A waits for covers them.
    rig.used(4 * TILE, A);
    rig.check();
    assert!(rig.world.waits().contains(&(A.0, B.0)));
}

#[test]
fn heaps_that_change_hands_are_asked_about_a_few_times_each() {
    let mut rig = Rig::limited(32 * TILE);
    let blocks: Vec<u64> = (0..16).map(|_| rig.used(2 * TILE, A)).collect();
    blocks.into_iter().for_each(|block| rig.free(block));
    let asked = rig.world.asked();
    rig.used(32 * TILE, B);
    let asked = rig.world.asked() - asked;
    assert!(asked < 32 * 4, "asked {asked} times for 32 heaps at most");
    rig.check();
}

#[test]
fn heaps_that_come_back_are_used_again_and_not_created() {
    let mut rig = Rig::new();
    let first = rig.used(4 * TILE, A);
    rig.free(first);
    rig.front.forget_stream(A).unwrap();
    let creates = |rig: &Rig| rig.witness.log(0).iter().filter(|logged| logged.call == Call::Create).count();
    let (stock, made) = (rig.front.stats().stock, creates(&rig));
    assert_eq!((stock, rig.front.usage().held), (4 * TILE, 4 * TILE));
    rig.used(4 * TILE, B);
    assert_eq!((creates(&rig), rig.front.stats().stock), (made, 0));
    rig.check();
}

#[test]
fn stock_that_stays_unused_goes_back() {
    let mut rig = Rig::new();
    let first = rig.used(4 * TILE, A);
    rig.free(first);
    rig.world.run(A);
    for _ in 0..20 {
        rig.front.end_of_execution().unwrap();
    }
    assert_eq!(rig.front.usage().held, 0);
    assert_eq!(rig.world.host_waits(), 0);
    rig.check();
}

#[test]
fn a_stream_that_is_no_more_is_never_asked_again() {
    let mut rig = Rig::new();
    let kept = rig.used(TILE, B);
    let shared = rig.used(TILE, A);
    let gone = rig.used(4 * TILE, B);
    rig.front.record_stream(shared, B).unwrap();
    rig.free(gone);
    rig.front.forget_stream(B).unwrap();
    rig.world.destroy(B);
    rig.check();
    rig.free(shared);
    rig.free(kept);
    rig.front.end_of_execution().unwrap();
    rig.world.run(A);
    rig.front.trim().unwrap();
    assert_eq!(rig.front.usage().held, 0);
}

#[test]
fn devices_without_tiles_are_served() {
    nothing_is_mapped_elsewhere(Sim::h200().without_tiling(), Shared::new);
}

#[test]
fn placed_serves_where_it_is_asked_for() {
    nothing_is_mapped_elsewhere(Sim::h200(), Shared::placed);
}

type Front = fn(Box<dyn device::Device>, Box<dyn streams::Streams>, &Options) -> Result<Shared>;

fn nothing_is_mapped_elsewhere(device: Sim, front: Front) {
    let world = World::new();
    let (device, witness) = world.device(Box::new(device));
    let front = front(device, world.streams(), &Options::default()).unwrap();
    assert_eq!(front.serving().kind, crate::manager::Kind::Placed);
    assert_eq!(front.group("unet"), Err(Error::NoGroups));
    assert_eq!(front.set_spill(true), Err(Error::NoSpill));
    let block = front.alloc(TILE, A).unwrap();
    world.launch(A, block, TILE, &witness);
    front.free(block).unwrap();
    front.trim().unwrap();
    assert_eq!(world.host_waits(), 1, "what cannot be mapped twice is waited for");
    assert_eq!(front.usage().held, 0);
    front.check_invariants();
}

/// Runs small executions with one large one among them, of `bytes`. What was held behind the large one and behind each of the four that followed.
fn burst(rig: &mut Rig, bytes: u64, before_each: impl Fn(&Rig)) -> (u64, [u64; 4]) {
    let execution = |rig: &mut Rig, bytes: u64| {
        let block = rig.used(bytes, A);
        rig.free(block);
        rig.world.run(A);
        before_each(rig);
        // A device that fails is none of the program's concern: what stays held is tried again.
        let _ended = rig.front.end_of_execution();
        rig.front.depot.finish();
        rig.front.usage().held
    };
    execution(rig, 2 * TILE);
    let large = execution(rig, bytes);
    (large, std::array::from_fn(|_| execution(rig, 2 * TILE)))
}

#[test]
fn what_a_burst_needed_is_given_back_after_the_executions_that_were_set() {
    // What is given back at once, and what is beside the program.
    for tiles in [10, 100] {
        let options = Options { heap_bytes: 2 * TILE, heap_age: 3, ..Options::default() };
        let mut rig = Rig::with(options);
        let weights = rig.used(8 * TILE, A);
        let small = 10 * TILE;
        let (large, after) = burst(&mut rig, tiles * TILE, |_| {});
        assert!(large >= 8 * TILE + tiles * TILE);
        assert_eq!(after, [large, large, small, small], "after three executions in which it was unused");
        rig.free(weights);
        rig.check();
    }
}

#[test]
fn what_cannot_be_given_back_beside_the_program_is_tried_again() {
    let small = 2 * TILE;
    // A call that fails once is made again in the next round, and calls that all fail with the next execution.
    let once = [Call::Unmap, Call::Release].map(|call| (Plan::nth(20).of(call), 1));
    let all = [Call::Unmap, Call::Release].map(|call| (Plan::every(1).of(call), 2));
    for (plan, given_back) in once.into_iter().chain(all) {
        let options = Options { heap_bytes: 2 * TILE, heap_age: 2, ..Options::default() };
        let mut rig = Rig::with(options);
        let executions = std::cell::Cell::new(0);
        // What the large one used has grown old two executions later.
        let (large, after) = burst(&mut rig, 100 * TILE, |rig| {
            executions.set(executions.get() + 1);
            rig.faults.set(if executions.get() == 4 { plan } else { Plan::nth(0) });
        });
        let expected = std::array::from_fn(|n| if n < given_back { large } else { small });
        assert_eq!(after, expected, "{plan:?}");
        assert!(rig.faults.failed() > 0, "{plan:?}");
        rig.check();
    }
}

#[test]
fn what_is_late_elsewhere_and_fails_is_not_in_the_way_of_a_request() {
    let mut rig = Rig::with(Options { heap_bytes: 2 * TILE, heap_age: 1, ..Options::default() });
    let block = rig.used(40 * TILE, A);
    rig.free(block);
    // All of it goes to the stock, and nothing is unmapped before the work is over.
    for _ in 0..4 {
        rig.front.end_of_execution().unwrap();
        rig.front.depot.finish();
    }
    assert_eq!(rig.front.stats().stock, 40 * TILE);
    rig.world.run(A);
    let unmaps = |rig: &Rig| rig.front.stats().device_calls.unmap;
    let before = unmaps(&rig);
    rig.faults.set(Plan::nth(3).of(Call::Unmap));
    rig.used(2 * TILE, A);
    assert!((1..3).contains(&(unmaps(&rig) - before)), "what is in the way is unmapped, and no more");
    rig.faults.clear();
    rig.front.end_of_execution().unwrap();
    rig.check();
}

#[test]
fn a_front_that_is_dropped_leaves_no_thread_with_the_device() {
    let options = Options { heap_bytes: 2 * TILE, heap_age: 1, ..Options::default() };
    let mut rig = Rig::with(options);
    let block = rig.used(400 * TILE, A);
    rig.free(block);
    rig.world.run(A);
    for _ in 0..2 {
        rig.front.end_of_execution().unwrap();
    }
    let Rig { front, world, .. } = rig;
    drop(front);
    assert!(world.is_alone());
}

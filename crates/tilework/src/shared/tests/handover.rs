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
    let world = World::new();
    let device = Sim::h200().without_tiling();
    let (device, witness) = world.device(Box::new(device));
    let front = Shared::new(device, world.streams(), &Options::default()).unwrap();
    let block = front.alloc(TILE, A).unwrap();
    world.launch(A, block, TILE, &witness);
    front.free(block).unwrap();
    front.trim().unwrap();
    assert_eq!(world.host_waits(), 1, "what cannot be mapped twice is waited for");
    assert_eq!(front.usage().held, 0);
    front.check_invariants();
}

#[test]
fn what_a_burst_needed_is_given_back_after_the_executions_that_were_set() {
    let options = Options { heap_bytes: 2 * TILE, heap_age: 3, ..Options::default() };
    let mut rig = Rig::with(options);
    let weights = rig.used(8 * TILE, A);
    let execution = |rig: &mut Rig, bytes: u64| {
        let block = rig.used(bytes, A);
        rig.free(block);
        rig.world.run(A);
        rig.front.end_of_execution().unwrap();
        rig.front.usage().held
    };
    let small = execution(&mut rig, 2 * TILE);
    let burst = execution(&mut rig, 40 * TILE);
    assert!(burst >= small + 38 * TILE);
    let after: Vec<u64> = (0..4).map(|_| execution(&mut rig, 2 * TILE)).collect();
    assert_eq!(after, [burst, burst, small, small], "after three executions in which it was unused");
    rig.free(weights);
    rig.check();
}

//! Guests: streams that somebody else destroys without telling.

use super::*;

#[test]
fn a_guest_uses_its_memory_again_without_a_driver_call() {
    let mut rig = Rig::new();
    let first = rig.used_by_guest(3 * MIB, A);
    rig.free(first);
    let calls = rig.witness.calls();
    rig.used_by_guest(3 * MIB, A);
    assert_eq!((rig.witness.calls(), rig.world.recorded(), rig.world.host_waits()), (calls, 0, 0));
    rig.check();
}

#[test]
fn a_guest_that_is_gone_is_never_asked_and_its_memory_serves_others() {
    let mut rig = Rig::limited(4 * TILE);
    let kept = rig.used_by_guest(TILE, A);
    let freed = rig.used_by_guest(2 * TILE, A);
    rig.free(freed);
    rig.world.destroy(A);
    // Another guest of ONNX Runtime's, a stream of PyTorch's, and one that got the name of the first.
    let other = rig.used_by_guest(2 * TILE, B);
    assert!(rig.world.host_waits() > 0, "what the guest did was waited for");
    rig.free(other);
    let third = rig.used(2 * TILE, C);
    rig.free(third);
    rig.check();
    rig.free(kept);
    rig.front.end_of_execution().unwrap();
    rig.front.trim().unwrap();
    assert_eq!(rig.front.usage().held, 0);
    rig.check();
}

#[test]
fn guests_that_work_by_turns_have_the_same_memory() {
    let mut rig = Rig::new();
    let mut calls = None;
    for turn in 0..4 {
        let (guest, bytes) = if turn % 2 == 0 { (A, 3 * TILE) } else { (B, 5 * TILE) };
        // Two blocks, so that one is live while the other comes; the work is still queued when both are freed.
        let (input, block) = (rig.used_by_guest(TILE, guest), rig.used_by_guest(bytes, guest));
        rig.free(block);
        rig.free(input);
        assert_eq!(rig.world.host_waits(), turn, "once at each change");
        if turn == 1 {
            calls = Some(rig.witness.calls());
        }
    }
    assert_eq!(Some(rig.witness.calls()), calls, "the memory is there");
    assert_eq!(rig.front.usage().held, 6 * TILE, "what the hungrier one needs");
    rig.check();
}

#[test]
fn guests_that_work_at_the_same_time_have_memory_of_their_own_and_do_not_wait() {
    let mut rig = Rig::new();
    let inputs = (rig.used_by_guest(TILE, A), rig.used_by_guest(TILE, B));
    for _ in 0..3 {
        let blocks = (rig.used_by_guest(2 * TILE, A), rig.used_by_guest(2 * TILE, B));
        rig.free(blocks.0);
        rig.free(blocks.1);
    }
    let live = |rig: &Rig| rig.front.stats().streams.iter().map(|part| part.live).collect::<Vec<_>>();
    rig.free(inputs.0);
    // A is between two runs, and comes back to where it was.
    let again = rig.used_by_guest(3 * TILE, A);
    assert_eq!((live(&rig), rig.world.host_waits()), (vec![3 * TILE, TILE], 0));
    rig.free(inputs.1);
    rig.free(again);
    // With nobody else there B moves up, and what A did is waited for.
    rig.used_by_guest(2 * TILE, B);
    assert_eq!((live(&rig), rig.world.host_waits()), (vec![2 * TILE, 0], 1));
    rig.used_by_guest(TILE, C);
    assert_eq!((live(&rig), rig.world.host_waits()), (vec![2 * TILE, TILE], 2));
    rig.check();
}

#[test]
fn guests_move_nowhere_while_the_device_cannot_be_waited_for() {
    let mut rig = Rig::new();
    let first = rig.used_by_guest(TILE, A);
    rig.free(first);
    rig.front.begin_pool(PoolId(1, 1), Box::new(|_| false)).unwrap();
    let second = rig.used_by_guest(TILE, B);
    assert_ne!(first, second);
    assert_eq!(rig.world.host_waits(), 0);
    rig.check();
}

#[test]
fn the_device_is_not_waited_for_while_a_graph_may_be_captured() {
    let mut rig = Rig::new();
    let guests = rig.used_by_guest(2 * TILE, A);
    rig.free(guests);
    rig.front.begin_pool(PoolId(1, 1), Box::new(|stream| stream == B)).unwrap();
    rig.world.capture(B, true);
    let graphs = rig.try_alloc(2 * TILE, B).unwrap();
    // Not the pool's, although its filter would let a stream of this name in.
    let guests = rig.front.alloc_guest(4 * TILE, B).unwrap();
    assert_eq!(
        rig.front.stats().streams.iter().filter(|part| part.graph).map(|part| part.live).sum::<u64>(),
        2 * TILE
    );
    rig.front.free(guests).unwrap();
    rig.front.end_of_execution().unwrap();
    rig.front.trim().unwrap();
    assert_eq!(rig.world.host_waits(), 0);
    rig.world.capture(B, false);
    rig.front.end_pool(PoolId(1, 1)).unwrap();
    rig.free(graphs);
    rig.front.release_pool(PoolId(1, 1)).unwrap();
    rig.front.trim().unwrap();
    assert_eq!(rig.front.usage().held, 0);
    rig.check();
}

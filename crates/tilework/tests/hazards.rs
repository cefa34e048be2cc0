//! The mistakes that the prototype of tiled memory made, one test each, named after it: `tiled` must not
//! make them again.
//!
//! What runs on a [`Rig`] is checked after every operation besides: live blocks share nothing, stay where
//! they were, and the device's rules are kept.

use std::collections::BTreeSet;

use tilework::device::null::Null;
use tilework::device::{self, Call, Device};
use tilework::manager::{Block, Built, Kind, Manager, Options, Stream, build};
use tilework::testing::Rig;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Executions that something may go unused before it is given back.
const AGE: u32 = 3;

/// Tiled with default heaps, so that at most 64 MiB come and go together.
fn tiled(device: Box<dyn Device>) -> Box<dyn Manager> {
    let options = Options { mapping_age: AGE, heap_age: AGE, ..Options::default() };
    let Built { manager, serving } = build(Kind::Tiled, device, &options).expect("a fresh device");
    assert_eq!(serving.fallback(), None);
    manager
}

/// Runs a test on every device with rules to break.
fn on_each_device(test: impl Fn(Rig)) {
    for name in ["sim-h200", "sim-d3d12", "host"] {
        println!("on {name}");
        test(Rig::new(device::open(name).expect("a device"), tiled));
    }
}

fn alloc(rig: &mut Rig, bytes: u64) -> Block {
    rig.alloc(bytes).expect("memory")
}

fn free(rig: &mut Rig, block: Block) {
    rig.free(block.id).expect("a live block");
}

fn end(rig: &mut Rig) {
    rig.end_of_execution().expect("the device works");
}

fn held(rig: &Rig) -> u64 {
    rig.manager().usage().held
}

/// Sizes of an execution, different in each: whole and odd ones of up to 24 MiB.
fn sizes(execution: u64) -> impl Iterator<Item = u64> {
    (0..12).map(move |n| {
        let mixed = (execution * 12 + n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        mixed % (24 * MIB) + 1
    })
}

/// An execution whose blocks overlap in time and leave gaps of other sizes than are asked for next.
fn execution(rig: &mut Rig, sizes: impl Iterator<Item = u64>) {
    let mut live: Vec<Block> = Vec::new();
    for bytes in sizes {
        live.push(alloc(rig, bytes));
        if live.len() > 4 {
            let gone = live.remove(live.len() / 2);
            free(rig, gone);
        }
    }
    for block in live {
        free(rig, block);
    }
}

/// Weights and activations had a pool each, and what one had free the other could not use.
#[test]
fn two_separate_pools_never_share() {
    on_each_device(|mut rig| {
        let weights = alloc(&mut rig, 40 * MIB);
        let activations = alloc(&mut rig, 60 * MIB);
        let before = held(&rig);
        free(&mut rig, activations);
        let other_weights = alloc(&mut rig, 60 * MIB);
        assert_eq!(held(&rig), before, "weights did not use what activations left");
        free(&mut rig, weights);
        alloc(&mut rig, 40 * MIB);
        assert_eq!(held(&rig), before, "activations did not use what weights left");
        free(&mut rig, other_weights);
    });
}

/// Finding a segment walked over all of them. There is no clock here: with such a walk these are more
/// than 10^11 steps, and the test would not end in any time one waits.
#[test]
fn linear_scans() {
    const BLOCKS: u64 = 400_000;
    let mut manager = tiled(Box::new(Null::new()));
    let size = |n: u64| 512 + n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (8 * KIB);
    let mut live: Vec<_> = (0..BLOCKS).map(|n| manager.alloc(size(n), Stream(0)).unwrap().id).collect();
    // Every second block goes: hundreds of thousands of gaps, and no two of them adjacent.
    for id in live.iter_mut().step_by(2) {
        manager.free(*id).unwrap();
    }
    for (n, id) in live.iter_mut().step_by(2).enumerate() {
        *id = manager.alloc(size(n as u64 * 7), Stream(0)).unwrap().id;
    }
    manager.end_of_execution().unwrap();
    for id in live {
        manager.free(id).unwrap();
    }
    manager.trim().unwrap();
    assert_eq!(manager.usage().held, 0);

    // As many holes that none of these blocks can use, and each is looked for among tiles first.
    const HOLES: usize = 100_000;
    let pairs: Vec<_> = (0..HOLES)
        .map(|_| [MIB + MIB / 2, MIB / 2].map(|bytes| manager.alloc(bytes, Stream(0)).unwrap().id))
        .collect();
    for [hole, _] in &pairs {
        manager.free(*hole).unwrap();
    }
    let blocks: Vec<_> = (0..HOLES).map(|_| manager.alloc(3 * MIB, Stream(0)).unwrap().id).collect();
    for id in pairs.into_iter().map(|[_, kept]| kept).chain(blocks) {
        manager.free(id).unwrap();
    }
    manager.trim().unwrap();
    assert_eq!(manager.usage().held, 0);
    manager.check_invariants();
}

/// A clear was decided at one time and done at another, and heaps made in between went with it, while
/// queued work might still use them.
#[test]
fn heaps_freed_without_a_fence_between_a_clear_and_its_delayed_reset() {
    on_each_device(|mut rig| {
        // Something grows old, up to the very execution before it is due.
        let old = alloc(&mut rig, 128 * MIB);
        free(&mut rig, old);
        (1..AGE).for_each(|_| end(&mut rig));
        // Memory made now is young, and stays when the old is given back.
        let before = held(&rig);
        let young = [alloc(&mut rig, 100 * MIB), alloc(&mut rig, 156 * MIB)];
        assert!(held(&rig) >= before + 128 * MIB);
        let with_young = held(&rig);
        end(&mut rig);
        young.into_iter().for_each(|block| free(&mut rig, block));
        end(&mut rig);
        assert_eq!(held(&rig), with_young, "memory of the last execution was given back as if it were old");

        // Requests and frees make no memory vanish: work queued earlier in the execution may use it.
        for number in 0..20 {
            let calls = rig.witness().calls();
            execution(&mut rig, sizes(number));
            for call in rig.witness().log(calls) {
                let vanishes = matches!(call.call, Call::Unmap | Call::Release | Call::Unreserve);
                assert!(!vanishes, "{call:?} in the midst of an execution");
            }
            end(&mut rig);
        }
    });
}

/// Ids were kept by the resource's address, so a new resource at an old address inherited its id and
/// cached command lists bound the wrong memory.
#[test]
fn ids_kept_by_pointer_so_that_a_reused_address_inherits_an_old_id() {
    on_each_device(|mut rig| {
        let mut ids = BTreeSet::new();
        for round in 0..50 {
            let blocks = [5 * MIB, 5 * MIB, 11 * MIB + round].map(|bytes| alloc(&mut rig, bytes));
            let ranges: BTreeSet<_> = blocks.iter().map(|block| block.range).collect();
            for range in ranges {
                assert!(ids.insert(range), "{range:?} names memory made afresh and memory long gone");
            }
            blocks.into_iter().for_each(|block| free(&mut rig, block));
            rig.trim().expect("the device works");
            assert_eq!(held(&rig), 0);
        }
    });
}

/// Heaps went only when all were empty, so one small output kept everything.
#[test]
fn any_live_pooled_buffer_blocks_shrinking_for_ever() {
    let shrinks = |rig: &mut Rig, shrink: fn(&mut Rig)| {
        let before = alloc(rig, MIB);
        let large = alloc(rig, 512 * MIB);
        let after = alloc(rig, MIB);
        free(rig, large);
        shrink(rig);
        let most = 2 * Options::default().heap_bytes;
        assert!(held(rig) <= most, "{} bytes held for two blocks of 1 MiB", held(rig));
        free(rig, before);
        free(rig, after);
    };
    on_each_device(|mut rig| {
        shrinks(&mut rig, |rig| (0..=AGE).for_each(|_| end(rig)));
        shrinks(&mut rig, |rig| {
            rig.trim().expect("the device works");
        });
    });
}

/// The heaps of the weights were never given back, not even when the session was gone.
#[test]
fn weights_heaps_never_shrink() {
    on_each_device(|mut rig| {
        let weights: Vec<_> =
            [90 * MIB, 7, 33 * MIB + 1, 512 * KIB].map(|bytes| alloc(&mut rig, bytes)).to_vec();
        for number in 0..3 {
            execution(&mut rig, sizes(number));
            end(&mut rig);
        }
        weights.into_iter().for_each(|block| free(&mut rig, block));
        (0..=AGE).for_each(|_| end(&mut rig));
        assert_eq!(held(&rig), 0, "held after the weights were freed and grew old");
    });
}

/// Every mapping was kept, so shapes that change filled address space and page tables.
#[test]
fn unbounded_growth_of_cached_mappings() {
    on_each_device(|mut rig| {
        let mut halves = [(0, 0); 2];
        for number in 0..120 {
            execution(&mut rig, sizes(number));
            end(&mut rig);
            let stats = rig.manager().stats();
            let (reserved, cached) = &mut halves[usize::from(number >= 60)];
            *reserved = stats.usage.reserved.max(*reserved);
            *cached = stats.cached_mappings.max(*cached);
        }
        let [(reserved, cached), (later_reserved, later_cached)] = halves;
        assert!(
            later_reserved <= reserved * 3 / 2,
            "reserved grew from {reserved} to {later_reserved} bytes"
        );
        assert!(later_cached <= cached * 2 + 8, "cached mappings grew from {cached} to {later_cached}");
        (0..=AGE).for_each(|_| end(&mut rig));
        assert_eq!(rig.manager().stats().cached_mappings, 0, "mappings are kept that nothing uses");
    });
}

/// Every run made all of it resident again, so that evicting once had no lasting effect; a steady run has
/// no business with the device at all.
#[test]
fn a_make_resident_on_every_run() {
    on_each_device(|mut rig| {
        let weights = alloc(&mut rig, 20 * MIB + 3);
        let mut calls = 0;
        for run in 0..20 {
            execution(&mut rig, sizes(1));
            end(&mut rig);
            if run >= 2 {
                assert_eq!(rig.witness().log(calls), [], "run {run} of the same model called the device");
            }
            calls = rig.witness().calls();
        }
        free(&mut rig, weights);
    });
}

/// Heaps were taken away while the caller still held an output in one of them.
#[test]
fn evicting_a_heap_under_an_output_that_is_still_held() {
    on_each_device(|mut rig| {
        execution(&mut rig, sizes(1));
        // Of the tiles that the execution left in pieces, so that the output lies in several heaps.
        let outputs = [40 * MIB + 12, 3, 17 * MIB].map(|bytes| alloc(&mut rig, bytes));
        for number in 0..5 {
            execution(&mut rig, sizes(number));
            (0..=AGE).for_each(|_| end(&mut rig));
            rig.trim().expect("the device works");
        }
        // Freeing compares contents with what was written, on devices that have memory.
        outputs.into_iter().for_each(|block| free(&mut rig, block));
        rig.trim().expect("the device works");
        assert_eq!(held(&rig), 0);
    });
}

/// A pool that was emptied went on with the short heaps that the holes of its past had asked for, each of which
/// costs as many calls as a long one.
#[test]
fn short_heaps_for_holes_that_are_gone() {
    let mut manager = tiled(device::open("sim-h200").expect("a device that needs nothing"));
    let mut creates = Vec::new();
    for _ in 0..3 {
        let before = manager.device().calls();
        let mut alloc = |bytes| manager.alloc(bytes, Stream(0)).expect("memory").id;
        let blocks: Vec<_> = (0..80).map(|_| alloc(100 * MIB)).collect();
        // Every other one goes, and what comes next needs more than they leave.
        let mut nth = 0..;
        let (kept, freed) =
            blocks.into_iter().partition::<Vec<_>, _>(|_| nth.next().is_some_and(|n| n % 2 == 0));
        freed.into_iter().for_each(|block| manager.free(block).expect("a live block"));
        let long = manager.alloc(6 << 30, Stream(0)).expect("memory").id;
        kept.into_iter().chain([long]).for_each(|block| manager.free(block).expect("a live block"));
        manager.trim().expect("the device works");
        creates.push(manager.device().calls().since(&before).create);
    }
    assert!(creates[1] <= creates[0] && creates[2] <= creates[0], "{creates:?} heaps");
}

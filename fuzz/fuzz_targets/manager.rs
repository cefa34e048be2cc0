//! Any operations on any manager, on any simulated device that fails where the input says: everything is
//! compared with the shadow model after each.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tilework::Error;
use tilework::device::fault::{Fault, Plan};
use tilework::device::limit::Limit;
use tilework::device::sim::Sim;
use tilework::device::{Call, Device};
use tilework::manager::{Kind, Options, build};
use tilework::testing::{Op, Rig};

#[derive(Arbitrary, Debug)]
struct Input {
    setting: Setting,
    steps: Vec<Step>,
}

/// Who serves, and on what. First in the input, so that its first bytes choose.
#[derive(Arbitrary, Debug)]
struct Setting {
    kind: u8,
    device: u8,
    /// Physical memory, in eights of tiles: little enough that any request is soon served or refused.
    limit: u8,
    /// Heaps are this many tiles long.
    heap: u8,
    ages: u8,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// So many bytes more than so many 64ths of a tile.
    Alloc {
        parts: u16,
        more: u8,
        stream: u8,
    },
    /// Of any size at all.
    AllocHuge {
        bytes: u64,
    },
    Free {
        nth: u8,
    },
    EndOfExecution,
    Trim,
    ResetPeaks,
    FreeAgain,
    Fail {
        how: u8,
        n: u8,
        halfway: bool,
        out_of_memory: bool,
    },
    Repair,
}

const CALLS: [Call; 7] =
    [Call::Reserve, Call::Create, Call::Map, Call::SetAccess, Call::Unmap, Call::Release, Call::Unreserve];

/// A plan for calls of one kind or of all; every n-th, or the n-th once.
fn plan(how: u8, n: u8) -> Plan {
    let plan = if how & 1 == 0 { Plan::nth(n.into()) } else { Plan::every(n.into()) };
    match CALLS.get(usize::from(how >> 1) % (CALLS.len() + 1)) {
        Some(&call) => plan.of(call),
        None => plan,
    }
}

fuzz_target!(|input: Input| {
    let Setting { kind, device, limit, heap, ages } = input.setting;
    let kind = Kind::ALL[usize::from(kind) % Kind::ALL.len()];
    let sim = match device % 3 {
        0 => Sim::h200(),
        1 => Sim::d3d12(),
        _ => Sim::h200().without_tiling(),
    };
    let tile = sim.caps().tile_bytes;
    let device = Fault::new(Limit::new(sim, u64::from(limit) * 8 * tile));
    let faults = device.faults();
    let options = Options {
        heap_bytes: (u64::from(heap % 16) + 1) * tile,
        mapping_age: u32::from(ages % 4),
        heap_age: u32::from(ages / 4 % 4),
        ..Options::default()
    };
    let mut rig =
        Rig::new(Box::new(device), |device| build(kind, device, &options).expect("a device").manager);

    for step in input.steps {
        let op = match step {
            Step::Alloc { parts, more, stream } => {
                Op::Alloc { bytes: u64::from(parts) * (tile / 64) + u64::from(more), stream: stream.into() }
            }
            Step::AllocHuge { bytes } => Op::Alloc { bytes, stream: 0 },
            Step::Free { nth } => Op::Free { nth: nth.into() },
            Step::EndOfExecution => Op::EndOfExecution,
            Step::Trim => Op::Trim,
            Step::ResetPeaks => Op::ResetPeaks,
            Step::FreeAgain => {
                rig.free_again();
                continue;
            }
            Step::Fail { how, n, halfway, out_of_memory } => {
                let mut plan = plan(how, n);
                if halfway {
                    plan = plan.halfway();
                }
                if out_of_memory {
                    plan = plan.out_of_memory();
                }
                faults.set(plan);
                continue;
            }
            Step::Repair => {
                faults.clear();
                continue;
            }
        };
        match rig.step(op) {
            Ok(()) => {}
            Err(Error::ZeroSize | Error::TooLarge { .. } | Error::OutOfMemory { .. })
                if matches!(op, Op::Alloc { .. }) => {}
            Err(Error::Device(_)) if faults.failed() > 0 && !matches!(op, Op::Free { .. }) => {}
            Err(error) => panic!("{op:?}: {error}"),
        }
    }

    faults.clear();
    rig.free_all();
    rig.end_of_execution().expect("the device works");
    rig.trim().expect("the device works");
    let stats = rig.manager().stats();
    assert_eq!((stats.usage.live, stats.leftover), (0, 0));
    if rig.manager().kind() != Kind::Bucketized {
        let left = (stats.usage.held, stats.usage.mapped, stats.usage.reserved);
        assert_eq!(left, (0, 0, 0), "left after everything was freed and trimmed");
    }
});

//! A device that fails in the midst of a whole real trace: what was under way is undone, blocks stay as
//! they are, the trace goes on, and in the end nothing is left on the device.

use std::collections::BTreeMap;
use std::path::Path;

use tilework::Error;
use tilework::device::fault::{Fault, Faults, Plan};
use tilework::device::sim::Sim;
use tilework::device::{Call, DeviceError};
use tilework::manager::{Block, BlockId, Built, Kind, Manager, Options, Stream, build};
use tilework::testing::checked::{Extent, Totals, Witness};
use tilework::testing::{Checked, Op, Script};
use tilework::trace::{Step, Trace};

const CALLS: [Call; 7] =
    [Call::Reserve, Call::Create, Call::Map, Call::SetAccess, Call::Unmap, Call::Release, Call::Unreserve];

/// Into so many executions the trace is cut, so that memory is given back in the midst of it too.
const EXECUTIONS: usize = 12;

/// How often a request is made again while the device goes on failing.
const RETRIES: usize = 4;

/// An image made by SDXL, step by step, and everything given back: the trace with the fewest device calls
/// among those that make `tiled` stitch a few hundred times.
fn story() -> Vec<Op> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/sdxl768.csv.gz");
    let trace = Trace::load(file).expect("a trace");
    let execution = trace.steps().len().div_ceil(EXECUTIONS);
    let mut script = Script::new();
    for (n, steps) in trace.steps().chunks(execution).enumerate() {
        for step in steps {
            match *step {
                Step::Alloc { slot, bytes, stream } => script.alloc(slot, bytes, stream.0),
                Step::Free { slot } => script.free(slot),
            };
        }
        script.push(if n == EXECUTIONS / 2 { Op::Trim } else { Op::EndOfExecution });
    }
    let mut ops = script.pass();
    ops.push(Op::Trim);
    ops
}

#[derive(Clone, Copy)]
struct Subject {
    kind: Kind,
    device: fn() -> Sim,
}

/// A manager on a device that fails at will and is watched.
struct Bed {
    manager: Box<dyn Manager>,
    witness: Witness,
    faults: Faults,
    plan: Plan,
    live: Vec<Block>,
    /// [`Stats::leftover`](tilework::manager::Stats::leftover), kept because a report is not for hot paths.
    leftover: u64,
}

/// Where blocks lie physically.
type Places = BTreeMap<BlockId, Vec<Extent>>;

impl Subject {
    fn bed(self, plan: Plan) -> Bed {
        let device = Fault::new((self.device)());
        let faults = device.faults();
        faults.set(plan);
        let (device, witness) = Checked::over(Box::new(device));
        // What is idle goes at the end of the next execution: the more calls there are to fail.
        let options = Options { mapping_age: 1, heap_age: 1, ..Options::default() };
        let Built { manager, serving } = build(self.kind, device, &options).expect("a fresh device");
        assert_eq!(serving.fallback(), None);
        Bed { manager, witness, faults, plan, live: Vec::new(), leftover: 0 }
    }

    /// The operations in which each call of this kind is made, undisturbed; and what is left at the end.
    fn undisturbed(self, ops: &[Op], call: Call) -> (Vec<usize>, Totals) {
        let mut bed = self.bed(Plan::nth(0).of(call));
        let mut made_in = Vec::new();
        for (n, &op) in ops.iter().enumerate() {
            bed.step(op, false);
            made_in.resize(bed.faults.seen() as usize, n);
        }
        let left = bed.finish();
        if self.kind != Kind::Bucketized {
            assert_eq!((left.held, left.reserved, left.mapped), (0, 0, 0), "left by a pass without faults");
        }
        (made_in, left)
    }

    /// Every call fails once in turn. Where a pass makes too many for that, `most` calls of each kind do,
    /// spread evenly over the pass.
    fn each_call_fails(self, most: usize) {
        let ops = story();
        for call in CALLS {
            let (made_in, left) = self.undisturbed(&ops, call);
            for n in (0..made_in.len()).step_by(made_in.len().div_ceil(most).max(1)) {
                let mut bed = self.bed(Plan::nth(n as u64 + 1).of(call).halfway());
                for (at, &op) in ops.iter().enumerate() {
                    bed.step(op, at == made_in[n]);
                }
                assert_eq!(bed.faults.failed(), 1, "{call} number {n}");
                bed.ends_with(left);
            }
        }
    }

    /// Calls fail over and over, those that undo among them.
    fn every_kth_call_fails(self) {
        let ops = story();
        let (_, left) = self.undisturbed(&ops, Call::Create);
        for k in [2, 3, 5, 7, 11] {
            let mut bed = self.bed(Plan::every(k).halfway());
            for &op in &ops {
                bed.step(op, matches!(op, Op::EndOfExecution | Op::Trim));
            }
            assert!(bed.faults.failed() > 10);
            bed.ends_with(left);
        }
    }
}

impl Bed {
    /// Runs an operation. A request that fails is made again, in the end on a device that works.
    fn step(&mut self, op: Op, survey: bool) {
        let request = matches!(op, Op::Alloc { .. });
        let mut served = self.attempt(op, survey);
        for _ in 0..RETRIES {
            if served || !request {
                return;
            }
            served = self.attempt(op, false);
        }
        if !served {
            self.faults.clear();
            assert!(self.attempt(op, false));
            self.faults.set(self.plan);
        }
    }

    /// Runs an operation once; false when it failed because of a fault. Around a fault everything is
    /// checked; with `survey`, also that each block lies where it lay before the operation.
    fn attempt(&mut self, op: Op, survey: bool) -> bool {
        let failed = self.faults.failed();
        let before = self.manager.usage();
        let kept = before.held - self.leftover;
        let places = if survey { self.places() } else { Places::new() };
        let answer = self.perform(op);
        let disturbed = self.faults.failed() > failed;
        match &answer {
            Ok(()) => {}
            Err(Error::Device(DeviceError::Failed { .. })) if disturbed && !matches!(op, Op::Free { .. }) => {
            }
            Err(error) => panic!("{op:?}: {error}"),
        }
        let gives_back = matches!(op, Op::EndOfExecution | Op::Trim);
        if disturbed || gives_back {
            self.leftover = self.manager.stats().leftover;
            assert!(disturbed || self.leftover == 0, "left over by a device that works: {}", self.leftover);
        }
        if disturbed {
            let usage = self.manager.usage();
            if answer.is_err() {
                assert_eq!(usage.live, before.live, "bytes live after {op:?} failed");
                assert!(usage.held - self.leftover <= kept, "{op:?} failed and kept what it had created");
            }
            self.manager.check_invariants();
            let totals = self.witness.totals();
            assert_eq!((usage.held, usage.reserved), (totals.held, totals.reserved), "by the device's calls");
            assert_eq!(usage.mapped, totals.mapped, "by the device's calls");
        }
        // Looking at every block costs more than the operation, so of many faults a few are followed by it.
        if survey || disturbed && failed.is_multiple_of(64) {
            let now = self.places();
            for (id, extents) in places {
                assert!(now.get(&id).is_none_or(|now| *now == extents), "{id} was moved by {op:?}");
            }
        }
        answer.is_ok()
    }

    fn perform(&mut self, op: Op) -> tilework::Result<()> {
        match op {
            Op::Alloc { bytes, stream } => self.live.push(self.manager.alloc(bytes, Stream(stream))?),
            Op::Free { nth } => {
                self.manager.free(self.live[nth].id)?;
                self.live.swap_remove(nth);
            }
            Op::EndOfExecution => self.manager.end_of_execution()?,
            Op::Trim => self.manager.trim().map(drop)?,
            Op::ResetPeaks => self.manager.reset_peaks(),
        }
        Ok(())
    }

    /// Where all blocks lie; panics unless each is mapped, usable and alone where it lies.
    fn places(&self) -> Places {
        let place = |block: &Block| {
            let extents = self.witness.resolve(block.address, block.bytes);
            (block.id, extents.unwrap_or_else(|why| panic!("{}: {why}", block.id)))
        };
        let places: Places = self.live.iter().map(place).collect();
        let mut extents: Vec<Extent> = places.values().flatten().copied().collect();
        extents.sort_unstable();
        for two in extents.windows(2) {
            let apart = two[0].heap != two[1].heap || two[0].offset + two[0].bytes <= two[1].offset;
            assert!(apart, "two blocks share memory: {two:?}");
        }
        places
    }

    /// Repairs the device and says what stays on it after everything was freed and trimmed.
    fn finish(&mut self) -> Totals {
        assert!(self.live.is_empty());
        self.faults.clear();
        assert!(self.attempt(Op::EndOfExecution, false));
        assert!(self.attempt(Op::Trim, false));
        self.manager.check_invariants();
        let totals = self.witness.totals();
        assert_eq!(self.manager.device().held_bytes(), Ok(totals.held), "by the device's own books");
        totals
    }

    fn ends_with(&mut self, left: Totals) {
        let Totals { held, reserved, mapped, .. } = self.finish();
        assert_eq!((held, reserved, mapped), (left.held, left.reserved, left.mapped), "left on the device");
    }
}

/// Both tests for a manager on a device.
macro_rules! faults {
    ($($name:ident: $kind:expr, $device:expr, $most:expr;)+) => {$(
        mod $name {
            use super::*;

            const SUBJECT: Subject = Subject { kind: $kind, device: $device };

            #[test]
            fn each_call_fails() {
                SUBJECT.each_call_fails($most);
            }

            #[test]
            fn every_kth_call_fails() {
                SUBJECT.every_kth_call_fails();
            }
        }
    )+};
}

faults! {
    tiled_on_sim_h200: Kind::Tiled, Sim::h200, usize::MAX;
    tiled_on_sim_d3d12: Kind::Tiled, Sim::d3d12, usize::MAX;
    placed_on_sim_h200: Kind::Placed, Sim::h200, usize::MAX;
    placed_on_sim_d3d12: Kind::Placed, Sim::d3d12, usize::MAX;
    // 2011 calls of each kind here, 29191 there: a part of them, for all together take about a minute.
    bucketized_on_sim_d3d12: Kind::Bucketized, Sim::d3d12, 700;
    committed_on_sim_h200: Kind::Committed, Sim::h200, 32;
}

//! What every manager must do, on any device: one function a rule, stamped as tests by
//! [`manager_conformance!`](crate::manager_conformance).

use proptest::test_runner::{Config, TestRunner};

use super::{Op, Rig, Script, workload};
use crate::device::fault::{Fault, Faults, Plan};
use crate::device::limit::Limit;
use crate::device::{Call, Device};
use crate::error::Error;
use crate::manager::{BlockId, Built, Kind, Manager, Options, Stream, Usage, build};
use crate::units::exact;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A manager and a device to stamp the suite for.
#[derive(Clone, Copy)]
pub struct Subject {
    /// Opens the device.
    pub device: fn() -> Box<dyn Device>,
    /// Makes the manager.
    pub manager: fn(Box<dyn Device>) -> Box<dyn Manager>,
    /// True: a pass of operations run for the third time makes no device call.
    pub settles: bool,
    /// True: with nothing live, `trim` leaves nothing held.
    pub trims: bool,
}

impl Subject {
    /// A manager of this crate with its default options.
    pub fn of(kind: Kind, device: fn() -> Box<dyn Device>) -> Subject {
        let manager = match kind {
            Kind::Tiled => |device| built(Kind::Tiled, device),
            Kind::Placed => |device| built(Kind::Placed, device),
            Kind::Bucketized => |device| built(Kind::Bucketized, device),
            Kind::Committed => |device| built(Kind::Committed, device),
        };
        let (settles, trims) = (kind != Kind::Committed, kind != Kind::Bucketized);
        Subject { device, manager, settles, trims }
    }

    /// What the sizes of the suite are multiples of, bytes: those of a real model where memory is only
    /// accounted for, a sixteenth where each byte of it is zeroed by someone.
    fn unit(&self) -> u64 {
        if (self.device)().caps().memory { MIB / 16 } else { MIB }
    }

    fn rig(&self) -> Rig {
        Rig::new((self.device)(), self.manager)
    }

    fn limited(&self, bytes: u64) -> Rig {
        Rig::new(Box::new(Limit::new((self.device)(), bytes)), self.manager)
    }

    /// A rig whose device fails at will: one hand for each layer of faults.
    fn faulty(&self, layers: usize) -> (Rig, Vec<Faults>) {
        let mut device = (self.device)();
        let mut hands = Vec::new();
        for _ in 0..layers {
            let layer = Fault::new(device);
            hands.push(layer.faults());
            device = Box::new(layer);
        }
        (Rig::new(device, self.manager), hands)
    }

    /// Frees all, trims, and checks what is left.
    fn finish(&self, mut rig: Rig) {
        rig.free_all();
        rig.end_of_execution().expect("the device works");
        rig.trim().expect("the device works");
        if self.trims {
            let usage = rig.manager().usage();
            let left = (usage.held, usage.mapped, usage.reserved);
            assert_eq!(left, (0, 0, 0), "left after everything was freed and trimmed");
        }
        let usage = rig.manager().usage();
        assert_eq!(usage.live, 0);
        assert_eq!(rig.manager().device().held_bytes(), Ok(usage.held), "held, by the device's own witness");
    }
}

fn built(kind: Kind, device: Box<dyn Device>) -> Box<dyn Manager> {
    let Built { manager, .. } = build(kind, device, &Options::default()).expect("a fresh device");
    manager
}

/// A pass like a small model's: weights, then layers whose sizes overlap, repeat and leave gaps.
fn model_pass(unit: u64) -> Vec<Op> {
    let mut script = Script::new();
    let mut next = 0..;
    let mut alloc = |script: &mut Script<u64>, bytes| {
        let id = next.next().expect("without end");
        script.alloc(id, bytes, 0);
        id
    };
    let weights: Vec<_> =
        [3 * unit, 2 * unit / 3, 17, 20 * unit + 512].map(|bytes| alloc(&mut script, bytes)).to_vec();
    let mut input = alloc(&mut script, 4 * unit);
    for layer in 1..=5 {
        let scratch = alloc(&mut script, layer * 5 * unit + 300);
        let output = alloc(&mut script, (6 - layer) * 7 * unit + 1);
        let flag = alloc(&mut script, 4);
        script.free(input).free(scratch).free(flag);
        input = output;
    }
    script.free(input);
    for weight in weights {
        script.free(weight);
    }
    script.pass()
}

/// As [`model_pass`], with executions that end while blocks live, and trims: every call of a device
/// occurs in it.
fn busy_pass(unit: u64) -> Vec<Op> {
    let mut ops = vec![Op::Alloc { bytes: 9 * unit, stream: 0 }, Op::Alloc { bytes: 100, stream: 0 }];
    for op in model_pass(unit) {
        ops.push(op);
        if ops.len() % 9 == 0 {
            ops.push(if ops.len() % 2 == 0 { Op::Trim } else { Op::EndOfExecution });
        }
    }
    ops
}

/// A request of nothing is refused.
pub fn zero_size(subject: &Subject) {
    let mut rig = subject.rig();
    let calls = rig.witness().calls();
    assert_eq!(rig.alloc(0), Err(Error::ZeroSize));
    assert_eq!(rig.witness().calls(), calls, "a refusal reached the device");
    rig.alloc(1).expect("a byte");
    subject.finish(rig);
}

/// Requests beyond what the device can address are refused, up to the largest number there is.
pub fn huge_request(subject: &Subject) {
    let unit = subject.unit();
    let mut rig = subject.rig();
    rig.alloc(5 * unit).expect("a small block");
    let calls = rig.witness().calls();
    let longest = rig.manager().device().caps().max_range_bytes;
    for bytes in [longest + 1, (1 << 63) + 1, u64::MAX - 1, u64::MAX] {
        match rig.alloc(bytes) {
            Err(Error::TooLarge { bytes: told, max }) => {
                assert_eq!(told, bytes);
                assert!(max <= longest, "{max} bytes are more than the device can address");
            }
            other => panic!("a request of {bytes} bytes: {other:?}"),
        }
    }
    assert_eq!(rig.witness().calls(), calls, "a refusal reached the device");
    rig.alloc(5 * unit).expect("a small block after the refusals");
    subject.finish(rig);
}

/// An id that was never issued is refused as such.
pub fn unknown_id(subject: &Subject) {
    let mut rig = subject.rig();
    let strangers = [0, 1, 0xdead_beef, u64::MAX].map(BlockId);
    for id in strangers {
        assert_eq!(rig.free(id), Err(Error::UnknownBlock(id)));
    }
    let block = rig.alloc(KIB).expect("a small block");
    for id in strangers.into_iter().filter(|&id| id != block.id) {
        assert_eq!(rig.free(id), Err(Error::UnknownBlock(id)));
    }
    subject.finish(rig);
}

/// A block freed twice is refused, also once its place was lent again.
pub fn double_free(subject: &Subject) {
    let unit = subject.unit();
    let mut rig = subject.rig();
    let ids: Vec<_> = [KIB, KIB, 3 * unit].map(|bytes| rig.alloc(bytes).expect("a block").id).to_vec();
    for &id in &ids {
        rig.free(id).expect("a live block");
        assert_eq!(rig.free(id), Err(Error::DoubleFree(id)));
    }
    for bytes in [KIB, KIB, 3 * unit] {
        rig.alloc(bytes).expect("a block");
    }
    for &id in &ids {
        assert_eq!(rig.free(id), Err(Error::DoubleFree(id)));
    }
    rig.trim().expect("the device works");
    for &id in &ids {
        assert_eq!(rig.free(id), Err(Error::DoubleFree(id)));
    }
    subject.finish(rig);
}

/// Trimming takes nothing from live blocks, and what it took can be had again.
pub fn use_after_trim(subject: &Subject) {
    let unit = subject.unit();
    let mut rig = subject.rig();
    let kept = rig.alloc(3 * unit + 1).expect("a block");
    for _ in 0..3 {
        for op in model_pass(unit).into_iter().filter(|op| matches!(op, Op::Alloc { .. })) {
            rig.step(op).expect("memory");
        }
        for block in rig.live().to_vec() {
            if block.id != kept.id {
                rig.free(block.id).expect("a live block");
            }
        }
        rig.trim().expect("the device works");
        assert_eq!(rig.trim(), Ok(0), "the second trim in a row found something");
    }
    subject.finish(rig);
}

/// With nothing live, everything is given back, unless the manager is one that never does.
pub fn end_state(subject: &Subject) {
    let mut rig = subject.rig();
    rig.run(&model_pass(subject.unit()));
    let held = rig.manager().usage().held;
    let released = rig.trim().expect("the device works");
    if subject.trims {
        assert_eq!(rig.manager().usage().held, 0);
    } else {
        assert_eq!((released, rig.manager().usage().held), (0, held), "this manager never trims");
    }
    let stats = rig.manager().stats();
    assert_eq!((stats.blocks, stats.allocations), (0, stats.frees));
    subject.finish(rig);
}

/// A limit too small: the error names request, live, held and limit; nothing is lost; the manager goes on.
pub fn limit_too_small(subject: &Subject) {
    let unit = subject.unit();
    let limit = 64 * unit;
    let request = 16 * unit;
    let mut rig = subject.limited(limit);
    let refusal = |rig: &mut Rig, request| {
        let before = (rig.manager().usage(), rig.manager().stats());
        let error = rig.alloc(request).expect_err("more than the limit");
        // The usage named is that after everything unused was given back to serve the request.
        let usage = rig.manager().usage();
        let Usage { live, mapped, held, .. } = usage;
        let device_free = rig.manager().device().free_bytes();
        let expected = Error::OutOfMemory { request, live, mapped, held, limit: Some(limit), device_free };
        assert_eq!(error, expected);
        assert_eq!(usage.live, before.0.live);
        assert_eq!(rig.manager().stats().blocks, before.1.blocks);
        let message = error.to_string();
        for figure in [request, usage.live, usage.held, limit] {
            assert!(message.contains(&exact(figure)), "{message:?} does not name {figure}");
        }
    };
    refusal(&mut rig, 2 * limit);
    let mut served = 0;
    while rig.manager().usage().live + request <= limit {
        rig.alloc(request).expect("within the limit");
        served += 1;
    }
    assert_eq!(served, limit / request);
    refusal(&mut rig, request);
    refusal(&mut rig, 2 * limit);
    for _ in 0..3 {
        let block = rig.live()[1];
        rig.free(block.id).expect("a live block");
        rig.alloc(request).expect("as much as was freed");
        refusal(&mut rig, request);
    }
    subject.finish(rig);
}

/// Under a limit, whatever comes: errors say that memory ran out, and nothing else breaks.
pub fn random_operations_under_a_limit(subject: &Subject) {
    let unit = subject.unit();
    property(subject, 80, |ops| {
        let mut rig = subject.limited(96 * unit);
        for &op in ops {
            match rig.step(op) {
                Ok(()) | Err(Error::OutOfMemory { .. }) => {}
                Err(error) => panic!("{op:?}: {error}"),
            }
        }
        subject.finish(rig);
    });
}

/// Random operations agree with the shadow at every step.
pub fn random_operations(subject: &Subject) {
    property(subject, 120, |ops| {
        let mut rig = subject.rig();
        for &op in ops {
            rig.step(op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
            rig.free_again();
        }
        subject.finish(rig);
    });
}

/// Every call of the device fails once in turn, over a whole pass: the operation under way is undone, what
/// could not be undone is given back later, and the manager goes on.
pub fn each_device_call_fails(subject: &Subject) {
    for call in CALLS {
        for n in 1.. {
            let (mut rig, hands) = subject.faulty(1);
            hands[0].set(Plan::nth(n).of(call).halfway());
            run_through_failures(&mut rig, busy_pass(subject.unit()), &hands);
            subject.finish(rig);
            if hands[0].failed() == 0 {
                break;
            }
        }
    }
}

/// As [`each_device_call_fails`], while nothing can be given back either: undoing fails too.
pub fn undoing_fails_too(subject: &Subject) {
    for call in [Call::Create, Call::Map, Call::SetAccess] {
        for n in 1.. {
            let (mut rig, hands) = subject.faulty(4);
            hands[0].set(Plan::nth(n).of(call));
            for (hand, undo) in hands[1..].iter().zip([Call::Unmap, Call::Release, Call::Unreserve]) {
                hand.set(Plan::every(1).of(undo));
            }
            run_through_failures(&mut rig, busy_pass(subject.unit()), &hands);
            subject.finish(rig);
            if hands[0].failed() == 0 {
                break;
            }
        }
    }
}

/// A device that is out of memory for one call at a time: the manager may get by, or says so.
pub fn each_create_runs_out(subject: &Subject) {
    for n in 1.. {
        let (mut rig, hands) = subject.faulty(1);
        hands[0].set(Plan::nth(n).of(Call::Create).out_of_memory());
        for op in busy_pass(subject.unit()) {
            match rig.step(op) {
                Ok(()) | Err(Error::OutOfMemory { .. }) => {}
                Err(error) => panic!("{op:?}: {error}"),
            }
        }
        subject.finish(rig);
        if hands[0].failed() == 0 {
            break;
        }
    }
}

/// The same operations on two fresh devices lead to the same placement and the same device calls.
pub fn determinism(subject: &Subject) {
    property(subject, 60, |ops| {
        let mut one = subject.rig();
        let mut other = subject.rig();
        for (n, &op) in ops.iter().enumerate() {
            assert_eq!(one.step(op).is_ok(), other.step(op).is_ok(), "operation {n}, {op:?}");
            assert_eq!(one.placement(), other.placement(), "placement after operation {n}, {op:?}");
        }
        assert_eq!(one.witness().log(0), other.witness().log(0), "device calls");
    });
}

/// From the third identical pass on, no device call is made, and the same memory serves.
pub fn third_pass_is_free(subject: &Subject) {
    if !subject.settles {
        return;
    }
    let pass = model_pass(subject.unit());
    let mut rig = subject.rig();
    rig.run(&pass);
    rig.run(&pass);
    let (calls, driver, usage) =
        (rig.witness().calls(), rig.manager().device().calls(), rig.manager().usage());
    for _ in 0..12 {
        rig.run(&pass);
        assert_eq!(rig.witness().log(calls), [], "device calls in a steady run");
        assert_eq!(rig.manager().device().calls().since(&driver).total(), 0);
        assert_eq!(rig.manager().usage(), usage);
    }
    subject.finish(rig);
}

/// Peaks start again from what is live and held.
pub fn peaks_start_again(subject: &Subject) {
    let unit = subject.unit();
    let mut rig = subject.rig();
    let small = rig.alloc(2 * unit).expect("a block");
    let large = rig.alloc(30 * unit).expect("a block");
    rig.free(large.id).expect("a live block");
    assert_eq!(rig.manager().usage().peak_live, 32 * unit);
    rig.step(Op::ResetPeaks).expect("nothing that can fail");
    let usage = rig.manager().usage();
    assert_eq!((usage.peak_live, usage.peak_held), (2 * unit, usage.held));
    rig.free(small.id).expect("a live block");
    assert_eq!(rig.manager().usage().peak_live, 2 * unit);
    subject.finish(rig);
}

/// Streams may be any number.
pub fn any_stream(subject: &Subject) {
    let unit = subject.unit();
    let mut rig = subject.rig();
    for stream in [0, 1, u64::MAX].map(Stream) {
        rig.step(Op::Alloc { bytes: unit, stream: stream.0 }).expect("a block");
    }
    subject.finish(rig);
}

/// The calls a manager makes.
const CALLS: [Call; 7] =
    [Call::Reserve, Call::Create, Call::Map, Call::SetAccess, Call::Unmap, Call::Release, Call::Unreserve];

/// Runs a pass until an operation has met the first hand's fault, repairs the device, and runs the rest.
fn run_through_failures(rig: &mut Rig, ops: Vec<Op>, hands: &[Faults]) {
    for (n, op) in ops.into_iter().enumerate() {
        let broken = hands.iter().any(|hand| hand.failed() > 0);
        let answer = rig.step(op);
        let may_fail = broken || hands.iter().any(|hand| hand.failed() > 0);
        match answer {
            Ok(()) => {}
            Err(Error::Device(_)) if may_fail => {}
            Err(error) => panic!("operation {n}, {op:?}: {error}"),
        }
        if hands[0].failed() > 0 {
            hands.iter().for_each(Faults::clear);
        }
    }
    hands.iter().for_each(Faults::clear);
}

/// Runs a property over random operations, and shrinks what breaks it. `PROPTEST_CASES` and the other
/// settings of proptest apply; a quarter of its cases are run, for every one is a whole sequence.
fn property(subject: &Subject, most: usize, holds: impl Fn(&[Op])) {
    let given = Config::default();
    let config = Config { cases: (given.cases / 4).max(1), failure_persistence: None, ..given };
    let outcome = TestRunner::new(config).run(&workload::ops(most, subject.unit()), |ops| {
        holds(&ops);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

/// A check and its name.
pub type Check = (&'static str, fn(&Subject));

/// Every check, in the order of the suite, for programs that run it without a test harness.
pub fn checks() -> Vec<Check> {
    crate::manager_conformance! { @all @list }.to_vec()
}

/// Stamps the conformance suite: a module of tests for each `name: subject`.
///
/// ```
/// use tilework::device;
/// use tilework::manager::Kind;
/// use tilework::testing::conformance::Subject;
///
/// tilework::manager_conformance! {
///     committed_on_null: Subject::of(Kind::Committed, || device::open("null").unwrap());
/// }
/// ```
#[macro_export]
macro_rules! manager_conformance {
    ($($name:ident: $subject:expr;)+) => {$(
        mod $name {
            #[allow(unused_imports, reason = "the subject may name what surrounds the macro")]
            use super::*;

            $crate::manager_conformance! { @all @tests $subject }
        }
    )+};
    (@all @$make:ident $($subject:expr)?) => {
        $crate::manager_conformance! { @$make $($subject)?;
            zero_size huge_request unknown_id double_free use_after_trim end_state limit_too_small
            each_device_call_fails undoing_fails_too each_create_runs_out determinism
            third_pass_is_free peaks_start_again any_stream random_operations
            random_operations_under_a_limit
        }
    };
    (@list; $($test:ident)+) => {
        [$((stringify!($test), $test as fn(&Subject))),+]
    };
    (@tests $subject:expr; $($test:ident)+) => {$(
        #[test]
        fn $test() {
            let subject: $crate::testing::conformance::Subject = $subject;
            $crate::testing::conformance::$test(&subject);
        }
    )+};
}

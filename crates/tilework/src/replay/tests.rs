use serde_json::json;

use super::toy::Toy;
use super::*;
use crate::manager::Stream;
use crate::record::Recorder;
use crate::trace::{Event, Op};

fn trace(lines: &[(Op, u64, u64)]) -> Trace {
    let events = lines.iter().map(|&(op, id, bytes)| Event { time_us: 0, op, id, bytes, stream: Stream(0) });
    Trace::from_events("t", events).unwrap()
}

/// Leaves blocks 1 and 3 live: 100 + 7 bytes; at most 600 107 are.
fn sample() -> Trace {
    use Op::{Alloc, Free};
    trace(&[
        (Alloc, 1, 100),
        (Alloc, 2, 600_000),
        (Alloc, 3, 7),
        (Free, 2, 600_000),
        (Alloc, 4, 1),
        (Free, 4, 1),
    ])
}

fn verifying(repeat: u32) -> ReplayOptions {
    ReplayOptions { repeat, verify: true, ..ReplayOptions::default() }
}

#[test]
fn a_report_has_the_names_of_the_contract() {
    let mut toy = Toy::new();
    let options = ReplayOptions { repeat: 2, ..ReplayOptions::default() };
    let report = replay(&sample(), &mut toy, &options, &mut ()).unwrap();
    let mut value = serde_json::to_value(report).unwrap();
    for pass in value["passes"].as_array_mut().unwrap() {
        let policy = pass.as_object_mut().unwrap().remove("policy_ns_per_op").unwrap();
        assert!(policy.as_f64().unwrap() >= 0.0);
    }
    // The calls at the end of an execution belong to its pass.
    let pass = json!({
        "allocations": 4,
        "frees": 4,
        "peak_live_bytes": 600_107,
        "peak_held_bytes": 600_107,
        "device_calls": { "reserve": 0, "create": 4, "map": 0, "set_access": 0, "unmap": 1, "release": 4 },
        "device_us": 6.0,
    });
    let expected = json!({
        "trace": "t",
        "manager": "committed",
        "device": "toy",
        "peak_live_bytes": 600_107,
        "peak_held_bytes": 600_107,
        "passes": [pass, pass],
    });
    assert_eq!(value, expected);
    assert_eq!(toy.usage().live, 0, "what the trace leaves live is freed");
}

#[test]
fn a_trace_without_events_gives_numbers_all_the_same() {
    let report = replay(&trace(&[]), &mut Toy::new(), &ReplayOptions::default(), &mut ()).unwrap();
    let value = serde_json::to_value(&report.passes[0]).unwrap();
    assert!(value["policy_ns_per_op"].is_number(), "{value}");
}

#[test]
fn verifying_passes_over_sound_memory() {
    let report = replay(&sample(), &mut Toy::new(), &verifying(3), &mut ()).unwrap();
    assert_eq!(report.passes.len(), 3);
}

#[test]
fn verifying_finds_the_first_wrong_byte() {
    // Block 2 of the first pass is the toy's second.
    let (block, sizes) = (2u64 << 40, [0, 7, 8, 262_143, 262_144, 599_999]);
    for offset in sizes {
        let mut toy = Toy::new();
        toy.device.stuck = Some(block + offset);
        let error = replay(&sample(), &mut toy, &verifying(1), &mut ()).unwrap_err();
        let ReplayError::Corrupt { line: 5, pass: 1, id: 2, since: 3, offset: at, found, expected, .. } =
            error
        else {
            panic!("{error}");
        };
        assert_eq!(at, offset);
        assert_eq!(found, !expected);
        assert_eq!(toy.usage().live, 0, "the replay freed what it had");
    }
}

#[test]
fn verifying_covers_what_the_end_of_a_pass_frees() {
    let mut toy = Toy::new();
    toy.device.stuck = Some((7 << 40) + 6); // Block 3 in the second pass.
    let error = replay(&sample(), &mut toy, &verifying(2), &mut ()).unwrap_err();
    assert!(matches!(error, ReplayError::Corrupt { line: 8, pass: 2, id: 3, offset: 6, .. }), "{error}");
    assert_eq!(toy.usage().live, 0);
}

#[test]
fn verifying_compares_what_is_held_with_the_device() {
    let mut toy = Toy::new();
    toy.device.lie = 4096;
    let error = replay(&sample(), &mut toy, &verifying(1), &mut ()).unwrap_err();
    let ReplayError::HeldMismatch { line: 2, pass: 1, books, device, .. } = error else { panic!("{error}") };
    assert!(books > 0 && device == books + 4096, "as soon as something is held");

    let mut toy = Toy::new();
    toy.device.lie = 4096;
    let error = replay(&trace(&[]), &mut toy, &verifying(1), &mut ()).unwrap_err();
    assert!(matches!(error, ReplayError::HeldMismatch { pass: 1, books: 0, device: 4096, .. }), "{error}");
}

#[test]
fn verifying_needs_memory() {
    let error = replay(&sample(), &mut Toy::without_memory(), &verifying(1), &mut ()).unwrap_err();
    assert!(matches!(error, ReplayError::NoMemory { device: "toy" }));
}

#[test]
fn out_of_memory_names_the_line_and_leaves_the_manager_usable() {
    let mut toy = Toy::limited(600_050);
    let before = toy.alloc(10, Stream(0)).unwrap();
    let error = replay(&sample(), &mut toy, &ReplayOptions::default(), &mut ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "t: line 3, pass 1: out of memory: 585.94 KiB (600000 bytes) requested with 110 B live, 0 B mapped and \
         110 B held, limit 585.99 KiB (600050 bytes); raise the limit or free something first"
    );
    assert_eq!(toy.usage().live, 10, "only what the replay had is freed");
    toy.free(before.id).unwrap();
    let again = toy.alloc(600_050, Stream(0)).unwrap();
    toy.free(again.id).unwrap();
}

#[test]
fn the_observer_hears_of_every_event() {
    struct Last(u64);
    impl Observer for Last {
        fn progress(&mut self, events: u64) {
            assert!(events > self.0);
            self.0 = events;
        }
    }
    let mut last = Last(0);
    let options = ReplayOptions { repeat: 3, ..ReplayOptions::default() };
    replay(&sample(), &mut Toy::new(), &options, &mut last).unwrap();
    assert_eq!(last.0, 18);
}

#[test]
fn a_timeline_covers_all_passes() {
    let options = ReplayOptions { repeat: 2, timeline: Some(100), ..ReplayOptions::default() };
    let report = replay(&sample(), &mut Toy::new(), &options, &mut ()).unwrap();
    let live: Vec<_> = report.timeline.unwrap().samples().iter().map(|s| s.live).collect();
    let pass = [100, 600_100, 600_107, 107, 108, 107];
    assert_eq!(live, [pass, pass].concat());
}

/// What a manager was asked, in order: allocs with their size, frees with that of the block.
fn requests(trace: &Trace) -> Vec<(bool, u64)> {
    let mut sizes = vec![0; trace.slots()];
    let request = |step: &Step| match *step {
        Step::Alloc { slot, bytes, .. } => {
            sizes[slot as usize] = bytes;
            (true, bytes)
        }
        Step::Free { slot } => (false, sizes[slot as usize]),
    };
    trace.steps().iter().map(request).collect()
}

fn record(trace: &Trace, repeat: u32) -> Trace {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.csv.gz");
    let mut recorder = Recorder::new(Box::new(Toy::new()), &path).unwrap();
    let options = ReplayOptions { repeat, ..ReplayOptions::default() };
    replay(trace, &mut recorder, &options, &mut ()).unwrap();
    recorder.finish().unwrap();
    Trace::load(&path).unwrap()
}

#[test]
fn a_recorded_replay_is_the_same_trace() {
    let original = sample();
    let recorded = record(&original, 1);
    // The replay frees what the trace left live; otherwise nothing differs.
    let mut expected = requests(&original);
    expected.extend([(false, 100), (false, 7)]);
    assert_eq!(requests(&recorded), expected);

    let again = record(&recorded, 1);
    assert_eq!(again.steps(), recorded.steps());
    assert_eq!(requests(&record(&original, 2)), expected.repeat(2));
}

#[test]
fn a_recording_leaves_live_blocks_live() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.csv.gz");
    let mut recorder = Recorder::new(Box::new(Toy::new()), &path).unwrap();
    let kept = recorder.alloc(5, Stream(2)).unwrap();
    let freed = recorder.alloc(6, Stream(0)).unwrap();
    recorder.free(freed.id).unwrap();
    assert!(recorder.free(freed.id).is_err(), "errors pass through");
    recorder.finish().unwrap();
    recorder.free(kept.id).unwrap();

    let trace = Trace::load(&path).unwrap();
    assert_eq!(requests(&trace), [(true, 5), (true, 6), (false, 6)]);
    assert_eq!(trace.steps()[0], Step::Alloc { slot: 0, bytes: 5, stream: Stream(2) });
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_stops_the_recording_and_nothing_else() {
    let mut recorder = Recorder::new(Box::new(Toy::new()), "/dev/full").unwrap();
    let options = ReplayOptions { repeat: 50_000, ..ReplayOptions::default() };
    replay(&sample(), &mut recorder, &options, &mut ()).unwrap();
    let error = recorder.finish().unwrap_err();
    assert!(matches!(&error, Error::Recording(why) if why.starts_with("/dev/full: ")), "{error}");
    assert!(recorder.finish().is_ok(), "told once");
    assert_eq!(recorder.into_inner().usage().live, 0);
}

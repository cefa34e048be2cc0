//! `tilework run` and `tilework compare` on a model, end to end, with a real ONNX Runtime.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Folder, refused, replay, stderr, stdout, tilework};
#[cfg(target_os = "linux")]
use common::{children, parent_of, started, wait_for};
use serde_json::Value;

const SHAPE: [&str; 2] = ["--shape", "x=1x3x96x96"];

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tilework-ort/tests/data/conv.onnx")
}

fn run_json(arguments: &[&str]) -> Value {
    let output = tilework(["run", "--json"]).args(arguments).arg(model()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_run_reports_each_execution() {
    let output = tilework(["run"]).args(SHAPE).arg(model()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    for part in ["conv.onnx with ONNX Runtime 1.", "tiled on host: peak live", "output y: f32 1x8x96x96"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    let object = run_json(&SHAPE);
    assert_eq!(object["manager"], "tiled");
    assert_eq!(object["why"], "tiled serves, since the device host maps tiles");
    assert_eq!(
        run_json(&["--shape", "x=1x3x96x96", "--runs", "1", "--manager", "placed"])["manager"],
        "placed"
    );
    assert_eq!(object["runs"].as_array().unwrap().len(), 3);
    let calls = object["runs"][2]["device_calls"].as_object().unwrap();
    assert!(calls.values().all(|n| n == 0), "nothing is left to do in the third run: {calls:?}");
}

#[test]
fn the_seed_decides_the_outputs_and_the_manager_does_not() {
    let print = |more: &[&str]| {
        let arguments: Vec<_> =
            SHAPE.into_iter().chain(["--runs", "1"]).chain(more.iter().copied()).collect();
        run_json(&arguments)["fingerprint"].as_str().unwrap().to_owned()
    };
    let first = print(&[]);
    assert_eq!(first, print(&["--manager", "committed"]));
    assert_ne!(first, print(&["--seed", "1"]));
}

#[test]
fn an_output_can_be_saved_and_a_trace_replayed() {
    let folder = Folder::new();
    let (saved, trace, picture) = (folder.path("y.npy"), folder.path("t.csv.gz"), folder.path("p.svg"));
    let output = tilework(["run"])
        .args(SHAPE)
        .args(["--runs", "2", "--save"])
        .arg(&saved)
        .arg("--record")
        .arg(&trace)
        .arg("--plot")
        .arg(&picture)
        .arg(model())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let npy = fs::read(&saved).unwrap();
    assert!(npy.starts_with(b"\x93NUMPY") && npy.len() > 8 * 96 * 96 * 4);
    assert!(fs::read_to_string(&picture).unwrap().contains("conv.onnx on host"));
    let replayed = replay(&trace, ["--verify"]);
    assert!(replayed.status.success(), "{}", stderr(&replayed));

    // What was saved fits as an input where the shape does.
    let given = format!("x={}", saved.display());
    let output = tilework(["run", "--input", &given]).arg(model()).output().unwrap();
    let error = refused(&output, 2);
    assert!(error.contains("was given f32 1x8x96x96") && error.contains("x: f32 1x3xHxW"), "{error}");
    let output = tilework(["run", "--input", &given]).args(SHAPE).arg(model()).output().unwrap();
    let error = refused(&output, 2);
    assert!(
        error.contains("both the shape 1x3x96x96 and a tensor of f32 1x8x96x96, which disagree"),
        "{error}"
    );
}

#[test]
fn wrong_use_is_told_with_what_would_be_right() {
    let run = |arguments: &[&str]| tilework(["run"]).args(arguments).arg(model()).output().unwrap();
    for (arguments, says) in [
        (&[][..], "x: f32 1x3xHxW"),
        (&["--shape", "x=1x4x8x8"], "x: f32 1x3xHxW"),
        (&["--shape", "y=1x3x8x8"], "no input \"y\""),
        (&["--shape", "x=1y3"], "write NAME=DIMS"),
        (&["--shape", "x=1x3x0x4"], "1x3x0x4, a shape without elements"),
        (&["--shape", "x=1x3x8x8", "--shape", "x=1x3x9x9"], "--shape names input \"x\" twice"),
        (&["--input", "x=a.npy", "--input", "x=a.npy"], "--input names input \"x\" twice"),
        (&["--manager", "best"], "the managers are tiled, placed, bucketized, committed; or auto"),
        (&["--device", "gpu"], "the devices are host"),
        (&["--shape", "x=1x3x8x8", "--device", "sim-h200"], "use host"),
    ] {
        let output = run(arguments);
        let error = refused(&output, 2);
        assert!(error.contains(says), "{arguments:?}: {error}");
    }
}

#[test]
fn a_limit_too_small_names_the_figures() {
    let output = tilework(["run", "--limit", "256KiB"]).args(SHAPE).arg(model()).output().unwrap();
    let error = refused(&output, 1);
    // How much is requested depends on the width of the processor's vectors.
    assert!(error.contains("out of memory: ") && error.contains(" requested with "), "{error}");
    assert!(error.contains("limit 256 KiB"), "{error}");
}

#[test]
fn without_a_library_the_ways_out_are_named() {
    let folder = Folder::new();
    // A machine without Python and without a cache.
    let output = tilework(["run"])
        .env_clear()
        .env("PATH", folder.path("empty"))
        .env("HOME", folder.path("home"))
        .args(SHAPE)
        .arg(model())
        .output()
        .unwrap();
    let error = refused(&output, 1);
    for way in ["--ort-lib", "ORT_DYLIB_PATH", "pip install onnxruntime", "connect to the network"] {
        assert!(error.contains(way), "{way:?} in {error}");
    }
}

#[test]
fn a_comparison_has_a_row_for_everyone_and_a_picture() {
    let folder = Folder::new();
    let picture = folder.path("held.svg");
    let output = tilework(["compare", "--runs", "2"])
        .args(SHAPE)
        .arg("--plot")
        .arg(&picture)
        .arg(model())
        .output()
        .unwrap();
    let text = stdout(&output);
    assert!(output.status.success(), "{text}{}", stderr(&output));
    for name in
        ["peak live", "peak held", "held/live", "peak RSS", "peak PSS", "time/run", "to arena", "calls"]
    {
        assert!(text.lines().nth(1).unwrap().contains(name), "{name:?} in {text}");
    }
    let svg = fs::read_to_string(&picture).unwrap();
    for who in ["tiled", "placed", "bucketized", "committed", "ort arena", "ort arena, no pattern"] {
        assert!(text.lines().any(|line| line.starts_with(who)), "{who} in {text}");
        let unknown = text.contains("too old to tell what its arena holds") && who.starts_with("ort");
        assert!(unknown || svg.contains(who), "{who}");
    }
    assert!(text.contains("outputs: the same to the bit in every run"), "{text}");
    assert!(text.contains("note: with auto, tiled serves, since the device host maps tiles"), "{text}");
}

#[test]
fn a_manager_that_fails_leaves_the_others_their_rows() {
    // What the model needs depends on the width of the processor's vectors; buckets always need more.
    let held = |manager| {
        let output =
            tilework(["run", "--json", "--manager", manager]).args(SHAPE).arg(model()).output().unwrap();
        let report: Value = serde_json::from_str(stdout(&output)).unwrap();
        report["peak_held_bytes"].as_u64().unwrap()
    };
    let enough = held("tiled");
    assert!(enough < held("bucketized"));
    let limit = format!("{enough}B");
    let output =
        tilework(["compare", "--runs", "1", "--limit", &limit]).args(SHAPE).arg(model()).output().unwrap();
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{text}{}", stderr(&output));
    let row = |who| text.lines().find(|line| line.starts_with(who)).unwrap();
    assert!(row("bucketized").contains("failed"), "{text}");
    assert!(!row("tiled").contains("failed") && !row("ort arena").contains("failed"), "{text}");
    assert!(text.contains("failed: bucketized: the model could not run: out of memory"), "{text}");
}

#[test]
fn where_no_manager_runs_there_are_no_outputs_to_compare() {
    let output = tilework(["compare", "--runs", "1", "--limit", "1KiB"]).args(SHAPE).arg(model()).output();
    let output = output.unwrap();
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{text}{}", stderr(&output));
    assert_eq!(text.matches("failed: ").count(), 4, "{text}");
    assert!(!text.contains("the same"), "{text}");
    assert!(text.contains("outputs: nothing to compare"), "{text}");
}

#[test]
fn several_models_share_a_table_and_a_picture() {
    let folder = Folder::new();
    let (one, two, picture) = (folder.path("one.onnx"), folder.path("two.onnx"), folder.path("held.svg"));
    fs::copy(model(), &one).unwrap();
    fs::copy(model(), &two).unwrap();
    let compare = |models: &[&Path]| {
        let mut command = tilework(["compare", "--runs", "1", "--plot"]);
        command.arg(&picture).args(SHAPE).args(models).output().unwrap()
    };
    let output = compare(&[&one, &two]);
    let text = stdout(&output);
    assert!(output.status.success(), "{text}{}", stderr(&output));
    let mut lines = text.lines();
    assert!(lines.next().unwrap().starts_with("ONNX Runtime 1."), "{text}");
    let header: Vec<_> = lines.next().unwrap().split_whitespace().take(2).collect();
    assert_eq!(header, ["model", "manager"]);
    assert_eq!(text.matches("peak held").count(), 1, "one table: {text}");
    for name in ["one.onnx  ", "two.onnx  "] {
        assert_eq!(text.lines().filter(|line| line.starts_with(name)).count(), 6, "{text}");
    }
    // What is so of both is told once.
    for line in ["note: with auto, tiled serves", "outputs: the same to the bit in every run"] {
        assert_eq!(text.matches(line).count(), 1, "{text}");
    }
    let svg = fs::read_to_string(&picture).unwrap();
    assert!(svg.contains("one.onnx on host") && svg.contains("two.onnx on host"));

    // One that does not load takes nothing from those before it.
    fs::write(&two, "no model").unwrap();
    let output = compare(&[&one, &two]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("one.onnx  ")).count(), 6, "{text}");
    assert!(stderr(&output).contains("two.onnx does not load"), "{}", stderr(&output));
}

#[cfg(target_os = "linux")]
#[test]
fn a_comparison_that_is_ended_takes_its_workers_with_it() {
    let model = model();
    let arguments = ["compare", "--runs", "1000000", SHAPE[0], SHAPE[1], model.to_str().unwrap()];
    let mut compare = started(arguments);
    wait_for("every worker runs", || children(compare.id()).len() == 6);
    let workers = children(compare.id());
    compare.kill().unwrap();
    compare.wait().unwrap();
    wait_for("they end", || workers.iter().all(|&worker| parent_of(worker).is_none()));
}

#[test]
fn a_comparison_of_nothing_comparable_is_refused_once() {
    let folder = Folder::new();
    let output = tilework(["compare"]).arg(model()).output().unwrap();
    assert_eq!(refused(&output, 2).matches("x: f32 1x3xHxW").count(), 1);
    let output = tilework(["compare"]).arg(model()).arg(folder.sample()).output().unwrap();
    assert!(refused(&output, 2).contains("separate calls"));
    let output = tilework(["compare", "--shape", "x=1"]).arg(folder.sample()).output().unwrap();
    assert!(refused(&output, 2).contains("--shape"));
    let output = tilework(["compare"]).arg("absent.onnx").output().unwrap();
    assert!(refused(&output, 1).contains("absent.onnx does not load"));
}

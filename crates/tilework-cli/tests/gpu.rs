//! Models on a GPU, as far as they get without one: every reason why not is told with what to do. And what serves where
//! a GPU cannot map.
#![cfg(target_os = "linux")]

mod common;

use common::{Folder, driver, refused, stderr, stdout, tilework};
use serde_json::Value;

const SHAPE: [&str; 2] = ["--shape", "x=1x3x96x96"];

fn model() -> String {
    format!("{}/../tilework-ort/tests/data/conv.onnx", env!("CARGO_MANIFEST_DIR"))
}

/// What is said of a device with this many GPUs in the machine.
#[track_caller]
fn refusal(driver: &Folder, gpus: &str, command: &str, arguments: &[&str]) -> String {
    let output = tilework([command])
        .env("LD_LIBRARY_PATH", driver.path(""))
        .env("GPUS", gpus)
        .args(SHAPE)
        .args(arguments)
        .arg(model())
        .output()
        .unwrap();
    refused(&output, 1).to_owned()
}

#[test]
fn a_gpu_that_is_not_there_is_told_before_anything_else() {
    let driver = driver();
    for command in ["run", "compare"] {
        let none = refusal(&driver, "0", command, &["--device", "cuda"]);
        assert!(
            none.contains("cannot open cuda: the NVIDIA driver found no GPU: check nvidia-smi"),
            "{none}"
        );
        let wrong = refusal(&driver, "2", command, &["--device", "cuda:2"]);
        assert!(wrong.contains("there is no GPU 2: the driver has 2, counted from 0"), "{wrong}");
    }
}

#[test]
fn a_library_without_the_cuda_provider_is_told_with_the_package_that_has_it() {
    let host = tilework(["run", "--json"]).args(SHAPE).arg(model()).output().unwrap();
    assert!(host.status.success(), "{}", stderr(&host));
    let report: Value = serde_json::from_slice(&host.stdout).unwrap();
    let library = report["onnxruntime_library"].as_str().unwrap();
    let driver = driver();
    for command in ["run", "compare"] {
        let error = refusal(&driver, "1", command, &["--device", "cuda", "--ort-lib", library]);
        for part in [library, "no CUDA provider, only", "CPUExecutionProvider", "onnxruntime-gpu[cuda,cudnn]"]
        {
            assert!(error.contains(part), "{part:?} in {error}");
        }
    }
}

#[test]
fn without_any_library_nothing_is_fetched_for_a_gpu() {
    let driver = driver();
    let output = tilework(["run", "--device", "cuda"])
        .env_clear()
        .env("PATH", driver.path("empty"))
        .env("HOME", driver.path("home"))
        .env("LD_LIBRARY_PATH", driver.path(""))
        .env("GPUS", "1")
        .args(SHAPE)
        .arg(model())
        .output()
        .unwrap();
    let error = refused(&output, 1);
    for way in
        ["no ONNX Runtime library for a GPU", "--ort-lib", "ORT_DYLIB_PATH", "onnxruntime-gpu[cuda,cudnn]"]
    {
        assert!(error.contains(way), "{way:?} in {error}");
    }
    assert!(!driver.path("home").exists(), "nothing was fetched");
}

#[test]
fn on_a_gpu_that_cannot_map_auto_takes_placed_as_tiled_does_and_says_so() {
    let driver = driver();
    let folder = Folder::new();
    let why = "the device cuda cannot map tiles: the manager placed serves in place of tiled";
    let run = |command: &str, arguments: &[&str]| {
        let output = tilework([command, "--device", "cuda"])
            .env("LD_LIBRARY_PATH", driver.path(""))
            .env("GPUS", "1")
            .args(arguments)
            .arg(folder.sample())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        output
    };
    for manager in ["auto", "tiled"] {
        let output = run("replay", &["--json", "--verify", "--manager", manager]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["manager"], &report["device"]), (&"placed".into(), &"cuda".into()));
        assert_eq!((&report["why"], &report["fallback"]), (&why.into(), &why.into()));
        assert_eq!(stderr(&output).matches(why).count(), 1, "{}", stderr(&output));
    }
    let compared = run("compare", &["--repeat", "1"]);
    let text = stdout(&compared);
    assert_eq!(text.matches("note: ").count(), 1, "{text}");
    assert!(text.contains(&format!("note: with auto, {why}")), "{text}");
    assert!(text.lines().any(|line| line.starts_with("tiled (fell back)")), "{text}");
}

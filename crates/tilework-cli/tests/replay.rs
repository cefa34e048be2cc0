//! `tilework replay`, end to end.

mod common;

use std::fs;
use std::io::Read;
use std::process::Stdio;

use common::{Folder, HEADER, refused, replay, stderr, stdout, tilework};
#[cfg(target_os = "linux")]
use common::{started, wait_for};
use serde_json::Value;

fn json(output: &std::process::Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).expect("nothing but JSON on stdout")
}

fn names(value: &Value) -> Vec<&str> {
    let mut names: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn json_has_the_names_of_the_contract_and_no_others() {
    let folder = Folder::new();
    let trace = folder.sample();
    let value = json(&replay(&trace, ["--json", "--repeat", "2", "--device", "sim-h200"]));
    assert_eq!(
        names(&value),
        ["device", "manager", "passes", "peak_held_bytes", "peak_live_bytes", "trace", "why"]
    );
    assert_eq!(value["trace"], trace.to_str().unwrap());
    assert_eq!(value["manager"], "tiled");
    assert_eq!(value["device"], "sim-h200");
    assert_eq!(value["peak_live_bytes"], 5 << 20);
    assert!(value["peak_held_bytes"].as_u64() >= value["peak_live_bytes"].as_u64());
    let passes = value["passes"].as_array().unwrap();
    assert_eq!(passes.len(), 2);
    for pass in passes {
        assert_eq!(
            names(pass),
            [
                "allocations",
                "device_calls",
                "device_us",
                "frees",
                "peak_held_bytes",
                "peak_live_bytes",
                "policy_ns_per_op"
            ]
        );
        assert_eq!(
            names(&pass["device_calls"]),
            ["create", "map", "release", "reserve", "set_access", "unmap"]
        );
        assert_eq!((&pass["allocations"], &pass["frees"]), (&3.into(), &3.into()));
    }
}

#[test]
fn json_stays_alone_on_stdout_when_everything_is_logged() {
    let folder = Folder::new();
    let output =
        tilework(["replay", "--json", "-vvv"]).arg(folder.sample()).env("RUST_LOG", "trace").output();
    json(&output.unwrap());
}

#[test]
fn every_manager_serves_on_every_simulated_device() {
    let folder = Folder::new();
    let trace = folder.sample();
    for manager in ["tiled", "placed", "bucketized", "committed"] {
        for device in ["sim-h200", "sim-d3d12", "null"] {
            let value = json(&replay(&trace, ["--json", "--manager", manager, "--device", device]));
            assert_eq!((&value["manager"], &value["device"]), (&manager.into(), &device.into()));
            assert_eq!(value["passes"].as_array().unwrap().len(), 3, "three passes unless told otherwise");
        }
    }
}

#[test]
fn the_manager_suits_the_device_unless_it_is_named() {
    let folder = Folder::new();
    let trace = folder.sample();
    for device in ["sim-h200", "sim-d3d12", "null"] {
        let auto = json(&replay(&trace, ["--json", "--manager", "auto", "--device", device]));
        assert_eq!(auto["manager"], "tiled", "{device}");
        assert_eq!(auto["why"], format!("tiled serves, since the device {device} maps tiles"));
        assert_eq!(auto["fallback"], Value::Null);
        let default = json(&replay(&trace, ["--json", "--device", device]));
        assert_eq!((&default["manager"], &default["why"]), (&auto["manager"], &auto["why"]));
    }
    let named = json(&replay(&trace, ["--json", "--manager", "placed"]));
    assert_eq!(
        (&named["manager"], &named["why"]),
        (&"placed".into(), &"placed serves, since it was asked for".into())
    );

    let logged = tilework(["replay", "-v", trace.to_str().unwrap()]).output().unwrap();
    let why = "tiled serves, since the device sim-h200 maps tiles";
    assert_eq!((stdout(&logged).matches(why).count(), stderr(&logged).matches(why).count()), (1, 1));
}

#[test]
fn a_table_is_printed_without_json() {
    let folder = Folder::new();
    let output = replay(&folder.sample(), ["--repeat", "2"]);
    let text = stdout(&output);
    assert!(text.contains("tiled on sim-h200: peak live 5.00 MiB"), "{text}");
    assert!(text.contains("note: tiled serves, since the device sim-h200 maps tiles"), "{text}");
    assert!(text.contains("policy/op"), "{text}");
    assert_eq!(stderr(&output), "");
}

#[test]
fn a_malformed_trace_is_refused_with_its_line() {
    let folder = Folder::new();
    for (events, expected) in [
        ("0,alloc,1,5,0\n0,free,1,5\n", "line 3: expected 5 fields"),
        ("0,alloc,1,five,0\n", "line 2: bytes must be a whole number"),
        ("0,move,1,5,0\n", "line 2: op must be"),
        ("0,free,8,5,0\n", "line 2: free of id 8, which was never allocated"),
        (
            "0,alloc,1,5,0\n0,free,1,5,0\n0,free,1,5,0\n",
            "line 4: free of id 1, which was freed already at line 3",
        ),
        ("0,alloc,1,0,0\n", "line 2: alloc of id 1 asks for zero bytes"),
        ("0,alloc,1,9223372036854775808,0\n", "line 2: 9223372036854775808 bytes are more"),
        ("", "there is nothing to replay"),
    ] {
        let output = replay(&folder.trace("bad.csv.gz", events), ["--json"]);
        let error = refused(&output, 1);
        assert!(error.contains("bad.csv.gz: ") && error.contains(expected), "{error}");
    }
}

#[test]
fn a_truncated_an_empty_and_a_missing_file_are_refused() {
    let folder = Folder::new();
    let whole = fs::read(folder.sample()).unwrap();
    let path = folder.path("cut.csv.gz");
    fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    let error = replay(&path, []);
    assert!(refused(&error, 1).contains("the file is truncated"), "{}", stderr(&error));

    fs::write(&path, "").unwrap();
    assert!(refused(&replay(&path, []), 1).contains("line 1: the file is empty"));
    assert!(refused(&replay(&folder.path("none.csv.gz"), []), 1).contains("none.csv.gz: cannot open it"));
}

#[test]
fn a_plain_trace_is_read_as_well() {
    let folder = Folder::new();
    let path = folder.path("plain.csv");
    fs::write(&path, format!("{HEADER}{}", common::EVENTS)).unwrap();
    assert_eq!(json(&replay(&path, ["--json"]))["peak_live_bytes"], 5 << 20);
}

#[test]
fn unknown_names_list_the_known_ones() {
    let folder = Folder::new();
    let trace = folder.sample();
    let error = replay(&trace, ["--manager", "buddy"]);
    let error = refused(&error, 2);
    assert!(error.contains("the managers are tiled, placed, bucketized, committed; or auto"), "{error}");
    let error = replay(&trace, ["--device", "tpu"]);
    let error = refused(&error, 2);
    assert!(error.contains("the devices are ") && error.contains("sim-h200, sim-d3d12, null"), "{error}");
}

#[test]
fn gpus_are_devices_by_number() {
    let folder = Folder::new();
    let trace = folder.sample();
    // On a machine without a GPU, with a driver or without, and on one with fewer than these.
    let error = replay(&trace, ["--device", "cuda:4096"]);
    let error = refused(&error, 1);
    assert!(error.contains("cannot open cuda:4096: "), "{error}");
    assert!(error.contains("NVIDIA driver") || error.contains("no GPU 4096"), "{error}");
    let error = replay(&trace, ["--device", "cuda:first"]);
    assert!(refused(&error, 2).contains("cuda and cuda:N"));
}

#[test]
fn vulkan_devices_are_devices_by_number() {
    let folder = Folder::new();
    let trace = folder.sample();
    let error = replay(&trace, ["--device", "vulkan:4096"]);
    let error = refused(&error, 1);
    assert!(error.contains("cannot open vulkan:4096: "), "{error}");
    assert!(error.contains("no Vulkan device 4096") || error.contains("Vulkan loader"), "{error}");
    let error = replay(&trace, ["--device", "vulkan:first"]);
    assert!(refused(&error, 2).contains("vulkan and vulkan:N"));

    let none = tilework(["replay", trace.to_str().unwrap(), "--device", "vulkan"])
        .env("VK_DRIVER_FILES", "/nonexistent")
        .env("VK_ICD_FILENAMES", "/nonexistent")
        .output()
        .unwrap();
    let error = refused(&none, 1);
    assert!(error.contains("install a driver") || error.contains("install it"), "{error}");

    if std::env::var_os("TILEWORK_TEST_VULKAN").is_none() {
        println!("skipped: TILEWORK_TEST_VULKAN is not set");
        return;
    }
    let output = replay(&trace, ["--device", "vulkan", "--verify", "--json"]);
    assert_eq!(json(&output)["device"], "vulkan");
}

#[cfg(not(windows))]
#[test]
fn direct3d_is_told_to_be_elsewhere() {
    let folder = Folder::new();
    let error = replay(&folder.sample(), ["--device", "d3d12"]);
    let error = refused(&error, 1);
    assert!(error.contains("cannot open d3d12: ") && error.contains("this is not Windows"), "{error}");
    let error = replay(&folder.sample(), ["--device", "d3d12:first"]);
    assert!(refused(&error, 2).contains("d3d12 and d3d12:N"));
}

#[test]
fn wrong_usage_ends_with_2() {
    let folder = Folder::new();
    let trace = folder.sample();
    for arguments in [
        ["--repeat", "0"],
        ["--scale", "0"],
        ["--scale", "-1"],
        ["--scale", "many"],
        ["--limit", "2 XiB"],
        ["--heap-size", "0"],
        ["--no-such-option", "1"],
    ] {
        refused(&replay(&trace, arguments), 2);
    }
    refused(&tilework(["replay"]).output().unwrap(), 2);
    let error = replay(&trace, ["--verify", "--device", "sim-h200"]);
    assert!(refused(&error, 2).contains("has no memory"), "{}", stderr(&error));
}

#[test]
fn a_limit_too_small_names_request_live_held_and_limit() {
    let folder = Folder::new();
    let output = replay(&folder.sample(), ["--limit", "4MiB", "--manager", "committed"]);
    let error = refused(&output, 1);
    for part in [
        "committed on sim-h200: ",
        "line 3, pass 1: out of memory",
        "4 MiB requested",
        "1 MiB live",
        "2 MiB held",
        "limit 4 MiB;",
    ] {
        assert!(error.contains(part), "{part:?} in {error}");
    }
    assert!(replay(&folder.sample(), ["--limit", "1GiB"]).status.success());
}

#[test]
fn lines_are_those_of_the_file_where_there_are_remarks() {
    let folder = Folder::new();
    let text = format!("{HEADER}# one\n# two\n0,alloc,1,512,0\n# three\n1,alloc,2,8388608,0\n");
    let trace = folder.path("remarks.csv");
    fs::write(&trace, text).unwrap();
    let output = replay(&trace, ["--limit", "4MiB"]);
    let error = refused(&output, 1);
    assert!(error.contains("line 6, pass 1: out of memory"), "{error}");
}

#[test]
fn nothing_is_overwritten_that_is_read_or_written() {
    let folder = Folder::new();
    let trace = folder.sample();
    let (before, name) = (fs::read(&trace).unwrap(), trace.to_str().unwrap());
    let link = folder.path("link");
    std::os::unix::fs::symlink(&trace, &link).unwrap();
    let link = link.to_str().unwrap();
    for arguments in [vec!["--plot", name], vec!["--record", name], vec!["--plot", link]] {
        let output = replay(&trace, arguments);
        let error = refused(&output, 2);
        assert!(error.contains("would overwrite the trace: choose another name"), "{error}");
    }
    let both = folder.path("both");
    let name = both.to_str().unwrap();
    let output = replay(&trace, ["--record", name, "--plot", name]);
    let error = refused(&output, 2);
    assert!(error.contains("would overwrite --record"), "{error}");
    assert_eq!(fs::read(&trace).unwrap(), before);
    assert!(!both.exists());
}

#[test]
fn what_cannot_be_written_is_found_before_the_work() {
    let folder = Folder::new();
    let trace = folder.sample();
    for path in [folder.path("nowhere/held.svg"), folder.path("")] {
        let output = replay(&trace, ["--plot", path.to_str().unwrap()]);
        assert!(refused(&output, 1).contains("--plot "), "{}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn sizes_scale() {
    let folder = Folder::new();
    let value = json(&replay(&folder.sample(), ["--json", "--scale", "0.5"]));
    assert_eq!(value["peak_live_bytes"], 5 << 19);
}

#[test]
fn a_recorded_replay_replays_the_same() {
    let folder = Folder::new();
    let (trace, again) = (folder.sample(), folder.path("again.csv.gz"));
    let first = json(&replay(&trace, ["--json", "--record", again.to_str().unwrap()]));
    assert_eq!(first["passes"].as_array().unwrap().len(), 1, "one pass unless told otherwise");
    let second = json(&replay(&again, ["--json", "--repeat", "1"]));
    for name in ["allocations", "frees", "peak_live_bytes", "peak_held_bytes", "device_calls"] {
        assert_eq!(first["passes"][0][name], second["passes"][0][name], "{name}");
    }
}

#[test]
fn a_failed_replay_leaves_no_recording() {
    let folder = Folder::new();
    let recording = folder.path("r.csv.gz");
    let arguments = ["--limit", "4MiB", "--record", recording.to_str().unwrap()];
    refused(&replay(&folder.sample(), arguments), 1);
    assert!(!recording.exists());
    let nowhere = folder.path("no/such/folder/r.csv.gz");
    let error = replay(&folder.sample(), ["--record", nowhere.to_str().unwrap()]);
    assert!(refused(&error, 1).contains("--record "));
}

#[cfg(target_os = "linux")]
#[test]
fn a_recording_that_is_ended_leaves_nothing() {
    use rustix::process::Signal;

    let folder = Folder::new();
    let (trace, recording) = (folder.sample(), folder.path("r.csv.gz"));
    let arguments = ["replay", trace.to_str().unwrap(), "--repeat", "4000000000", "--record"];
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        let mut replay = started(arguments.into_iter().chain(recording.to_str()));
        let descriptors = format!("/proc/{}/fd", replay.id());
        wait_for("it records", || {
            let opened = fs::read_dir(&descriptors).into_iter().flatten().flatten();
            let mut names = opened.filter_map(|entry| fs::read_link(entry.path()).ok());
            names.any(|name| name.starts_with(recording.parent().unwrap()))
        });
        common::signal(&replay, signal);
        assert!(!replay.wait().unwrap().success());
        let left: Vec<_> = fs::read_dir(recording.parent().unwrap()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "the trace: {left:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn verifying_takes_the_device_that_has_memory() {
    let folder = Folder::new();
    for manager in ["tiled", "placed", "bucketized", "committed"] {
        let value = json(&replay(&folder.sample(), ["--json", "--verify", "--manager", manager]));
        assert_eq!((&value["manager"], &value["device"]), (&manager.into(), &"host".into()));
    }
}

#[test]
fn a_picture_is_drawn() {
    let folder = Folder::new();
    let picture = folder.path("held.svg");
    let output = replay(&folder.sample(), ["--plot", picture.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let svg = fs::read_to_string(picture).unwrap();
    for part in ["<svg", "sample.csv.gz on sim-h200", "live, peak 5.00 MiB", "MiB", "pass 3"] {
        assert!(svg.contains(part), "{part:?}");
    }
}

#[test]
fn help_shows_an_example() {
    for arguments in [&["--help"][..], &["replay", "--help"], &["compare", "--help"], &["replay", "-h"]] {
        let output = tilework(arguments.iter().copied()).output().unwrap();
        assert!(output.status.success());
        assert!(stdout(&output).contains("Examples:\n  tilework "), "{arguments:?}");
    }
}

#[test]
fn a_reader_that_went_away_is_no_error() {
    let folder = Folder::new();
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin!("tilework"))
        .args(["replay", "--json"])
        .arg(folder.sample())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Closed before anything can have been written: the trace has to be replayed first.
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(said, "");
}

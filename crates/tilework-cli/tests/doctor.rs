//! `tilework doctor`, end to end: devices that work, and drivers that are absent, too old, broken or dead.
#![cfg(target_os = "linux")]

mod common;

use std::fs;

use assert_cmd::Command;
use common::{Folder, driver, old_driver, stderr, stdout, tilework};
use serde_json::Value;

/// `tilework doctor`, blind to drivers of the machine that the tests run on.
fn doctor(driver: &Folder) -> Command {
    let mut command = tilework(["doctor"]);
    command
        .env("LD_LIBRARY_PATH", driver.path(""))
        .env("GPUS", "0")
        .env("VK_DRIVER_FILES", "/nonexistent")
        .env("VK_ICD_FILENAMES", "/nonexistent");
    command
}

/// What it prints as JSON; the exit code is 0, since the host works.
#[track_caller]
fn report(command: &mut Command) -> Value {
    let output = command.arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("nothing but JSON on stdout")
}

#[track_caller]
fn device<'a>(report: &'a Value, name: &str) -> &'a Value {
    let all = report["devices"].as_array().unwrap();
    all.iter().find(|device| device["name"] == name).unwrap_or_else(|| panic!("{name} in {all:?}"))
}

#[test]
fn the_devices_of_the_library_are_told_with_what_auto_takes() {
    let report = report(&mut doctor(&driver()));
    assert_eq!(report["ok"], true);
    let names: Vec<_> = report["devices"].as_array().unwrap().iter().map(|device| &device["name"]).collect();
    assert_eq!(names, ["host", "sim-h200", "sim-d3d12", "null", "cuda", "vulkan"], "Direct3D is Windows's");
    for (name, tier, tile) in [
        ("host", "tiles", 64 << 10),
        ("sim-h200", "heaps", 2 << 20),
        ("sim-d3d12", "tiles", 64 << 10),
        ("null", "heaps", 2 << 20),
    ] {
        let found = device(&report, name);
        let capabilities = &found["capabilities"];
        assert_eq!((&found["works"], &capabilities["tier"]), (&true.into(), &tier.into()), "{name}");
        assert_eq!(capabilities["tile_bytes"], tile, "{name}: {capabilities}");
        assert!(capabilities["longest_range_bytes"].as_u64().unwrap() >= 1 << 30, "{name}: {capabilities}");
        assert_eq!(found["free_bytes"].is_u64(), name == "host", "{name}: what the kernel has available");
        assert_eq!(found["auto"]["manager"], "tiled");
        assert_eq!(found["auto"]["why"], format!("tiled serves, since the device {name} maps tiles"));
    }
}

#[test]
fn limits_are_the_kernels_and_those_of_the_process() {
    let report = report(&mut doctor(&driver()));
    let limit = |name: &str| {
        let all = report["limits"].as_array().unwrap();
        all.iter().find(|limit| limit["name"].as_str().unwrap().starts_with(name)).expect(name)
    };
    let kernel: u64 = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    assert_eq!(limit("vm.max_map_count")["value"]["count"], kernel);
    assert!(limit("vm.max_map_count")["used"]["count"].as_u64().unwrap() > 0);
    assert!(limit("memory")["value"]["bytes"].as_u64() > limit("memory")["used"]["bytes"].as_u64());
    assert_eq!(limit("memfd_create")["value"]["supported"], true);
    for name in ["address space (ulimit -v)", "locked memory (ulimit -l)", "disk of "] {
        assert!(!limit(name)["bounds"].as_str().unwrap().is_empty());
    }
}

#[test]
fn a_limit_that_is_low_comes_with_what_to_do() {
    let driver = driver();
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -v 4194304; ulimit -l 0; exec \"$0\" doctor"])
        .arg(assert_cmd::cargo::cargo_bin!("tilework"))
        .env("LD_LIBRARY_PATH", driver.path(""))
        .env("GPUS", "0")
        .env("VK_DRIVER_FILES", "/nonexistent");
    let output = limited.output().unwrap();
    let text = stdout(&output);
    assert!(output.status.success(), "{text}{}", stderr(&output));
    assert!(text.contains("low: address space (ulimit -v): lift it with ulimit -v unlimited"), "{text}");
    assert!(text.contains("low: locked memory (ulimit -l): raise it"), "{text}");
    let host = text.lines().find(|line| line.starts_with("host ")).unwrap();
    assert!(!host.contains("1.00 TiB"), "as long as what may be reserved: {host}");
}

#[test]
fn gpus_are_told_with_what_their_driver_says() {
    let driver = driver();
    let report = report(doctor(&driver).env("GPUS", "2").env("MAPS", "1"));
    for (name, peer) in [("cuda", 1), ("cuda:1", 0)] {
        let gpu = device(&report, name);
        assert_eq!((&gpu["works"], &gpu["what"]), (&true.into(), &"Stand-in".into()));
        assert_eq!((&gpu["total_bytes"], &gpu["free_bytes"]), (&(4_u64 << 30).into(), &(3_u64 << 30).into()));
        let tier = (&gpu["capabilities"]["tier"], &gpu["capabilities"]["tile_bytes"]);
        assert_eq!(tier, (&"heaps".into(), &(2 << 20).into()));
        assert_eq!((&gpu["auto"]["manager"], &gpu["fix"]), (&"tiled".into(), &Value::Null));
        let details = &gpu["cuda"];
        assert_eq!(
            (&details["cuda_version"], &details["compute_capability"]),
            (&"12.9".into(), &"9.0".into())
        );
        assert_eq!(details["virtual_memory_management"], true);
        assert_eq!(details["peers"], Value::from(vec![peer]));
    }
}

#[test]
fn on_a_gpu_that_cannot_map_auto_takes_placed() {
    let driver = driver();
    let output = doctor(&driver).env("GPUS", "1").output().unwrap();
    let text = stdout(&output);
    let row = text.lines().find(|line| line.starts_with("cuda ")).unwrap();
    assert!(row.contains("Stand-in") && row.contains("none") && row.contains("placed"), "{row}");
    for part in [
        "the device cuda cannot map tiles: the manager placed serves in place of tiled",
        "virtual memory management: no",
        "to do: nothing needs to be done; mapping tiles takes a driver",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn what_does_not_work_is_listed_with_reason_and_remedy() {
    let (good, bad) = (driver(), Folder::new());
    fs::write(bad.path("libcuda.so.1"), "no library").unwrap();
    fs::write(bad.path("libvulkan.so.1"), "no library").unwrap();
    let on = |folder: &Folder, variable: &str, value: &str| report(doctor(folder).env(variable, value));

    let none = on(&good, "GPUS", "0");
    let gpu = device(&none, "cuda");
    assert_eq!((&gpu["works"], &gpu["capabilities"]), (&false.into(), &Value::Null));
    assert!(gpu["problem"].as_str().unwrap().contains("found no GPU"), "{gpu}");
    assert!(gpu["fix"].as_str().unwrap().contains("nvidia-smi"), "{gpu}");

    let broken = on(&good, "BROKEN", "1");
    assert!(device(&broken, "cuda")["problem"].as_str().unwrap().contains("found no GPU"));
    let broken = report(doctor(&good).env("GPUS", "1").env("BROKEN", "1"));
    let gpu = device(&broken, "cuda");
    assert!(gpu["problem"].as_str().unwrap().starts_with("cuDevicePrimaryCtxRetain"), "{gpu}");
    assert!(gpu["fix"].as_str().unwrap().contains("dmesg"), "{gpu}");

    let old = on(&old_driver(), "GPUS", "1");
    let gpu = device(&old, "cuda");
    assert!(gpu["problem"].as_str().unwrap().contains("driver is too old: it lacks cuMemMap"), "{gpu}");
    assert!(gpu["fix"].as_str().unwrap().contains("update the NVIDIA driver"), "{gpu}");

    let absent = on(&bad, "GPUS", "0");
    let gpu = device(&absent, "cuda");
    assert!(gpu["problem"].as_str().unwrap().contains("no NVIDIA driver was found"), "{gpu}");
    assert!(gpu["fix"].as_str().unwrap().contains("install its driver"), "{gpu}");
    let vulkan = device(&absent, "vulkan");
    assert!(vulkan["problem"].as_str().unwrap().contains("no Vulkan loader was found"), "{vulkan}");
    assert!(vulkan["fix"].as_str().unwrap().contains("libvulkan1"), "{vulkan}");
}

#[test]
fn a_loader_without_a_driver_is_told_with_the_variable_that_hides_them() {
    let report = report(&mut doctor(&driver()));
    let vulkan = device(&report, "vulkan");
    let (problem, fix) = (vulkan["problem"].as_str().unwrap(), vulkan["fix"].as_str().unwrap());
    // On a machine with a loader, and on one without.
    let hidden = problem.contains("found no device") && fix.contains("unset VK_DRIVER_FILES");
    assert!(
        hidden || problem.contains("no Vulkan loader was found") && fix.contains("libvulkan1"),
        "{vulkan}"
    );
}

#[test]
fn a_driver_that_dies_takes_nothing_else_with_it() {
    let driver = driver();
    let report = report(doctor(&driver).env("GPUS", "1").env("DEADLY", "1"));
    let gpu = device(&report, "cuda");
    let problem = gpu["problem"].as_str().unwrap();
    assert!(
        problem.contains("ended the process that looked for it") && problem.contains("signal"),
        "{problem}"
    );
    assert!(problem.contains("last words of the driver"), "{problem}");
    assert_eq!(device(&report, "host")["works"], true);
    assert!(!device(&report, "vulkan")["problem"].is_null());
}

#[test]
fn lavapipe_is_told_with_its_features_and_queues() {
    if std::env::var_os("TILEWORK_TEST_VULKAN").is_none() {
        println!("skipped: TILEWORK_TEST_VULKAN is not set");
        return;
    }
    let report = report(&mut tilework(["doctor"]));
    let vulkan = device(&report, "vulkan");
    assert_eq!((&vulkan["works"], &vulkan["auto"]["manager"]), (&true.into(), &"tiled".into()), "{vulkan}");
    assert_eq!((&vulkan["fix"], &vulkan["capabilities"]["tier"]), (&Value::Null, &"tiles".into()));
    let details = &vulkan["vulkan"];
    let features = details["features"].as_array().unwrap();
    for name in ["sparseBinding", "sparseResidencyBuffer", "sparseResidencyAliased", "timelineSemaphore"] {
        let feature = features.iter().find(|feature| feature["name"] == name).expect(name);
        assert_eq!(feature["has"], true, "{name}");
    }
    let families = details["queue_families"].as_array().unwrap();
    let binds = |family: &Value| family["does"].as_array().unwrap().contains(&"sparse binding".into());
    assert!(families.iter().any(binds), "{families:?}");
    assert!(
        details["sparse_address_space_bytes"].as_u64()
            >= vulkan["capabilities"]["longest_range_bytes"].as_u64()
    );
}

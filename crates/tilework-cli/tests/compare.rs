//! `tilework compare` on traces, end to end.

mod common;

use std::fs;

use common::{EVENTS, Folder, refused, stderr, stdout, tilework};
#[cfg(target_os = "linux")]
use common::{children, parent_of, started, wait_for};

#[test]
fn every_manager_has_its_row() {
    let folder = Folder::new();
    let output = tilework(["compare"]).arg(folder.sample()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    let mut lines = text.lines();
    let header = lines.next().unwrap();
    for name in ["peak live", "peak held", "held/live", "peak RSS", "pass 1", "pass 3", "calls in it"] {
        assert!(header.contains(name), "{name:?} in {header}");
    }
    for manager in ["tiled", "placed", "bucketized", "committed"] {
        let row = text.lines().find(|line| line.starts_with(manager)).expect(manager);
        assert!(row.contains("5.00 MiB"), "{row}");
    }
    let note = "note: with auto, tiled serves, since the device sim-h200 maps tiles";
    assert_eq!(text.matches("note: ").count(), 1, "{text}");
    assert!(text.contains(note), "{text}");
}

#[test]
fn several_traces_share_a_table_and_a_picture() {
    let folder = Folder::new();
    let (one, two) = (folder.trace("one.csv.gz", EVENTS), folder.trace("two.csv.gz", EVENTS));
    let picture = folder.path("held.svg");
    let output = tilework(["compare"]).args([one, two]).arg("--plot").arg(&picture).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output).matches("one.csv.gz").count(), 4);
    assert_eq!(stdout(&output).matches("two.csv.gz").count(), 4);
    let svg = fs::read_to_string(picture).unwrap();
    for part in ["one.csv.gz on sim-h200", "two.csv.gz on sim-h200", "tiled ", "bucketized "] {
        assert!(svg.contains(part), "{part:?}");
    }
}

#[test]
fn a_run_that_fails_is_a_row_and_the_exit_code() {
    let folder = Folder::new();
    // Two blocks of 3 MiB: 8 MiB in buckets.
    let trace = folder.trace("t.csv.gz", "0,alloc,1,3145728,0\n0,alloc,2,3145728,0\n");
    let output = tilework(["compare", "--limit", "7MiB"]).arg(trace).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    let row = |manager| stdout(&output).lines().find(|line| line.starts_with(manager)).unwrap();
    assert!(row("bucketized").contains("failed"), "{}", stdout(&output));
    assert!(row("tiled").contains("6.00 MiB"), "{}", stdout(&output));
    assert!(stderr(&output).contains("line 3, pass 1: out of memory"), "{}", stderr(&output));
    assert!(stderr(&output).contains("the reasons are above"), "{}", stderr(&output));
}

#[test]
fn a_single_pass_has_one_column() {
    let folder = Folder::new();
    let output = tilework(["compare", "--repeat", "1"]).arg(folder.sample()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let header = stdout(&output).lines().next().unwrap();
    assert_eq!(header.matches("pass 1").count(), 1, "{header}");
    let columns = header.split("  ").filter(|column| !column.is_empty()).count();
    for row in stdout(&output).lines().skip(2).take(4) {
        assert_eq!(row.split("  ").filter(|column| !column.is_empty()).count(), columns, "{header}\n{row}");
    }
}

#[cfg(unix)]
#[test]
fn what_cannot_be_read_again_is_refused_at_once() {
    let folder = Folder::new();
    let pipe = folder.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let says =
        "is no regular file, and every manager's process reads it from its beginning: save it to a file";
    assert!(refused(&tilework(["compare"]).arg(&pipe).output().unwrap(), 2).contains(says));
    let piped = tilework(["compare", "/dev/stdin"]).write_stdin(fs::read(folder.sample()).unwrap()).output();
    assert!(refused(&piped.unwrap(), 2).contains(says));
    let output = tilework(["compare"]).arg(folder.path("")).output().unwrap();
    assert!(refused(&output, 2).contains("is a folder: name a file in it"));

    // A file by another name is a file.
    let file = fs::File::open(folder.sample()).unwrap();
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("tilework"));
    let output = command.args(["compare", "/dev/stdin"]).stdin(file).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[cfg(target_os = "linux")]
#[test]
fn a_comparison_that_is_ended_takes_its_processes_with_it() {
    use rustix::process::Signal;

    let folder = Folder::new();
    let trace = folder.sample();
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        let arguments = ["compare", "--repeat", "4000000000", trace.to_str().unwrap()];
        let mut compare = started(arguments);
        wait_for("a manager's process runs", || !children(compare.id()).is_empty());
        let child = children(compare.id())[0];
        common::signal(&compare, signal);
        assert!(!compare.wait().unwrap().success());
        wait_for("it ends", || parent_of(child).is_none());
    }
}

#[test]
fn a_wrong_trace_is_refused_once() {
    let folder = Folder::new();
    let trace = folder.trace("bad.csv.gz", "0,free,1,5,0\n");
    let output = tilework(["compare"]).arg(trace).output().unwrap();
    let error = refused(&output, 1);
    assert_eq!(error.matches("line 2").count(), 1, "{error}");
}

#[test]
fn wrong_usage_ends_with_2() {
    let folder = Folder::new();
    let trace = folder.sample();
    refused(&tilework(["compare"]).output().unwrap(), 2);
    let unknown = tilework(["compare", "--device", "tpu"]).arg(&trace).output().unwrap();
    assert!(refused(&unknown, 2).contains("the devices are "));
    let blind = tilework(["compare", "--verify", "--device", "null"]).arg(&trace).output().unwrap();
    assert_eq!(blind.status.code(), Some(2));
}

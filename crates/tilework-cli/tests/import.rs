//! `tilework import`, end to end.
//!
//! `data/snapshot.pickle` was written by PyTorch 2.11 after a few requests on two streams; two blocks were
//! live before the recording began, one of which it saw freed. The frames' file names were replaced.

mod common;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use common::{Folder, refused, replay, stderr, stdout, tilework};
use flate2::read::GzDecoder;

fn snapshot() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/snapshot.pickle")
}

fn import<'a>(snapshot: &Path, arguments: impl IntoIterator<Item = &'a str>) -> std::process::Output {
    tilework(["import"]).arg(snapshot).args(arguments).output().unwrap()
}

#[test]
fn a_snapshot_of_pytorch_becomes_a_trace_that_replays() {
    let folder = Folder::new();
    let trace = folder.path("trace.csv.gz");
    let output = import(&snapshot(), ["-o", trace.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stdout(&output).ends_with("16 allocations, 13 frees, at most 50.85 MiB live, GPU 0\n"),
        "{}",
        stdout(&output)
    );

    let mut text = String::new();
    GzDecoder::new(fs::File::open(&trace).unwrap()).read_to_string(&mut text).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    // What was there before, by address, then what was asked, in bytes as asked.
    assert_eq!(lines[1], "0,alloc,0,12582912,0");
    assert_eq!(lines[2], "0,alloc,1,4000,0");
    assert_eq!(lines[3], "0,alloc,2,20000,0");
    assert!(lines[5].contains(",alloc,4,640,") && !lines[5].ends_with(",0"), "another stream: {}", lines[5]);
    assert!(lines[6].ends_with(",free,1,4000,0"), "{}", lines[6]);

    let output = replay(&trace, ["--verify", "--repeat", "1"]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn the_trace_lies_beside_the_snapshot_unless_told() {
    let folder = Folder::new();
    let copy = folder.path("run.pickle");
    fs::copy(snapshot(), &copy).unwrap();
    assert!(import(&copy, []).status.success());
    assert!(folder.path("run.csv.gz").is_file());
}

#[test]
fn what_is_no_snapshot_is_refused_with_its_name() {
    let folder = Folder::new();
    let file = folder.path("other.pickle");
    for (contents, reason) in [
        (&b"time_us,op,id,bytes,stream\n"[..], "no pickle"),
        (b"\x80\x04]\x94.", "list of segments"),
        (b"\x80\x04}\x94.", "no memory snapshot"),
        (b"\x80\x04cos\nsystem\n.", "nothing but plain values"),
    ] {
        fs::write(&file, contents).unwrap();
        let output = import(&file, []);
        let error = refused(&output, 1);
        assert!(error.contains("other.pickle") && error.contains(reason), "{error}");
    }
    assert!(refused(&import(&folder.path("absent.pickle"), []), 1).contains("absent.pickle"));
    assert!(!folder.path("other.csv.gz").exists());
}

#[test]
fn a_gpu_that_is_not_in_it_is_wrong_usage() {
    let output = import(&snapshot(), ["--device", "3"]);
    assert!(refused(&output, 2).contains("GPU 0"), "{}", stderr(&output));
}

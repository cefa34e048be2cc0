//! What the end-to-end tests share.
#![allow(dead_code, reason = "each test program uses its part")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::{env, fs, process};

use assert_cmd::Command;
use assert_cmd::assert::OutputAssertExt;
use assert_cmd::cargo::cargo_bin_cmd;
use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;

pub const HEADER: &str = "time_us,op,id,bytes,stream\n";

/// Leaves block 1 live; at most 5 MiB are.
pub const EVENTS: &str = "\
0,alloc,1,1048576,0
5,alloc,2,4194304,0
9,free,2,4194304,0
12,alloc,3,3145728,0
15,free,3,3145728,0
";

/// A folder that goes away with the test, and what the tests do in it.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a compressed trace with these lines after the header.
    pub fn trace(&self, name: &str, events: &str) -> PathBuf {
        let path = self.path(name);
        let mut encoder = GzEncoder::new(fs::File::create(&path).unwrap(), Compression::fast());
        encoder.write_all(HEADER.as_bytes()).unwrap();
        encoder.write_all(events.as_bytes()).unwrap();
        encoder.finish().unwrap();
        path
    }

    pub fn sample(&self) -> PathBuf {
        self.trace("sample.csv.gz", EVENTS)
    }
}

/// A folder with a stand-in for the CUDA driver in it, for LD_LIBRARY_PATH; `data/libcuda.c` tells which variables say
/// what it finds.
pub fn driver() -> Folder {
    compiled_driver(&[])
}

/// As [`driver`], but of a driver from before memory could be mapped.
pub fn old_driver() -> Folder {
    compiled_driver(&["-DcuMemMap=of_a_later_driver"])
}

fn compiled_driver(options: &[&str]) -> Folder {
    let folder = Folder::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/libcuda.c");
    let mut compiler = process::Command::new(env::var_os("CC").unwrap_or_else(|| "cc".into()));
    compiler.args(options).args(["-shared", "-fPIC", "-o"]).arg(folder.path("libcuda.so.1")).arg(source);
    compiler.assert().success();
    folder
}

/// `tilework` in the background, quiet.
pub fn started<'a>(arguments: impl IntoIterator<Item = &'a str>) -> process::Child {
    let mut command = process::Command::new(assert_cmd::cargo::cargo_bin!("tilework"));
    let quiet = command.args(arguments).stdout(process::Stdio::null()).stderr(process::Stdio::null());
    quiet.spawn().unwrap()
}

/// Sends `signal` to a process of ours.
#[cfg(target_os = "linux")]
pub fn signal(child: &process::Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Processes that `parent` has started, and that run.
#[cfg(target_os = "linux")]
pub fn children(parent: u32) -> Vec<u32> {
    let runs = |pid: &u32| parent_of(*pid) == Some(parent);
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(runs).collect()
}

/// Which process started one that runs.
#[cfg(target_os = "linux")]
pub fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may hold anything: the state and the parent.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?;
    (state != "Z").then_some(fields.next()?.parse().ok()?)
}

/// Waits until `what` is so.
#[track_caller]
pub fn wait_for(what: &str, so: impl Fn() -> bool) {
    for _ in 0..1500 {
        if so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("waited for 30 seconds: {what}");
}

/// `tilework`, with no setting of whoever runs the tests.
pub fn tilework<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = cargo_bin_cmd!("tilework");
    command.env_remove("RUST_LOG").args(arguments);
    command
}

/// `tilework replay TRACE` with more arguments, run to its end.
pub fn replay<'a>(trace: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Output {
    tilework(["replay"]).arg(trace).args(arguments).output().unwrap()
}

pub fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

pub fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Checks the exit code and gives what was said on stderr.
#[track_caller]
pub fn refused(output: &Output, code: i32) -> &str {
    assert_eq!(output.status.code(), Some(code), "stdout: {}stderr: {}", stdout(output), stderr(output));
    assert_eq!(stdout(output), "", "a refusal prints nothing on stdout");
    stderr(output)
}

//! What an eviction does when the host has no room. Limits hold for a process, so each case is one of its own.
#![cfg(target_os = "linux")]

use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tilework::Error;
use tilework::device::host::Host;
use tilework::manager::{Options, Stream};
use tilework::shared::streams::InOrder;
use tilework::shared::{Hosting, Residence, Shared};

const MIB: u64 = 1 << 20;
const CHILD: &str = "TILEWORK_TEST_CHILD";

/// Runs a test of this file in a process of its own; false in that process.
fn elsewhere(test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return false;
    }
    // A process that ignores the signal is told by an error that its file is too long.
    let shell = "trap '' XFSZ; exec \"$0\" --exact \"$1\" --nocapture";
    let itself = std::env::current_exe().unwrap();
    let output =
        Command::new("sh").args(["-c", shell]).arg(itself).arg(test).env(CHILD, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    true
}

/// Evicts a group of 96 MiB with `hosting` under a limit of the process that lacks room for it, then without the limit.
fn evicted_under(hosting: Hosting, resource: Resource, limit: impl FnOnce() -> u64) {
    let front = Shared::new(Box::new(Host::new().unwrap()), Box::new(InOrder), &Options::default()).unwrap();
    front.set_hosting(hosting);
    let group = front.group("weights").unwrap();
    front.unpin(group).unwrap();
    let block = front.alloc_for(group, 96 * MIB, Stream(1)).unwrap();
    let written: Vec<u8> = (0..96 * MIB).map(|at| (at % 251) as u8).collect();
    front.write(block, &written).unwrap();
    let mut found = vec![0; written.len()];
    let before = getrlimit(resource);
    setrlimit(resource, Rlimit { current: Some(limit()), ..before }).unwrap();
    let refused = front.evict(group);
    setrlimit(resource, before).unwrap();
    assert!(matches!(refused, Err(Error::Host { .. })), "{refused:?}");
    assert_eq!((front.residence(group), front.stats().kept), (Ok(Residence::Resident), 0));
    front.read(block, &mut found).unwrap();
    assert!(found == written, "a group that could not leave is as it was");
    front.check_invariants();
    front.evict(group).unwrap();
    front.restore(group, None).unwrap();
    front.read(block, &mut found).unwrap();
    assert!(found == written);
}

#[test]
fn without_memory_on_the_host_the_group_stays() {
    if elsewhere("without_memory_on_the_host_the_group_stays") {
        return;
    }
    evicted_under(Hosting::default(), Resource::As, || {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096 + 72 * MIB
    });
}

#[test]
fn on_a_full_disk_the_group_stays() {
    if elsewhere("on_a_full_disk_the_group_stays") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let hosting = Hosting { pinned_bytes: 0, directory: Some(directory.path().into()) };
    evicted_under(hosting, Resource::Fsize, || 40 * MIB);
}

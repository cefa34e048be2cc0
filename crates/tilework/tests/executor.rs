//! An executor of command lists over each manager, on the host: its queues run everything as late as they may.
#![cfg(target_os = "linux")]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tilework::device::host::Host;
use tilework::device::limit::Limit;
use tilework::device::waiting::Wait;
use tilework::device::{Device, DeviceError};
use tilework::manager::{Block, Kind, Options, Stream};
use tilework::shared::streams::{Event, Mark};
use tilework::testing::executor::{Layer, Queue, execute, execute_within};

const MIB: u64 = 1 << 20;

type Work = Box<dyn FnOnce() + Send>;

/// Work that is held back until somebody waits for it.
#[derive(Clone, Default)]
struct Backlog(Arc<Mutex<VecDeque<Work>>>);

impl Backlog {
    fn push(&self, work: Work) {
        self.0.lock().unwrap().push_back(work);
    }

    fn run(&self) {
        let work = std::mem::take(&mut *self.0.lock().unwrap());
        work.into_iter().for_each(|work| work());
    }
}

/// Two queues: what is submitted to the second one runs behind all of the first, and when it is waited for.
#[derive(Default)]
struct Late {
    first: Backlog,
    second: Backlog,
    seen: Arc<Mutex<Vec<Vec<u32>>>>,
    snapshots: usize,
}

struct Fence {
    passed: Arc<AtomicBool>,
    first: Backlog,
    second: Backlog,
}

impl std::fmt::Debug for Fence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fence").field("passed", &self.passed).finish_non_exhaustive()
    }
}

impl Mark for Fence {
    fn wait(&self, _: Stream) -> Result<(), DeviceError> {
        Ok(())
    }

    fn passed(&self) -> bool {
        self.passed.load(Ordering::Relaxed)
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.first.run();
        self.second.run();
        assert!(self.passed());
        Ok(())
    }
}

/// The words of a block, when work on it runs.
fn words(block: &Block) -> &'static mut [u32] {
    let first = std::ptr::with_exposed_provenance_mut(block.address as usize);
    // SAFETY: blocks of the host are memory of this process, aligned to 512, and mapped until nothing that was
    // submitted uses them; work runs one after the other. What two commands share is what is tested.
    unsafe { std::slice::from_raw_parts_mut(first, (block.bytes / 4) as usize) }
}

fn compute(layer: &Layer) {
    let out = words(&layer.output);
    out.copy_from_slice(&Late::output(words(&layer.input), words(&layer.weights), out.len()));
}

impl Queue for Late {
    type List = Vec<Layer>;

    fn record(&mut self, layers: &[Layer]) -> Vec<Layer> {
        layers.to_vec()
    }

    fn submit(&mut self, list: &Vec<Layer>) {
        let list = list.clone();
        self.first.push(Box::new(move || list.iter().for_each(compute)));
    }

    fn upload(&mut self, block: &Block, from: &[u32]) {
        let (block, from) = (*block, from.to_vec());
        self.first.push(Box::new(move || words(&block)[..from.len()].copy_from_slice(&from)));
    }

    fn snapshot(&mut self, block: &Block) -> (usize, Event) {
        let (block, seen, passed) = (*block, Arc::clone(&self.seen), Arc::new(AtomicBool::new(false)));
        let fence =
            Fence { passed: Arc::clone(&passed), first: self.first.clone(), second: self.second.clone() };
        self.second.push(Box::new(move || {
            seen.lock().unwrap().push(words(&block).to_vec());
            passed.store(true, Ordering::Relaxed);
        }));
        self.snapshots += 1;
        (self.snapshots - 1, Arc::new(fence))
    }

    fn seen(&mut self, snapshot: usize) -> Vec<u32> {
        self.first.run();
        self.second.run();
        self.seen.lock().unwrap()[snapshot].clone()
    }

    fn before_unmapping(&self) -> Wait {
        // What the second queue uses is retained, and not unmapped.
        let first = self.first.clone();
        Box::new(move || {
            first.run();
            Ok(())
        })
    }
}

fn host() -> Box<dyn Device> {
    Box::new(Host::new().unwrap())
}

fn options() -> Options {
    Options { heap_bytes: MIB, mapping_age: 2, heap_age: 2, ..Options::default() }
}

#[test]
fn each_manager_serves_it() {
    for kind in Kind::ALL {
        execute(kind, host(), &options(), Late::default());
    }
}

#[test]
fn lists_are_cut_where_memory_lacks() {
    let mut cut = false;
    for (kind, limit) in [(Kind::Tiled, 11), (Kind::Placed, 14), (Kind::Committed, 13)] {
        let device = Box::new(Limit::new(Host::new().unwrap(), limit * MIB));
        let (_, cuts) = execute_within(kind, device, &options(), Late::default());
        cut |= cuts > 0;
        assert!(
            kind != Kind::Committed || cuts > 0,
            "what is freed is unmapped, which a list that is open forbids"
        );
    }
    assert!(cut);
}

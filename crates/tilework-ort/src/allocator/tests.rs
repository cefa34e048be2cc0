//! The interface as ONNX Runtime sees it, without ONNX Runtime: only the parts that need no library.

use std::collections::BTreeMap;

use tilework::device::{self, Device};
use tilework::manager::{Block, Kind, Options, Rounding, Stats, build};

use super::*;

/// A manager over the host that panics at a request of this many bytes.
const POISON: u64 = 4242;

struct Fragile(Box<dyn Manager>);

impl Manager for Fragile {
    fn kind(&self) -> Kind {
        self.0.kind()
    }
    fn alloc(&mut self, bytes: u64, stream: Stream) -> tilework::Result<Block> {
        assert_ne!(bytes, POISON, "poison was asked for");
        self.0.alloc(bytes, stream)
    }
    fn free(&mut self, id: BlockId) -> tilework::Result<()> {
        self.0.free(id)
    }
    fn set_rounding(&mut self, rounding: Rounding) {
        self.0.set_rounding(rounding);
    }
    fn end_of_execution(&mut self) -> tilework::Result<()> {
        self.0.end_of_execution()
    }
    fn trim(&mut self) -> tilework::Result<u64> {
        self.0.trim()
    }
    fn usage(&self) -> Usage {
        self.0.usage()
    }
    fn reset_peaks(&mut self) {
        self.0.reset_peaks();
    }
    fn stats(&self) -> Stats {
        self.0.stats()
    }
    fn device(&self) -> &dyn Device {
        self.0.device()
    }
    fn check_invariants(&self) {
        self.0.check_invariants();
    }
}

fn allocator() -> Allocator {
    let device = device::open("host").unwrap();
    let manager = build(Kind::Tiled, device, &Options::default()).unwrap().manager;
    // SAFETY: the device is the host, so blocks are memory of this process.
    unsafe { Allocator::new(Box::new(Fragile(manager))) }
}

fn alloc(allocator: &Allocator, bytes: usize) -> *mut u8 {
    allocator.alloc(bytes, Stream::default()).cast()
}

#[test]
fn blocks_are_memory_of_their_own_and_go_back() {
    let allocator = allocator();
    let mut blocks = BTreeMap::new();
    for n in 1..=64u8 {
        let bytes = usize::from(n) * 1000;
        let ptr = alloc(&allocator, bytes);
        assert_eq!(ptr as usize % 64, 0);
        // SAFETY: the block is that long and ours.
        unsafe { ptr.write_bytes(n, bytes) };
        blocks.insert(n, (ptr, bytes));
    }
    assert_eq!(allocator.usage().live, (1..=64).map(|n| n * 1000).sum::<u64>());
    for (n, (ptr, bytes)) in blocks {
        // SAFETY: written above, not freed yet.
        assert!(unsafe { std::slice::from_raw_parts(ptr, bytes) }.iter().all(|&b| b == n));
        allocator.free(ptr.cast());
    }
    assert_eq!(allocator.usage().live, 0);
    assert_eq!(allocator.take_failure(), None);
}

#[test]
fn no_bytes_and_null_are_nothing() {
    let allocator = allocator();
    assert!(alloc(&allocator, 0).is_null());
    allocator.free(null_mut());
    assert_eq!(allocator.take_failure(), None, "neither is an error");
    assert_eq!(allocator.figures().unwrap().allocations, 0);
}

#[test]
fn a_stray_free_changes_nothing() {
    let allocator = allocator();
    let ptr = alloc(&allocator, 4096);
    allocator.free(ptr.wrapping_add(512).cast());
    assert_eq!(allocator.usage().live, 4096);
    allocator.free(ptr.cast());
    allocator.free(ptr.cast());
    assert_eq!(allocator.usage().live, 0);
}

#[test]
fn the_first_failure_is_kept_until_it_is_asked_for() {
    let allocator = allocator();
    assert!(alloc(&allocator, usize::MAX / 2).is_null());
    assert!(alloc(&allocator, usize::MAX / 4).is_null());
    let failure = allocator.take_failure().unwrap();
    assert!(failure.to_string().contains(&(usize::MAX / 2).to_string()), "{failure}");
    assert_eq!(allocator.take_failure(), None);
    assert!(!alloc(&allocator, 512).is_null(), "the manager goes on");
}

#[test]
fn a_panic_of_the_manager_is_a_failure_and_ends_its_service() {
    let allocator = allocator();
    let before = alloc(&allocator, 512);
    assert!(alloc(&allocator, POISON as usize).is_null());
    assert!(alloc(&allocator, 512).is_null());
    allocator.free(before.cast());
    let failure = allocator.take_failure().unwrap();
    assert!(
        matches!(&failure, Failure::Panicked(what) if what.contains("poison was asked for")),
        "{failure}"
    );
}

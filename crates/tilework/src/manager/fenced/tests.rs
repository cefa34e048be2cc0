use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::limit::Limit;
use crate::device::sim::Sim;
use crate::manager::{Options, build};
use crate::shared::streams::Mark;
use crate::testing::conformance::Subject;

use super::*;

const MIB: u64 = 1 << 20;

/// A fence that passes when it is told to, or waited for.
#[derive(Debug, Default)]
struct Fence(AtomicBool);

impl Mark for Fence {
    fn wait(&self, _: Stream) -> Result<(), DeviceError> {
        Ok(())
    }

    fn passed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

fn fence() -> Arc<Fence> {
    Arc::default()
}

fn fenced(kind: Kind) -> Fenced {
    Fenced::new(
        build(kind, Box::new(Limit::new(Sim::d3d12(), 8 * MIB)), &Options::default()).unwrap().manager,
    )
}

fn around_tiled(device: Box<dyn Device>) -> Box<dyn Manager> {
    Box::new(Fenced::new(build(Kind::Tiled, device, &Options::default()).unwrap().manager))
}

crate::manager_conformance! {
    fenced: Subject { manager: around_tiled, ..Subject::of(Kind::Tiled, || Box::new(Sim::d3d12())) };
}

#[test]
fn a_block_comes_back_once_all_its_fences_have_passed() {
    for kind in Kind::ALL {
        let mut manager = fenced(kind);
        let (one, two) = (fence(), fence());
        let block = manager.alloc(MIB, Stream(0)).unwrap();
        manager.retain(block.id, one.clone()).unwrap();
        manager.retain(block.id, two.clone()).unwrap();
        manager.free(block.id).unwrap();
        for passed in [&one, &two] {
            assert_eq!((manager.waiting(), manager.usage().live), (1, MIB), "{kind}");
            let other = manager.alloc(MIB, Stream(0)).unwrap();
            assert_ne!((other.range, other.offset), (block.range, block.offset), "{kind}: given to two");
            manager.free(other.id).unwrap();
            passed.0.store(true, Ordering::Relaxed);
            manager.end_of_execution().unwrap();
            manager.check_invariants();
        }
        assert_eq!((manager.waiting(), manager.usage().live), (0, 0), "{kind}");
    }
}

#[test]
fn a_block_without_fences_comes_back_at_once() {
    let mut manager = fenced(Kind::Tiled);
    let block = manager.alloc(MIB, Stream(0)).unwrap();
    let passed = fence();
    passed.synchronize().unwrap();
    manager.retain(block.id, passed).unwrap();
    manager.free(block.id).unwrap();
    assert_eq!(manager.usage().live, 0);
    let again = manager.alloc(MIB, Stream(0)).unwrap();
    assert_eq!((again.range, again.offset), (block.range, block.offset));
}

#[test]
fn one_that_waits_long_keeps_others_only_until_the_execution_ends() {
    let mut manager = fenced(Kind::Tiled);
    let (long, short) = (fence(), fence());
    for fence in [&long, &short] {
        let block = manager.alloc(MIB, Stream(0)).unwrap();
        manager.retain(block.id, fence.clone()).unwrap();
        manager.free(block.id).unwrap();
    }
    short.synchronize().unwrap();
    manager.end_of_execution().unwrap();
    assert_eq!((manager.waiting(), manager.usage().live), (1, MIB));
}

#[test]
fn memory_that_lacks_is_waited_for() {
    let mut manager = fenced(Kind::Tiled);
    let block = manager.alloc(6 * MIB, Stream(0)).unwrap();
    let fence = fence();
    manager.retain(block.id, fence.clone()).unwrap();
    manager.free(block.id).unwrap();
    assert!(!fence.passed());
    manager.alloc(7 * MIB, Stream(0)).unwrap();
    assert!(fence.passed());
    let refused = manager.alloc(7 * MIB, Stream(0));
    assert!(matches!(refused, Err(Error::OutOfMemory { .. })), "{refused:?}");
}

#[test]
fn what_is_not_live_is_refused() {
    let mut manager = fenced(Kind::Tiled);
    let block = manager.alloc(MIB, Stream(0)).unwrap();
    manager.retain(block.id, fence()).unwrap();
    manager.free(block.id).unwrap();
    assert_eq!(manager.free(block.id), Err(Error::DoubleFree(block.id)), "while it waits");
    assert_eq!(manager.retain(block.id, fence()), Err(Error::DoubleFree(block.id)));
    let other = manager.alloc(MIB, Stream(0)).unwrap();
    manager.free(other.id).unwrap();
    assert_eq!(manager.free(other.id), Err(Error::DoubleFree(other.id)), "after it came back");
    let never = BlockId(u64::MAX);
    assert_eq!(manager.free(never), Err(Error::UnknownBlock(never)));
    assert_eq!(manager.retain(never, fence()), Err(Error::UnknownBlock(never)));
}

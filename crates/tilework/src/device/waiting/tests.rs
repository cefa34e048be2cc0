use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::device::Call;
use crate::device::conformance::device_conformance;
use crate::device::fault::{Fault, Plan};
use crate::device::sim::Sim;
use crate::manager::{Kind, Options, Stream, build};

const MIB: u64 = 1 << 20;

device_conformance!(waiting, || Waiting::new(Sim::h200(), Box::new(|| Ok(()))));

/// A device that counts how often it was waited for.
fn counted() -> (Box<dyn Device>, Arc<AtomicU64>) {
    let waits = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&waits);
    let wait: Wait = Box::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    (Box::new(Waiting::new(Sim::h200(), wait)), waits)
}

#[test]
fn what_is_given_back_is_waited_for_and_what_is_used_again_is_not() {
    for (kind, expected) in [(Kind::Committed, 3), (Kind::Tiled, 0)] {
        let (device, waits) = counted();
        let mut manager = build(kind, device, &Options::default()).unwrap().manager;
        for _ in 0..3 {
            let block = manager.alloc(MIB, Stream::default()).unwrap();
            manager.free(block.id).unwrap();
        }
        assert_eq!(waits.load(Ordering::Relaxed), expected, "{kind}");
    }
}

#[test]
fn a_peer_is_the_devices_own_affair() {
    let inner = Fault::new(Sim::h200());
    inner.faults().set(Plan::every(1));
    let mut device = Waiting::new(inner, Box::new(|| Ok(())));
    assert!(device.add_peer(1).is_err(), "the device was not asked");
}

#[test]
fn nothing_is_unmapped_when_the_device_cannot_be_waited_for() {
    let refusal = DeviceError::Failed { call: Call::Order, reason: "captured".into() };
    let answer = refusal.clone();
    let mut device = Waiting::new(Sim::h200(), Box::new(move || Err(answer.clone())));
    let range = device.reserve(2 * MIB).unwrap();
    let heap = device.create(2 * MIB).unwrap();
    device.map(range.id, &[Bind { range_offset: 0, heap, heap_offset: 0, bytes: 2 * MIB }]).unwrap();
    assert_eq!(device.unmap(range.id, 0, 2 * MIB), Err(refusal));
    assert!(device.unreserve(range.id).is_err(), "it is still mapped");
}

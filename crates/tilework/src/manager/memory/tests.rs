use super::*;
use crate::device::Call;
use crate::device::fault::{Fault, Faults, Plan};
use crate::device::limit::Limit;
use crate::device::sim::Sim;
use crate::manager::Usage;

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 8 * MIB;

/// On a device of four tiles of 2 MiB that fails at will.
fn memory() -> (Memory, Faults) {
    let device = Fault::new(Limit::new(Sim::h200(), LIMIT));
    let faults = device.faults();
    (Memory::new(Box::new(device)), faults)
}

fn home(memory: &mut Memory, bytes: u64) -> Home {
    memory.home_for(bytes, bytes).unwrap()
}

#[test]
fn a_home_is_whole_tiles_and_goes_back_whole() {
    let (mut memory, _) = memory();
    let home = home(&mut memory, 3 * MIB);
    assert_eq!(home.range.bytes, 4 * MIB);
    let usage = memory.account().usage();
    assert_eq!((usage.held, usage.mapped, usage.reserved), (4 * MIB, 4 * MIB, 4 * MIB));
    assert_eq!(memory.give_back(home), Ok(4 * MIB));
    assert_eq!(memory.account().usage(), Usage { peak_held: 4 * MIB, ..Usage::default() });
    assert_eq!(memory.device().held_bytes(), Ok(0));
}

#[test]
fn a_mapping_goes_back_before_the_heaps_under_it() {
    let (mut memory, faults) = memory();
    let homes = [home(&mut memory, 2 * MIB), home(&mut memory, 2 * MIB)];
    let bind = |n: usize| Bind {
        range_offset: n as u64 * 2 * MIB,
        heap: homes[n].heap,
        heap_offset: 0,
        bytes: 2 * MIB,
    };
    let stitched = memory.take_mapping(4 * MIB, &[bind(0), bind(1)]).unwrap();
    assert_eq!(memory.account().usage().mapped, 8 * MIB);

    // The mapping stays, so the heaps must: the simulated device would call releasing them a violation.
    faults.set(Plan::nth(1).of(Call::Unmap));
    assert!(memory.give_back(Return::mapping(stitched)).is_err());
    for home in homes {
        assert_eq!(memory.give_back(home), Ok(0));
    }
    assert_eq!(memory.leftovers().len(), 3);
    memory.check_invariants(0);
    assert_eq!(memory.retry(), Ok(4 * MIB));
    assert_eq!(memory.device().held_bytes(), Ok(0));
    assert_eq!(memory.account().usage().reserved, 0);
}

#[test]
fn giving_back_goes_on_where_it_stopped() {
    for call in [Call::Unmap, Call::Release, Call::Unreserve] {
        let (mut memory, faults) = memory();
        let [first, second] = [home(&mut memory, 2 * MIB), home(&mut memory, 4 * MIB)];
        faults.set(Plan::nth(1).of(call));
        assert!(memory.give_back(first).is_err(), "{call}");
        // One that does not depend on it is not held up.
        assert_eq!(memory.give_back(second), Ok(4 * MIB), "{call}");
        let left = if call == Call::Unreserve { 0 } else { 2 * MIB };
        assert_eq!(memory.account().usage().held, left, "{call}");
        assert_eq!(memory.account().usage().reserved, 2 * MIB, "{call}");
        assert_eq!(memory.retry(), Ok(left), "{call}");
        assert_eq!(memory.account().usage().reserved, 0, "{call}");
        assert_eq!(memory.retry(), Ok(0), "{call}");
    }
}

#[test]
fn what_a_failure_left_behind_serves_before_memory_runs_out() {
    let (mut memory, faults) = memory();
    let whole = home(&mut memory, LIMIT);
    faults.set(Plan::nth(1).of(Call::Release));
    assert!(memory.give_back(whole).is_err());
    assert_eq!(memory.account().usage().held, LIMIT);
    home(&mut memory, LIMIT);
    assert!(memory.leftovers().is_empty());
}

#[test]
fn running_out_names_request_live_held_and_limit() {
    let (mut memory, _) = memory();
    home(&mut memory, 3 * MIB);
    memory.account_mut().lent(3 * MIB);
    let error = memory.home_for(5 * MIB, 6 * MIB).unwrap_err();
    let expected = Error::OutOfMemory {
        request: 5 * MIB,
        live: 3 * MIB,
        mapped: 4 * MIB,
        held: 4 * MIB,
        limit: Some(LIMIT),
        device_free: None,
    };
    assert_eq!(error, expected);
    assert_eq!(memory.account().usage().reserved, 4 * MIB);
}

#[test]
fn without_tiling_a_home_is_all_there_is_and_works() {
    let mut memory = Memory::new(Box::new(Sim::d3d12().without_tiling()));
    let home = home(&mut memory, 100);
    assert_eq!(memory.give_back(home), Ok(64 << 10));
}

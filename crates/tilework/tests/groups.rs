//! Groups on real memory: contents go to the host and come back, whatever is asked in between.
#![cfg(target_os = "linux")]

use tilework::device::Call;
use tilework::device::fault::{Fault, Plan};
use tilework::device::host::Host;
use tilework::manager::{Options, Stream};
use tilework::shared::streams::InOrder;
use tilework::shared::{Hosting, Shared};
use tilework::testing::storm::{Storm, Weather, storm};

const MIB: u64 = 1 << 20;
const STREAMS: [Stream; 2] = [Stream(1), Stream(2)];

fn front() -> Shared {
    let options = Options { heap_bytes: 4 * MIB, ..Options::default() };
    Shared::new(Box::new(Host::new().unwrap()), Box::new(InOrder), &options).unwrap()
}

fn weather(seed: u64) -> Weather {
    Weather { seed, operations: 3000, groups: 50, limit: 48 * MIB, longest: 8 * MIB }
}

fn blow(front: &Shared, weather: Weather) -> Storm {
    let told = storm(front, "group", &STREAMS, weather, || {});
    front.check_invariants();
    front.trim().unwrap();
    assert_eq!(front.usage().held, 0, "nothing is live, so nothing is held");
    assert!(told.checks > 200 && told.evictions > 200 && told.restores > 200, "{told:?}");
    told
}

#[test]
fn nothing_is_lost_in_memory() {
    let told = blow(&front(), weather(1));
    assert!(told.refused > 0, "the limit was never felt: {told:?}");
    assert_eq!(told.failed, 0);
}

#[test]
fn nothing_is_lost_in_kept_buffers() {
    let front = front();
    front.set_hosting(Hosting { pinned_bytes: 256 * MIB, directory: None });
    blow(&front, weather(2));
}

#[test]
fn nothing_is_lost_of_constant_groups() {
    // Blocks are written once here, so that all contents are constant from their first eviction on.
    let front = front();
    for n in 0..50 {
        let group = front.group(&format!("group {n}")).unwrap();
        front.set_constant(group, true).unwrap();
    }
    let told = storm(&front, "group", &STREAMS, weather(4), || {});
    assert!(told.evictions > 200, "{told:?}");
    front.check_invariants();
}

#[test]
fn nothing_is_lost_in_files() {
    let directory = tempfile::tempdir().unwrap();
    let front = front();
    front.set_hosting(Hosting { pinned_bytes: 0, directory: Some(directory.path().into()) });
    blow(&front, weather(3));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "no file has a name");
}

/// Blows over a device of which calls fail now and then; the requests that failed with them.
fn blow_with_faults(seed: u64, plan: Plan) -> u64 {
    let device = Fault::new(Host::new().unwrap());
    let faults = device.faults();
    let options = Options { heap_bytes: 4 * MIB, ..Options::default() };
    let front = Shared::new(Box::new(device), Box::new(InOrder), &options).unwrap();
    faults.set(plan);
    let told =
        storm(&front, "group", &STREAMS, Weather { operations: 1500, ..weather(seed) }, || faults.clear());
    assert!(faults.failed() > 0 && told.failed + told.refused > 0, "nothing failed: {told:?}");
    front.trim().unwrap();
    assert_eq!(front.usage().held, 0, "what could not be given back is given back once it can be");
    told.failed
}

#[test]
fn nothing_is_lost_where_any_call_fails() {
    for every in [97, 13] {
        assert!(blow_with_faults(every, Plan::every(every)) > 0);
    }
}

#[test]
fn nothing_is_lost_where_taking_fails() {
    blow_with_faults(1, Plan::every(5).of(Call::Create).out_of_memory());
    assert!(blow_with_faults(2, Plan::every(7).of(Call::Create)) > 0);
    assert!(blow_with_faults(3, Plan::every(7).of(Call::Map).halfway()) > 0);
}

#[test]
fn nothing_is_lost_where_giving_back_fails() {
    assert!(blow_with_faults(4, Plan::every(5).of(Call::Unmap)) > 0);
    assert!(blow_with_faults(5, Plan::every(3).of(Call::Release)) > 0);
}

#[test]
fn nothing_is_lost_where_copies_fail() {
    assert!(blow_with_faults(6, Plan::every(41).of(Call::Read)) > 0);
    assert!(blow_with_faults(7, Plan::every(41).of(Call::Write)) > 0);
}

/// Waits for the others when it is dropped, so that a thread that panics keeps none of them waiting for ever.
struct Arrival<'a>(&'a std::sync::Barrier);

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        self.0.wait();
    }
}

#[test]
fn threads_evict_what_others_do_not_use() {
    let front = front();
    let all = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for (seed, name) in (11..).zip(["a", "b", "c", "d"]) {
            let (front, arrival) = (&front, Arrival(&all));
            let weather = Weather { groups: 10, operations: 1500, ..weather(seed) };
            scope.spawn(move || {
                storm(front, name, &[Stream(seed), Stream(seed + 10)], weather, || drop(arrival));
            });
        }
    });
    front.check_invariants();
    front.trim().unwrap();
    assert_eq!((front.usage().live, front.usage().held), (0, 0));
}

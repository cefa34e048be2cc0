//! All checks by name: those of the suites for each backing, and those of Direct3D's own.

use tilework::device::{Device, conformance};
use tilework::manager::Kind;
use tilework::testing::conformance::{self as managers, Subject};
use tilework_d3d12::Backing;

use crate::{device, executor, own};

/// A check by its name.
pub type Check = (String, Box<dyn Fn()>);

/// A check of Direct3D's own, for each backing.
type Own = (&'static str, fn(Backing));

/// Those that apply: without tiled resources, those of the other backings.
pub fn all() -> Vec<Check> {
    let mut all = Vec::new();
    let has_tiles = device::has_tiles().expect("a device");
    if has_tiles {
        add_suites(&mut all, Backing::Tiled, || device::boxed(Backing::Tiled), &Kind::ALL);
    }
    add_suites(
        &mut all,
        Backing::Placed,
        || device::boxed(Backing::Placed),
        &[Kind::Placed, Kind::Bucketized],
    );
    let kinds = [Kind::Placed, Kind::Committed];
    add_suites(&mut all, Backing::Committed, || device::boxed(Backing::Committed), &kinds);
    all.push(("adapters: wrong_parts_are_refused".to_owned(), Box::new(own::wrong_parts_are_refused)));
    all.push((
        "adapters: an_adapter_opens_by_its_index".to_owned(),
        Box::new(own::an_adapter_opens_by_its_index),
    ));
    all
}

/// The suite of devices on one, and that of managers for each of `kinds` on it.
fn add_suites(all: &mut Vec<Check>, backing: Backing, open: fn() -> Box<dyn Device>, kinds: &[Kind]) {
    for (name, check) in conformance::checks() {
        all.push((format!("device on {backing}: {name}"), Box::new(move || check(&open))));
    }
    let own: [Own; 5] = [
        (
            "giving_back_waits_for_the_use_that_was_told_of",
            own::giving_back_waits_for_the_use_that_was_told_of,
        ),
        ("another_queue_finds_what_was_mapped", own::another_queue_finds_what_was_mapped),
        ("what_is_evicted_comes_back", own::what_is_evicted_comes_back),
        ("a_view_outlives_its_device", own::a_view_outlives_its_device),
        ("a_removed_device_says_so", own::a_removed_device_says_so),
    ];
    for (name, check) in own {
        all.push((format!("program on {backing}: {name}"), Box::new(move || check(backing))));
    }
    for &kind in kinds {
        let mut add = |name: &str, check: fn(Kind, Backing)| {
            all.push((format!("{kind} on {backing}: {name}"), Box::new(move || check(kind, backing))));
        };
        add("an_executor_finds_the_right_words", executor::finds_the_right_words);
        // Buckets are kept for ever: what they hold of one shape is not there for the next.
        if kind != Kind::Bucketized {
            add("an_executor_cuts_its_lists_where_memory_lacks", executor::cuts_its_lists_where_memory_lacks);
        }
        add("blocks_keep_their_words", executor::blocks_keep_their_words);
        for (name, check) in managers::checks() {
            let subject = Subject::of(kind, open);
            all.push((format!("{kind} on {backing}: {name}"), Box::new(move || check(&subject))));
        }
    }
}

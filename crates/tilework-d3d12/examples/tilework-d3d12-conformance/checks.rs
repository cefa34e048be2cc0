//! All checks by name: those of the suites for each backing, and those of Direct3D's own.

use tilework::device::{Device, conformance};
use tilework::manager::Kind;
use tilework::testing::conformance::{self as managers, Subject};
use tilework_d3d12::Backing;

use crate::device;

/// A check by its name.
pub type Check = (String, Box<dyn Fn()>);

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
    all
}

/// The suite of devices on one, and that of managers for each of `kinds` on it.
fn add_suites(all: &mut Vec<Check>, backing: Backing, open: fn() -> Box<dyn Device>, kinds: &[Kind]) {
    for (name, check) in conformance::checks() {
        all.push((format!("device on {backing}: {name}"), Box::new(move || check(&open))));
    }
    for &kind in kinds {
        for (name, check) in managers::checks() {
            let subject = Subject::of(kind, open);
            all.push((format!("{kind} on {backing}: {name}"), Box::new(move || check(&subject))));
        }
    }
}

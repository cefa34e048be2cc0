//! The conformance suite, stamped for each manager on each device.

use tilework::device::sim::Sim;
use tilework::device::{self, Device};
use tilework::manager::{Bucketized, Kind, Rounding};
use tilework::testing::conformance::Subject;

fn host() -> Box<dyn Device> {
    device::open("host").expect("Linux")
}

fn sim_h200() -> Box<dyn Device> {
    device::open("sim-h200").expect("a simulation")
}

fn sim_d3d12() -> Box<dyn Device> {
    device::open("sim-d3d12").expect("a simulation")
}

fn null() -> Box<dyn Device> {
    device::open("null").expect("nothing to fail")
}

/// Bucketized as it is for weights: most of its blocks are made to size and go at the end of the execution.
fn bucketized_exact() -> Subject {
    Subject {
        device: sim_d3d12,
        manager: |device| Box::new(Bucketized::new(device, Rounding::Exact)),
        settles: false,
        trims: false,
    }
}

tilework::manager_conformance! {
    committed_on_host: Subject::of(Kind::Committed, host);
    committed_on_sim_h200: Subject::of(Kind::Committed, sim_h200);
    committed_on_sim_d3d12: Subject::of(Kind::Committed, sim_d3d12);
    committed_on_null: Subject::of(Kind::Committed, null);
    bucketized_on_host: Subject::of(Kind::Bucketized, host);
    bucketized_on_sim_h200: Subject::of(Kind::Bucketized, sim_h200);
    bucketized_on_sim_d3d12: Subject::of(Kind::Bucketized, sim_d3d12);
    bucketized_on_null: Subject::of(Kind::Bucketized, null);
    committed_without_tiling: Subject::of(Kind::Committed, || Box::new(Sim::h200().without_tiling()));
    bucketized_without_tiling: Subject::of(Kind::Bucketized, || Box::new(Sim::h200().without_tiling()));
    bucketized_exact_on_sim_d3d12: bucketized_exact();
    tiled_on_host: Subject::of(Kind::Tiled, host);
    tiled_on_sim_h200: Subject::of(Kind::Tiled, sim_h200);
    tiled_on_sim_d3d12: Subject::of(Kind::Tiled, sim_d3d12);
    tiled_on_null: Subject::of(Kind::Tiled, null);
    placed_on_host: Subject::of(Kind::Placed, host);
    placed_on_sim_h200: Subject::of(Kind::Placed, sim_h200);
    placed_on_sim_d3d12: Subject::of(Kind::Placed, sim_d3d12);
    placed_on_null: Subject::of(Kind::Placed, null);
    placed_without_tiling: Subject::of(Kind::Placed, || Box::new(Sim::h200().without_tiling()));
}

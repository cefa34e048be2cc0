//! Replays a trace on a Direct3D 12 device under each manager, every block filled and checked: what `tilework replay
//! --verify` does, which is not there on Windows yet.
//!
//! ```text
//! cargo run --release -p tilework-d3d12 --example replay -- TRACE.csv.gz [SCALE]
//! ```

use std::error::Error;

use tilework::manager::{Kind, Options, build};
use tilework::replay::{ReplayOptions, replay};
use tilework::trace::Trace;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("name a trace, and by how much its sizes are to be multiplied")?;
    let scale = arguments.next().map_or(Ok(1.0), |text| text.parse())?;
    let trace = Trace::load(path)?.scaled(scale)?;
    let options = ReplayOptions { repeat: 3, verify: true, ..ReplayOptions::default() };
    for kind in Kind::ALL {
        let mut manager = build(kind, tilework_d3d12::open(0)?, &Options::default())?.manager;
        let report = replay(&trace, &mut *manager, &options, &mut ())?;
        let calls: Vec<_> = report.passes.iter().map(|pass| pass.device_calls.total()).collect();
        println!(
            "{:10} {:.4} of the live peak of {} bytes held; calls of the device, pass by pass: {calls:?}",
            report.manager.to_string(),
            report.peak_held_bytes as f64 / report.peak_live_bytes as f64,
            report.peak_live_bytes,
        );
    }
    Ok(())
}

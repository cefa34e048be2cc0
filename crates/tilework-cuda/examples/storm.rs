//! Groups that come and go at random on a GPU, under a limit that changes, their contents looked after.
//!
//! ```text
//!   cargo run --release -p tilework-cuda --example storm -- [DEVICE] [OPERATIONS] [GROUPS]
//! ```
//!
//! Ends with a line of what was done, or with a panic that says which byte was lost.

use std::error::Error;
use std::time::Instant;

use tilework::manager::{Options, Stream};
use tilework::shared::streams::InOrder;
use tilework::shared::{Hosting, Shared};
use tilework::testing::storm::{Weather, storm};
use tilework_cuda::driver::Driver;
use tilework_cuda::gpu::Gpu;
use tilework_cuda::streams::CudaStreams;

const MIB: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let device = arguments.next().unwrap_or_else(|| "cuda".into());
    let operations = arguments.next().map_or(Ok(10_000), |text| text.parse())?;
    let groups = arguments.next().map_or(Ok(50), |text| text.parse())?;
    let options = Options::default();
    for (seed, pinned_bytes, spill) in [(1, 0, false), (2, 1 << 30, false), (3, 1 << 30, true)] {
        let front = match tilework_cuda::ordinal(&device) {
            Some(ordinal) => {
                let streams = CudaStreams::new(Gpu::open(Driver::load()?, ordinal)?);
                Shared::new(tilework_cuda::open(ordinal)?, Box::new(streams), &options)?
            }
            None => Shared::new(tilework::device::open(&device)?, Box::new(InOrder), &options)?,
        };
        front.set_hosting(Hosting { pinned_bytes, directory: None });
        if let Err(error) = front.set_spill(spill) {
            println!("{device}, spill {spill}: {error}");
            continue;
        }
        // The legacy default stream has two names.
        let weather = Weather { seed, operations, groups, limit: 1024 * MIB, longest: 64 * MIB };
        let began = Instant::now();
        let told = storm(&front, "group", &[Stream(0), Stream(1)], weather, || {});
        front.check_invariants();
        front.trim()?;
        let held = front.usage().held;
        println!(
            "{device}, {pinned_bytes} bytes pinned, spill {spill}: {told:?} in {:.1?}, {held} bytes held at the end",
            began.elapsed()
        );
    }
    Ok(())
}

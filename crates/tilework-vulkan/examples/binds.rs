//! What binding 1000 tiles takes: adjacent ones, as one bind and as 1000, and scattered ones.
//!
//! ```text
//! cargo run --release -p tilework-vulkan --example binds [INDEX]
//! ```
//!
//! Medians in microseconds: of the call alone, and until the device has done it. Nothing else runs on the queue.

use std::time::Instant;

use tilework::device::{Bind, Device};
use tilework_vulkan::{View, Vulkan, VulkanError, ash::vk};

const TILES: u64 = 1000;
const TURNS: usize = 51;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let index = std::env::args().nth(1).map_or(Ok(0), |index| index.parse())?;
    let mut device = Vulkan::open(index)?;
    let view = device.view();
    // SAFETY: instance and physical device are alive with the view.
    let properties = unsafe { view.instance().get_physical_device_properties(view.physical_device()) };
    let name = properties.device_name_as_c_str()?.to_string_lossy();
    let tile = device.caps().tile_bytes;
    println!("{name}: {TILES} tiles of {} KiB, median of {TURNS}", tile >> 10);

    let heap = device.create(TILES * tile)?;
    let range = device.reserve(TILES * tile)?.id;
    // Where in the heap the tile at each place of the range comes from. Any factor without a common divisor will do to
    // scatter them, so that no two continue each other.
    let bind =
        |at: u64, from: u64| Bind { range_offset: at * tile, heap, heap_offset: from * tile, bytes: tile };
    let adjacent: Vec<Bind> = (0..TILES).map(|at| bind(at, at)).collect();
    // The same mapping, named from its end: no bind continues the one before, so none are merged.
    let backwards: Vec<Bind> = adjacent.iter().rev().copied().collect();
    let scattered: Vec<Bind> = (0..TILES).map(|at| bind(at, at * 387 % TILES)).collect();

    println!("{:<28}{:>12}{:>12}{:>12}{:>12}", "", "map", "done", "unmap", "done");
    for (what, binds) in
        [("adjacent, merged", &adjacent), ("adjacent, not merged", &backwards), ("scattered", &scattered)]
    {
        let mut times = [const { Vec::new() }; 4];
        for _ in 0..TURNS {
            let start = Instant::now();
            device.map(range, binds)?;
            times[0].push(start.elapsed());
            passed(&view)?;
            times[1].push(start.elapsed());
            let start = Instant::now();
            device.unmap(range, 0, TILES * tile)?;
            times[2].push(start.elapsed());
            passed(&view)?;
            times[3].push(start.elapsed());
        }
        let [map, mapped, unmap, unmapped] = times.map(|mut times| {
            times.sort();
            times[TURNS / 2].as_secs_f64() * 1e6
        });
        println!("{what:<28}{map:>12.1}{mapped:>12.1}{unmap:>12.1}{unmapped:>12.1}");
    }
    Ok(())
}

/// Waits until all that was bound is.
fn passed(view: &View) -> Result<(), VulkanError> {
    let (semaphore, value) = view.ready();
    let (semaphores, values) = ([semaphore], [value]);
    let info = vk::SemaphoreWaitInfo::default().semaphores(&semaphores).values(&values);
    // SAFETY: the device and its semaphore are alive with the view.
    unsafe { view.device().wait_semaphores(&info, u64::MAX) }
        .map_err(|code| VulkanError::Refused { function: "vkWaitSemaphores", code })
}

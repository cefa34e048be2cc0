//! Pinned memory: how dear it is to make and to give back.

use std::{ptr, thread};

use tilework_cuda::driver::REGISTER_PORTABLE;

use super::{GIB, MIB, Ordinary, Pages, World, median, must, seconds};

pub fn run(world: &World) {
    println!("milliseconds, medians; of 7 for 32 MiB, of 3 for 1 GiB");
    println!("{:<44} {:>6} {:>8} {:>8} {:>8}", "", "MiB", "touch", "pin", "unpin");
    for (bytes, rounds) in [(32 * MIB, 7), (GIB, 3)] {
        row("cuMemHostAlloc", bytes, rounds, || driver_makes(world, bytes));
        for pages in [Pages::Small, Pages::Huge] {
            for threads in [0, 1, 8] {
                let touched = match threads {
                    0 => "untouched".to_owned(),
                    _ => format!("touched by {threads}"),
                };
                let name = format!("cuMemHostRegister, {} pages, {touched}", pages.name());
                row(&name, bytes, rounds, || registered(world, bytes, pages, threads));
            }
        }
        row("Transfers::staging", bytes, rounds, || {
            let (made, buffer) = seconds(|| world.staging(bytes));
            [0.0, made, seconds(|| drop(buffer)).0]
        });
    }
    for threads in [1, 4, 8] {
        let (made, buffers) = seconds(|| -> Vec<_> {
            thread::scope(|scope| {
                let part = world.bytes / (32 * MIB) / threads;
                let making = (0..threads).map(|_| {
                    scope.spawn(move || (0..part).map(|_| world.staging(32 * MIB)).collect::<Vec<_>>())
                });
                let making: Vec<_> = making.collect();
                making.into_iter().flat_map(|thread| thread.join().expect("buffers")).collect()
            })
        });
        let all = buffers.len();
        let (freed, ()) = seconds(|| drop(buffers));
        println!(
            "{all} buffers of 32 MiB, by {threads} threads: {:.0} ms; given back in {:.0}",
            1e3 * made,
            1e3 * freed
        );
    }
}

fn row(name: &str, bytes: usize, rounds: usize, mut measure: impl FnMut() -> [f64; 3]) {
    let times: Vec<[f64; 3]> = (0..rounds).map(|_| measure()).collect();
    let [touch, pin, unpin] = [0, 1, 2].map(|which| 1e3 * median(times.iter().map(|t| t[which]).collect()));
    println!("{name:<44} {:>6} {touch:>8.2} {pin:>8.2} {unpin:>8.2}", bytes / MIB);
}

fn driver_makes(world: &World, bytes: usize) -> [f64; 3] {
    let _entered = world.gpu.enter().expect("a context");
    let mut start = ptr::null_mut();
    // SAFETY: `start` is valid for the write; what is freed was allocated by the same.
    unsafe {
        let (made, ()) = seconds(|| must((world.extra.host_alloc)(&mut start, bytes, 1)));
        let (freed, ()) = seconds(|| must((world.extra.free_host)(start)));
        [0.0, made, freed]
    }
}

fn registered(world: &World, bytes: usize, pages: Pages, threads: usize) -> [f64; 3] {
    let entered = world.gpu.enter().expect("a context");
    let memory = Ordinary::new(bytes, pages);
    let (touched, ()) = seconds(|| {
        if threads > 0 {
            memory.touch(threads)
        }
    });
    let start = memory.at(0).cast();
    let (pin, pinned) = seconds(|| {
        // SAFETY: the memory outlives its registration.
        entered
            .call("cuMemHostRegister", |f| unsafe { (f.mem_host_register)(start, bytes, REGISTER_PORTABLE) })
    });
    pinned.expect("registering");
    let (unpin, unpinned) = seconds(|| {
        // SAFETY: registered above; nothing is copied.
        entered.call("cuMemHostUnregister", |f| unsafe { (f.mem_host_unregister)(start) })
    });
    unpinned.expect("unregistering");
    [touched, pin, unpin]
}

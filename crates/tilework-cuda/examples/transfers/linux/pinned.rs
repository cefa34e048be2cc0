//! Contents that stay in pinned memory.

use tilework::shared::transfers::Staging;

use super::{MIB, World, rate, seconds};

const BUFFER: usize = 128 * MIB;

pub fn run(world: &World) {
    let (_device, address) = world.contents();
    let (made, mut buffers) = seconds(|| -> Vec<Box<dyn Staging>> {
        (0..world.bytes / BUFFER).map(|_| world.staging(BUFFER)).collect()
    });
    println!("{} buffers of {} MiB made in {made:.2} s", buffers.len(), BUFFER / MIB);
    println!("GB/s, all copies queued at once, three rounds");
    for chunk in [2, 8, 16, 32, 64, 128].map(|mib| mib * MIB) {
        let mut rates = [Vec::new(), Vec::new()];
        for round in 0..3 {
            stamp(&mut buffers, chunk as u64 + round);
            let up =
                copy(&mut buffers, address, chunk, |buffer, at, address| buffer.upload(at, address, chunk));
            stamp(&mut buffers, 0);
            let down =
                copy(&mut buffers, address, chunk, |buffer, at, address| buffer.download(at, address, chunk));
            check(&mut buffers, chunk as u64 + round);
            rates[0].push(format!("{:.2}", rate(world.bytes, down)));
            rates[1].push(format!("{:.2}", rate(world.bytes, up)));
        }
        println!("{:>4} MiB: down {}, up {}", chunk / MIB, rates[0].join(" "), rates[1].join(" "));
    }
    // Both ways at once, half of the buffers each.
    let (one, other) = buffers.split_at_mut(world.bytes / BUFFER / 2);
    let (both, ()) = seconds(|| {
        for (at, (down, up)) in one.iter_mut().zip(other.iter_mut()).enumerate() {
            down.download(0, address + (at * BUFFER) as u64, BUFFER).expect("a copy");
            up.upload(0, address + (world.bytes / 2 + at * BUFFER) as u64, BUFFER).expect("a copy");
        }
        for buffer in one.iter_mut().chain(other) {
            buffer.contents().expect("a copy");
        }
    });
    println!("both ways at once, {} MiB: {:.2} each", BUFFER / MIB, rate(world.bytes / 2, both));
    let (freed, ()) = seconds(|| drop(buffers));
    println!("given back in {freed:.2} s");
}

/// How long it takes to copy all, seconds.
fn copy(
    buffers: &mut [Box<dyn Staging>],
    address: u64,
    chunk: usize,
    queue: impl Fn(&mut dyn Staging, usize, u64) -> Result<(), tilework::device::DeviceError>,
) -> f64 {
    let (took, ()) = seconds(|| {
        for (nth, buffer) in buffers.iter_mut().enumerate() {
            for at in (0..BUFFER).step_by(chunk) {
                queue(&mut **buffer, at, address + (nth * BUFFER + at) as u64).expect("a copy");
            }
        }
        for buffer in buffers.iter_mut() {
            buffer.contents().expect("a copy");
        }
    });
    took
}

/// Words that tell each 64 KiB from every other, and one round from the next.
fn words(nth: usize, salt: u64) -> impl Iterator<Item = (usize, u64)> {
    (0..BUFFER).step_by(64 << 10).map(move |at| (at, ((nth * BUFFER + at) as u64) << 12 ^ salt))
}

fn stamp(buffers: &mut [Box<dyn Staging>], salt: u64) {
    for (nth, buffer) in buffers.iter_mut().enumerate() {
        let contents = buffer.contents().expect("nothing is queued");
        for (at, word) in words(nth, salt) {
            contents[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
    }
}

fn check(buffers: &mut [Box<dyn Staging>], salt: u64) {
    for (nth, buffer) in buffers.iter_mut().enumerate() {
        let contents = buffer.contents().expect("nothing is queued");
        for (at, word) in words(nth, salt) {
            assert_eq!(contents[at..at + 8], word.to_le_bytes(), "wrong bytes at {at} of buffer {nth}");
        }
    }
}

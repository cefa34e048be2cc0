//! What an operation of each manager costs as more and more blocks are live: `cargo bench -p tilework`.
//!
//! On the `null` device, so that the policy is timed alone. *churn*: sixteen blocks come and go while the
//! others stay, as temporaries do beside weights. *scattered*: a block anywhere among the live ones is freed
//! and another made; with a million of them that is the time of cache misses more than of instructions.
//! They are the manager's own: the ids to free are fetched from the table of blocks outside the timing.
//! *read*: what this machine takes for one such miss, a read of one among as many records of 32 bytes (what the
//! policy keeps of a block), anywhere, whose place is known only by the read before it. A free cannot tell what it
//! frees without one, and the allocation after it waits for it: half of *read* is in every scattered operation.

use std::hint::black_box;
use std::time::{Duration, Instant};

use tilework::device;
use tilework::manager::{Kind, Manager, Options, Stream, build};

const ROUNDS: usize = 20_000;
const TOGETHER: usize = 16;
/// Scattered frees and allocations, at least.
const PAIRS: usize = 500_000;
/// Scattered frees that are timed at once.
const BATCH: usize = 64;

fn main() {
    println!(
        "{:>10} {:>10} {:>9} {:>12} {:>14} {:>8}",
        "manager", "live", "bytes", "churn ns/op", "scattered ns/op", "read ns"
    );
    for kind in [Kind::Tiled, Kind::Placed, Kind::Bucketized] {
        for live in [1_000, 10_000, 100_000, 1_000_000] {
            for (name, most) in [("to 4 KiB", 4 << 10), ("to 1 MiB", 1 << 20)] {
                let (churn, scattered) = cost(kind, live, most);
                let read = read(live);
                println!("{kind:>10} {live:>10} {name:>9} {churn:>12.1} {scattered:>15.1} {read:>8.1}");
            }
        }
    }
}

/// Nanoseconds per operation with `live` blocks of up to `most` bytes: of churn and of scattered frees.
fn cost(kind: Kind, live: usize, most: u64) -> (f64, f64) {
    let device = device::open("null").expect("a device that needs nothing");
    // Position space ends at 2 TiB; a million blocks of a mebibyte stay below it.
    let mut manager = build(kind, device, &Options::default()).expect("a manager").manager;
    let mut random = xorshift();
    let alloc = |manager: &mut Box<dyn Manager>, bytes: u64| {
        manager.alloc(64 + bytes % (most - 64), Stream(0)).expect("memory without end").id
    };
    let mut blocks: Vec<_> = (0..live).map(|_| alloc(&mut manager, random())).collect();

    let sizes: Vec<u64> = (0..TOGETHER).map(|_| random()).collect();
    let mut some = Vec::with_capacity(TOGETHER);
    let start = Instant::now();
    for round in 0..ROUNDS {
        some.extend(sizes.iter().map(|&bytes| alloc(&mut manager, bytes)));
        while !some.is_empty() {
            let block = some.swap_remove(round * 31 % some.len());
            manager.free(block).expect("a live block");
        }
    }
    let churn = start.elapsed().as_nanos() as f64 / (2 * ROUNDS * TOGETHER) as f64;

    let mut scattered = Duration::ZERO;
    let mut pairs = 0;
    while pairs < PAIRS {
        let mut places: Vec<usize> = (0..BATCH).map(|_| random() as usize % live).collect();
        places.sort_unstable();
        places.dedup();
        // In no order of address.
        places.sort_unstable_by_key(|&place| place.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut batch: Vec<_> = places.iter().map(|&place| (blocks[place], random())).collect();
        let start = Instant::now();
        for (block, bytes) in black_box(&mut batch) {
            manager.free(*block).expect("a live block");
            *block = alloc(&mut manager, *bytes);
        }
        scattered += start.elapsed();
        places.iter().zip(&batch).for_each(|(&place, &(block, _))| blocks[place] = block);
        pairs += batch.len();
    }
    (churn, scattered.as_nanos() as f64 / (2 * pairs) as f64)
}

/// Nanoseconds of a read of one of `live` records that has to wait for the read before it.
fn read(live: usize) -> f64 {
    #[derive(Clone, Copy)]
    #[repr(align(32))]
    struct Record(u32);

    let mut records: Vec<Record> = (0..live as u32).map(Record).collect();
    let mut random = xorshift();
    // Sattolo's shuffle: one cycle through all of them.
    for at in (1..live).rev() {
        records.swap(at, random() as usize % at);
    }
    let start = Instant::now();
    let mut at = 0;
    for _ in 0..2 * PAIRS {
        at = records[at as usize].0;
    }
    black_box(at);
    start.elapsed().as_nanos() as f64 / (2 * PAIRS) as f64
}

/// Numbers that look random and are the same each time.
fn xorshift() -> impl FnMut() -> u64 {
    let mut state = 0x2545_F491_4F6C_DD1D;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

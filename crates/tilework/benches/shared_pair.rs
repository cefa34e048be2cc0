//! What a warm request and its free cost through the shared front: `cargo bench -p tilework --bench shared_pair`.
//!
//! On the `null` device, so that the front is timed alone. *pair*: one thread, the same bytes again and again.
//! *beside*: the same with a thousand blocks live. *two threads*: each on a stream of its own.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use tilework::device;
use tilework::manager::{Options, Stream};
use tilework::shared::{Shared, streams::InOrder};

const PAIRS: u32 = 1_000_000;

fn main() {
    println!("{:>12} {:>10} {:>12} {:>16}", "bytes", "pair ns", "beside ns", "two threads ns");
    for bytes in [512, 1 << 20, 100 << 20] {
        let alone = best(&front(), bytes, Stream(1));
        let crowded = front();
        for n in 0..1000 {
            crowded.alloc(512 + n * 4096, Stream(1)).expect("memory without end");
        }
        let beside = best(&crowded, bytes, Stream(1));
        let shared = &front();
        let begin = &Barrier::new(2);
        let two = std::thread::scope(|scope| {
            let run = |stream| {
                begin.wait();
                best(shared, bytes, Stream(stream))
            };
            let other = scope.spawn(move || run(2));
            let own = run(1);
            own.max(other.join().expect("a thread that does not panic"))
        });
        println!("{bytes:>12} {alone:>10.1} {beside:>12.1} {two:>16.1}");
    }
}

fn front() -> Shared {
    let device = device::open("null").expect("a device that needs nothing");
    Shared::new(device, Box::new(InOrder), &Options::default()).expect("a front")
}

/// Nanoseconds for a pair, the best of five runs.
fn best(front: &Shared, bytes: u64, stream: Stream) -> f64 {
    let run = || {
        let start = Instant::now();
        for _ in 0..PAIRS {
            let address = front.alloc(black_box(bytes), stream).expect("memory without end");
            front.free(black_box(address)).expect("a live block");
        }
        start.elapsed().as_nanos() as f64 / f64::from(PAIRS)
    };
    (0..5).map(|_| run()).fold(f64::INFINITY, f64::min)
}

//! What the shared front costs when nobody tells it where executions end, as no PyTorch program does:
//! `cargo run --release -p tilework --example passes -- traces/*.csv.gz`.
//!
//! Each trace is replayed some times on `sim-h200`, by a pool and by the front, with and without
//! `end_of_execution` between the passes. For each pass: bytes held, driver calls, and their simulated time.

use tilework::device::{Calls, sim::Sim};
use tilework::manager::{BlockId, Manager, Options, Pool, Stream, Usage};
use tilework::shared::{Shared, streams::InOrder};
use tilework::trace::{Step, Trace};

const PASSES: u32 = 6;

fn main() {
    for path in std::env::args().skip(1) {
        let trace = Trace::load(&path).expect("a trace");
        println!("{path}: peak live {} MiB", trace.peak_live_bytes() >> 20);
        for end in [true, false] {
            let device = || Box::new(Sim::h200());
            let mut pool = Pool::tiled(device(), &Options::default());
            passes(&trace, &mut pool, end, "pool");
            let front = Shared::new(device(), Box::new(InOrder), &Options::default());
            passes(&trace, &mut front.expect("a front"), end, "shared");
        }
    }
}

/// What is replayed on.
trait Front {
    fn alloc(&mut self, bytes: u64, stream: Stream) -> u64;
    fn free(&mut self, block: u64);
    fn end(&mut self);
    fn usage(&self) -> Usage;
    fn calls(&self) -> Calls;
}

impl Front for Pool {
    fn alloc(&mut self, bytes: u64, stream: Stream) -> u64 {
        Manager::alloc(self, bytes, stream).expect("memory").id.0
    }
    fn free(&mut self, block: u64) {
        Manager::free(self, BlockId(block)).expect("a live block");
    }
    fn end(&mut self) {
        self.end_of_execution().expect("a device that works");
    }
    fn usage(&self) -> Usage {
        Manager::usage(self)
    }
    fn calls(&self) -> Calls {
        self.device().calls()
    }
}

impl Front for Shared {
    fn alloc(&mut self, bytes: u64, stream: Stream) -> u64 {
        Shared::alloc(self, bytes, stream).expect("memory")
    }
    fn free(&mut self, block: u64) {
        Shared::free(self, block).expect("a live block");
    }
    fn end(&mut self) {
        self.end_of_execution().expect("a device that works");
    }
    fn usage(&self) -> Usage {
        Shared::usage(self)
    }
    fn calls(&self) -> Calls {
        Shared::calls(self)
    }
}

fn passes(trace: &Trace, front: &mut dyn Front, end: bool, name: &str) {
    print!("  {name:6} {}", if end { "ends  " } else { "      " });
    let mut blocks = vec![None; trace.slots()];
    for _ in 0..PASSES {
        let before = front.calls();
        for step in trace.steps() {
            match *step {
                Step::Alloc { slot, bytes, stream } => {
                    blocks[slot as usize] = Some(front.alloc(bytes, stream));
                }
                Step::Free { slot } => {
                    front.free(blocks[slot as usize].take().expect("a trace frees what is live"));
                }
            }
        }
        blocks.iter_mut().filter_map(Option::take).for_each(|block| front.free(block));
        if end {
            front.end();
        }
        let calls = front.calls().since(&before);
        let held = front.usage().held >> 20;
        print!(" | {held:6} MiB {:5} {:6.1} ms", calls.total(), calls.nanos as f64 / 1e6);
    }
    let Usage { peak_held, mapped, reserved, .. } = front.usage();
    println!(" | peak {} mapped {} reserved {} MiB", peak_held >> 20, mapped >> 20, reserved >> 20);
}

//! What allocators hold of one Vulkan device's memory, and what they take of time, on recorded traces.
//!
//! Each replays each trace, pass by pass, on the same device: Tilework's `tiled`, gpu-allocator and VMA, with their
//! defaults and with other lengths of their blocks. What is held is counted between `vkAllocateMemory` and
//! `vkFreeMemory`, for all in the same way.

mod counted;
mod gpu;
mod subject;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Parser;
use cpu_time::ThreadTime;
use tilework::trace::{Step, Trace};

use crate::counted::Counts;
use crate::gpu::Gpu;
use crate::subject::{GpuAllocator, Subject, Tiled, Vma, What};

const MIB: u64 = 1 << 20;

/// Replay traces on a Vulkan device through Tilework, gpu-allocator and VMA, and print one table for each
#[derive(Parser)]
struct Args {
    /// The traces: CSV `time_us,op,id,bytes,stream`, gzip-compressed or plain
    #[arg(required = true)]
    traces: Vec<PathBuf>,

    /// Which device, as the loader counts
    #[arg(long, default_value_t = 0)]
    device: usize,

    /// Multiply every size by this, rounding up
    #[arg(long, default_value_t = 1.0)]
    scale: f64,

    /// Passes over each trace; from the third on their time on the processor is taken, and the least counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(3..))]
    passes: u32,

    /// Lengths of the peers' blocks to try beside their defaults, MiB
    #[arg(long, value_delimiter = ',', default_values_t = [4, 16, 64])]
    blocks: Vec<u64>,
}

/// Whom a row is about.
#[derive(Debug, Clone, Copy)]
enum Who {
    /// With heaps of this length, bytes.
    Tiled(u64),
    GpuAllocator(Option<u64>),
    Vma {
        block_bytes: Option<u64>,
        least_memory: bool,
    },
}

/// What a pass came to.
struct Pass {
    counts: Counts,
    /// Of this thread, the kernel's part of it included: nothing here waits for the device.
    nanos: u128,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let gpu = Gpu::open(args.device)?;
    println!("{}, {}", gpu.name, gpu.driver);
    for path in &args.traces {
        let trace = Trace::load(path)?.scaled(args.scale)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        println!(
            "\n{name}, sizes times {}: {} allocations, {:.1} MiB live at most\n",
            args.scale,
            trace.allocations(),
            trace.peak_live_bytes() as f64 / MIB as f64
        );
        println!(
            "| allocator | held/live | held/live, later | `vkAllocateMemory`, pass 1 | pass 3 | binds, pass 1 | pass 3 | \
             ns, placement | ns, buffer |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        for who in everyone(&args) {
            println!(
                "{}",
                row(&gpu, &trace, who, args.passes).unwrap_or_else(|error| {
                    format!("| {} | failed: {error:#} | | | | | | | |", who.name())
                })
            );
        }
    }
    Ok(())
}

/// Everyone, with defaults, with defaults as they would be if they were scaled as sizes are, and with other lengths.
fn everyone(args: &Args) -> Vec<Who> {
    const TILEWORK: u64 = 64 * MIB;
    const PEERS: u64 = 256 * MIB;
    // What gpu-allocator takes, in steps of its own.
    let step = 4 * MIB;
    let scaled = |bytes: u64| ((bytes as f64 * args.scale) as u64).next_multiple_of(step);
    let mut blocks: Vec<u64> = args.blocks.iter().map(|mib| mib * MIB).collect();
    let mut heaps = vec![TILEWORK];
    if args.scale != 1.0 {
        heaps.push(scaled(TILEWORK));
        blocks.push(scaled(PEERS));
    }
    heaps.dedup();
    blocks.sort_unstable();
    blocks.dedup();
    let lengths = || [None].into_iter().chain(blocks.iter().copied().map(Some));
    let mut everyone: Vec<_> = heaps.into_iter().map(Who::Tiled).collect();
    everyone.extend(lengths().map(Who::GpuAllocator));
    for least_memory in [false, true] {
        everyone.extend(lengths().map(|block_bytes| Who::Vma { block_bytes, least_memory }));
    }
    everyone
}

impl Who {
    fn name(self) -> String {
        let blocks = |bytes: Option<u64>| match bytes {
            None => "as it comes".to_owned(),
            Some(bytes) => format!("blocks of {} MiB", bytes / MIB),
        };
        match self {
            Who::Tiled(bytes) => format!("Tilework, `tiled`, heaps of {} MiB", bytes / MIB),
            Who::GpuAllocator(bytes) => format!("gpu-allocator, {}", blocks(bytes)),
            Who::Vma { block_bytes, least_memory: false } => format!("VMA, {}", blocks(block_bytes)),
            Who::Vma { block_bytes, least_memory: true } => {
                format!("VMA, {}, least memory", blocks(block_bytes))
            }
        }
    }

    fn make(self, gpu: &Gpu, what: What, slots: usize) -> anyhow::Result<Box<dyn Subject + '_>> {
        Ok(match self {
            Who::Tiled(heap_bytes) => Box::new(Tiled::new(gpu, what, heap_bytes, slots)?),
            Who::GpuAllocator(bytes) => Box::new(GpuAllocator::new(gpu, what, bytes, slots)?),
            Who::Vma { block_bytes, least_memory } => {
                Box::new(Vma::new(gpu, what, block_bytes, least_memory, slots)?)
            }
        })
    }
}

/// One allocator on one trace: with buffers, and once more with placement alone.
fn row(gpu: &Gpu, trace: &Trace, who: Who, passes: u32) -> anyhow::Result<String> {
    let buffers = replay(gpu, trace, who, What::Buffer, passes)?;
    let placement = replay(gpu, trace, who, What::Placement, passes)?;
    let quickest = |passes: &[Pass]| {
        let nanos = passes[2..].iter().map(|pass| pass.nanos).min().unwrap_or(0);
        nanos as f64 / trace.allocations() as f64
    };
    let ratio = |bytes: u64| bytes as f64 / trace.peak_live_bytes() as f64;
    let peak = |passes: &[Pass]| passes.iter().map(|pass| pass.counts.peak_held).max().unwrap_or(0);
    let (first, third) = (&buffers[0].counts, &buffers[2].counts);
    Ok(format!(
        "| {} | {:.4} | {:.4} | {} | {} | {} | {} | {:.0} | {:.0} |",
        who.name(),
        ratio(peak(&buffers)),
        ratio(peak(&buffers[2..])),
        first.allocates,
        third.allocates,
        first.binds,
        third.binds,
        quickest(&placement),
        quickest(&buffers)
    ))
}

/// Replays the trace, pass by pass on the same allocator. What a pass leaves is freed at its end.
fn replay(gpu: &Gpu, trace: &Trace, who: Who, what: What, passes: u32) -> anyhow::Result<Vec<Pass>> {
    ensure!(counted::counts().held == 0, "what was held before is not given back");
    let slots = trace.slots();
    let mut subject = who.make(gpu, what, slots)?;
    let mut taken = vec![false; slots];
    let mut done = Vec::new();
    for _ in 0..passes {
        counted::reset();
        let start = ThreadTime::now();
        for step in trace.steps() {
            match *step {
                Step::Alloc { slot, bytes, .. } => {
                    subject.alloc(slot as usize, bytes).context("a request")?;
                    taken[slot as usize] = true;
                }
                Step::Free { slot } => {
                    subject.free(slot as usize).context("a free")?;
                    taken[slot as usize] = false;
                }
            }
        }
        for (slot, taken) in taken.iter_mut().enumerate().filter(|(_, taken)| **taken) {
            subject.free(slot).context("a free")?;
            *taken = false;
        }
        subject.end_of_pass()?;
        done.push(Pass { nanos: start.elapsed().as_nanos(), counts: counted::counts() });
    }
    Ok(done)
}

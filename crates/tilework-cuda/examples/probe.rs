//! Puts the device `cuda` and its driver to the test on a real GPU, and times the calls.
//!
//! ```text
//! cargo run --release -p tilework-cuda --example probe -- [ORDINAL]
//! ```
//!
//! Ends with 0 when everything was as the device relies on. `PROPTEST_CASES` sets how many random
//! sequences are run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::ptr;
use std::sync::Arc;
use std::time::Instant;

use tilework::device::conformance;
use tilework::device::{Bind, Call, Device, DeviceError};
use tilework_cuda::device::{Cuda, Plain};
use tilework_cuda::driver::{
    AccessDesc, AllocationProp, CAPTURE_GLOBAL, Code, Context, Driver, Functions, INVALID_VALUE,
    NOT_SUPPORTED, SUCCESS,
};
use tilework_cuda::gpu::Gpu;

const MIB: u64 = 1 << 20;

fn main() -> ExitCode {
    let ordinal = std::env::args().nth(1).map_or(0, |text| text.parse().expect("the number of a GPU"));
    let gpu = match Driver::load().and_then(|driver| Gpu::open(driver, ordinal)) {
        Ok(gpu) => gpu,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut version = 0;
    // SAFETY: `version` is valid for the write.
    let asked = gpu.driver().call("cuDriverGetVersion", |f| unsafe { (f.driver_get_version)(&mut version) });
    println!(
        "GPU {ordinal}: {}, {} MiB, driver API {version} {asked:?}",
        gpu.name(),
        gpu.total_bytes() / MIB
    );
    println!("free and total: {:?}", gpu.free_and_total());
    if !gpu.maps_memory() {
        println!("it does not map memory");
    }

    let mut probe = Probe { failed: 0 };
    if gpu.maps_memory() {
        println!("granularity: {:?}", gpu.granularity());
        probe.check("the driver's rules", || rules(&gpu));
        probe.check("the caller's context and capture mode stay", || context(&gpu));
        probe.conformance(ordinal);
        probe.check("a full GPU is out of memory", || full(ordinal));
        probe.check("times", || times(ordinal));
    } else {
        probe.check("a life cycle without mapping", || {
            let driver = Arc::clone(gpu.driver());
            let open = move || Plain::new(Gpu::open(Arc::clone(&driver), ordinal).expect("opened before"));
            conformance::life_cycle(&conformance::boxed(open.clone()));
            conformance::memory_is_zero_when_created(&conformance::boxed(open));
        });
    }
    match probe.failed {
        0 => ExitCode::SUCCESS,
        failed => {
            println!("{failed} checks failed");
            ExitCode::FAILURE
        }
    }
}

struct Probe {
    failed: u32,
}

impl Probe {
    fn check(&mut self, name: &str, check: impl FnOnce()) {
        let start = Instant::now();
        // Nothing of a check is used after it panicked.
        let passed = catch_unwind(AssertUnwindSafe(check)).is_ok();
        self.failed += u32::from(!passed);
        println!(
            "{:6} {name} ({:.1} s)",
            if passed { "ok" } else { "FAILED" },
            start.elapsed().as_secs_f64()
        );
    }

    /// The suite that every device must pass.
    fn conformance(&mut self, ordinal: u32) {
        let open: conformance::Open = &move || Box::new(cuda(ordinal));
        for (name, check) in conformance::checks() {
            self.check(name, || check(open));
        }
    }
}

fn cuda(ordinal: u32) -> Cuda {
    let gpu = Driver::load().and_then(|driver| Gpu::open(driver, ordinal));
    gpu.and_then(Cuda::new).expect("opened before")
}

fn code(gpu: &Gpu, call: impl FnOnce(&Functions) -> Code) -> Code {
    match gpu.enter().expect("a context").call("a function", call) {
        Ok(()) => SUCCESS,
        Err(error) => error.code().expect("the driver's refusal"),
    }
}

/// What the fake driver of the tests takes for granted.
fn rules(gpu: &Gpu) {
    let tile = gpu.granularity().expect("a granularity") as usize;
    let prop = AllocationProp::device(gpu.handle());
    let access = AccessDesc::read_write(gpu.handle());
    let (mut range, mut handle) = (0, 0);
    let mut seen = Vec::new();
    // What is refused has no effect, whichever way it is refused.
    let mut same = |what: &'static str, found: Code, expected: Code| {
        if found != expected {
            seen.push(format!("{what}: {found}, not {expected}"));
        }
    };
    // SAFETY: all pointers are valid for the reads and writes of each call; addresses and handles are those
    // made here, and nothing on the GPU uses them.
    unsafe {
        same("reserve", code(gpu, |f| (f.mem_address_reserve)(&mut range, 4 * tile, tile, 0, 0)), SUCCESS);
        same("odd size", code(gpu, |f| (f.mem_create)(&mut handle, tile + 4096, &prop, 0)), INVALID_VALUE);
        same("create", code(gpu, |f| (f.mem_create)(&mut handle, 2 * tile, &prop, 0)), SUCCESS);
        same("map a head", code(gpu, |f| (f.mem_map)(range, tile, 0, handle, 0)), NOT_SUPPORTED);
        same("map a tail", code(gpu, |f| (f.mem_map)(range, tile, tile, handle, 0)), NOT_SUPPORTED);
        same("map", code(gpu, |f| (f.mem_map)(range, 2 * tile, 0, handle, 0)), SUCCESS);
        same("map over it", code(gpu, |f| (f.mem_map)(range, 2 * tile, 0, handle, 0)), INVALID_VALUE);
        same(
            "map again",
            code(gpu, |f| (f.mem_map)(range + 2 * tile as u64, 2 * tile, 0, handle, 0)),
            SUCCESS,
        );
        same("access", code(gpu, |f| (f.mem_set_access)(range, 4 * tile, &access, 1)), SUCCESS);
        same("free a mapped range", code(gpu, |f| (f.mem_address_free)(range, 4 * tile)), INVALID_VALUE);
        same("unmap a head", code(gpu, |f| (f.mem_unmap)(range, tile)), INVALID_VALUE);
        same("release", code(gpu, |f| (f.mem_release)(handle)), SUCCESS);
        let mut byte = 1u8;
        let out = (&raw mut byte).cast();
        same("read after release", code(gpu, |f| (f.memcpy_device_to_host)(out, range, 1)), SUCCESS);
        same("unmap both", code(gpu, |f| (f.mem_unmap)(range, 4 * tile)), SUCCESS);
        same("unmap nothing", code(gpu, |f| (f.mem_unmap)(range, 2 * tile)), SUCCESS);
        same("free", code(gpu, |f| (f.mem_address_free)(range, 4 * tile)), SUCCESS);
    }
    for line in &seen {
        println!("       {line}");
    }
    assert!(seen.is_empty(), "{} answers were others than expected", seen.len());
}

fn context(gpu: &Gpu) {
    let state = || {
        let (mut current, mut mode): (Context, u32) = (ptr::null_mut(), CAPTURE_GLOBAL);
        let driver = gpu.driver();
        // SAFETY: both are valid for the writes.
        driver.call("cuCtxGetCurrent", |f| unsafe { (f.ctx_get_current)(&mut current) }).expect("a context");
        driver
            .call("cuThreadExchangeStreamCaptureMode", |f| {
                // SAFETY: as above. What is exchanged for the former mode is the mode threads begin with.
                unsafe { (f.thread_exchange_stream_capture_mode)(&mut mode) }
            })
            .expect("a mode");
        (current, mode)
    };
    let before = state();
    conformance::life_cycle(&|| Box::new(cuda(gpu.ordinal())));
    assert_eq!(state(), before);
    let _entered = gpu.enter().expect("a context");
    let inside = state();
    assert_ne!(inside.0, before.0, "the GPU's context is current inside");
}

/// Takes memory by the GiB until none is left: the end is an error of the right kind, and comes back.
fn full(ordinal: u32) {
    let mut device = cuda(ordinal);
    let total = device.gpu().total_bytes();
    let mut bytes = 1 << 30;
    let mut heaps = Vec::new();
    while bytes >= device.caps().tile_bytes {
        match device.create(bytes) {
            Ok(heap) => heaps.push(heap),
            Err(DeviceError::OutOfMemory { .. }) => bytes /= 2,
            Err(error) => panic!("{error}"),
        }
    }
    let held = device.held_bytes().expect("the books");
    println!("       {} of {} MiB in {} heaps", held / MIB, total / MIB, heaps.len());
    println!("       left: {:?}", device.gpu().free_and_total());
    // Whether page tables find room now: either answer is good, as long as it is one.
    let range = device.reserve(1 << 30).expect("address space");
    let bind = Bind { range_offset: 0, heap: heaps[0], heap_offset: 0, bytes: 1 << 30 };
    let used = device.map(range.id, &[bind]).and_then(|()| device.set_access(range.id, 0, 1 << 30));
    println!("       mapping on a full GPU: {used:?}");
    let first = Instant::now();
    drop(device);
    println!("       given back in {:.1} ms", first.elapsed().as_secs_f64() * 1e3);
    cuda(ordinal).create(1 << 30).expect("memory that was given back");
}

fn times(ordinal: u32) {
    let mut device = cuda(ordinal);
    println!("       median of 31, microseconds, in our own calls (context and capture mode included):");
    println!(
        "       {:>6} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "MiB", "create", "map", "access", "unmap", "release", "reserve"
    );
    for bytes in [2, 16, 64, 256, 1024].map(|mib: u64| mib * MIB) {
        let mut times: [Vec<f64>; 6] = Default::default();
        for _ in 0..31 {
            let mut timed = |which: usize, start: Instant| {
                times[which].push(start.elapsed().as_secs_f64() * 1e6);
            };
            let start = Instant::now();
            let range = device.reserve(bytes).expect("address space").id;
            timed(5, start);
            let start = Instant::now();
            let heap = device.create(bytes).expect("memory");
            timed(0, start);
            let start = Instant::now();
            device.map(range, &[Bind { range_offset: 0, heap, heap_offset: 0, bytes }]).expect("a map");
            timed(1, start);
            let start = Instant::now();
            device.set_access(range, 0, bytes).expect("access");
            timed(2, start);
            let start = Instant::now();
            device.unmap(range, 0, bytes).expect("an unmap");
            timed(3, start);
            let start = Instant::now();
            device.release(heap).expect("a release");
            timed(4, start);
            device.unreserve(range).expect("an unreserve");
        }
        let medians = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        });
        print!("       {:>6}", bytes / MIB);
        for median in medians {
            print!(" {median:>8.1}");
        }
        println!();
    }
    let start = Instant::now();
    for _ in 0..10_000 {
        drop(device.gpu().enter().expect("a context"));
    }
    println!("       entering and leaving the context: {:.0} ns", start.elapsed().as_nanos() as f64 / 1e4);
    copies(&mut device);
}

/// How fast `--verify` fills and checks: pieces as it uses them.
fn copies(device: &mut Cuda) {
    let bytes = 256 * MIB;
    let range = device.reserve(bytes).expect("address space");
    let heap = device.create(bytes).expect("memory");
    device.map(range.id, &[Bind { range_offset: 0, heap, heap_offset: 0, bytes }]).expect("a map");
    device.set_access(range.id, 0, bytes).expect("access");
    for piece in [256 << 10, 4 * MIB] {
        let mut data = vec![7; piece as usize];
        for call in [Call::Write, Call::Read] {
            let start = Instant::now();
            for address in (range.address..range.address + bytes).step_by(piece as usize) {
                match call {
                    Call::Write => device.write(address, &data),
                    _ => device.read(address, &mut data),
                }
                .expect("a copy");
            }
            let rate = bytes as f64 / 1e9 / start.elapsed().as_secs_f64();
            println!("       {call} in pieces of {} KiB: {rate:.1} GB/s", piece >> 10);
        }
    }
}

//! The parts, and what they share.

use std::ffi::{c_uint, c_void};
use std::ptr;
use std::time::Instant;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use tilework::device::{Bind, Device, HeapId, Range};
use tilework::shared::streams::Streams as _;
use tilework::shared::transfers::{Staging, Transfers};
use tilework_cuda::device::Cuda;
use tilework_cuda::driver::{Address, Code, Driver, SUCCESS};
use tilework_cuda::gpu::Gpu;
use tilework_cuda::streams::CudaStreams;

mod host;
mod making;
mod pinned;
mod refusals;
mod ring;

pub const MIB: usize = 1 << 20;
pub const GIB: usize = 1 << 30;

/// A part by its name.
type Part = (&'static str, fn(&World));

const PARTS: [Part; 5] = [
    ("making", making::run),
    ("pinned", pinned::run),
    ("ring", ring::run),
    ("host", host::run),
    ("refusals", refusals::run),
];

pub fn main() {
    let (mut ordinal, mut gib, mut names) = (0, 8, Vec::new());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|text| text.parse().ok()).expect("a number behind it");
        match word.as_str() {
            "--gpu" => ordinal = number(),
            "--gib" => gib = number(),
            name => names.push(PARTS.into_iter().find(|part| part.0 == name).expect("the name of a part")),
        }
    }
    let world = World::new(ordinal, gib as usize);
    for (name, run) in if names.is_empty() { PARTS.to_vec() } else { names } {
        println!("\n{name}");
        run(&world);
    }
}

/// A GPU, and how much is carried.
pub struct World {
    ordinal: u32,
    pub gpu: Gpu,
    pub streams: CudaStreams,
    pub bytes: usize,
    pub extra: Extra,
}

impl World {
    fn new(ordinal: u32, gib: usize) -> World {
        let open = || Driver::load().and_then(|driver| Gpu::open(driver, ordinal)).expect("a GPU");
        let gpu = open();
        let pages =
            std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        println!("{}, {cores} cores, huge pages: {}", gpu.name(), pages.trim());
        // A virtual machine may get its memory only when it is first used, which is not what is measured here.
        let start = Instant::now();
        let all = Ordinary::new((2 * gib + 2) * GIB, Pages::Huge);
        all.touch(8);
        println!("{} GiB touched for the first time in {:.2} s", 2 * gib + 2, start.elapsed().as_secs_f64());
        World { ordinal, gpu, streams: CudaStreams::new(open()), bytes: gib * GIB, extra: Extra::load() }
    }

    pub fn device(&self) -> Cuda {
        let gpu = Driver::load().and_then(|driver| Gpu::open(driver, self.ordinal));
        gpu.and_then(Cuda::new).expect("opened before")
    }

    pub fn transfers(&self) -> &dyn Transfers {
        self.streams.transfers().expect("a GPU copies by itself")
    }

    pub fn staging(&self, bytes: usize) -> Box<dyn Staging> {
        self.transfers().staging(bytes).expect("pinned memory")
    }

    /// What is carried, on the device: heaps of 1 GiB side by side.
    pub fn contents(&self) -> (Cuda, Address) {
        let mut device = self.device();
        let range = device.reserve(self.bytes as u64).expect("address space");
        for at in (0..self.bytes).step_by(GIB) {
            let heap = device.create(GIB as u64).expect("memory");
            map(&mut device, range, at, heap, GIB);
        }
        (device, range.address)
    }
}

/// Maps a heap and makes it usable.
pub fn map(device: &mut Cuda, range: Range, at: usize, heap: HeapId, bytes: usize) {
    let bind = Bind { range_offset: at as u64, heap, heap_offset: 0, bytes: bytes as u64 };
    device.map(range.id, &[bind]).expect("a map");
    device.set_access(range.id, at as u64, bytes as u64).expect("access");
}

/// Functions of the driver that only this program uses.
pub struct Extra {
    pub host_alloc: unsafe extern "system" fn(*mut *mut c_void, usize, c_uint) -> Code,
    pub free_host: unsafe extern "system" fn(*mut c_void) -> Code,
    pub device_to_device: unsafe extern "system" fn(Address, Address, usize) -> Code,
}

impl Extra {
    fn load() -> Extra {
        // SAFETY: the driver, which was loaded before; its functions have these types (cuda.h), and it is never
        // unloaded.
        unsafe {
            let library = libloading::Library::new("libcuda.so.1").expect("loaded before");
            let extra = Extra {
                host_alloc: *library.get(b"cuMemHostAlloc\0").expect("a function"),
                free_host: *library.get(b"cuMemFreeHost\0").expect("a function"),
                device_to_device: *library.get(b"cuMemcpyDtoD_v2\0").expect("a function"),
            };
            std::mem::forget(library);
            extra
        }
    }
}

/// In which pages memory is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    Small,
    Huge,
}

impl Pages {
    pub fn name(self) -> &'static str {
        match self {
            Pages::Small => "4 KiB",
            Pages::Huge => "2 MiB",
        }
    }
}

/// Ordinary memory of the host, none of which was touched yet.
pub struct Ordinary {
    start: *mut u8,
    pub bytes: usize,
    whole: (*mut c_void, usize),
}

// SAFETY: plain memory; who shares it answers for the parts that are used.
unsafe impl Sync for Ordinary {}

impl Ordinary {
    pub fn new(bytes: usize, pages: Pages) -> Ordinary {
        let length = bytes + 2 * MIB;
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the place.
        let base =
            unsafe { mmap_anonymous(ptr::null_mut(), length, rights, MapFlags::PRIVATE) }.expect("memory");
        let advice = match pages {
            Pages::Small => Advice::LinuxNoHugepage,
            Pages::Huge => Advice::LinuxHugepage,
        };
        // SAFETY: what was mapped above.
        let _ = unsafe { madvise(base, length, advice) };
        let start = base.cast::<u8>();
        Ordinary { start: start.wrapping_add(start.align_offset(2 * MIB)), bytes, whole: (base, length) }
    }

    /// Where a part begins.
    pub fn at(&self, at: usize) -> *mut u8 {
        assert!(at <= self.bytes);
        self.start.wrapping_add(at)
    }

    /// Has every page, by several threads.
    pub fn touch(&self, threads: usize) {
        std::thread::scope(|scope| {
            for thread in 0..threads {
                scope.spawn(move || {
                    let part = self.bytes / threads;
                    for at in (thread * part..(thread + 1) * part).step_by(4096) {
                        // SAFETY: within the memory, each byte by one thread.
                        unsafe { self.at(at).write_volatile(1) };
                    }
                });
            }
        });
    }
}

impl Drop for Ordinary {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, unmapped once.
        unsafe { munmap(self.whole.0, self.whole.1) }.expect("an unmap");
    }
}

/// Runs a call of the driver that must succeed.
pub fn must(code: Code) {
    assert_eq!(code, SUCCESS, "the driver refused");
}

/// How long a call takes, seconds.
pub fn seconds<T>(call: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let answer = call();
    (start.elapsed().as_secs_f64(), answer)
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Bytes and seconds as GB/s.
pub fn rate(bytes: usize, seconds: f64) -> f64 {
    bytes as f64 / 1e9 / seconds
}

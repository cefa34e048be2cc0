//! Telling PyTorch's profiler of requests and frees, for `torch.profiler` with `profile_memory=True`.
//!
//! PyTorch's own allocators call a function of `libc10` for this. It is exported, so ours can call it too.

use std::ffi::{c_int, c_void};
use std::mem::transmute;
use std::ptr;
use std::sync::OnceLock;

use super::gpus::Gpu;
use crate::symbols::Library;

/// `c10::Device`.
#[repr(C)]
struct Device {
    /// `c10::DeviceType`.
    kind: i8,
    index: i8,
}

/// `c10::DeviceType::CUDA`.
const CUDA: i8 = 1;

struct Profiler {
    /// Whether a profiler on this thread, or on all, asks for memory.
    wants_memory: extern "C-unwind" fn() -> bool,
    /// Address, bytes that came (below zero: went), bytes allocated and reserved by now.
    report: extern "C-unwind" fn(*mut c_void, i64, usize, usize, Device),
}

static PROFILER: OnceLock<Option<Profiler>> = OnceLock::new();

fn find() -> Option<Profiler> {
    let library = Library::loaded(c"libc10.so")?;
    let wants = library.find(c"_ZN3c1022memoryProfilingEnabledEv")?;
    let report = library.find(c"_ZN3c1027reportMemoryUsageToProfilerEPvlmmNS_6DeviceE")?;
    // SAFETY: the mangled names say the arguments, and `c10/core/Allocator.h` the results. A device is two bytes that
    // are copied as such. The first argument of the second is a number to the profiler, which never follows it.
    unsafe {
        Some(Profiler {
            wants_memory: transmute::<*mut c_void, extern "C-unwind" fn() -> bool>(wants.as_ptr()),
            report: transmute::<*mut c_void, extern "C-unwind" fn(*mut c_void, i64, usize, usize, Device)>(
                report.as_ptr(),
            ),
        })
    }
}

/// Tells that `bytes` came at an address of a GPU, or went if below zero. Costs a call where nobody profiles.
#[inline]
pub fn tell(device: c_int, gpu: &Gpu, address: u64, bytes: i64) {
    let Some(profiler) = PROFILER.get_or_init(find) else { return };
    if (profiler.wants_memory)() {
        let usage = gpu.shared().usage();
        let device = Device { kind: CUDA, index: device as i8 };
        let address = ptr::without_provenance_mut(address as usize);
        (profiler.report)(address, bytes, usage.live as usize, usage.held as usize, device);
    }
}

//! The functions that PyTorch's `CUDAPluggableAllocator` calls.
//!
//! ```text
//!   tilework_torch_alloc, _free, …   what torch._C._CUDAPluggableAllocator is given the addresses of
//!        │
//!   gpus        ordinal ▶ a shared manager, opened when first used, and what memory_stats() counts
//!   filter      whose allocations go to a graph's pool: a std::function of PyTorch's
//!   exception   torch.OutOfMemoryError with our sentence
//!   profiler    torch.profiler is told of requests and frees
//!   patch       what the plug-in interface of PyTorch has no way to answer: the virtual table
//! ```
//!
//! Each has the signature of PyTorch's C++ function as C passes it. They are called by any thread, with and
//! without Python's lock, under no lock of PyTorch's; nothing here ever waits for Python. Nothing is undone
//! at the end of the process: tensors may be freed after everything else is gone.

mod exception;
mod filter;
pub(crate) mod gpus;
mod patch;
mod profiler;
mod stats;

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;
use std::ptr;

use tilework::manager::Stream;
use tilework::shared::PoolId;

use self::filter::{Filter, Function};
use self::gpus::Gpu;
use self::stats::{DeviceStats, FIGURES};
use crate::call::{Failure, Result, TileworkStatus, guarded, status};
use crate::entered::{self, Whose};
use crate::manager::{TileworkManager, TileworkOptions, settings, text};

/// What PyTorch's sentence begins with, which programs look for.
fn lack(bytes: usize, device: c_int, text: &str) -> String {
    let text = text.strip_prefix("out of memory: ").unwrap_or(text);
    let mib = bytes as f64 / f64::from(1 << 20);
    format!("CUDA out of memory. Tried to allocate {mib:.2} MiB on GPU {device}. Tilework: {text}")
}

/// What PyTorch is told of a request, not of zero bytes, that was refused.
fn refused(failure: Failure, bytes: usize, device: c_int) -> Failure {
    match failure.status {
        // Longer than any address space: for PyTorch a lack of memory like any other, which programs that try
        // sizes catch.
        TileworkStatus::OutOfMemory | TileworkStatus::InvalidArgument => {
            Failure::new(TileworkStatus::OutOfMemory, lack(bytes, device, &failure.text))
        }
        _ => failure,
    }
}

fn stream(stream: *mut c_void) -> Stream {
    Stream(stream.addr() as u64)
}

/// Does what no error can be reported of: PyTorch calls it where an exception would end the process.
fn quietly(body: impl FnOnce() -> Result<()>) {
    match guarded(body) {
        Ok(()) => {}
        // A forked child drops what it inherited; that is no news.
        Err(failure) if failure.status == TileworkStatus::Forked => {}
        Err(failure) => tracing::error!("for PyTorch: {}", failure.text),
    }
}

/// Does what PyTorch expects an exception from where it fails.
fn or_throw<T>(body: impl FnOnce() -> Result<T>, otherwise: T) -> T {
    match guarded(body) {
        Ok(value) => value,
        Err(failure) => {
            exception::throw(&failure.text, failure.status == TileworkStatus::OutOfMemory);
            otherwise
        }
    }
}

/// Says how managers for PyTorch are to be: the options of `tilework_create`, but that a null device means
/// the GPU that PyTorch asks for. Any other device serves in place of every GPU: for tests. To be called
/// before PyTorch allocates; refused once a manager was made, unless nothing changes.
///
/// # Safety
/// As for `tilework_create`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_torch_configure(options: *const TileworkOptions) -> TileworkStatus {
    status(|| {
        exception::prepare();
        // SAFETY: as this function demands.
        gpus::configure(unsafe { settings(options)? })
    })
}

/// Stores the handle of the manager of a GPU, which is made if PyTorch has not used it yet. Destroying it takes
/// the handle away and leaves the manager to PyTorch.
///
/// # Safety
/// `out` must be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_torch_manager(
    device: c_int,
    out: *mut *mut TileworkManager,
) -> TileworkStatus {
    status(|| {
        if out.is_null() {
            return Err(Failure::argument("the place for the manager is null"));
        }
        let handle = gpus::get(device)?.handle();
        // SAFETY: not null, so valid for a write.
        unsafe { out.write(handle) };
        Ok(())
    })
}

/// Begins to record what every GPU is asked, those that are not used yet, too: the first GPU's trace has this
/// name, that of the GPU numbered N ".gpuN" in it.
///
/// # Safety
/// `path` must be null or a terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_torch_record_start(path: *const c_char) -> TileworkStatus {
    status(|| {
        // SAFETY: as this function demands.
        let path = unsafe { text(path)? }.ok_or_else(|| Failure::argument("the path is null"))?;
        gpus::record_start(Path::new(path))
    })
}

/// Ends the recording, if there is one, and gives the traces their names.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_torch_record_stop() -> TileworkStatus {
    status(gpus::record_stop)
}

/// From now on the calling thread's requests are for the group of this name, on whatever GPU, where it is made when
/// one needs it; until `tilework_torch_leave_group`, as often.
///
/// # Safety
/// `name` must be null or a terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_torch_enter_group(name: *const c_char) -> TileworkStatus {
    status(|| {
        // SAFETY: as this function demands.
        let name = unsafe { text(name)? }.ok_or_else(|| Failure::argument("the group's name is null"))?;
        entered::enter(Whose::Torch, name);
        Ok(())
    })
}

/// Ends what `tilework_torch_enter_group` began last on the calling thread.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_torch_leave_group() -> TileworkStatus {
    status(|| entered::leave(Whose::Torch))
}

/// Whether running out of memory becomes torch.OutOfMemoryError; if not, it is RuntimeError.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_torch_throws_out_of_memory() -> bool {
    guarded(|| Ok(exception::prepare())).unwrap_or(false)
}

/// `void *(size_t, int, cudaStream_t)`. Throws C++ exceptions.
///
/// # Safety
/// To be called by PyTorch.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn tilework_torch_alloc(
    bytes: usize,
    device: c_int,
    stream: *mut c_void,
) -> *mut c_void {
    if bytes == 0 {
        // As PyTorch's own: a null pointer is never freed.
        return ptr::null_mut();
    }
    or_throw(
        || {
            let gpu = gpus::get(device)?;
            let served = gpu.alloc(bytes as u64, self::stream(stream));
            let address = served.map_err(|failure| refused(failure, bytes, device))?;
            profiler::tell(device, gpu, address, bytes as i64);
            Ok(ptr::with_exposed_provenance_mut(address as usize))
        },
        ptr::null_mut(),
    )
}

/// `void (void *, size_t, int, cudaStream_t)`: size and stream are those of the request.
///
/// # Safety
/// To be called by PyTorch.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_torch_free(
    address: *mut c_void,
    bytes: usize,
    device: c_int,
    _stream: *mut c_void,
) {
    if !address.is_null() {
        quietly(|| {
            let (gpu, address) = (gpus::get(device)?, address.addr() as u64);
            gpu.free(address, bytes as u64)?;
            profiler::tell(device, gpu, address, -(bytes as i64));
            Ok(())
        });
    }
}

/// `void (int)`: how many GPUs there are, when CUDA is initialised.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_torch_init(device_count: c_int) {
    // Managers are made when a GPU is used first: each keeps a context on its GPU.
    quietly(|| {
        exception::prepare();
        gpus::begin(device_count);
        Ok(())
    });
}

/// `void ()`: torch.cuda.empty_cache().
#[unsafe(no_mangle)]
pub extern "C" fn tilework_torch_reset() {
    quietly(|| gpus::made().try_for_each(Gpu::trim));
}

/// `void (double, int)`: torch.cuda.set_per_process_memory_fraction().
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tilework_torch_memory_fraction(fraction: f64, device: c_int) {
    or_throw(|| gpus::set_fraction(device, fraction), ());
}

/// `void *(void *, size_t *)`: where the block that contains an address begins, and its length.
///
/// # Safety
/// `bytes` must be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_torch_base_alloc(address: *mut c_void, bytes: *mut usize) -> *mut c_void {
    let mut base = address;
    quietly(|| {
        if let Some((start, length)) =
            gpus::made().find_map(|gpu| gpu.shared().block_of(address.addr() as u64))
        {
            base = ptr::with_exposed_provenance_mut(start as usize);
            if !bytes.is_null() {
                // SAFETY: not null, so valid for a write.
                unsafe { bytes.write(length as usize) };
            }
        }
        Ok(())
    });
    base
}

/// `void (void *, cudaStream_t)`: Tensor.record_stream().
///
/// # Safety
/// To be called by PyTorch.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_torch_record_stream(address: *mut c_void, stream: *mut c_void) {
    let at = address.addr() as u64;
    quietly(|| match gpus::made().find(|gpu| gpu.shared().block_of(at).is_some()) {
        Some(gpu) => Ok(gpu.shared().record_stream(at, self::stream(stream))?),
        // An empty tensor, or memory of somebody else's.
        None => Ok(()),
    });
}

/// `void (int, MempoolId_t, std::function<bool(cudaStream_t)>)`.
///
/// # Safety
/// `filter` must be null or point to the function, alive during the call; what it refers to must live until
/// the pool is ended.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn tilework_torch_begin_allocate_to_pool(
    device: c_int,
    first: u64,
    second: u64,
    filter: *mut Function,
) {
    or_throw(
        || {
            // SAFETY: as this function demands.
            let filter = unsafe { Filter::copy(filter) };
            gpus::get(device)?.begin_pool(PoolId(first, second), filter)
        },
        (),
    );
}

/// `void (int, MempoolId_t)`.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_torch_end_allocate_to_pool(device: c_int, first: u64, second: u64) {
    quietly(|| Ok(gpus::get(device)?.shared().end_pool(PoolId(first, second))?));
}

/// `void (int, MempoolId_t)`.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_torch_release_pool(device: c_int, first: u64, second: u64) {
    quietly(|| gpus::get(device)?.release_pool(PoolId(first, second)));
}

/// Stores the 122 figures of torch.cuda.memory_stats() in the order of PyTorch's structure `DeviceStats`:
/// allocation, segment, active, inactive_split, then the same with _bytes as allocated_bytes, reserved_bytes,
/// active_bytes, inactive_split_bytes, then requested_bytes, each for all, the small and the large pool, and
/// each of these current, peak, allocated, freed; num_alloc_retries, num_ooms; oversize_allocations and
/// oversize_segments, current to freed; num_sync_all_streams, num_device_alloc, num_device_free,
/// max_split_size. Of a GPU that was not used yet they are those of nothing; a number that PyTorch has no GPU of is
/// refused, and so is any before `tilework_torch_init`.
///
/// # Safety
/// `out` must be null or valid for writes of `count` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_torch_stats(device: c_int, out: *mut i64, count: usize) -> TileworkStatus {
    status(|| {
        if out.is_null() || count != FIGURES {
            return Err(Failure::argument(format!("stats take an array of {FIGURES} numbers")));
        }
        let stats = gpus::stats(device)?;
        // SAFETY: not null, so valid for as many as the structure has.
        unsafe { out.cast::<DeviceStats>().write_unaligned(stats) };
        Ok(())
    })
}

/// torch.cuda.reset_peak_memory_stats().
#[unsafe(no_mangle)]
pub extern "C" fn tilework_torch_reset_peaks(device: c_int) -> TileworkStatus {
    status(|| gpus::reset_peaks(device))
}

/// torch.cuda.reset_accumulated_memory_stats().
#[unsafe(no_mangle)]
pub extern "C" fn tilework_torch_reset_accumulated(device: c_int) -> TileworkStatus {
    status(|| gpus::reset_accumulated(device))
}

/// torch.cuda.get_per_process_memory_fraction().
///
/// # Safety
/// `out` must be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_torch_fraction(device: c_int, out: *mut f64) -> TileworkStatus {
    status(|| {
        if out.is_null() {
            return Err(Failure::argument("the place for the fraction is null"));
        }
        let fraction = gpus::fraction(device)?;
        // SAFETY: not null, so valid for a write.
        unsafe { out.write(fraction) };
        Ok(())
    })
}

/// Takes or gives back a reference on a pool, as torch.cuda.MemPool does when it is made and dropped.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_torch_retain_pool(device: c_int, first: u64, second: u64) -> TileworkStatus {
    status(|| gpus::get(device)?.retain_pool(PoolId(first, second)))
}

/// How many references a pool has.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_torch_pool_uses(device: c_int, first: u64, second: u64) -> c_int {
    guarded(|| Ok(gpus::get(device)?.pool_uses(PoolId(first, second)))).unwrap_or(0)
}

/// Makes PyTorch's allocator object answer what its plug-in interface cannot: statistics, cacheInfo for
/// cudnn.benchmark, pools of torch.cuda.MemPool, the memory functions of torch.accelerator. To be called once
/// the allocator is PyTorch's current one, before it allocates.
///
/// Returns what was found and done, as bits: 1 statistics, 2 cacheInfo, 4 memory pools, 8 torch.accelerator,
/// 16 copies between GPUs.
/// What does not look exactly as in the version of PyTorch that this was written for is left as it is.
///
/// # Safety
/// No other thread may use PyTorch's allocator meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_torch_patch() -> u32 {
    // SAFETY: as this function demands.
    guarded(|| Ok(unsafe { patch::install() })).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_for_any_device_is_a_lack_of_memory_too() {
        let shared = crate::open::shared("sim-h200", &Default::default()).unwrap();
        let bytes = 1 << 60;
        let failure = refused(shared.alloc(bytes as u64, Stream(0)).unwrap_err().into(), bytes, 0);
        assert_eq!(failure.status, TileworkStatus::OutOfMemory);
        let begin = "CUDA out of memory. Tried to allocate 1099511627776.00 MiB on GPU 0. Tilework: ";
        assert!(failure.text.starts_with(begin), "{}", failure.text);
    }
}

//! Managers for C: the functions of `tilework.h` that do not concern PyTorch.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::ptr;
use std::sync::Arc;

use tilework::manager::Stream;
use tilework::shared::{Filter, PoolId, Shared};

use crate::call::{self, Failure, Result, TileworkStatus, status};
#[cfg(windows)]
use crate::d3d12;
use crate::handles;
use crate::open::{self, Settings};
#[cfg(target_os = "linux")]
use crate::torch::gpus;
use crate::vulkan;

/// A manager. Its functions may be called from any thread.
pub struct TileworkManager;

/// How a manager is to be. Set `size` to `sizeof(tilework_options)` and everything else to zero, then what
/// is to differ.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TileworkOptions {
    /// `sizeof(tilework_options)`: a later version of this structure is longer.
    pub size: usize,
    /// Whose memory: "cuda" or "cuda:0", "cuda:1" and so on, "host", "sim-h200",
    /// "sim-d3d12", "null".
    pub device: *const c_char,
    /// Who serves: "auto", also when null, "tiled" or "placed"; no other serves threads and streams. With the first two that is
    /// tiled where the device maps tiles, else placed.
    pub manager: *const c_char,
    /// Physical memory that is created at once, bytes; 0 for the default.
    pub heap_bytes: u64,
    /// The most physical memory that may be held, bytes; 0 for no limit.
    pub limit_bytes: u64,
    /// Executions after which an unused mapping is undone; 0 for the default.
    pub mapping_age: u32,
    /// Executions after which an empty heap is released; 0 for the default.
    pub heap_age: u32,
}

/// What a manager has and had. Set `size` to `sizeof(tilework_figures)` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TileworkStats {
    /// `sizeof(tilework_figures)`: as much is written, or what this version of the library has of it; then that is set here.
    pub size: usize,
    /// Bytes requested and not yet freed, and the most there were.
    pub live: u64,
    /// See `live`.
    pub peak_live: u64,
    /// Bytes of physical memory created and not released, and the most there were.
    pub held: u64,
    /// See `held`.
    pub peak_held: u64,
    /// Bytes of address space backed by memory; memory mapped twice counts twice.
    pub mapped: u64,
    /// Bytes of address space reserved.
    pub reserved: u64,
    /// The part of `held` that no stream has, ready for any, bytes.
    pub stock: u64,
    /// Bytes freed that wait for the streams that used them.
    pub pending: u64,
    /// The part of `held` that the device failed to take back, bytes.
    pub leftover: u64,
    /// Blocks live.
    pub blocks: u64,
    /// Requests served.
    pub allocations: u64,
    /// Blocks freed.
    pub frees: u64,
    /// Requests refused for want of memory.
    pub ooms: u64,
    /// Requests before which everything unused was given back.
    pub retries: u64,
    /// Calls the driver has served.
    pub device_calls: u64,
    /// Time in these calls, nanoseconds.
    pub device_ns: u64,
    /// Contents of evicted groups on the host, bytes.
    pub kept: u64,
    /// Memory of the host that the device uses for want of its own, bytes; not in `held`.
    pub spilled: u64,
    /// Groups that were evicted for want of memory.
    pub evictions: u64,
    /// Times that everything unused was given back for want of memory.
    pub give_backs: u64,
    /// Heaps that were made of the host's memory for want of the device's.
    pub spills: u64,
}

/// The length of the first version's figures, bytes.
const FIRST_STATS: usize = std::mem::offset_of!(TileworkStats, evictions);

/// Tells whether requests on `stream`, by the calling thread, go to a pool. It may be called by any thread,
/// during any `tilework_alloc` between the pool's begin and end, and must not call the manager.
pub type TileworkPoolFilter =
    Option<unsafe extern "C" fn(stream: *mut c_void, user_data: *mut c_void) -> bool>;

/// Does something with a manager.
pub(crate) fn with(handle: *mut TileworkManager, body: impl FnOnce(&Shared) -> Result<()>) -> TileworkStatus {
    status(|| handles::with(handle.addr(), body))
}

/// A text of the caller's.
///
/// # Safety
/// `text` must be null or a terminated string that stays during the call.
pub(crate) unsafe fn text<'a>(text: *const c_char) -> Result<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: not null, so a terminated string, by this function's contract.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(Some).map_err(|_| Failure::argument("a text is not UTF-8"))
}

/// What a caller's options say.
///
/// # Safety
/// `options` must be null or point to the structure, and its texts must be null or terminated strings.
pub(crate) unsafe fn settings(options: *const TileworkOptions) -> Result<Settings> {
    if options.is_null() {
        return Err(Failure::argument("the options are null"));
    }
    // SAFETY: not null, so the first field is there; it says how long the structure is.
    if unsafe { (*options).size } < size_of::<TileworkOptions>() {
        return Err(Failure::argument("the options' size must be sizeof(tilework_options)"));
    }
    // SAFETY: the structure is as long as it has to be.
    let options = unsafe { *options };
    // SAFETY: null or terminated strings, by this function's contract.
    let (device, manager) = unsafe { (text(options.device)?, text(options.manager)?) };
    let mut settings = Settings { device: device.map(str::to_owned), ..Settings::default() };
    if let Some(manager) = manager {
        settings.choice = manager.parse().map_err(Failure::argument)?;
    }
    let given = |value: u64| (value > 0).then_some(value);
    settings.limit = given(options.limit_bytes);
    let ages = [&mut settings.options.mapping_age, &mut settings.options.heap_age];
    for (age, value) in ages.into_iter().zip([options.mapping_age, options.heap_age]) {
        if value > 0 {
            *age = value;
        }
    }
    settings.options.heap_bytes = given(options.heap_bytes).unwrap_or(settings.options.heap_bytes);
    Ok(settings)
}

/// Where a caller wants a result.
///
/// # Safety
/// `out` must be null or valid for a write.
pub(crate) unsafe fn put<T>(out: *mut T, value: T) -> Result<()> {
    if out.is_null() {
        return Err(Failure::argument("the place for the result is null"));
    }
    // SAFETY: not null, so valid for a write.
    unsafe { out.write(value) };
    Ok(())
}

/// Stores a result that the caller may not want.
///
/// # Safety
/// `out` must be null or valid for a write.
pub(crate) unsafe fn put_if_wanted<T>(out: *mut T, value: T) -> Result<()> {
    // SAFETY: as this function demands.
    if out.is_null() { Ok(()) } else { unsafe { put(out, value) } }
}

pub(crate) fn stream(stream: *mut c_void) -> Stream {
    Stream(stream.addr() as u64)
}

/// The library's version, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn tilework_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Why the last call that failed on this thread did: a sentence, valid until the next one fails. Null when
/// none has.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_last_error() -> *const c_char {
    call::last_error()
}

/// Makes a manager and stores its handle.
///
/// # Safety
/// `options` must point to the structure, with its `size` set and its texts null or terminated; `out` must
/// be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_create(
    options: *const TileworkOptions,
    out: *mut *mut TileworkManager,
) -> TileworkStatus {
    status(|| {
        if out.is_null() {
            return Err(Failure::argument("the place for the manager is null"));
        }
        // SAFETY: as this function demands.
        let settings = unsafe { settings(options)? };
        let device = settings.device.as_deref();
        let device = device.ok_or_else(|| Failure::argument("the options name no device"))?;
        call::watch_forks();
        let handle = handles::register(Arc::new(open::shared(device, &settings)?));
        // SAFETY: as this function demands.
        unsafe { put(out, std::ptr::without_provenance_mut(handle)) }
    })
}

/// Gives everything of a manager back. No queued work may use its memory any more. A call that another
/// thread has begun is finished first.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_destroy(manager: *mut TileworkManager) -> TileworkStatus {
    // What it drops may take the device a while.
    status(|| {
        handles::remove(manager.addr()).map(drop)?;
        vulkan::forget(manager.addr());
        #[cfg(windows)]
        d3d12::forget(manager.addr());
        Ok(())
    })
}

/// Serves a request of `bytes` for work on `stream` and stores its address. The contents are undefined.
/// `cudaStreamPerThread` is refused as unsupported: it is another stream in every thread.
///
/// # Safety
/// `out` must be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_alloc(
    manager: *mut TileworkManager,
    bytes: u64,
    stream: *mut c_void,
    out: *mut u64,
) -> TileworkStatus {
    with(manager, |shared| {
        if out.is_null() {
            return Err(Failure::argument("the place for the address is null"));
        }
        let address = shared.alloc(bytes, self::stream(stream))?;
        // SAFETY: as this function demands.
        unsafe { put(out, address) }
    })
}

/// Takes a block back, once no work but that queued on its stream uses it.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_free(manager: *mut TileworkManager, address: u64) -> TileworkStatus {
    with(manager, |shared| Ok(shared.free(address)?))
}

/// As `tilework_free`, where the last use is queued on another stream than the request's.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_free_on(
    manager: *mut TileworkManager,
    address: u64,
    stream: *mut c_void,
) -> TileworkStatus {
    with(manager, |shared| Ok(shared.free_on(address, self::stream(stream))?))
}

/// Says that work on `stream` uses a block: once freed, it waits for what is queued there then.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_record_stream(
    manager: *mut TileworkManager,
    address: u64,
    stream: *mut c_void,
) -> TileworkStatus {
    with(manager, |shared| Ok(shared.record_stream(address, self::stream(stream))?))
}

/// Stores where the live block that contains `address` begins and how long it is. Either place may be null.
///
/// # Safety
/// `start` and `bytes` must each be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_block_of(
    manager: *mut TileworkManager,
    address: u64,
    start: *mut u64,
    bytes: *mut u64,
) -> TileworkStatus {
    with(manager, |shared| {
        let block = shared.block_of(address);
        let block = block.ok_or_else(|| {
            Failure::new(TileworkStatus::UnknownAddress, format!("no live block contains {address:#x}"))
        })?;
        // SAFETY: as this function demands.
        unsafe {
            put_if_wanted(start, block.0)?;
            put_if_wanted(bytes, block.1)
        }
    })
}

/// From now on until `tilework_end_pool`, requests that `filter` lets in go to the private pool named by
/// the two numbers: its memory serves nobody else until the pool is released. A null filter lets all in.
///
/// # Safety
/// `filter` must be null or a function as its type says, callable with `user_data` until the pool is ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_begin_pool(
    manager: *mut TileworkManager,
    first: u64,
    second: u64,
    filter: TileworkPoolFilter,
    user_data: *mut c_void,
) -> TileworkStatus {
    struct UserData(*mut c_void);
    // SAFETY: the caller's promise is that the filter may be called with it by any thread.
    unsafe impl Send for UserData {}
    // SAFETY: as above.
    unsafe impl Sync for UserData {}
    impl UserData {
        // A method, so that closures capture the whole and not the pointer in it.
        fn get(&self) -> *mut c_void {
            self.0
        }
    }

    with(manager, |shared| {
        let user_data = UserData(user_data);
        let filter: Filter = match filter {
            None => Box::new(|_| true),
            // SAFETY: callable with this data until the pool is ended, as this function demands; it is not
            // asked later.
            Some(filter) => Box::new(move |stream: Stream| unsafe {
                filter(std::ptr::without_provenance_mut(stream.0 as usize), user_data.get())
            }),
        };
        Ok(shared.begin_pool(PoolId(first, second), filter)?)
    })
}

/// Ends what `tilework_begin_pool` began. What was allocated stays.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_end_pool(
    manager: *mut TileworkManager,
    first: u64,
    second: u64,
) -> TileworkStatus {
    with(manager, |shared| Ok(shared.end_pool(PoolId(first, second))?))
}

/// Gives a private pool up, once for each begin: its memory serves everybody again when its blocks are free
/// and no queued work can use it.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_release_pool(
    manager: *mut TileworkManager,
    first: u64,
    second: u64,
) -> TileworkStatus {
    with(manager, |shared| Ok(shared.release_pool(PoolId(first, second))?))
}

/// Says that a stream is about to be destroyed: what waits for it is waited for now.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_forget_stream(
    manager: *mut TileworkManager,
    stream: *mut c_void,
) -> TileworkStatus {
    with(manager, |shared| Ok(shared.forget_stream(self::stream(stream))?))
}

/// Tells that one execution of the model has ended: the clock by which unused mappings and empty heaps grow
/// old and are given back, on a thread of the library's where it is much.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_end_of_execution(manager: *mut TileworkManager) -> TileworkStatus {
    with(manager, |shared| Ok(shared.end_of_execution()?))
}

/// Gives back everything unused now and stores how many bytes of physical memory that was; `released` may be
/// null.
///
/// # Safety
/// `released` must be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_trim(manager: *mut TileworkManager, released: *mut u64) -> TileworkStatus {
    with(manager, |shared| {
        let bytes = shared.trim()?;
        // SAFETY: as this function demands.
        unsafe { put_if_wanted(released, bytes) }
    })
}

/// Sets the most physical memory that may be held, bytes; 0 for no limit. What is held above it stays until it is unused, or
/// its group can be evicted, and memory lacks. Refused below what pinned groups hold. Of a GPU that PyTorch uses its own fraction of
/// the memory stays in force, and the lesser counts.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_set_limit(manager: *mut TileworkManager, limit_bytes: u64) -> TileworkStatus {
    let limit = (limit_bytes > 0).then_some(limit_bytes);
    // PyTorch is hooked on Linux only.
    #[cfg(target_os = "linux")]
    if let Some(gpu) = gpus::of(manager) {
        return status(|| gpu.set_limit(limit));
    }
    with(manager, |shared| Ok(shared.set_limit(limit)?))
}

/// Lets memory be on the host, at addresses like any other, where everything else has been tried and nothing is left
/// within the limit; or no longer. It is slow to use, and given back like any other memory that is unused.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_set_spill(manager: *mut TileworkManager, spill: bool) -> TileworkStatus {
    with(manager, |shared| Ok(shared.set_spill(spill)?))
}

/// To find work that uses a group while it is away. At the addresses of an evicted group there is nothing: a kernel that uses
/// them ends with an illegal memory access. With `trap` that holds until `tilework_restore`, for a prefetch does nothing, and the log
/// says of each group that is evicted at which addresses it was.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_set_trap(manager: *mut TileworkManager, trap: bool) -> TileworkStatus {
    with(manager, |shared| {
        shared.set_trap(trap);
        Ok(())
    })
}

/// Lets kernels of the GPU with the ordinal `peer` use the manager's memory, what is allocated and what will be. Where
/// the device does not map memory there is nothing to do: CUDA's own calls for peers are enough there.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_add_peer(manager: *mut TileworkManager, peer: u32) -> TileworkStatus {
    with(manager, |shared| Ok(shared.add_peer(peer)?))
}

/// Stores who serves, "tiled", or "placed" where the device cannot map tiles or that was asked for, and why, in one sentence. Both are valid
/// until this thread asks again. Either place may be null.
///
/// # Safety
/// `kind` and `why` must each be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_serving(
    manager: *mut TileworkManager,
    kind: *mut *const c_char,
    why: *mut *const c_char,
) -> TileworkStatus {
    thread_local! {
        static TOLD: RefCell<Option<[CString; 2]>> = const { RefCell::new(None) };
    }
    with(manager, |shared| {
        let serving = shared.serving();
        let texts = [serving.kind.name(), &serving.why].map(call::terminated);
        let [its_kind, its_why] =
            TOLD.with_borrow_mut(|told| told.insert(texts).each_ref().map(|text| text.as_ptr()));
        // SAFETY: as this function demands.
        unsafe {
            put_if_wanted(kind, its_kind)?;
            put_if_wanted(why, its_why)
        }
    })
}

/// Stores the manager's figures.
///
/// # Safety
/// `out` must be null or point to the structure, with its `size` set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_stats(
    manager: *mut TileworkManager,
    out: *mut TileworkStats,
) -> TileworkStatus {
    with(manager, |shared| {
        // SAFETY: null or pointing to the structure, whose first field says how long it is.
        let size = if out.is_null() { 0 } else { unsafe { (*out).size } };
        if size < FIRST_STATS {
            return Err(Failure::argument("stats must be a structure with its size set to its sizeof"));
        }
        let size = size.min(size_of::<TileworkStats>());
        let stats = shared.stats();
        let usage = stats.usage;
        let figures = TileworkStats {
            size,
            live: usage.live,
            peak_live: usage.peak_live,
            held: usage.held,
            peak_held: usage.peak_held,
            mapped: usage.mapped,
            reserved: usage.reserved,
            stock: stats.stock,
            pending: stats.pending,
            leftover: stats.leftover,
            blocks: stats.blocks,
            allocations: stats.allocations,
            frees: stats.frees,
            ooms: stats.ooms,
            retries: stats.retries,
            device_calls: stats.device_calls.total(),
            device_ns: stats.device_calls.nanos,
            kept: stats.kept,
            spilled: stats.spilled,
            evictions: stats.evictions,
            give_backs: stats.give_backs,
            spills: stats.spills,
        };
        // SAFETY: both are as long, as just seen; the caller's is no local variable of this function's.
        unsafe { ptr::copy_nonoverlapping((&raw const figures).cast::<u8>(), out.cast(), size) };
        Ok(())
    })
}

/// Makes the peaks start again from what is live and held now.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_reset_peaks(manager: *mut TileworkManager) -> TileworkStatus {
    with(manager, |shared| {
        shared.reset_peaks();
        Ok(())
    })
}

/// Begins to write each request and free to a trace, which has its name once the recording is stopped.
///
/// # Safety
/// `path` must be null or a terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_record_start(
    manager: *mut TileworkManager,
    path: *const c_char,
) -> TileworkStatus {
    with(manager, |shared| {
        // SAFETY: as this function demands.
        let path = unsafe { text(path)? }.ok_or_else(|| Failure::argument("the path is null"))?;
        Ok(shared.record_to(Path::new(path))?)
    })
}

/// Ends the recording and gives the trace its name.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_record_stop(manager: *mut TileworkManager) -> TileworkStatus {
    with(manager, |shared| Ok(shared.stop_recording()?))
}

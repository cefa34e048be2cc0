//! What the plug-in interface of PyTorch has no way to answer.
//!
//! `CUDAPluggableAllocator` takes functions for about half of what an allocator is asked. The rest throws:
//! statistics, `cacheInfo` (which cudnn.benchmark asks), references on pools (`torch.cuda.MemPool`). Its
//! object is asked through a virtual table, so it is given another one: a copy with some entries replaced.
//!
//! ```text
//!   object ──▶ PyTorch's table      becomes      object ──▶ our copy
//!              [-2] offset, type                            [-2] the same
//!              [ 9] getDeviceStats                          [ 9] ours
//!              [22] cacheInfo …                             [22] ours …
//! ```
//!
//! Nothing is assumed about where entries are: each is found by the address of the function that PyTorch
//! exports for it, and those that are not exported by neighbours that are, at the distances that they have
//! in PyTorch 2.11. One exported name carries a signature that only this version has. If anything is not
//! exactly so, nothing is replaced, and Python answers what it can.

use std::ffi::{CString, c_int, c_void};
use std::mem::transmute;
use std::ptr;
use std::sync::OnceLock;

use tilework::shared::PoolId;

use super::stats::DeviceStats;
use super::{gpus, or_throw};
use crate::call::{Result, guarded};
use crate::symbols::Library;

/// Statistics are answered.
const STATISTICS: u32 = 1;
/// `cacheInfo` is answered.
const CACHE_INFO: u32 = 2;
/// References on pools are kept.
const POOLS: u32 = 4;
/// The allocator is the one that `torch.accelerator` asks.
const ACCELERATOR: u32 = 8;

/// Copies between GPUs, and kernels that use a peer's memory, get what memory mapped by a driver needs.
const PEERS: u32 = 16;

/// Entries of the table in PyTorch 2.11, without the two words before them.
const ENTRIES: usize = 50;

/// What the mangled names of members of `CUDAPluggableAllocator` begin with.
const MEMBER: &str = "_ZN5torch4cuda22CUDAPluggableAllocator22CUDAPluggableAllocator";

type Entry = *const c_void;

/// The table's functions: the first argument is the allocator object. `DeviceIndex` is a signed byte, and a
/// pool's name two numbers.
mod entries {
    use super::*;

    type This = *mut c_void;

    fn or_nothing<T: Default>(body: impl FnOnce() -> Result<T>) -> T {
        guarded(body).unwrap_or_default()
    }

    pub extern "C-unwind" fn get_device_stats(_: This, device: i8) -> DeviceStats {
        or_throw(|| gpus::stats(device.into()), DeviceStats::default())
    }

    pub extern "C-unwind" fn reset_accumulated_stats(_: This, device: i8) {
        or_throw(|| gpus::reset_accumulated(device.into()), ());
    }

    pub extern "C-unwind" fn reset_peak_stats(_: This, device: i8) {
        or_throw(|| gpus::reset_peaks(device.into()), ());
    }

    pub extern "C-unwind" fn get_memory_fraction(_: This, device: i8) -> f64 {
        or_throw(|| gpus::fraction(device.into()), 0.0)
    }

    pub unsafe extern "C" fn cache_info(_: This, device: i8, largest: *mut usize) {
        let available = or_nothing(|| Ok(gpus::get(device.into())?.available()));
        // SAFETY: PyTorch passes the address of a variable of its own.
        unsafe { largest.write(available as usize) };
    }

    pub extern "C" fn is_history_enabled(_: This) -> bool {
        false
    }

    pub extern "C" fn get_pool_use_count(_: This, device: i8, first: u64, second: u64) -> c_int {
        or_nothing(|| Ok(gpus::get(device.into())?.pool_uses(PoolId(first, second))))
    }

    /// The last argument, a shared pointer by address, names the allocator of a pool that has its own; we
    /// serve all.
    pub extern "C" fn create_or_incref_pool(_: This, device: i8, first: u64, second: u64, _: *const c_void) {
        or_nothing(|| gpus::get(device.into())?.retain_pool(PoolId(first, second)));
    }

    /// Whether a pool serves others when memory is short: ours never do.
    pub extern "C" fn set_use_on_oom(_: This, _: i8, _: u64, _: u64, _: bool) {}

    /// Whether a pool's segments may be split: ours have none.
    pub extern "C" fn set_no_split(_: This, _: i8, _: u64, _: u64) {}

    /// Lets `device` use the memory of `owner`: what CUDA's runtime has allocated there by PyTorch's own function, and
    /// ours. Asked once for each pair of GPUs, before the first kernel that relies on it.
    pub unsafe extern "C-unwind" fn enable_peer_access(this: This, device: i8, owner: i8) {
        let originals = ORIGINALS.get().expect("found before the table was put in place");
        // SAFETY: PyTorch's own arguments, passed on to its own function. Nothing here is dropped if it throws.
        unsafe { (originals.enable_peer_access)(this, device, owner) };
        or_throw(|| Ok(gpus::get(owner.into())?.shared().add_peer(device as u32)?), ());
    }

    /// A copy from GPU to GPU. The plain copy that PyTorch's plug-ins make of peers that it has not made such fails on
    /// memory that is mapped.
    pub unsafe extern "C" fn memcpy_async(
        this: This,
        to: *mut c_void,
        to_device: c_int,
        from: *const c_void,
        from_device: c_int,
        bytes: usize,
        stream: *mut c_void,
        peers: bool,
    ) -> c_int {
        let originals = ORIGINALS.get().expect("found before the table was put in place");
        // SAFETY: PyTorch's own arguments, passed on to its own function or to the runtime's for this.
        unsafe {
            if to_device == from_device {
                (originals.copy)(this, to, to_device, from, from_device, bytes, stream, peers)
            } else {
                (originals.peer_copy)(to, to_device, from, from_device, bytes, stream)
            }
        }
    }
}

/// Functions that ours go on to.
struct Originals {
    /// PyTorch's, for copies on one GPU.
    copy: MemcpyAsync,
    /// `cudaMemcpyPeerAsync` of the runtime that PyTorch uses.
    peer_copy: MemcpyPeerAsync,
    /// PyTorch's.
    enable_peer_access: EnablePeerAccess,
}

type MemcpyAsync = unsafe extern "C" fn(
    *mut c_void,
    *mut c_void,
    c_int,
    *const c_void,
    c_int,
    usize,
    *mut c_void,
    bool,
) -> c_int;
type MemcpyPeerAsync =
    unsafe extern "C" fn(*mut c_void, c_int, *const c_void, c_int, usize, *mut c_void) -> c_int;

type EnablePeerAccess = unsafe extern "C-unwind" fn(*mut c_void, i8, i8);

static ORIGINALS: OnceLock<Originals> = OnceLock::new();

/// Replaces what can be replaced and tells what that was.
///
/// # Safety
/// Nobody may use the allocator meanwhile.
pub unsafe fn install() -> u32 {
    // SAFETY: passed on to the caller.
    unsafe { table() | accelerator() }
}

/// PyTorch's current allocator.
fn current() -> Option<ptr::NonNull<*const Entry>> {
    let place = Library::loaded(c"libc10_cuda.so")?
        .find(c"_ZN3c104cuda20CUDACachingAllocator9allocatorE")?
        .cast::<*mut *const Entry>();
    // SAFETY: the symbol is a variable, an atomic pointer to an object, whose first word is its table.
    ptr::NonNull::new(unsafe { place.read() })
}

unsafe fn table() -> u32 {
    let Some(plan) = Plan::make() else { return 0 };
    // The two words before the entries go along: they tell the type.
    let copy: &'static mut [Entry] = Box::leak(plan.table.into());
    // SAFETY: the object's first word is its table, as the plan has seen, and nobody uses it meanwhile. The
    // copy has the same functions but for those below, each with the signature of the one it replaces.
    unsafe { plan.object.write(copy[2..].as_ptr()) };
    STATISTICS | CACHE_INFO | POOLS | PEERS
}

/// A table to put in place.
struct Plan {
    object: ptr::NonNull<*const Entry>,
    table: [Entry; ENTRIES + 2],
}

impl Plan {
    fn make() -> Option<Plan> {
        let library = Library::loaded(c"libtorch_cuda.so")?;
        let original = library
            .find(c"_ZTVN5torch4cuda22CUDAPluggableAllocator22CUDAPluggableAllocatorE")?
            .cast::<[Entry; ENTRIES + 2]>();
        if library.size_of(original.cast())? != size_of::<[Entry; ENTRIES + 2]>() {
            return None;
        }
        let object = current()?;
        // SAFETY: PyTorch's objects with virtual functions begin with the address of their table.
        let in_use = unsafe { object.read() };
        // SAFETY: the table is as long as was just seen, so the result is within it.
        if !ptr::eq(in_use, unsafe { original.cast::<Entry>().add(2) }.as_ptr()) {
            return None;
        }
        // SAFETY: as long as was just seen; tables are never written.
        let mut table = unsafe { original.read() };
        let place = |member: &str| {
            let name = CString::new(format!("{MEMBER}{member}")).ok()?;
            let function = library.find(&name)?.as_ptr().cast_const();
            let mut places = (2..table.len()).filter(|&at| ptr::eq(table[at], function));
            // Two entries with one function could not be told apart.
            places.next().filter(|_| places.next().is_none())
        };
        let device_stats = place("14getDeviceStatsEa")?;
        let accumulated = place("21resetAccumulatedStatsEa")?;
        let peaks = place("14resetPeakStatsEa")?;
        let fraction = place("17getMemoryFractionEa")?;
        let cache_info = place("9cacheInfoEaPm")?;
        let release = place("11releasePoolEaSt4pairIyyE")?;
        let share = place("14shareIpcHandleEPv")?;
        let ipc = place("12getIpcDevPtrENSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE")?;
        let copy = place("11memcpyAsyncEPviPKvimP11CUstream_stb")?;
        let peer_access = place("16enablePeerAccessEaa")?;
        // The runtime that PyTorch's library is bound to: a preloaded one, else the one it is linked to.
        let between = Library::program()
            .and_then(|program| program.find(c"cudaMemcpyPeerAsync"))
            .or_else(|| Library::loaded(c"libc10_cuda.so")?.find(c"cudaMemcpyPeerAsync"))?;
        // This signature is that of 2.11.
        let record = place(
            "13recordHistoryEbPFSt10shared_ptrIN3c1015GatheredContextEEvEmNS4_22CachingDeviceAllocator13\
             RecordContextEbRKSt6vectorINSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEESaISH_EE",
        )?;
        // releasePool, getPoolUseCount, createOrIncrefPool, setUseOnOOM, setNoSplit,
        // checkPoolLiveAllocations, shareIpcHandle; getIpcDevPtr, isHistoryEnabled, recordHistory.
        if share != release + 6 || ipc != share + 1 || record != ipc + 2 {
            return None;
        }
        // SAFETY: the mangled names of PyTorch's say their arguments and its header their results; the runtime's is
        // as its documentation has it.
        let originals = unsafe {
            Originals {
                copy: transmute::<Entry, MemcpyAsync>(table[copy]),
                peer_copy: transmute::<*mut c_void, MemcpyPeerAsync>(between.as_ptr()),
                enable_peer_access: transmute::<Entry, EnablePeerAccess>(table[peer_access]),
            }
        };
        ORIGINALS.get_or_init(|| originals);
        table[copy] = entries::memcpy_async as Entry;
        table[peer_access] = entries::enable_peer_access as Entry;
        table[device_stats] = entries::get_device_stats as Entry;
        table[accumulated] = entries::reset_accumulated_stats as Entry;
        table[peaks] = entries::reset_peak_stats as Entry;
        table[fraction] = entries::get_memory_fraction as Entry;
        table[cache_info] = entries::cache_info as Entry;
        table[release + 1] = entries::get_pool_use_count as Entry;
        table[release + 2] = entries::create_or_incref_pool as Entry;
        table[release + 3] = entries::set_use_on_oom as Entry;
        table[release + 4] = entries::set_no_split as Entry;
        table[ipc + 1] = entries::is_history_enabled as Entry;
        Some(Plan { object, table })
    }
}

/// Makes the current allocator the one that PyTorch knows for CUDA as a kind of device: what does not go
/// through torch.cuda would otherwise reach the one that was replaced.
unsafe fn accelerator() -> u32 {
    type SetAllocator = unsafe extern "C" fn(i8, *mut c_void, u8);
    const CUDA: i8 = 1;
    // No later call may take it back with less.
    const PRIORITY: u8 = u8::MAX;

    let set = Library::loaded(c"libc10.so")
        .and_then(|library| library.find(c"_ZN3c1012SetAllocatorENS_10DeviceTypeEPNS_9AllocatorEh"));
    let (Some(set), Some(object)) = (set, current()) else { return 0 };
    // SAFETY: the name says that it is a function of a kind of device (a signed byte), an allocator and an
    // unsigned byte; the object is an allocator that PyTorch keeps.
    unsafe {
        let set = transmute::<*mut c_void, SetAllocator>(set.as_ptr());
        set(CUDA, object.as_ptr().cast(), PRIORITY);
    }
    ACCELERATOR
}

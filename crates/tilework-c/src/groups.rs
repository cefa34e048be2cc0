//! Groups for C: memory that goes to the host and comes back together.

use std::ffi::{c_char, c_void};
use std::path::PathBuf;

use tilework::shared::{GroupId, GroupStats, Hosting, Residence};

use crate::call::{Failure, TileworkStatus};
use crate::manager::{TileworkManager, put, put_if_wanted, stream, text, with};

/// Where a group's memory is.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TileworkResidence {
    /// On the device.
    Resident = 0,
    /// On the host, or nowhere if it was discarded.
    Evicted = 1,
    /// On the device, its contents on the way.
    Arriving = 2,
}

/// What a group has and did. Set `size` to `sizeof(tilework_group_figures)` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TileworkGroupFigures {
    /// `sizeof(tilework_group_figures)`: as much is written.
    pub size: usize,
    /// Where it is.
    pub residence: TileworkResidence,
    /// How often it was pinned and not unpinned since.
    pub pins: u32,
    /// Bytes requested and not yet freed, resident or not.
    pub live: u64,
    /// Physical memory of the device it has, bytes.
    pub held: u64,
    /// Its contents on the host, bytes.
    pub kept: u64,
    /// How often it was evicted or discarded.
    pub evictions: u64,
    /// How often it was restored.
    pub restores: u64,
    /// Bytes copied to the host, ever.
    pub bytes_out: u64,
    /// Bytes copied back, ever.
    pub bytes_in: u64,
}

impl From<GroupStats> for TileworkGroupFigures {
    fn from(stats: GroupStats) -> TileworkGroupFigures {
        let residence = match stats.residence {
            Residence::Resident => TileworkResidence::Resident,
            Residence::Evicted => TileworkResidence::Evicted,
            Residence::Arriving => TileworkResidence::Arriving,
        };
        TileworkGroupFigures {
            size: size_of::<TileworkGroupFigures>(),
            residence,
            pins: stats.pins,
            live: stats.live,
            held: stats.held,
            kept: stats.kept,
            evictions: stats.evictions,
            restores: stats.restores,
            bytes_out: stats.bytes_out,
            bytes_in: stats.bytes_in,
        }
    }
}

/// Stores the number of the group of this name, which is made if there is none: resident, and pinned once, so that
/// nothing is taken from one who does not expect it. Unpin it when it may be evicted.
///
/// # Safety
/// `name` must be null or a terminated string, `out` null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_group(
    manager: *mut TileworkManager,
    name: *const c_char,
    out: *mut u32,
) -> TileworkStatus {
    with(manager, |shared| {
        // SAFETY: as this function demands.
        let name = unsafe { text(name)? }.ok_or_else(|| Failure::argument("the group's name is null"))?;
        let group = shared.group(name)?;
        // SAFETY: as this function demands.
        unsafe { put(out, group.0) }
    })
}

/// As `tilework_alloc`, of memory that goes and comes with the group. Refused while the group is evicted.
///
/// # Safety
/// `out` must be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_alloc_for(
    manager: *mut TileworkManager,
    group: u32,
    bytes: u64,
    stream: *mut c_void,
    out: *mut u64,
) -> TileworkStatus {
    with(manager, |shared| {
        if out.is_null() {
            return Err(Failure::argument("the place for the address is null"));
        }
        let address = shared.alloc_for(GroupId(group), bytes, self::stream(stream))?;
        // SAFETY: as this function demands.
        unsafe { put(out, address) }
    })
}

/// Says that work on `stream` uses the group's memory: an eviction waits for what is queued there then. The streams
/// that its memory was requested or restored for are known.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_group_used_on(
    manager: *mut TileworkManager,
    group: u32,
    stream: *mut c_void,
) -> TileworkStatus {
    with(manager, |shared| Ok(shared.used_on(GroupId(group), self::stream(stream))?))
}

/// Copies the group's contents to the host, gives its physical memory to others and keeps its addresses. Waits for
/// the work queued on its streams, and for no other. Stores how many bytes of physical memory that released;
/// `released` may be null. Does nothing to a group that is evicted.
///
/// # Safety
/// `released` must be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_evict(
    manager: *mut TileworkManager,
    group: u32,
    released: *mut u64,
) -> TileworkStatus {
    with(manager, |shared| {
        let bytes = shared.evict(GroupId(group))?;
        // SAFETY: as this function demands.
        unsafe { put_if_wanted(released, bytes) }
    })
}

/// As `tilework_evict`, without keeping the contents: they are undefined when the group is restored.
///
/// # Safety
/// As for `tilework_evict`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_discard(
    manager: *mut TileworkManager,
    group: u32,
    released: *mut u64,
) -> TileworkStatus {
    with(manager, |shared| {
        let bytes = shared.discard(GroupId(group))?;
        // SAFETY: as this function demands.
        unsafe { put_if_wanted(released, bytes) }
    })
}

/// Makes the group resident, at the same addresses and with its contents, for which `stream` and the streams of its
/// requests wait. Stores the bytes copied; `copied` may be null.
///
/// # Safety
/// `copied` must be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_restore(
    manager: *mut TileworkManager,
    group: u32,
    stream: *mut c_void,
    copied: *mut u64,
) -> TileworkStatus {
    with(manager, |shared| {
        let bytes = shared.restore(GroupId(group), Some(self::stream(stream)))?;
        // SAFETY: as this function demands.
        unsafe { put_if_wanted(copied, bytes) }
    })
}

/// Begins to restore the group while the caller goes on; `tilework_restore` ends it.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_prefetch(manager: *mut TileworkManager, group: u32) -> TileworkStatus {
    with(manager, |shared| Ok(shared.prefetch(GroupId(group))?))
}

/// Says that the group's contents do not change any more once they are on the host: what is kept there stays when it is
/// restored, and the next eviction copies nothing. A change after the first eviction is lost with the second.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_set_constant(
    manager: *mut TileworkManager,
    group: u32,
    constant: bool,
) -> TileworkStatus {
    with(manager, |shared| Ok(shared.set_constant(GroupId(group), constant)?))
}

/// Keeps the group from being evicted, by request or for want of memory, until it is unpinned as often. Under a limit:
/// pin, restore, queue the work, unpin.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_pin(manager: *mut TileworkManager, group: u32) -> TileworkStatus {
    with(manager, |shared| Ok(shared.pin(GroupId(group))?))
}

/// Takes one pin away.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_unpin(manager: *mut TileworkManager, group: u32) -> TileworkStatus {
    with(manager, |shared| Ok(shared.unpin(GroupId(group))?))
}

/// Ends a group of which nothing is live, and that nobody has pinned but its maker.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_remove_group(manager: *mut TileworkManager, group: u32) -> TileworkStatus {
    with(manager, |shared| Ok(shared.remove_group(GroupId(group))?))
}

/// Stores the group's figures.
///
/// # Safety
/// `out` must be null or point to the structure, with its `size` set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_group_stats(
    manager: *mut TileworkManager,
    group: u32,
    out: *mut TileworkGroupFigures,
) -> TileworkStatus {
    with(manager, |shared| {
        // SAFETY: null or pointing to the structure, whose first field says how long it is.
        if out.is_null() || unsafe { (*out).size } < size_of::<TileworkGroupFigures>() {
            return Err(Failure::argument("figures must be a structure with its size set to its sizeof"));
        }
        let stats = shared.group_stats(GroupId(group))?;
        // SAFETY: long enough, as just seen.
        unsafe { put(out, stats.into()) }
    })
}

/// Says where contents of evicted groups are kept from now on: up to `pinned_bytes` in memory that the device copies
/// by itself, the fastest way; the rest in ordinary memory if `directory` is null, else in files there that have no
/// name and end with the process.
///
/// # Safety
/// `directory` must be null or a terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_set_hosting(
    manager: *mut TileworkManager,
    pinned_bytes: u64,
    directory: *const c_char,
) -> TileworkStatus {
    with(manager, |shared| {
        // SAFETY: as this function demands.
        let directory = unsafe { text(directory)? }.map(PathBuf::from);
        shared.set_hosting(Hosting { pinned_bytes, directory });
        Ok(())
    })
}

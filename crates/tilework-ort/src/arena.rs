//! What ONNX Runtime's own arena says of itself.

use std::ffi::CString;

use crate::error::Result;
use crate::session::Session;

/// From this version of the C API on, an allocator can be asked for its figures. Version 22 has the
/// entry in some builds, and calling it crashed there.
pub(crate) const STATS_SINCE: u32 = 23;

/// The figures of the arena a session allocates from, bytes, as the arena counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ArenaStats {
    /// Taken from the operating system, or from the GPU, and not given back. Of the host's memory, what the
    /// arena has never written to may not be resident.
    pub total_allocated: u64,
    /// In use by tensors, rounded up to the arena's pieces.
    pub in_use: u64,
    /// The most that was ever in use.
    pub max_in_use: u64,
}

impl Session {
    /// The figures of the arena that a session without a registered allocator has where it runs. `None` where the
    /// library is too old to be asked (before 1.23), or the session has no arena.
    ///
    /// # Errors
    /// When ONNX Runtime refuses.
    pub fn arena_stats(&self) -> Result<Option<ArenaStats>> {
        let library = self.environment().library();
        let api = library.api();
        if library.api_version() < STATS_SINCE || self.environment().allocator().is_some() {
            return Ok(None);
        }
        let info =
            self.place().memory_info(library.spoken(), ort_sys::OrtAllocatorType::OrtArenaAllocator)?;
        // SAFETY: session and info are alive; on success a wrapper of the session's allocator is
        // stored that the second function releases.
        let arena = unsafe {
            library.make("CreateAllocator", (*api).ReleaseAllocator, |out| {
                ((*api).CreateAllocator)(self.as_ptr(), info.as_ptr(), out)
            })?
        };
        // SAFETY: the arena is alive, the entry exists from this version on, and on success a list is
        // stored that the second function releases.
        let pairs = unsafe {
            library.make("AllocatorGetStats", (*api).ReleaseKeyValuePairs, |out| {
                ((*api).AllocatorGetStats)(arena.as_ptr(), out)
            })?
        };
        let figure = |key: &str| {
            let key = CString::new(key).expect("a literal without zeros");
            // SAFETY: list and key are alive; the answer is null or a terminated string of the list.
            unsafe { library.text(((*api).GetKeyValue)(pairs.as_ptr(), key.as_ptr())) }.parse::<u64>().ok()
        };
        let Some(total_allocated) = figure("TotalAllocated") else { return Ok(None) };
        Ok(Some(ArenaStats {
            total_allocated,
            in_use: figure("InUse").unwrap_or(0),
            max_in_use: figure("MaxInUse").unwrap_or(0),
        }))
    }
}

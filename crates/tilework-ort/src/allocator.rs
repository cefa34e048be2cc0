//! A manager behind ONNX Runtime's allocator interface.
//!
//! ONNX Runtime knows an allocator as a table of C functions. Ours lies at the start of [`State`], so
//! that the table's address, which every call brings along, is the state's address.

use std::any::Any;
use std::ffi::{CString, c_void};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ort_sys::{OrtAllocator, OrtKeyValuePairs, OrtMemoryInfo, OrtStatusPtr, OrtSyncStream};
use rustc_hash::FxHashMap;
use tilework::manager::{BlockId, Manager, Stats, Stream, Usage};

use crate::error::Result;
use crate::library::{Library, ThrowBadAlloc};
use crate::owned::Owned;

/// From this version of the C API on, an allocator's table has `GetStats` and `AllocOnStream`.
const STATS_SINCE: u32 = 23;

/// Why the allocator turned a request of ONNX Runtime down.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// The manager said no.
    Manager(tilework::Error),
    /// The manager panicked, which is a defect; it serves no further request.
    Panicked(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Manager(error) => error.fmt(f),
            Failure::Panicked(what) => write!(f, "the memory manager panicked: {what}"),
        }
    }
}

/// A manager that ONNX Runtime can allocate from, once it is registered with an
/// [`Environment`](crate::Environment).
///
/// It serves host memory: to ONNX Runtime it is the allocator named `Cpu`.
pub struct Allocator {
    books: Mutex<Books>,
}

struct Books {
    manager: Box<dyn Manager>,
    /// The block at each address that ONNX Runtime holds.
    blocks: FxHashMap<usize, BlockId>,
    /// The first failure since it was last asked for: later ones are mostly its consequences.
    failure: Option<Failure>,
    /// Set once the manager has panicked: its books may be wrong, so it is not asked again.
    broken: Option<String>,
}

impl Allocator {
    /// Puts a manager behind the interface.
    ///
    /// # Safety
    ///
    /// Every block the manager hands out must be memory of this process: its address a pointer that
    /// may be read and written for the block's length until the block is freed or the manager
    /// dropped, and that no other block overlaps meanwhile. This is so for the managers of
    /// `tilework` over its `host` device.
    pub unsafe fn new(manager: Box<dyn Manager>) -> Allocator {
        Allocator {
            books: Mutex::new(Books { manager, blocks: FxHashMap::default(), failure: None, broken: None }),
        }
    }

    /// The manager's running figures.
    pub fn usage(&self) -> Usage {
        self.with(|m| m.usage())
    }

    /// The manager's full report.
    pub fn stats(&self) -> Stats {
        self.with(|m| m.stats())
    }

    /// Runs `f` on the manager while ONNX Runtime waits. Blocks must not be freed that way.
    pub fn with<R>(&self, f: impl FnOnce(&mut dyn Manager) -> R) -> R {
        f(&mut *self.books().manager)
    }

    /// The first failure since this was last called, which is forgotten by this call.
    pub fn take_failure(&self) -> Option<Failure> {
        self.books().failure.take()
    }

    /// The books. A panic of the manager is kept in `broken`, so a poisoned lock tells nothing new.
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Null when the manager cannot serve, and for no bytes, as ONNX Runtime expects.
    fn alloc(&self, bytes: usize, stream: Stream) -> *mut c_void {
        if bytes == 0 {
            return null_mut();
        }
        let mut books = self.books();
        match books.guarded(|b| b.manager.alloc(bytes as u64, stream)) {
            Ok(block) => {
                books.blocks.insert(block.address as usize, block.id);
                std::ptr::with_exposed_provenance_mut(block.address as usize)
            }
            Err(failure) => {
                tracing::debug!(bytes, %failure, "an allocation for ONNX Runtime failed");
                books.failure.get_or_insert(failure);
                null_mut()
            }
        }
    }

    fn free(&self, ptr: *mut c_void) {
        if ptr.is_null() {
            return;
        }
        let mut books = self.books();
        let Some(id) = books.blocks.remove(&ptr.addr()) else {
            tracing::error!(?ptr, "ONNX Runtime freed an address that it was never given");
            return;
        };
        if let Err(failure) = books.guarded(|b| b.manager.free(id)) {
            tracing::error!(%failure, "a block could not be freed");
            books.failure.get_or_insert(failure);
        }
    }
}

impl Books {
    /// Runs `f` so that a panic in the manager ends as a failure and not in ONNX Runtime's frames.
    fn guarded<R>(&mut self, f: impl FnOnce(&mut Books) -> tilework::Result<R>) -> Result<R, Failure> {
        if let Some(what) = &self.broken {
            return Err(Failure::Panicked(what.clone()));
        }
        // Unwind safety: after a panic `broken` keeps everybody away from what may be half done.
        match catch_unwind(AssertUnwindSafe(|| f(self))) {
            Ok(result) => result.map_err(Failure::Manager),
            Err(panic) => {
                let what = panic_text(&*panic);
                self.broken = Some(what.clone());
                Err(Failure::Panicked(what))
            }
        }
    }
}

impl fmt::Debug for Allocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Allocator").field("usage", &self.usage()).finish_non_exhaustive()
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| s.to_string())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into())
}

/// A function that may unwind, as the type that the table has for it.
///
/// ONNX Runtime calls through its table as C++ does, so an exception may pass; the bindings' types only
/// have no word for that.
macro_rules! plain {
    ($entry:ident: fn($($argument:ty),*) -> $result:ty) => {
        // SAFETY: the two types differ in whether the function may unwind and in nothing else. It is
        // never called from Rust through the second.
        unsafe {
            std::mem::transmute::<
                unsafe extern "C-unwind" fn($($argument),*) -> $result,
                unsafe extern "system" fn($($argument),*) -> $result,
            >($entry)
        }
    };
}

/// What ONNX Runtime is given the address of.
///
/// Invariant: while ONNX Runtime may call, the state stays where it is and `info` and `library` are
/// alive. [`Registered`] sees to both.
#[repr(C)]
struct State {
    /// First, so that the table's address is the state's.
    table: OrtAllocator,
    allocator: Allocator,
    info: Owned<OrtMemoryInfo>,
    library: Arc<Library>,
    throw: Option<ThrowBadAlloc>,
}

impl State {
    /// Serves a request, or fails the way ONNX Runtime's own allocators do: with `std::bad_alloc`.
    ///
    /// A null pointer is what the interface asks for, but ONNX Runtime does not look (its tensors are
    /// made without a check), and the next kernel writes through it. Where the library brings no
    /// libstdc++ that can be called, null it is.
    fn serve(&self, bytes: usize, stream: Stream) -> *mut c_void {
        let ptr = self.allocator.alloc(bytes, stream);
        if ptr.is_null()
            && bytes > 0
            && let Some(throw) = self.throw
        {
            // SAFETY: the function takes nothing. What it throws passes only this frame and those of
            // the entries below, which may unwind and own nothing, into ONNX Runtime's, which expect it
            // of an allocator.
            unsafe { throw() }
        }
        ptr
    }
}

/// An allocator in the form that ONNX Runtime takes, at an address that stays.
pub(crate) struct Registered {
    /// From `Box::into_raw`; a pointer rather than a box, because ONNX Runtime holds copies of it.
    state: *mut State,
}

// SAFETY: the state is shared by design: its table is constant, its memory information is never
// changed, and everything else is behind the allocator's lock.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

impl Registered {
    /// Makes the table for the API version that is spoken with `library`.
    pub(crate) fn new(library: &Arc<Library>, allocator: Allocator) -> Result<Registered> {
        let api = library.api();
        // SAFETY: the name is terminated, and on success a memory info is stored that the second
        // function releases.
        let info = unsafe {
            library.make("CreateMemoryInfo", (*api).ReleaseMemoryInfo, |out| {
                ((*api).CreateMemoryInfo)(
                    c"Cpu".as_ptr(),
                    // The type for arenas is refused by RegisterAllocator: it is for ONNX Runtime's own.
                    ort_sys::OrtAllocatorType::OrtDeviceAllocator,
                    0,
                    ort_sys::OrtMemType::OrtMemTypeDefault,
                    out,
                )
            })?
        };
        // ONNX Runtime reads only the entries that this version of the table has.
        let version = library.api_version();
        let table = OrtAllocator {
            version,
            Alloc: Some(plain!(alloc: fn(*mut OrtAllocator, usize) -> *mut c_void)),
            Free: Some(free),
            Info: Some(info_of),
            Reserve: Some(plain!(reserve: fn(*const OrtAllocator, usize) -> *mut c_void)),
            GetStats: (version >= STATS_SINCE).then_some(get_stats),
            AllocOnStream: (version >= STATS_SINCE).then_some(
                plain!(alloc_on_stream: fn(*mut OrtAllocator, usize, *mut OrtSyncStream) -> *mut c_void),
            ),
            // Shrinking is for plug-in providers' allocators; ONNX Runtime never calls it on a
            // registered one. `Manager::end_of_execution` and `trim` do that work here.
            Shrink: None,
        };
        let state =
            State { table, allocator, info, library: library.clone(), throw: library.throw_bad_alloc() };
        Ok(Registered { state: Box::into_raw(Box::new(state)) })
    }

    pub(crate) fn table(&self) -> *mut OrtAllocator {
        self.state.cast()
    }

    pub(crate) fn info(&self) -> *const OrtMemoryInfo {
        self.state().info.as_ptr()
    }

    pub(crate) fn allocator(&self) -> &Allocator {
        &self.state().allocator
    }

    fn state(&self) -> &State {
        // SAFETY: the pointer came from a box that is freed when `self` is dropped, and nobody makes
        // an exclusive reference to it.
        unsafe { &*self.state }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: from `Box::into_raw`, freed once; the environment is dropped before, and after that
        // ONNX Runtime does not call any more.
        drop(unsafe { Box::from_raw(self.state) });
    }
}

/// The state behind a table that ONNX Runtime passes.
///
/// # Safety
///
/// `this` must be the table of a [`Registered`] that is alive for `'a`.
unsafe fn state<'a>(this: *const OrtAllocator) -> &'a State {
    // SAFETY: the table is the first field of a state, as the layout of C lays down, the pointer was
    // made from the whole state's, and the caller promises that it is alive.
    unsafe { &*this.cast::<State>() }
}

// The entries of the table. Each is called by ONNX Runtime with the table it was given at registration,
// which lives until its environment is gone. None panics: a manager's panic ends in `guarded`. Those that
// serve requests may unwind, with an exception of C++ from `State::serve`.

unsafe extern "C-unwind" fn alloc(this: *mut OrtAllocator, bytes: usize) -> *mut c_void {
    // SAFETY: `this` is our table, alive.
    unsafe { state(this) }.serve(bytes, Stream::default())
}

/// Memory that is to stay, such as weights: to a manager a request like any other.
unsafe extern "C-unwind" fn reserve(this: *const OrtAllocator, bytes: usize) -> *mut c_void {
    // SAFETY: `this` is our table, alive.
    unsafe { state(this) }.serve(bytes, Stream::default())
}

unsafe extern "C-unwind" fn alloc_on_stream(
    this: *mut OrtAllocator,
    bytes: usize,
    stream: *mut OrtSyncStream,
) -> *mut c_void {
    // SAFETY: `this` is our table, alive.
    unsafe { state(this) }.serve(bytes, Stream(stream.addr() as u64))
}

unsafe extern "system" fn free(this: *mut OrtAllocator, ptr: *mut c_void) {
    // SAFETY: `this` is our table, alive.
    unsafe { state(this) }.allocator.free(ptr);
}

unsafe extern "system" fn info_of(this: *const OrtAllocator) -> *const OrtMemoryInfo {
    // SAFETY: `this` is our table, alive.
    unsafe { state(this) }.info.as_ptr()
}

/// The manager's figures under the names that ONNX Runtime gives its own arena's.
unsafe extern "system" fn get_stats(
    this: *const OrtAllocator,
    out: *mut *mut OrtKeyValuePairs,
) -> OrtStatusPtr {
    // SAFETY: `this` is our table, alive.
    let state = unsafe { state(this) };
    let Ok(stats) = catch_unwind(AssertUnwindSafe(|| state.allocator.stats())) else {
        // SAFETY: the message is terminated.
        return unsafe {
            ((*state.library.api()).CreateStatus)(
                ort_sys::OrtErrorCode::ORT_FAIL,
                c"the memory manager panicked".as_ptr(),
            )
        };
    };
    let figures = [
        (c"InUse", stats.usage.live),
        (c"MaxInUse", stats.usage.peak_live),
        (c"TotalAllocated", stats.usage.held),
        (c"NumAllocs", stats.allocations),
    ];
    let api = state.library.api();
    // SAFETY: the entries exist since version 22, and this function is in the table from 23 on; the
    // list is made before it is filled, keys and values are terminated and copied, and `out` is where
    // the caller wants the list.
    unsafe {
        let mut pairs = null_mut();
        ((*api).CreateKeyValuePairs)(&raw mut pairs);
        for (key, figure) in figures {
            let value = CString::new(figure.to_string()).expect("digits have no zero byte");
            ((*api).AddKeyValuePair)(pairs, key.as_ptr(), value.as_ptr());
        }
        *out = pairs;
    }
    OrtStatusPtr::default()
}

#[cfg(test)]
mod tests;

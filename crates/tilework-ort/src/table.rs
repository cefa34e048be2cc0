//! ONNX Runtime's allocator interface: a table of C functions.
//!
//! Ours lies at the start of `State`, so that the table's address, which every call brings along, is the
//! state's address.

use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr::null_mut;

use ort_sys::{OrtAllocator, OrtKeyValuePairs, OrtMemoryInfo, OrtStatusPtr, OrtSyncStream};
use tilework::manager::{Stream, Usage};

use crate::api::Api;
use crate::error::Result;
use crate::owned::Owned;

/// From this version of the C API on, an allocator's table has `GetStats` and `AllocOnStream`, and streams
/// tell their handles.
pub const STREAMS_SINCE: u32 = 23;

/// From this version on the table has `Shrink`.
const SHRINK_SINCE: u32 = 25;

/// libstdc++'s `std::__throw_bad_alloc()`.
pub type ThrowBadAlloc = unsafe extern "C-unwind" fn();

/// Whom a [`Table`] asks. No method panics; each may be called by any thread.
pub trait Server: Send + Sync {
    /// Serves a request for work on a stream, by the handle that its provider knows it by; zero where ONNX
    /// Runtime names none. Null when that cannot be, and for no bytes.
    fn alloc(&self, bytes: usize, stream: Stream) -> *mut c_void;

    /// Takes a block back, with work on its stream that uses it still queued. Null is nothing.
    fn free(&self, ptr: *mut c_void);

    /// What ONNX Runtime is told when it asks. `None` after a panic.
    fn figures(&self) -> Option<Figures>;

    /// Gives back what is unused.
    fn shrink(&self);
}

/// What ONNX Runtime can be told of an allocator.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// The running figures.
    pub usage: Usage,
    /// Requests served.
    pub allocations: u64,
}

/// Whose memory an allocator serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The host's.
    Cpu,
    /// A GPU's, by its number.
    Cuda(c_int),
}

impl Place {
    fn name(self) -> (&'static CStr, c_int) {
        match self {
            Place::Cpu => (c"Cpu", 0),
            Place::Cuda(ordinal) => (c"Cuda", ordinal),
        }
    }

    /// ONNX Runtime's description of memory there, as served by an allocator of this type.
    pub(crate) fn memory_info(self, api: Api, by: ort_sys::OrtAllocatorType) -> Result<Owned<OrtMemoryInfo>> {
        let functions = api.table();
        let (name, id) = self.name();
        // SAFETY: the name is terminated, and on success a memory info is stored that the second
        // function releases.
        unsafe {
            api.make("CreateMemoryInfo", (*functions).ReleaseMemoryInfo, |out| {
                let usual = ort_sys::OrtMemType::OrtMemTypeDefault;
                ((*functions).CreateMemoryInfo)(name.as_ptr(), by, id, usual, out)
            })
        }
    }
}

/// A function that may unwind, as the type that the table has for it.
///
/// ONNX Runtime calls through its table as C++ does, so an exception may pass; the bindings' types only
/// have no word for that.
macro_rules! plain {
    ($entry:ident::<$server:ident>: fn($($argument:ty),*) -> $result:ty) => {
        // SAFETY: the two types differ in whether the function may unwind and in nothing else. It is
        // never called from Rust through the second.
        unsafe {
            std::mem::transmute::<
                unsafe extern "C-unwind" fn($($argument),*) -> $result,
                unsafe extern "system" fn($($argument),*) -> $result,
            >($entry::<$server>)
        }
    };
}

/// What ONNX Runtime is given the address of.
///
/// Invariant: while ONNX Runtime may call, the state stays where it is. [`Table`] sees to it.
#[repr(C)]
struct State<S> {
    /// First, so that the table's address is the state's.
    table: OrtAllocator,
    server: S,
    info: Owned<OrtMemoryInfo>,
    api: Api,
    throw: Option<ThrowBadAlloc>,
}

impl<S: Server> State<S> {
    /// Serves a request, or fails the way ONNX Runtime's own allocators do: with `std::bad_alloc`.
    ///
    /// A null pointer is what the interface asks for, but ONNX Runtime does not look (its tensors are
    /// made without a check), and the next kernel writes through it. Where the library brings no
    /// libstdc++ that can be called, null it is.
    fn serve(&self, bytes: usize, stream: Stream) -> *mut c_void {
        let ptr = self.server.alloc(bytes, stream);
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
///
/// Once registered it must be dropped only after ONNX Runtime's environment, or never.
pub struct Table<S> {
    /// From `Box::into_raw`; a pointer rather than a box, because ONNX Runtime holds copies of it.
    state: *mut State<S>,
}

// SAFETY: the state is shared by design: its table is constant, its memory information is never
// changed, and the server may be called by any thread.
unsafe impl<S: Server> Send for Table<S> {}
// SAFETY: as above.
unsafe impl<S: Server> Sync for Table<S> {}

impl<S: Server> Table<S> {
    /// Makes the table in the form of the API's version. `throw` is what a lack of memory is told by.
    ///
    /// # Errors
    /// [`Error::Ort`](crate::Error::Ort) when ONNX Runtime does not know the place.
    pub fn new(api: Api, place: Place, server: S, throw: Option<ThrowBadAlloc>) -> Result<Table<S>> {
        // The type for arenas is refused by RegisterAllocator: it is for ONNX Runtime's own.
        let info = place.memory_info(api, ort_sys::OrtAllocatorType::OrtDeviceAllocator)?;
        // ONNX Runtime reads only the entries that this version of the table has.
        let version = api.version();
        let table = OrtAllocator {
            version,
            Alloc: Some(plain!(alloc::<S>: fn(*mut OrtAllocator, usize) -> *mut c_void)),
            Free: Some(free::<S>),
            Info: Some(info_of::<S>),
            Reserve: Some(plain!(reserve::<S>: fn(*const OrtAllocator, usize) -> *mut c_void)),
            GetStats: (version >= STREAMS_SINCE).then_some(get_stats::<S>),
            AllocOnStream: (version >= STREAMS_SINCE).then_some(
                plain!(alloc_on_stream::<S>: fn(*mut OrtAllocator, usize, *mut OrtSyncStream) -> *mut c_void),
            ),
            // ONNX Runtime has not been seen to call it on a registered allocator.
            Shrink: (version >= SHRINK_SINCE).then_some(shrink::<S>),
        };
        Ok(Table { state: Box::into_raw(Box::new(State { table, server, info, api, throw })) })
    }

    /// What `RegisterAllocator` takes: valid while `self` is there.
    pub fn as_ptr(&self) -> *mut OrtAllocator {
        self.state.cast()
    }

    pub(crate) fn info(&self) -> *const OrtMemoryInfo {
        self.state().info.as_ptr()
    }

    /// Whom it asks.
    pub fn server(&self) -> &S {
        &self.state().server
    }

    fn state(&self) -> &State<S> {
        // SAFETY: the pointer came from a box that is freed when `self` is dropped, and nobody makes
        // an exclusive reference to it.
        unsafe { &*self.state }
    }
}

impl<S> Drop for Table<S> {
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
/// `this` must be the table of a [`Table`] with this server that is alive for `'a`.
unsafe fn state<'a, S>(this: *const OrtAllocator) -> &'a State<S> {
    // SAFETY: the table is the first field of a state, as the layout of C lays down, the pointer was
    // made from the whole state's, and the caller promises that it is alive.
    unsafe { &*this.cast::<State<S>>() }
}

// The entries of the table. Each is called by ONNX Runtime with the table it was given at registration,
// which lives until its environment is gone. None panics, as no server does. Those that serve requests may unwind, with an exception of C++ from `State::serve`.

unsafe extern "C-unwind" fn alloc<S: Server>(this: *mut OrtAllocator, bytes: usize) -> *mut c_void {
    // SAFETY: `this` is our table, alive.
    unsafe { state::<S>(this) }.serve(bytes, Stream::default())
}

/// Memory that is to stay, such as weights: to a manager a request like any other.
unsafe extern "C-unwind" fn reserve<S: Server>(this: *const OrtAllocator, bytes: usize) -> *mut c_void {
    // SAFETY: `this` is our table, alive.
    unsafe { state::<S>(this) }.serve(bytes, Stream::default())
}

unsafe extern "C-unwind" fn alloc_on_stream<S: Server>(
    this: *mut OrtAllocator,
    bytes: usize,
    stream: *mut OrtSyncStream,
) -> *mut c_void {
    // SAFETY: `this` is our table, alive.
    let state = unsafe { state::<S>(this) };
    let handle = if stream.is_null() {
        null_mut()
    } else {
        // SAFETY: the entry exists from the version on from which this function is in the table; the stream
        // is ONNX Runtime's and alive during the call.
        unsafe { ((*state.api.table()).SyncStream_GetHandle)(stream) }
    };
    state.serve(bytes, Stream(handle.addr() as u64))
}

unsafe extern "system" fn free<S: Server>(this: *mut OrtAllocator, ptr: *mut c_void) {
    // SAFETY: `this` is our table, alive.
    unsafe { state::<S>(this) }.server.free(ptr);
}

unsafe extern "system" fn info_of<S: Server>(this: *const OrtAllocator) -> *const OrtMemoryInfo {
    // SAFETY: `this` is our table, alive.
    unsafe { state::<S>(this) }.info.as_ptr()
}

/// The manager's figures under the names that ONNX Runtime gives its own arena's.
unsafe extern "system" fn get_stats<S: Server>(
    this: *const OrtAllocator,
    out: *mut *mut OrtKeyValuePairs,
) -> OrtStatusPtr {
    // SAFETY: `this` is our table, alive.
    let state = unsafe { state::<S>(this) };
    let Some(Figures { usage, allocations }) = state.server.figures() else {
        // SAFETY: the message is terminated.
        return unsafe {
            ((*state.api.table()).CreateStatus)(
                ort_sys::OrtErrorCode::ORT_FAIL,
                c"the memory manager panicked".as_ptr(),
            )
        };
    };
    let figures = [
        (c"InUse", usage.live),
        (c"MaxInUse", usage.peak_live),
        (c"TotalAllocated", usage.held),
        (c"NumAllocs", allocations),
    ];
    let api = state.api.table();
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

unsafe extern "system" fn shrink<S: Server>(this: *mut OrtAllocator) -> OrtStatusPtr {
    // SAFETY: `this` is our table, alive.
    unsafe { state::<S>(this) }.server.shrink();
    OrtStatusPtr::default()
}

//! The way into the library and out of it: what every exported function does first and last.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use tilework::Error;

/// What a function answers. On anything but `TILEWORK_STATUS_OK`, `tilework_last_error` has a sentence.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TileworkStatus {
    /// Done.
    Ok = 0,
    /// A null pointer, a manager that is not there, an unknown name, a size of zero.
    InvalidArgument = 1,
    /// Physical memory ran out, after everything unused had been given back.
    OutOfMemory = 2,
    /// No live block begins at the address.
    UnknownAddress = 3,
    /// The device could not be opened, or failed; what had been done was undone.
    DeviceFailed = 4,
    /// Not possible here.
    Unsupported = 5,
    /// The process is a child, made by fork from one that had managers: these stay with the parent.
    Forked = 6,
    /// A defect of this library.
    Internal = 7,
    /// The group is evicted: restore it first.
    Evicted = 8,
    /// Something is in the way: a pin, a block that is live.
    InUse = 9,
    /// The host has no room for contents, or could not read them again.
    HostFailed = 10,
}

/// Why a call failed. A pointer, so that a result is passed in registers.
#[derive(Debug)]
pub struct Failure(Box<Why>);

/// What a [`Failure`] says.
#[derive(Debug)]
pub struct Why {
    /// The kind.
    pub status: TileworkStatus,
    /// The sentence.
    pub text: String,
}

impl Deref for Failure {
    type Target = Why;

    fn deref(&self) -> &Why {
        &self.0
    }
}

impl Failure {
    /// A failure of this kind.
    #[cold]
    pub fn new(status: TileworkStatus, text: impl Into<String>) -> Failure {
        Failure(Box::new(Why { status, text: text.into() }))
    }

    /// An argument that cannot be used.
    pub fn argument(text: impl Into<String>) -> Failure {
        Failure::new(TileworkStatus::InvalidArgument, text)
    }
}

/// The result of what is done inside a call.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl From<Error> for Failure {
    #[cold]
    fn from(error: Error) -> Failure {
        let status = match &error {
            Error::ZeroSize | Error::TooLarge { .. } => TileworkStatus::InvalidArgument,
            Error::OutOfMemory { .. } => TileworkStatus::OutOfMemory,
            Error::UnknownBlock(_) | Error::DoubleFree(_) | Error::UnknownAddress(_) => {
                TileworkStatus::UnknownAddress
            }
            Error::Forked => TileworkStatus::Forked,
            Error::Stream { .. } | Error::NoGroups | Error::NoSpill => TileworkStatus::Unsupported,
            Error::UnknownGroup(_) | Error::NotPinned { .. } => TileworkStatus::InvalidArgument,
            Error::Evicted { .. } => TileworkStatus::Evicted,
            Error::Pinned { .. } | Error::GroupInUse { .. } | Error::LimitBelowPinned { .. } => {
                TileworkStatus::InUse
            }
            Error::Host { .. } => TileworkStatus::HostFailed,
            _ => TileworkStatus::DeviceFailed,
        };
        Failure::new(status, error.to_string())
    }
}

static FORKED: AtomicBool = AtomicBool::new(false);

/// Makes children of this process, forked from now on, refuse every call: locks may be held there by
/// threads that do not exist, and CUDA does not survive a fork. To be called before anything is opened.
pub fn watch_forks() {
    #[cfg(unix)]
    {
        extern "C" fn in_child() {
            FORKED.store(true, Ordering::Relaxed);
        }
        static WATCHED: std::sync::Once = std::sync::Once::new();
        // SAFETY: the handler may run at any time from now on, in a child that has one thread; it only stores
        // to an atomic. It is forgotten when the library is unloaded.
        WATCHED.call_once(|| _ = unsafe { libc::pthread_atfork(None, None, Some(in_child)) });
    }
}

#[cold]
fn forked() -> Failure {
    let text = "this process was forked from the one that has the memory: start processes with spawn";
    Failure::new(TileworkStatus::Forked, text)
}

/// Runs `body` unless the process was forked; a panic ends here, as a failure.
#[inline]
pub fn guarded<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    if FORKED.load(Ordering::Relaxed) {
        return Err(forked());
    }
    // Unwind safety: a shared manager that panicked says so itself at the next call, and nothing else is
    // changed inside.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(defect(&*panic)))
}

#[cold]
fn defect(panic: &(dyn Any + Send)) -> Failure {
    Failure::new(TileworkStatus::Internal, format!("a defect of Tilework: {}", words(panic)))
}

/// As [`guarded`], for functions that return a status: keeps the sentence for [`last_error`].
#[inline]
pub fn status(body: impl FnOnce() -> Result<()>) -> TileworkStatus {
    match guarded(body) {
        Ok(()) => TileworkStatus::Ok,
        Err(failure) => told(&failure),
    }
}

#[cold]
fn told(failure: &Failure) -> TileworkStatus {
    keep(&failure.text);
    failure.status
}

thread_local! {
    static LAST: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// A text as C has them.
pub fn terminated(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).expect("no zero byte is left")
}

/// Keeps a sentence for [`last_error`].
pub fn keep(text: &str) {
    let text = terminated(text);
    // A thread that is ending has no use for it.
    _ = LAST.try_with(|last| last.replace(Some(text)));
}

/// The sentence kept last on this thread, or null.
pub fn last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ref().map_or(ptr::null(), |text| text.as_ptr()))
        .unwrap_or(ptr::null())
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

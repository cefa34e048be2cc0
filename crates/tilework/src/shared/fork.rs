//! Whether this is still the process it was: CUDA does not survive a fork, and nor does a lock that another
//! thread held at that moment.
//!
//! Asking the system for the process id is a call of a hundred nanoseconds, twice what a warm request takes.
//! So the child is told: a handler that the C library runs in every child counts a generation on, and asking
//! is one relaxed load. A child made by a bare `clone` is not told; nothing that starts workers does that.

#[cfg(unix)]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Forks between the process that this crate was first used in and this one.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// The process that made it.
#[derive(Debug)]
pub(super) struct Process(u64);

impl Process {
    /// This process.
    pub fn this() -> Result<Process> {
        watch()?;
        Ok(Process(GENERATION.load(Ordering::Relaxed)))
    }

    /// Whether this is it.
    #[inline]
    pub fn is_this(&self) -> bool {
        self.0 == GENERATION.load(Ordering::Relaxed)
    }

    /// An error in any other.
    #[inline]
    pub fn check(&self) -> Result<()> {
        if self.is_this() { Ok(()) } else { Err(Error::Forked) }
    }
}

#[cfg(unix)]
#[allow(unsafe_code)]
fn watch() -> Result<()> {
    static WATCHED: OnceLock<i32> = OnceLock::new();

    extern "C" fn forked() {
        GENERATION.fetch_add(1, Ordering::Relaxed);
    }

    // SAFETY: the handler has the type asked for, stays as long as the program, and in a child, where little
    // is allowed, adds to a number.
    let code = *WATCHED.get_or_init(|| unsafe { libc::pthread_atfork(None, None, Some(forked)) });
    if code == 0 {
        return Ok(());
    }
    let reason = format!("the process cannot be watched for forks: error {code}");
    Err(Error::Device(crate::device::DeviceError::Failed { call: crate::device::Call::Order, reason }))
}

#[cfg(not(unix))]
fn watch() -> Result<()> {
    Ok(())
}

//! A manager behind ONNX Runtime's allocator interface.

use std::any::Any;
use std::ffi::c_void;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;
use tilework::manager::{BlockId, Manager, Stats, Stream, Usage};

use crate::error::Result;
use crate::table::{Figures, Server};

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

impl Server for Allocator {
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

    fn figures(&self) -> Option<Figures> {
        let stats = catch_unwind(AssertUnwindSafe(|| self.stats())).ok()?;
        Some(Figures { usage: stats.usage, allocations: stats.allocations })
    }

    fn shrink(&self) {
        let mut books = self.books();
        if let Err(failure) = books.guarded(|b| b.manager.trim()) {
            tracing::warn!(%failure, "not everything unused could be given back");
        }
    }
}

#[cfg(test)]
mod tests;

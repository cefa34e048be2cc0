//! A manager behind ONNX Runtime's allocator interface.

use std::any::Any;
use std::ffi::c_void;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;
use tilework::device::waiting::Wait;
use tilework::manager::{BlockId, Manager, Stats, Stream, Usage};

use crate::error::Result;
use crate::order::Order;
use crate::table::{Figures, Place, Server};

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
/// To ONNX Runtime it is the allocator named `Cpu`, for the host's memory, or `Cuda`, for a GPU's.
pub struct Allocator {
    place: Place,
    books: Mutex<Books>,
}

struct Books {
    manager: Box<dyn Manager>,
    /// The block at each address that ONNX Runtime holds.
    blocks: FxHashMap<usize, BlockId>,
    /// On a GPU, where work runs later than it is queued.
    order: Option<Order>,
    /// The first failure since it was last asked for: later ones are mostly its consequences.
    failure: Option<Failure>,
    /// Set once the manager has panicked: its books may be wrong, so it is not asked again.
    broken: Option<String>,
}

impl Allocator {
    /// Puts a manager of the host's memory behind the interface.
    ///
    /// # Safety
    ///
    /// Every block the manager hands out must be memory of this process: its address a pointer that
    /// may be read and written for the block's length until the block is freed or the manager
    /// dropped, and that no other block overlaps meanwhile. This is so for the managers of
    /// `tilework` over its `host` device.
    pub unsafe fn new(manager: Box<dyn Manager>) -> Allocator {
        Allocator::over(Place::Cpu, manager, None)
    }

    /// Puts a manager of a GPU's memory behind the interface. ONNX Runtime frees memory while work that uses it
    /// is still queued; `wait` waits on the host for all work of that GPU, and is called before freed memory goes
    /// from one stream to another. Runs must not overlap: a session's run has one stream, but two runs would take
    /// turns, with a wait at each.
    ///
    /// # Safety
    ///
    /// Every block the manager hands out must be memory of the GPU numbered `ordinal`, as the CUDA runtime counts
    /// them: readable and writable in its primary context for the block's length until the block is freed or the
    /// manager dropped, and overlapping no other block meanwhile. What was freed must stay mapped until the GPU
    /// has done what was queued by then. This is so for the managers of `tilework` over a device of
    /// `tilework-cuda` in a [`Waiting`](tilework::device::waiting::Waiting).
    pub unsafe fn on_gpu(manager: Box<dyn Manager>, ordinal: u32, wait: Wait) -> Allocator {
        Allocator::over(Place::Cuda(ordinal as i32), manager, Some(Order::new(wait)))
    }

    fn over(place: Place, manager: Box<dyn Manager>, order: Option<Order>) -> Allocator {
        let blocks = FxHashMap::default();
        Allocator { place, books: Mutex::new(Books { manager, blocks, order, failure: None, broken: None }) }
    }

    /// Whose memory it serves.
    pub fn place(&self) -> Place {
        self.place
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
        let served = books.guarded(|b| {
            if let Some(order) = &mut b.order {
                order.enter(stream)?;
            }
            b.manager.alloc(bytes as u64, stream)
        });
        match served {
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
        if let Some(order) = &mut books.order {
            order.freed();
        }
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

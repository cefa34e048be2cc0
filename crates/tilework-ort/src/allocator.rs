//! A manager, or another source of memory, behind ONNX Runtime's allocator interface.

use std::any::Any;
use std::ffi::c_void;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;
use tilework::device::Calls;
use tilework::device::waiting::Wait;
use tilework::manager::{BlockId, Manager, Stream, Usage};

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

/// What an [`Allocator`] hands requests on to: memory by its addresses. Called by one thread at a time.
pub trait Source: Send {
    /// Serves a request of more than zero bytes, for work on a stream, by the handle that its provider knows it by;
    /// zero where ONNX Runtime names none. Returns the address.
    ///
    /// # Errors
    /// When that cannot be.
    fn alloc(&mut self, bytes: u64, stream: Stream) -> tilework::Result<u64>;

    /// Takes the block at `address` back, with work on its stream that uses it still queued.
    ///
    /// # Errors
    /// [`UnknownAddress`](tilework::Error::UnknownAddress) where none begins; whatever else goes wrong.
    fn free(&mut self, address: u64) -> tilework::Result<()>;

    /// As [`Manager::end_of_execution`].
    ///
    /// # Errors
    /// As there.
    fn end_of_execution(&mut self) -> tilework::Result<()>;

    /// As [`Manager::trim`].
    ///
    /// # Errors
    /// As there.
    fn trim(&mut self) -> tilework::Result<u64>;

    /// What ONNX Runtime is told when it asks.
    fn figures(&self) -> Figures;

    /// Calls of the device so far.
    fn calls(&self) -> Calls;

    /// Makes the peaks start again from what is live and held now.
    fn reset_peaks(&mut self);

    /// Panics with a description when the books contradict themselves. For tests.
    fn check_invariants(&self);
}

/// A manager as a source.
struct Managed {
    manager: Box<dyn Manager>,
    /// The block at each address that ONNX Runtime holds.
    blocks: FxHashMap<u64, BlockId>,
    /// On a GPU, where work runs later than it is queued.
    order: Option<Order>,
}

impl Source for Managed {
    fn alloc(&mut self, bytes: u64, stream: Stream) -> tilework::Result<u64> {
        if let Some(order) = &mut self.order {
            order.enter(stream)?;
        }
        let block = self.manager.alloc(bytes, stream)?;
        self.blocks.insert(block.address, block.id);
        Ok(block.address)
    }

    fn free(&mut self, address: u64) -> tilework::Result<()> {
        let id = self.blocks.remove(&address).ok_or(tilework::Error::UnknownAddress(address))?;
        if let Some(order) = &mut self.order {
            order.freed();
        }
        self.manager.free(id)
    }

    fn end_of_execution(&mut self) -> tilework::Result<()> {
        self.manager.end_of_execution()
    }

    fn trim(&mut self) -> tilework::Result<u64> {
        self.manager.trim()
    }

    fn figures(&self) -> Figures {
        let stats = self.manager.stats();
        Figures { usage: stats.usage, allocations: stats.allocations }
    }

    fn calls(&self) -> Calls {
        self.manager.device().calls()
    }

    fn reset_peaks(&mut self) {
        self.manager.reset_peaks();
    }

    fn check_invariants(&self) {
        self.manager.check_invariants();
    }
}

/// Memory that ONNX Runtime can allocate from, once it is registered with an
/// [`Environment`](crate::Environment).
///
/// To ONNX Runtime it is the allocator named `Cpu`, for the host's memory, or `Cuda`, for a GPU's.
pub struct Allocator {
    place: Place,
    books: Mutex<Books>,
}

struct Books {
    source: Box<dyn Source>,
    /// The first failure since it was last asked for: later ones are mostly its consequences.
    failure: Option<Failure>,
    /// Set once the source has panicked: its books may be wrong, so it is not asked again.
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
        // SAFETY: as this function demands.
        unsafe { Allocator::managed(Place::Cpu, manager, None) }
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
        // SAFETY: as this function demands.
        unsafe { Allocator::managed(Place::Cuda(ordinal as i32), manager, Some(Order::new(wait))) }
    }

    /// # Safety
    /// As [`Allocator::new`] where there is no order, else as [`Allocator::on_gpu`].
    unsafe fn managed(place: Place, manager: Box<dyn Manager>, order: Option<Order>) -> Allocator {
        // SAFETY: the manager's blocks are memory of the place, as this function demands, and the order has the host
        // wait before memory goes from one stream to another.
        unsafe { Allocator::over(place, Box::new(Managed { manager, blocks: FxHashMap::default(), order })) }
    }

    /// Puts any source of memory behind the interface.
    ///
    /// # Safety
    ///
    /// Each block that `source` hands out must be memory of `place`, which may be read and written for its length
    /// until it is freed or the source dropped, whenever ONNX Runtime does; no other block may overlap it meanwhile,
    /// and on a GPU what was freed must go to no other stream, and stay mapped, until the GPU has done what was
    /// queued by then.
    pub unsafe fn over(place: Place, source: Box<dyn Source>) -> Allocator {
        Allocator { place, books: Mutex::new(Books { source, failure: None, broken: None }) }
    }

    /// Whose memory it serves.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The running figures.
    pub fn usage(&self) -> Usage {
        self.books().source.figures().usage
    }

    /// Calls of the device so far.
    pub fn calls(&self) -> Calls {
        self.books().source.calls()
    }

    /// Makes the peaks start again from what is live and held now.
    pub fn reset_peaks(&self) {
        self.books().source.reset_peaks();
    }

    /// Tells that a run is over, as [`Manager::end_of_execution`].
    ///
    /// # Errors
    /// As there.
    pub fn end_of_execution(&self) -> tilework::Result<()> {
        self.books().source.end_of_execution()
    }

    /// Panics with a description when the books contradict themselves. For tests.
    pub fn check_invariants(&self) {
        self.books().source.check_invariants();
    }

    /// The first failure since this was last called, which is forgotten by this call.
    pub fn take_failure(&self) -> Option<Failure> {
        self.books().failure.take()
    }

    /// The books. A panic of the source is kept in `broken`, so a poisoned lock tells nothing new.
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// Runs `f` so that a panic in the source ends as a failure and not in ONNX Runtime's frames.
    fn guarded<R>(&mut self, f: impl FnOnce(&mut dyn Source) -> tilework::Result<R>) -> Result<R, Failure> {
        if let Some(what) = &self.broken {
            return Err(Failure::Panicked(what.clone()));
        }
        // Unwind safety: after a panic `broken` keeps everybody away from what may be half done.
        match catch_unwind(AssertUnwindSafe(|| f(&mut *self.source))) {
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
        match books.guarded(|source| source.alloc(bytes as u64, stream)) {
            Ok(address) => std::ptr::with_exposed_provenance_mut(address as usize),
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
        match books.guarded(|source| source.free(ptr.addr() as u64)) {
            Ok(()) => {}
            Err(Failure::Manager(tilework::Error::UnknownAddress(_))) => {
                tracing::error!(?ptr, "ONNX Runtime freed an address that it was never given");
            }
            Err(failure) => {
                tracing::error!(%failure, "a block could not be freed");
                books.failure.get_or_insert(failure);
            }
        }
    }

    fn figures(&self) -> Option<Figures> {
        catch_unwind(AssertUnwindSafe(|| self.books().source.figures())).ok()
    }

    fn shrink(&self) {
        if let Err(failure) = self.books().guarded(|source| source.trim()) {
            tracing::warn!(%failure, "not everything unused could be given back");
        }
    }
}

#[cfg(test)]
mod tests;

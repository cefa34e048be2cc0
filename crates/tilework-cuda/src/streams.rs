//! The streams of a GPU, by the driver's events.

use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use tilework::device::{Call, DeviceError};
use tilework::manager::Stream;
use tilework::shared::streams::{self, Mark, Streams};

use crate::driver::{self, CAPTURE_STATUS_NONE, EVENT_DISABLE_TIMING};
use crate::error::CudaError;
use crate::gpu::{Gpu, tell};

/// The streams of a GPU. A [`Stream`]'s number is the driver's `CUstream`; zero is the legacy default stream.
///
/// Callers must name streams only that exist. Events are made once and used again.
///
/// `cudaStreamPerThread` is another queue in each thread that names it. No memory can be requested for it. Of work
/// on it an event on the legacy default stream tells: that one is behind the default streams of all threads.
#[derive(Debug)]
pub struct CudaStreams {
    events: Arc<Events>,
}

/// The GPU's events that nobody uses at the moment.
#[derive(Debug)]
struct Events {
    gpu: Gpu,
    free: Mutex<Vec<Handle>>,
}

/// `CUevent`.
#[derive(Debug, Clone, Copy)]
struct Handle(driver::Event);

// SAFETY: a name that only the driver looks behind; its functions may be called from any thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// An event that was recorded once. Goes back to the free ones when dropped: a stream that was told to wait for
/// it waits for this recording, whatever is recorded later.
struct Recorded {
    event: Handle,
    events: Arc<Events>,
}

impl CudaStreams {
    /// The streams of `gpu`.
    pub fn new(gpu: Gpu) -> CudaStreams {
        CudaStreams { events: Arc::new(Events { gpu, free: Mutex::default() }) }
    }
}

impl Events {
    fn take(&self) -> Result<Handle, CudaError> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(event) = free {
            return Ok(event);
        }
        let mut event = ptr::null_mut();
        self.gpu.enter()?.call("cuEventCreate", |f| {
            // SAFETY: `event` is valid for the write.
            unsafe { (f.event_create)(&mut event, EVENT_DISABLE_TIMING) }
        })?;
        Ok(Handle(event))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let free = std::mem::take(self.free.get_mut().unwrap_or_else(PoisonError::into_inner));
        let entered = match self.gpu.enter() {
            Ok(entered) => entered,
            Err(error) => return tell(Err(error)),
        };
        for Handle(event) in free {
            // SAFETY: made by `take`, and nobody has it.
            tell(entered.call("cuEventDestroy", |f| unsafe { (f.event_destroy)(event) }));
        }
    }
}

/// `cudaStreamPerThread`.
const PER_THREAD: Stream = Stream(2);

impl Streams for CudaStreams {
    fn record(&self, stream: Stream) -> Result<streams::Event, DeviceError> {
        let record = || {
            let event = self.events.take()?;
            // From here on the event goes back, whatever comes.
            let recorded = Recorded { event, events: Arc::clone(&self.events) };
            self.events.gpu.enter()?.call("cuEventRecord", |f| {
                // SAFETY: the event is ours and alive, the stream exists, as the caller of `record` answers for.
                unsafe { (f.event_record)(event.0, recorded_on(stream)) }
            })?;
            Ok(recorded)
        };
        record().map(|recorded| Arc::new(recorded) as streams::Event).map_err(order)
    }

    fn is_capturing(&self, stream: Stream) -> bool {
        let mut status = CAPTURE_STATUS_NONE;
        let asked = self.events.gpu.enter().and_then(|entered| {
            entered.call("cuStreamIsCapturing", |f| {
                // SAFETY: `status` is valid for the write; the stream exists, as the caller answers for.
                unsafe { (f.stream_is_capturing)(recorded_on(stream), &mut status) }
            })
        });
        // The legacy default stream cannot be asked while another that waits for it is captured: then nothing
        // may be queued on it either. Whoever is told that a stream is captured only comes back later.
        asked.is_err() || status != CAPTURE_STATUS_NONE
    }

    fn refusal(&self, stream: Stream) -> Option<&'static str> {
        let reason =
            "cudaStreamPerThread is another stream in every thread: name one made by cudaStreamCreate";
        (stream == PER_THREAD).then_some(reason)
    }

    fn synchronize_device(&self) -> Result<(), DeviceError> {
        let synchronize = || {
            // SAFETY: no arguments; the context is current.
            self.events.gpu.enter()?.call("cuCtxSynchronize", |f| unsafe { (f.ctx_synchronize)() })
        };
        synchronize().map_err(order)
    }
}

impl Recorded {
    fn call(
        &self,
        name: &'static str,
        call: impl FnOnce(&driver::Functions) -> driver::Code,
    ) -> Result<(), CudaError> {
        self.events.gpu.enter()?.call(name, call)
    }
}

impl Mark for Recorded {
    fn wait(&self, stream: Stream) -> Result<(), DeviceError> {
        let waits = self.call("cuStreamWaitEvent", |f| {
            // SAFETY: the event is alive while `self` is; the stream exists, as the caller answers for.
            unsafe { (f.stream_wait_event)(handle(stream), self.event.0, 0) }
        });
        waits.map_err(order)
    }

    fn passed(&self) -> bool {
        // SAFETY: the event is alive while `self` is.
        self.call("cuEventQuery", |f| unsafe { (f.event_query)(self.event.0) }).is_ok()
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        // SAFETY: the event is alive while `self` is.
        self.call("cuEventSynchronize", |f| unsafe { (f.event_synchronize)(self.event.0) }).map_err(order)
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        self.events.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.event);
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Recorded").field(&self.event).finish()
    }
}

/// The stream whose events stand behind all that is queued on `stream`, by whatever thread.
fn recorded_on(stream: Stream) -> driver::Stream {
    handle(if stream == PER_THREAD { Stream(0) } else { stream })
}

fn handle(stream: Stream) -> driver::Stream {
    ptr::with_exposed_provenance_mut(stream.0 as usize)
}

fn order(error: CudaError) -> DeviceError {
    error.failed(Call::Order)
}

#[cfg(all(test, target_os = "linux"))]
mod tests;

//! What the front needs to know of streams: where their work has got to.

use std::fmt;
use std::sync::Arc;

use super::transfers::Transfers;
use crate::device::DeviceError;
use crate::manager::Stream;

/// A place in the work queued on a stream: reached once everything queued before it has run.
/// Copies are the same place. What it takes of the driver goes back when the last copy is dropped.
pub type Event = Arc<dyn Mark>;

/// What can be done with an [`Event`].
pub trait Mark: Send + Sync + fmt::Debug {
    /// Lets all work queued on `stream` from now on wait for the place. The host does not wait.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] when the driver refuses; nothing waits then.
    fn wait(&self, stream: Stream) -> Result<(), DeviceError>;

    /// Whether the place has been reached. Never waits; false when the driver cannot tell.
    fn passed(&self) -> bool;

    /// Waits on the host until the place has been reached.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] when the driver refuses; the place may not have been reached then.
    fn synchronize(&self) -> Result<(), DeviceError>;
}

/// The streams of a device. Every method may be called from any thread.
pub trait Streams: Send + Sync {
    /// Marks the end of what is queued on `stream` now. The caller makes sure that the stream exists and
    /// is not being captured.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] when the driver refuses.
    fn record(&self, stream: Stream) -> Result<Event, DeviceError>;

    /// Whether work queued on `stream` goes into a graph at present and not to the device: then nothing
    /// may be recorded on it or asked of it.
    fn is_capturing(&self, stream: Stream) -> bool;

    /// Why no memory can be requested for a stream of this name, if that is so: it has to name one queue, in which
    /// what is done with a block comes before what is done with the next.
    fn refusal(&self, _stream: Stream) -> Option<&'static str> {
        None
    }

    /// Waits on the host for all work of the device, of streams that nobody told of too.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] when the driver refuses, as it does while a stream is being captured.
    fn synchronize_device(&self) -> Result<(), DeviceError>;

    /// The device's own way of copying to and from host memory beside other work; `None` where
    /// [`Device::read`](crate::device::Device::read) and [`write`](crate::device::Device::write) are all there is.
    fn transfers(&self) -> Option<&dyn Transfers> {
        None
    }
}

/// The streams of a device on which everything has happened when the call returns: the host, simulations.
#[derive(Debug, Clone, Copy, Default)]
pub struct InOrder;

impl Streams for InOrder {
    fn record(&self, _: Stream) -> Result<Event, DeviceError> {
        Ok(Arc::new(InOrder))
    }

    fn is_capturing(&self, _: Stream) -> bool {
        false
    }

    fn synchronize_device(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

impl Mark for InOrder {
    fn wait(&self, _: Stream) -> Result<(), DeviceError> {
        Ok(())
    }

    fn passed(&self) -> bool {
        true
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// The last of several places to be reached.
impl Mark for Vec<Event> {
    fn wait(&self, stream: Stream) -> Result<(), DeviceError> {
        self.iter().try_for_each(|event| event.wait(stream))
    }

    fn passed(&self) -> bool {
        self.iter().all(|event| event.passed())
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.iter().try_for_each(|event| event.synchronize())
    }
}

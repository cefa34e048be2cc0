//! The order between the streams that a GPU's manager serves.

use tilework::device::DeviceError;
use tilework::device::waiting::Wait;
use tilework::manager::Stream;

/// Lets one manager, which knows of one queue, serve requests for several streams.
///
/// What is freed may still be in use by work queued so far. On the stream of the request before, later work comes
/// behind that; before the memory goes to another stream, the host waits for the device. Nobody knows the order of
/// requests that name no stream, so each of them is one for another stream.
///
/// A run of a session has one stream, and what names none comes when it begins or is loaded: while a run goes on,
/// nothing waits.
pub(crate) struct Order {
    wait: Wait,
    /// The stream of the last request.
    last: Stream,
    /// Whether anything was freed since the device was waited for.
    freed: bool,
}

impl Order {
    pub fn new(wait: Wait) -> Order {
        Order { wait, last: Stream::default(), freed: false }
    }

    /// Called before a request for `stream` is served.
    pub fn enter(&mut self, stream: Stream) -> Result<(), DeviceError> {
        if self.freed && (stream != self.last || stream == Stream::default()) {
            (self.wait)()?;
            self.freed = false;
        }
        self.last = stream;
        Ok(())
    }

    /// Called when a block is freed.
    pub fn freed(&mut self) {
        self.freed = true;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tilework::device::Call;

    use super::*;

    #[test]
    fn memory_goes_to_another_stream_behind_a_wait_and_to_its_own_without() {
        let waits = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&waits);
        let mut order = Order::new(Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }));
        let waited = |order: &mut Order, free: bool, stream: u64| {
            if free {
                order.freed();
            }
            order.enter(Stream(stream)).unwrap();
            waits.swap(0, Ordering::Relaxed)
        };
        assert_eq!(waited(&mut order, false, 7), 0, "nothing was freed yet");
        assert_eq!(waited(&mut order, true, 7), 0, "its own");
        assert_eq!(waited(&mut order, false, 8), 1, "freed by 7");
        assert_eq!(waited(&mut order, false, 7), 0, "nothing was freed since");
        assert_eq!(waited(&mut order, true, 0), 1, "a stream nobody knows");
        assert_eq!(waited(&mut order, true, 0), 1, "and the next may be another one");
    }

    #[test]
    fn what_could_not_be_waited_for_is_waited_for_again() {
        let mut order =
            Order::new(Box::new(|| Err(DeviceError::Failed { call: Call::Order, reason: "busy".into() })));
        order.freed();
        for _ in 0..2 {
            assert!(order.enter(Stream(1)).is_err());
        }
    }
}

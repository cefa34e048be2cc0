//! Streams and events as queues that a test can hold back.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_void;

use crate::driver::{Address, Code, Event, INVALID_HANDLE, Stream};

/// The queues. Streams and events are numbered on from what the driver has names for; the default stream is number
/// zero and always is.
pub(super) struct Streams {
    next: usize,
    streams: BTreeMap<usize, Queue>,
    events: BTreeMap<usize, Recorded>,
}

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    held: bool,
    capturing: bool,
    /// Destroyed, and gone once its work has run.
    closed: bool,
}

/// How often an event was recorded, and which of these has been reached.
#[derive(Default)]
struct Recorded {
    asked: u64,
    reached: u64,
}

enum Work {
    Kernel {
        /// What it uses: first address and the one behind.
        uses: (Address, Address),
    },
    Record {
        event: usize,
        time: u64,
    },
    Wait {
        event: usize,
        time: u64,
    },
    Host(HostCall),
}

/// A function to be called on the host.
pub(super) struct HostCall {
    pub function: unsafe extern "system" fn(*mut c_void),
    pub data: *mut c_void,
}

// SAFETY: whoever queues a host function answers for its being called on another thread, as CUDA says.
unsafe impl Send for HostCall {}

impl HostCall {
    pub fn call(self) {
        // SAFETY: queued with this argument by a caller of `cuLaunchHostFunc`.
        unsafe { (self.function)(self.data) }
    }
}

/// `CU_STREAM_PER_THREAD`, the last of the driver's own names.
const LAST_NAME: usize = 2;

impl Default for Streams {
    fn default() -> Streams {
        Streams { next: LAST_NAME, streams: BTreeMap::new(), events: BTreeMap::new() }
    }
}

impl Streams {
    pub fn create(&mut self) -> Stream {
        self.next += 1;
        self.streams.insert(self.next, Queue::default());
        std::ptr::without_provenance_mut(self.next)
    }

    pub fn destroy(&mut self, stream: Stream) -> Result<(), Code> {
        self.check(stream)?;
        self.queue(stream).closed = true;
        Ok(())
    }

    pub fn create_event(&mut self) -> Event {
        self.next += 1;
        self.events.insert(self.next, Recorded::default());
        std::ptr::without_provenance_mut(self.next)
    }

    pub fn destroy_event(&mut self, event: Event) -> Result<(), Code> {
        // What waits for it still does in a real driver; here it counts as reached.
        self.events.remove(&event.addr()).map(drop).ok_or(INVALID_HANDLE)
    }

    pub fn record(&mut self, event: Event, stream: Stream) -> Result<(), Code> {
        self.check(stream)?;
        let recorded = self.events.get_mut(&event.addr()).ok_or(INVALID_HANDLE)?;
        recorded.asked += 1;
        let time = recorded.asked;
        self.queue(stream).work.push_back(Work::Record { event: event.addr(), time });
        Ok(())
    }

    pub fn wait(&mut self, stream: Stream, event: Event) -> Result<(), Code> {
        self.check(stream)?;
        let time = self.events.get(&event.addr()).ok_or(INVALID_HANDLE)?.asked;
        self.queue(stream).work.push_back(Work::Wait { event: event.addr(), time });
        Ok(())
    }

    pub fn launch(&mut self, stream: Stream) {
        self.launch_using(stream, 0, 0);
    }

    pub fn launch_using(&mut self, stream: Stream, address: Address, bytes: u64) {
        self.queue(stream).work.push_back(Work::Kernel { uses: (address, address + bytes) });
    }

    /// Whether work that has not run uses any of these addresses.
    pub fn use_any_of(&self, address: Address, bytes: u64) -> bool {
        let mut work = self.streams.values().flat_map(|queue| &queue.work);
        work.any(|work| match *work {
            Work::Kernel { uses: (from, to) } => from < address + bytes && address < to && from < to,
            _ => false,
        })
    }

    pub fn launch_host(&mut self, stream: Stream, call: HostCall) -> Result<(), Code> {
        self.check(stream)?;
        self.queue(stream).work.push_back(Work::Host(call));
        Ok(())
    }

    /// Whether all that was queued has run. A stream that is no more has nothing queued.
    pub fn is_done(&self, stream: Stream) -> bool {
        self.streams.get(&stream.addr()).is_none_or(|queue| queue.work.is_empty())
    }

    /// Whether all that was queued on any stream has run.
    pub fn all_done(&self) -> bool {
        self.streams.values().all(|queue| queue.work.is_empty())
    }

    /// Whether the latest recording has been reached; true for one that was never recorded.
    pub fn is_reached(&self, event: Event) -> Result<bool, Code> {
        let recorded = self.events.get(&event.addr()).ok_or(INVALID_HANDLE)?;
        Ok(recorded.reached == recorded.asked)
    }

    pub fn check(&self, stream: Stream) -> Result<(), Code> {
        let known = stream.is_null() || self.streams.get(&stream.addr()).is_some_and(|queue| !queue.closed);
        if known { Ok(()) } else { Err(INVALID_HANDLE) }
    }

    pub fn hold(&mut self, stream: Stream, held: bool) {
        self.queue(stream).held = held;
    }

    pub fn capture(&mut self, stream: Stream, on: bool) {
        self.queue(stream).capturing = on;
    }

    pub fn is_capturing(&self, stream: Stream) -> bool {
        self.streams.get(&stream.addr()).is_some_and(|queue| queue.capturing)
    }

    pub fn any_capturing(&self) -> bool {
        self.streams.values().any(|queue| queue.capturing)
    }

    /// Runs what may run until a host function is to be called, which is returned.
    pub fn run(&mut self) -> Option<HostCall> {
        loop {
            let mut moved = false;
            for queue in self.streams.values_mut() {
                while let Some(work) = queue.work.front().filter(|_| !queue.held) {
                    if let Work::Wait { event, time } = work
                        && self.events.get(event).is_some_and(|recorded| recorded.reached < *time)
                    {
                        break;
                    }
                    moved = true;
                    match queue.work.pop_front().expect("seen above") {
                        Work::Kernel { .. } | Work::Wait { .. } => {}
                        Work::Record { event, time } => {
                            if let Some(recorded) = self.events.get_mut(&event) {
                                recorded.reached = recorded.reached.max(time);
                            }
                        }
                        Work::Host(call) => return Some(call),
                    }
                }
            }
            self.streams.retain(|_, queue| !(queue.closed && queue.work.is_empty()));
            if !moved {
                return None;
            }
        }
    }

    fn queue(&mut self, stream: Stream) -> &mut Queue {
        self.streams.entry(stream.addr()).or_default()
    }
}

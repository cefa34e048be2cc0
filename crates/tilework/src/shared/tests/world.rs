//! Streams whose work a test holds back, and a device that knows what that work uses.
//!
//! Each use of memory is one step of a stream. What a stream is ordered behind is a clock: for each stream the
//! step up to which all has happened before what is queued next. An event is a copy of such a clock, a wait
//! joins one to another, and what the host has seen to be over is joined to all. Two uses of the same physical
//! memory by two streams of which neither clock knows the other are a race, and an unmapping of an address
//! whose last use is not over is a fault. Both panic.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device::forward::forward;
use crate::device::{Call, Device, DeviceError, Range, RangeId};
use crate::manager::Stream;
use crate::shared::streams::{Event, Mark, Streams};
use crate::shared::transfers::{Staging, Transfers};
use crate::testing::Checked;
use crate::testing::checked::{Extent, Witness};

type Clock = BTreeMap<u64, u64>;

/// The hand on the streams and the device. Copies are the same world.
#[derive(Clone, Default)]
pub struct World(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Steps queued on each stream.
    queued: Clock,
    /// Steps of each stream that are over.
    over: Clock,
    /// What each stream's next step comes behind.
    clocks: BTreeMap<u64, Clock>,
    /// What the host knows to be over.
    host: Clock,
    capturing: BTreeSet<u64>,
    gone: BTreeSet<u64>,
    uses: Vec<Use>,
    /// (waiting stream, stream of the event) of each wait, in order.
    waits: Vec<(u64, u64)>,
    host_waits: usize,
    recorded: usize,
    asked: usize,
    witness: Option<Witness>,
    /// Copies that are still taken before one is refused.
    copies: Option<usize>,
    /// Bytes of buffers of the host.
    buffers: usize,
}

/// The stream that stands for the device's own queue of copies.
pub const BUS: Stream = Stream(0xb5);

struct Use {
    stream: u64,
    step: u64,
    address: u64,
    bytes: u64,
    extents: Vec<Extent>,
}

impl Use {
    fn is_over(&self, over: &Clock) -> bool {
        over.get(&self.stream).is_some_and(|&step| step >= self.step)
    }
}

fn join(into: &mut Clock, other: &Clock) {
    for (&stream, &step) in other {
        let known = into.entry(stream).or_default();
        *known = step.max(*known);
    }
}

fn overlap(a: &[Extent], b: &[Extent]) -> bool {
    let touch = |a: &Extent, b: &Extent| {
        a.heap == b.heap && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes
    };
    a.iter().any(|a| b.iter().any(|b| touch(a, b)))
}

impl State {
    /// What comes before the next step of a stream.
    fn clock(&mut self, stream: u64) -> Clock {
        let State { clocks, host, queued, .. } = self;
        let clock = clocks.entry(stream).or_default();
        join(clock, host);
        if let Some(&step) = queued.get(&stream) {
            clock.insert(stream, step);
        }
        clock.clone()
    }

    /// Everything up to a clock is over.
    fn finish(&mut self, clock: &Clock) {
        join(&mut self.over, clock);
        let over = &self.over;
        self.uses.retain(|u| !u.is_over(over) || u.step + 64 > over[&u.stream]);
    }

    fn is_over(&self, clock: &Clock) -> bool {
        clock.iter().all(|(stream, step)| self.over.get(stream).copied().unwrap_or(0) >= *step)
    }

    fn check(&self, stream: u64, what: &str) {
        assert!(!self.gone.contains(&stream), "{what} on stream {stream}, which is no more");
        assert!(!self.capturing.contains(&stream), "{what} on stream {stream}, which is being captured");
    }
}

impl World {
    /// A world in which work waits until a test lets it run.
    pub fn new() -> World {
        World::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The streams, for a front.
    pub fn streams(&self) -> Box<dyn Streams> {
        Box::new(Scripted(self.clone()))
    }

    /// `device`, watched.
    pub fn device(&self, device: Box<dyn Device>) -> (Box<dyn Device>, Witness) {
        let (inner, witness) = Checked::over(device);
        self.state().witness = Some(witness.clone());
        (Box::new(Timed { inner, world: self.clone(), ranges: BTreeMap::new() }), witness)
    }

    /// Whether no device and no streams of it are left.
    pub fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Bytes of buffers of the host that were made and not given back.
    pub fn buffer_bytes(&self) -> u64 {
        self.state().buffers as u64
    }

    /// Queues work on `stream` that uses memory.
    pub fn launch(&self, stream: Stream, address: u64, bytes: u64, witness: &Witness) {
        let extents = witness.resolve(address, bytes).expect("memory that is used is mapped");
        let state = &mut *self.state();
        let clock = state.clock(stream.0);
        for earlier in &state.uses {
            let before = clock.get(&earlier.stream).is_some_and(|&step| step >= earlier.step);
            assert!(
                before || !overlap(&earlier.extents, &extents),
                "a race: stream {} uses memory at {address:#x} that stream {} used at {:#x}, clock {clock:?}, step {}",
                stream.0,
                earlier.stream,
                earlier.address,
                earlier.step,
            );
        }
        let step = state.queued.entry(stream.0).or_default();
        *step += 1;
        let step = *step;
        state.uses.push(Use { stream: stream.0, step, address, bytes, extents });
    }

    /// An ordering of the program's own: `stream` waits for all that is queued on `other`.
    pub fn order(&self, stream: Stream, other: Stream) {
        let state = &mut *self.state();
        let clock = state.clock(other.0);
        join(state.clocks.entry(stream.0).or_default(), &clock);
    }

    /// Lets all that is queued on `stream` run, with all it waits for.
    pub fn run(&self, stream: Stream) {
        let state = &mut *self.state();
        let clock = state.clock(stream.0);
        state.finish(&clock);
    }

    pub fn capture(&self, stream: Stream, on: bool) {
        let capturing = &mut self.state().capturing;
        if on {
            capturing.insert(stream.0)
        } else {
            capturing.remove(&stream.0)
        };
    }

    /// From now on a use of the stream is a defect.
    pub fn destroy(&self, stream: Stream) {
        self.state().gone.insert(stream.0);
    }

    /// The waits of one stream for another since this was asked last.
    pub fn waits(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.state().waits)
    }

    /// How often the host has waited.
    pub fn host_waits(&self) -> usize {
        self.state().host_waits
    }

    /// How often an event was asked whether it has passed.
    pub fn asked(&self) -> usize {
        self.state().asked
    }

    /// Refuses all copies through buffers but the next `copies`; `None` takes all.
    pub fn limit_copies(&self, copies: Option<usize>) {
        self.state().copies = copies;
    }

    /// Whether all that was queued on `stream` is over.
    pub fn is_idle(&self, stream: Stream) -> bool {
        let state = &mut *self.state();
        let clock = state.clock(stream.0);
        state.is_over(&clock)
    }

    /// How many events were recorded.
    pub fn recorded(&self) -> usize {
        self.state().recorded
    }
}

struct Scripted(World);

impl Streams for Scripted {
    fn record(&self, stream: Stream) -> Result<Event, DeviceError> {
        let state = &mut *self.0.state();
        state.check(stream.0, "an event");
        state.recorded += 1;
        let clock = state.clock(stream.0);
        Ok(Arc::new(Place { world: self.0.clone(), stream: stream.0, clock }))
    }

    fn is_capturing(&self, stream: Stream) -> bool {
        let state = self.0.state();
        assert!(!state.gone.contains(&stream.0), "stream {} is asked, which is no more", stream.0);
        state.capturing.contains(&stream.0)
    }

    fn synchronize_device(&self) -> Result<(), DeviceError> {
        let state = &mut *self.0.state();
        assert!(state.capturing.is_empty(), "the device is waited for during a capture");
        state.host_waits += 1;
        let all = state.queued.clone();
        state.finish(&all);
        join(&mut state.host, &all);
        Ok(())
    }

    fn transfers(&self) -> Option<&dyn Transfers> {
        Some(self)
    }
}

impl Transfers for Scripted {
    fn staging(&self, bytes: usize) -> Result<Box<dyn Staging>, DeviceError> {
        self.0.state().buffers += bytes;
        Ok(Box::new(Buffer { world: self.0.clone(), contents: vec![0; bytes], last: None }))
    }
}

/// A buffer through which nothing really travels; what its copies use, and when, is all there is to it.
struct Buffer {
    world: World,
    contents: Vec<u8>,
    /// Behind the last of its own copies.
    last: Option<Event>,
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a buffer of {} bytes", self.contents.len())
    }
}

impl Buffer {
    /// One queue for both directions, on which nothing else is ordered.
    fn copy(&mut self, address: u64, bytes: usize) -> Result<(), DeviceError> {
        if let Some(copies) = &mut self.world.state().copies {
            let refused = DeviceError::Failed { call: Call::Read, reason: "copies are refused".into() };
            *copies = copies.checked_sub(1).ok_or(refused)?;
        }
        let witness = self.world.state().witness.clone().expect("a device");
        self.world.launch(BUS, address, bytes as u64, &witness);
        self.last = Some(Scripted(self.world.clone()).record(BUS)?);
        Ok(())
    }
}

impl Staging for Buffer {
    fn bytes(&self) -> usize {
        self.contents.len()
    }

    fn download(&mut self, _: usize, address: u64, bytes: usize) -> Result<(), DeviceError> {
        self.copy(address, bytes)
    }

    fn upload(&mut self, _: usize, address: u64, bytes: usize) -> Result<(), DeviceError> {
        self.copy(address, bytes)
    }

    fn mark(&mut self) -> Result<Event, DeviceError> {
        self.last
            .clone()
            .ok_or(DeviceError::Failed { call: Call::Order, reason: "nothing was copied".into() })
    }

    fn contents(&mut self) -> Result<&mut [u8], DeviceError> {
        if let Some(last) = &self.last {
            last.synchronize()?;
        }
        Ok(&mut self.contents)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.contents().expect("copies end");
        self.world.state().buffers -= self.contents.len();
    }
}

struct Place {
    world: World,
    stream: u64,
    clock: Clock,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "event on stream {} at {:?}", self.stream, self.clock)
    }
}

impl Mark for Place {
    fn wait(&self, stream: Stream) -> Result<(), DeviceError> {
        let state = &mut *self.world.state();
        state.check(stream.0, "a wait");
        state.waits.push((stream.0, self.stream));
        join(state.clocks.entry(stream.0).or_default(), &self.clock);
        Ok(())
    }

    fn passed(&self) -> bool {
        let state = &mut *self.world.state();
        state.asked += 1;
        let over = state.is_over(&self.clock);
        if over {
            join(&mut state.host, &self.clock);
        }
        over
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        let state = &mut *self.world.state();
        state.host_waits += 1;
        state.finish(&self.clock);
        join(&mut state.host, &self.clock);
        Ok(())
    }
}

/// Refuses, by a panic, to unmap what queued work uses.
struct Timed {
    inner: Box<dyn Device>,
    world: World,
    ranges: BTreeMap<RangeId, Range>,
}

impl Drop for Timed {
    fn drop(&mut self) {
        assert!(
            std::thread::panicking() || self.world.is_idle(BUS),
            "the device goes while copies are under way"
        );
    }
}

impl Device for Timed {
    forward!(|this| this.inner =>
        name, caps, unreserve, create, create_on_host, release, map, set_access, add_peer, calls, held_bytes,
        free_bytes, ready
    );

    fn reserve(&mut self, bytes: u64) -> Result<Range, DeviceError> {
        let range = self.inner.reserve(bytes)?;
        self.ranges.insert(range.id, range);
        Ok(range)
    }

    fn unmap(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        let start = self.ranges[&range].address + offset;
        let state = self.world.state();
        for queued in state.uses.iter().filter(|u| !u.is_over(&state.over)) {
            let apart = queued.address + queued.bytes <= start || start + bytes <= queued.address;
            assert!(apart, "unmapped {start:#x} while stream {} uses {:#x}", queued.stream, queued.address);
        }
        drop(state);
        self.inner.unmap(range, offset, bytes)
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), DeviceError> {
        Err(DeviceError::Failed { call: Call::Read, reason: "not in these tests".into() })
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), DeviceError> {
        Err(DeviceError::Failed { call: Call::Write, reason: "not in these tests".into() })
    }
}

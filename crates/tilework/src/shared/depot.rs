//! The one device behind all lanes, and the order in which memory leaves one lane and enters another.
//!
//! ```text
//!   lane A's pool ──unmap, release──►  late: A's event has not passed  ──►  stock ──create──► lane B's pool
//!                                        │ passed                            │
//!                                        ▼                                   ▼ trim, age, want of memory
//!                                      unmapped                            released to the device
//! ```
//!
//! A pool believes that what it unmaps is unmapped. Here an unmapping waits, without the host, for an event
//! recorded on the lane's stream. A heap that was released goes to the *stock* and from there to whichever
//! pool next creates one: a heap may be mapped at a second address while the first is still in use, so the
//! next lane need not wait for the unmapping, but its stream must wait for the event.

mod aging;
mod at_once;
mod door;
mod home;

use aging::Aging;
use at_once::AtOnce;
pub(super) use door::Door;
pub(super) use home::Home;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustc_hash::FxHashSet;

use super::lane::Key;
use super::streams::{Event, InOrder, Streams};
use super::transfers::Staging;
use crate::device::{Bind, Call, Calls, Caps, Device, DeviceError, HeapId, Range, RangeId};
use crate::error::Error;
use crate::manager::{Stream, Usage};

/// An unmapping that waits for its event.
struct Late {
    range: RangeId,
    offset: u64,
    bytes: u64,
    /// What is mapped there, and cannot be released before.
    heaps: Vec<HeapId>,
    home: Arc<Home>,
    /// None: it could not be recorded yet.
    event: Option<Event>,
}

/// A heap that no lane has.
struct Stocked {
    heap: HeapId,
    /// The lane that had it.
    home: Arc<Home>,
    /// Behind which its last uses lie. None: it could not be recorded yet.
    event: Option<Event>,
    /// The execution in which it came. None: it has grown old with its lane already.
    since: Option<u64>,
    /// It lies on the host: nobody is to have it but who would have none otherwise, and making one is very dear.
    spilled: bool,
}

impl Stocked {
    fn has_passed(&self) -> bool {
        self.event.as_ref().is_some_and(|event| event.passed())
    }

    /// Whether it came before execution `old`, or has grown old with its lane.
    fn is_old(&self, old: u64) -> bool {
        self.since.is_none_or(|since| since < old)
    }
}

/// Address space that a lane has reserved.
#[derive(Clone, Copy)]
struct Reserved {
    range: Range,
    key: Key,
}

/// The device, shared.
pub(super) struct Depot {
    name: &'static str,
    caps: Caps,
    can_spill: bool,
    streams: Box<dyn Streams>,
    /// What stands for an event where nothing is left to wait for.
    done: Event,
    /// Graphs' pools that are open: while one is, a capture may be under way somewhere.
    open_pools: Arc<AtomicUsize>,
    state: Mutex<State>,
    /// In address order.
    ranges: RwLock<Vec<Reserved>>,
    /// Bytes that may be held; no limit is the largest number.
    limit: AtomicU64,
    /// Heaps may be on the host where nothing else is left.
    spills: AtomicBool,
    books: Sums,
    aging: Aging,
}

/// Written with the device's lock held, read without.
#[derive(Default)]
struct Sums {
    held: AtomicU64,
    peak_held: AtomicU64,
    mapped: AtomicU64,
    reserved: AtomicU64,
    stock: AtomicU64,
    /// Of heaps on the host, which are not among what is held.
    spilled: AtomicU64,
    /// How many such heaps were ever made.
    spills_made: AtomicU64,
    /// Of all lanes. Written with theirs.
    pending: AtomicU64,
}

struct State {
    device: Box<dyn Device>,
    /// By length, the one that came last at the end.
    stock: BTreeMap<u64, Vec<Stocked>>,
    /// In the order in which they came.
    late: Vec<Late>,
    /// To be given back once nothing in them is late.
    unreserve: Vec<Range>,
    /// Executions that have ended.
    executions: u64,
    /// What came to the stock before this execution is old.
    old: u64,
    /// A thread gives it back.
    giving: bool,
    /// The heaps that are on the host.
    spilled: FxHashSet<HeapId>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under these locks is complete before anything in it could panic, or is checked again by
    // the next to come; going on beats taking the memory of a whole process away.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add(to: &AtomicU64, bytes: u64) -> u64 {
    to.fetch_add(bytes, Ordering::Relaxed) + bytes
}

fn take(from: &AtomicU64, bytes: u64) {
    from.fetch_sub(bytes, Ordering::Relaxed);
}

impl Depot {
    /// Over `device`, of which tiles are mapped elsewhere only where `tiling`.
    pub fn new(
        device: Box<dyn Device>,
        streams: Box<dyn Streams>,
        open_pools: Arc<AtomicUsize>,
        tiling: bool,
    ) -> Depot {
        let state = State {
            stock: BTreeMap::new(),
            late: Vec::new(),
            unreserve: Vec::new(),
            executions: 0,
            old: 0,
            giving: false,
            spilled: FxHashSet::default(),
            device,
        };
        Depot {
            name: state.device.name(),
            can_spill: tiling && state.device.caps().host_heaps,
            // Lanes ask for memory, and the depot decides where it is.
            caps: Caps { host_heaps: false, tiling, ..state.device.caps().clone() },
            streams,
            done: Arc::new(InOrder),
            open_pools,
            state: Mutex::new(state),
            ranges: RwLock::default(),
            limit: AtomicU64::new(u64::MAX),
            spills: AtomicBool::new(false),
            books: Sums::default(),
            aging: Aging::default(),
        }
    }

    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    pub fn streams(&self) -> &dyn Streams {
        &*self.streams
    }

    /// Whether what is in memory can be copied at all.
    pub fn has_contents(&self) -> bool {
        self.caps.memory || self.streams.transfers().is_some()
    }

    /// A buffer of host memory that the device copies to and from.
    pub fn staging(self: &Arc<Self>, bytes: usize) -> Result<Box<dyn Staging>, DeviceError> {
        match self.streams.transfers() {
            Some(transfers) => transfers.staging(bytes),
            None => Ok(Box::new(AtOnce::new(Arc::clone(self), bytes)?)),
        }
    }

    /// Marks what is queued on a lane's stream; the same mark throughout one operation of the lane. `None`
    /// while that is not possible or not allowed.
    pub fn mark(&self, home: &Home) -> Option<Event> {
        if home.is_pinned() {
            return None;
        }
        let mut mark = lock(&home.mark);
        if mark.is_none() {
            *mark = self.last_uses(home);
        }
        mark.clone()
    }

    /// An event behind all that was queued with a lane's memory. Its stream exists, or is an orphan, or is a
    /// guest: that one may be gone, so that only the whole device can be waited for, which takes the host.
    fn last_uses(&self, home: &Home) -> Option<Event> {
        if home.is_orphan() {
            return Some(Arc::clone(&self.done));
        }
        if !home.key.is_guest() {
            return self.record(home.stream());
        }
        if self.is_capturing(home) {
            return None;
        }
        let waited = self.streams.synchronize_device();
        let waited = waited.inspect_err(|error| tracing::warn!(%error, "the device could not be waited for"));
        waited.ok().map(|()| Arc::clone(&self.done))
    }

    /// Marks what is queued on a stream. `None` while it is being captured, and when the driver refuses,
    /// which is logged: it is asked again later.
    pub fn record(&self, stream: Stream) -> Option<Event> {
        if self.streams.is_capturing(stream) {
            return None;
        }
        let recorded = self.streams.record(stream);
        recorded.inspect_err(|error| tracing::warn!(%error, stream = stream.0, "no event was recorded")).ok()
    }

    /// Whether a lane's stream can be asked for nothing because of a capture. To wait for the device, as
    /// guests have to, would break one on any stream.
    pub fn is_capturing(&self, home: &Home) -> bool {
        if home.key.is_guest() {
            self.open_pools.load(Ordering::Relaxed) != 0
        } else {
            !home.is_orphan() && self.streams.is_capturing(home.stream())
        }
    }

    /// Whether work may be queued on a lane's stream, and would run.
    pub fn can_queue(&self, home: &Home) -> bool {
        !home.is_orphan() && !home.is_pinned() && !home.key.is_guest() && !self.is_capturing(home)
    }

    /// Whether a lane may give anything back at present.
    pub fn may_give(&self, home: &Home) -> bool {
        !home.is_pinned() && !home.is_away() && !self.is_capturing(home)
    }

    /// An event that has passed.
    pub fn done(&self) -> Event {
        Arc::clone(&self.done)
    }

    /// The lane in whose address space `address` lies.
    pub fn lane_at(&self, address: u64) -> Option<Key> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let before = ranges.partition_point(|r| r.range.address <= address);
        let Reserved { range, key } = *ranges.get(before.checked_sub(1)?)?;
        (address - range.address < range.bytes).then_some(key)
    }

    /// The first and the last address of each range of a lane's.
    pub fn addresses(&self, key: Key) -> Vec<(u64, u64)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let own = ranges.iter().filter(|reserved| reserved.key == key);
        own.map(|reserved| (reserved.range.address, reserved.range.address + reserved.range.bytes - 1))
            .collect()
    }

    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        lock(&self.state).device.read(address, out)
    }

    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        lock(&self.state).device.write(address, bytes)
    }

    pub fn add_peer(&self, peer: u32) -> Result<(), DeviceError> {
        lock(&self.state).device.add_peer(peer)
    }

    pub fn set_limit(&self, bytes: Option<u64>) {
        self.limit.store(bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
        let mut state = lock(&self.state);
        let over = self.over_limit(0);
        if over > 0
            && let Err(error) = self.settle(&mut state).and(self.release(&mut state, over, |_| true))
        {
            tracing::warn!(%error, "device memory could not be given back: it stays held and is tried again");
        }
    }

    /// Lets heaps be on the host where nothing else is left, or no longer. False where the device has no such heaps.
    pub fn set_spill(&self, spills: bool) -> bool {
        let can = self.can_spill || !spills;
        self.spills.store(spills && can, Ordering::Relaxed);
        can
    }

    pub fn spills(&self) -> bool {
        self.spills.load(Ordering::Relaxed)
    }

    /// Bytes of heaps that are on the host.
    pub fn spilled_bytes(&self) -> u64 {
        self.books.spilled.load(Ordering::Relaxed)
    }

    /// How many heaps were ever made on the host.
    pub fn spills_made(&self) -> u64 {
        self.books.spills_made.load(Ordering::Relaxed)
    }

    /// Bytes that may be held, by the limit and by the device.
    pub fn limit(&self) -> Option<u64> {
        let limit = self.limit.load(Ordering::Relaxed).min(self.caps.capacity_bytes.unwrap_or(u64::MAX));
        (limit != u64::MAX).then_some(limit)
    }

    /// The figures that the device's calls give; the rest is zero.
    pub fn usage(&self) -> Usage {
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let held = read(&self.books.held);
        Usage {
            held,
            peak_held: read(&self.books.peak_held).max(held),
            mapped: read(&self.books.mapped),
            reserved: read(&self.books.reserved),
            ..Usage::default()
        }
    }

    pub fn stock_bytes(&self) -> u64 {
        self.books.stock.load(Ordering::Relaxed)
    }

    pub fn pending_bytes(&self) -> u64 {
        self.books.pending.load(Ordering::Relaxed)
    }

    /// A block of a lane waits for other streams.
    pub fn add_pending(&self, bytes: u64) {
        add(&self.books.pending, bytes);
    }

    /// A block of a lane waits no longer.
    pub fn take_pending(&self, bytes: u64) {
        take(&self.books.pending, bytes);
    }

    pub fn calls(&self) -> Calls {
        lock(&self.state).device.calls()
    }

    pub fn reset_peaks(&self) {
        let _state = lock(&self.state);
        self.books.peak_held.store(self.books.held.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The error of a request that could not be served. What was created for it and did not suffice goes back.
    pub fn out_of_memory(&self, request: u64, live: u64) -> Error {
        let mut state = lock(&self.state);
        let given = self.settle(&mut state).and(self.release(&mut state, u64::MAX, |_| true));
        if let Err(error) = given {
            tracing::warn!(%error, "device memory could not be given back: it stays held and is tried again");
        }
        drop(state);
        self.refusal(request, live)
    }

    /// The same, of a request for which nothing was tried.
    pub fn refusal(&self, request: u64, live: u64) -> Error {
        let device_free = lock(&self.state).device.free_bytes();
        let Usage { mapped, held, .. } = self.usage();
        Error::OutOfMemory { request, live, mapped, held, limit: self.limit(), device_free }
    }

    /// Waits on the host for all that is late and all uses of the stock, and releases the stock, of heaps on the host only if `spilled`.
    /// Returns the bytes released.
    pub fn empty(&self, spilled: bool) -> Result<u64, DeviceError> {
        let mut state = lock(&self.state);
        let mut outcome = self.settle(&mut state);
        let late = state.late.iter().filter_map(|late| late.event.clone());
        let stock = state.stock.values().flatten().filter_map(|entry| entry.event.clone());
        let mut events: Vec<Event> = late.chain(stock).filter(|event| !event.passed()).collect();
        // One event serves all that its lane gave back in one operation.
        events.dedup_by(|a, b| Arc::ptr_eq(a, b));
        if !events.is_empty() {
            // Other lanes go on meanwhile.
            drop(state);
            for event in events {
                outcome = outcome.and(event.synchronize());
            }
            state = lock(&self.state);
            outcome = outcome.and(self.settle(&mut state));
        }
        let released = self.release(&mut state, u64::MAX, |entry| spilled || !entry.spilled)?;
        outcome.map(|()| released)
    }

    /// Whether all that a lane has given back has its event.
    pub fn has_marked_all(&self, home: &Home) -> bool {
        let mut state = lock(&self.state);
        self.note_passed(&mut state);
        let unmarked = |of: &Home, event: &Option<Event>| of.key == home.key && event.is_none();
        !state.late.iter().any(|late| unmarked(&late.home, &late.event))
            && !state.stock.values().flatten().any(|entry| unmarked(&entry.home, &entry.event))
    }

    /// Unmaps what is late and need not be any longer, and records events that could not be.
    fn settle(&self, state: &mut State) -> Result<(), DeviceError> {
        self.settle_some(state, |_| true).1
    }

    /// The same, with those unmappings only that `which` names, of what need not be late each asked once. Returns how many
    /// there were, also where others failed.
    fn settle_some(
        &self,
        state: &mut State,
        mut which: impl FnMut(&Late) -> bool,
    ) -> (usize, Result<(), DeviceError>) {
        let mut done = 0;
        let mut outcome = Ok(());
        // What a lane gave back in one operation has one event, and asking costs a call.
        let mut last: Option<(Event, bool)> = None;
        let mut has_passed = |event: &Option<Event>| {
            event.as_ref().is_some_and(|event| match &last {
                Some((asked, passed)) if Arc::ptr_eq(asked, event) => *passed,
                _ => {
                    let passed = event.passed();
                    last = Some((Arc::clone(event), passed));
                    passed
                }
            })
        };
        let record = |home: &Home, event: &mut Option<Event>| {
            if event.is_none() && !home.is_pinned() {
                *event = self.last_uses(home);
            }
        };
        for mut late in std::mem::take(&mut state.late) {
            record(&late.home, &mut late.event);
            let passed = has_passed(&late.event);
            if passed {
                // Not to be asked again.
                late.event = Some(Arc::clone(&self.done));
            }
            let unmapped =
                (passed && which(&late)).then(|| self.unmap(state, late.range, late.offset, late.bytes));
            if unmapped == Some(Ok(())) {
                done += 1;
            } else {
                state.late.push(late);
            }
            outcome = outcome.and(unmapped.unwrap_or(Ok(())));
        }
        for entry in state.stock.values_mut().flatten() {
            record(&entry.home, &mut entry.event);
            if has_passed(&entry.event) {
                // Not to be asked again.
                entry.event = Some(Arc::clone(&self.done));
            }
        }
        for range in std::mem::take(&mut state.unreserve) {
            let empty = state.late.iter().all(|late| late.range != range.id);
            let given = empty.then(|| state.device.unreserve(range.id));
            match given {
                Some(Ok(())) => take(&self.books.reserved, range.bytes),
                _ => state.unreserve.push(range),
            }
            outcome = outcome.and(given.unwrap_or(Ok(())));
        }
        (done, outcome)
    }

    /// Records events that could not be, and notes which have passed. Unmaps nothing.
    fn note_passed(&self, state: &mut State) {
        // What fails is given back some other time.
        let _tried_again = self.settle_some(state, |_| false);
    }

    /// Returns once nobody is about to ask a stream for something who did not know yet that it is no more.
    pub fn let_others_out(&self) {
        drop(lock(&self.state));
    }

    fn unmap(&self, state: &mut State, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        state.device.unmap(range, offset, bytes)?;
        take(&self.books.mapped, bytes);
        Ok(())
    }

    /// Releases heaps of the stock, the longest first, until `wanted` bytes of the device's memory went: of those whose uses
    /// have passed the ones that `which` names, each asked once. Returns the bytes that went.
    fn release(
        &self,
        state: &mut State,
        wanted: u64,
        mut which: impl FnMut(&Stocked) -> bool,
    ) -> Result<u64, DeviceError> {
        let mut released = 0;
        let mut outcome = Ok(());
        let mut from_host = 0;
        let State { stock, device, late, spilled, .. } = state;
        let mapped: FxHashSet<HeapId> = late.iter().flat_map(|late| late.heaps.iter().copied()).collect();
        for (&bytes, heaps) in stock.iter_mut().rev() {
            heaps.retain(|entry| {
                let free = !mapped.contains(&entry.heap) && entry.has_passed();
                if released >= wanted || outcome.is_err() || !free || !which(entry) {
                    return true;
                }
                outcome = device.release(entry.heap);
                if outcome.is_err() {
                    return true;
                }
                if entry.spilled {
                    spilled.remove(&entry.heap);
                    from_host += bytes;
                } else {
                    released += bytes;
                }
                false
            });
        }
        stock.retain(|_, heaps| !heaps.is_empty());
        take(&self.books.held, released);
        take(&self.books.spilled, from_host);
        take(&self.books.stock, released + from_host);
        outcome.map(|()| released)
    }

    /// Takes a heap of this length from the stock: one that `home` may have without waiting, or, when its pool
    /// is pressed, one that it has to wait for.
    fn take_stock(&self, state: &mut State, home: &Home, bytes: u64) -> Option<Stocked> {
        let heaps = state.stock.get_mut(&bytes)?;
        let at = heaps.iter().rposition(|entry| suits(home, entry))?;
        let entry = heaps.remove(at);
        if heaps.is_empty() {
            state.stock.remove(&bytes);
        }
        take(&self.books.stock, bytes);
        Some(entry)
    }

    fn put_in_stock(&self, state: &mut State, bytes: u64, entry: Stocked) {
        state.stock.entry(bytes).or_default().push(entry);
        add(&self.books.stock, bytes);
    }

    /// Orders the coming uses of a heap by `home` behind its last ones.
    fn follow(&self, home: &Home, entry: &Stocked) -> Result<(), DeviceError> {
        let Some(event) = entry.event.as_ref().filter(|event| !event.passed()) else { return Ok(()) };
        if entry.home.key == home.key {
            return Ok(());
        }
        // A graph is replayed on whatever stream, later: what it uses must be ready by itself.
        if self.can_queue(home) && event.wait(home.stream()).is_ok() {
            return Ok(());
        }
        event.synchronize()
    }

    fn create(&self, home: &Arc<Home>, bytes: u64) -> Result<HeapId, DeviceError> {
        let mut state = lock(&self.state);
        let mut ready = self.take_stock(&mut state, home, bytes);
        if ready.is_none() {
            // Not before: it looks at all there is, and a request may take thousands of heaps.
            self.note_passed(&mut state);
            ready = self.take_stock(&mut state, home, bytes);
        }
        if let Some(entry) = ready {
            let heap = entry.heap;
            return match self.follow(home, &entry) {
                Ok(()) => {
                    if entry.spilled {
                        home.add_spilled(bytes);
                    }
                    Ok(heap)
                }
                Err(error) => {
                    self.put_in_stock(&mut state, bytes, entry);
                    Err(error)
                }
            };
        }
        let mut made = self.create_new(&mut state, bytes);
        if matches!(made, Err(DeviceError::OutOfMemory { .. })) {
            // Stock of other lengths makes room.
            if let Err(error) = self.settle(&mut state) {
                tracing::warn!(%error, "device memory could not be given back: it stays held and is tried again");
            }
            let over = bytes.max(self.over_limit(bytes));
            if matches!(self.release(&mut state, over, |entry| !entry.spilled), Ok(1..)) {
                made = self.create_new(&mut state, bytes);
            }
        }
        if matches!(made, Err(DeviceError::OutOfMemory { .. })) && home.is_spilling() {
            let heap = state.device.create_on_host(bytes)?;
            state.spilled.insert(heap);
            add(&self.books.spilled, bytes);
            add(&self.books.spills_made, 1);
            home.add_spilled(bytes);
            return Ok(heap);
        }
        made
    }

    /// Bytes by which the limit would be exceeded if `bytes` more were held.
    fn over_limit(&self, bytes: u64) -> u64 {
        let held = self.books.held.load(Ordering::Relaxed);
        held.saturating_add(bytes).saturating_sub(self.limit.load(Ordering::Relaxed))
    }

    fn create_new(&self, state: &mut State, bytes: u64) -> Result<HeapId, DeviceError> {
        if self.over_limit(bytes) > 0 {
            return Err(DeviceError::OutOfMemory { bytes });
        }
        let heap = state.device.create(bytes)?;
        let held = add(&self.books.held, bytes);
        self.books.peak_held.fetch_max(held, Ordering::Relaxed);
        Ok(heap)
    }

    /// Sees to it that nothing late is in the way of a map, waiting on the host where it is: heaps go home to
    /// the same places, some time after others left.
    fn clear_way(&self, range: RangeId, binds: &[Bind]) -> Result<MutexGuard<'_, State>, DeviceError> {
        let overlaps = |late: &Late| {
            let reaches = |bind: &Bind| {
                bind.range_offset < late.offset + late.bytes && late.offset < bind.range_offset + bind.bytes
            };
            late.range == range && binds.iter().any(reaches)
        };
        loop {
            let mut state = lock(&self.state);
            if !state.late.iter().any(overlaps) {
                return Ok(state);
            }
            self.settle_some(&mut state, overlaps).1?;
            let Some(late) = state.late.iter_mut().find(|late| overlaps(late)) else { return Ok(state) };
            match late.event.clone() {
                Some(event) => {
                    drop(state);
                    event.synchronize()?;
                }
                // Lanes that are pinned or captured give nothing back but what they just failed to take: no
                // work has ever used it.
                None if !self.may_give(&late.home) => late.event = Some(Arc::clone(&self.done)),
                None => return Err(refused("an event could not be recorded on the stream")),
            }
        }
    }
}

/// Whether `home` may have a heap of the stock.
fn suits(home: &Home, entry: &Stocked) -> bool {
    if entry.spilled && !home.is_spilling() {
        return false;
    }
    let own = entry.home.key == home.key;
    own || home.is_pressed() && entry.event.is_some() || entry.has_passed()
}

fn refused(reason: &str) -> DeviceError {
    DeviceError::Failed { call: Call::Order, reason: reason.into() }
}

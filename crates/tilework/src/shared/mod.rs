//! One front for many threads and streams: what a C interface, PyTorch and ONNX Runtime stand on.
//!
//! ```text
//!   alloc(bytes, stream)                                      free(address)
//!        │ stream, open graph pools                                │ stream as a hint, or reserved ranges
//!        ▼                                                         ▼
//!   lane: one stream ─ its own lock ─ a Pool ─ blocks by address ─ pending blocks, behind events
//!        │ slow paths only
//!        ▼
//!   depot: the one device ─ stock of heaps that no lane has ─ unmappings that wait for events ─ limit
//! ```
//!
//! * A *lane* holds the memory whose uses one stream orders. What is freed there is used again there at
//!   once; threads that work on streams of their own never meet.
//! * Memory goes from lane to lane as whole heaps, through the *stock*, behind an event.
//! * A block that other streams used too is *pending* once freed, until events recorded on them have
//!   passed, or until the lane's stream waits for these.
//! * A *guest* stream may be gone without a word: its name is a key and no more. Its lane uses memory again
//!   like any other; before some of it goes elsewhere, the host waits for the device. Guests that have nothing live
//!   take over each other's lanes.
//! * A graph's *pool* has lanes of its own. They keep tiles and addresses until the last reference is
//!   released and the device has been synchronised.
//!
//! Locks are taken in this order: pools, a lane, the depot. Who has a lane and wants another only tries.

mod blocks;
mod count;
mod depot;
mod fork;
mod guests;
mod hints;
mod lane;
mod lanes;
mod pools;
pub mod streams;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::Serialize;

use crate::device::{Calls, Device};
use crate::error::{Error, Result};
use crate::manager::{Block, Kind, Manager, Options, Served, Stream, Usage, serving};
use crate::record::Log;

use self::blocks::Live;
use self::count::Count;
use self::depot::{Depot, lock};
use self::fork::Process;
use self::guests::Guests;
use self::hints::Hints;
use self::lane::{Books, Key, Lane, Wait};
use self::lanes::Lanes;
use self::pools::Pools;
use self::streams::Streams;

/// The name of a graph's pool: both numbers are the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PoolId(pub u64, pub u64);

/// Which streams' requests an open pool serves. Asked on the thread that makes the request.
pub type Filter = Box<dyn Fn(Stream) -> bool + Send + Sync>;

/// What is counted as it goes, over all streams: the figures that programs ask for at every step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// The running figures.
    pub usage: Usage,
    /// See [`SharedStats::stock`].
    pub stock: u64,
    /// See [`SharedStats::pending`].
    pub pending: u64,
    /// See [`SharedStats::ooms`].
    pub ooms: u64,
    /// See [`SharedStats::retries`].
    pub retries: u64,
    /// See [`SharedStats::device_calls`].
    pub device_calls: Calls,
}

/// The report of a [`Shared`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SharedStats {
    /// The running figures, over all streams.
    pub usage: Usage,
    /// The part of what is held that no stream has: ready to be given to any, bytes.
    pub stock: u64,
    /// Freed by their owner and waiting for the streams that used them, bytes.
    pub pending: u64,
    /// Held, but not yet taken back by the device, which refused, bytes.
    pub leftover: u64,
    /// Blocks live.
    pub blocks: u64,
    /// Requests served.
    pub allocations: u64,
    /// Blocks freed.
    pub frees: u64,
    /// Requests that were refused for want of memory.
    pub ooms: u64,
    /// Requests that had everything unused given back before they were served or refused.
    pub retries: u64,
    /// Calls the driver has served.
    pub device_calls: Calls,
    /// The streams known, in the order of their first requests.
    pub streams: Vec<StreamStats>,
}

/// The part of a [`SharedStats`] that belongs to one stream, or to one stream of a graph's pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct StreamStats {
    /// The stream's number; that of its lane for a guest.
    pub stream: u64,
    /// True: the part of a graph's pool that serves the stream.
    pub graph: bool,
    /// Requested and not yet freed, bytes.
    pub live: u64,
    /// Physical memory the stream has, bytes.
    pub held: u64,
    /// The largest request that could be served in one piece without the device, bytes.
    pub largest_free_run: u64,
    /// Blocks live.
    pub blocks: u64,
}

/// A memory manager that threads share and that knows streams.
///
/// Every method may be called from any thread. None of them waits for work of the device, but for
/// [`trim`](Shared::trim), [`forget_stream`](Shared::forget_stream), and [`alloc`](Shared::alloc) where
/// memory would be out otherwise or a device cannot do without, and where a [guest](Shared::alloc_guest)'s memory
/// goes to another stream or is given back.
///
/// In a child process made by `fork` requests fail with [`Error::Forked`] and everything else does nothing.
///
/// Whoever drops it must have nothing left that uses its memory.
pub struct Shared {
    process: Process,
    options: Options,
    lanes: Lanes,
    guests: Guests,
    hints: Hints,
    pools: Pools,
    depot: Arc<Depot>,
    live: Count,
    ooms: AtomicU64,
    retries: AtomicU64,
    /// Lanes made so far.
    serial: AtomicU64,
    /// True iff `log` is a trace.
    recording: AtomicBool,
    log: Mutex<Option<Log>>,
}

impl Shared {
    /// A front over `device`, of which nothing was taken yet, and its `streams`.
    ///
    /// On a device without [tiling](crate::device::Caps::tiling) `placed` serves in place of `tiled`, with one
    /// warning in the log.
    ///
    /// # Errors
    /// [`Error::Device`] when the process cannot be watched for forks.
    pub fn new(device: Box<dyn Device>, streams: Box<dyn Streams>, options: &Options) -> Result<Shared> {
        if let (_, Some(sentence)) = serving(Kind::Tiled, &*device) {
            tracing::warn!("{sentence}");
        }
        let pools = Pools::default();
        Ok(Shared {
            process: Process::this()?,
            options: *options,
            lanes: Lanes::new(),
            hints: Hints::new(),
            guests: Guests::default(),
            depot: Arc::new(Depot::new(device, streams, pools.open())),
            pools,
            live: Count::default(),
            ooms: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            serial: AtomicU64::new(0),
            recording: AtomicBool::new(false),
            log: Mutex::default(),
        })
    }

    /// Serves a request of `bytes` for work on `stream` and returns the first address, a multiple of 512. The
    /// contents are undefined.
    ///
    /// # Errors
    /// As [`Manager::alloc`]; [`Error::Stream`] where `stream` is no queue of its own; [`Error::Forked`].
    #[inline]
    pub fn alloc(&self, bytes: u64, stream: Stream) -> Result<u64> {
        self.process.check()?;
        self.alloc_in(Key { slot: self.pools.slot_for(stream), stream }, bytes)
    }

    /// As [`alloc`](Shared::alloc), for work on a guest: a stream that somebody else destroys without telling.
    /// `stream` tells guests apart, also from other streams of the same number; the device is never asked about
    /// it, and graphs' pools do not have its requests.
    ///
    /// What is freed serves the same guest again at once. Before it serves others or is given back the host
    /// waits for all work of the device: not while a graph's pool is open, as that would break a capture.
    ///
    /// A guest of which nothing is live takes over the memory of another of which nothing is, so that guests that
    /// work by turns need no more than the hungriest. Zero names no stream, and has memory of its own.
    ///
    /// # Errors
    /// As [`alloc`](Shared::alloc).
    pub fn alloc_guest(&self, bytes: u64, stream: Stream) -> Result<u64> {
        self.process.check()?;
        self.alloc_seated(bytes, stream)
    }

    #[inline]
    fn alloc_in(&self, key: Key, bytes: u64) -> Result<u64> {
        let lane = match self.lanes.get(key) {
            Some(lane) => lane,
            None => self.make_lane(key)?,
        };
        let mut books = lane.lock();
        if lane.home.is_orphan() {
            // The name of a stream that is no more, given to another.
            lane.home.set_orphan(false);
        }
        if let Some(block) = books.pool.lend(bytes) {
            self.hand_out(&mut books, block, key.stream);
            return Ok(block.address);
        }
        self.alloc_slow(lane, books, bytes)
    }

    /// Takes the block at `address` back. Work that uses it may still be queued: on the stream it was
    /// requested for, and on those it was [recorded](Shared::record_stream) for.
    ///
    /// # Errors
    /// [`Error::UnknownAddress`] where no live block begins.
    pub fn free(&self, address: u64) -> Result<()> {
        if !self.process.is_this() {
            return Ok(());
        }
        match self.hinted(address) {
            Some(lane) if self.free_in(lane, address)? => Ok(()),
            _ => self.free_found(address),
        }
    }

    /// The lane that may have what is live at `address`.
    #[inline]
    #[allow(unsafe_code)]
    fn hinted(&self, address: u64) -> Option<&Lane> {
        // SAFETY: what was noted are lanes in `self.lanes`, which are shared only, and stay where they are as long
        // as `self` lives.
        self.hints.get(address).map(|lane| unsafe { lane.as_ref() })
    }

    /// As [`free`](Shared::free), where `stream` uses the block too and was not [recorded](Shared::record_stream)
    /// for it.
    ///
    /// # Errors
    /// As [`free`](Shared::free).
    pub fn free_on(&self, address: u64, stream: Stream) -> Result<()> {
        self.record_stream(address, stream)?;
        self.free(address)
    }

    #[cold]
    fn free_found(&self, address: u64) -> Result<()> {
        let lane = self.lane_at(address).ok_or(Error::UnknownAddress(address))?;
        self.hints.note(address, lane);
        if self.free_in(lane, address)? { Ok(()) } else { Err(Error::UnknownAddress(address)) }
    }

    /// Notes that `stream` uses the block at `address` too: once freed, its memory is used again only behind
    /// what was queued on `stream` by then.
    ///
    /// # Errors
    /// [`Error::UnknownAddress`] where no live block begins.
    pub fn record_stream(&self, address: u64, stream: Stream) -> Result<()> {
        if !self.process.is_this() {
            return Ok(());
        }
        let lane = self.lane_at(address).ok_or(Error::UnknownAddress(address))?;
        let mut books = lane.lock();
        if books.blocks.get(address).is_none() {
            return Err(Error::UnknownAddress(address));
        }
        if stream == lane.key.stream && !lane.key.is_guest() {
            // The lane's order covers it, also where another stream got the name of one that is no more.
            lane.home.set_orphan(false);
        } else {
            books.blocks.used_on(address, stream);
        }
        Ok(())
    }

    /// The live block that `address` lies in: its first address and its bytes. Walks over the stream's blocks
    /// where `address` is not the first of one.
    pub fn block_of(&self, address: u64) -> Option<(u64, u64)> {
        if !self.process.is_this() {
            return None;
        }
        let books = self.lane_at(address)?.lock();
        let holds = |block: &Live| block.address <= address && address - block.address < block.bytes;
        let found = books.blocks.get(address).or_else(|| books.blocks.iter().find(holds));
        found.map(|block| (block.address, block.bytes))
    }

    /// Takes a reference on a graph's pool, and sends requests there whose stream `filter` approves of. Where
    /// several open pools do, the first to have begun has the request. `filter` is asked until
    /// [`end_pool`](Shared::end_pool) returns, inside `alloc` on the thread that makes the request, and must
    /// not call this front.
    ///
    /// What a pool serves keeps its address and its tiles until the last reference is released.
    ///
    /// # Errors
    /// None at present.
    pub fn begin_pool(&self, pool: PoolId, filter: Filter) -> Result<()> {
        if self.process.is_this() {
            self.pools.begin(pool, Some(filter));
        }
        Ok(())
    }

    /// Takes a reference on a graph's pool without opening it.
    ///
    /// # Errors
    /// None at present.
    pub fn retain_pool(&self, pool: PoolId) -> Result<()> {
        if self.process.is_this() {
            self.pools.begin(pool, None);
        }
        Ok(())
    }

    /// Sends no more requests to a pool; the reference stays. Does nothing for a pool that is not open.
    ///
    /// # Errors
    /// None at present.
    pub fn end_pool(&self, pool: PoolId) -> Result<()> {
        if self.process.is_this() {
            self.pools.end(pool);
        }
        Ok(())
    }

    /// Gives one reference on a graph's pool back. With the last one its memory is free to others, though not
    /// at once, as its graph may still be running: at the next [`trim`](Shared::trim), or when memory lacks,
    /// while no pool is open and no stream captured.
    /// Live blocks stay valid. Does nothing for a pool that is not known.
    ///
    /// # Errors
    /// None at present.
    pub fn release_pool(&self, pool: PoolId) -> Result<()> {
        if self.process.is_this() {
            self.pools.release(pool);
        }
        Ok(())
    }

    /// Tells that `stream` is about to be destroyed: waits for it, and gives its free memory to others. Its
    /// live blocks stay valid. The stream is not asked for anything again, unless a request names it.
    ///
    /// # Errors
    /// [`Error::Device`] when the stream cannot be waited for; it counts as alive then.
    pub fn forget_stream(&self, stream: Stream) -> Result<()> {
        if !self.process.is_this() {
            return Ok(());
        }
        self.depot.streams().record(stream)?.synchronize()?;
        let mut outcome = Ok(());
        for lane in self.lanes.iter() {
            let mut books = lane.lock();
            books.forget(stream);
            if lane.key.stream == stream && !lane.key.is_guest() {
                lane.home.set_orphan(true);
                if self.depot.may_give(&lane.home) {
                    lane.home.begin();
                    outcome = outcome.and(self.absorb(lane, &mut books, false));
                    outcome = outcome.and(books.pool.trim().map(drop));
                }
            }
        }
        outcome
    }

    /// Tells that one execution of the model has ended: the clock by which unused mappings and heaps grow old
    /// and are given back. Never waits; a stream that is being captured is left for the next time.
    ///
    /// # Errors
    /// As [`Manager::end_of_execution`].
    pub fn end_of_execution(&self) -> Result<()> {
        if !self.process.is_this() {
            return Ok(());
        }
        let mut outcome = Ok(());
        self.reuse_slots();
        for lane in self.lanes.iter() {
            let mut books = lane.lock();
            outcome = outcome.and(self.absorb(lane, &mut books, false));
            if self.depot.may_give(&lane.home) {
                lane.home.begin();
                outcome = outcome.and(books.pool.end_of_execution());
            }
        }
        let aged = self.depot.end_of_execution(u64::from(self.options.heap_age.max(1)));
        outcome.and(aged.map_err(Error::Device))
    }

    /// Gives back everything unused, waiting for the work that uses it yet, and returns the bytes of physical
    /// memory released. Streams that are being captured and the pools of graphs that are referenced keep what
    /// they have.
    ///
    /// # Errors
    /// As [`Manager::trim`].
    pub fn trim(&self) -> Result<u64> {
        if !self.process.is_this() {
            return Ok(0);
        }
        let mut outcome = self.retire_pools();
        for lane in self.lanes.iter() {
            outcome = outcome.and(self.trim_lane(lane, Wait::Host));
        }
        self.reuse_slots();
        let released = self.depot.empty()?;
        outcome.map(|()| released)
    }

    /// Limits what is held from now on, bytes; `None` lifts the limit. What is held beyond it stays until it
    /// is unused and memory lacks, or until [`trim`](Shared::trim).
    pub fn set_limit(&self, bytes: Option<u64>) {
        self.depot.set_limit(bytes);
    }

    /// Lets kernels of the device numbered `peer`, as the driver counts, use the memory of all blocks, of those to
    /// come too, as [`Device::add_peer`] does.
    ///
    /// # Errors
    /// [`Error::Device`] when that device cannot be a peer; [`Error::Forked`].
    pub fn add_peer(&self, peer: u32) -> Result<()> {
        self.process.check()?;
        Ok(self.depot.add_peer(peer)?)
    }

    /// The running figures, over all streams. `mapped` counts what waits to be unmapped too, `held` the stock.
    pub fn usage(&self) -> Usage {
        Usage { live: self.live.now(), peak_live: self.live.peak(), ..self.depot.usage() }
    }

    /// What was asked of the device so far. Waits for a call that is under way.
    pub fn calls(&self) -> Calls {
        if self.process.is_this() { self.depot.calls() } else { Calls::default() }
    }

    /// The figures that no lane has to be asked for. Waits for a call of the device's that is under way.
    pub fn totals(&self) -> Totals {
        Totals {
            usage: self.usage(),
            stock: self.depot.stock_bytes(),
            pending: self.depot.pending_bytes(),
            ooms: self.ooms.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
            device_calls: self.calls(),
        }
    }

    /// The full report. Takes each lane's lock in turn and walks its free runs; not for hot paths.
    pub fn stats(&self) -> SharedStats {
        let Totals { usage, stock, pending, ooms, retries, device_calls } = self.totals();
        let mut stats =
            SharedStats { usage, stock, pending, ooms, retries, device_calls, ..SharedStats::default() };
        if !self.process.is_this() {
            return stats;
        }
        let mut lanes: Vec<&Lane> = self.lanes.iter().collect();
        lanes.sort_unstable_by_key(|lane| lane.serial);
        for lane in lanes {
            let books = lane.lock();
            let pool = books.pool.stats();
            let blocks = books.blocks.len() as u64;
            stats.leftover += pool.leftover;
            stats.blocks += blocks;
            stats.allocations += pool.allocations;
            stats.frees += books.freed;
            stats.streams.push(StreamStats {
                stream: lane.key.stream.0,
                graph: lane.key.is_graph(),
                live: pool.usage.live - books.pending_bytes,
                held: pool.usage.held,
                largest_free_run: pool.largest_free_run,
                blocks,
            });
        }
        stats
    }

    /// Makes the peaks start again from what is live and held now.
    pub fn reset_peaks(&self) {
        if self.process.is_this() {
            self.live.reset_peak();
            self.depot.reset_peaks();
        }
    }

    /// Begins to record requests and frees, of all streams, into a trace that will be at `path`. What is live
    /// already is not in it. A recording that is under way is completed first.
    ///
    /// # Errors
    /// [`Error::Recording`] when the file cannot be made, or the recording before could not be completed.
    pub fn record_to(&self, path: &Path) -> Result<()> {
        if !self.process.is_this() {
            return Ok(());
        }
        self.stop_recording()?;
        *lock(&self.log) = Some(Log::new(path)?);
        self.recording.store(true, Ordering::Release);
        Ok(())
    }

    /// Completes the trace. Does nothing when none is being recorded. A front dropped before leaves no trace.
    ///
    /// # Errors
    /// [`Error::Recording`] with the first error met since the recording began.
    pub fn stop_recording(&self) -> Result<()> {
        if !self.process.is_this() {
            return Ok(());
        }
        self.recording.store(false, Ordering::Release);
        let log = lock(&self.log).take();
        log.map_or(Ok(()), |mut log| log.finish())
    }

    /// Panics with a description when the books contradict themselves. For tests, while no other thread is
    /// in the front.
    pub fn check_invariants(&self) {
        let mut live = 0;
        let mut held = self.depot.stock_bytes();
        let mut pending = 0;
        for lane in self.lanes.iter() {
            let books = lane.lock();
            books.pool.check_invariants();
            let usage = books.pool.usage();
            let here: u64 = books.blocks.iter().map(|block| block.bytes).sum();
            assert_eq!(usage.live, here + books.pending_bytes, "bytes live and pending on {:?}", lane.key);
            live += here;
            held += usage.held;
            pending += books.pending_bytes;
        }
        assert_eq!(self.depot.pending_bytes(), pending, "bytes pending, over all streams");
        let usage = self.usage();
        assert_eq!(usage.live, live, "bytes live, over all streams");
        assert_eq!(usage.held, held, "bytes held, over all streams and the stock");
        assert!(usage.live <= usage.peak_live && usage.held <= usage.peak_held, "peaks: {usage:?}");
    }

    #[cold]
    fn make_lane(&self, key: Key) -> Result<&Lane> {
        // A guest's name is not the device's.
        let refusal = if key.is_guest() { None } else { self.depot.streams().refusal(key.stream) };
        if let Some(reason) = refusal {
            return Err(Error::Stream { stream: key.stream.0, reason });
        }
        Ok(self.lanes.get_or_make(key, || {
            let serial = self.serial.fetch_add(1, Ordering::Relaxed);
            Lane::new(key, serial, &self.depot, &self.options)
        }))
    }

    fn lane_at(&self, address: u64) -> Option<&Lane> {
        self.lanes.get(self.depot.lane_at(address)?)
    }

    /// Enters a block that the pool has lent.
    #[inline]
    fn hand_out(&self, books: &mut Books, block: Block, stream: Stream) {
        let Block { id, address, bytes, .. } = block;
        books.blocks.insert(Live { address, id, bytes });
        self.live.add(bytes);
        if self.recording.load(Ordering::Relaxed) {
            self.log(|log| log.alloc(address, bytes, stream));
        }
    }

    /// False when no live block of the lane begins at `address`.
    #[inline(always)]
    fn free_in(&self, lane: &Lane, address: u64) -> Result<bool> {
        let mut books = lane.lock();
        let Some(block) = books.blocks.remove(address) else { return Ok(false) };
        self.live.take(block.bytes);
        if self.recording.load(Ordering::Relaxed) {
            self.log(|log| log.free(address));
        }
        books.free(block, &self.depot, &lane.home)?;
        Ok(true)
    }

    /// Under the lane's lock, so that a block's end comes before the next block at its address.
    #[cold]
    fn log(&self, write: impl FnOnce(&mut Log)) {
        if let Some(log) = &mut *lock(&self.log) {
            write(log);
        }
    }

    /// Serves a request that no free run of the lane is long enough for.
    #[cold]
    fn alloc_slow<'a>(&'a self, lane: &'a Lane, mut books: MutexGuard<'a, Books>, bytes: u64) -> Result<u64> {
        let mut served = self.serve(lane, &mut books, bytes);
        for wait in [Wait::Stream, Wait::Host] {
            if !matches!(served, Err(Error::OutOfMemory { .. })) {
                break;
            }
            // Nobody may wait for a lane while he has one. Nothing was placed, so nothing can be lost.
            drop(books);
            self.retries.fetch_add(1, Ordering::Relaxed);
            self.relieve(lane, bytes, wait);
            books = lane.lock();
            lane.home.begin();
            lane.home.set_pressed(true);
            served = books.pool.alloc(bytes, lane.key.stream);
            lane.home.set_pressed(false);
        }
        match served {
            Ok(block) => {
                self.hand_out(&mut books, block, lane.key.stream);
                Ok(block.address)
            }
            Err(Error::OutOfMemory { request, .. }) => {
                self.ooms.fetch_add(1, Ordering::Relaxed);
                Err(self.depot.out_of_memory(request, self.live.now()))
            }
            Err(error) => Err(error),
        }
    }

    /// Serves a request from what the lane has, from what it gets back, from what others have to spare, and
    /// from new memory, in this order.
    fn serve(&self, lane: &Lane, books: &mut Books, bytes: u64) -> Result<Block> {
        lane.home.begin();
        self.absorb(lane, books, false)?;
        let mut lacks = match books.pool.serve(bytes)? {
            Served::Block(block) => return Ok(block),
            Served::Lacks(lacks) => lacks,
        };
        if books.pending_bytes >= lacks {
            self.absorb(lane, books, true)?;
            lacks = match books.pool.serve(bytes)? {
                Served::Block(block) => return Ok(block),
                Served::Lacks(lacks) => lacks,
            };
        }
        // What others took of this lane it replaces by new memory. Took it theirs in turn, streams that work by
        // turns would hand the same heaps to and fro at every step, by the device.
        let replaced = lacks.min(books.given_up);
        self.take_from_others(lane, lacks - replaced, Wait::Nobody);
        let block = books.pool.alloc(bytes, lane.key.stream)?;
        books.given_up -= replaced;
        Ok(block)
    }

    fn absorb(&self, lane: &Lane, books: &mut Books, queue: bool) -> Result<()> {
        books.absorb(&self.depot, &lane.home, queue)
    }

    /// Has other lanes give heaps up that they do not use, of `lacks` bytes together at most. With
    /// [`Wait::Nobody`] only those whose streams have nothing to do. A lane that somebody is in is left alone.
    fn take_from_others(&self, lane: &Lane, lacks: u64, wait: Wait) {
        let caps = self.depot.caps();
        if !caps.tiling {
            return;
        }
        let mut found = 0;
        for other in self.lanes.iter().filter(|other| other.key != lane.key) {
            if found >= lacks {
                return;
            }
            let Some(mut books) = other.try_lock() else { continue };
            // The driver is asked last: it costs a call, and a stream that has nothing may be no more.
            if books.pool.free_bytes() < caps.tile_bytes || !self.depot.may_give(&other.home) {
                continue;
            }
            other.home.begin();
            let event = self.depot.mark(&other.home);
            if wait == Wait::Nobody && !event.is_some_and(|event| event.passed()) {
                continue;
            }
            match books.pool.give_up(lacks - found) {
                Ok(bytes) => {
                    books.given_up += bytes;
                    found += bytes;
                }
                Err(error) => tracing::warn!(%error, "a stream could not give its memory up"),
            }
        }
    }

    /// Makes room for a request of `bytes` on a lane: memory that its stream has to wait for, or, with
    /// [`Wait::Host`], all there is. The caller has no lane.
    fn relieve(&self, lane: &Lane, bytes: u64, wait: Wait) {
        let mut outcome = Ok(());
        if wait == Wait::Host {
            outcome = self.trim().map(drop);
        } else {
            outcome = outcome.and(self.absorb(lane, &mut lane.lock(), true));
            self.take_from_others(lane, bytes, Wait::Stream);
        }
        if let Err(error) = outcome {
            tracing::warn!(%error, "not everything unused could be given back");
        }
    }

    /// Gives back what a lane does not use.
    fn trim_lane(&self, lane: &Lane, wait: Wait) -> Result<()> {
        if wait == Wait::Host {
            let awaited = lane.lock().awaited(&self.depot);
            for event in awaited.iter().filter(|event| !event.passed()) {
                if let Err(error) = event.synchronize() {
                    tracing::warn!(%error, "what another stream used cannot be waited for and stays pending");
                }
            }
        }
        let mut books = lane.lock();
        let absorbed = self.absorb(lane, &mut books, false);
        if !self.depot.may_give(&lane.home) {
            return absorbed;
        }
        lane.home.begin();
        absorbed.and(books.pool.trim().map(drop))
    }

    /// Waits for the graphs of pools that nobody refers to any more, and makes their lanes like others.
    fn retire_pools(&self) -> Result<()> {
        let slots = self.pools.retired();
        let capturing = |lane: &Lane| self.depot.is_capturing(&lane.home);
        // While a stream is being captured the device may not be waited for; with a pool open one that no lane
        // knows of may be.
        if slots.is_empty() || self.pools.any_open() || self.lanes.iter().any(capturing) {
            return Ok(());
        }
        self.depot.streams().synchronize_device()?;
        for lane in self.lanes.iter().filter(|lane| slots.contains(&lane.key.slot)) {
            lane.home.set_pinned(false);
        }
        self.pools.drain(&slots);
        Ok(())
    }

    /// Makes the slots of pools usable again that are gone and of which nothing is live.
    fn reuse_slots(&self) {
        self.pools.reuse(|slot| {
            let lanes = || self.lanes.iter().filter(|lane| lane.key.slot == slot);
            let empty = lanes().all(|lane| {
                self.depot.may_give(&lane.home)
                    && self.trim_lane(lane, Wait::Nobody).is_ok()
                    && lane.lock().is_idle()
                    && self.depot.has_marked_all(&lane.home)
            });
            if empty {
                lanes().for_each(|lane| lane.home.set_pinned(true));
            }
            empty
        });
    }
}

#[cfg(test)]
mod tests;

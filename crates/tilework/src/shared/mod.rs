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
//! * A *group* has lanes of its own, too, and can be absent: see [`Shared::evict`].
//!
//! Locks are taken in this order: a group, the one for groups that come, pools, a lane, the depot. Who has a group or a lane and wants another only
//! tries.

mod blocks;
mod contents;
mod count;
mod depot;
mod fork;
mod giving;
mod groups;
mod guests;
mod hints;
mod host;
mod lane;
mod lanes;
mod pools;
mod report;
mod residency;
mod serve;
pub mod streams;
pub mod transfers;

pub use contents::Hosting;
pub use groups::{GroupId, GroupStats, Residence};
pub use report::{SharedStats, StreamStats, Totals};

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::manager::{Block, Choice, Kind, Options, Serving, Stream};
use crate::record::Log;

use self::blocks::Live;
use self::contents::Store;
use self::count::Count;
use self::depot::{Depot, lock};
use self::fork::Process;
use self::groups::Groups;
use self::guests::Guests;
use self::hints::Hints;
use self::lane::{Books, Key, Lane};
use self::lanes::Lanes;
use self::pools::Pools;
use self::streams::Streams;

/// The name of a graph's pool: both numbers are the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PoolId(pub u64, pub u64);

/// Which streams' requests an open pool serves. Asked on the thread that makes the request.
pub type Filter = Box<dyn Fn(Stream) -> bool + Send + Sync>;

/// A memory manager that threads share and that knows streams.
///
/// Every method may be called from any thread. None of them waits for work of the device, but for
/// [`trim`](Shared::trim), [`forget_stream`](Shared::forget_stream), those that move groups or end one, and [`alloc`](Shared::alloc) where
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
    groups: Groups,
    /// Held while room is made for a group that comes: two would each keep the other from it.
    coming: Mutex<()>,
    depot: Arc<Depot>,
    store: Arc<Store>,
    live: Count,
    /// Held while a lane is made.
    making: Mutex<()>,
    /// Uses of groups that are absent are to be found.
    trap: AtomicBool,
    ooms: AtomicU64,
    retries: AtomicU64,
    /// For want of memory.
    evictions: AtomicU64,
    /// For want of memory.
    give_backs: AtomicU64,
    /// Lanes made so far.
    serial: AtomicU64,
    /// True iff `log` is a trace.
    recording: AtomicBool,
    log: Mutex<Option<Log>>,
    serving: Serving,
}

impl Shared {
    /// A front over `device`, of which nothing was taken yet, and its `streams`.
    ///
    /// [`Choice::Auto`] says what serves: on a device without [tiling](crate::device::Caps::tiling) `placed`, with one
    /// warning in the log.
    ///
    /// # Errors
    /// [`Error::Device`] when the process cannot be watched for forks.
    pub fn new(device: Box<dyn Device>, streams: Box<dyn Streams>, options: &Options) -> Result<Shared> {
        Shared::chosen(Choice::Auto, device, streams, options)
    }

    /// The same, of which `placed` serves, whatever the device can: nothing is mapped elsewhere, so there are no groups, and no
    /// heap goes from one stream to another. What is given back, also at the end of an execution, waits on the host for its stream, as
    /// on a device that cannot map tiles.
    ///
    /// # Errors
    /// As [`new`](Shared::new).
    pub fn placed(device: Box<dyn Device>, streams: Box<dyn Streams>, options: &Options) -> Result<Shared> {
        Shared::chosen(Choice::Of(Kind::Placed), device, streams, options)
    }

    fn chosen(
        choice: Choice,
        device: Box<dyn Device>,
        streams: Box<dyn Streams>,
        options: &Options,
    ) -> Result<Shared> {
        let serving = choice.serving(&*device);
        serving.log();
        let pools = Pools::default();
        let depot = Arc::new(Depot::new(device, streams, pools.open(), serving.kind == Kind::Tiled));
        Ok(Shared {
            process: Process::this()?,
            options: *options,
            lanes: Lanes::new(),
            hints: Hints::new(),
            guests: Guests::default(),
            groups: Groups::default(),
            coming: Mutex::default(),
            store: Arc::new(Store::new(Arc::clone(&depot))),
            depot,
            pools,
            live: Count::default(),
            making: Mutex::default(),
            trap: AtomicBool::new(false),
            ooms: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            give_backs: AtomicU64::new(0),
            serial: AtomicU64::new(0),
            recording: AtomicBool::new(false),
            log: Mutex::default(),
            serving,
        })
    }

    /// Serves a request of `bytes` for work on `stream` and returns the first address, a multiple of 512. The
    /// contents are undefined.
    ///
    /// # Errors
    /// As [`Manager::alloc`](crate::manager::Manager::alloc); [`Error::Stream`] where `stream` is no queue of its
    /// own; [`Error::Forked`].
    #[inline]
    pub fn alloc(&self, bytes: u64, stream: Stream) -> Result<u64> {
        self.process.check()?;
        self.alloc_in(Key { slot: self.pools.slot_for(stream), stream }, None, bytes)
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
    fn alloc_in(&self, key: Key, group: Option<GroupId>, bytes: u64) -> Result<u64> {
        let lane = match self.lanes.get(key) {
            Some(lane) if lane.home.group() == group => lane,
            _ => self.make_lane(key, group)?,
        };
        let mut books = lane.lock();
        if lane.home.is_odd() || lane.home.group() != group {
            self.look_closer(lane, group)?;
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

    /// Copies what is at `address`, in a live block, into `out`. Work that writes there must be done.
    ///
    /// # Errors
    /// [`Error::UnknownAddress`] when no live block holds all of it; [`Error::Evicted`]; [`Error::Device`] when the
    /// device cannot be read, or refuses.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<()> {
        self.check_access(address, out.len() as u64)?;
        Ok(self.depot.read(address, out)?)
    }

    /// Copies `bytes` to `address`, in a live block. Work that uses what is there must be done.
    ///
    /// # Errors
    /// As [`read`](Shared::read).
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.check_access(address, bytes.len() as u64)?;
        Ok(self.depot.write(address, bytes)?)
    }

    fn check_access(&self, address: u64, bytes: u64) -> Result<()> {
        self.process.check()?;
        let (first, whole) = self.block_of(address).ok_or(Error::UnknownAddress(address))?;
        if bytes > whole - (address - first) {
            return Err(Error::UnknownAddress(first + whole));
        }
        match self.lane_at(address) {
            Some(lane) => self.check_present(lane),
            None => Err(Error::UnknownAddress(address)),
        }
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

    /// Limits what is held from now on, bytes; `None` lifts the limit. What is held beyond it stays until it
    /// is unused, or its group can be evicted, and memory lacks, or until [`trim`](Shared::trim).
    ///
    /// # Errors
    /// [`Error::LimitBelowPinned`] when groups that are pinned hold more: the limit stays as it was.
    pub fn set_limit(&self, bytes: Option<u64>) -> Result<()> {
        self.process.check()?;
        let pinned = self.pinned_bytes();
        match bytes {
            Some(limit) if limit < pinned => Err(Error::LimitBelowPinned { limit, pinned }),
            _ => {
                self.depot.set_limit(bytes);
                Ok(())
            }
        }
    }

    /// The most that may be held, bytes, by the limit and by the device, where there is such.
    pub fn limit(&self) -> Option<u64> {
        self.depot.limit()
    }

    /// Lets memory be on the host, at addresses like any other, where everything else has been tried and nothing is left
    /// within the limit; or no longer. It is slow to use, slower to make, and given back like any other memory that is unused. Not held: see
    /// [`SharedStats::spilled`].
    ///
    /// # Errors
    /// [`Error::NoSpill`] where the device cannot use such memory.
    pub fn set_spill(&self, spills: bool) -> Result<()> {
        if self.depot.set_spill(spills) { Ok(()) } else { Err(Error::NoSpill) }
    }

    /// To find work that uses a group too early or too late, or no longer. At the addresses of a group that is evicted there is nothing, so that work
    /// which uses them fails, on a GPU with an illegal memory access. With `trap` that holds until the group is
    /// [restored](Shared::restore): a [prefetch](Shared::prefetch) does nothing, where else it maps memory whose contents are yet to come.
    /// And the log says of each group that is evicted at which addresses it was, at the level of warnings.
    pub fn set_trap(&self, trap: bool) {
        self.trap.store(trap, Ordering::Relaxed);
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
        *lock(&self.log) = Some(Log::new(path)?.numbering_streams());
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

    /// The lane of a key, for `group` if it is one's.
    #[cold]
    fn make_lane(&self, key: Key, group: Option<GroupId>) -> Result<&Lane> {
        // A guest's name is not the device's.
        let refusal = if key.is_guest() { None } else { self.depot.streams().refusal(key.stream) };
        if let Some(reason) = refusal {
            return Err(Error::Stream { stream: key.stream.0, reason });
        }
        let make = || {
            let serial = self.serial.fetch_add(1, Ordering::Relaxed);
            Lane::new(key, serial, &self.depot, &self.options)
        };
        let Some(group) = group else { return Ok(self.add_lane(key, make)) };
        let group = self.groups.get(group)?;
        // Held until the lane is there to be seen by an eviction.
        let state = lock(&group.state);
        // It may have been removed before.
        self.groups.get(group.id)?;
        if state.residence() != Residence::Resident {
            return Err(Error::Evicted { group: group.name.clone() });
        }
        let lane = self.add_lane(key, make);
        if lane.home.group() != Some(group.id) {
            lane.occupy(group.id);
        }
        Ok(lane)
    }

    fn add_lane(&self, key: Key, make: impl Fn() -> Lane) -> &Lane {
        let _alone = lock(&self.making);
        let is_second = self.lanes.get(key).is_none() && self.lanes.iter().next().is_some();
        if is_second && !self.live.is_shared() {
            self.live.share();
            // Who is in the first lane may not know yet; who enters it from here on does.
            self.lanes.iter().for_each(|lane| drop(lane.lock()));
        }
        self.lanes.get_or_make(key, make)
    }

    /// What a request finds on a lane that is not like others.
    #[cold]
    fn look_closer(&self, lane: &Lane, group: Option<GroupId>) -> Result<()> {
        if let Some(group) = group.filter(|&group| lane.home.group() != Some(group)) {
            // Removed since the lane was found.
            return Err(Error::UnknownGroup(group.0));
        }
        self.check_present(lane)?;
        // The name of a stream that is no more, given to another.
        lane.home.set_orphan(false);
        Ok(())
    }

    fn check_present(&self, lane: &Lane) -> Result<()> {
        match lane.home.group().filter(|_| lane.home.is_away()) {
            Some(group) => Err(Error::Evicted { group: self.groups.get(group)?.name.clone() }),
            None => Ok(()),
        }
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

    /// Puts what happened to memory, and is no request and no free, into the log and into the trace that is being
    /// recorded.
    fn remark(&self, text: &str) {
        tracing::debug!("{text}");
        if self.recording.load(Ordering::Relaxed) {
            self.log(|log| log.remark(text));
        }
    }

    fn remark_spilled(&self) {
        self.remark(&format!("spilled: {} bytes are on the host", self.depot.spilled_bytes()));
    }

    /// Under the lane's lock, so that a block's end comes before the next block at its address.
    #[cold]
    fn log(&self, write: impl FnOnce(&mut Log)) {
        if let Some(log) = &mut *lock(&self.log) {
            write(log);
        }
    }
}

impl Drop for Shared {
    /// Whoever made the device may destroy it next: no thread uses it any more.
    fn drop(&mut self) {
        if self.process.is_this() {
            self.finish_arrivals();
            self.depot.finish();
        }
    }
}

#[cfg(test)]
mod tests;

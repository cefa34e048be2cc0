//! One lane: the memory whose uses one stream orders, with a lock of its own.

use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use super::blocks::{Blocks, Live};
use super::contents::Contents;
use super::depot::{Depot, Door, Home, lock};
use super::groups::GroupId;
use super::streams::Event;
use crate::error::Result;
use crate::manager::{BlockId, Manager, Options, Pool, Stream};

/// Frees between two looks at what is pending.
const POLL: u32 = 64;

/// Address space that a graph's or a group's lane reserves first, bytes: 16,384 such fill the 47 bits of a process.
const MANY_BYTES: u64 = 8 << 30;

/// What a lane is for: a stream, or the part of a stream's work that a graph's pool serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Zero: no pool.
    pub slot: u32,
    pub stream: Stream,
}

/// The slot of guest streams, whose names are never passed to the device.
const GUESTS: u32 = u32::MAX;

/// The slots of groups are behind this. A removed group's is another's later, with the lanes in it.
const GROUPS: u32 = 1 << 31;

impl Key {
    /// The lane of a guest stream.
    pub fn guest(stream: Stream) -> Key {
        Key { slot: GUESTS, stream }
    }

    pub fn is_guest(self) -> bool {
        self.slot == GUESTS
    }

    /// The lane of a group's for a stream.
    pub fn group(group: GroupId, stream: Stream) -> Key {
        Key { slot: GROUPS | group.slot(), stream }
    }

    /// Whether it belongs to a group.
    pub fn is_group(self) -> bool {
        self.slot >= GROUPS && !self.is_guest()
    }

    /// Whether it belongs to a graph's pool.
    pub fn is_graph(self) -> bool {
        self.slot != 0 && self.slot < GROUPS
    }
}

/// The memory of a stream.
pub(super) struct Lane {
    pub key: Key,
    /// In the order in which lanes were made.
    pub serial: u64,
    pub home: Arc<Home>,
    books: Mutex<Books>,
}

/// What a lane's lock guards.
pub(super) struct Books {
    pub pool: Pool,
    /// The live blocks by address.
    pub blocks: Blocks,
    /// Freed by their owner, and perhaps still in use on other streams.
    pending: Vec<Pending>,
    /// The sum over `pending`.
    pub pending_bytes: u64,
    /// Frees since what is pending was looked at.
    frees: u32,
    /// Requests that were served for groups that had the lane before.
    pub served_before: u64,
    /// Blocks that their owners freed, ever.
    pub freed: u64,
    /// Bytes given up to other lanes and not replaced since.
    pub given_up: u64,
    /// What was in the live blocks, while the lane is absent.
    pub kept: Option<Contents>,
}

struct Pending {
    id: BlockId,
    bytes: u64,
    /// On which nothing could be recorded yet.
    users: Vec<Stream>,
    /// Which have to pass, each with the stream it was recorded on.
    events: Vec<(Stream, Event)>,
}

/// Who waits for the streams that used a pending block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Nobody: only what has passed comes back.
    Nobody,
    /// The lane's stream, where work can be queued on it.
    Stream,
    /// The host, which waits without the lane's lock: the streams may be waiting for work that a thread
    /// queues only once it has had something of this lane.
    Host,
}

impl Lane {
    pub fn new(key: Key, serial: u64, depot: &Arc<Depot>, options: &Options) -> Lane {
        let home = Arc::new(Home::new(key));
        let books = Books::new(&home, depot, options);
        Lane { key, serial, home, books: Mutex::new(books) }
    }

    /// Takes the lane from a group that is removed, of which nothing is in use and nothing held. What it learned of
    /// the group's requests is forgotten.
    pub fn vacate(&self, depot: &Arc<Depot>, options: &Options) {
        let mut books = self.lock();
        let served_before = books.served();
        *books = Books { served_before, freed: books.freed, ..Books::new(&self.home, depot, options) };
        self.home.set_group(None);
    }

    /// Gives the lane to a group, which has its slot.
    pub fn occupy(&self, group: GroupId) {
        let _books = self.lock();
        self.home.set_group(Some(group));
        self.home.set_away(false);
    }

    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, Books> {
        lock(&self.books)
    }

    /// The physical memory of the device that it has, bytes.
    pub fn held(&self) -> u64 {
        self.lock().pool.usage().held - self.home.spilled_bytes()
    }

    /// The books, unless somebody has them.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, Books>> {
        match self.books.try_lock() {
            Ok(books) => Some(books),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Books {
    fn new(home: &Arc<Home>, depot: &Arc<Depot>, options: &Options) -> Books {
        let door = Box::new(Door::new(Arc::clone(depot), Arc::clone(home)));
        let pool = if depot.caps().tiling { Pool::tiled(door, options) } else { Pool::placed(door, options) };
        let (is_graph, is_group) = (home.key.is_graph(), home.key.is_group());
        // Streams are few; a program may keep a graph, and its pool, for every shape it has met, and a group for every
        // model.
        let pool = if is_group { pool.lasting() } else { pool };
        let pool = if is_graph || is_group { pool.reserving(MANY_BYTES) } else { pool };
        Books {
            pool,
            blocks: Blocks::new(),
            pending: Vec::new(),
            pending_bytes: 0,
            frees: 0,
            served_before: 0,
            freed: 0,
            given_up: 0,
            kept: None,
        }
    }

    /// Requests served, ever.
    pub fn served(&self) -> u64 {
        self.served_before + self.pool.stats().allocations
    }

    /// Gives a block that its owner has freed, and that is no longer among the live ones, back to the pool: now,
    /// or when the streams that used it beside the lane's own are through.
    #[inline(always)]
    pub fn free(&mut self, block: Live, depot: &Depot, home: &Home) -> Result<()> {
        self.freed += 1;
        match self.blocks.remove_users(block.address) {
            Some(users) => self.put_off(block, users, depot),
            None => self.pool.free(block.id)?,
        }
        if self.pending.is_empty() && self.kept.is_none() { Ok(()) } else { self.attend(depot, home) }
    }

    /// What follows a free of a block where something is pending, or kept.
    #[cold]
    fn attend(&mut self, depot: &Depot, home: &Home) -> Result<()> {
        let kept = self.kept.take();
        self.keep(kept);
        if self.pending.is_empty() { Ok(()) } else { self.poll(depot, home) }
    }

    /// Keeps the contents of the live blocks, if there are any.
    pub fn keep(&mut self, contents: Option<Contents>) {
        self.kept = contents.filter(|_| !self.blocks.is_empty());
    }

    /// Looks at what is pending, every so many frees.
    fn poll(&mut self, depot: &Depot, home: &Home) -> Result<()> {
        self.frees += 1;
        if self.frees >= POLL { self.absorb(depot, home, false) } else { Ok(()) }
    }

    #[cold]
    fn put_off(&mut self, block: Live, users: Vec<Stream>, depot: &Depot) {
        let Live { id, bytes, .. } = block;
        let mut pending = Pending { id, bytes, users, events: Vec::new() };
        pending.record(depot);
        self.pending_bytes += bytes;
        depot.add_pending(bytes);
        self.pending.push(pending);
    }

    /// What has to pass before all that is pending comes back, as far as it can be recorded by now.
    pub fn awaited(&mut self, depot: &Depot) -> Vec<Event> {
        self.pending.iter_mut().for_each(|pending| pending.record(depot));
        self.pending.iter().flat_map(|pending| &pending.events).map(|(_, event)| Arc::clone(event)).collect()
    }

    /// Whether something is pending that could not be recorded yet, so that nothing tells when it is through.
    pub fn waits_unknown(&self) -> bool {
        self.pending.iter().any(|pending| !pending.users.is_empty())
    }

    /// Takes back the pending blocks whose users are through. With `queue` the stream of `home` waits for the
    /// others, where work can be queued on it.
    pub fn absorb(&mut self, depot: &Depot, home: &Home, queue: bool) -> Result<()> {
        self.frees = 0;
        if self.pending.is_empty() {
            return Ok(());
        }
        let queue = queue && depot.can_queue(home);
        let mut outcome = Ok(());
        // Blocks lie here in the order in which they were freed: behind an event that has not passed no other
        // of its stream has, and asking would cost a call for each.
        let mut busy: Vec<Stream> = Vec::new();
        for mut pending in std::mem::take(&mut self.pending) {
            pending.record(depot);
            pending.events.retain(|(stream, event)| {
                if queue && event.wait(home.stream()).is_ok() {
                    return false;
                }
                let waits = busy.contains(stream) || !event.passed();
                if waits && !busy.contains(stream) {
                    busy.push(*stream);
                }
                waits
            });
            if pending.users.is_empty() && pending.events.is_empty() {
                self.pending_bytes -= pending.bytes;
                depot.take_pending(pending.bytes);
                outcome = outcome.and(self.pool.free(pending.id));
            } else {
                self.pending.push(pending);
            }
        }
        outcome
    }

    /// Strikes out a stream that is no more and has done all it was to do.
    pub fn forget(&mut self, stream: Stream) {
        self.blocks.forget(stream);
        for pending in &mut self.pending {
            pending.users.retain(|&user| user != stream);
        }
    }

    /// Whether no block is live or pending.
    pub fn is_idle(&self) -> bool {
        self.blocks.is_empty() && self.pending.is_empty()
    }
}

impl Pending {
    /// Records what can be recorded by now.
    fn record(&mut self, depot: &Depot) {
        let events = &mut self.events;
        self.users.retain(|&user| match depot.record(user) {
            Some(event) => {
                events.push((user, event));
                false
            }
            None => true,
        });
    }
}

//! A lane as the depot knows it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::lock;
use crate::manager::Stream;
use crate::shared::groups::GroupId;
use crate::shared::lane::Key;
use crate::shared::streams::Event;

const ORPHAN: u8 = 1;
const AWAY: u8 = 2;

/// The number of no group.
const NONE: u32 = u32::MAX;

/// A lane as the depot knows it: by whose order its memory goes.
#[derive(Debug)]
pub struct Home {
    pub key: Key,
    /// `ORPHAN` and `AWAY`.
    odd: AtomicU8,
    /// The number of the group whose lane it is at present.
    group: AtomicU32,
    /// It belongs to a graph's pool that is referenced: what a graph uses keeps its tiles and addresses, so
    /// nothing is unmapped or given to other lanes.
    pinned: AtomicBool,
    /// Its pool is being served for the last time before memory counts as out: heaps are taken for which its
    /// stream has to wait.
    pressed: AtomicBool,
    /// What its lane gives back now grew old there.
    aging: AtomicBool,
    /// Bytes of heaps it has that are on the host.
    spilled: AtomicU64,
    /// Its pool is being served when nothing is left but the host's memory.
    spilling: AtomicBool,
    /// Recorded during the operation that the lane is in, for all it gives back in it.
    pub(super) mark: Mutex<Option<Event>>,
}

impl Home {
    pub fn new(key: Key) -> Home {
        Home {
            key,
            odd: AtomicU8::new(0),
            group: AtomicU32::new(NONE),
            pinned: AtomicBool::new(key.is_graph()),
            pressed: AtomicBool::new(false),
            aging: AtomicBool::new(false),
            spilled: AtomicU64::new(0),
            spilling: AtomicBool::new(false),
            mark: Mutex::default(),
        }
    }

    pub fn stream(&self) -> Stream {
        self.key.stream
    }

    /// Whether a request has to look closer: the lane is an orphan, or away.
    #[inline]
    pub fn is_odd(&self) -> bool {
        self.odd.load(Ordering::Relaxed) != 0
    }

    /// The stream is no more, and everything it did is done.
    pub fn is_orphan(&self) -> bool {
        self.odd.load(Ordering::Relaxed) & ORPHAN != 0
    }

    pub fn set_orphan(&self, orphan: bool) {
        self.set(ORPHAN, orphan);
    }

    /// Its group is evicted, on its way out, or not there yet: no request is served and nothing given to others.
    pub fn is_away(&self) -> bool {
        self.odd.load(Ordering::Relaxed) & AWAY != 0
    }

    pub fn set_away(&self, away: bool) {
        self.set(AWAY, away);
    }

    /// The group whose lane it is. Changed with the lane's lock held.
    #[inline]
    pub fn group(&self) -> Option<GroupId> {
        Some(GroupId(self.group.load(Ordering::Relaxed))).filter(|group| group.0 != NONE)
    }

    pub fn set_group(&self, group: Option<GroupId>) {
        self.group.store(group.map_or(NONE, |group| group.0), Ordering::Relaxed);
    }

    fn set(&self, bit: u8, on: bool) {
        if on {
            self.odd.fetch_or(bit, Ordering::Relaxed);
        } else {
            self.odd.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    pub fn is_pinned(&self) -> bool {
        self.pinned.load(Ordering::Acquire)
    }

    pub fn set_pinned(&self, pinned: bool) {
        self.pinned.store(pinned, Ordering::Release);
    }

    pub fn set_pressed(&self, pressed: bool) {
        self.pressed.store(pressed, Ordering::Relaxed);
    }

    pub fn is_pressed(&self) -> bool {
        self.pressed.load(Ordering::Relaxed)
    }

    pub fn set_aging(&self, aging: bool) {
        self.aging.store(aging, Ordering::Relaxed);
    }

    pub fn is_aging(&self) -> bool {
        self.aging.load(Ordering::Relaxed)
    }

    /// Bytes of heaps that the lane has and that are on the host.
    pub fn spilled_bytes(&self) -> u64 {
        self.spilled.load(Ordering::Relaxed)
    }

    pub fn add_spilled(&self, bytes: u64) {
        self.spilled.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn take_spilled(&self, bytes: u64) {
        self.spilled.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub fn set_spilling(&self, spilling: bool) {
        self.spilling.store(spilling, Ordering::Relaxed);
    }

    pub fn is_spilling(&self) -> bool {
        self.spilling.load(Ordering::Relaxed)
    }

    /// Begins an operation of the lane, whose lock is held: what it gives back from here on is free from
    /// here on.
    pub fn begin(&self) {
        *lock(&self.mark) = None;
    }

    /// Begins an operation of the lane, whose lock is held, with nothing queued that uses what it gives back:
    /// `done` has passed.
    pub fn settle(&self, done: Event) {
        *lock(&self.mark) = Some(done);
    }
}

//! A lane as the depot knows it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::lock;
use crate::manager::Stream;
use crate::shared::lane::Key;
use crate::shared::streams::Event;

/// A lane as the depot knows it: by whose order its memory goes.
#[derive(Debug)]
pub struct Home {
    pub key: Key,
    /// The stream is no more, and everything it did is done.
    orphan: AtomicBool,
    /// It belongs to a graph's pool that is referenced: what a graph uses keeps its tiles and addresses, so
    /// nothing is unmapped or given to other lanes.
    pinned: AtomicBool,
    /// Its pool is being served for the last time before memory counts as out: heaps are taken for which its
    /// stream has to wait.
    pressed: AtomicBool,
    /// Recorded during the operation that the lane is in, for all it gives back in it.
    pub(super) mark: Mutex<Option<Event>>,
}

impl Home {
    pub fn new(key: Key) -> Home {
        Home {
            key,
            orphan: AtomicBool::new(false),
            pinned: AtomicBool::new(key.is_graph()),
            pressed: AtomicBool::new(false),
            mark: Mutex::default(),
        }
    }

    pub fn stream(&self) -> Stream {
        self.key.stream
    }

    #[inline]
    pub fn is_orphan(&self) -> bool {
        self.orphan.load(Ordering::Relaxed)
    }

    pub fn set_orphan(&self, orphan: bool) {
        self.orphan.store(orphan, Ordering::Relaxed);
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

    /// Begins an operation of the lane, whose lock is held: what it gives back from here on is free from
    /// here on.
    pub fn begin(&self) {
        *lock(&self.mark) = None;
    }
}

//! The device as managers use it: every call accounted for, undone when a later one fails, and
//! remembered when it could not be undone.
//!
//! ```text
//!   taking     reserve ─► create ─► map ─► set_access
//!                 │          │        │        │ a call fails:
//!                 ▼          ▼        ▼        ▼ what was done of it goes back
//!   giving     unreserve ◄ release ◄ unmap ◄───┘
//!                 │          │        │ a call fails:
//!                 ▼          ▼        ▼
//!              leftovers: still held and counted, tried again by `retry`
//! ```
//!
//! Managers call [`Memory::retry`] in `end_of_execution` and `trim`, and before they report that
//! memory ran out, so a device that fails for a while costs memory for that while and no longer.

use crate::device::{Bind, Caps, Device, DeviceError, HeapId, Range, RangeId};
use crate::error::{Error, Result};
use crate::manager::account::Account;
use crate::manager::{Stats, Usage};

/// A device, the books on what was taken from it, and what could not be given back yet.
pub struct Memory {
    device: Box<dyn Device>,
    account: Account,
    /// Empty unless a call of the device failed. In the order in which the giving back began.
    leftovers: Vec<Return>,
}

/// Physical memory with a range of its own: one heap, mapped whole, usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    /// Where it is mapped. As long as the heap.
    pub range: Range,
    /// What backs it.
    pub heap: HeapId,
}

/// What is to be given back together, in this order; each part is struck out once done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Return {
    /// Part of a range to unmap: range, offset and length in bytes.
    pub unmap: Option<(RangeId, u64, u64)>,
    /// A heap to release, and its bytes.
    pub release: Option<(HeapId, u64)>,
    /// A range to give back.
    pub unreserve: Option<Range>,
}

impl From<Home> for Return {
    fn from(home: Home) -> Return {
        let Home { range, heap } = home;
        Return {
            unmap: Some((range.id, 0, range.bytes)),
            release: Some((heap, range.bytes)),
            unreserve: Some(range),
        }
    }
}

impl Return {
    /// A range that is mapped over its whole length to heaps that stay.
    pub fn mapping(range: Range) -> Return {
        Return { unmap: Some((range.id, 0, range.bytes)), release: None, unreserve: Some(range) }
    }

    fn is_done(&self) -> bool {
        *self == Return::default()
    }

    /// True when this keeps `other` from being given back: its mapping lies in a range or may lie on a
    /// heap that `other` parts with. Which heaps a mapping lies on is known only when it goes with one.
    fn stands_before(&self, other: &Return) -> bool {
        let Some((mapped, ..)) = self.unmap else {
            return false;
        };
        let in_its_range = other.unreserve.is_some_and(|range| range.id == mapped);
        let on_its_heap = other.release.is_some() && self.release.is_none();
        in_its_range || on_its_heap
    }
}

impl Memory {
    /// Books for a device of which nothing was taken yet.
    pub fn new(device: Box<dyn Device>) -> Memory {
        Memory { device, account: Account::default(), leftovers: Vec::new() }
    }

    /// The device.
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// What the device can do.
    pub fn caps(&self) -> &Caps {
        self.device.caps()
    }

    /// The books.
    #[inline]
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// The books, to enter what was lent and returned; what was taken from the device is entered here.
    #[inline]
    pub fn account_mut(&mut self) -> &mut Account {
        &mut self.account
    }

    /// The part of a report that the books and the leftovers give; a manager adds what its free lists know.
    pub fn stats(&self) -> Stats {
        let leftover = self.leftovers.iter().filter_map(|r| r.release).map(|(_, bytes)| bytes).sum();
        Stats { leftover, ..self.account.stats() }
    }

    /// The bytes of physical memory that a request of `bytes` takes by itself: whole tiles.
    ///
    /// # Errors
    /// [`Error::ZeroSize`]; [`Error::TooLarge`] when no range could be as long.
    pub fn whole_tiles(&self, bytes: u64) -> Result<u64> {
        let Caps { tile_bytes, max_range_bytes: max, .. } = *self.caps();
        match bytes {
            0 => Err(Error::ZeroSize),
            // The longest range is a multiple of the tile, so rounding up stays within it.
            _ if bytes > max => Err(Error::TooLarge { bytes, max }),
            _ => Ok(bytes.next_multiple_of(tile_bytes)),
        }
    }

    /// Takes physical memory with a range of its own, to serve a request of `request` bytes. What
    /// earlier failures left behind is given back first when memory runs out.
    ///
    /// # Errors
    /// [`Error::ZeroSize`], [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::Device`]; nothing is
    /// taken then.
    pub fn home_for(&mut self, request: u64, bytes: u64) -> Result<Home> {
        let bytes = self.whole_tiles(bytes)?;
        let mut taken = self.take_home(bytes);
        if matches!(taken, Err(DeviceError::OutOfMemory { .. })) && matches!(self.retry(), Ok(1..)) {
            taken = self.take_home(bytes);
        }
        taken.map_err(|error| self.explain(request, error))
    }

    /// Reserves, creates, maps and sets access: `bytes` of physical memory with a range of its own.
    ///
    /// # Errors
    /// Those of the device; nothing is taken then.
    pub fn take_home(&mut self, bytes: u64) -> Result<Home, DeviceError> {
        let range = self.reserve(bytes)?;
        let mut undo = Return { unreserve: Some(range), ..Return::default() };
        let made = self.create(bytes).and_then(|heap| {
            undo.release = Some((heap, bytes));
            self.map(range.id, &[Bind { range_offset: 0, heap, heap_offset: 0, bytes }])?;
            Ok(Home { range, heap })
        });
        made.inspect_err(|_| self.undo(undo))
    }

    /// Reserves a range of `bytes` and maps it to pieces of heaps held already. Only for devices with
    /// tiling.
    ///
    /// # Errors
    /// Those of the device; nothing is taken then.
    pub fn take_mapping(&mut self, bytes: u64, binds: &[Bind]) -> Result<Range, DeviceError> {
        let range = self.reserve(bytes)?;
        match self.map(range.id, binds) {
            Ok(()) => Ok(range),
            Err(error) => {
                self.undo(Return { unreserve: Some(range), ..Return::default() });
                Err(error)
            }
        }
    }

    /// Reserves a range.
    ///
    /// # Errors
    /// Those of the device; nothing is taken then.
    pub fn reserve(&mut self, bytes: u64) -> Result<Range, DeviceError> {
        let range = self.device.reserve(bytes)?;
        self.account.reserved(range.bytes);
        Ok(range)
    }

    /// Creates a heap.
    ///
    /// # Errors
    /// Those of the device; nothing is taken then.
    pub fn create(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        let heap = self.device.create(bytes)?;
        self.account.created(bytes);
        Ok(heap)
    }

    /// Maps one run of `range`, without a gap, to pieces of heaps and makes it usable.
    ///
    /// # Errors
    /// Those of the device; nothing is mapped then, or will not be once the device works again.
    pub fn map(&mut self, range: RangeId, binds: &[Bind]) -> Result<(), DeviceError> {
        self.device.map(range, binds)?;
        let (offset, bytes) = run(binds);
        self.account.mapped(bytes);
        if !self.device.caps().needs_access {
            return Ok(());
        }
        let usable = self.device.set_access(range, offset, bytes);
        usable.inspect_err(|_| self.undo(Return { unmap: Some((range, offset, bytes)), ..Return::default() }))
    }

    /// Gives back what is named, and says how many bytes of physical memory that released.
    ///
    /// # Errors
    /// [`Error::Device`] when a call failed. What it was to give back is remembered as still held, for
    /// [`retry`](Memory::retry); the caller must forget it either way.
    pub fn give_back(&mut self, what: impl Into<Return>) -> Result<u64> {
        let what = what.into();
        if self.leftovers.iter().any(|earlier| earlier.stands_before(&what)) {
            // The device would refuse, and rightly. The failure has been told when it happened.
            self.leftovers.push(what);
            return Ok(0);
        }
        let held = self.account.usage().held;
        let mut rest = what;
        let given = self.carry_out(&mut rest);
        if let Err(error) = &given {
            tracing::warn!(%error, "device memory could not be given back: it stays held and is tried again");
            self.leftovers.push(rest);
        }
        given.map_err(Error::Device)?;
        Ok(held - self.account.usage().held)
    }

    /// Tries again to give back what could not be given back before, and says how many bytes of physical
    /// memory that released. Costs nothing when nothing is left over.
    ///
    /// # Errors
    /// [`Error::Device`] with the first failure, after everything was tried.
    pub fn retry(&mut self) -> Result<u64> {
        let held = self.account.usage().held;
        let mut outcome = Ok(());
        for what in std::mem::take(&mut self.leftovers) {
            outcome = outcome.and(self.give_back(what).map(drop));
        }
        outcome.map(|()| held - self.account.usage().held)
    }

    /// What could not be given back yet.
    pub fn leftovers(&self) -> &[Return] {
        &self.leftovers
    }

    /// Makes the error a caller sees of a device's, for a request of `request` bytes.
    pub fn explain(&self, request: u64, error: DeviceError) -> Error {
        match error {
            DeviceError::OutOfMemory { .. } => {
                let usage = self.account.usage();
                let limit = self.caps().capacity_bytes;
                let Usage { live, mapped, held, .. } = usage;
                let device_free = self.device.free_bytes();
                Error::OutOfMemory { request, live, mapped, held, limit, device_free }
            }
            other => Error::Device(other),
        }
    }

    /// Panics when the books contradict each other, or the manager's, in which `heaps` bytes of heaps are.
    pub fn check_invariants(&self, heaps: u64) {
        self.account.check_invariants();
        let Stats { leftover, usage, .. } = self.stats();
        assert_eq!(usage.held, heaps + leftover, "bytes counted held and bytes of heaps and leftovers");
        assert!(self.leftovers.iter().all(|r| !r.is_done()), "nothing is left of a leftover");
    }

    /// Gives back on the way out of a failure: the caller reports that failure, not this one.
    fn undo(&mut self, what: Return) {
        let _logged = self.give_back(what);
    }

    fn carry_out(&mut self, what: &mut Return) -> Result<(), DeviceError> {
        if let Some((range, offset, bytes)) = what.unmap {
            self.device.unmap(range, offset, bytes)?;
            self.account.unmapped(bytes);
            what.unmap = None;
        }
        if let Some((heap, bytes)) = what.release {
            self.device.release(heap)?;
            self.account.released(bytes);
            what.release = None;
        }
        if let Some(range) = what.unreserve {
            self.device.unreserve(range.id)?;
            self.account.unreserved(range.bytes);
            what.unreserve = None;
        }
        Ok(())
    }
}

/// Where a run of binds begins in its range, and how long it is.
fn run(binds: &[Bind]) -> (u64, u64) {
    let begin = binds.iter().map(|b| b.range_offset).min().unwrap_or(0);
    let end = binds.iter().map(|b| b.range_offset + b.bytes).max().unwrap_or(0);
    debug_assert_eq!(end - begin, binds.iter().map(|b| b.bytes).sum::<u64>(), "a gap or an overlap");
    (begin, end - begin)
}

#[cfg(test)]
mod tests;

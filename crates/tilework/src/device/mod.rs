//! The seam to a device: reserve, create, map, set access, unmap, release.
//!
//! A device does what it is told and decides nothing. Managers branch on [`Caps`], never on a name.
//!
//! [`open`] makes a device by name. [`fault::Fault`], [`limit::Limit`] and [`waiting::Waiting`] go around any
//! of them. To write another: keep [`books::Books`], and stamp the conformance suite (feature `testing`) on it.

use std::fmt;

use serde::Serialize;

pub mod books;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
pub mod costs;
pub mod fault;
pub(crate) mod forward;
// The one place in the crate that maps memory and copies through raw addresses.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub mod host;
pub mod limit;
pub mod null;
mod open;
pub mod sim;
pub mod waiting;

pub use open::{NAMES, OpenError, open};

use self::forward::forward;
use crate::units::exact;

/// What a device can do. Fixed for the life of the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caps {
    /// The smallest unit of physical memory that can be created and mapped, bytes; a power of two.
    pub tile_bytes: u64,
    /// True: a range may be mapped piece by piece to several heaps, and a heap to several ranges.
    /// False: a heap backs one range of its own length, whole and once.
    pub tiling: bool,
    /// True: part of a heap may be mapped, at any multiple of `tile_bytes`. False: a heap maps whole
    /// or not at all, so that each heap is one tile of its own size (CUDA).
    pub partial_maps: bool,
    /// True: a mapping can be used only after [`Device::set_access`].
    pub needs_access: bool,
    /// The longest range that can be reserved, bytes; a multiple of `tile_bytes`.
    pub max_range_bytes: u64,
    /// True: the memory can be read and written with [`Device::read`] and [`Device::write`].
    pub memory: bool,
    /// Physical memory the device can ever hold, bytes, where it is bounded or a limit is set.
    pub capacity_bytes: Option<u64>,
    /// True: heaps may lie on the host, too ([`Device::create_on_host`]).
    pub host_heaps: bool,
    /// What the program puts between two uses of the same memory at different places.
    pub aliasing: Aliasing,
}

/// What has to stand between the last use of memory at one place and its first use at another, in work that one queue
/// runs in order.
///
/// Managers hand memory out at whatever place suits, so whoever records commands asks for it before the first use of
/// every block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aliasing {
    /// Nothing: what runs later sees what ran earlier, wherever it was written.
    Ordered,
    /// A barrier over all memory; one that names a buffer does not cover the same memory in another (Vulkan).
    MemoryBarrier,
    /// An aliasing barrier that names no resource (Direct3D 12).
    AliasingBarrier,
}

/// A reserved range of address space. Never reused: two ranges of one device never have the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RangeId(pub u64);

/// Physical memory made by one create call. Never reused within a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeapId(pub u64);

/// Reserved address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Its name.
    pub id: RangeId,
    /// Its first address, in the device's address space.
    pub address: u64,
    /// Its length, bytes.
    pub bytes: u64,
}

/// One piece of a mapping: `bytes` of `heap` from `heap_offset` appear at `range_offset` of the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bind {
    /// Where in the range, bytes; a multiple of the tile.
    pub range_offset: u64,
    /// Which heap.
    pub heap: HeapId,
    /// Where in the heap, bytes; a multiple of the tile, zero where heaps map whole.
    pub heap_offset: u64,
    /// How much, bytes; a multiple of the tile, the whole heap where heaps map whole.
    pub bytes: u64,
}

impl Bind {
    /// Whether `next` goes on where this one ends, both in the range and in the heap.
    pub fn continued_by(&self, next: &Bind) -> bool {
        self.heap == next.heap
            && self.range_offset.checked_add(self.bytes) == Some(next.range_offset)
            && self.heap_offset.checked_add(self.bytes) == Some(next.heap_offset)
    }
}

/// How many calls the driver under a device has served, and the time they took.
///
/// These count the calls a driver sees, not the trait's: one [`Device::map`] of ten heaps is ten maps
/// where the driver takes one heap a call. The names are those of `tilework replay --json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Calls {
    /// Address space reserved or given back.
    pub reserve: u64,
    /// Physical memory created.
    pub create: u64,
    /// Mappings made.
    pub map: u64,
    /// Access rights set.
    pub set_access: u64,
    /// Mappings undone.
    pub unmap: u64,
    /// Physical memory released.
    pub release: u64,
    /// Time in the calls, nanoseconds: measured on real devices, charged on simulated ones.
    #[serde(skip)]
    pub nanos: u64,
}

impl Calls {
    /// Calls of every kind together.
    pub fn total(&self) -> u64 {
        self.reserve + self.create + self.map + self.set_access + self.unmap + self.release
    }

    /// What came since `earlier`, a reading of the same device.
    pub fn since(&self, earlier: &Calls) -> Calls {
        Calls {
            reserve: self.reserve - earlier.reserve,
            create: self.create - earlier.create,
            map: self.map - earlier.map,
            set_access: self.set_access - earlier.set_access,
            unmap: self.unmap - earlier.unmap,
            release: self.release - earlier.release,
            nanos: self.nanos - earlier.nanos,
        }
    }
}

/// One of the calls of the seam, as named in errors; [`Order`](Call::Order) stands for those of streams and
/// events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Call {
    Reserve,
    Unreserve,
    Create,
    Map,
    SetAccess,
    Unmap,
    Release,
    Read,
    Write,
    Order,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Call::Reserve => "reserve",
            Call::Unreserve => "unreserve",
            Call::Create => "create",
            Call::Map => "map",
            Call::SetAccess => "set_access",
            Call::Unmap => "unmap",
            Call::Release => "release",
            Call::Read => "read",
            Call::Write => "write",
            Call::Order => "ordering streams",
        })
    }
}

/// What a device answers when a call fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The device, or a limit around it, has no physical memory left for this.
    #[error("the device has no {} of physical memory left", exact(*bytes))]
    OutOfMemory {
        /// Bytes that were to be created.
        bytes: u64,
    },
    /// The call breaks a rule of the device: a defect of the caller.
    #[error("{call} breaks a rule of the device: {rule}")]
    Violation {
        /// Which call.
        call: Call,
        /// Which rule, and how it was broken.
        rule: String,
    },
    /// The driver or the operating system refused.
    #[error("{call} failed: {reason}")]
    Failed {
        /// Which call.
        call: Call,
        /// What the driver said.
        reason: String,
    },
}

/// A device's physical memory and address space.
///
/// Implementors must make each call all or nothing: a call that returns an error has had no effect.
/// Ids must never be reused. A call that breaks a precondition must return
/// [`DeviceError::Violation`] or be refused by the driver; it must never touch memory that is not
/// part of the call. Dropping a device gives everything back.
///
/// Callers must keep to [`Caps`]: sizes and offsets are multiples of `tile_bytes`.
///
/// No method has a default: a wrapper would pass over it without a word.
pub trait Device: Send {
    /// The name it is chosen by.
    fn name(&self) -> &'static str;

    /// What it can do.
    fn caps(&self) -> &Caps;

    /// Reserves `bytes` of address space, aligned to the tile.
    ///
    /// # Errors
    /// When the device has no such range left, or `bytes` exceeds [`Caps::max_range_bytes`].
    fn reserve(&mut self, bytes: u64) -> Result<Range, DeviceError>;

    /// Gives a range back. No part of it may be mapped.
    ///
    /// # Errors
    /// [`DeviceError::Violation`] for one that is not reserved or is mapped; [`DeviceError::Failed`]. It stays reserved then.
    fn unreserve(&mut self, range: RangeId) -> Result<(), DeviceError>;

    /// Creates `bytes` of physical memory, zeroed.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] when there is no memory left.
    fn create(&mut self, bytes: u64) -> Result<HeapId, DeviceError>;

    /// Creates `bytes` of physical memory on the host, zeroed, that the device uses as it does its own: mapped into
    /// the same ranges, in the same way, beside heaps of its own or in their place. Each access crosses the bus.
    ///
    /// It counts for neither [`Caps::capacity_bytes`] nor [`held_bytes`](Device::held_bytes), and among
    /// [`Calls::create`].
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] when the host has no memory left; [`DeviceError::Violation`] without
    /// [`Caps::host_heaps`].
    fn create_on_host(&mut self, bytes: u64) -> Result<HeapId, DeviceError>;

    /// Gives physical memory back. No part of it may be mapped.
    ///
    /// # Errors
    /// [`DeviceError::Violation`] for a heap that is not held or is mapped; [`DeviceError::Failed`]. It stays held then.
    fn release(&mut self, heap: HeapId) -> Result<(), DeviceError>;

    /// Maps pieces of heaps into a range. No part of the range that is named may be mapped yet.
    /// A heap may be mapped in several places at once where the device has tiling.
    ///
    /// # Errors
    /// [`DeviceError::Violation`] where a rule of the device is broken; [`DeviceError::OutOfMemory`] and
    /// [`DeviceError::Failed`]. Nothing of it is mapped then.
    fn map(&mut self, range: RangeId, binds: &[Bind]) -> Result<(), DeviceError>;

    /// Makes a mapped part of a range usable. Managers call it only where [`Caps::needs_access`].
    ///
    /// # Errors
    /// [`DeviceError::Violation`] where not all of it is mapped; [`DeviceError::Failed`]. It stays mapped then.
    fn set_access(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError>;

    /// Unmaps part of a range: whole pieces as they were mapped, nothing unmapped in between.
    /// The caller must know that nothing uses these addresses any more.
    ///
    /// # Errors
    /// [`DeviceError::Violation`] where something else is mapped there; [`DeviceError::Failed`]. It stays mapped then.
    fn unmap(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError>;

    /// Lets the device numbered `peer`, as the driver counts, use what is mapped and what will be. Where rights
    /// do not come with mappings ([`Caps::needs_access`] is false) there is nothing to do.
    ///
    /// # Errors
    /// When there is no such device, it cannot reach this one's memory, or the driver refuses. It may reach part
    /// of what is mapped then.
    fn add_peer(&mut self, peer: u32) -> Result<(), DeviceError>;

    /// Calls served and time spent since the device was made.
    fn calls(&self) -> Calls;

    /// Physical memory held, bytes, by the best witness there is: the kernel or driver where it can
    /// be asked, the device's own books otherwise. Heaps on the host are not in it.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] when the witness cannot be asked.
    fn held_bytes(&self) -> Result<u64, DeviceError>;

    /// Physical memory that is free on the device, bytes, all its users together; `None` where it cannot tell.
    fn free_bytes(&self) -> Option<u64>;

    /// The longest heap, not longer than `most` bytes, that [`create`](Device::create) has ready and need not
    /// make; `None` when it has none.
    fn ready(&self, most: u64) -> Option<u64>;

    /// Copies device memory from `address` into `out`.
    ///
    /// # Errors
    /// [`DeviceError::Violation`] where not all of it is mapped, or the device has no memory; [`DeviceError::Failed`].
    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), DeviceError>;

    /// Copies `bytes` to device memory at `address`.
    ///
    /// # Errors
    /// As [`read`](Device::read).
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError>;
}

impl<D: Device + ?Sized> Device for Box<D> {
    forward!(|this| (**this) =>
        name, caps, reserve, unreserve, create, create_on_host, release, map, set_access, unmap, add_peer, calls,
        held_bytes, free_bytes, ready, read, write
    );
}

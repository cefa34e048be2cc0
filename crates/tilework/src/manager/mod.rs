//! Memory managers: one interface, four ways to serve it, chosen at run time by name.
//!
//! [`build`] makes one, by [`Kind`] or by a [`Choice`] that leaves it to the device. The parts that every manager stands on are open to managers of other crates:
//! [`blocks`] names what is lent, [`memory`] takes from the device and gives back, [`account`] counts.

pub mod account;
pub mod blocks;
mod bucketized;
mod build;
mod choice;
mod committed;
mod fenced;
pub mod memory;
mod options;
mod pool;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::device::{Device, RangeId};
use crate::error::Result;

pub use self::bucketized::Bucketized;
pub use self::build::{Built, build};
pub use self::choice::{Choice, Serving};
pub use self::committed::Committed;
pub use self::fenced::Fenced;
pub use self::options::{Options, Rounding};
pub(crate) use self::pool::Span;
pub use self::pool::{Pool, Served};

/// A block as its owner knows it. Ids are never reused for another block while the manager lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u64);

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {:#x}", self.0)
    }
}

/// Memory handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// The name to free it by.
    pub id: BlockId,
    /// Its first address, in the device's address space; a multiple of 512.
    pub address: u64,
    /// The range it lies in: what a command list binds. No two ranges ever share an id, and a range keeps
    /// its address, so equal ids and offsets mean that a recorded command still reaches the block. While
    /// the block is live, its bytes keep the physical memory behind them.
    pub range: RangeId,
    /// Where in the range, bytes.
    pub offset: u64,
    /// Bytes that were requested.
    pub bytes: u64,
}

/// The queue or stream a request belongs to. Requests of one stream run in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Stream(pub u64);

/// The running figures of a manager, bytes. Kept up to date by every operation, so reading is free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Requested and not yet freed.
    pub live: u64,
    /// The most that was ever live.
    pub peak_live: u64,
    /// Physical memory created and not released.
    pub held: u64,
    /// The most that was ever held.
    pub peak_held: u64,
    /// Address space backed by physical memory; memory mapped twice counts twice.
    pub mapped: u64,
    /// Address space reserved.
    pub reserved: u64,
}

/// A manager's report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// The running figures.
    pub usage: Usage,
    /// The largest request that could be served in one piece without the device, bytes.
    pub largest_free_run: u64,
    /// Mappings kept for reuse that no block uses at the moment.
    pub cached_mappings: u64,
    /// The part of what is held that the device failed to take back, bytes. It is tried again at the end of
    /// each execution.
    pub leftover: u64,
    /// Heaps held.
    pub heaps: u64,
    /// Blocks live.
    pub blocks: u64,
    /// Requests served since the manager was made.
    pub allocations: u64,
    /// Blocks freed since the manager was made.
    pub frees: u64,
}

/// A memory manager. Not thread-safe by itself: put it behind a lock to share it.
///
/// Each method either does all it says or returns an error and has changed nothing that the caller
/// could see: blocks stay valid, later calls work.
///
/// Callers must free a block once, and only when no queued work uses it any more, or queue all later
/// users of the memory behind that work.
pub trait Manager: Send {
    /// Which manager this is. After a fallback, the one that serves.
    fn kind(&self) -> Kind;

    /// Serves a request of `bytes` for work on `stream`. The contents are undefined.
    ///
    /// # Errors
    /// [`Error::ZeroSize`](crate::Error::ZeroSize), [`Error::TooLarge`](crate::Error::TooLarge),
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) once nothing unused is left to give back,
    /// [`Error::Device`](crate::Error::Device) when the device fails.
    fn alloc(&mut self, bytes: u64, stream: Stream) -> Result<Block>;

    /// Takes a block back.
    ///
    /// # Errors
    /// [`Error::UnknownBlock`](crate::Error::UnknownBlock), [`Error::DoubleFree`](crate::Error::DoubleFree).
    fn free(&mut self, id: BlockId) -> Result<()>;

    /// Says how requests are rounded from now on, where a manager rounds them at all: `bucketized` pools temporaries
    /// and makes weights to size. What is live stays as it is.
    fn set_rounding(&mut self, rounding: Rounding);

    /// Tells that one execution of the model has ended: the clock by which unused mappings and empty
    /// heaps grow old and are given back.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) when giving back failed; what could not be given back stays held and is
    /// tried again next time.
    fn end_of_execution(&mut self) -> Result<()>;

    /// Gives back everything unused now: cached mappings and empty heaps. Live blocks stay as they are.
    /// Returns the bytes of physical memory released.
    ///
    /// # Errors
    /// As [`end_of_execution`](Manager::end_of_execution).
    fn trim(&mut self) -> Result<u64>;

    /// The running figures.
    fn usage(&self) -> Usage;

    /// Makes the peaks start again from what is live and held now.
    fn reset_peaks(&mut self);

    /// The full report. May walk over the manager's books; not for hot paths.
    fn stats(&self) -> Stats;

    /// The device under the manager.
    fn device(&self) -> &dyn Device;

    /// Panics with a description when the manager's books contradict themselves. For tests.
    fn check_invariants(&self);
}

/// The managers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Extents over heaps, wholly free tiles stitched together when no run of bytes fits.
    Tiled,
    /// Contiguous suballocation in heaps, no remapping: the fallback where tiles are not supported.
    Placed,
    /// Power-of-two buckets, never trimmed: the allocator that the DirectML provider of ONNX Runtime has.
    Bucketized,
    /// One physical allocation per request.
    Committed,
}

impl Kind {
    /// Every kind, the best first.
    pub const ALL: [Kind; 4] = [Kind::Tiled, Kind::Placed, Kind::Bucketized, Kind::Committed];

    /// The name it is chosen by.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tiled => "tiled",
            Kind::Placed => "placed",
            Kind::Bucketized => "bucketized",
            Kind::Committed => "committed",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Kind, String> {
        Kind::ALL.into_iter().find(|k| k.name() == name).ok_or_else(|| {
            let known: Vec<_> = Kind::ALL.iter().map(|k| k.name()).collect();
            format!("unknown manager {name:?}: the managers are {}", known.join(", "))
        })
    }
}

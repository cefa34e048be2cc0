//! What can go wrong in a manager.

use crate::device::DeviceError;
use crate::manager::BlockId;
use crate::units::exact;

/// The result of a manager's operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a manager answers when it cannot do what was asked. The manager stays usable after each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A request of no bytes.
    #[error("a request of zero bytes: ask for at least one byte, or make no request")]
    ZeroSize,
    /// A request beyond what the device could ever address.
    #[error("a request of {} exceeds the {} that this device can address at once", exact(*bytes), exact(*max))]
    TooLarge {
        /// Bytes asked for.
        bytes: u64,
        /// The largest request that could be served.
        max: u64,
    },
    /// Physical memory ran out, after everything unused had been given back.
    #[error(
        "out of memory: {} requested with {} live, {} mapped and {} held{}{}; {}free something first",
        exact(*request),
        exact(*live),
        exact(*mapped),
        exact(*held),
        limit.map(|l| format!(", limit {}", exact(l))).unwrap_or_default(),
        device_free.map(|f| format!(", {} free on the device", exact(f))).unwrap_or_default(),
        limit.map(|_| "raise the limit or ").unwrap_or_default()
    )]
    OutOfMemory {
        /// Bytes asked for.
        request: u64,
        /// Bytes live when it was asked.
        live: u64,
        /// Bytes of address space backed by memory when it was asked.
        mapped: u64,
        /// Bytes of physical memory held when it was asked.
        held: u64,
        /// The limit on held bytes, where one is set or the device has one.
        limit: Option<u64>,
        /// Bytes free on the device when it was asked, all its users together, where it can tell.
        device_free: Option<u64>,
    },
    /// A block this manager never handed out.
    #[error("{0} was never handed out by this manager")]
    UnknownBlock(BlockId),
    /// A block that has been freed before.
    #[error("{0} has been freed already")]
    DoubleFree(BlockId),
    /// An address at which no block is live.
    #[error("no block is live at address {0:#x}: it was never handed out, or has been freed already")]
    UnknownAddress(u64),
    /// A stream that no memory can be requested for.
    #[error("no memory can be requested for stream {stream:#x}: {reason}")]
    Stream {
        /// Its number.
        stream: u64,
        /// Why not, and what to do.
        reason: &'static str,
    },
    /// The process is a child of the one that has the memory.
    #[error("CUDA does not survive fork: start worker processes with the spawn method")]
    Forked,
    /// A trace could not be written while recording.
    #[error("recording failed: {0}")]
    Recording(String),
    /// A group that was never made, or was removed.
    #[error("there is no group {0}: it was never made, or has been removed")]
    UnknownGroup(u32),
    /// A request to a group that is not on the device.
    #[error("group {group:?} is evicted: restore it first")]
    Evicted {
        /// Its name.
        group: String,
    },
    /// A group that is to stay where it is.
    #[error("group {group:?} is pinned: unpin it first")]
    Pinned {
        /// Its name.
        group: String,
    },
    /// A pin taken away from a group that had none.
    #[error("group {group:?} is not pinned")]
    NotPinned {
        /// Its name.
        group: String,
    },
    /// A group that is not empty.
    #[error("group {group:?} has {blocks} live blocks: free them first")]
    GroupInUse {
        /// Its name.
        group: String,
        /// Blocks that are live.
        blocks: u64,
    },
    /// A limit that could not be kept.
    #[error(
        "a limit of {} is less than the {} of groups that are pinned: unpin some first",
        exact(*limit),
        exact(*pinned)
    )]
    LimitBelowPinned {
        /// Bytes asked for.
        limit: u64,
        /// Bytes that pinned groups hold.
        pinned: u64,
    },
    /// Memory stays at one address, by the device or by choice, so that no group could be evicted; or there are 65,536 groups.
    #[error(
        "no groups here: the device cannot map memory elsewhere, or placed was asked for, or there are too many groups"
    )]
    NoGroups,
    /// Memory of the host that the device does not reach, or that nothing maps.
    #[error("memory of the host cannot be used as the device's here: lower what is live, or raise the limit")]
    NoSpill,
    /// The host has no room for contents that were to be kept there, or cannot bring them back.
    #[error("{} of device memory cannot be kept on the host: {reason}", exact(*bytes))]
    Host {
        /// Bytes that were to be kept.
        bytes: u64,
        /// What the system said.
        reason: String,
    },
    /// The device failed; what had been done of the operation was undone.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

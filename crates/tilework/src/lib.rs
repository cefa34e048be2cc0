//! Tilework keeps the memory a runtime holds close to the memory its model has live.
//!
//! Physical memory is one list of *heaps* cut into *tiles*; tiles are mapped to whatever request
//! needs them, and mappings are kept and found again. The layers, top to bottom:
//!
//! ```text
//!   runtime (ONNX Runtime, replay, your engine)
//!      │ alloc / free / end_of_execution / trim
//!   shared::Shared        for threads and streams: a manager for each stream, one device behind all
//!      │
//!   manager::Manager      tiled · placed · bucketized · committed
//!      │ placement: tilework-policy, pure integers
//!      │ reserve / create / map / set_access / unmap / release
//!   device::Device        host · sim-h200 · sim-d3d12 · null   (+ fault, limit around any of them)
//! ```
//!
//! # Glossary
//!
//! * *reserve* address space, *create* physical memory, *map* one to the other, *unmap*, *release*.
//! * *tile*: the smallest piece of physical memory a device can map. *heap*: physical memory made by
//!   one create call. *extent*: a run of bytes at 512-byte grain. *range*: reserved address space.
//!   *mapping*: a range together with the pieces of heaps that back it.
//! * *live*: bytes requested and not yet freed. *mapped*: bytes of address space backed by memory.
//!   *held*: bytes of physical memory created and not released. *reserved*: bytes of address space.
//! * *lane*: the memory whose uses one stream orders. *stock*: heaps that no lane has. *pending*: freed, and
//!   waiting for other streams that used it. *late*: to be unmapped once the stream has passed its last use.
//! * *execution*: one image, request or step, as the program says. *age*: executions in a row that did not use something.
//! * *fence*, *event*: a place in the work of a queue, *passed* once everything queued before it has run. *retained*: kept
//!   until a fence has passed. *aliasing*: the use of memory at one place after its use at another.
//! * *group*: lanes whose memory goes and comes together. *evict*: contents to the host, where they are *kept*, physical
//!   memory to others; the group is *absent* until it is *restored*, *resident* again. *pinned*: not to be evicted; of host
//!   memory, that the device copies by itself. *spilled*: physical memory that is on the host.
#![deny(unsafe_code)]

pub mod device;
mod error;
pub mod manager;
pub mod record;
pub mod replay;
pub mod shared;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod timeline;
pub mod trace;
pub mod units;

pub use error::{Error, Result};

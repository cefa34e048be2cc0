//! Where bytes go: the placement policy of Tilework, in pure integers.
//!
//! Nothing here knows a pointer, a driver, a clock or a thread. The pool's physical memory is seen
//! through its *home* address space: every heap has one place in it, heaps that stand beside each
//! other there can be used as one run of bytes, and all positions and lengths are counted in
//! [`GRAIN`]s of 512 bytes.
//!
//! ```text
//!   home  ┌──────── heap ───────┬─── heap ───┬──────── heap ───────┬─ ─ void ─ ─
//!         │▓▓▓ used ▓▓▓│  free  │▓▓ used ▓▓▓▓│▓▓▓│      free       │ not backed
//!         └────────────┴────────┴────────────┴───┴─────────────────┴─ ─ ─ ─ ─ ─ ─
//!                       ╰───┬──╯                  ╰───────┬───────╯
//!                           ╰────── stitched: mapped ─────╯
//!                                   side by side elsewhere
//! ```
//!
//! * [`Extents`] keeps the runs of every region in address order, and finds room for a request:
//!   [`Lifetimes`] says at which end of memory it belongs.
//! * [`Heaps`] knows where each heap stands, hence where a run may be cut for mapping.
//! * [`compose`] picks the pieces of a stitched block when no run is long enough.
//! * [`Growth`] says how much to create when free memory does not suffice.
//! * [`Mappings`] remembers stitched mappings, to find them again when the same tiles come up.
//!
//! The same calls in the same order always give the same places: no hash order, no time, no
//! randomness takes part in a decision.
#![forbid(unsafe_code)]

mod bits;
mod by_length;
mod extents;
mod growth;
mod heaps;
mod intervals;
mod lifetimes;
mod lowest;
mod mappings;
mod runs;
mod stitch;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use extents::{Extents, FreeError, FreeRun, Freed, Place, Slot, Void};
pub use growth::Growth;
pub use heaps::{Cut, Heap, Heaps, Serial};
pub use lifetimes::Lifetimes;
pub use mappings::{Cover, Mapping, MappingSlot, Mappings};
pub use stitch::{Piece, compose};

/// Bytes in one grain, the unit of every position and length in this crate.
pub const GRAIN: u64 = 512;

/// The longest request and the largest pool, grains: positions are 32 bits wide (2 TiB).
pub const MAX_GRAINS: u64 = u32::MAX as u64 - (1 << 12);

/// `bytes` in grains, rounded up.
pub fn grains(bytes: u64) -> u64 {
    bytes.div_ceil(GRAIN)
}

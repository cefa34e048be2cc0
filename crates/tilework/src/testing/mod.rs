//! The test bed for managers, open to those of other crates (feature `testing`).
//!
//! ```text
//!   Op ── property tests, fuzzing, replayed traces all speak it
//!    │ Rig::step
//!    ▼
//!   Manager ──calls──► Checked ──► any device      Checked: panics where a call breaks the contract
//!    │ Block              │ Witness                  Witness: which physical memory is behind an address
//!    ▼                    ▼
//!   shadow: ordered maps of what is live, compared with both after every operation
//! ```
//!
//! [`conformance`] is the suite; [`manager_conformance!`](crate::manager_conformance) stamps it for a
//! manager on a device.

pub mod checked;
pub mod conformance;
pub mod executor;
mod op;
mod pattern;
mod rig;
mod shadow;
pub mod storm;
pub mod workload;

pub use checked::Checked;
pub use op::{Op, Script};
pub use rig::Rig;

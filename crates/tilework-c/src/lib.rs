//! Tilework for C, and the hooks through which PyTorch and ONNX Runtime allocate.
//!
//! ```text
//!   include/tilework.h                  python/tilework
//!        │                                   │
//!   manager, groups, log, vulkan, d3d12 torch    the functions that PyTorch calls,
//!        │             └───┬───┘             │    one shared manager for each GPU
//!        │               views          ort      the allocators that ONNX Runtime calls,
//!        │                                   │    over the same managers and one for the host
//!        └───── call, handles, open ─────────┘
//!                        │
//!              tilework::shared::Shared
//! ```
//!
//! Nothing here panics into its caller, prints, or ends the process: [`call`] is around every entry.

mod barrier;
mod call;
#[cfg(windows)]
mod d3d12;
#[cfg(target_os = "linux")]
mod entered;
mod groups;
mod handles;
mod log;
mod manager;
mod open;
// What is thrown here has the C++ ABI of the wheels for Linux.
#[cfg(target_os = "linux")]
mod ort;
#[cfg(any(windows, test))]
mod references;
#[cfg(target_os = "linux")]
mod symbols;
#[cfg(target_os = "linux")]
mod torch;
mod views;
mod vulkan;

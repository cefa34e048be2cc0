//! Tilework for C, and the hooks through which PyTorch allocates.
//!
//! ```text
//!   include/tilework.h                  python/tilework
//!        │                                   │
//!   manager    managers by handle       torch    the functions that PyTorch calls,
//!        │                                   │    one shared manager for each GPU
//!        └────────── call, open ─────────────┘
//!                        │
//!              tilework::shared::Shared
//! ```
//!
//! Nothing here panics into its caller, prints, or ends the process: [`call`] is around every entry.

mod call;
mod manager;
mod open;
// PyTorch's wheels with CUDA that have this C++ ABI are those for Linux.
#[cfg(target_os = "linux")]
mod torch;

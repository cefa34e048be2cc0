//! Stock ONNX Runtime with a Tilework manager registered as its allocator.
//!
//! Nothing of the runtime is patched or linked: libonnxruntime is found and loaded when the program
//! runs ([`find`]), and a manager is handed to it through its own C API.
//!
//! ```text
//!   Session::run ──► ONNX Runtime ──Alloc/Free──► OrtAllocator table ──► Mutex<manager> ──► device
//!        │                                               (table.rs)            │
//!        └── on failure: the manager's own words ◄── the last error kept ◄─────┘
//! ```
//!
//! # What must outlive what
//!
//! ONNX Runtime keeps the pointer it was given at registration until its environment is gone, and
//! every session and output value holds on to the environment's allocator. The types here say so:
//! an [`Environment`] owns its [`Allocator`], a [`Session`] and an [`Output`] share the environment.
//!
//! ```no_run
//! use std::sync::Arc;
//! use tilework_ort::{Allocator, Environment, Library, Session, SessionOptions, find};
//!
//! # fn manager() -> Box<dyn tilework::manager::Manager> { unimplemented!() }
//! let found = find::find(None, &mut |step| eprintln!("{step}"))?;
//! // SAFETY: the manager runs over host memory, so its addresses are pointers of this process.
//! let allocator = unsafe { Allocator::new(manager()) };
//! let environment = Environment::new(&found.library, Some(allocator))?;
//! let session = Session::load(&environment, "model.onnx".as_ref(), &SessionOptions::default())?;
//! let inputs = tilework_ort::inputs::random(session.inputs(), &Default::default(), 0)?;
//! let outputs = session.run(&inputs)?;
//! println!("{:?}", environment.allocator().unwrap().usage());
//! # Ok::<(), tilework_ort::Error>(())
//! ```

mod allocator;
pub mod api;
mod arena;
mod cuda;
mod environment;
mod error;
pub mod fetch;
pub mod find;
pub mod inputs;
mod library;
pub mod npy;
mod order;
mod owned;
mod session;
pub mod table;
mod tensor;
pub mod weights;

pub use allocator::{Allocator, Failure, Source};
pub use arena::ArenaStats;
pub use environment::Environment;
pub use error::{Error, Result};
pub use library::Library;
pub use session::{Output, Session, SessionOptions, fingerprint};
pub use table::Place;
pub use tensor::{Dim, ElementType, Tensor, TensorSpec};

//! Traces: the requests a program made, as a file that any manager can serve again.
//!
//! A trace is CSV, gzip-compressed, one event a line, in the order in which they happened:
//!
//! ```text
//! time_us,op,id,bytes,stream
//! 0,alloc,0,23040,0           request number 0 asks for 23040 bytes on stream 0
//! 128,alloc,1,640,0
//! 2046,free,0,23040,0         the bytes of a free repeat those of its alloc
//! ```
//!
//! All numbers are unsigned and decimal. `time_us` counts microseconds from the start of the recording.
//! An `id` names a block from its alloc to its free; it may be used again after that. What is live at
//! the end simply has no free. Of a program's streams the first to
//! appear is numbered 0, the next 1, and so on. A line that begins with `#` is a remark: of groups that went or came, of memory
//! that was given back or lacked.
//!
//! ```text
//!   file ──Reader──▶ Event … ──checks──▶ Trace (dense slots) ──▶ replay
//!   Recorder ──▶ Event … ──Writer──▶ file
//! ```
//!
//! [`Reader`] and [`Writer`] know the form of one line; [`Trace`] knows which lines make sense together.
#![forbid(unsafe_code)]

mod error;
mod event;
mod partial;
mod reader;
mod whole;
mod writer;

#[cfg(test)]
mod tests;

pub use error::{Problem, TraceError};
pub use event::{Event, MAX_BYTES, Op};
pub use reader::Reader;
pub use whole::{Step, Trace};
pub use writer::Writer;

/// The first line of every trace.
pub const HEADER: &str = "time_us,op,id,bytes,stream";

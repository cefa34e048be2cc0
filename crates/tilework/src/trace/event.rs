//! One line of a trace.

use std::fmt;

use crate::manager::Stream;

/// The largest request a trace may hold, bytes: what fits a signed 64-bit size.
pub const MAX_BYTES: u64 = i64::MAX as u64;

/// What an event does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// A request.
    Alloc,
    /// The end of a block.
    Free,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Alloc => "alloc",
            Op::Free => "free",
        })
    }
}

/// One line of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Event {
    /// When, microseconds from the start of the recording.
    pub time_us: u64,
    /// Request or end.
    pub op: Op,
    /// The block's name in the trace.
    pub id: u64,
    /// Bytes requested; a free repeats them.
    pub bytes: u64,
    /// The stream the request was made for.
    pub stream: Stream,
}

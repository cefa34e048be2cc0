//! What can be wrong with a trace, and where.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::{HEADER, MAX_BYTES};

/// A trace that cannot be used: which file, which line, what is wrong with it.
#[derive(Debug)]
pub struct TraceError {
    /// The file, where the trace came from one.
    pub file: Option<PathBuf>,
    /// The line, counted from 1 (the header); none when the file could not be opened.
    pub line: Option<u64>,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        self.problem.fmt(f)
    }
}

// The problem is part of the message already, so it is not offered as a source as well.
impl std::error::Error for TraceError {}

/// What is wrong with a trace.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file could not be opened.
    #[error("cannot open it: {0}")]
    Open(io::Error),
    /// Reading failed below the compression.
    #[error("cannot read on: {0}")]
    Read(io::Error),
    /// The compressed data ends before its end mark.
    #[error("the gzip data ends in the middle: the file is truncated")]
    Truncated,
    /// The compressed data is not what was written.
    #[error("the gzip data is damaged: {0}")]
    Damaged(String),
    /// There is nothing in the file.
    #[error("the file is empty: a trace begins with the header `{HEADER}`")]
    Empty,
    /// The first line is not the header.
    #[error("expected the header `{HEADER}`, found {found:?}")]
    Header {
        /// The line found, shortened.
        found: String,
    },
    /// A line no event could need.
    #[error("the line is longer than {max} bytes: this is no trace")]
    LineTooLong {
        /// The most bytes a line may have.
        max: usize,
    },
    /// Too few or too many commas.
    #[error("expected 5 fields ({HEADER}), found {found}")]
    Fields {
        /// Fields found.
        found: usize,
    },
    /// A field that should be a number and is none.
    #[error("{field} must be a whole number below 2^64, found {found:?}")]
    Number {
        /// Which field.
        field: &'static str,
        /// What it holds, shortened.
        found: String,
    },
    /// An operation that is neither `alloc` nor `free`.
    #[error("op must be `alloc` or `free`, found {found:?}")]
    Op {
        /// What it is, shortened.
        found: String,
    },
    /// A request of no bytes.
    #[error("alloc of id {id} asks for zero bytes")]
    ZeroSize {
        /// The block's name.
        id: u64,
    },
    /// A request no memory could serve.
    #[error("{bytes} bytes are more than one request can have ({MAX_BYTES})")]
    TooLarge {
        /// Bytes asked for, as written: the number may not fit 64 bits.
        bytes: String,
    },
    /// More live at once than can be counted.
    #[error("the bytes live at once exceed {MAX_BYTES}")]
    LiveTooLarge,
    /// An alloc of an id whose block is live.
    #[error("alloc of id {id}, which is live since line {since}")]
    AlreadyLive {
        /// The block's name.
        id: u64,
        /// The line that allocated it.
        since: u64,
    },
    /// A free of an id that was never allocated.
    #[error("free of id {id}, which was never allocated")]
    UnknownId {
        /// The block's name.
        id: u64,
    },
    /// A free of an id that was freed and not allocated again since.
    #[error("free of id {id}, which was freed already at line {first}")]
    DoubleFree {
        /// The block's name.
        id: u64,
        /// The line that freed it.
        first: u64,
    },
    /// A free that disagrees with its alloc.
    #[error("free of id {id} says {freed} bytes, its alloc at line {since} said {allocated}")]
    SizeMismatch {
        /// The block's name.
        id: u64,
        /// Bytes by the alloc.
        allocated: u64,
        /// The line that allocated it.
        since: u64,
        /// Bytes by the free.
        freed: u64,
    },
    /// A factor that sizes cannot be multiplied by.
    #[error("cannot scale by {factor}: it must be above zero, and no size may pass {MAX_BYTES} bytes")]
    Scale {
        /// The factor.
        factor: f64,
    },
}

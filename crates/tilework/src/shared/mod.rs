//! One front for many threads and streams.

pub mod streams;

use std::path::Path;

use serde::Serialize;

use crate::device::Device;
use crate::error::Result;
use crate::manager::{Options, Stream, Usage};

use self::streams::Streams;

/// The name of a graph's pool: both numbers are the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PoolId(pub u64, pub u64);

/// Which streams' requests an open pool serves. Asked on the thread that makes the request.
pub type Filter = Box<dyn Fn(Stream) -> bool + Send + Sync>;

/// The report of a [`Shared`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SharedStats {
    /// The running figures, over all streams.
    pub usage: Usage,
    /// The part of what is held that no stream has: ready to be given to any, bytes.
    pub stock: u64,
    /// Freed by their owner and waiting for the streams that used them, bytes.
    pub pending: u64,
    /// Held, but not yet taken back by the device, which refused, bytes.
    pub leftover: u64,
    /// Blocks live.
    pub blocks: u64,
    /// Requests served.
    pub allocations: u64,
    /// Blocks freed.
    pub frees: u64,
    /// Requests that were refused for want of memory.
    pub ooms: u64,
    /// Requests that had everything unused given back before they were served or refused.
    pub retries: u64,
    /// The streams known, in the order of their first requests.
    pub streams: Vec<StreamStats>,
}

/// The part of a [`SharedStats`] that belongs to one stream, or to one stream of a graph's pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct StreamStats {
    /// The stream's number.
    pub stream: u64,
    /// True: the part of a graph's pool that serves the stream.
    pub graph: bool,
    /// Requested and not yet freed, bytes.
    pub live: u64,
    /// Physical memory the stream has, bytes.
    pub held: u64,
    /// The largest request that could be served in one piece without the device, bytes.
    pub largest_free_run: u64,
    /// Blocks live.
    pub blocks: u64,
}

/// A memory manager that threads share and that knows streams.
pub struct Shared;

#[expect(unused_variables, reason = "the public face comes first")]
impl Shared {
    /// A front over `device`, of which nothing was taken yet.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) when the process cannot be watched for forks.
    pub fn new(device: Box<dyn Device>, streams: Box<dyn Streams>, options: &Options) -> Result<Shared> {
        todo!()
    }

    /// Serves a request of `bytes` for work on `stream` and returns the first address.
    ///
    /// # Errors
    /// As [`Manager::alloc`](crate::manager::Manager::alloc); [`Error::Forked`](crate::Error::Forked).
    pub fn alloc(&self, bytes: u64, stream: Stream) -> Result<u64> {
        todo!()
    }

    /// Takes the block at `address` back.
    ///
    /// # Errors
    /// [`Error::UnknownAddress`](crate::Error::UnknownAddress).
    pub fn free(&self, address: u64) -> Result<()> {
        todo!()
    }

    /// As [`free`](Shared::free), and quicker when `stream` is the one the block was requested for.
    ///
    /// # Errors
    /// As [`free`](Shared::free).
    pub fn free_on(&self, address: u64, stream: Stream) -> Result<()> {
        todo!()
    }

    /// Notes that `stream` uses the block at `address` too.
    ///
    /// # Errors
    /// As [`free`](Shared::free).
    pub fn record_stream(&self, address: u64, stream: Stream) -> Result<()> {
        todo!()
    }

    /// The live block that `address` lies in: its first address and its bytes.
    pub fn block_of(&self, address: u64) -> Option<(u64, u64)> {
        todo!()
    }

    /// Takes a reference on a graph's pool, and sends requests whose stream `filter` approves of there.
    ///
    /// # Errors
    /// None at present.
    pub fn begin_pool(&self, pool: PoolId, filter: Filter) -> Result<()> {
        todo!()
    }

    /// Takes a reference on a graph's pool without opening it.
    ///
    /// # Errors
    /// None at present.
    pub fn retain_pool(&self, pool: PoolId) -> Result<()> {
        todo!()
    }

    /// Ends what [`begin_pool`](Shared::begin_pool) began; the reference stays.
    ///
    /// # Errors
    /// None at present.
    pub fn end_pool(&self, pool: PoolId) -> Result<()> {
        todo!()
    }

    /// Gives one reference on a graph's pool back.
    ///
    /// # Errors
    /// None at present.
    pub fn release_pool(&self, pool: PoolId) -> Result<()> {
        todo!()
    }

    /// Tells that `stream` is about to be destroyed.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) when the stream cannot be waited for.
    pub fn forget_stream(&self, stream: Stream) -> Result<()> {
        todo!()
    }

    /// Tells that one execution of the model has ended. Never waits.
    ///
    /// # Errors
    /// As [`Manager::end_of_execution`](crate::manager::Manager::end_of_execution).
    pub fn end_of_execution(&self) -> Result<()> {
        todo!()
    }

    /// Gives back everything unused, and returns the bytes of physical memory released.
    ///
    /// # Errors
    /// As [`Manager::trim`](crate::manager::Manager::trim).
    pub fn trim(&self) -> Result<u64> {
        todo!()
    }

    /// Limits what is held from now on, bytes; `None` lifts the limit.
    pub fn set_limit(&self, bytes: Option<u64>) {
        todo!()
    }

    /// The running figures.
    pub fn usage(&self) -> Usage {
        todo!()
    }

    /// The full report.
    pub fn stats(&self) -> SharedStats {
        todo!()
    }

    /// Makes the peaks start again from what is live and held now.
    pub fn reset_peaks(&self) {
        todo!()
    }

    /// Begins to record requests and frees into a trace that will be at `path`.
    ///
    /// # Errors
    /// [`Error::Recording`](crate::Error::Recording).
    pub fn record_to(&self, path: &Path) -> Result<()> {
        todo!()
    }

    /// Completes the trace.
    ///
    /// # Errors
    /// [`Error::Recording`](crate::Error::Recording).
    pub fn stop_recording(&self) -> Result<()> {
        todo!()
    }
}

//! Recording what is asked of a manager.
#![forbid(unsafe_code)]

use std::io;
use std::path::Path;
use std::time::Instant;

use rustc_hash::FxHashMap;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::manager::{Block, BlockId, Kind, Manager, Rounding, Stats, Stream, Usage};
use crate::trace::{Event, Op, Writer};

/// A manager that passes everything on to the one it wraps and writes each request and free that
/// succeeded to a trace.
///
/// Blocks are numbered in the order of their requests, from 0. What is live at the end has no free in
/// the trace, and blocks that the inner manager handed out before are not in it at all. A file that
/// cannot be written never disturbs an allocation: recording stops, and [`finish`](Recorder::finish)
/// returns the error.
pub struct Recorder {
    inner: Box<dyn Manager>,
    log: Log,
}

impl Recorder {
    /// Begins to record `inner` into a trace that will be at `path`.
    ///
    /// # Errors
    /// [`Error::Recording`] when the file cannot be made.
    pub fn new(inner: Box<dyn Manager>, path: impl AsRef<Path>) -> Result<Recorder> {
        Ok(Recorder { inner, log: Log::new(path.as_ref())? })
    }

    /// Numbers streams from 0 as they appear, instead of writing the names that the requests have: on a GPU these
    /// are addresses, and others in each process. To be called before the first request.
    #[must_use]
    pub fn numbering_streams(mut self) -> Recorder {
        self.log = self.log.numbering_streams();
        self
    }

    /// Completes the trace. The manager goes on without recording; later calls do nothing.
    /// A recorder dropped before leaves no trace.
    ///
    /// # Errors
    /// [`Error::Recording`] with the first error met since the recording began.
    pub fn finish(&mut self) -> Result<()> {
        self.log.finish()
    }

    /// The manager inside. Drops what was recorded unless [`finish`](Recorder::finish) came first.
    pub fn into_inner(self) -> Box<dyn Manager> {
        self.inner
    }
}

fn failed(name: &str, error: &io::Error) -> Error {
    Error::Recording(format!("{name}: {error}"))
}

impl Manager for Recorder {
    fn kind(&self) -> Kind {
        self.inner.kind()
    }

    fn alloc(&mut self, bytes: u64, stream: Stream) -> Result<Block> {
        let block = self.inner.alloc(bytes, stream)?;
        self.log.alloc(block.id.0, bytes, stream);
        Ok(block)
    }

    fn free(&mut self, id: BlockId) -> Result<()> {
        self.inner.free(id)?;
        self.log.free(id.0);
        Ok(())
    }

    fn set_rounding(&mut self, rounding: Rounding) {
        self.inner.set_rounding(rounding);
    }

    fn end_of_execution(&mut self) -> Result<()> {
        self.inner.end_of_execution()
    }

    fn trim(&mut self) -> Result<u64> {
        self.inner.trim()
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn reset_peaks(&mut self) {
        self.inner.reset_peaks();
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }

    fn device(&self) -> &dyn Device {
        self.inner.device()
    }

    fn check_invariants(&self) {
        self.inner.check_invariants();
    }
}

/// A trace in the making.
pub(crate) struct Log {
    state: State,
    name: String,
    start: Instant,
    /// What the free line of each live block has to repeat, by whatever name its manager gives it.
    blocks: FxHashMap<u64, Entry>,
    /// The next block's name in the trace.
    next: u64,
    /// The streams' names in the trace; `None` where they keep their own.
    streams: Option<FxHashMap<Stream, Stream>>,
}

enum State {
    Writing(Box<Writer>),
    Failed(io::Error),
    Done,
}

#[derive(Clone, Copy)]
struct Entry {
    id: u64,
    bytes: u64,
    stream: Stream,
}

impl Log {
    /// Begins a trace that will be at `path`.
    ///
    /// # Errors
    /// [`Error::Recording`].
    pub fn new(path: &Path) -> Result<Log> {
        let name = path.display().to_string();
        let writer = Writer::create(path).map_err(|e| failed(&name, &e))?;
        let state = State::Writing(Box::new(writer));
        Ok(Log { state, name, start: Instant::now(), blocks: FxHashMap::default(), next: 0, streams: None })
    }

    /// See [`Recorder::numbering_streams`].
    pub fn numbering_streams(self) -> Log {
        Log { streams: Some(FxHashMap::default()), ..self }
    }

    /// Completes the trace; later calls do nothing.
    ///
    /// # Errors
    /// [`Error::Recording`] with the first error met.
    pub fn finish(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Writing(writer) => writer.finish().map_err(|e| failed(&self.name, &e)),
            State::Failed(error) => Err(failed(&self.name, &error)),
            State::Done => Ok(()),
        }
    }

    /// A block was handed out. No live block has the same name.
    pub fn alloc(&mut self, block: u64, bytes: u64, stream: Stream) {
        if let State::Writing(_) = self.state {
            let stream = self.streams.as_mut().map_or(stream, |streams| {
                let next = Stream(streams.len() as u64);
                *streams.entry(stream).or_insert(next)
            });
            let entry = Entry { id: self.next, bytes, stream };
            self.next += 1;
            self.blocks.insert(block, entry);
            self.write(Op::Alloc, entry);
        }
    }

    /// A block came back. Those handed out before the recording began are not in it.
    pub fn free(&mut self, block: u64) {
        if let Some(entry) = self.blocks.remove(&block) {
            self.write(Op::Free, entry);
        }
    }

    /// Something happened that is no request and no free.
    pub fn remark(&mut self, text: &str) {
        let State::Writing(writer) = &mut self.state else { return };
        let written = writer.remark(&format!("{} {text}", self.start.elapsed().as_micros()));
        self.note(written);
    }

    fn write(&mut self, op: Op, entry: Entry) {
        let State::Writing(writer) = &mut self.state else { return };
        let time_us = self.start.elapsed().as_micros() as u64;
        let Entry { id, bytes, stream } = entry;
        let written = writer.write(&Event { time_us, op, id, bytes, stream });
        self.note(written);
    }

    /// A recording that fails stops, and tells at its end.
    fn note(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            tracing::warn!("recording to {} stopped: {error}", self.name);
            self.state = State::Failed(error);
        }
    }
}

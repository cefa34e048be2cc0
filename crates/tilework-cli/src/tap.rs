//! A manager that is watched while a model runs.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tilework::device::Device;
use tilework::manager::{Block, BlockId, Kind, Manager, Rounding, Stats, Stream, Usage};
use tilework::record::Recorder;
use tilework::{Error, Result};

/// What was live and held at a moment.
#[derive(Clone, Copy)]
pub struct Reading {
    pub when: Instant,
    pub live: u64,
    pub held: u64,
}

/// The end of the wire that stays with whoever watches.
#[derive(Clone, Default)]
pub struct Watch(Arc<Mutex<Watched>>);

#[derive(Default)]
struct Watched {
    /// Whether anyone wants readings.
    on: bool,
    readings: Vec<Reading>,
    /// How recording ended, once it has.
    recorded: Option<Result<()>>,
}

impl Watch {
    /// Puts `inner` under watch. With `record`, every request and free goes to a trace that is complete
    /// once the manager has been dropped; [`Watch::recorded`] tells how that went.
    pub fn over(&self, inner: Box<dyn Manager>, record: Option<&Path>) -> Result<Box<dyn Manager>> {
        let inner = match record {
            Some(path) => Inner::Recorded(Box::new(Recorder::new(inner, path)?.numbering_streams())),
            None => Inner::Plain(inner),
        };
        Ok(Box::new(Tap { inner, watch: self.clone() }))
    }

    /// Begins to take a reading after each operation.
    pub fn begin(&self) {
        let mut watched = self.watched();
        watched.on = true;
        watched.readings.clear();
    }

    /// Stops, and returns the readings since [`Watch::begin`].
    pub fn end(&self) -> Vec<Reading> {
        let mut watched = self.watched();
        watched.on = false;
        std::mem::take(&mut watched.readings)
    }

    /// Adds a reading from elsewhere.
    pub fn read(&self, live: u64, held: u64) {
        let mut watched = self.watched();
        if watched.on {
            watched.readings.push(Reading { when: Instant::now(), live, held });
        }
    }

    /// The result of the recording, once the manager is gone.
    pub fn recorded(&self) -> Result<()> {
        let unfinished = || Err(Error::Recording("the runtime kept the manager".into()));
        self.watched().recorded.take().unwrap_or_else(unfinished)
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Tap {
    inner: Inner,
    watch: Watch,
}

enum Inner {
    Plain(Box<dyn Manager>),
    Recorded(Box<Recorder>),
}

impl Tap {
    fn inner(&self) -> &dyn Manager {
        match &self.inner {
            Inner::Plain(manager) => &**manager,
            Inner::Recorded(recorder) => &**recorder,
        }
    }

    fn inner_mut(&mut self) -> &mut dyn Manager {
        match &mut self.inner {
            Inner::Plain(manager) => &mut **manager,
            Inner::Recorded(recorder) => &mut **recorder,
        }
    }

    fn read(&self) {
        let usage = self.inner().usage();
        self.watch.read(usage.live, usage.held);
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Inner::Recorded(recorder) = &mut self.inner {
            let recorded = recorder.finish();
            self.watch.watched().recorded = Some(recorded);
        }
    }
}

impl Manager for Tap {
    fn kind(&self) -> Kind {
        self.inner().kind()
    }

    fn alloc(&mut self, bytes: u64, stream: Stream) -> Result<Block> {
        let block = self.inner_mut().alloc(bytes, stream)?;
        self.read();
        Ok(block)
    }

    fn free(&mut self, id: BlockId) -> Result<()> {
        self.inner_mut().free(id)?;
        self.read();
        Ok(())
    }

    fn set_rounding(&mut self, rounding: Rounding) {
        self.inner_mut().set_rounding(rounding);
    }

    fn end_of_execution(&mut self) -> Result<()> {
        self.inner_mut().end_of_execution()
    }

    fn trim(&mut self) -> Result<u64> {
        self.inner_mut().trim()
    }

    fn usage(&self) -> Usage {
        self.inner().usage()
    }

    fn reset_peaks(&mut self) {
        self.inner_mut().reset_peaks();
    }

    fn stats(&self) -> Stats {
        self.inner().stats()
    }

    fn device(&self) -> &dyn Device {
        self.inner().device()
    }

    fn check_invariants(&self) {
        self.inner().check_invariants();
    }
}

#[cfg(test)]
mod tests {
    use tilework::device::null::Null;
    use tilework::manager::{Options, build};
    use tilework::trace::Reader;

    use super::*;

    #[test]
    fn what_is_recorded_numbers_streams_as_they_appear() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace.csv.gz");
        let watch = Watch::default();
        let inner = build(Kind::Tiled, Box::new(Null::default()), &Options::default()).unwrap().manager;
        let mut manager = watch.over(inner, Some(&path)).unwrap();
        for stream in [0x7f00_dead_b000, 0, 0x7f00_dead_b000, 0x7f00_dead_c000] {
            manager.alloc(512, Stream(stream)).unwrap();
        }
        drop(manager);
        watch.recorded().unwrap();
        let streams: Vec<_> = Reader::open(&path).unwrap().map(|event| event.unwrap().stream.0).collect();
        assert_eq!(streams, [0, 1, 0, 2]);
    }
}

//! What is kept of a lane while it is absent, and how it gets there and back.
//!
//! ```text
//!   device          ─── chunk ──►  kept buffer                        pinned, within the budget: no copy by the host
//!   spans in order  ─── piece ──►  ring buffer ──host──► memory, file  by several threads, of two buffers each
//! ```
//!
//! Spans are one stream of bytes, cut into chunks, and where the host has to copy into pieces, which are shorter so that
//! the ring is. Buffers are made when they first lack. Those of the ring are kept for ever, and those that contents are kept in as
//! long as there are groups that can fill them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use memmap2::MmapMut;

use super::depot::{Depot, lock};
use super::host;
use super::streams::Event;
use super::transfers::Staging;
use crate::error::{Error, Result};
use crate::manager::Span;
use crate::units::exact;

/// Bytes of a buffer that contents are kept in: enough for the full speed of the bus.
const CHUNK: u64 = 32 << 20;

/// Bytes of a buffer from which the host copies.
const PIECE: u64 = 8 << 20;

/// Threads that copy, or make buffers, at most: one alone is slower than the bus, and so is each that waits for others.
const THREADS: usize = 8;

/// Where contents are kept while their group is evicted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosting {
    /// Bytes that may be kept in memory that the device copies to and from by itself: the fastest way. Once made it stays,
    /// and the system has no other use of it, until there are no more groups that could fill it.
    pub pinned_bytes: u64,
    /// The directory in which what exceeds that is kept, in files without a name. `None`: in ordinary memory.
    pub directory: Option<PathBuf>,
}

/// Bytes that are left to the host's other programs.
const SPARE: u64 = 256 << 20;

/// The host's side: its buffers, and what is kept.
pub(super) struct Store {
    /// Buffers of [`CHUNK`] and of [`PIECE`] bytes that nobody has. Dropped before the device: they wait for copies.
    buffers: Mutex<Vec<Box<dyn Staging>>>,
    depot: Arc<Depot>,
    hosting: Mutex<Hosting>,
    /// Bytes of buffers that contents are kept in.
    pinned: AtomicU64,
    /// Bytes kept, wherever.
    kept: AtomicU64,
    /// What the host has left.
    pub available: fn() -> Option<u64>,
}

/// The contents of some spans of device memory.
pub(super) struct Contents {
    /// How many requests their lane had served by then.
    pub asked: u64,
    store: Arc<Store>,
    parts: Vec<Part>,
    file: Option<File>,
}

/// A chunk of them.
struct Part {
    /// In address order; in the chunk they follow each other.
    spans: Vec<Span>,
    keep: Keep,
}

enum Keep {
    Pinned(Box<dyn Staging>),
    Memory(MmapMut),
    /// From this offset in the file.
    File(u64),
}

impl Store {
    pub fn new(depot: Arc<Depot>) -> Store {
        Store {
            buffers: Mutex::default(),
            depot,
            hosting: Mutex::default(),
            pinned: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            available: host::available,
        }
    }

    /// Says where contents are kept that are saved from now on.
    pub fn set_hosting(&self, hosting: Hosting) {
        let pinned = hosting.pinned_bytes;
        *lock(&self.hosting) = hosting;
        self.shrink(pinned);
    }

    /// Gives buffers back that nothing is kept in, until those there are hold `bytes`. The ring stays.
    pub fn shrink(&self, bytes: u64) {
        let mut idle = bytes.saturating_sub(self.pinned.load(Ordering::Relaxed)).div_ceil(CHUNK);
        let is_extra = |buffer: &mut Box<dyn Staging>| {
            let extra = buffer.bytes() as u64 == CHUNK && idle == 0;
            idle -= u64::from(buffer.bytes() as u64 == CHUNK && !extra);
            extra
        };
        let extra: Vec<_> = lock(&self.buffers).extract_if(.., is_extra).collect();
        // Without the lock: that takes the driver some time.
        drop(extra);
    }

    /// Bytes of contents that are kept.
    pub fn kept_bytes(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    /// Copies the contents of `spans`, in address order, to the host, and returns once they are there. Their lane has
    /// served `asked` requests. Nothing may be writing them. Nothing is kept of a device whose memory cannot be read.
    ///
    /// # Errors
    /// [`Error::Host`] when the host has no room; [`Error::Device`] when a copy failed. Nothing is kept then.
    pub fn save(self: &Arc<Store>, spans: &[Span], asked: u64) -> Result<Contents> {
        let mut contents = Contents { asked, store: Arc::clone(self), parts: Vec::new(), file: None };
        if !self.depot.has_contents() {
            return Ok(contents);
        }
        match self.fill(&mut contents, spans) {
            Ok(()) => Ok(contents),
            Err(error) => {
                // What was queued reads memory that is its owner's again.
                drop(contents.settled());
                Err(error)
            }
        }
    }

    fn fill(&self, contents: &mut Contents, spans: &[Span]) -> Result<()> {
        let Hosting { pinned_bytes, directory } = lock(&self.hosting).clone();
        if let Some(directory) = directory {
            let no_file =
                |error| no_room(sum(spans), &format!("no file in {}: {error}", directory.display()));
            contents.file = Some(tempfile::tempfile_in(&directory).map_err(no_file)?);
        }
        let lacking = self.lacking(sum(spans), pinned_bytes);
        let pinned = pinned_bytes.saturating_sub(self.pinned.load(Ordering::Relaxed)) / CHUNK * CHUNK;
        let elsewhere = if contents.file.is_some() { 0 } else { sum(spans).saturating_sub(pinned) };
        self.check_room(lacking * CHUNK + elsewhere)?;
        self.prepare(lacking);
        let mut pieces = Vec::new();
        for spans in cut(spans, CHUNK) {
            let Some(buffer) = self.pin(pinned_bytes) else {
                pieces.extend(cut(&spans, PIECE));
                continue;
            };
            contents.push(Part { spans, keep: Keep::Pinned(buffer) });
            let part = contents.parts.last_mut().expect("one was just added");
            if let Keep::Pinned(buffer) = &mut part.keep {
                download(&mut **buffer, &part.spans)?;
            }
        }
        let parts = Mutex::new(Vec::with_capacity(pieces.len()));
        let file = contents.file.as_ref().map(Mutex::new);
        self.share(pieces.len(), |next| self.carry_out(&pieces, next, file.as_ref(), &parts))?;
        let parts = parts.into_inner().unwrap_or_else(PoisonError::into_inner);
        parts.into_iter().for_each(|part| contents.push(part));
        for part in &mut contents.parts {
            if let Keep::Pinned(buffer) = &mut part.keep {
                buffer.contents()?;
            }
        }
        Ok(())
    }

    /// Copies pieces to the host, of which `next` says which is this thread's: one while the next travels.
    fn carry_out(
        &self,
        pieces: &[Vec<Span>],
        next: &dyn Fn() -> Option<usize>,
        file: Option<&Mutex<&File>>,
        parts: &Mutex<Vec<Part>>,
    ) -> Result<()> {
        let mut travelling: Option<(usize, Box<dyn Staging>)> = None;
        let mut idle: Option<Box<dyn Staging>> = None;
        loop {
            let coming = match next() {
                Some(at) => {
                    let mut buffer = idle.take().map_or_else(|| self.buffer(PIECE), Ok)?;
                    download(&mut *buffer, &pieces[at])?;
                    Some((at, buffer))
                }
                None => None,
            };
            if let Some((at, mut buffer)) = travelling.take() {
                let spans = pieces[at].clone();
                let bytes = sum(&spans);
                let from = &buffer.contents()?[..bytes as usize];
                let kept = match file {
                    Some(file) => in_file(&mut lock(file), from).map(Keep::File),
                    None => in_memory(from).map(Keep::Memory),
                };
                let keep = kept.map_err(|error| no_room(bytes, &error.to_string()))?;
                lock(parts).push(Part { spans, keep });
                idle = Some(buffer);
            }
            if coming.is_none() {
                idle.into_iter().for_each(|buffer| self.put_back(buffer));
                return Ok(());
            }
            travelling = coming;
        }
    }

    /// Copies kept parts back, of which `next` says which is this thread's. An event of this thread's stands behind the last.
    fn carry_back(
        &self,
        parts: &[(Vec<(u64, Span)>, &Part)],
        next: &dyn Fn() -> Option<usize>,
        file: Option<&Mutex<&File>>,
        events: &Mutex<&mut Vec<Event>>,
    ) -> Result<()> {
        let mut ring: VecDeque<Box<dyn Staging>> = VecDeque::new();
        let mut own = None;
        while let Some(at) = next() {
            let (pieces, part) = &parts[at];
            let mut buffer =
                if ring.len() < 2 { self.buffer(PIECE)? } else { ring.remove(0).expect("a buffer") };
            let bytes = sum(&part.spans);
            let to = &mut buffer.contents()?[..bytes as usize];
            match &part.keep {
                Keep::Memory(kept) => to.copy_from_slice(kept),
                Keep::File(at) => {
                    let mut file = lock(file.expect("a file that parts lie in"));
                    let read = file.seek(SeekFrom::Start(*at)).and_then(|_| file.read_exact(to));
                    read.map_err(|error| no_room(bytes, &format!("the file cannot be read: {error}")))?;
                }
                Keep::Pinned(_) => {}
            }
            let event = upload(&mut *buffer, pieces)?;
            put_last(&mut lock(events), &mut own, event);
            ring.push_back(buffer);
        }
        ring.into_iter().for_each(|buffer| self.put_back(buffer));
        Ok(())
    }

    /// Has several threads take turns at `count` things. The first error ends it and is returned.
    fn share(
        &self,
        count: usize,
        work: impl Fn(&dyn Fn() -> Option<usize>) -> Result<()> + Sync,
    ) -> Result<()> {
        let taken = AtomicUsize::new(0);
        let next = || Some(taken.fetch_add(1, Ordering::Relaxed)).filter(|&at| at < count);
        let failed = Mutex::new(None);
        let work = || {
            if let Err(error) = work(&next) {
                taken.store(count, Ordering::Relaxed);
                lock(&failed).get_or_insert(error);
            }
        };
        let threads = cores().min(THREADS).min(count);
        thread::scope(|scope| {
            for _ in 1..threads {
                // Those there are do it without the others.
                let Ok(_) = thread::Builder::new().spawn_scoped(scope, work) else { break };
            }
            if threads > 0 {
                work();
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Buffers that will lack to keep `bytes` within the budget.
    fn lacking(&self, bytes: u64, budget: u64) -> u64 {
        let within = budget.saturating_sub(self.pinned.load(Ordering::Relaxed)) / CHUNK;
        let free = lock(&self.buffers).iter().filter(|buffer| buffer.bytes() as u64 == CHUNK).count() as u64;
        bytes.div_ceil(CHUNK).min(within).saturating_sub(free)
    }

    /// Refuses to take `bytes` more of the host's memory than it has.
    fn check_room(&self, bytes: u64) -> Result<()> {
        let left = if bytes > 0 { (self.available)() } else { None };
        match left.filter(|left| bytes.saturating_add(SPARE) > *left) {
            Some(left) => Err(no_room(
                bytes,
                &format!("it has {} left, of which {} are not to be taken", exact(left), exact(SPARE)),
            )),
            None => Ok(()),
        }
    }

    /// Makes buffers with several threads: what makes one dear is touching its memory. What fails here is met again, and
    /// told, by whoever needs the buffer.
    fn prepare(&self, lacking: u64) {
        let _met_again = self.share(lacking as usize, |next| {
            while next().is_some() {
                self.put_back(self.make(CHUNK)?);
            }
            Ok(())
        });
    }

    /// A buffer to keep a chunk in, if the budget and the host allow for one more.
    fn pin(&self, budget: u64) -> Option<Box<dyn Staging>> {
        let within = |pinned| Some(pinned + CHUNK).filter(|&pinned| pinned <= budget);
        if self.pinned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_err() {
            return None;
        }
        let buffer = self.buffer(CHUNK);
        let buffer = buffer.inspect_err(|error| {
            self.pinned.fetch_sub(CHUNK, Ordering::Relaxed);
            tracing::warn!(%error, "contents are kept in ordinary memory");
        });
        buffer.ok()
    }

    fn buffer(&self, bytes: u64) -> Result<Box<dyn Staging>> {
        let mut free = lock(&self.buffers);
        // The one put back first, whose copies are the likeliest to be done.
        let at = free.iter().position(|buffer| buffer.bytes() as u64 == bytes);
        let found = at.map(|at| free.remove(at));
        drop(free);
        found.map_or_else(|| self.make(bytes), Ok)
    }

    fn make(&self, bytes: u64) -> Result<Box<dyn Staging>> {
        self.depot.staging(bytes as usize).map_err(|error| no_room(bytes, &error.to_string()))
    }

    fn put_back(&self, buffer: Box<dyn Staging>) {
        lock(&self.buffers).push(buffer);
    }
}

impl Contents {
    /// Bytes kept.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| sum(&part.spans)).sum()
    }

    /// Queues copies of what is kept of `used`, in address order, back to where it was. What is kept stays. The events
    /// that are added stand behind all that was queued.
    ///
    /// # Errors
    /// [`Error::Host`] when a file cannot be read, [`Error::Device`] when a copy failed: what is in the spans is
    /// undefined then, and what was queued before may be under way.
    pub fn load(&mut self, used: &[Span], events: &mut Vec<Event>) -> Result<()> {
        let Contents { store, parts, file, .. } = self;
        let mut own = None;
        let mut copied = Vec::new();
        for part in parts {
            let pieces = common(&part.spans, used);
            if pieces.is_empty() {
                continue;
            }
            if let Keep::Pinned(buffer) = &mut part.keep {
                let event = upload(&mut **buffer, &pieces)?;
                put_last(events, &mut own, event);
            } else {
                copied.push((pieces, &*part));
            }
        }
        let file = file.as_ref().map(Mutex::new);
        let queued = Mutex::new(events);
        store.share(copied.len(), |next| store.carry_back(&copied, next, file.as_ref(), &queued))
    }

    /// The same, once nothing is being copied from it any more.
    pub fn settled(mut self) -> Contents {
        for part in &mut self.parts {
            if let Keep::Pinned(buffer) = &mut part.keep
                && let Err(error) = buffer.contents()
            {
                tracing::warn!(%error, "a copy of contents back to the device failed");
            }
        }
        self
    }

    fn push(&mut self, part: Part) {
        self.store.kept.fetch_add(sum(&part.spans), Ordering::Relaxed);
        self.parts.push(part);
    }
}

impl Drop for Contents {
    fn drop(&mut self) {
        self.store.kept.fetch_sub(self.bytes(), Ordering::Relaxed);
        for part in self.parts.drain(..) {
            if let Keep::Pinned(buffer) = part.keep {
                self.store.pinned.fetch_sub(CHUNK, Ordering::Relaxed);
                self.store.put_back(buffer);
            }
        }
        // The budget may be less than it was.
        let budget = lock(&self.store.hosting).pinned_bytes;
        self.store.shrink(budget);
    }
}

/// The bytes of buffers that take so many of a lane's contents.
pub(super) fn in_buffers(bytes: u64) -> u64 {
    bytes.next_multiple_of(CHUNK)
}

/// Cuts spans into chunks of so many bytes, in order; the last may be shorter.
fn cut(spans: &[Span], whole: u64) -> Vec<Vec<Span>> {
    let mut chunks = Vec::new();
    let mut chunk = Vec::new();
    let mut room = whole;
    for &Span { mut address, mut bytes } in spans {
        while bytes > 0 {
            let part = bytes.min(room);
            chunk.push(Span { address, bytes: part });
            (address, bytes, room) = (address + part, bytes - part, room - part);
            if room == 0 {
                chunks.push(std::mem::take(&mut chunk));
                room = whole;
            }
        }
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}

fn sum(spans: &[Span]) -> u64 {
    spans.iter().map(|span| span.bytes).sum()
}

/// What `used` has in common with the spans of a chunk, each with its place in the chunk. Both are in address order.
fn common(spans: &[Span], used: &[Span]) -> Vec<(u64, Span)> {
    let mut common = Vec::new();
    let mut at = 0;
    for span in spans {
        let first = used.partition_point(|other| other.end() <= span.address);
        for other in used[first..].iter().take_while(|other| other.address < span.end()) {
            let address = span.address.max(other.address);
            let bytes = span.end().min(other.end()) - address;
            common.push((at + address - span.address, Span { address, bytes }));
        }
        at += span.bytes;
    }
    common
}

fn download(buffer: &mut dyn Staging, spans: &[Span]) -> Result<()> {
    let mut at = 0;
    for span in spans {
        buffer.download(at, span.address, span.bytes as usize)?;
        at += span.bytes as usize;
    }
    Ok(())
}

fn upload(buffer: &mut dyn Staging, pieces: &[(u64, Span)]) -> Result<Event> {
    for &(at, Span { address, bytes }) in pieces {
        buffer.upload(at as usize, address, bytes as usize)?;
    }
    Ok(buffer.mark()?)
}

/// Puts an event in place of the one before of the same thread, at `own`: what it queues is in order.
fn put_last(events: &mut Vec<Event>, own: &mut Option<usize>, event: Event) {
    match *own {
        Some(at) => events[at] = event,
        None => {
            *own = Some(events.len());
            events.push(event);
        }
    }
}

/// A copy in ordinary memory, of large pages where the system has them to spare.
fn in_memory(from: &[u8]) -> io::Result<MmapMut> {
    let mut kept = MmapMut::map_anon(from.len())?;
    #[cfg(target_os = "linux")]
    let _hint = kept.advise(memmap2::Advice::HugePage);
    kept.copy_from_slice(from);
    Ok(kept)
}

/// A copy at the end of a file, and where it begins.
fn in_file(file: &mut &File, from: &[u8]) -> io::Result<u64> {
    let at = file.seek(SeekFrom::End(0))?;
    file.write_all(from)?;
    Ok(at)
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

fn no_room(bytes: u64, reason: &str) -> Error {
    Error::Host { bytes, reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Spans that do not touch, from the lengths of holes and spans by turns.
    fn spans(lengths: Vec<(u64, u64)>) -> Vec<Span> {
        let mut at = 0;
        let next = |(hole, bytes): (u64, u64)| {
            let address = at + hole;
            at = address + bytes;
            Span { address, bytes }
        };
        lengths.into_iter().map(next).collect()
    }

    fn lengths() -> impl Strategy<Value = Vec<(u64, u64)>> {
        vec((1..3 * CHUNK, 1..3 * CHUNK), 0..20)
    }

    proptest! {
        #[test]
        fn chunks_hold_everything_in_order(lengths in lengths()) {
            let spans = spans(lengths);
            let chunks = cut(&spans, CHUNK);
            let all_but_last = chunks.len().saturating_sub(1);
            prop_assert!(chunks[..all_but_last].iter().all(|chunk| sum(chunk) == CHUNK));
            prop_assert!(chunks.iter().all(|chunk| (1..=CHUNK).contains(&sum(chunk))));
            let mut joined: Vec<Span> = Vec::new();
            for span in chunks.concat() {
                match joined.last_mut().filter(|last| last.end() == span.address) {
                    Some(last) => last.bytes += span.bytes,
                    None => joined.push(span),
                }
            }
            prop_assert_eq!(joined, spans);
        }

        #[test]
        fn what_is_common_lies_in_both(kept in lengths(), used in lengths()) {
            let (kept, used) = (spans(kept), spans(used));
            let common = common(&kept, &used);
            let starts = kept.iter().scan(0, |at, span| Some((std::mem::replace(at, *at + span.bytes), *span)));
            let starts: Vec<(u64, Span)> = starts.collect();
            let inside = |outer: &Span, inner: &Span| outer.address <= inner.address && inner.end() <= outer.end();
            for (at, piece) in &common {
                let place = |(start, span): &(u64, Span)| {
                    inside(span, piece) && start + piece.address - span.address == *at
                };
                prop_assert!(starts.iter().any(place) && used.iter().any(|used| inside(used, piece)));
            }
            let overlap = |a: &Span, b: &Span| a.end().min(b.end()).saturating_sub(a.address.max(b.address));
            let expected: u64 = kept.iter().flat_map(|a| used.iter().map(move |b| overlap(a, b))).sum();
            prop_assert_eq!(common.iter().map(|(_, piece)| piece.bytes).sum::<u64>(), expected);
        }
    }
}

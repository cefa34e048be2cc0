//! What is kept of a lane while it is absent, and how it gets there and back.
//!
//! ```text
//!   device          ─── chunk ──►  kept buffer                        pinned, within the budget: no copy by the host
//!   spans in order  ─── chunk ──►  ring buffer ──host──► memory, file  the next chunks travel meanwhile
//! ```
//!
//! Spans are one stream of bytes, cut into chunks. A chunk that is travelling has a staging buffer of its own;
//! buffers are made when they first lack and kept for ever.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use memmap2::MmapMut;

use super::depot::{Depot, lock};
use super::streams::Event;
use super::transfers::Staging;
use crate::error::{Error, Result};
use crate::manager::Span;

/// Bytes that travel at once: enough for the full speed of the bus, and few enough that the host soon has the first.
const CHUNK: u64 = 32 << 20;

/// Chunks of one operation that travel, or are copied by the host, at a time.
const RING: usize = 3;

/// Threads with which the host copies a chunk, or makes buffers, at most: one alone is slower than the bus.
const THREADS: usize = 8;

/// What a thread of these copies at least, bytes.
const SHARE: usize = 2 << 20;

/// Where contents are kept while their group is evicted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosting {
    /// Bytes that may be kept in memory that the device copies to and from by itself: the fastest way. Once made it is
    /// kept for ever, and the system has no other use of it.
    pub pinned_bytes: u64,
    /// The directory in which what exceeds that is kept, in files without a name. `None`: in ordinary memory.
    pub directory: Option<PathBuf>,
}

/// The host's side: its buffers, and what is kept.
pub(super) struct Store {
    depot: Arc<Depot>,
    hosting: Mutex<Hosting>,
    /// Buffers of [`CHUNK`] bytes that nobody has.
    buffers: Mutex<Vec<Box<dyn Staging>>>,
    /// Bytes of buffers that contents are kept in.
    pinned: AtomicU64,
    /// Bytes kept, wherever.
    kept: AtomicU64,
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
            depot,
            hosting: Mutex::default(),
            buffers: Mutex::default(),
            pinned: AtomicU64::new(0),
            kept: AtomicU64::new(0),
        }
    }

    /// Says where contents are kept that are saved from now on.
    pub fn set_hosting(&self, hosting: Hosting) {
        *lock(&self.hosting) = hosting;
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
        let Hosting { pinned_bytes, directory } = lock(&self.hosting).clone();
        let mut contents = Contents { asked, store: Arc::clone(self), parts: Vec::new(), file: None };
        if !self.depot.has_contents() {
            return Ok(contents);
        }
        if let Some(directory) = directory {
            let no_file =
                |error| no_room(sum(spans), &format!("no file in {}: {error}", directory.display()));
            contents.file = Some(tempfile::tempfile_in(&directory).map_err(no_file)?);
        }
        self.prepare(sum(spans), pinned_bytes);
        let mut travelling: VecDeque<(Vec<Span>, Box<dyn Staging>)> = VecDeque::new();
        for spans in chunks(spans) {
            if let Some(buffer) = self.pin(pinned_bytes)? {
                contents.push(spans, Keep::Pinned(buffer));
                let part = contents.parts.last_mut().expect("one was just added");
                if let Keep::Pinned(buffer) = &mut part.keep {
                    download(&mut **buffer, &part.spans)?;
                }
                continue;
            }
            let mut buffer = match travelling.len() {
                RING.. => contents.unload(travelling.pop_front().expect("a chunk that travels"))?,
                _ => self.buffer()?,
            };
            download(&mut *buffer, &spans)?;
            travelling.push_back((spans, buffer));
        }
        for chunk in travelling {
            let buffer = contents.unload(chunk)?;
            self.put_back(buffer);
        }
        for part in &mut contents.parts {
            if let Keep::Pinned(buffer) = &mut part.keep {
                buffer.contents()?;
            }
        }
        Ok(contents)
    }

    /// Makes the buffers that will lack to keep `bytes` within the budget, with several threads: what makes one dear is
    /// touching its memory. What fails here is met again, and told, by whoever needs the buffer.
    fn prepare(&self, bytes: u64, budget: u64) {
        let within = budget.saturating_sub(self.pinned.load(Ordering::Relaxed)) / CHUNK;
        let free = lock(&self.buffers).len() as u64;
        let lacking = AtomicU64::new(bytes.div_ceil(CHUNK).min(within).saturating_sub(free));
        let one_less = || {
            let less = |lacking: u64| lacking.checked_sub(1);
            lacking.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
        };
        let make = || {
            while one_less() && self.depot.staging(CHUNK as usize).map(|buffer| self.put_back(buffer)).is_ok()
            {
            }
        };
        let threads = cores().min(THREADS).min(lacking.load(Ordering::Relaxed) as usize);
        thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(make))));
    }

    /// A buffer to keep a chunk in, if the budget allows for one more.
    fn pin(&self, budget: u64) -> Result<Option<Box<dyn Staging>>> {
        let within = |pinned| Some(pinned + CHUNK).filter(|&pinned| pinned <= budget);
        if self.pinned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_err() {
            return Ok(None);
        }
        let buffer = self.buffer();
        if buffer.is_err() {
            self.pinned.fetch_sub(CHUNK, Ordering::Relaxed);
        }
        buffer.map(Some)
    }

    fn buffer(&self) -> Result<Box<dyn Staging>> {
        let free = lock(&self.buffers).pop();
        match free {
            Some(buffer) => Ok(buffer),
            None => self.depot.staging(CHUNK as usize).map_err(|error| no_room(CHUNK, &error.to_string())),
        }
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

    /// Queues copies of what is kept of `used`, in address order, back to where it was. The event, if there was
    /// anything to copy, stands behind them. What is kept stays.
    ///
    /// # Errors
    /// [`Error::Host`] when a file cannot be read, [`Error::Device`] when a copy failed: what is in the spans is
    /// undefined then, and copies may be under way.
    pub fn load(&mut self, used: &[Span]) -> Result<Option<Event>> {
        let mut ring: VecDeque<Box<dyn Staging>> = VecDeque::new();
        let mut event = None;
        for Part { spans, keep } in &mut self.parts {
            let pieces = common(spans, used);
            if pieces.is_empty() {
                continue;
            }
            let ring_buffer = match keep {
                Keep::Pinned(_) => None,
                _ if ring.len() < RING => Some(self.store.buffer()?),
                _ => ring.pop_front(),
            };
            let Some(mut buffer) = ring_buffer else {
                if let Keep::Pinned(buffer) = keep {
                    event = Some(upload(&mut **buffer, &pieces)?);
                }
                continue;
            };
            let bytes = sum(spans);
            let to = &mut buffer.contents()?[..bytes as usize];
            match keep {
                Keep::Memory(kept) => copy(to, kept),
                Keep::File(at) => {
                    let mut file = self.file.as_ref().expect("a file that parts lie in");
                    let read = file.seek(SeekFrom::Start(*at)).and_then(|_| file.read_exact(to));
                    read.map_err(|error| no_room(bytes, &format!("the file cannot be read: {error}")))?;
                }
                Keep::Pinned(_) => {}
            }
            event = Some(upload(&mut *buffer, &pieces)?);
            ring.push_back(buffer);
        }
        ring.into_iter().for_each(|buffer| self.store.put_back(buffer));
        Ok(event)
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

    fn push(&mut self, spans: Vec<Span>, keep: Keep) {
        self.store.kept.fetch_add(sum(&spans), Ordering::Relaxed);
        self.parts.push(Part { spans, keep });
    }

    /// Keeps a chunk that is travelling, and returns its buffer.
    fn unload(&mut self, chunk: (Vec<Span>, Box<dyn Staging>)) -> Result<Box<dyn Staging>> {
        let (spans, mut buffer) = chunk;
        let bytes = sum(&spans);
        let from = &buffer.contents()?[..bytes as usize];
        let kept = match &mut self.file {
            Some(file) => {
                let at = file.stream_position();
                at.and_then(|at| file.write_all(from).map(|()| Keep::File(at)))
            }
            None => in_memory(from).map(Keep::Memory),
        };
        self.push(spans, kept.map_err(|error| no_room(bytes, &error.to_string()))?);
        Ok(buffer)
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
    }
}

/// Cuts spans into chunks, in order.
fn chunks(spans: &[Span]) -> Vec<Vec<Span>> {
    let mut chunks = Vec::new();
    let mut chunk = Vec::new();
    let mut room = CHUNK;
    for &Span { mut address, mut bytes } in spans {
        while bytes > 0 {
            let part = bytes.min(room);
            chunk.push(Span { address, bytes: part });
            (address, bytes, room) = (address + part, bytes - part, room - part);
            if room == 0 {
                chunks.push(std::mem::take(&mut chunk));
                room = CHUNK;
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

/// A copy in ordinary memory, of large pages where the system has them to spare.
fn in_memory(from: &[u8]) -> io::Result<MmapMut> {
    let mut kept = MmapMut::map_anon(from.len())?;
    #[cfg(target_os = "linux")]
    let _hint = kept.advise(memmap2::Advice::HugePage);
    copy(&mut kept, from);
    Ok(kept)
}

/// Copies, with several threads where it is much. Touching fresh memory costs as much as the copy, and is shared too.
fn copy(to: &mut [u8], from: &[u8]) {
    let threads = cores().min(THREADS).min(from.len() / SHARE).max(1);
    let share = from.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let mut parts = to.chunks_mut(share).zip(from.chunks(share));
        let own = parts.next();
        for (to, from) in parts {
            scope.spawn(|| to.copy_from_slice(from));
        }
        if let Some((to, from)) = own {
            to.copy_from_slice(from);
        }
    });
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
            let chunks = chunks(&spans);
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

    #[test]
    fn many_threads_copy_what_one_does() {
        for bytes in [0, 1, SHARE - 1, 2 * SHARE + 1, 5 * SHARE + 77] {
            let from: Vec<u8> = (0..bytes).map(|at| (at * 7 / 3) as u8).collect();
            let mut to = vec![0; bytes];
            copy(&mut to, &from);
            assert_eq!(to, from);
        }
    }
}

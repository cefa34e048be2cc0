//! What the library logs, for programs that ask for it: a queue of lines that the program takes.
//!
//! ```text
//!   a thread of whoever's, under locks of the library's ──event──► QUEUE, the last 1024 lines
//!                                                                    │
//!   a thread of the program's, under no lock of the library's ◄──tilework_take_log
//! ```
//!
//! Nothing is called back. Lines are written under the locks that order allocations, by threads that may have other
//! locks of the program's, Python's among them: a function of the program's that waited there for such a lock would wait
//! for whoever waits for memory. The queue's own lock is the last to be taken, and held while a line goes in or out.
//!
//! Nothing is collected before a program asks, and then only what `tracing` has an event for: warm paths have none.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{CString, c_char};
use std::fmt::{self, Write as _};
use std::process;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::call::{Failure, Result, TileworkStatus, status, terminated};
use crate::manager::put_if_wanted;

/// How much a line of the log matters.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TileworkLevel {
    /// Of no line: nothing is logged.
    Off = 0,
    /// A failure that no caller could be told.
    Error = 1,
    /// Something to know about: what serves in place of what the device cannot, what failed and is tried again.
    Warning = 2,
    /// What was chosen.
    Info = 3,
    /// What happened: groups that went and came, memory that lacked, was given back, or is the host's.
    Debug = 4,
}

/// By their numbers.
const LEVELS: [(TileworkLevel, LevelFilter); 5] = [
    (TileworkLevel::Off, LevelFilter::OFF),
    (TileworkLevel::Error, LevelFilter::ERROR),
    (TileworkLevel::Warning, LevelFilter::WARN),
    (TileworkLevel::Info, LevelFilter::INFO),
    (TileworkLevel::Debug, LevelFilter::DEBUG),
];

/// Lines that wait to be taken, at most.
const MOST: usize = 1024;

/// What is logged, as an index of [`LEVELS`].
static WANTED: AtomicU32 = AtomicU32::new(0);

/// The process that asked for it; 0 while none has. In its children the queue may be locked for ever.
static OWNER: AtomicU32 = AtomicU32::new(0);

static QUEUE: Mutex<Queue> = Mutex::new(Queue { lines: VecDeque::new(), lost: 0 });

/// A line has come, or something else is wanted.
static CHANGED: Condvar = Condvar::new();

struct Line {
    level: TileworkLevel,
    topic: &'static str,
    text: String,
}

struct Queue {
    lines: VecDeque<Line>,
    /// Lines that nobody took in time.
    lost: u64,
}

impl Queue {
    fn lock() -> MutexGuard<'static, Queue> {
        // It is complete at any time.
        QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&mut self, line: Line) {
        if self.lines.len() == MOST {
            self.lines.pop_front();
            self.lost += 1;
        }
        self.lines.push_back(line);
    }

    fn take(&mut self) -> Option<Line> {
        if self.lost > 0 {
            let text = format!("{} lines of the log were lost: nobody took them in time", self.lost);
            self.lost = 0;
            return Some(Line { level: TileworkLevel::Warning, topic: "tilework::log", text });
        }
        self.lines.pop_front()
    }
}

fn wanted() -> (TileworkLevel, LevelFilter) {
    LEVELS[WANTED.load(Ordering::Relaxed) as usize]
}

/// Puts events into the queue.
struct Collector;

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= wanted().1
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(wanted().1)
    }

    fn event(&self, event: &Event<'_>) {
        if process::id() != OWNER.load(Ordering::Relaxed) {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let level = match *event.metadata().level() {
            Level::ERROR => TileworkLevel::Error,
            Level::WARN => TileworkLevel::Warning,
            Level::INFO => TileworkLevel::Info,
            _ => TileworkLevel::Debug,
        };
        Queue::lock().put(Line { level, topic: event.metadata().target(), text: text.line() });
        CHANGED.notify_one();
    }

    // There are no spans.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// An event in words: its message, then each field as `name=value`.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn line(self) -> String {
        (self.message + &self.fields).replace(['\n', '\r'], " ")
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string fails only where a value cannot be written, and then it is left out.
        _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

/// The log belongs to the process that first asked for it.
fn own() -> Result<()> {
    let this = process::id();
    match OWNER.compare_exchange(0, this, Ordering::Relaxed, Ordering::Relaxed) {
        Err(owner) if owner != this => {
            let text = "this process was forked from the one that has the log, which stays with it";
            Err(Failure::new(TileworkStatus::Forked, text))
        }
        _ => Ok(()),
    }
}

/// Says what is logged from now on, by all managers: a `tilework_level` and what matters more. At first it is
/// `TILEWORK_LEVEL_OFF`, which takes nothing. Lines wait for `tilework_take_log`, the last 1024 of them; those that wait
/// stay when the level changes. A child made by fork has no log of its parent's.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_set_log(level: u32) -> TileworkStatus {
    static COLLECTOR: Once = Once::new();
    status(|| {
        if level as usize >= LEVELS.len() {
            return Err(Failure::argument(format!(
                "{level} is no level: they are 0 to {}",
                LEVELS.len() - 1
            )));
        }
        own()?;
        WANTED.store(level, Ordering::Relaxed);
        // It fails where there is one already, and nobody else sets one in this library.
        COLLECTOR.call_once(|| _ = tracing::subscriber::set_global_default(Collector));
        tracing::callsite::rebuild_interest_cache();
        // Whoever is about to wait has looked at the level before this, or looks after it.
        drop(Queue::lock());
        CHANGED.notify_all();
        Ok(())
    })
}

/// Takes the oldest line of the log, waiting for one until `wait_ms` milliseconds have passed or the log is off. Stores
/// how much it matters, what it is about, such as "tilework::serving", and its text; a null text and
/// `TILEWORK_LEVEL_OFF` where there is none. The texts are valid until this thread takes the next line. Each place may be null.
/// Nothing of the library waits for whoever takes lines, so he may wait for anything.
///
/// # Safety
/// `level`, `topic` and `text` must each be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_take_log(
    wait_ms: u32,
    level: *mut TileworkLevel,
    topic: *mut *const c_char,
    text: *mut *const c_char,
) -> TileworkStatus {
    thread_local! {
        static TAKEN: RefCell<Option<(CString, CString)>> = const { RefCell::new(None) };
    }
    status(|| {
        own()?;
        let line = next(Duration::from_millis(wait_ms.into()));
        let its_level = line.as_ref().map_or(TileworkLevel::Off, |line| line.level);
        let texts = line.map(|line| (terminated(line.topic), terminated(&line.text)));
        let [its_topic, its_text] = TAKEN.with_borrow_mut(|taken| {
            *taken = texts;
            taken.as_ref().map_or([ptr::null(); 2], |(topic, text)| [topic.as_ptr(), text.as_ptr()])
        });
        // SAFETY: each is null, or valid for a write as this function demands.
        unsafe {
            put_if_wanted(level, its_level)?;
            put_if_wanted(topic, its_topic)?;
            put_if_wanted(text, its_text)
        }
    })
}

/// The oldest line, waited for until `wait` has passed or nothing is logged.
fn next(wait: Duration) -> Option<Line> {
    let began = Instant::now();
    let mut queue = Queue::lock();
    loop {
        let left = wait.saturating_sub(began.elapsed());
        match queue.take() {
            None if !left.is_zero() && WANTED.load(Ordering::Relaxed) != 0 => {}
            line => return line,
        }
        queue = CHANGED.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;
    use std::thread;

    use super::*;

    fn take(wait_ms: u32) -> Option<(TileworkLevel, String, String)> {
        let (mut level, mut topic, mut text) = (TileworkLevel::Off, ptr::null(), ptr::null());
        // SAFETY: the places are valid for writes.
        let taken = unsafe { tilework_take_log(wait_ms, &raw mut level, &raw mut topic, &raw mut text) };
        assert_eq!(taken, TileworkStatus::Ok);
        if text.is_null() {
            assert!(topic.is_null() && level == TileworkLevel::Off);
            return None;
        }
        // SAFETY: not null, so terminated, until this thread takes the next.
        let owned = |text| unsafe { CStr::from_ptr(text) }.to_str().unwrap().to_owned();
        Some((level, owned(topic), owned(text)))
    }

    /// What this module logs: other tests log too, in other threads.
    fn ours(wait_ms: u32) -> Option<(TileworkLevel, String)> {
        loop {
            match take(wait_ms)? {
                (level, topic, text) if topic == "ours" => return Some((level, text)),
                _ => {}
            }
        }
    }

    // One test, since a process has one log.
    #[test]
    fn lines_wait_until_they_are_taken() {
        tracing::error!(target: "ours", "nobody has asked");
        assert_eq!(tilework_set_log(5), TileworkStatus::InvalidArgument);
        assert_eq!(take(60_000), None, "nothing will come");

        assert_eq!(tilework_set_log(TileworkLevel::Debug as u32), TileworkStatus::Ok);
        tracing::warn!(target: "ours", group = "a\nb", bytes = 7, "a\nline\0");
        tracing::debug!(target: "ours", "another");
        tracing::trace!(target: "ours", "too much");
        let line = "a line  group=\"a\\nb\" bytes=7".to_owned();
        assert_eq!(ours(0), Some((TileworkLevel::Warning, line)));
        assert_eq!(tilework_set_log(TileworkLevel::Warning as u32), TileworkStatus::Ok);
        tracing::info!(target: "ours", "less");
        assert_eq!(ours(0), Some((TileworkLevel::Debug, "another".into())), "what waits stays");
        assert_eq!(ours(0), None);

        // Who waits gets what comes, and is let go when nothing will.
        thread::scope(|scope| {
            let waiting = scope.spawn(|| (ours(60_000), ours(60_000)));
            tracing::error!(target: "ours", "at last");
            while !waiting.is_finished() {
                tilework_set_log(TileworkLevel::Off as u32);
            }
            let (line, none) = waiting.join().unwrap();
            assert_eq!((line, none), (Some((TileworkLevel::Error, "at last".into())), None));
        });

        tilework_set_log(TileworkLevel::Error as u32);
        while take(0).is_some() {}
        for number in 0..MOST + 3 {
            tracing::error!(target: "ours", number, "many");
        }
        let (level, topic, text) = take(0).unwrap();
        assert_eq!((level, &*topic), (TileworkLevel::Warning, "tilework::log"));
        assert!(text.ends_with("lines of the log were lost: nobody took them in time"), "{text}");
        let mut last = None;
        while let Some((_, text)) = ours(0) {
            last = Some(text);
        }
        assert_eq!(last, Some(format!("many number={}", MOST + 2)));
        tilework_set_log(TileworkLevel::Off as u32);
    }
}

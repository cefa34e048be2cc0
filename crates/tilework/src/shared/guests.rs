//! Guests: which lane serves a stream that somebody else destroys without telling.
//!
//! The lanes of guests are numbered *seats*. A stream keeps its seat as long as a block of its is live there. One
//! that has no live block, because its run is over or has just begun, takes the first seat where nothing is live:
//! runs by turns, of whatever sessions, work in the same memory, and runs at the same time each in their own.
//!
//! ```text
//!   session 1  ──run──          ──run──                 seat 1
//!   session 2           ──run──         ──run──         seat 1, the device waited for at each change
//!   session 3           ──────────run──────────         seat 2
//! ```
//!
//! What the stream before did with the seat's memory is waited for by the host before another has it. Requests that
//! name no stream have a lane of their own, which is no seat.

use std::sync::Mutex;

use super::Shared;
use super::depot::lock;
use super::lane::Key;
use crate::error::Result;
use crate::manager::Stream;

/// The seats, the first at the front.
#[derive(Default)]
pub(super) struct Guests(Mutex<Vec<Seat>>);

struct Seat {
    /// Who sits there, or did last.
    stream: Stream,
    /// Requests that are being served there: their blocks are as good as live.
    serving: u32,
}

impl Shared {
    /// Serves a guest's request in its seat.
    pub(super) fn alloc_seated(&self, bytes: u64, stream: Stream) -> Result<u64> {
        if stream == Stream::default() {
            return self.alloc_in(Key::guest(stream), None, bytes);
        }
        let at = {
            let mut seats = lock(&self.guests.0);
            let at = self.seat(&mut seats, stream);
            seats[at].serving += 1;
            at
        };
        let served = self.alloc_in(key(at), None, bytes);
        lock(&self.guests.0)[at].serving -= 1;
        served
    }

    /// The seat of a stream, which is its own from here on.
    fn seat(&self, seats: &mut Vec<Seat>, stream: Stream) -> usize {
        let own = seats.iter().position(|seat| seat.stream == stream);
        let is_free = |seats: &[Seat], at: usize| {
            let lane = self.lanes.get(key(at));
            seats[at].serving == 0 && lane.is_none_or(|lane| lane.lock().blocks.is_empty())
        };
        if let Some(own) = own
            && (own == 0 || !is_free(seats, own))
        {
            return own;
        }
        let before = own.unwrap_or(seats.len());
        if let Some(first) = (0..before).find(|&at| is_free(seats, at))
            && self.settle_guest(key(first))
        {
            if let Some(own) = own {
                // Nobody's now: whoever comes next waits for what was done there.
                seats[own].stream = Stream::default();
            }
            seats[first].stream = stream;
            return first;
        }
        own.unwrap_or_else(|| {
            seats.push(Seat { stream, serving: 0 });
            seats.len() - 1
        })
    }

    /// Waits for all that was done with the memory of a guest's lane. False when that cannot be.
    fn settle_guest(&self, key: Key) -> bool {
        let Some(lane) = self.lanes.get(key) else { return true };
        if self.depot.is_capturing(&lane.home) {
            return false;
        }
        let waited = self.depot.streams().synchronize_device();
        waited.inspect_err(|error| tracing::warn!(%error, "the device could not be waited for")).is_ok()
    }
}

/// The lane of a seat. Zero is that of requests without a stream.
fn key(at: usize) -> Key {
    Key::guest(Stream(at as u64 + 1))
}

//! How what has grown old is given back at the end of an execution: beside the program, where it is much.
//!
//! After a burst of large requests hundreds of heaps grow old in the same execution, and unmapping and releasing them takes
//! the driver tens of milliseconds. Whoever ends an execution is about to begin the next, so a thread of its own does it,
//! in rounds, and rests between two of them for as long as the last one took: who needs the device meanwhile has it at
//! least half of the time.

use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::{Depot, State, lock};
use crate::device::DeviceError;

/// Heaps and mappings that whoever ends an execution gives back himself: what costs less than a thread is felt.
const AT_ONCE: usize = 32;

/// Unmappings of a round, and releases: with the device's lock held.
const ROUND: usize = 8;

/// The thread that gives back, while there is much.
#[derive(Default)]
pub(super) struct Aging(Mutex<Option<JoinHandle<()>>>);

impl Depot {
    /// Ends an execution: what was late and need not be is done, and heaps that stayed in the stock for `age`
    /// executions are released, on a thread of its own where it is much. Never waits.
    pub fn end_of_execution(self: &Arc<Self>, age: u64) -> Result<(), DeviceError> {
        let mut thread = lock(&self.aging.0);
        let mut state = lock(&self.state);
        state.executions += 1;
        state.old = state.executions.saturating_sub(age);
        if state.late.len() + state.old_heaps() <= AT_ONCE {
            return self.give_back_old(&mut state, usize::MAX).1;
        }
        if state.giving && thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            // It will come upon what has grown old since.
            return Ok(());
        }
        state.giving = true;
        drop(state);
        let depot = Arc::clone(self);
        match thread::Builder::new().name("tilework-aging".into()).spawn(move || depot.give_back_in_rounds())
        {
            Ok(new) => *thread = Some(new),
            Err(error) => {
                tracing::warn!(%error, "no thread to give memory back with: the caller waits");
                return self.give_back_old(&mut lock(&self.state), usize::MAX).1;
            }
        }
        Ok(())
    }

    /// Waits until no thread uses the device on its own account any more.
    pub fn finish(&self) {
        if let Some(thread) = lock(&self.aging.0).take()
            && thread.join().is_err()
        {
            tracing::warn!(
                "the thread that gives back what has grown old panicked: it stays held and is tried again"
            );
        }
    }

    fn give_back_in_rounds(&self) {
        loop {
            let began = Instant::now();
            let mut state = lock(&self.state);
            let (done, outcome) = self.give_back_old(&mut state, ROUND);
            state.giving = done > 0;
            drop(state);
            if done > 0 {
                thread::sleep(began.elapsed());
                continue;
            }
            if let Err(error) = outcome {
                tracing::warn!(%error, "device memory could not be given back: it stays held and is tried again");
            }
            return;
        }
    }

    /// Does what was late and need not be, and releases what is old, so many of each at most. Returns how many there were,
    /// also where others failed.
    fn give_back_old(&self, state: &mut State, most: usize) -> (usize, Result<(), DeviceError>) {
        let mut left = most;
        let (unmapped, settled) = self.settle_some(state, |_| {
            let goes = left > 0;
            left -= usize::from(goes);
            goes
        });
        let (old, mut asked) = (state.old, 0);
        let before = self.stock_bytes();
        let released = self.release(state, u64::MAX, |entry| {
            let goes = asked < most && entry.is_old(old);
            asked += usize::from(goes);
            goes
        });
        let released_any = usize::from(self.stock_bytes() < before);
        (unmapped + released_any, settled.and(released.map(drop)))
    }
}

impl State {
    fn old_heaps(&self) -> usize {
        self.stock.values().flatten().filter(|entry| entry.is_old(self.old)).count()
    }
}

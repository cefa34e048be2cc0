//! What a caller has by a number, until it gives the number back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustc_hash::FxHashMap;

use crate::call::{Failure, Result};

/// The number given last, whatever for: none comes twice, nor means something elsewhere.
static LAST: AtomicU64 = AtomicU64::new(0);

/// References that one manager's callers have.
#[derive(Debug)]
pub struct References<T>(Mutex<FxHashMap<u64, T>>);

impl<T> Default for References<T> {
    fn default() -> References<T> {
        References(Mutex::default())
    }
}

impl<T> References<T> {
    /// Keeps a reference and returns its number, which is not 0.
    pub fn keep(&self, reference: T) -> u64 {
        let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        self.lock(|kept| kept.insert(number, reference));
        number
    }

    /// Takes the reference of this number away.
    ///
    /// # Errors
    /// When none has it: it was taken before, is another manager's, or made up.
    pub fn take(&self, number: u64) -> Result<T> {
        // Dropped by the caller, who does not have the lock.
        self.lock(|kept| kept.remove(&number)).ok_or_else(|| {
            let text = format!("the manager has no reference {number}: it was let go, or never made");
            Failure::argument(text)
        })
    }

    fn lock<R>(&self, body: impl FnOnce(&mut FxHashMap<u64, T>) -> R) -> R {
        // Each change is one call of the map's.
        body(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;
    use crate::call::TileworkStatus;

    fn refused<T>(references: &References<T>, number: u64) {
        let failure = references.take(number).err().expect("no such reference");
        assert_eq!(failure.status, TileworkStatus::InvalidArgument);
        assert!(failure.text.contains(&format!("no reference {number}: ")), "{}", failure.text);
    }

    #[test]
    fn a_reference_is_let_go_once_and_where_it_was_made() {
        let (one, other) = (References::default(), References::default());
        let held = Arc::new(());
        let numbers = [one.keep(Arc::clone(&held)), one.keep(Arc::clone(&held))];
        let elsewhere = other.keep(Arc::clone(&held));
        for number in [0, elsewhere, u64::MAX] {
            refused(&one, number);
        }
        refused(&other, numbers[0]);
        assert_eq!(Arc::strong_count(&held), 4);
        drop(one.take(numbers[0]).unwrap());
        refused(&one, numbers[0]);
        assert_eq!(Arc::strong_count(&held), 3);
        // What is left goes with its manager.
        drop(one);
        assert_eq!(Arc::strong_count(&held), 2);
        drop(other.take(elsewhere).unwrap());
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[test]
    fn of_many_threads_that_let_go_one_does() {
        let references = References::default();
        let numbers: Vec<u64> = (0..200_u64).map(|what| references.keep(what)).collect();
        let taken: Vec<u64> = thread::scope(|scope| {
            let take = || numbers.iter().filter_map(|&number| references.take(number).ok()).collect();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().flat_map(|thread| -> Vec<u64> { thread.join().unwrap() }).collect()
        });
        let mut sorted = taken;
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..200));
    }
}

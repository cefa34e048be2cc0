//! Handles of managers, and who is inside which.
//!
//! A handle is a number that looks like a pointer and is never used again, so that a handle that is null, made
//! up or destroyed is an error and not a crash.
//!
//! ```text
//!   a call       seat = handle ──► place holds a manager? ──► the call ──► seat = 0
//!   a removal    place = null  ──► a seat has the handle? ──► wait until none has ──► drop
//! ```
//!
//! Each thread has a seat that it alone writes, so that threads that use one manager share no counter and no
//! lock. Of the first two steps of each side, in whatever order they come, either the call finds no manager any
//! more or the removal finds the seat: a [`barrier`] lies between them.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use std::{ptr, thread};

use tilework::shared::Shared;

use crate::barrier;
use crate::call::{Failure, Result, TileworkStatus};

/// Handles are multiples of this: as a pointer none looks like another one's neighbour.
const STEP: usize = 64;

/// The place of each handle, by its number. Row `n` has the `2^n` numbers from `2^n` on: rows are made as they are
/// needed and stay where they are. A word for each manager there ever was.
static ROWS: [OnceLock<Box<[Place]>>; 48] = [const { OnceLock::new() }; 48];

/// Null, or what [`Arc::into_raw`] gave.
type Place = AtomicPtr<Shared>;

/// The last number given away.
static LAST: Mutex<usize> = Mutex::new(0);

/// As many as there were ever threads at a time. Those of threads that have ended are taken by others.
static SEATS: Mutex<Vec<&Seat>> = Mutex::new(Vec::new());

#[derive(Default)]
struct Seat {
    /// Of the manager that the seat's thread is inside of; zero for none.
    handle: AtomicUsize,
    taken: AtomicBool,
}

/// A seat, taken while this lives.
struct Taken(&'static Seat);

thread_local! {
    static OWN: Taken = Taken::new();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each is complete at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[inline]
fn place(handle: usize) -> Option<&'static Place> {
    let number = handle / STEP;
    let row = number.checked_ilog2()?;
    let place = ROWS.get(row as usize)?.get()?.get(number - (1 << row))?;
    handle.is_multiple_of(STEP).then_some(place)
}

#[cold]
fn nobody() -> Failure {
    Failure::argument("no manager has this handle: it is null, made up, or destroyed")
}

/// Gives a manager a handle.
pub fn register(shared: Arc<Shared>) -> usize {
    barrier::prepare();
    let mut last = lock(&LAST);
    let number = *last + 1;
    let row = number.ilog2();
    let places = ROWS[row as usize].get_or_init(|| (0..1_usize << row).map(|_| Place::default()).collect());
    places[number - (1 << row)].store(Arc::into_raw(shared).cast_mut(), Ordering::Release);
    *last = number;
    number * STEP
}

/// Does something with a manager, which lives until it is done.
#[inline]
pub fn with<T>(handle: usize, body: impl FnOnce(&Shared) -> Result<T>) -> Result<T> {
    match OWN.try_with(|own| own.0) {
        Ok(own) if own.has(0) => own.sit(handle, body),
        _ => with_another(handle, body),
    }
}

/// As [`with`], inside another manager's call or in a thread at its very end.
#[cold]
fn with_another<T>(handle: usize, body: impl FnOnce(&Shared) -> Result<T>) -> Result<T> {
    Taken::new().0.sit(handle, body)
}

/// Takes a handle away from its manager and waits until no call is inside it.
pub fn remove(handle: usize) -> Result<Arc<Shared>> {
    if OWN.try_with(|own| own.0.has(handle)).unwrap_or(false) {
        return Err(Failure::argument("a call of this manager cannot destroy it"));
    }
    let place = place(handle).ok_or_else(nobody)?;
    let shared = place.swap(ptr::null_mut(), Ordering::AcqRel);
    if shared.is_null() {
        return Err(nobody());
    }
    if !barrier::heavy() {
        place.store(shared, Ordering::Release);
        let text =
            "the system refuses the call membarrier, so nobody knows which threads are inside the manager";
        return Err(Failure::new(TileworkStatus::Unsupported, text));
    }
    // Who takes a seat from here on finds no manager. The lock is not held meanwhile: others need it for theirs.
    let inside: Vec<&Seat> = lock(&SEATS).iter().filter(|seat| seat.has(handle)).copied().collect();
    for seat in inside {
        while seat.has(handle) {
            thread::sleep(Duration::from_micros(50));
        }
    }
    // SAFETY: not null, so it came from `into_raw`; only one removal swapped it out; and no call uses it any
    // more without an owner of its own.
    Ok(unsafe { Arc::from_raw(shared) })
}

impl Seat {
    #[inline]
    fn has(&self, handle: usize) -> bool {
        self.handle.load(Ordering::Acquire) == handle
    }

    /// Does something with a manager. To be called by the seat's thread, while the seat is free.
    #[inline(always)]
    fn sit<T>(&self, handle: usize, body: impl FnOnce(&Shared) -> Result<T>) -> Result<T> {
        struct Leave<'a>(&'a Seat);
        impl Drop for Leave<'_> {
            #[inline]
            fn drop(&mut self) {
                self.0.handle.store(0, Ordering::Release);
            }
        }
        self.handle.store(handle, Ordering::Relaxed);
        let _leave = Leave(self);
        barrier::light();
        let shared = place(handle).map_or(ptr::null_mut(), |place| place.load(Ordering::Acquire));
        if shared.is_null() {
            return Err(nobody());
        }
        // SAFETY: not null, so it came from `into_raw`, and the place owned it. A removal that has taken it from
        // the place since did not come before this load, so behind its barrier it sees the seat, and waits until the
        // manager has been left, which `_leave` does after all uses of it.
        body(unsafe { &*shared })
    }
}

impl Taken {
    fn new() -> Taken {
        let mut seats = lock(&SEATS);
        let free = seats.iter().copied().find(|seat| !seat.taken.load(Ordering::Acquire));
        let seat = free.unwrap_or_else(|| {
            seats.push(Box::leak(Box::default()));
            seats[seats.len() - 1]
        });
        seat.taken.store(true, Ordering::Relaxed);
        Taken(seat)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::sync::mpsc;

    use tilework::manager::Stream;

    use super::*;
    use crate::call::TileworkStatus;

    fn made() -> usize {
        register(Arc::new(crate::open::shared("null", &Default::default()).unwrap()))
    }

    fn refused<T>(result: Result<T>) -> String {
        let failure = result.err().expect("a failure");
        assert_eq!(failure.status, TileworkStatus::InvalidArgument);
        failure.text.clone()
    }

    #[test]
    fn only_what_was_given_away_and_not_taken_back_is_a_handle() {
        let handles: Vec<usize> = (0..200).map(|_| made()).collect();
        for &handle in &handles {
            with(handle, |shared| Ok(shared.usage())).unwrap();
            for wrong in [handle + 1, handle - 1, handle + STEP * 100_000] {
                refused(with(wrong, |_| Ok(())));
            }
        }
        for wrong in [0, 1, STEP / 2, usize::MAX, usize::MAX / STEP * STEP, 1 << 60] {
            refused(with(wrong, |_| Ok(())));
            refused(remove(wrong));
        }
        for handle in handles {
            remove(handle).unwrap();
            refused(with(handle, |_| Ok(())));
            refused(remove(handle));
        }
    }

    #[test]
    fn a_removal_waits_for_the_call_that_is_inside() {
        let handle = made();
        let (entered, inside) = mpsc::channel();
        let (leave, left) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                with(handle, |shared| {
                    entered.send(()).unwrap();
                    left.recv().unwrap();
                    Ok(shared.alloc(1, Stream(0))?)
                })
                .unwrap();
            });
            inside.recv().unwrap();
            let removal = scope.spawn(move || Arc::strong_count(&remove(handle).unwrap()));
            while with(handle, |_| Ok(())).is_ok() {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(20));
            assert!(!removal.is_finished(), "a manager was taken from a call that uses it");
            leave.send(()).unwrap();
            assert_eq!(removal.join().unwrap(), 1);
        });
    }

    #[test]
    fn a_call_can_make_calls_of_other_managers_but_not_end_its_own() {
        let (outer, inner) = (made(), made());
        with(outer, |_| {
            with(inner, |shared| Ok(shared.alloc(1, Stream(0))?))?;
            assert!(refused(remove(outer)).contains("cannot destroy it"));
            remove(inner).map(drop)
        })
        .unwrap();
        remove(outer).unwrap();
    }

    #[test]
    fn managers_come_and_go_under_calls() {
        let current = AtomicUsize::new(made());
        let served = AtomicU32::new(0);
        thread::scope(|scope| {
            for stream in 1..4 {
                let (current, served) = (&current, &served);
                scope.spawn(move || {
                    while current.load(Ordering::Relaxed) != 0 {
                        let pair = with(current.load(Ordering::Relaxed), |shared| {
                            let address = shared.alloc(512, Stream(stream))?;
                            Ok(shared.free(address)?)
                        });
                        match pair {
                            Ok(()) => _ = served.fetch_add(1, Ordering::Relaxed),
                            Err(failure) => assert!(failure.text.contains("handle"), "{}", failure.text),
                        }
                    }
                });
            }
            for _ in 0..300 {
                let before = served.load(Ordering::Relaxed);
                while served.load(Ordering::Relaxed) < before + 5 {
                    thread::yield_now();
                }
                let old = current.swap(made(), Ordering::Relaxed);
                let shared = Arc::into_inner(remove(old).unwrap()).expect("nobody is inside any more");
                shared.check_invariants();
                assert_eq!(shared.usage().live, 0);
            }
            remove(current.swap(0, Ordering::Relaxed)).unwrap();
        });
    }
}

//! A barrier between a store and a load of which one side pays for both.
//!
//! ```text
//!   each call       store a    light()    load b
//!   a removal       store b    heavy()    load a
//! ```
//!
//! Of the two loads at least one finds what the other side stored. With a barrier on each side a call would wait for
//! its own store to reach the caches, 12 % of the time of a warm request and free. Linux can have all threads of a
//! process pass one instead (`membarrier`, Linux 4.14), in microseconds, and then the compiler's order is enough for
//! the calls.

use std::sync::atomic::{Ordering, fence};

/// Looks whether [`heavy`] can do the work of both sides. To be called before there is anything that calls or removals
/// might find.
pub fn prepare() {
    #[cfg(target_os = "linux")]
    linux::register();
}

/// Between the store and the load of a side that comes often.
#[inline]
pub fn light() {
    #[cfg(target_os = "linux")]
    if linux::registered() {
        return std::sync::atomic::compiler_fence(Ordering::SeqCst);
    }
    fence(Ordering::SeqCst);
}

/// Between the store and the load of a side that comes rarely. False: the system refused, and nothing may be concluded
/// from the load.
#[must_use]
pub fn heavy() -> bool {
    #[cfg(target_os = "linux")]
    if linux::registered() {
        return linux::all_threads();
    }
    fence(Ordering::SeqCst);
    true
}

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::{c_int, c_uint};
    use std::sync::Once;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// `MEMBARRIER_CMD_PRIVATE_EXPEDITED` and `MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED` of `linux/membarrier.h`.
    const PRIVATE_EXPEDITED: c_int = 1 << 3;
    const REGISTER_PRIVATE_EXPEDITED: c_int = 1 << 4;

    /// Written once, before anything is shared. A thread that still reads false has a barrier of its own, which does
    /// no harm.
    static REGISTERED: AtomicBool = AtomicBool::new(false);

    pub fn register() {
        static ASKED: Once = Once::new();
        ASKED.call_once(|| REGISTERED.store(membarrier(REGISTER_PRIVATE_EXPEDITED), Ordering::Release));
    }

    #[inline]
    pub fn registered() -> bool {
        REGISTERED.load(Ordering::Relaxed)
    }

    pub fn all_threads() -> bool {
        membarrier(PRIVATE_EXPEDITED)
    }

    fn membarrier(command: c_int) -> bool {
        // SAFETY: the call takes three numbers and touches no memory of ours; one that the kernel does not know is an
        // error.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0 as c_uint, 0 as c_int) == 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, AtomicUsize};
    use std::thread;

    use super::*;

    const ROUNDS: usize = 20_000;

    /// Both sides store and then look at what the other stored; how often neither found it.
    fn missed(calls: impl Fn() + Sync, removes: impl Fn()) -> usize {
        let cells: Vec<[AtomicU32; 2]> = (0..ROUNDS).map(|_| Default::default()).collect();
        let arrived = AtomicUsize::new(0);
        let meet = |round: usize| {
            arrived.fetch_add(1, Ordering::AcqRel);
            while arrived.load(Ordering::Acquire) < 2 * (round + 1) {
                thread::yield_now();
            }
        };
        let side = |own: usize, between: &dyn Fn()| -> Vec<u32> {
            let round = |(round, cell): (usize, &[AtomicU32; 2])| {
                meet(round);
                cell[own].store(1, Ordering::Relaxed);
                between();
                cell[1 - own].load(Ordering::Relaxed)
            };
            cells.iter().enumerate().map(round).collect()
        };
        thread::scope(|scope| {
            let called = scope.spawn(|| side(0, &calls));
            let removed = side(1, &removes);
            let found = called.join().unwrap();
            found.iter().zip(&removed).filter(|&(&a, &b)| a + b == 0).count()
        })
    }

    #[test]
    fn one_side_always_finds_what_the_other_stored() {
        prepare();
        assert_eq!(missed(light, || assert!(heavy())), 0);
    }

    #[test]
    fn before_it_is_known_what_the_system_can_do_both_sides_have_barriers() {
        assert_eq!(missed(|| fence(Ordering::SeqCst), || assert!(heavy())), 0);
    }
}

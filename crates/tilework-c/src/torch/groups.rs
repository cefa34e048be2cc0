//! Which group a thread's requests are for.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::call::{Failure, Result};

thread_local! {
    /// The groups that the thread is in, the innermost last.
    static ENTERED: RefCell<Vec<Rc<str>>> = const { RefCell::new(Vec::new()) };
}

/// How many groups threads are in, all together: most programs are in none, and find out by one load.
static IN_GROUPS: AtomicU32 = AtomicU32::new(0);

/// The group that the calling thread's requests are for.
#[inline]
pub fn entered() -> Option<Rc<str>> {
    // A thread sees what it wrote itself, and no other's is its business.
    if IN_GROUPS.load(Ordering::Relaxed) == 0 { None } else { innermost() }
}

#[cold]
fn innermost() -> Option<Rc<str>> {
    // A thread that is ending is in none.
    ENTERED.try_with(|entered| entered.borrow().last().cloned()).ok().flatten()
}

/// The calling thread's requests are for this group from now on.
pub fn enter(name: &str) {
    ENTERED.with_borrow_mut(|entered| entered.push(name.into()));
    IN_GROUPS.fetch_add(1, Ordering::Relaxed);
}

/// Ends the last [`enter`] of the calling thread.
pub fn leave() -> Result<()> {
    let left = ENTERED.with_borrow_mut(Vec::pop);
    left.ok_or_else(|| Failure::argument("this thread is in no group"))?;
    IN_GROUPS.fetch_sub(1, Ordering::Relaxed);
    Ok(())
}

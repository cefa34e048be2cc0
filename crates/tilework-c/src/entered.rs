//! Which group a thread's requests are for.

use std::cell::RefCell;
use std::ffi::c_int;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::call::{Failure, Result};

/// Whose requests are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// PyTorch's, on whatever GPU.
    Torch,
    /// ONNX Runtime's on this device; -1 is the host.
    Ort(c_int),
}

thread_local! {
    /// The groups that the thread is in, the innermost last.
    static ENTERED: RefCell<Vec<(Whose, Rc<str>)>> = const { RefCell::new(Vec::new()) };
}

/// How many groups threads are in, all together: most programs are in none, and find out by one load.
static IN_GROUPS: AtomicU32 = AtomicU32::new(0);

/// The group that the calling thread's requests are for.
#[inline]
pub fn entered(whose: Whose) -> Option<Rc<str>> {
    // A thread sees what it wrote itself, and no other's is its business.
    if IN_GROUPS.load(Ordering::Relaxed) == 0 { None } else { innermost(whose) }
}

#[cold]
fn innermost(whose: Whose) -> Option<Rc<str>> {
    let last = |entered: &RefCell<Vec<(Whose, Rc<str>)>>| {
        entered.borrow().iter().rev().find(|(of, _)| *of == whose).map(|(_, name)| Rc::clone(name))
    };
    // A thread that is ending is in none.
    ENTERED.try_with(last).ok().flatten()
}

/// The calling thread's requests are for this group from now on.
pub fn enter(whose: Whose, name: &str) {
    ENTERED.with_borrow_mut(|entered| entered.push((whose, name.into())));
    IN_GROUPS.fetch_add(1, Ordering::Relaxed);
}

/// Ends the last [`enter`] of the calling thread for these requests.
pub fn leave(whose: Whose) -> Result<()> {
    let left = ENTERED.with_borrow_mut(|entered| {
        let at = entered.iter().rposition(|(of, _)| *of == whose)?;
        Some(entered.remove(at))
    });
    left.ok_or_else(|| Failure::argument("this thread is in no group"))?;
    IN_GROUPS.fetch_sub(1, Ordering::Relaxed);
    Ok(())
}

//! The question whose allocations go to a private pool: a `std::function<bool(cudaStream_t)>` of PyTorch's.
//!
//! C++ passes such an object by the address of one that the caller destroys after the call, so what is to
//! outlive the call is a copy. libstdc++ lays it out as below and does everything through two functions.

use std::ffi::{c_int, c_void};
use std::ptr;

use tilework::manager::Stream;

/// `std::function<bool(cudaStream_t)>` in libstdc++.
#[repr(C)]
pub struct Function {
    /// The closure itself, or where it is.
    functor: [*mut c_void; 2],
    /// Copies and destroys it; null when the function is empty.
    manager: Option<unsafe extern "C" fn(*mut Function, *const Function, c_int) -> bool>,
    /// Calls it, with its argument by address.
    invoker: Option<unsafe extern "C" fn(*const Function, *const *mut c_void) -> bool>,
}

// `std::_Manager_operation`.
const CLONE: c_int = 2;
const DESTROY: c_int = 3;

/// A copy of our own.
pub struct Filter {
    /// Boxed, since closures may point into themselves.
    function: Box<Function>,
}

// SAFETY: PyTorch makes these functions to be asked and destroyed on whatever thread allocates or ends the
// pool; they read, and change nothing.
unsafe impl Send for Filter {}
// SAFETY: as above.
unsafe impl Sync for Filter {}

impl Filter {
    /// Copies a function.
    ///
    /// # Safety
    /// `function` must be null or point to a `std::function<bool(cudaStream_t)>` of libstdc++ that is alive,
    /// and what it refers to must live as long as the copy.
    pub unsafe fn copy(function: *const Function) -> Filter {
        let mut copy = Box::new(Function { functor: [ptr::null_mut(); 2], manager: None, invoker: None });
        // SAFETY: null or alive, by this function's contract.
        if let Some(from) = unsafe { function.as_ref() }
            && let Some(manager) = from.manager
        {
            // SAFETY: the manager of a function copies it into storage that holds nothing.
            unsafe { manager(&mut *copy, from, CLONE) };
            copy.manager = from.manager;
            copy.invoker = from.invoker;
        }
        Filter { function: copy }
    }

    /// Whether what is asked for on this stream, by this thread, goes to the pool. An empty function lets
    /// everything in.
    pub fn lets_in(&self, stream: Stream) -> bool {
        let Some(invoker) = self.function.invoker else { return true };
        let stream = ptr::without_provenance_mut(stream.0 as usize);
        // SAFETY: the function is alive until it is dropped here, and its argument is where it is said to be.
        unsafe { invoker(&*self.function, &stream) }
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        if let Some(manager) = self.function.manager {
            let function: *mut Function = &mut *self.function;
            // SAFETY: the copy is destroyed once, here; the second argument is not looked at.
            unsafe { manager(function, function, DESTROY) };
        }
    }
}

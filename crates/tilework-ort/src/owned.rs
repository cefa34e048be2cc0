//! Objects of ONNX Runtime that are released when dropped.

use std::ptr::NonNull;

/// An object made by ONNX Runtime, owned by us.
///
/// Invariant: `ptr` came from the library's create function, has not been released, and `release` is
/// the same library's release function for that type. Libraries are never unloaded, so the function
/// stays callable.
pub(crate) struct Owned<T> {
    ptr: NonNull<T>,
    release: unsafe extern "system" fn(*mut T),
}

impl<T> Owned<T> {
    /// # Safety
    ///
    /// `ptr` must be an object that nobody else will release, and `release` the function of the
    /// library it came from that releases such objects.
    pub(crate) unsafe fn new(ptr: *mut T, release: unsafe extern "system" fn(*mut T)) -> Option<Owned<T>> {
        Some(Owned { ptr: NonNull::new(ptr)?, release })
    }

    pub(crate) fn as_ptr(&self) -> *mut T {
        self.ptr.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: by the invariant the object is alive and ours, and `release` fits it.
        unsafe { (self.release)(self.ptr.as_ptr()) }
    }
}

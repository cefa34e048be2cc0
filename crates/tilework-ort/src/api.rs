//! ONNX Runtime's table of functions, as far as one version of it goes.

use std::ffi::{CStr, c_char};
use std::ops::RangeInclusive;

use ort_sys::{OrtApi, OrtApiBase, OrtStatusPtr};

use crate::error::{Error, Result};
use crate::owned::Owned;

/// The versions of ONNX Runtime's C API this crate speaks. A newer library is asked for the newest of
/// these, which it keeps serving; an older one is refused.
pub const API_VERSIONS: RangeInclusive<u32> = 17..=ort_sys::ORT_API_VERSION;

/// A library's table of functions.
///
/// Invariant: `table` is that of `version`, and the library is never unloaded.
#[derive(Debug, Clone, Copy)]
pub struct Api {
    table: *const OrtApi,
    version: u32,
}

// SAFETY: the table is constant for the life of the library, which is never unloaded, and ONNX
// Runtime allows its API functions to be called from any thread.
unsafe impl Send for Api {}
// SAFETY: as above.
unsafe impl Sync for Api {}

impl Api {
    /// The table of a library, in the newest version that both sides know, and the library's own version,
    /// such as `1.31.1`.
    ///
    /// # Errors
    /// A sentence about the library, when it is none that can be used.
    ///
    /// # Safety
    /// `base` must be null or what the library's `OrtGetApiBase` returns, and the library must never be
    /// unloaded.
    pub unsafe fn of(base: *const OrtApiBase) -> Result<(Api, String), String> {
        if base.is_null() {
            return Err("OrtGetApiBase returned nothing".into());
        }
        // SAFETY: the base is a constant of the library; its two functions have not changed since the
        // first version, and the version string is terminated and never freed.
        let name = unsafe { CStr::from_ptr(((*base).GetVersionString)()) }.to_string_lossy().into_owned();
        let version = api_version(&name).ok_or_else(|| {
            format!(
                "it is version {name}; version 1.{} or newer of the 1.x series is needed",
                API_VERSIONS.start()
            )
        })?;
        // SAFETY: as above.
        let table = unsafe { ((*base).GetApi)(version) };
        if table.is_null() {
            return Err(format!("version {name} refuses version {version} of its own API"));
        }
        Ok((Api { table, version }, name))
    }

    /// The version that is spoken: within [`API_VERSIONS`], and no newer than the library.
    pub fn version(self) -> u32 {
        self.version
    }

    /// The table of functions. Only the entries of [`Api::version`] and older exist, so fields are read
    /// through the pointer, never through a reference to the whole.
    pub fn table(self) -> *const OrtApi {
        self.table
    }

    /// Turns a status into a result and releases it.
    ///
    /// # Errors
    /// [`Error::Ort`] with the status's message.
    pub fn check(self, call: &'static str, status: OrtStatusPtr) -> Result<()> {
        if status.0.is_null() {
            return Ok(());
        }
        // SAFETY: a non-null status is an object of the library that we own; its message is terminated
        // and lives as long as the status, which is released after the copy.
        let message = unsafe {
            let text = self.text(((*self.table).GetErrorMessage)(status.0));
            ((*self.table).ReleaseStatus)(status.0);
            text
        };
        Err(Error::Ort { call, message })
    }

    /// Calls a create function and takes hold of what it made.
    ///
    /// # Safety
    ///
    /// `create` must be a call of this library that, when it succeeds, stores a new object behind the
    /// pointer it is given, one that `release` of the same library releases.
    pub(crate) unsafe fn make<T>(
        self,
        call: &'static str,
        release: unsafe extern "system" fn(*mut T),
        create: impl FnOnce(*mut *mut T) -> OrtStatusPtr,
    ) -> Result<Owned<T>> {
        let mut ptr = std::ptr::null_mut();
        self.check(call, create(&raw mut ptr))?;
        // SAFETY: passed on from the caller.
        unsafe { Owned::new(ptr, release) }.ok_or(Error::Ort { call, message: "it made nothing".into() })
    }

    /// Copies a string of the library.
    ///
    /// # Safety
    ///
    /// `text` must be null or a terminated string.
    pub(crate) unsafe fn text(self, text: *const c_char) -> String {
        if text.is_null() {
            return String::new();
        }
        // SAFETY: not null, so terminated, as the caller promises.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

/// The API version to ask a library of `version` for: its minor number is its own API version.
///
/// Asking for more than there is makes ONNX Runtime print to stderr, so it is not found by trying.
fn api_version(version: &str) -> Option<u32> {
    let mut parts = version.split('.');
    let major: u32 = parts.next()?.parse().ok()?;
    let minor: u32 = parts.next()?.parse().ok()?;
    (major == 1 && minor >= *API_VERSIONS.start()).then(|| minor.min(*API_VERSIONS.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minor_number_is_the_api_version() {
        assert_eq!(api_version("1.22.1"), Some(22));
        assert_eq!(api_version("1.31.1"), Some(*API_VERSIONS.end()));
        assert_eq!(api_version("1.16.3"), None);
        assert_eq!(api_version("2.0.0"), None);
        assert_eq!(api_version("nonsense"), None);
    }
}

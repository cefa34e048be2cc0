//! A loaded libonnxruntime and its table of functions.

use std::ffi::{CStr, c_char};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ort_sys::{OrtApi, OrtApiBase, OrtStatusPtr};

use crate::error::{Error, Result};
use crate::owned::Owned;

/// The versions of ONNX Runtime's C API this crate speaks. A newer library is asked for the newest of
/// these, which it keeps serving; an older one is refused.
pub const API_VERSIONS: RangeInclusive<u32> = 17..=ort_sys::ORT_API_VERSION;

/// libstdc++'s `std::__throw_bad_alloc()`.
pub(crate) type ThrowBadAlloc = unsafe extern "C-unwind" fn();

/// A libonnxruntime, loaded for the rest of the process: it starts threads and registers handlers of
/// its own, so it is never unloaded.
pub struct Library {
    path: PathBuf,
    version: String,
    api_version: u32,
    api: *const OrtApi,
    throw_bad_alloc: Option<ThrowBadAlloc>,
    _loaded: ManuallyDrop<libloading::Library>,
}

// SAFETY: the table is constant for the life of the library, which is never unloaded, and ONNX
// Runtime allows its API functions to be called from any thread.
unsafe impl Send for Library {}
// SAFETY: as above; nothing here is changed after loading.
unsafe impl Sync for Library {}

impl Library {
    /// Loads the library at `path` and asks it for its table of functions.
    ///
    /// Loading runs the library's initialisers: name only files you would run.
    ///
    /// # Errors
    /// [`Error::Library`] when the file does not load, is no ONNX Runtime, or is too old.
    pub fn load(path: &Path) -> Result<Arc<Library>> {
        let fail = |reason: String| Error::Library { path: path.to_owned(), reason };
        // SAFETY: the caller vouches for the file, as the documentation asks.
        let loaded = unsafe { libloading::Library::new(path) }.map_err(|error| {
            // The loader's own words are the source.
            let source = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
            fail(format!("{error}{source}"))
        })?;
        // SAFETY: the symbol of this name has this type in every version of ONNX Runtime.
        let base = unsafe {
            loaded
                .get::<unsafe extern "C" fn() -> *const OrtApiBase>(c"OrtGetApiBase")
                .map(|f| f())
                .map_err(|_| fail("it has no function OrtGetApiBase".into()))?
        };
        if base.is_null() {
            return Err(fail("OrtGetApiBase returned nothing".into()));
        }
        // SAFETY: the base is a constant of the library; its two functions have not changed since the
        // first version, and the version string is terminated and never freed.
        let version = unsafe { CStr::from_ptr(((*base).GetVersionString)()) }.to_string_lossy().into_owned();
        let api_version = api_version(&version).ok_or_else(|| {
            fail(format!(
                "it is version {version}; version 1.{} or newer of the 1.x series is needed",
                API_VERSIONS.start()
            ))
        })?;
        // SAFETY: as above.
        let api = unsafe { ((*base).GetApi)(api_version) };
        if api.is_null() {
            return Err(fail(format!("version {version} refuses version {api_version} of its own API")));
        }
        // SAFETY: the symbol, where it is visible through the library's dependencies, is this function
        // of libstdc++, which takes and returns nothing.
        let throw_bad_alloc =
            unsafe { loaded.get::<ThrowBadAlloc>(c"_ZSt17__throw_bad_allocv").ok().map(|f| *f) };
        Ok(Arc::new(Library {
            path: path.to_owned(),
            version,
            api_version,
            api,
            throw_bad_alloc,
            _loaded: ManuallyDrop::new(loaded),
        }))
    }

    /// The file it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version, such as `1.31.1`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The version of the C API that is spoken with it: within [`API_VERSIONS`], and no newer than the
    /// library.
    pub fn api_version(&self) -> u32 {
        self.api_version
    }

    /// The table of functions. Only the entries of [`Library::api_version`] and older exist, so fields
    /// are read through the pointer, never through a reference to the whole.
    pub(crate) fn api(&self) -> *const OrtApi {
        self.api
    }

    pub(crate) fn throw_bad_alloc(&self) -> Option<ThrowBadAlloc> {
        self.throw_bad_alloc
    }

    /// Turns a status into a result and releases it.
    pub(crate) fn check(&self, call: &'static str, status: OrtStatusPtr) -> Result<()> {
        if status.0.is_null() {
            return Ok(());
        }
        // SAFETY: a non-null status is an object of the library that we own; its message is terminated
        // and lives as long as the status, which is released after the copy.
        let message = unsafe {
            let text = self.text(((*self.api).GetErrorMessage)(status.0));
            ((*self.api).ReleaseStatus)(status.0);
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
        &self,
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
    pub(crate) unsafe fn text(&self, text: *const c_char) -> String {
        if text.is_null() {
            return String::new();
        }
        // SAFETY: not null, so terminated, as the caller promises.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library")
            .field("path", &self.path)
            .field("version", &self.version)
            .field("api_version", &self.api_version)
            .finish_non_exhaustive()
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

    #[test]
    fn a_library_that_is_none_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Library::load(file.path()).unwrap_err().to_string();
        assert!(error.contains(&*file.path().to_string_lossy()), "{error}");
    }
}

//! A loaded libonnxruntime and its table of functions.

use std::ffi::c_char;
use std::fmt;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ort_sys::{OrtApi, OrtApiBase, OrtStatusPtr};

use crate::api::Api;
use crate::error::{Error, Result};
use crate::owned::Owned;
use crate::table::ThrowBadAlloc;

/// A libonnxruntime, loaded for the rest of the process: it starts threads and registers handlers of
/// its own, so it is never unloaded.
pub struct Library {
    path: PathBuf,
    version: String,
    api: Api,
    throw_bad_alloc: Option<ThrowBadAlloc>,
    _loaded: ManuallyDrop<libloading::Library>,
}

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
        // SAFETY: just returned by the library, which is never unloaded.
        let (api, version) = unsafe { Api::of(base) }.map_err(fail)?;
        // SAFETY: the symbol, where it is visible through the library's dependencies, is this function
        // of libstdc++, which takes and returns nothing.
        let throw_bad_alloc =
            unsafe { loaded.get::<ThrowBadAlloc>(c"_ZSt17__throw_bad_allocv").ok().map(|f| *f) };
        Ok(Arc::new(Library {
            path: path.to_owned(),
            version,
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

    /// The version of the C API that is spoken with it.
    pub fn api_version(&self) -> u32 {
        self.api.version()
    }

    /// See [`Api::table`].
    pub(crate) fn api(&self) -> *const OrtApi {
        self.api.table()
    }

    pub(crate) fn spoken(&self) -> Api {
        self.api
    }

    pub(crate) fn throw_bad_alloc(&self) -> Option<ThrowBadAlloc> {
        self.throw_bad_alloc
    }

    /// See [`Api::check`].
    pub(crate) fn check(&self, call: &'static str, status: OrtStatusPtr) -> Result<()> {
        self.api.check(call, status)
    }

    /// See [`Api::make`].
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn make<T>(
        &self,
        call: &'static str,
        release: unsafe extern "system" fn(*mut T),
        create: impl FnOnce(*mut *mut T) -> OrtStatusPtr,
    ) -> Result<Owned<T>> {
        // SAFETY: passed on from the caller.
        unsafe { self.api.make(call, release, create) }
    }

    /// See [`Api::text`].
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn text(&self, text: *const c_char) -> String {
        // SAFETY: passed on from the caller.
        unsafe { self.api.text(text) }
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library")
            .field("path", &self.path)
            .field("version", &self.version)
            .field("api_version", &self.api_version())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_none_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Library::load(file.path()).unwrap_err().to_string();
        assert!(error.contains(&*file.path().to_string_lossy()), "{error}");
    }
}

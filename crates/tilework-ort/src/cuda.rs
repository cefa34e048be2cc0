//! ONNX Runtime's CUDA provider: whether a library has it, what it needs, and how a session is told.
//!
//! The provider is a library of its own beside libonnxruntime and needs CUDA's and cuDNN's. Where they come as
//! Python packages, as `onnxruntime-gpu[cuda,cudnn]` brings them, the system's loader does not find them; so they
//! are loaded from there first, as `onnxruntime.preload_dlls()` does in Python.

use std::ffi::{CStr, CString, c_int};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::ptr::null_mut;
use std::sync::Once;

use ort_sys::OrtSessionOptions;

use crate::error::{Error, Result};
use crate::library::Library;
use crate::owned::Owned;

/// ONNX Runtime's name for the provider.
const PROVIDER: &str = "CUDAExecutionProvider";

/// What the provider loads, each after what it needs itself.
const LIBRARIES: [&str; 8] = [
    "libcudart.so.",
    "libnvJitLink.so.",
    "libnvrtc.so.",
    "libcublasLt.so.",
    "libcublas.so.",
    "libcurand.so.",
    "libcufft.so.",
    "libcudnn.so.",
];

impl Library {
    /// The providers it was built with, by ONNX Runtime's names.
    ///
    /// # Errors
    /// When ONNX Runtime refuses.
    pub fn providers(&self) -> Result<Vec<String>> {
        let api = self.api();
        let (mut names, mut count) = (null_mut(), 0);
        // SAFETY: both are valid for the writes.
        self.check("GetAvailableProviders", unsafe {
            ((*api).GetAvailableProviders)(&raw mut names, &raw mut count)
        })?;
        // SAFETY: the list has `count` terminated names.
        let found =
            (0..count as usize).map(|at| unsafe { self.text((*names.add(at)).cast_const()) }).collect();
        // SAFETY: the list was made by the call above and is released once.
        let released = unsafe { ((*api).ReleaseAvailableProviders)(names, count) };
        self.check("ReleaseAvailableProviders", released)?;
        Ok(found)
    }

    /// Checks that it was built with the CUDA provider.
    ///
    /// # Errors
    /// [`Error::NoCuda`] when it was not.
    pub fn check_cuda(&self) -> Result<()> {
        let providers = self.providers()?;
        if providers.iter().any(|name| name == PROVIDER) {
            return Ok(());
        }
        Err(Error::NoCuda { path: self.path().to_owned(), providers })
    }
}

/// Adds the provider for the GPU numbered `ordinal` to a session's options, so that the same inputs give the same
/// outputs to the bit.
pub(crate) fn append(library: &Library, options: &Owned<OrtSessionOptions>, ordinal: c_int) -> Result<()> {
    library.check_cuda()?;
    preload();
    // The provider's library is loaded by whichever call needs it first.
    add(library, options, ordinal).map_err(|error| match error {
        Error::Ort { message, .. } => refused(message.trim()),
        other => other,
    })?;
    // SAFETY: the options are alive.
    let deterministic = unsafe { ((*library.api()).SetDeterministicCompute)(options.as_ptr(), true) };
    library.check("SetDeterministicCompute", deterministic)
}

/// The error for what ONNX Runtime says when the provider does not start.
fn refused(message: &str) -> Error {
    // The words of the system's loader: a file name, and that there is no such file.
    let missing = message.split_once(": cannot open shared object file").and_then(|(before, _)| {
        before.rsplit([' ', '\n']).next().filter(|name| name.starts_with("lib") && name.contains(".so"))
    });
    match missing {
        Some(library) => Error::NoCudaDependency { library: library.to_owned() },
        None => Error::CudaProvider { message: message.to_owned() },
    }
}

fn add(library: &Library, options: &Owned<OrtSessionOptions>, ordinal: c_int) -> Result<()> {
    let api = library.api();
    // SAFETY: on success options are stored that the second function releases.
    let cuda = unsafe {
        library.make("CreateCUDAProviderOptions", (*api).ReleaseCUDAProviderOptions, |out| {
            ((*api).CreateCUDAProviderOptions)(out)
        })?
    };
    let ordinal = CString::new(ordinal.to_string()).expect("digits have no zero byte");
    // By default cuDNN times its algorithms and takes the quickest, which need not be the same one each time.
    let entries: [(&CStr, &CStr); 2] = [(c"device_id", &ordinal), (c"cudnn_conv_algo_search", c"HEURISTIC")];
    let (keys, values) = (entries.map(|(key, _)| key.as_ptr()), entries.map(|(_, value)| value.as_ptr()));
    // SAFETY: the options are alive; keys and values are as many as said, terminated and copied.
    library.check("UpdateCUDAProviderOptions", unsafe {
        ((*api).UpdateCUDAProviderOptions)(cuda.as_ptr(), keys.as_ptr(), values.as_ptr(), keys.len())
    })?;
    // SAFETY: both options are alive; the provider's are copied.
    let appended =
        unsafe { ((*api).SessionOptionsAppendExecutionProvider_CUDA_V2)(options.as_ptr(), cuda.as_ptr()) };
    library.check("SessionOptionsAppendExecutionProvider_CUDA_V2", appended)
}

/// Loads what the provider needs from the Python packages of NVIDIA's that `python3` would import, where there are
/// such. What does not load is left: the provider's own error names it.
fn preload() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let folders = packages();
        for name in LIBRARIES {
            for path in folders.iter().flat_map(|folder| files(folder, name)) {
                match load(&path) {
                    Ok(()) => tracing::debug!(path = %path.display(), "loaded for the CUDA provider"),
                    Err(error) => tracing::debug!(%error, path = %path.display(), "not loaded"),
                }
            }
        }
    });
}

/// The folders of libraries in the packages `nvidia.*`.
fn packages() -> Vec<PathBuf> {
    const WHERE: &str = "import importlib.util as u
s = u.find_spec('nvidia')
print('\\n'.join(s.submodule_search_locations or []) if s else '')";
    let output =
        Command::new("python3").args(["-c", WHERE]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let Ok(output) = output else { return Vec::new() };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let parts = text.lines().filter(|line| !line.is_empty()).filter_map(|line| std::fs::read_dir(line).ok());
    let mut folders: Vec<_> = parts.flatten().flatten().map(|entry| entry.path().join("lib")).collect();
    folders.sort();
    folders
}

/// The files in a folder whose names begin so.
fn files(folder: &Path, name: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(name))
        .map(|entry| entry.path())
        .collect()
}

/// Loads a library for all that is loaded later, and for good.
#[cfg(unix)]
fn load(path: &Path) -> Result<(), libloading::Error> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: NVIDIA's libraries have initialisers that may run in any program, and these are the ones that the
    // user's own Python loads.
    let loaded = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }?;
    let _ = std::mem::ManuallyDrop::new(loaded);
    Ok(())
}

/// Elsewhere the packages put themselves where they are found.
#[cfg(not(unix))]
fn load(_: &Path) -> Result<(), libloading::Error> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As ONNX Runtime 1.31 says it, the path shortened.
    fn without(library: &str) -> String {
        let message = format!(
            "/onnxruntime_src/provider_bridge_ort.cc:2251 Failed to load library libonnxruntime_providers_cuda.so \
             with error: {library}: cannot open shared object file: No such file or directory"
        );
        refused(&message).to_string()
    }

    #[test]
    fn a_library_that_is_not_there_is_named_with_what_brings_it() {
        let cudnn = without("libcudnn.so.9");
        assert!(cudnn.contains("needs libcudnn.so.9, which belongs to cuDNN, no part of CUDA,"), "{cudnn}");
        assert!(cudnn.contains("'onnxruntime-gpu[cudnn]'"), "{cudnn}");
        let cublas = without("libcublasLt.so.13");
        assert!(cublas.contains("needs libcublasLt.so.13, which belongs to CUDA and"), "{cublas}");
        assert!(cublas.contains("'onnxruntime-gpu[cuda]'"), "{cublas}");
    }

    #[test]
    fn what_else_the_provider_says_is_passed_on() {
        for message in [
            "CUDA failure 35: driver too old",
            ": cannot open shared object file",
            "x: cannot open shared object file",
        ] {
            let error = refused(message);
            assert!(matches!(&error, Error::CudaProvider { message: said } if said == message), "{error}");
        }
    }
}

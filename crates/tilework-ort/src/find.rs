//! Finding a libonnxruntime: what the user names, what Python has, what was fetched before, or fetching.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::fetch;
use crate::library::Library;

/// The variable that names a libonnxruntime, as the `ort` crate reads it too.
pub const VARIABLE: &str = "ORT_DYLIB_PATH";

/// Where a library came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Named by the caller, such as with `--ort-lib`.
    Named,
    /// Named by [`VARIABLE`].
    Variable,
    /// Part of an installed Python package `onnxruntime`.
    Python,
    /// Fetched by an earlier run.
    Cache,
    /// Fetched just now.
    Fetched,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Named => "named by --ort-lib",
            Source::Variable => "named by ORT_DYLIB_PATH",
            Source::Python => "from the installed Python package onnxruntime",
            Source::Cache => "fetched earlier",
            Source::Fetched => "fetched just now",
        })
    }
}

/// A library, and how it was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// The loaded library.
    pub library: Arc<Library>,
    /// Where it came from.
    pub source: Source,
}

/// Finds and loads a libonnxruntime: `named`, else what [`VARIABLE`] names, else that of an installed
/// Python `onnxruntime`, else the cached one, else one fetched with pip into the cache.
///
/// `progress` is told what takes time, one line each. It may be called on this thread only.
///
/// # Errors
/// [`Error::Library`] when a library that was named cannot be used: naming one is a decision, so no
/// other is taken instead. [`Error::NoLibrary`] when there is none and none can be fetched.
pub fn find(named: Option<&Path>, progress: &mut dyn FnMut(fetch::Step)) -> Result<Found> {
    let mut tried = match installed(named, |_| Ok(()))? {
        Ok(found) => return Ok(found),
        Err(tried) => tried,
    };
    // Without a cache folder there is nothing in it; fetching says so below.
    if let Ok(Some(path)) = fetch::cached() {
        match Library::load(&path) {
            Ok(library) => return Ok(Found { library, source: Source::Cache }),
            Err(error) => tried.push(error.to_string()),
        }
    }
    let fetched = fetch::fetch(progress).and_then(|path| Library::load(&path));
    match fetched {
        Ok(library) => Ok(Found { library, source: Source::Fetched }),
        Err(error) => {
            tried.push(error.to_string());
            Err(Error::NoLibrary { tried })
        }
    }
}

/// As [`find`], a library with the CUDA provider. None is fetched: the package that has it is large, and needs
/// others of NVIDIA's.
///
/// # Errors
/// [`Error::Library`] and [`Error::NoCuda`] for a library that was named, [`Error::NoCudaLibrary`] otherwise.
pub fn find_with_cuda(named: Option<&Path>) -> Result<Found> {
    installed(named, Library::check_cuda)?.map_err(|tried| Error::NoCudaLibrary { tried })
}

/// The library that the user has, if it passes the check; else what was tried.
fn installed(
    named: Option<&Path>,
    check: impl Fn(&Library) -> Result<()>,
) -> Result<std::result::Result<Found, Vec<String>>> {
    let load = |path: &Path, source| {
        let library = Library::load(path)?;
        check(&library)?;
        Ok(Found { library, source })
    };
    if let Some(path) = named {
        return load(path, Source::Named).map(Ok);
    }
    if let Some(path) = std::env::var_os(VARIABLE).filter(|v| !v.is_empty()) {
        return load(Path::new(&path), Source::Variable).map(Ok);
    }
    let mut tried = vec![format!("neither --ort-lib nor {VARIABLE} names one")];
    match python_library() {
        Ok(path) => match load(&path, Source::Python) {
            Ok(found) => return Ok(Ok(found)),
            Err(Error::NoCuda { path, providers }) => {
                tried.push(format!("{} has no CUDA provider, only {}", path.display(), providers.join(", ")));
            }
            Err(error) => tried.push(error.to_string()),
        },
        Err(reason) => tried.push(reason),
    }
    Ok(Err(tried))
}

/// The library of the `onnxruntime` that `python3` would import. The package is not imported.
fn python_library() -> Result<PathBuf, String> {
    const WHERE: &str = "import importlib.util as u
s = u.find_spec('onnxruntime')
print(s.submodule_search_locations[0] if s and s.submodule_search_locations else '')";
    let output = Command::new("python3")
        .args(["-c", WHERE])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|e| format!("python3 does not start: {e}"))?;
    let package = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if package.is_empty() {
        return Err("python3 has no package onnxruntime installed".into());
    }
    let folder = Path::new(&package).join("capi");
    library_in(&folder).ok_or_else(|| format!("there is no libonnxruntime in {}", folder.display()))
}

/// The file `libonnxruntime.so` or `libonnxruntime.so.VERSION` in a folder; its providers' libraries
/// have other names. The last by name where there are several.
pub(crate) fn library_in(folder: &Path) -> Option<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file() && path.file_name().is_some_and(is_library))
        .collect();
    files.sort();
    files.pop()
}

fn is_library(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name == "libonnxruntime.so" || name.starts_with("libonnxruntime.so.") || name == "libonnxruntime.dylib"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn providers_are_not_taken_for_the_library() {
        assert!(is_library("libonnxruntime.so.1.31.1".as_ref()));
        assert!(is_library("libonnxruntime.so".as_ref()));
        assert!(!is_library("libonnxruntime_providers_shared.so".as_ref()));
    }

    #[test]
    fn a_named_library_is_not_replaced_by_another() {
        let error =
            find(Some("/nonexistent/libonnxruntime.so".as_ref()), &mut |_| panic!("fetched")).unwrap_err();
        assert!(matches!(error, Error::Library { .. }), "{error}");
    }
}

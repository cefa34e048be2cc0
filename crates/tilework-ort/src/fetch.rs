//! Fetching ONNX Runtime's wheel with pip and keeping the library of it in the user's cache.
//!
//! ```text
//!   $XDG_CACHE_HOME/tilework/            (or ~/.cache/tilework/)
//!   ├── onnxruntime-1.31.1/              complete iff it is there: it is renamed into place
//!   │   ├── libonnxruntime.so.1.31.1
//!   │   └── LICENSE, ThirdPartyNotices.txt
//!   ├── fetch.lock                       held while one process fetches, the others wait for it
//!   └── fetch-XXXXXX/                    a fetch under way, or one that was killed
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};
use crate::find::library_in;

/// The version that is fetched: the one this crate is tested with.
pub const VERSION: &str = "1.31.1";

/// Something that takes time. Its text is a line for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// The download begins.
    Downloading {
        /// Where the library will lie.
        to: PathBuf,
    },
    /// The wheel is being unpacked.
    Unpacking,
    /// Done.
    Ready {
        /// The library.
        library: PathBuf,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Downloading { to } => write!(
                f,
                "no ONNX Runtime is installed: fetching onnxruntime {VERSION} (about 28 MB) with pip into {} …",
                to.display()
            ),
            Step::Unpacking => f.write_str("unpacking the library …"),
            Step::Ready { library } => write!(f, "fetched {}; later runs find it there", library.display()),
        }
    }
}

/// The folder for what can be fetched again.
///
/// # Errors
/// When neither `XDG_CACHE_HOME` nor `HOME` is set to an absolute path.
pub fn cache_folder() -> Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("tilework"))
        .ok_or_else(|| {
            Error::Fetch("there is no cache directory: neither XDG_CACHE_HOME nor HOME is set".into())
        })
}

/// The library that an earlier [`fetch`] left.
///
/// # Errors
/// As [`cache_folder`].
pub fn cached() -> Result<Option<PathBuf>> {
    Ok(library_in(&home(&cache_folder()?)))
}

fn home(cache: &Path) -> PathBuf {
    cache.join(format!("onnxruntime-{VERSION}"))
}

/// Fetches the wheel and returns the library in the cache. Of several processes that do so at once, one
/// fetches and the others wait for its files.
///
/// # Errors
/// [`Error::Fetch`] when there is no pip or no network, or the disk is full.
pub fn fetch(progress: &mut dyn FnMut(Step)) -> Result<PathBuf> {
    let cache = cache_folder()?;
    let home = home(&cache);
    let io = |what: &Path| {
        let what = what.display().to_string();
        move |e: std::io::Error| Error::Fetch(format!("{what}: {e}"))
    };
    std::fs::create_dir_all(&cache).map_err(io(&cache))?;
    let lock_path = cache.join("fetch.lock");
    // Released when it is closed, also by the end of a process that was killed.
    let lock = std::fs::File::create(&lock_path).map_err(io(&lock_path))?;
    lock.lock().map_err(io(&lock_path))?;
    if let Some(library) = library_in(&home) {
        return Ok(library);
    }
    progress(Step::Downloading { to: home.clone() });
    let work = tempfile::Builder::new().prefix("fetch-").tempdir_in(&cache).map_err(io(&cache))?;

    // The library in the wheel is the same for every Python, so the user's own need not be one that
    // this version has wheels for.
    python(&[
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--no-deps",
        "--only-binary=:all:",
        "--implementation=cp",
        "--python-version=3.12",
        "--dest",
        &work.path().to_string_lossy(),
        &format!("onnxruntime=={VERSION}"),
    ])?;
    progress(Step::Unpacking);
    let unpacked = work.path().join("unpacked");
    std::fs::create_dir(&unpacked).map_err(io(&unpacked))?;
    python(&["-c", UNPACK, &work.path().to_string_lossy(), &unpacked.to_string_lossy()])?;
    if library_in(&unpacked).is_none() {
        return Err(Error::Fetch("the wheel has no libonnxruntime in it".into()));
    }
    // Whole or not at all, so that what is killed half way is never taken for complete.
    std::fs::rename(&unpacked, &home).map_err(io(&home))?;
    let library = library_in(&home).ok_or_else(|| Error::Fetch(format!("{} is empty", home.display())))?;
    progress(Step::Ready { library: library.clone() });
    Ok(library)
}

/// Takes the library, its provider bridge and the licences out of the wheel in the first folder.
const UNPACK: &str = "
import glob, os, sys, zipfile
work, to = sys.argv[1:]
wheel = zipfile.ZipFile(glob.glob(os.path.join(work, '*.whl'))[0])
for name in wheel.namelist():
    base = os.path.basename(name)
    if base.startswith('libonnxruntime') or base in ('LICENSE', 'ThirdPartyNotices.txt'):
        with wheel.open(name) as f, open(os.path.join(to, base), 'wb') as out:
            out.write(f.read())
";

/// Runs python3; its own words are part of the error.
fn python(arguments: &[&str]) -> Result<()> {
    let output = Command::new("python3")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Error::Fetch(format!("python3, which has pip, does not start: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    // pip's reason is in its last lines; the ones before are retries.
    let lines: Vec<_> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(2)..].join(" ");
    Err(Error::Fetch(if last.is_empty() { format!("python3 ended with {}", output.status) } else { last }))
}

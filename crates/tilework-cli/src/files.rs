//! The files that a command writes: looked at before any work is done, for afterwards it would be lost.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::exit::Usage;

/// Checks what is to be written: each is none of the files that are read, and no other that is written, and can be
/// written. `reads` and `writes` have what each is called.
///
/// # Errors
/// [`Usage`] where one would be overwritten; what the system says where one cannot be written.
pub fn check(reads: &[(&str, &Path)], writes: &[(&str, Option<&Path>)]) -> anyhow::Result<()> {
    let mut known: Vec<(&str, PathBuf)> =
        reads.iter().filter_map(|&(what, path)| Some((what, fs::canonicalize(path).ok()?))).collect();
    for &(what, path) in writes {
        let Some(path) = path else { continue };
        let place = place(path).with_context(|| format!("{what} {}", path.display()))?;
        if let Some((other, _)) = known.iter().find(|(_, known)| *known == place) {
            let path = path.display();
            return Err(Usage(format!("{what} {path} would overwrite {other}: choose another name")).into());
        }
        known.push((what, place));
    }
    Ok(())
}

/// Checks that what is read can be read by several processes, each from its beginning.
///
/// # Errors
/// [`Usage`] where that is no regular file. What is not there is left to whoever opens it.
pub fn check_regular(reads: &[(&str, &Path)]) -> anyhow::Result<()> {
    for (what, path) in reads {
        let Ok(found) = fs::metadata(path) else { continue };
        if found.is_dir() {
            return Err(Usage(format!("{what}, {}, is a folder: name a file in it", path.display())).into());
        }
        if !found.is_file() {
            return Err(Usage(format!(
                "{what}, {}, is no regular file, and every manager's process reads it from its beginning: save it to \
                 a file and name that",
                path.display()
            ))
            .into());
        }
    }
    Ok(())
}

/// Where a file that can be written is, without links.
fn place(path: &Path) -> anyhow::Result<PathBuf> {
    if let Ok(found) = fs::metadata(path) {
        ensure!(!found.is_dir(), "is a folder");
        // To open a pipe would tell its reader that somebody came and went.
        if found.is_file() {
            OpenOptions::new().append(true).open(path)?;
        }
        // A pipe has no other name.
        return Ok(fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()));
    }
    let name = path.file_name().context("is no name of a file")?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // It leaves nothing behind.
    tempfile::tempfile_in(folder)?;
    Ok(fs::canonicalize(folder)?.join(name))
}

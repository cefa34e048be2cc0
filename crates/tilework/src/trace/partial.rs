//! A file that gets its name once it is whole.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// A file on its way to its name.
///
/// On Linux it has no name until [`finish`](Partial::finish), so that nothing is left of it however the process ends.
/// Where files without a name cannot be had, it is the file `partial` beside the final one, removed when dropped.
pub struct Partial {
    /// Where the file waits to be renamed: beside the final one, on the same file system.
    partial: PathBuf,
    target: PathBuf,
    /// True iff there is a file at `partial`.
    named: bool,
}

impl Partial {
    /// Makes a file that will be at `target`.
    ///
    /// # Errors
    /// When no file can be made beside it.
    pub fn create(target: PathBuf) -> io::Result<(File, Partial)> {
        let mut partial = target.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        match unnamed(&target) {
            Some(file) => Ok((file, Partial { partial, target, named: false })),
            None => Ok((File::create(&partial)?, Partial { partial, target, named: true })),
        }
    }

    /// Gives `file`, which came with it and is whole now, its name.
    ///
    /// # Errors
    /// When it cannot have it; what was there before stays.
    pub fn finish(mut self, file: &File) -> io::Result<()> {
        // The name must not reach the disk before the contents.
        file.sync_all()?;
        if !self.named {
            name(file, &self.partial)?;
            self.named = true;
        }
        fs::rename(&self.partial, &self.target)?;
        self.named = false;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.named {
            // Nothing more can be done about a file that does not go away.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// A file without a name in the folder of `target`, where the file system has such and a name can be given later.
#[cfg(target_os = "linux")]
fn unnamed(target: &Path) -> Option<File> {
    use rustix::fs::{Mode, OFlags, open};

    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    // As `File::create` has it.
    let file = File::from(open(folder, flags, Mode::from_raw_mode(0o666)).ok()?);
    by_descriptor(&file).exists().then_some(file)
}

#[cfg(not(target_os = "linux"))]
fn unnamed(_target: &Path) -> Option<File> {
    None
}

/// Gives a file from [`unnamed`] a name.
#[cfg(target_os = "linux")]
fn name(file: &File, path: &Path) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, linkat};
    use rustix::io::Errno;

    let link = || linkat(CWD, by_descriptor(file), CWD, path, AtFlags::SYMLINK_FOLLOW);
    match link() {
        // What a process left that ended in between.
        Err(Errno::EXIST) => {
            fs::remove_file(path)?;
            Ok(link()?)
        }
        linked => Ok(linked?),
    }
}

#[cfg(not(target_os = "linux"))]
fn name(_file: &File, _path: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Another way to a file that is open: linking it by its descriptor alone takes a privilege.
#[cfg(target_os = "linux")]
fn by_descriptor(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;

    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

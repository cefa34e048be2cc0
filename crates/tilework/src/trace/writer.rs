//! Writing a trace.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::partial::Partial;
use super::{Event, HEADER};

const BUFFER_BYTES: usize = 64 << 10;

/// Writes a trace, compressed, one event after the other.
///
/// The events go to a file that takes its name in [`finish`](Writer::finish): a file under that name is always
/// whole, and what was there before stays until then. Nothing is left of a writer dropped without `finish`, and on Linux
/// nothing of a process that was ended. Where a file needs a name from the start it has this one with `.partial` at the
/// end meanwhile. A target that exists and is not a regular file (a pipe, a terminal, `/dev/null`) is written in place.
pub struct Writer {
    // Dropped in this order: the file is closed before it is removed.
    out: BufWriter<GzEncoder<File>>,
    partial: Option<Partial>,
}

impl Writer {
    /// Begins a trace that will be at `path`.
    ///
    /// # Errors
    /// When the file beside `path` cannot be made or written.
    pub fn create(path: impl AsRef<Path>) -> io::Result<Writer> {
        // Following links first, so that the rename replaces the file and not a link to it.
        let path = path.as_ref();
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let in_place = fs::metadata(&target).is_ok_and(|m| !m.is_file());
        let (file, partial) = if in_place {
            (File::options().write(true).open(&target)?, None)
        } else {
            let (file, partial) = Partial::create(target)?;
            (file, Some(partial))
        };
        // The fastest level: a recording must not slow down what it records, and addresses of time and
        // size repeat enough to shrink eightfold even so.
        let encoder = GzEncoder::new(file, Compression::fast());
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, encoder);
        writeln!(out, "{HEADER}")?;
        Ok(Writer { out, partial })
    }

    /// Appends an event. The caller must keep to the order of time and to sizes above zero.
    ///
    /// # Errors
    /// When the file cannot be written; the trace is lost then.
    pub fn write(&mut self, event: &Event) -> io::Result<()> {
        let Event { time_us, op, id, bytes, stream } = event;
        writeln!(self.out, "{time_us},{op},{id},{bytes},{}", stream.0)
    }

    /// Appends a remark, which is no event: of one line.
    ///
    /// # Errors
    /// As [`write`](Writer::write).
    pub fn remark(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "# {}", text.replace(['\n', '\r'], " "))
    }

    /// Writes what is buffered and gives the file its final name.
    ///
    /// # Errors
    /// When something could not be written; there is no file under the final name then, or the one
    /// that was there before.
    pub fn finish(self) -> io::Result<()> {
        let Writer { out, partial } = self;
        let encoder = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        let file = encoder.finish()?;
        match partial {
            Some(partial) => partial.finish(&file),
            None => Ok(()),
        }
    }
}

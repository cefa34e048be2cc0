//! Reading a trace line by line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::{Event, HEADER, Op, Problem, TraceError};
use crate::manager::Stream;

/// Longer than any event can be, short enough that a file without line ends is refused at once.
const MAX_LINE_BYTES: usize = 4096;

const BUFFER_BYTES: usize = 128 << 10;

/// How much of a wrong field an error shows.
const SHOWN_CHARS: usize = 40;

/// Reads the events of a trace one by one, gzip-compressed or plain.
///
/// Knows the form of a line only: whether events fit together is checked by [`Trace`](super::Trace).
/// Ends after the first error.
pub struct Reader {
    input: Box<dyn BufRead + Send>,
    file: Option<PathBuf>,
    text: Vec<u8>,
    /// Lines read whole.
    line: u64,
    ended: bool,
}

impl Reader {
    /// Opens a trace and reads its header.
    ///
    /// # Errors
    /// When the file cannot be opened or does not begin like a trace.
    pub fn open(path: impl AsRef<Path>) -> Result<Reader, TraceError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| TraceError {
            file: Some(path.to_owned()),
            line: None,
            problem: Problem::Open(e),
        })?;
        Reader::begin(file, Some(path.to_owned()))
    }

    /// Reads a trace from any source of bytes, which needs no buffer of its own.
    ///
    /// # Errors
    /// When it does not begin like a trace.
    pub fn new(source: impl Read + Send + 'static) -> Result<Reader, TraceError> {
        Reader::begin(source, None)
    }

    fn begin(source: impl Read + Send + 'static, file: Option<PathBuf>) -> Result<Reader, TraceError> {
        let mut raw = BufReader::with_capacity(BUFFER_BYTES, source);
        // No plain trace begins with the first byte of gzip's mark, so one byte decides, and a file
        // cut after that byte is still seen as cut.
        let gzip = match raw.fill_buf() {
            Ok(start) => start.first() == Some(&0x1f),
            Err(e) => return Err(TraceError { file, line: Some(1), problem: Problem::Read(e) }),
        };
        let input: Box<dyn BufRead + Send> = if gzip {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(raw)))
        } else {
            Box::new(raw)
        };
        let mut reader = Reader { input, file, text: Vec::new(), line: 0, ended: false };
        if !reader.read_line()? {
            reader.line = 1;
            return Err(reader.error(Problem::Empty));
        }
        if reader.text != HEADER.as_bytes() {
            let found = shown(&reader.text);
            return Err(reader.error(Problem::Header { found }));
        }
        Ok(reader)
    }

    /// The line of the event last returned, counted from 1, the header.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// The file that is being read, where it is one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Reads the next line into `text`, without its end. False at the end of the trace.
    fn read_line(&mut self) -> Result<bool, TraceError> {
        self.text.clear();
        let mut bounded = (&mut self.input).take(MAX_LINE_BYTES as u64 + 1);
        let read = bounded.read_until(b'\n', &mut self.text);
        match read {
            Ok(0) => return Ok(false),
            Ok(_) => self.line += 1,
            Err(e) => {
                self.line += 1;
                return Err(self.error(unreadable(e)));
            }
        }
        if self.text.last() == Some(&b'\n') {
            self.text.pop();
            if self.text.last() == Some(&b'\r') {
                self.text.pop();
            }
        } else if self.text.len() > MAX_LINE_BYTES {
            return Err(self.error(Problem::LineTooLong { max: MAX_LINE_BYTES }));
        }
        Ok(true)
    }

    fn error(&self, problem: Problem) -> TraceError {
        TraceError { file: self.file.clone(), line: Some(self.line), problem }
    }
}

impl Iterator for Reader {
    type Item = Result<Event, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let item = loop {
            match self.read_line() {
                Ok(true) if self.text.first() == Some(&b'#') => {}
                Ok(true) => break parse(&self.text).map_err(|problem| self.error(problem)),
                Ok(false) => {
                    self.ended = true;
                    return None;
                }
                Err(e) => break Err(e),
            }
        };
        self.ended = item.is_err();
        Some(item)
    }
}

/// Errors of the decompressor come as kinds of I/O errors.
fn unreadable(error: io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Problem::Truncated,
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => Problem::Damaged(error.to_string()),
        _ => Problem::Read(error),
    }
}

fn parse(line: &[u8]) -> Result<Event, Problem> {
    let mut fields = line.split(|&b| b == b',');
    let mut next = || fields.next();
    let (Some(time), Some(op), Some(id), Some(bytes), Some(stream), None) =
        (next(), next(), next(), next(), next(), next())
    else {
        return Err(Problem::Fields { found: line.split(|&b| b == b',').count() });
    };
    Ok(Event {
        time_us: number("time_us", time)?,
        op: match op {
            b"alloc" => Op::Alloc,
            b"free" => Op::Free,
            _ => return Err(Problem::Op { found: shown(op) }),
        },
        id: number("id", id)?,
        bytes: size(bytes)?,
        stream: Stream(number("stream", stream)?),
    })
}

fn number(field: &'static str, text: &[u8]) -> Result<u64, Problem> {
    decimal(text).ok_or_else(|| Problem::Number { field, found: shown(text) })
}

fn size(text: &[u8]) -> Result<u64, Problem> {
    decimal(text).ok_or_else(|| {
        // A number all the same, only beyond 64 bits: the message is about the size, then.
        if !text.is_empty() && text.iter().all(u8::is_ascii_digit) {
            Problem::TooLarge { bytes: shown(text) }
        } else {
            Problem::Number { field: "bytes", found: shown(text) }
        }
    })
}

/// Digits only: no sign, no space, no exponent.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, &b| {
        let digit = b.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut short: String = text.chars().take(SHOWN_CHARS).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

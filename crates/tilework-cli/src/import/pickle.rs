//! Plain values in pickle files, read without Python and without executing anything.
//!
//! A pickle is a program for a small stack machine. The part of it that makes numbers, texts, lists, tuples
//! and dictionaries is served here, in the binary protocols (2 and later); whatever would import or call
//! something is refused.
//!
//! ```text
//!   bytes ──opcodes──▶ stack of values ──▶ the one that is left
//!                        │  memo: values that are used again
//!                        └▶ lists: the contents of lists, tuples and dictionaries, by number
//! ```
//!
//! Containers refer to each other by number: what the file shares stays shared (thousands of events have one
//! list of frames), cycles and depth do no harm, and a text is a place in the file.

use std::collections::HashMap;
use std::ops::Range;

use anyhow::{Context, Result, anyhow, bail};

/// A value; those with contents name a place in the [`Pickle`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Bytes from and to, in the file: a text or a string of bytes.
    Text(usize, usize),
    /// A list, tuple or set, by its number.
    List(usize),
    /// A dictionary, by the number of the list of its keys and values in turn.
    Dict(usize),
}

/// A pickle that was read.
#[derive(Debug)]
pub struct Pickle {
    file: Vec<u8>,
    lists: Vec<Vec<Value>>,
    root: Value,
}

impl Pickle {
    /// Reads the one value in a file.
    pub fn read(file: Vec<u8>) -> Result<Pickle> {
        let mut machine =
            Machine { file: &file, at: 0, stack: vec![], marks: vec![], memo: HashMap::new(), lists: vec![] };
        let root = machine.run().with_context(|| format!("byte {} of the pickle", machine.at))?;
        let lists = machine.lists;
        Ok(Pickle { file, lists, root })
    }

    /// The value.
    pub fn root(&self) -> Value {
        self.root
    }

    /// The items of a list, if it is one.
    pub fn items(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::List(number) => Some(&self.lists[number]),
            _ => None,
        }
    }

    /// What a dictionary has under a key.
    pub fn get(&self, dict: Value, key: &str) -> Option<Value> {
        let Value::Dict(number) = dict else { return None };
        // The last of equal keys counts, as in Python.
        let entries = self.lists[number].chunks_exact(2).rev();
        entries.into_iter().find(|entry| self.text(entry[0]) == Some(key)).map(|entry| entry[1])
    }

    /// A text, if it is one.
    pub fn text(&self, value: Value) -> Option<&str> {
        match value {
            Value::Text(from, to) => std::str::from_utf8(&self.file[from..to]).ok(),
            _ => None,
        }
    }
}

struct Machine<'a> {
    file: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Where in the stack each open mark is.
    marks: Vec<usize>,
    memo: HashMap<usize, Value>,
    lists: Vec<Vec<Value>>,
}

impl Machine<'_> {
    /// Runs to the end of the program.
    fn run(&mut self) -> Result<Value> {
        loop {
            match self.take::<1>()?[0] {
                // PROTO, FRAME: how it was written, which reading does not depend on.
                0x80 => drop(self.take::<1>()?),
                0x95 => drop(self.take::<8>()?),
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'N' => self.stack.push(Value::None),
                0x88 => self.stack.push(Value::Bool(true)),
                0x89 => self.stack.push(Value::Bool(false)),
                b'J' => self.int::<4>()?,
                b'K' => {
                    let value = self.take::<1>()?[0];
                    self.stack.push(Value::Int(value.into()));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.take()?);
                    self.stack.push(Value::Int(value.into()));
                }
                0x8a => self.long()?,
                b'G' => {
                    let value = f64::from_be_bytes(self.take()?);
                    self.stack.push(Value::Float(value));
                }
                // Texts and bytes, by the width of their length.
                0x8c | b'C' | b'U' => self.string::<1>()?,
                b'X' | b'B' | b'T' => self.string::<4>()?,
                0x8d | 0x8e => self.string::<8>()?,
                b']' | b')' | 0x8f => self.list(vec![]),
                b'}' => self.dict(vec![]),
                b't' | b'l' | 0x91 => {
                    let items = self.above_mark()?;
                    self.list(items);
                }
                b'd' => {
                    let items = self.above_mark()?;
                    self.dict(items);
                }
                op @ 0x85..=0x87 => {
                    let items = self.above(usize::from(op - 0x84))?;
                    self.list(items);
                }
                b'a' => {
                    let items = self.above(1)?;
                    self.extend(items)?;
                }
                b's' => {
                    let items = self.above(2)?;
                    self.extend(items)?;
                }
                b'e' | b'u' | 0x90 => {
                    let items = self.above_mark()?;
                    self.extend(items)?;
                }
                0x94 => self.remember(self.memo.len())?,
                b'q' => {
                    let name = self.length::<1>()?;
                    self.remember(name)?;
                }
                b'r' => {
                    let name = self.length::<4>()?;
                    self.remember(name)?;
                }
                b'h' => {
                    let name = self.length::<1>()?;
                    self.recall(name)?;
                }
                b'j' => {
                    let name = self.length::<4>()?;
                    self.recall(name)?;
                }
                b'c' | b'i' | b'o' | b'R' | b'b' | 0x81 | 0x92 | 0x93 => {
                    bail!(
                        "it holds Python objects, which only Python could make: nothing but plain values is read"
                    )
                }
                op => bail!("an unknown instruction, {op:#04x}"),
            }
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let range = self.range(N)?;
        Ok(self.file[range].try_into().expect("the range is that long"))
    }

    fn range(&mut self, bytes: usize) -> Result<Range<usize>> {
        let end = self.at.checked_add(bytes).filter(|&end| end <= self.file.len());
        let range = self.at..end.context("the file ends in the middle")?;
        self.at = range.end;
        Ok(range)
    }

    /// An unsigned number of this many bytes, little end first.
    fn length<const N: usize>(&mut self) -> Result<usize> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&self.take::<N>()?);
        Ok(usize::try_from(u64::from_le_bytes(wide))?)
    }

    /// A signed number of this many bytes, little end first.
    fn int<const N: usize>(&mut self) -> Result<()> {
        let range = self.range(N)?;
        self.signed(range)
    }

    fn long(&mut self) -> Result<()> {
        let bytes = self.length::<1>()?;
        let range = self.range(bytes)?;
        self.signed(range)
    }

    fn signed(&mut self, range: Range<usize>) -> Result<()> {
        let bytes = &self.file[range];
        let sign = if bytes.last().is_some_and(|&top| top >= 0x80) { 0xff } else { 0 };
        let mut wide = [sign; 8];
        let (low, high) = bytes.split_at(bytes.len().min(8));
        wide[..low.len()].copy_from_slice(low);
        let value = i64::from_le_bytes(wide);
        // Addresses above the middle of the address space have a ninth byte; they are kept as their bits.
        if high.iter().any(|&byte| byte != sign) {
            bail!("a number of more than 64 bits");
        }
        self.stack.push(Value::Int(value));
        Ok(())
    }

    fn string<const N: usize>(&mut self) -> Result<()> {
        let bytes = self.length::<N>()?;
        let range = self.range(bytes)?;
        self.stack.push(Value::Text(range.start, range.end));
        Ok(())
    }

    fn list(&mut self, items: Vec<Value>) {
        self.stack.push(Value::List(self.lists.len()));
        self.lists.push(items);
    }

    fn dict(&mut self, items: Vec<Value>) {
        self.stack.push(Value::Dict(self.lists.len()));
        self.lists.push(items);
    }

    /// Appends to the list or dictionary on top of the stack.
    fn extend(&mut self, items: Vec<Value>) -> Result<()> {
        match self.stack.last() {
            Some(&(Value::List(number) | Value::Dict(number))) => {
                self.lists[number].extend(items);
                Ok(())
            }
            _ => Err(anyhow!("items for what is no list or dictionary")),
        }
    }

    /// Takes this many values off the stack.
    fn above(&mut self, count: usize) -> Result<Vec<Value>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count) {
            Some(from) if from >= floor => Ok(self.stack.split_off(from)),
            _ => Err(anyhow!("a value is used that is not there")),
        }
    }

    /// Takes all values above the last mark off the stack.
    fn above_mark(&mut self) -> Result<Vec<Value>> {
        let mark = self.marks.pop().context("a mark is used that is not there")?;
        Ok(self.stack.split_off(mark))
    }

    fn pop(&mut self) -> Result<Value> {
        Ok(self.above(1)?[0])
    }

    fn remember(&mut self, name: usize) -> Result<()> {
        let value = *self.stack.last().context("a value is used that is not there")?;
        self.memo.insert(name, value);
        Ok(())
    }

    fn recall(&mut self, name: usize) -> Result<()> {
        let value = *self.memo.get(&name).context("a value is used again that was not kept")?;
        self.stack.push(value);
        Ok(())
    }
}

#[cfg(test)]
mod tests;

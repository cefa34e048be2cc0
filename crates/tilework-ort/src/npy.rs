//! Tensors in NumPy's `.npy` files.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use npyz::{DType, NpyHeader, Order, WriteOptions, WriterBuilder};
use tilework::units::exact;

use crate::error::{Error, Result};
use crate::session::Output;
use crate::tensor::{ElementType, Tensor, shape_text};

/// Reads a tensor. Row-major and column-major files of either byte order are taken.
///
/// # Errors
/// [`Error::Npy`] when the file is not there, no `.npy` file, or shorter or longer than it says;
/// [`Error::UnsupportedType`].
pub fn read(path: &Path) -> Result<Tensor> {
    let fail = |reason: String| Error::Npy { path: path.to_owned(), reason };
    let file = File::open(path).map_err(|e| fail(e.to_string()))?;
    let metadata = file.metadata().map_err(|e| fail(e.to_string()))?;
    if !metadata.is_file() {
        return Err(fail("is no regular file: save it to one first".into()));
    }
    let on_disk = metadata.len();
    let mut file = BufReader::new(file);
    let header = NpyHeader::from_reader(&mut file).map_err(|e| fail(format!("no .npy file: {e}")))?;
    let descr = header.dtype().descr();
    let (element, big_endian) = parse(&descr)
        .ok_or_else(|| Error::UnsupportedType { what: path.display().to_string(), found: descr })?;
    let shape = header.shape();
    // The header is checked against the file before memory is taken for it.
    let read = file.stream_position().map_err(|e| fail(e.to_string()))?;
    let promised = shape.iter().try_fold(element.bytes() as u64, |b, &n| b.checked_mul(n));
    let expected = promised.and_then(|promised| promised.checked_add(read)).unwrap_or(u64::MAX);
    if expected != on_disk {
        return Err(fail(format!(
            "its header promises a shape of {} in {element}, which makes {} with the header, but the file has {}",
            shape_text(shape),
            exact(expected),
            exact(on_disk)
        )));
    }
    let mut tensor = Tensor::zeros(element, shape)?;
    file.read_exact(tensor.bytes_mut()).map_err(|e| fail(format!("it ends too early: {e}")))?;
    if big_endian != cfg!(target_endian = "big") {
        tensor.bytes_mut().chunks_exact_mut(element.bytes()).for_each(<[u8]>::reverse);
    }
    if header.order() == Order::Fortran && shape.len() > 1 {
        return to_row_major(&tensor);
    }
    Ok(tensor)
}

/// Writes an output.
///
/// # Errors
/// [`Error::Npy`] when the file cannot be written.
pub fn write(path: &Path, output: &Output) -> Result<()> {
    write_bytes(path, output.element(), output.shape(), output.bytes())
}

/// Where each of `names` is saved: at `path` itself when there is one, else beside it with the output's
/// name before the extension, `out.npy` becoming `out.NAME.npy`. Characters of a name other than letters,
/// digits, `-`, `_` and `.` become `_`.
pub fn paths(path: &Path, names: &[&str]) -> Vec<PathBuf> {
    if names.len() == 1 {
        return vec![path.to_owned()];
    }
    names
        .iter()
        .map(|name| {
            let plain: String = name
                .chars()
                .map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' })
                .collect();
            path.with_extension(format!("{plain}.npy"))
        })
        .collect()
}

fn write_bytes(path: &Path, element: ElementType, shape: &[u64], bytes: &[u8]) -> Result<()> {
    let fail = |e: std::io::Error| Error::Npy { path: path.to_owned(), reason: e.to_string() };
    let order = match element.bytes() {
        1 => '|',
        _ if cfg!(target_endian = "big") => '>',
        _ => '<',
    };
    let descr = format!("{order}{}", code(element));
    let file = BufWriter::new(File::create(path).map_err(fail)?);
    let mut file = WriteOptions::new_header_only()
        .dtype(DType::Plain(descr.parse().expect("a type NumPy has")))
        .shape(shape)
        .writer(file)
        .write_header_only()
        .map_err(fail)?;
    file.write_all(bytes).and_then(|()| file.flush()).map_err(fail)
}

/// NumPy's letter and size for a type.
fn code(element: ElementType) -> &'static str {
    match element {
        ElementType::F32 => "f4",
        ElementType::F16 => "f2",
        ElementType::F64 => "f8",
        ElementType::I8 => "i1",
        ElementType::I16 => "i2",
        ElementType::I32 => "i4",
        ElementType::I64 => "i8",
        ElementType::U8 => "u1",
        ElementType::U16 => "u2",
        ElementType::U32 => "u4",
        ElementType::U64 => "u8",
        ElementType::Bool => "b1",
    }
}

/// The type of a NumPy description such as `'<f4'`, and whether it is big-endian.
fn parse(descr: &str) -> Option<(ElementType, bool)> {
    let text = descr.trim_matches('\'');
    let (order, rest) = text.split_at_checked(1)?;
    let element = ElementType::ALL.iter().copied().find(|&t| code(t) == rest)?;
    let native_big = cfg!(target_endian = "big");
    Some((
        element,
        match order {
            "<" => false,
            ">" => true,
            _ => native_big,
        },
    ))
}

/// The same tensor with the last dimension running fastest, from one with the first running fastest.
fn to_row_major(tensor: &Tensor) -> Result<Tensor> {
    let size = tensor.element().bytes();
    let shape = tensor.shape();
    let mut result = Tensor::zeros(tensor.element(), shape)?;
    let mut index = vec![0u64; shape.len()];
    for to in result.bytes_mut().chunks_exact_mut(size) {
        let from = index.iter().zip(shape).rev().fold(0, |sum, (&i, &n)| sum * n + i) as usize * size;
        to.copy_from_slice(&tensor.bytes()[from..from + size]);
        for (i, &n) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < n {
                break;
            }
            *i = 0;
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(descr: &str, order: Order, shape: &[u64], bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        WriteOptions::new_header_only()
            .dtype(DType::Plain(descr.parse().unwrap()))
            .order(order)
            .shape(shape)
            .writer(&mut file)
            .write_header_only()
            .unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn every_type_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.npy");
        for &element in ElementType::ALL {
            let bytes: Vec<u8> = (0..6 * element.bytes()).map(|i| (i % 2) as u8).collect();
            write_bytes(&path, element, &[2, 3], &bytes).unwrap();
            let tensor = read(&path).unwrap();
            assert_eq!((tensor.element(), tensor.shape(), tensor.bytes()), (element, &[2, 3][..], &*bytes));
        }
    }

    #[test]
    fn other_orders_are_turned() {
        let file = saved(">i2", Order::Fortran, &[2, 3], &[0, 1, 0, 4, 0, 2, 0, 5, 0, 3, 0, 6]);
        let tensor = read(file.path()).unwrap();
        let values: Vec<i16> =
            tensor.bytes().chunks_exact(2).map(|b| i16::from_ne_bytes(b.try_into().unwrap())).collect();
        assert_eq!(values, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn bad_files_are_named() {
        let cut = saved("<f4", Order::C, &[1 << 40], &[0; 8]);
        let short = saved("<f4", Order::C, &[40], &[0; 158]);
        let mut empty = tempfile::NamedTempFile::new().unwrap();
        empty.write_all(b"hello").unwrap();
        let long = saved("<f4", Order::C, &[40], &[0; 161]);
        let sizes = |error: &Error, has| {
            error.to_string().contains(&format!("288 B with the header, but the file has {has}"))
        };
        assert!(sizes(&read(short.path()).unwrap_err(), "286 B"));
        assert!(sizes(&read(long.path()).unwrap_err(), "289 B"));
        for file in [cut, short, long, empty] {
            let error = read(file.path()).unwrap_err();
            assert!(matches!(&error, Error::Npy { path, .. } if path == file.path()), "{error}");
        }
        let complex = saved("<c8", Order::C, &[1], &[0; 8]);
        assert!(matches!(read(complex.path()), Err(Error::UnsupportedType { .. })));
    }

    #[test]
    fn several_outputs_have_their_names_in_the_files() {
        assert_eq!(paths("a/out.npy".as_ref(), &["x"]), [PathBuf::from("a/out.npy")]);
        assert_eq!(
            paths("a/out.npy".as_ref(), &["x/y", "z.1"]),
            [PathBuf::from("a/out.x_y.npy"), PathBuf::from("a/out.z.1.npy")]
        );
    }
}

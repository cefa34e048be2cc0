//! Tensors of our own and the types of the model's.

use std::fmt;

use ort_sys::ONNXTensorElementDataType as Onnx;

use crate::error::{Error, Result};

macro_rules! element_types {
    ($($name:ident $text:literal $bytes:literal $onnx:ident,)*) => {
        /// The type of a tensor's elements.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "the names say it")]
        pub enum ElementType { $($name),* }

        impl ElementType {
            pub(crate) const ALL: &[ElementType] = &[$(ElementType::$name),*];

            /// The name it is shown by, such as `f32`.
            pub fn name(self) -> &'static str {
                match self { $(ElementType::$name => $text),* }
            }

            /// Bytes of one element.
            pub fn bytes(self) -> usize {
                match self { $(ElementType::$name => $bytes),* }
            }

            pub(crate) fn to_onnx(self) -> Onnx {
                match self { $(ElementType::$name => Onnx::$onnx),* }
            }
        }
    };
}

element_types! {
    F32 "f32" 4 ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
    F16 "f16" 2 ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
    F64 "f64" 8 ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
    I8 "i8" 1 ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
    I16 "i16" 2 ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
    I32 "i32" 4 ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
    I64 "i64" 8 ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
    U8 "u8" 1 ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
    U16 "u16" 2 ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
    U32 "u32" 4 ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
    U64 "u64" 8 ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
    Bool "bool" 1 ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
}

impl ElementType {
    /// The type with ONNX's number `code`, where it is one of ours.
    pub(crate) fn from_onnx(code: i32) -> Option<ElementType> {
        ElementType::ALL.iter().copied().find(|t| t.to_onnx() as i32 == code)
    }

    /// Every name, for messages.
    pub(crate) fn names() -> String {
        ElementType::ALL.iter().map(|t| t.name()).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One dimension of a model's input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// Always this many.
    Fixed(u64),
    /// Open, with the name the model gives it: equal names must be equal numbers.
    Named(String),
    /// Open.
    Any,
}

/// What the model says of one of its inputs or outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its type, or ONNX's name or number of one that is not supported here.
    pub element: std::result::Result<ElementType, String>,
    /// Its shape.
    pub dims: Vec<Dim>,
}

impl TensorSpec {
    /// Whether a tensor of this shape fits.
    pub fn takes(&self, shape: &[u64]) -> bool {
        shape.len() == self.dims.len()
            && shape.iter().zip(&self.dims).all(|(&n, d)| match d {
                Dim::Fixed(m) => n == *m,
                Dim::Named(_) | Dim::Any => true,
            })
    }

    /// The shape, where no dimension is open.
    pub fn fixed(&self) -> Option<Vec<u64>> {
        self.dims.iter().map(|d| if let Dim::Fixed(n) = d { Some(*n) } else { None }).collect()
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<_> = self
            .dims
            .iter()
            .map(|d| match d {
                Dim::Fixed(n) => n.to_string(),
                Dim::Named(name) => name.clone(),
                Dim::Any => "?".into(),
            })
            .collect();
        let shape = if dims.is_empty() { "a single value".into() } else { dims.join("x") };
        let element = match &self.element {
            Ok(t) => t.name(),
            Err(other) => other,
        };
        write!(f, "{}: {element} {shape}", self.name)
    }
}

/// One line for each, for messages.
pub(crate) fn list(specs: &[TensorSpec]) -> String {
    specs.iter().map(|s| format!("  {s}")).collect::<Vec<_>>().join("\n")
}

/// `1x4x64x64`, for messages.
pub(crate) fn shape_text(shape: &[u64]) -> String {
    if shape.is_empty() {
        return "a single value".into();
    }
    shape.iter().map(u64::to_string).collect::<Vec<_>>().join("x")
}

/// What ONNX Runtime's kernels read in one vector instruction at most; inputs start at a multiple.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A tensor in memory of this process, row-major, in the machine's byte order.
#[derive(Clone)]
pub struct Tensor {
    element: ElementType,
    shape: Vec<u64>,
    lines: Vec<Line>,
    bytes: usize,
}

impl Tensor {
    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when its bytes cannot be counted or had.
    pub fn zeros(element: ElementType, shape: &[u64]) -> Result<Tensor> {
        let too_large = || Error::TooLarge(shape_text(shape));
        let bytes = shape
            .iter()
            .try_fold(element.bytes() as u64, |product, &n| product.checked_mul(n))
            .filter(|&bytes| bytes <= isize::MAX as u64)
            .ok_or_else(too_large)? as usize;
        if shape.iter().any(|&n| n > i64::MAX as u64) {
            return Err(too_large());
        }
        let count = bytes.div_ceil(size_of::<Line>());
        let mut lines = Vec::new();
        lines.try_reserve_exact(count).map_err(|_| too_large())?;
        lines.resize(count, Line([0; 64]));
        Ok(Tensor { element, shape: shape.to_vec(), lines, bytes })
    }

    /// The type of its elements.
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Its shape.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Its contents.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: a line is 64 initialised bytes without padding, the vector's lines lie one after the
        // other, and `bytes` is at most their sum; the lifetime is that of the borrow.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.bytes) }
    }

    /// Its contents, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and borrowed exclusively; every byte pattern is a valid line.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.bytes) }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {})", self.element, shape_text(&self.shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_alignment() {
        let t = Tensor::zeros(ElementType::F16, &[3, 5]).unwrap();
        assert_eq!(t.bytes().len(), 30);
        assert_eq!(t.bytes().as_ptr() as usize % 64, 0);
        assert_eq!(Tensor::zeros(ElementType::F32, &[]).unwrap().bytes().len(), 4);
        assert_eq!(Tensor::zeros(ElementType::F32, &[2, 0]).unwrap().bytes().len(), 0);
    }

    #[test]
    fn a_shape_that_overflows_is_refused() {
        assert!(matches!(Tensor::zeros(ElementType::F64, &[1 << 40, 1 << 40]), Err(Error::TooLarge(_))));
        assert!(matches!(Tensor::zeros(ElementType::F64, &[1 << 58]), Err(Error::TooLarge(_))));
        assert!(matches!(Tensor::zeros(ElementType::F64, &[0, u64::MAX]), Err(Error::TooLarge(_))));
    }
}

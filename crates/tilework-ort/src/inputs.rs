//! Inputs for a model: read from files where they are given, seeded random elsewhere.
//!
//! Random values depend on the seed, the input's name, its type and its place in the tensor, and on
//! nothing else, so that runs under different managers get the same. They are drawn so:
//!
//! * floating point: standard normal (mean 0, deviation 1),
//! * integers: uniform over 0..16, small enough to be an index or a token of most models,
//! * booleans: true, as most are masks.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::tensor::{Dim, ElementType, Tensor, TensorSpec, shape_text};

/// Shapes given for inputs, by name.
pub type Shapes = BTreeMap<String, Vec<u64>>;

/// Random integers lie below this.
pub const INTEGER_BOUND: u64 = 16;

/// Random tensors for every input. `shapes` must name those with open dimensions, none of which may be zero, and may name
/// others.
///
/// # Errors
/// [`Error::UnknownInput`], [`Error::OpenShape`], [`Error::WrongInput`], [`Error::UnsupportedType`].
pub fn random(specs: &[TensorSpec], shapes: &Shapes, seed: u64) -> Result<Vec<(String, Tensor)>> {
    prepare(specs, shapes, BTreeMap::new(), seed)
}

/// Tensors for every input: those in `given` as they are, random ones for the others. Dimensions that
/// share a name share their number, so one given shape can settle another input's.
///
/// # Errors
/// As [`random`]; a given tensor must fit its input in type and shape. [`Error::TwoShapes`] where both a shape and a
/// tensor are given and disagree.
pub fn prepare(
    specs: &[TensorSpec],
    shapes: &Shapes,
    mut given: BTreeMap<String, Tensor>,
    seed: u64,
) -> Result<Vec<(String, Tensor)>> {
    let expected = || specs.to_vec();
    if let Some(name) = shapes.keys().chain(given.keys()).find(|name| !specs.iter().any(|s| s.name == **name))
    {
        return Err(Error::UnknownInput { name: name.clone(), expected: expected() });
    }
    // What the shapes and tensors given say of the named dimensions.
    let mut named: BTreeMap<&str, u64> = BTreeMap::new();
    for spec in specs {
        let tensor = given.get(&spec.name);
        let asked = shapes.get(&spec.name);
        let wrong =
            |given: String| Error::WrongInput { name: spec.name.clone(), given, expected: expected() };
        let Some(shape) = tensor.map(Tensor::shape).or(asked.map(Vec::as_slice)) else { continue };
        let given = match tensor {
            Some(tensor) => format!("{} {}", tensor.element(), shape_text(shape)),
            None => shape_text(shape),
        };
        if let Some(asked) = asked.filter(|asked| *asked != shape) {
            let (name, shape) = (spec.name.clone(), shape_text(asked));
            return Err(Error::TwoShapes { name, shape, given, expected: expected() });
        }
        let other_type = tensor.is_some_and(|t| spec.element.as_ref() != Ok(&t.element()));
        if other_type || !spec.takes(shape) {
            return Err(wrong(given));
        }
        // Most models cannot run on nothing, and fail in the middle. Who has a tensor without elements means it.
        let open = |dim: &Dim| !matches!(dim, Dim::Fixed(_));
        if tensor.is_none() && shape.iter().zip(&spec.dims).any(|(&n, dim)| n == 0 && open(dim)) {
            return Err(wrong(format!("{given}, a shape without elements")));
        }
        for (&n, dim) in shape.iter().zip(&spec.dims) {
            if let Dim::Named(dim) = dim
                && *named.entry(dim).or_insert(n) != n
            {
                return Err(wrong(format!(
                    "{given}, where {dim} is {n} and not the {} of another",
                    named[dim.as_str()]
                )));
            }
        }
    }
    specs
        .iter()
        .map(|spec| {
            if let Some(tensor) = given.remove(&spec.name) {
                return Ok((spec.name.clone(), tensor));
            }
            let element = spec
                .element
                .clone()
                .map_err(|found| Error::UnsupportedType { what: format!("input {:?}", spec.name), found })?;
            let settled = || {
                let dims = spec.dims.iter().map(|d| match d {
                    Dim::Fixed(n) => Some(*n),
                    Dim::Named(name) => named.get(name.as_str()).copied(),
                    Dim::Any => None,
                });
                dims.collect::<Option<Vec<_>>>()
            };
            let shape = shapes
                .get(&spec.name)
                .cloned()
                .or_else(settled)
                .ok_or_else(|| Error::OpenShape { name: spec.name.clone(), expected: expected() })?;
            let mut tensor = Tensor::zeros(element, &shape)?;
            fill(&mut tensor, seed, &spec.name);
            Ok((spec.name.clone(), tensor))
        })
        .collect()
}

fn fill(tensor: &mut Tensor, seed: u64, name: &str) {
    let mut rng = Rng::new(seed, name);
    let element = tensor.element();
    for slot in tensor.bytes_mut().chunks_exact_mut(element.bytes()) {
        match element {
            ElementType::F32 => slot.copy_from_slice(&(rng.normal() as f32).to_ne_bytes()),
            ElementType::F64 => slot.copy_from_slice(&rng.normal().to_ne_bytes()),
            ElementType::F16 => slot.copy_from_slice(&f16_bits(rng.normal() as f32).to_ne_bytes()),
            ElementType::Bool => slot[0] = 1,
            ElementType::I8
            | ElementType::I16
            | ElementType::I32
            | ElementType::I64
            | ElementType::U8
            | ElementType::U16
            | ElementType::U32
            | ElementType::U64 => {
                let value = (rng.next() % INTEGER_BOUND).to_ne_bytes();
                // The low bytes, whichever end they are at.
                let from = if cfg!(target_endian = "big") { value.len() - slot.len() } else { 0 };
                slot.copy_from_slice(&value[from..from + slot.len()]);
            }
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), with the polar method's spare value.
struct Rng {
    state: u64,
    spare: Option<f64>,
}

impl Rng {
    /// Inputs of different names get different values from the same seed (FNV-1a over the name).
    fn new(seed: u64, name: &str) -> Rng {
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
        Rng { state: seed ^ hash, spare: None }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform over -1..1.
    fn signed_unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Standard normal, by Marsaglia's polar method.
    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let (x, y) = (self.signed_unit(), self.signed_unit());
            let s = x * x + y * y;
            if s > 0.0 && s < 1.0 {
                let scale = (-2.0 * s.ln() / s).sqrt();
                self.spare = Some(y * scale);
                return x * scale;
            }
        }
    }
}

/// The nearest half-precision number (ties to even) of a finite `value` below the largest one, in bits.
fn f16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let magnitude = value.abs();
    if magnitude < f32::from_bits(0x3880_0000) {
        // Below 2^-14 the numbers lie 2^-24 apart, and their bits count them.
        return sign | (magnitude * 16_777_216.0).round_ties_even() as u16;
    }
    // Drop 13 bits of the fraction, rounding to even, and move the exponent's bias from 127 to 15.
    let kept = bits & 0x7fff_ffff;
    let rounded = kept + 0x0fff + ((kept >> 13) & 1);
    sign | ((rounded >> 13) - (112 << 10)) as u16
}

#[cfg(test)]
mod tests;

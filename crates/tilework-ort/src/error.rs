//! What can go wrong between a model file and its outputs.

use std::path::PathBuf;

use crate::allocator::Failure;
use crate::tensor::{ElementType, TensorSpec, list};

/// The result of an operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The ways out when no libonnxruntime can be had, in the order in which they are tried.
pub(crate) const THREE_WAYS: &str = "three ways to fix it:
  1. point --ort-lib or the variable ORT_DYLIB_PATH at a libonnxruntime.so
  2. install the Python package: python3 -m pip install onnxruntime
  3. connect to the network once, so that the wheel can be fetched with pip into the cache directory";

/// How to come by the CUDA provider.
const CUDA_PACKAGE: &str = "install the package that has it (python3 -m pip uninstall onnxruntime; \
    python3 -m pip install 'onnxruntime-gpu[cuda,cudnn]'), or point --ort-lib or the variable ORT_DYLIB_PATH at a \
    libonnxruntime.so that was built with it";

/// An error of this crate. Each says what to do about it where there is something to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No libonnxruntime was found, and none could be fetched.
    #[error("no ONNX Runtime library was found:\n{}\n{THREE_WAYS}", tried.iter().map(|t| format!("  - {t}")).collect::<Vec<_>>().join("\n"))]
    NoLibrary {
        /// What was tried, and why it did not do.
        tried: Vec<String>,
    },
    /// A library is there but cannot be used.
    #[error("{path} cannot be used as ONNX Runtime: {reason}", path = path.display())]
    Library {
        /// Which file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The library was built without the CUDA provider.
    #[error(
        "{path} has no CUDA provider, only {}: {CUDA_PACKAGE}", providers.join(", "), path = path.display()
    )]
    NoCuda {
        /// Which file.
        path: PathBuf,
        /// The providers it has.
        providers: Vec<String>,
    },
    /// There is no library that could have the CUDA provider.
    #[error("no ONNX Runtime library for a GPU was found:\n{}\n{CUDA_PACKAGE}", tried.iter().map(|t| format!("  - {t}")).collect::<Vec<_>>().join("\n"))]
    NoCudaLibrary {
        /// What was tried, and why it did not do.
        tried: Vec<String>,
    },
    /// The CUDA provider does not start.
    #[error(
        "ONNX Runtime's CUDA provider does not start: {message}\nit needs the libraries of CUDA and cuDNN of the \
         versions it was built for: python3 -m pip install 'onnxruntime-gpu[cuda,cudnn]' brings them; where they \
         are installed already, name their folders in LD_LIBRARY_PATH"
    )]
    CudaProvider {
        /// What ONNX Runtime said.
        message: String,
    },
    /// A library that the CUDA provider needs is not found.
    #[error(
        "ONNX Runtime's CUDA provider needs {library}, {} and was not found: python3 -m pip install \
         'onnxruntime-gpu[{}]' brings it; where it is installed already, name its folder in LD_LIBRARY_PATH",
        owner(library).0, owner(library).1
    )]
    NoCudaDependency {
        /// The file name that the system's loader looked for.
        library: String,
    },
    /// The wheel could not be fetched or unpacked.
    #[error("fetching ONNX Runtime failed: {0}")]
    Fetch(String),
    /// A call of ONNX Runtime's C API failed.
    #[error("ONNX Runtime: {call}: {message}")]
    Ort {
        /// The function that was called.
        call: &'static str,
        /// What ONNX Runtime said.
        message: String,
    },
    /// An environment is alive already: ONNX Runtime has one per process, and its allocator is the
    /// environment's.
    #[error(
        "this process has an ONNX Runtime environment already: drop it, its sessions and its outputs first"
    )]
    SecondEnvironment,
    /// The model does not load.
    #[error("{path} does not load: {message}", path = path.display())]
    Model {
        /// Which file.
        path: PathBuf,
        /// What ONNX Runtime or the operating system said.
        message: String,
    },
    /// The model ran into an error.
    #[error("{}", run_message(message, cause.as_ref()))]
    Run {
        /// What ONNX Runtime said.
        message: String,
        /// What the registered allocator had answered, when that is why.
        cause: Option<Failure>,
    },
    /// A name that is no input of the model.
    #[error("the model has no input {name:?}; its inputs are:\n{}", list(expected))]
    UnknownInput {
        /// The name given.
        name: String,
        /// The inputs there are.
        expected: Vec<TensorSpec>,
    },
    /// An input whose shape must be given.
    #[error(
        "the shape of input {name:?} is open: give it with --shape {name}=…; the inputs are:\n{}",
        list(expected)
    )]
    OpenShape {
        /// The input.
        name: String,
        /// The inputs there are.
        expected: Vec<TensorSpec>,
    },
    /// A shape or type that the model does not take.
    #[error("input {name:?} was given {given}, which does not fit; the inputs are:\n{}", list(expected))]
    WrongInput {
        /// The input.
        name: String,
        /// Type and shape given.
        given: String,
        /// The inputs there are.
        expected: Vec<TensorSpec>,
    },
    /// A shape and a tensor for one input, of another shape.
    #[error(
        "input {name:?} was given both the shape {shape} and a tensor of {given}, which disagree: give one of the two; \
         the inputs are:\n{}",
        list(expected)
    )]
    TwoShapes {
        /// The input.
        name: String,
        /// The shape given.
        shape: String,
        /// Type and shape of the tensor given.
        given: String,
        /// The inputs there are.
        expected: Vec<TensorSpec>,
    },
    /// A tensor type for which there are no values here.
    #[error(
        "{what} is of a type that is not supported here ({found}); supported are {}",
        ElementType::names()
    )]
    UnsupportedType {
        /// Which input, output or file.
        what: String,
        /// The type found.
        found: String,
    },
    /// A tensor of more bytes than can be addressed.
    #[error("a tensor of shape {0} is too large to address")]
    TooLarge(String),
    /// A `.npy` file that cannot be read or written.
    #[error("{path}: {reason}", path = path.display())]
    Npy {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What a library of NVIDIA's belongs to, and the extra of onnxruntime-gpu that brings it.
fn owner(library: &str) -> (&'static str, &'static str) {
    if library.starts_with("libcudnn") {
        ("which belongs to cuDNN, no part of CUDA,", "cudnn")
    } else {
        ("which belongs to CUDA", "cuda")
    }
}

fn run_message(message: &str, cause: Option<&Failure>) -> String {
    match cause {
        Some(cause) => format!("the model could not run: {cause}\n(ONNX Runtime: {message})"),
        None => format!("the model could not run: {message}"),
    }
}

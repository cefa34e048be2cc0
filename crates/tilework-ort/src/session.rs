//! A loaded model, and running it.

use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::Arc;

use ort_sys::{
    OrtAllocator, OrtMemoryInfoDeviceType, OrtSession, OrtSessionOptions, OrtStatusPtr, OrtTypeInfo, OrtValue,
};
use sha2::{Digest, Sha256};

use crate::cuda;
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::owned::Owned;
use crate::table::Place;
use crate::tensor::{Dim, ElementType, Tensor, TensorSpec, shape_text};

/// How a model is to be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionOptions {
    /// Where it runs: on the CPU, or on a GPU by ONNX Runtime's CUDA provider, with deterministic kernels.
    pub place: Place,
    /// Threads within an operator; `None` leaves it to ONNX Runtime: one per core.
    pub threads: Option<u32>,
    /// With ONNX Runtime's own arena: let it plan one block for all tensors of a run once it has seen
    /// their shapes, which is its default. With a registered allocator the pattern is always off, so
    /// that the manager sees each tensor.
    pub memory_pattern: bool,
}

impl Default for SessionOptions {
    fn default() -> SessionOptions {
        SessionOptions { place: Place::Cpu, threads: None, memory_pattern: true }
    }
}

/// A loaded model.
pub struct Session {
    // The order is the order of dropping: the session, then the environment it lives in.
    session: Owned<OrtSession>,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    output_names: Vec<CString>,
    place: Place,
    environment: Arc<Environment>,
}

// SAFETY: a session of ONNX Runtime may be used from any thread, and by several at once.
unsafe impl Send for Session {}
// SAFETY: as above.
unsafe impl Sync for Session {}

impl Session {
    /// Loads a model. Where the environment has a registered allocator, the session uses it for the memory of the
    /// allocator's place.
    ///
    /// # Errors
    /// [`Error::NoCuda`], [`Error::CudaProvider`] and [`Error::NoCudaDependency`] when there is no running on a GPU, [`Error::Model`] when the file is not there or ONNX Runtime does not take it, [`Error::Run`]
    /// when the allocator had no memory for it.
    pub fn load(environment: &Arc<Environment>, model: &Path, options: &SessionOptions) -> Result<Session> {
        let api = environment.library().api();
        let configured = configure(environment, options, environment.allocator().is_some())?;
        let session = create(environment, model, &configured)?;
        let mut loaded = Session {
            session,
            inputs: Vec::new(),
            outputs: Vec::new(),
            output_names: Vec::new(),
            place: options.place,
            environment: environment.clone(),
        };
        // SAFETY: these entries of the table have existed since its first version.
        let (inputs, outputs) = unsafe {
            (
                Side {
                    count: (*api).SessionGetInputCount,
                    name: (*api).SessionGetInputName,
                    type_info: (*api).SessionGetInputTypeInfo,
                },
                Side {
                    count: (*api).SessionGetOutputCount,
                    name: (*api).SessionGetOutputName,
                    type_info: (*api).SessionGetOutputTypeInfo,
                },
            )
        };
        loaded.inputs = loaded.specs(&inputs)?;
        loaded.outputs = loaded.specs(&outputs)?;
        loaded.output_names = loaded
            .outputs
            .iter()
            .map(|o| CString::new(o.name.as_str()).expect("it came from a terminated string"))
            .collect();
        Ok(loaded)
    }

    /// Has ONNX Runtime optimise a model for `options` and write it to `to`, which must end in `.ort`, in its own format:
    /// loaded from there it is the same to the bit. On the CPU that brings the weights to the registered allocator,
    /// which else stay in buffers of the model from version 1.24 on. The allocator serves nothing of this.
    ///
    /// # Errors
    /// As [`Session::load`]; [`Error::Model`] also where the format does not take the model, as one of more than 2 GiB.
    pub fn convert(
        environment: &Arc<Environment>,
        model: &Path,
        options: &SessionOptions,
        to: &Path,
    ) -> Result<()> {
        let library = environment.library();
        let api = library.api();
        let configured = configure(environment, options, false)?;
        let to = terminated(to)?;
        // SAFETY: the options are alive, and what is terminated is copied.
        unsafe {
            let options = configured.as_ptr();
            library.check(
                "SetOptimizedModelFilePath",
                ((*api).SetOptimizedModelFilePath)(options, to.as_ptr()),
            )?;
            let status = ((*api).AddSessionConfigEntry)(
                options,
                c"session.save_model_format".as_ptr(),
                c"ORT".as_ptr(),
            );
            library.check("AddSessionConfigEntry", status)?;
        }
        create(environment, model, &configured).map(drop)
    }

    /// What the model wants.
    pub fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    /// What the model gives, as far as it is known before a run.
    pub fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    /// The environment it lives in.
    pub fn environment(&self) -> &Arc<Environment> {
        &self.environment
    }

    /// Where it runs.
    pub fn place(&self) -> Place {
        self.place
    }

    pub(crate) fn as_ptr(&self) -> *mut OrtSession {
        self.session.as_ptr()
    }

    /// Runs the model once. `inputs` are by name, in any order; every input of the model must be among them. They
    /// and the outputs are the host's memory, wherever the model runs.
    ///
    /// The outputs hold memory of the registered allocator until they are dropped. So an execution ends, for
    /// the manager, where the next run begins: by then what the caller meant to drop is dropped, and each run
    /// starts from the same live blocks.
    ///
    /// # Errors
    /// [`Error::Run`] when the run fails, with the manager's words when it ran out of memory. The
    /// session stays usable.
    pub fn run(&self, inputs: &[(String, Tensor)]) -> Result<Vec<Output>> {
        let names: Vec<CString> = inputs
            .iter()
            .map(|(name, _)| {
                CString::new(name.as_str())
                    .map_err(|_| Error::UnknownInput { name: name.clone(), expected: self.inputs.clone() })
            })
            .collect::<Result<_>>()?;
        let values: Vec<_> = inputs.iter().map(|(_, t)| self.borrow(t)).collect::<Result<_>>()?;
        let name_ptrs: Vec<_> = names.iter().map(|n| n.as_ptr()).collect();
        let value_ptrs: Vec<_> = values.iter().map(|v| v.as_ptr().cast_const()).collect();
        let out_names: Vec<_> = self.output_names.iter().map(|n| n.as_ptr()).collect();
        let mut outs: Vec<*mut OrtValue> = vec![null_mut(); out_names.len()];

        let library = self.environment.library();
        let api = library.api();
        if let Some(allocator) = self.environment.allocator()
            && let Err(error) = allocator.end_of_execution()
        {
            tracing::warn!(%error, "unused memory could not be given back before the run");
        }
        // SAFETY: the session is alive; names and values are as many as said and live until after the
        // call; no run options means the defaults; `outs` has room for one value per output.
        let status = unsafe {
            ((*api).Run)(
                self.as_ptr(),
                std::ptr::null(),
                name_ptrs.as_ptr(),
                value_ptrs.as_ptr(),
                name_ptrs.len(),
                out_names.as_ptr(),
                out_names.len(),
                outs.as_mut_ptr(),
            )
        };
        // Even after a failed run ONNX Runtime may have stored some of the outputs.
        let outs: Vec<_> = outs
            .into_iter()
            // SAFETY: each is null or a value made by this call, which we own from now on.
            .map(|ptr| unsafe { Owned::new(ptr, (*api).ReleaseValue) })
            .collect();
        let result = library.check("Run", status);
        if let Some(allocator) = self.environment.allocator() {
            let failure = allocator.take_failure();
            if let Err(error) = result {
                return Err(Error::Run { message: message_of(error), cause: failure });
            }
            if let Some(cause) = failure {
                // A block that could not be freed, or a request ONNX Runtime did without.
                tracing::warn!(%cause, "the run ended well although the allocator failed");
            }
        } else if let Err(error) = result {
            return Err(Error::Run { message: message_of(error), cause: None });
        }
        outs.into_iter()
            .zip(&self.outputs)
            .map(|(value, spec)| {
                let value = value.ok_or_else(|| Error::Run {
                    message: format!("there is no value for output {:?}", spec.name),
                    cause: None,
                })?;
                Output::new(&self.environment, &spec.name, value)
            })
            .collect()
    }

    /// A value over the memory of a tensor of ours.
    fn borrow<'a>(&self, tensor: &'a Tensor) -> Result<Borrowed<'a>> {
        let library = self.environment.library();
        let api = library.api();
        let shape: Vec<i64> = tensor.shape().iter().map(|&n| n as i64).collect();
        // SAFETY: on success a memory info is stored that the second function releases.
        let info = unsafe {
            library.make("CreateCpuMemoryInfo", (*api).ReleaseMemoryInfo, |out| {
                ((*api).CreateCpuMemoryInfo)(
                    ort_sys::OrtAllocatorType::OrtDeviceAllocator,
                    ort_sys::OrtMemType::OrtMemTypeDefault,
                    out,
                )
            })?
        };
        // SAFETY: the tensor's memory is as long as its type and shape say and outlives the value, by
        // the lifetime of `Borrowed`; ONNX Runtime copies info and shape, and does not write to a
        // run's inputs. On success a value is stored that the second function releases.
        let value = unsafe {
            library.make("CreateTensorWithDataAsOrtValue", (*api).ReleaseValue, |out| {
                ((*api).CreateTensorWithDataAsOrtValue)(
                    info.as_ptr(),
                    tensor.bytes().as_ptr().cast_mut().cast(),
                    tensor.bytes().len(),
                    shape.as_ptr(),
                    shape.len(),
                    tensor.element().to_onnx(),
                    out,
                )
            })?
        };
        Ok(Borrowed { value, _tensor: tensor })
    }

    fn specs(&self, side: &Side) -> Result<Vec<TensorSpec>> {
        let library = self.environment.library();
        let api = library.api();
        let mut count = 0;
        // SAFETY: the session is alive and `count` can be written.
        library.check("SessionGetCount", unsafe { (side.count)(self.as_ptr(), &raw mut count) })?;
        (0..count)
            .map(|index| {
                let mut allocator = null_mut();
                let mut text: *mut c_char = null_mut();
                // SAFETY: the index is below the count; the name is terminated and given back to the
                // default allocator, which it came from and which is never released.
                let name = unsafe {
                    library.check(
                        "GetAllocatorWithDefaultOptions",
                        ((*api).GetAllocatorWithDefaultOptions)(&raw mut allocator),
                    )?;
                    let status = (side.name)(self.as_ptr(), index, allocator, &raw mut text);
                    library.check("SessionGetName", status)?;
                    let name = library.text(text);
                    library.check("AllocatorFree", ((*api).AllocatorFree)(allocator, text.cast()))?;
                    name
                };
                // SAFETY: the index is below the count; on success a type info is stored that the
                // second function releases.
                let info = unsafe {
                    library.make("SessionGetTypeInfo", (*api).ReleaseTypeInfo, |out| {
                        (side.type_info)(self.as_ptr(), index, out)
                    })?
                };
                self.spec(name, &info)
            })
            .collect()
    }

    fn spec(&self, name: String, info: &Owned<OrtTypeInfo>) -> Result<TensorSpec> {
        let library = self.environment.library();
        let api = library.api();
        let mut tensor = std::ptr::null();
        // SAFETY: the type info is alive; what is stored is part of it, or null for other types.
        library.check("CastTypeInfoToTensorInfo", unsafe {
            ((*api).CastTypeInfoToTensorInfo)(info.as_ptr(), &raw mut tensor)
        })?;
        if tensor.is_null() {
            return Ok(TensorSpec { name, element: Err("no tensor".into()), dims: Vec::new() });
        }
        let mut code = 0i32;
        let mut count = 0;
        // SAFETY: `tensor` is part of the living type info. The element type is received as a number,
        // because a newer library may have more of them than the enumeration; both are 32 bits.
        unsafe {
            library.check(
                "GetTensorElementType",
                ((*api).GetTensorElementType)(tensor, (&raw mut code).cast()),
            )?;
            library.check("GetDimensionsCount", ((*api).GetDimensionsCount)(tensor, &raw mut count))?;
        }
        let mut sizes = vec![0i64; count];
        let mut symbols: Vec<*const c_char> = vec![std::ptr::null(); count];
        // SAFETY: both arrays have room for `count` entries; the symbols are parts of the type info.
        unsafe {
            library.check("GetDimensions", ((*api).GetDimensions)(tensor, sizes.as_mut_ptr(), count))?;
            library.check(
                "GetSymbolicDimensions",
                ((*api).GetSymbolicDimensions)(tensor, symbols.as_mut_ptr(), count),
            )?;
        }
        let dims = sizes
            .into_iter()
            .zip(symbols)
            .map(|(size, symbol)| match u64::try_from(size) {
                Ok(n) => Dim::Fixed(n),
                // SAFETY: null or a terminated string of the living type info.
                Err(_) => match unsafe { library.text(symbol) } {
                    name if name.is_empty() => Dim::Any,
                    name => Dim::Named(name),
                },
            })
            .collect();
        let element = ElementType::from_onnx(code).ok_or_else(|| match code {
            8 => "string".to_owned(),
            16 => "bf16".to_owned(),
            other => format!("ONNX element type {other}"),
        });
        Ok(TensorSpec { name, element, dims })
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("inputs", &self.inputs)
            .field("outputs", &self.outputs)
            .finish_non_exhaustive()
    }
}

/// A value that reads a tensor of ours.
struct Borrowed<'a> {
    value: Owned<OrtValue>,
    _tensor: &'a Tensor,
}

impl Borrowed<'_> {
    fn as_ptr(&self) -> *mut OrtValue {
        self.value.as_ptr()
    }
}

/// A path as ONNX Runtime takes it.
fn terminated(path: &Path) -> Result<Vec<ort_sys::os_char>> {
    #[cfg(windows)]
    let mut text: Vec<ort_sys::os_char> =
        std::os::windows::ffi::OsStrExt::encode_wide(path.as_os_str()).collect();
    #[cfg(not(windows))]
    let mut text: Vec<ort_sys::os_char> =
        path.as_os_str().as_encoded_bytes().iter().map(|&byte| byte as ort_sys::os_char).collect();
    if text.contains(&0) {
        return Err(Error::Model { path: path.to_owned(), message: "its name has a zero byte".into() });
    }
    text.push(0);
    Ok(text)
}

/// Makes a session of a model.
fn create(
    environment: &Environment,
    model: &Path,
    options: &Owned<OrtSessionOptions>,
) -> Result<Owned<OrtSession>> {
    let fail = |message: String| Error::Model { path: model.to_owned(), message };
    // ONNX Runtime's own messages for these two are about its file mapping.
    let meta = std::fs::metadata(model).map_err(|e| fail(e.to_string()))?;
    if !meta.is_file() {
        return Err(fail("it is not a file".into()));
    }
    let path = terminated(model)?;
    let library = environment.library();
    let api = library.api();
    // SAFETY: environment and options are alive, the path is terminated, and on success a session
    // is stored that the second function releases.
    let made = unsafe {
        library.make("CreateSession", (*api).ReleaseSession, |out| {
            ((*api).CreateSession)(environment.as_ptr(), path.as_ptr(), options.as_ptr(), out)
        })
    };
    made.map_err(|error| {
        let message = message_of(error);
        match environment.allocator().and_then(|a| a.take_failure()) {
            Some(cause) => Error::Run { message, cause: Some(cause) },
            None => fail(message),
        }
    })
}

/// The options of ONNX Runtime that follow from ours. `served` by the registered allocator, or by ONNX Runtime's own.
fn configure(
    environment: &Environment,
    options: &SessionOptions,
    served: bool,
) -> Result<Owned<OrtSessionOptions>> {
    let library = environment.library();
    let api = library.api();
    // SAFETY: on success options are stored that the second function releases.
    let configured = unsafe {
        library.make("CreateSessionOptions", (*api).ReleaseSessionOptions, |out| {
            ((*api).CreateSessionOptions)(out)
        })?
    };
    let set = |key: &CStr, value: &CStr| {
        // SAFETY: the options are alive, key and value are terminated and copied.
        let status =
            unsafe { ((*api).AddSessionConfigEntry)(configured.as_ptr(), key.as_ptr(), value.as_ptr()) };
        library.check("AddSessionConfigEntry", status)
    };
    // Idle threads would otherwise spin for a while after a run and take the processor from whoever
    // measures next.
    set(c"session.force_spinning_stop", c"1")?;
    if served {
        set(c"session.use_env_allocators", c"1")?;
    }
    if served || !options.memory_pattern {
        // SAFETY: the options are alive.
        library.check("DisableMemPattern", unsafe { ((*api).DisableMemPattern)(configured.as_ptr()) })?;
    }
    if let Place::Cuda(ordinal) = options.place {
        cuda::append(library, &configured, ordinal)?;
    }
    if let Some(threads) = options.threads {
        let threads = i32::try_from(threads).unwrap_or(i32::MAX);
        // SAFETY: the options are alive.
        let status = unsafe { ((*api).SetIntraOpNumThreads)(configured.as_ptr(), threads) };
        library.check("SetIntraOpNumThreads", status)?;
    }
    Ok(configured)
}

/// One output of a run.
pub struct Output {
    name: String,
    element: ElementType,
    shape: Vec<u64>,
    data: *const u8,
    bytes: usize,
    // The order is the order of dropping: the value, then the allocator its memory is from.
    _value: Owned<OrtValue>,
    _environment: Arc<Environment>,
}

// SAFETY: the value is ours alone and only read.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    fn new(environment: &Arc<Environment>, name: &str, value: Owned<OrtValue>) -> Result<Output> {
        let library = environment.library();
        let api = library.api();
        let unsupported = |found: String| Error::UnsupportedType { what: format!("output {name:?}"), found };
        let mut is_tensor = 0;
        // SAFETY: the value is alive.
        library.check("IsTensor", unsafe { ((*api).IsTensor)(value.as_ptr(), &raw mut is_tensor) })?;
        if is_tensor == 0 {
            return Err(unsupported("no tensor".into()));
        }
        let mut device = 0i32;
        // SAFETY: the value is a tensor; what is stored is part of it. The type of the device is received as a
        // number, as in `Session::spec`.
        unsafe {
            let mut memory = std::ptr::null();
            library.check(
                "GetTensorMemoryInfo",
                ((*api).GetTensorMemoryInfo)(value.as_ptr(), &raw mut memory),
            )?;
            ((*api).MemoryInfoGetDeviceType)(memory, (&raw mut device).cast());
        }
        if device != OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU as i32 {
            return Err(unsupported("memory of another device".into()));
        }
        // SAFETY: the value is a tensor; on success an info is stored that the second function releases.
        let info = unsafe {
            library.make("GetTensorTypeAndShape", (*api).ReleaseTensorTypeAndShapeInfo, |out| {
                ((*api).GetTensorTypeAndShape)(value.as_ptr(), out)
            })?
        };
        let (mut code, mut count) = (0i32, 0);
        // SAFETY: the info is alive; the type is received as a number, as in `Session::spec`.
        unsafe {
            library.check(
                "GetTensorElementType",
                ((*api).GetTensorElementType)(info.as_ptr(), (&raw mut code).cast()),
            )?;
            library
                .check("GetDimensionsCount", ((*api).GetDimensionsCount)(info.as_ptr(), &raw mut count))?;
        }
        let mut sizes = vec![0i64; count];
        // SAFETY: there is room for `count` sizes.
        library.check("GetDimensions", unsafe {
            ((*api).GetDimensions)(info.as_ptr(), sizes.as_mut_ptr(), count)
        })?;
        let element =
            ElementType::from_onnx(code).ok_or_else(|| unsupported(format!("ONNX element type {code}")))?;
        let shape: Vec<u64> = sizes.iter().map(|&n| n.max(0) as u64).collect();
        let bytes = shape.iter().product::<u64>() as usize * element.bytes();
        let mut data: *mut c_void = null_mut();
        // SAFETY: the value is a tensor of numbers, whose memory lives as long as the value.
        library.check("GetTensorMutableData", unsafe {
            ((*api).GetTensorMutableData)(value.as_ptr(), &raw mut data)
        })?;
        Ok(Output {
            name: name.to_owned(),
            element,
            shape,
            data: data.cast_const().cast(),
            bytes,
            _value: value,
            _environment: environment.clone(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its elements.
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Its shape.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Its contents, row-major.
    pub fn bytes(&self) -> &[u8] {
        if self.bytes == 0 {
            return &[];
        }
        // SAFETY: a tensor's memory is contiguous, the host's, as long as its type and shape say, and lives as
        // long as the value, which `self` owns; nobody writes to it any more.
        unsafe { std::slice::from_raw_parts(self.data, self.bytes) }
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Output({}: {} {})", self.name, self.element, shape_text(&self.shape))
    }
}

/// A fingerprint of outputs: equal iff names, types, shapes and every bit agree. SHA-256, in hex.
pub fn fingerprint(outputs: &[Output]) -> String {
    let mut hash = Sha256::new();
    for output in outputs {
        // Lengths first, so that no two lists of outputs run together to the same bytes.
        hash.update((output.name.len() as u64).to_le_bytes());
        hash.update(&output.name);
        hash.update([output.element as u8]);
        hash.update((output.shape.len() as u64).to_le_bytes());
        for n in &output.shape {
            hash.update(n.to_le_bytes());
        }
        hash.update(output.bytes());
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn message_of(error: Error) -> String {
    match error {
        Error::Ort { message, .. } => message,
        other => other.to_string(),
    }
}

type Count = unsafe extern "system" fn(*const OrtSession, *mut usize) -> OrtStatusPtr;
type Name =
    unsafe extern "system" fn(*const OrtSession, usize, *mut OrtAllocator, *mut *mut c_char) -> OrtStatusPtr;
type TypeInfo = unsafe extern "system" fn(*const OrtSession, usize, *mut *mut OrtTypeInfo) -> OrtStatusPtr;

/// The functions that list one side of a model.
struct Side {
    count: Count,
    name: Name,
    type_info: TypeInfo,
}

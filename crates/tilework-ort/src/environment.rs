//! ONNX Runtime's environment, with an allocator registered or without.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ort_sys::{OrtEnv, OrtLoggingLevel};

use crate::allocator::Allocator;
use crate::error::{Error, Result};
use crate::library::Library;
use crate::owned::Owned;
use crate::table::{Place, STREAMS_SINCE, Table};

/// True iff an [`Environment`] is alive. ONNX Runtime shares one per process among all who ask, and an
/// allocator registered with it is everybody's; so one at a time.
static ALIVE: AtomicBool = AtomicBool::new(false);

/// ONNX Runtime's environment. One per process; dropped after its sessions and outputs.
pub struct Environment {
    // The order is the order of dropping: ONNX Runtime's environment, then what it points to.
    env: Owned<OrtEnv>,
    registered: Option<Table<Allocator>>,
    library: Arc<Library>,
    _alone: Alone,
}

// SAFETY: ONNX Runtime's environment may be used from any thread.
unsafe impl Send for Environment {}
// SAFETY: as above.
unsafe impl Sync for Environment {}

impl Environment {
    /// Makes the environment and registers `allocator` for the memory it serves, where one is given. What ONNX
    /// Runtime logs goes to `tracing`, target `onnxruntime`.
    ///
    /// # Errors
    /// [`Error::SecondEnvironment`] while another one is alive, [`Error::Library`] when the library is too old for
    /// a GPU's allocator, [`Error::Ort`] when ONNX Runtime refuses.
    pub fn new(library: &Arc<Library>, allocator: Option<Allocator>) -> Result<Arc<Environment>> {
        let place = allocator.as_ref().map_or(Place::Cpu, Allocator::place);
        if matches!(place, Place::Cuda(_)) && library.api_version() < STREAMS_SINCE {
            let reason = format!(
                "it is version {}, which does not say on which stream a GPU's memory is used; 1.{STREAMS_SINCE} or \
                 later does",
                library.version()
            );
            return Err(Error::Library { path: library.path().to_owned(), reason });
        }
        let alone = Alone::new().ok_or(Error::SecondEnvironment)?;
        let api = library.api();
        // SAFETY: the logging function ignores its parameter and never unwinds, the name is
        // terminated, and on success an environment is stored that the second function releases.
        let env = unsafe {
            library.make("CreateEnv", (*api).ReleaseEnv, |out| {
                ((*api).CreateEnvWithCustomLogger)(
                    log,
                    std::ptr::null_mut(),
                    OrtLoggingLevel::ORT_LOGGING_LEVEL_WARNING,
                    c"tilework".as_ptr(),
                    out,
                )
            })?
        };
        // Running a model here is nobody's business but the user's. Some builds have no telemetry to
        // turn off, so a refusal means nothing.
        // SAFETY: the environment is alive.
        let quiet = unsafe { ((*api).DisableTelemetryEvents)(env.as_ptr()) };
        let _ = library.check("DisableTelemetryEvents", quiet);
        let registered = allocator
            .map(|a| Table::new(library.spoken(), a.place(), a, library.throw_bad_alloc()))
            .transpose()?;
        let environment = Environment { env, registered, library: library.clone(), _alone: alone };
        if let Some(registered) = &environment.registered {
            // SAFETY: environment and table are alive, and the table stays until the environment is gone.
            let status = unsafe { ((*api).RegisterAllocator)(environment.env.as_ptr(), registered.as_ptr()) };
            library.check("RegisterAllocator", status)?;
        }
        Ok(Arc::new(environment))
    }

    /// The registered allocator.
    pub fn allocator(&self) -> Option<&Allocator> {
        self.registered.as_ref().map(Table::server)
    }

    /// The library it belongs to.
    pub fn library(&self) -> &Arc<Library> {
        &self.library
    }

    pub(crate) fn as_ptr(&self) -> *mut OrtEnv {
        self.env.as_ptr()
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        if let Some(registered) = &self.registered {
            // Someone else in the process may hold ONNX Runtime's environment too, and it must not
            // keep our table. Refusal means that it was never registered.
            // SAFETY: environment and memory info are alive; no session is left, as each holds us.
            let status =
                unsafe { ((*self.library.api()).UnregisterAllocator)(self.env.as_ptr(), registered.info()) };
            if let Err(error) = self.library.check("UnregisterAllocator", status) {
                tracing::debug!(%error, "the allocator was not registered");
            }
        }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("library", &self.library)
            .field("allocator", &self.allocator())
            .finish_non_exhaustive()
    }
}

/// Holds [`ALIVE`].
struct Alone;

impl Alone {
    fn new() -> Option<Alone> {
        ALIVE.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).ok().map(|_| Alone)
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        ALIVE.store(false, Ordering::Release);
    }
}

/// Passes a line of ONNX Runtime's log on.
unsafe extern "system" fn log(
    _param: *mut c_void,
    severity: OrtLoggingLevel,
    _category: *const std::ffi::c_char,
    _id: *const std::ffi::c_char,
    location: *const std::ffi::c_char,
    message: *const std::ffi::c_char,
) {
    let text = |p: *const std::ffi::c_char| {
        if p.is_null() {
            return String::new();
        }
        // SAFETY: ONNX Runtime passes terminated strings that live for the call.
        unsafe { std::ffi::CStr::from_ptr(p) }.to_string_lossy().into_owned()
    };
    // A subscriber is foreign code and may panic; that must not reach ONNX Runtime's frames.
    let _ = std::panic::catch_unwind(|| {
        let (location, message) = (text(location), text(message));
        match severity {
            // What fails comes back as an error, too, and what ONNX Runtime warns of is mostly how it
            // optimises; so neither is shown unless someone asks.
            OrtLoggingLevel::ORT_LOGGING_LEVEL_WARNING
            | OrtLoggingLevel::ORT_LOGGING_LEVEL_ERROR
            | OrtLoggingLevel::ORT_LOGGING_LEVEL_FATAL => {
                tracing::info!(target: "onnxruntime", %location, "{message}");
            }
            _ => tracing::debug!(target: "onnxruntime", %location, "{message}"),
        }
    });
}

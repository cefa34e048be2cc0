//! The allocators that ONNX Runtime calls, in whatever process runs it.
//!
//! ```text
//!   SessionOptions.register_custom_ops_library(libtilework.so)
//!        │
//!   RegisterCustomOps ──► the API of the ONNX Runtime that calls ──► its environment
//!        │                                                               │ RegisterAllocator, once for each
//!        ▼                                                               ▼ place and environment
//!   Memory: "Cpu" one manager of the host, "Cuda" those of torch::gpus ◄── OrtAllocator table, leaked
//! ```
//!
//! A custom operator library is the one thing that stock ONNX Runtime loads and hands its API to; no operator
//! is registered. Tables are never freed: the environment keeps them, and we keep the environment.
//!
//! # Streams
//!
//! On the host everything has happened when a block is freed: one lane serves all.
//!
//! On a GPU `AllocOnStream` names the stream, and `Free` runs when the last use is queued, without naming any.
//! The stream belongs to a session and is destroyed with it, and nobody tells. So streams are *guests*
//! ([`Shared::alloc_guest`]): a handle is a key to a lane and is never passed to the driver, neither in `Free`,
//! which may come from an output that outlived its session, nor later.
//!
//! * Inside a lane the stream orders a freed block's last use before the next. Runs at the same time have
//!   streams of their own, so lanes of their own.
//! * Between two runs a stream has nothing live, and the next run of any session may take its lane over, once the
//!   host has waited for the device. So sessions that run by turns need no more than the hungriest.
//! * Before memory goes from one lane to another, or is given back, the host waits for the device: that covers
//!   every use queued before the free, on whatever stream. It happens only where a pool grows or shrinks; once
//!   warm, nothing waits.
//! * A new stream may get the handle of one that is gone, and with it its lane. A run ends by waiting for its
//!   stream, so nothing of the old one is queued any more. (Runs with `disable_synchronize_execution_providers`
//!   do not; their session has to be kept until the program has waited itself.)
//! * What is asked for without a stream on a thread that has entered a group belongs to the group: the weights of a session
//!   that is being made. Its lane is the default stream's, which has nothing of ONNX Runtime's; so whoever runs the session has
//!   the host wait for contents that come back ([`tilework_ort_restore`]), and keeps the group pinned until the run has
//!   ended, which waits for its own stream.
//! * What else is asked for without a stream (weights, inputs made outside a run) is a lane of its own, and serves
//!   requests without a stream only, as in ONNX Runtime's arena.
//!
//! Before version 1.23 no stream is ever named, so runs at the same time could not be told apart: GPUs are
//! refused there. Python's wheels before 1.23 cannot be served at all: their environment is not the one of the
//! C API, which refuses to make a second. A plan that is split over several CUDA streams by a file of the
//! user's is not for us: within a run, nothing here orders one stream behind another.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::{self, null_mut};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ort_sys::{OrtApiBase, OrtEnv, OrtErrorCode, OrtLoggingLevel, OrtSessionOptions, OrtStatusPtr};
use tilework::manager::Stream;
use tilework::shared::{GroupId, Shared};
use tilework_ort::api::Api;
use tilework_ort::table::{Figures, Place, STREAMS_SINCE, Server, Table, ThrowBadAlloc};
use tilework_ort::weights::is_weight;

use crate::call::{self, Failure, Result, TileworkStatus, guarded, status};
use crate::entered::{self, Whose};
use crate::handles;
use crate::manager::{TileworkManager, TileworkOptions, put, settings, text};
use crate::open::{self, Settings};
use crate::symbols::Library;
use crate::torch::gpus::{self, Gpu};

/// What is to be registered, and what was.
#[derive(Default)]
struct Plan {
    /// None: whoever loads the library without asking for anything gets the host's memory.
    wanted: Option<Wanted>,
    /// By the environment's address, which stays its own: each is referenced until the process ends.
    registered: Vec<(usize, Place)>,
}

#[derive(Clone, PartialEq, Eq)]
struct Wanted {
    /// How the host's memory is served, if it is.
    host: Option<Settings>,
    gpus: Vec<c_int>,
}

static PLAN: Mutex<Plan> = Mutex::new(Plan { wanted: None, registered: Vec::new() });

/// The first request that was refused since this was asked last.
static REFUSED: Mutex<Option<Failure>> = Mutex::new(None);

/// The host, where devices have numbers.
const HOST_NUMBER: c_int = -1;

/// The manager of the host's memory, and its handle.
static HOST: OnceLock<(Arc<Shared>, usize)> = OnceLock::new();

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each part is replaced as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Plan {
    fn wanted(&self) -> Wanted {
        self.wanted.clone().unwrap_or(Wanted { host: Some(Settings::default()), gpus: Vec::new() })
    }

    fn host(&self) -> Result<&'static (Arc<Shared>, usize)> {
        if let Some(host) = HOST.get() {
            return Ok(host);
        }
        let settings = self.wanted().host;
        let settings = settings.ok_or_else(|| Failure::argument("the host's memory is not served"))?;
        call::watch_forks();
        let shared = Arc::new(open::shared("host", &settings)?);
        // The plan's lock is held, so nobody comes first.
        Ok(HOST.get_or_init(|| (shared.clone(), handles::register(shared))))
    }
}

/// Says what ONNX Runtime is to allocate from us: the host's memory, if `cpu`, and that of `count` GPUs. Null
/// options leave the GPUs' as PyTorch's hooks have them. A device in the options serves in place of every GPU:
/// for tests. To be called before the library is registered with a session's options; refused later, unless
/// nothing changes.
///
/// # Safety
/// `options` must be null or as for `tilework_create`; `gpus` must be null or valid for `count` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_ort_configure(
    options: *const TileworkOptions,
    cpu: bool,
    gpus: *const c_int,
    count: usize,
) -> TileworkStatus {
    status(|| {
        let given = if options.is_null() {
            None
        } else {
            // SAFETY: as this function demands.
            Some(unsafe { settings(options)? })
        };
        let gpus = if gpus.is_null() {
            Vec::new()
        } else {
            // SAFETY: not null, so valid for as many, as this function demands.
            unsafe { std::slice::from_raw_parts(gpus, count) }.to_vec()
        };
        let host = Settings { device: None, ..given.clone().unwrap_or_default() };
        open::check(&host)?;
        let wanted = Wanted { host: cpu.then_some(host), gpus };
        let mut plan = lock(&PLAN);
        if plan.wanted.as_ref() == Some(&wanted) {
            return Ok(());
        }
        if plan.wanted.is_some() || !plan.registered.is_empty() {
            return Err(Failure::argument("ONNX Runtime's memory is served with other options already"));
        }
        if let Some(given) = given.filter(|_| !wanted.gpus.is_empty()) {
            gpus::configure(given)?;
        }
        plan.wanted = Some(wanted);
        Ok(())
    })
}

/// Stores the handle of the manager of a GPU or, for -1, of the host. Destroying it takes the handle away and
/// leaves the manager to ONNX Runtime.
///
/// # Safety
/// `out` must be null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_ort_manager(
    device: c_int,
    out: *mut *mut TileworkManager,
) -> TileworkStatus {
    status(|| {
        if out.is_null() {
            return Err(Failure::argument("the place for the manager is null"));
        }
        let handle = match device {
            HOST_NUMBER => ptr::without_provenance_mut(lock(&PLAN).host()?.1),
            _ => gpus::get(device)?.handle(),
        };
        // SAFETY: not null, so valid for a write.
        unsafe { out.write(handle) };
        Ok(())
    })
}

/// Fails with the first request that was refused since this was called last, if there was one.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_ort_refused() -> TileworkStatus {
    status(|| lock(&REFUSED).take().map_or(Ok(()), Err))
}

/// From now on the weights of sessions that the calling thread makes are for the group of this name on a device: what they request
/// without a stream, but for requests of a GPU below 64 KiB, which may be kernels' own. The group is made if there is none, pinned once.
///
/// # Safety
/// `name` must be null or a terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_ort_enter_group(device: c_int, name: *const c_char) -> TileworkStatus {
    status(|| {
        // SAFETY: as this function demands.
        let name = unsafe { text(name)? }.ok_or_else(|| Failure::argument("the group's name is null"))?;
        entered::enter(Whose::Ort(device), name);
        Ok(())
    })
}

/// Ends what `tilework_ort_enter_group` began last on the calling thread for the device. The host waits for all work of a
/// GPU: what fills the weights may be queued on streams that an eviction does not know of.
#[unsafe(no_mangle)]
pub extern "C" fn tilework_ort_leave_group(device: c_int) -> TileworkStatus {
    status(|| {
        entered::leave(Whose::Ort(device))?;
        if device == HOST_NUMBER { Ok(()) } else { gpus::get(device)?.synchronize() }
    })
}

/// As `tilework_restore`, and the host waits for the contents: the stream of the run to come is not known.
///
/// # Safety
/// `copied` must be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilework_ort_restore(device: c_int, group: u32, copied: *mut u64) -> TileworkStatus {
    status(|| {
        let restore = |shared: &Shared| shared.restore(GroupId(group), Some(Stream::default()));
        let bytes = match device {
            HOST_NUMBER => {
                let host = lock(&PLAN).host()?;
                restore(&host.0)?
            }
            _ => {
                let gpu = gpus::get(device)?;
                let bytes = restore(gpu.shared())?;
                // The default stream waits for them, also for those that another thread brings.
                gpu.settle()?;
                bytes
            }
        };
        // SAFETY: as this function demands.
        unsafe { put(copied, bytes) }
    })
}

/// What ONNX Runtime calls when the library is registered as one of custom operators: registers our allocators
/// with its environment, if they are not yet.
///
/// # Safety
/// `base` must be null or what the calling ONNX Runtime's `OrtGetApiBase` returns, and that library must stay
/// loaded until the process ends.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RegisterCustomOps(
    _options: *mut OrtSessionOptions,
    base: *const OrtApiBase,
) -> OrtStatusPtr {
    // SAFETY: as this function demands.
    let Err(failure) = guarded(|| unsafe { register(base) }) else { return OrtStatusPtr::default() };
    let text = call::terminated(&failure.text);
    if base.is_null() {
        return OrtStatusPtr::default();
    }
    // SAFETY: every version serves the first one, whose first entry this is; the text is copied.
    unsafe {
        let api = ((*base).GetApi)(1);
        if api.is_null() {
            return OrtStatusPtr::default();
        }
        ((*api).CreateStatus)(OrtErrorCode::ORT_FAIL, text.as_ptr())
    }
}

/// # Safety
/// As [`RegisterCustomOps`].
unsafe fn register(base: *const OrtApiBase) -> Result<()> {
    // ONNX Runtime closes the library with the options; the tables point into it.
    if !Library::keep(RegisterCustomOps as *const c_void) {
        return Err(Failure::new(TileworkStatus::Internal, "Tilework cannot keep its library loaded"));
    }
    let refused = |text: String| Failure::new(TileworkStatus::Unsupported, format!("Tilework: {text}"));
    // SAFETY: as this function demands.
    let (api, version) = unsafe { Api::of(base) }.map_err(|text| refused(format!("ONNX Runtime: {text}")))?;
    let throw = throw_bad_alloc()
        .ok_or_else(|| refused("no libstdc++ is loaded, by which a lack of memory is told".into()))?;
    let mut plan = lock(&PLAN);
    let wanted = plan.wanted();
    if !wanted.gpus.is_empty() && api.version() < STREAMS_SINCE {
        return Err(refused(format!(
            "a GPU's memory needs ONNX Runtime 1.{STREAMS_SINCE} or later, which says on which stream it is \
             used; this is {version}. The CPU's is served"
        )));
    }
    let env = environment(api).map_err(|error| refused(error.to_string()))?;
    let known = plan.registered.iter().any(|&(of, _)| of == env.addr());
    if known {
        // The reference of the first time is enough.
        // SAFETY: the environment is referenced once more, by the call just above.
        unsafe { ((*api.table()).ReleaseEnv)(env) };
    }
    let cpu = wanted.host.is_some().then_some(Place::Cpu);
    for place in cpu.into_iter().chain(wanted.gpus.iter().copied().map(Place::Cuda)) {
        if plan.registered.contains(&(env.addr(), place)) {
            continue;
        }
        let memory = match place {
            Place::Cpu => Memory::Host(&plan.host()?.0),
            Place::Cuda(ordinal) => Memory::Gpu(ordinal, gpus::get(ordinal)?),
        };
        let table =
            Table::new(api, place, memory, Some(throw)).map_err(|error| refused(error.to_string()))?;
        // SAFETY: the environment is alive, and the table is never freed once it is registered.
        let status = unsafe { ((*api.table()).RegisterAllocator)(env, table.as_ptr()) };
        api.check("RegisterAllocator", status).map_err(|error| refused(error.to_string()))?;
        std::mem::forget(table);
        plan.registered.push((env.addr(), place));
    }
    Ok(())
}

/// The environment of the calling ONNX Runtime, referenced once more.
fn environment(api: Api) -> tilework_ort::Result<*mut OrtEnv> {
    let mut env = null_mut();
    // SAFETY: the name is terminated, and `env` valid for the write. A process has one environment: where there
    // is one, the arguments are not looked at.
    let status = unsafe {
        ((*api.table()).CreateEnv)(
            OrtLoggingLevel::ORT_LOGGING_LEVEL_WARNING,
            c"tilework".as_ptr(),
            &raw mut env,
        )
    };
    api.check("CreateEnv", status).map(|()| env)
}

fn throw_bad_alloc() -> Option<ThrowBadAlloc> {
    let function = Library::loaded(c"libstdc++.so.6")?.find(c"_ZSt17__throw_bad_allocv")?;
    // SAFETY: the symbol of this name is this function, which takes and returns nothing.
    Some(unsafe { std::mem::transmute::<*mut c_void, ThrowBadAlloc>(function.as_ptr()) })
}

/// Whom a table asks: managers that live as long as the process.
enum Memory {
    Host(&'static Shared),
    /// With its number.
    Gpu(c_int, &'static Gpu),
}

impl Memory {
    fn shared(&self) -> &'static Shared {
        match self {
            Memory::Host(shared) => shared,
            Memory::Gpu(_, gpu) => gpu.shared(),
        }
    }

    /// What it is the memory of, and its number as ONNX Runtime's devices are numbered here.
    fn place(&self) -> (Place, c_int) {
        match self {
            Memory::Host(_) => (Place::Cpu, HOST_NUMBER),
            Memory::Gpu(ordinal, _) => (Place::Cuda(*ordinal), *ordinal),
        }
    }

    /// The group that a request is for.
    fn group(&self, bytes: u64, stream: Stream) -> Result<Option<GroupId>> {
        let (place, number) = self.place();
        let name = entered::entered(Whose::Ort(number)).filter(|_| is_weight(place, bytes, stream));
        Ok(name.map(|name| self.shared().group(&name)).transpose()?)
    }

    /// Does what ONNX Runtime cannot be told the failure of.
    fn quietly(&self, body: impl FnOnce(&Shared) -> Result<()>) {
        match guarded(|| body(self.shared())) {
            // A forked child drops what it inherited; that is no news.
            Ok(()) => {}
            Err(failure) if failure.status == TileworkStatus::Forked => {}
            Err(failure) => tracing::error!("for ONNX Runtime: {}", failure.text),
        }
    }
}

impl Server for Memory {
    fn alloc(&self, bytes: usize, stream: Stream) -> *mut c_void {
        if bytes == 0 {
            return null_mut();
        }
        let served = guarded(|| {
            if let Some(group) = self.group(bytes as u64, stream)? {
                return Ok(self.shared().alloc_for(group, bytes as u64, stream)?);
            }
            Ok(match self {
                Memory::Host(shared) => shared.alloc(bytes as u64, Stream::default()),
                // Requests of ONNX Runtime's are not among those that PyTorch counts as its own.
                Memory::Gpu(_, gpu) => gpu.shared().alloc_guest(bytes as u64, stream),
            }?)
        });
        match served {
            Ok(address) => ptr::with_exposed_provenance_mut(address as usize),
            Err(failure) => {
                tracing::debug!(bytes, text = failure.text, "a request of ONNX Runtime's was refused");
                lock(&REFUSED).get_or_insert(failure);
                null_mut()
            }
        }
    }

    fn free(&self, ptr: *mut c_void) {
        if !ptr.is_null() {
            self.quietly(|shared| Ok(shared.free(ptr.addr() as u64)?));
        }
    }

    fn figures(&self) -> Option<Figures> {
        let stats = guarded(|| Ok(self.shared().stats())).ok()?;
        Some(Figures { usage: stats.usage, allocations: stats.allocations })
    }

    fn shrink(&self) {
        self.quietly(|shared| Ok(shared.trim().map(drop)?));
    }
}

#[cfg(test)]
mod tests {
    use tilework_ort::weights::LEAST;

    use super::*;

    #[test]
    fn what_may_be_a_kernels_own_is_in_no_group() {
        // The host's memory stands in for the GPU's, so that no GPU is needed.
        gpus::configure(Settings { device: Some("host".into()), ..Settings::default() }).unwrap();
        let gpu = gpus::get(0).unwrap();
        let memory = Memory::Gpu(0, gpu);
        let request = |bytes, stream| memory.alloc(bytes as usize, Stream(stream));
        entered::enter(Whose::Ort(0), "model");
        let blocks = [request(LEAST - 1, 0), request(LEAST, 7), request(LEAST, 0)];
        entered::leave(Whose::Ort(0)).unwrap();
        assert!(blocks.iter().all(|block| !block.is_null()));
        let group = gpu.shared().group("model").unwrap();
        assert_eq!(gpu.shared().group_stats(group).unwrap().live, LEAST);
        assert_eq!(gpu.shared().usage().live, 3 * LEAST - 1);
        blocks.into_iter().for_each(|block| memory.free(block));
        assert_eq!(gpu.shared().usage().live, 0);
    }
}

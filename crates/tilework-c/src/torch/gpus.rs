//! One shared manager for each GPU that PyTorch or ONNX Runtime uses.

use std::collections::HashMap;
use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tilework::manager::Stream;
use tilework::shared::streams::Streams as _;
use tilework::shared::{PoolId, Shared, Totals};
use tilework_cuda::streams::CudaStreams;

use super::filter::Filter;
use super::stats::{Counters, DeviceStats};
use crate::call::{self, Failure, Result};
use crate::entered::{self, Whose};
use crate::handles;
use crate::manager::TileworkManager;
use crate::open::{self, Settings};

/// As many GPUs as PyTorch can count: its device index is a signed byte.
const MOST: usize = 128;

static GPUS: [OnceLock<Gpu>; MOST] = [const { OnceLock::new() }; MOST];

/// How many GPUs PyTorch has begun with; none before it has.
static COUNT: AtomicI32 = AtomicI32::new(0);

/// Held while a GPU is opened.
static PLAN: Mutex<Plan> = Mutex::new(Plan { settings: None, recording: None });

/// What is done when a GPU is opened.
struct Plan {
    /// How it is opened.
    settings: Option<Settings>,
    /// Where its requests are recorded; the name is that of the first GPU's trace.
    recording: Option<PathBuf>,
}

impl Plan {
    fn lock() -> MutexGuard<'static, Plan> {
        // Each part is replaced as a whole.
        PLAN.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A GPU's manager and what PyTorch wants to know beyond it. Lives as long as the process.
pub struct Gpu {
    shared: Arc<Shared>,
    handle: usize,
    /// The memory of the GPU, bytes, where it has an end.
    total_bytes: Option<u64>,
    /// For what only the driver knows; none where the device is not a GPU.
    driver: Option<tilework_cuda::gpu::Gpu>,
    /// Its streams; as above.
    streams: Option<CudaStreams>,
    books: Mutex<Books>,
}

struct Books {
    counters: Counters,
    /// Bytes that may be held, as the program has it.
    limit: Option<u64>,
    /// The part of the GPU's memory that may be held, as PyTorch has it. The lesser of the two counts.
    fraction: f64,
    /// References on pools, as PyTorch counts them.
    pools: HashMap<PoolId, c_int>,
}

/// The part of a GPU's memory that may be held where nobody has asked for less.
const ALL: f64 = 1.0;

/// Says how GPUs are to be opened.
pub fn configure(settings: Settings) -> Result<()> {
    open::check(&settings)?;
    let mut plan = Plan::lock();
    let current = plan.settings.clone().or_else(|| made().next().map(|_| Settings::default()));
    if current.is_some_and(|current| current != settings) {
        return Err(Failure::argument(
            "the GPUs' memory is served with other options already: options come before the first tensor or \
             session, and PyTorch and ONNX Runtime have the same",
        ));
    }
    plan.settings = Some(settings);
    Ok(())
}

/// Records what every GPU is asked from now on, those that are not used yet, too.
pub fn record_start(path: &Path) -> Result<()> {
    let mut plan = Plan::lock();
    if plan.recording.is_some() {
        return Err(Failure::argument("a recording is under way already: stop it first"));
    }
    for (ordinal, gpu) in (0..).zip(&GPUS).filter_map(|(n, slot)| Some((n, slot.get()?))) {
        gpu.shared.record_to(&trace(path, ordinal))?;
    }
    plan.recording = Some(path.to_owned());
    Ok(())
}

/// Completes the recording of every GPU.
pub fn record_stop() -> Result<()> {
    let mut plan = Plan::lock();
    if plan.recording.take().is_none() {
        return Ok(());
    }
    let mut all = Ok(());
    for gpu in made() {
        // Every trace is completed, whatever becomes of another.
        all = all.and(gpu.shared.stop_recording());
    }
    Ok(all?)
}

/// The trace of a GPU: `run.csv.gz` for the first, `run.gpu1.csv.gz` for the second.
fn trace(path: &Path, ordinal: c_int) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match (ordinal, name.split_once('.')) {
        (0, _) => path.to_owned(),
        (_, Some((stem, extension))) => path.with_file_name(format!("{stem}.gpu{ordinal}.{extension}")),
        (_, None) => path.with_file_name(format!("{name}.gpu{ordinal}")),
    }
}

/// The GPUs that were used.
pub fn made() -> impl Iterator<Item = &'static Gpu> {
    GPUS.iter().filter_map(OnceLock::get)
}

/// The GPU whose manager has this handle.
pub fn of(manager: *mut TileworkManager) -> Option<&'static Gpu> {
    made().find(|gpu| gpu.handle == manager.addr())
}

/// The GPU with this ordinal, opened if it is used for the first time.
pub fn get(ordinal: c_int) -> Result<&'static Gpu> {
    let slot = usize::try_from(ordinal).ok().and_then(|index| GPUS.get(index));
    let slot = slot.ok_or_else(|| Failure::argument(format!("{ordinal} is no number of a GPU")))?;
    match slot.get() {
        Some(gpu) => Ok(gpu),
        None => open(ordinal, slot),
    }
}

/// PyTorch begins with as many GPUs.
pub fn begin(count: c_int) {
    COUNT.store(count, Ordering::Relaxed);
}

/// The GPU that PyTorch asks about; `None` if it was not used yet. Asking opens none, since a context takes hundreds of
/// MiB there and programs ask about all GPUs they see.
fn asked(ordinal: c_int) -> Result<Option<&'static Gpu>> {
    let count = COUNT.load(Ordering::Relaxed);
    let slot = usize::try_from(ordinal).ok().filter(|_| ordinal < count).and_then(|index| GPUS.get(index));
    let slot = slot.ok_or_else(|| {
        // PyTorch's own sentence first, which programs may look for.
        let text = format!("Invalid device argument {ordinal}: did you call init? PyTorch has {count} GPUs");
        Failure::argument(text)
    })?;
    Ok(slot.get())
}

/// What torch.cuda.memory_stats() says.
pub fn stats(ordinal: c_int) -> Result<DeviceStats> {
    let unused = || Counters::default().report(&Totals::default());
    Ok(asked(ordinal)?.map_or_else(unused, Gpu::stats))
}

/// Makes the peaks of a GPU's figures start again from what is now.
pub fn reset_peaks(ordinal: c_int) -> Result<()> {
    if let Some(gpu) = asked(ordinal)? {
        gpu.shared.reset_peaks();
        gpu.books().counters.reset_peaks();
    }
    Ok(())
}

/// Makes what only grows of a GPU's figures start again from zero.
pub fn reset_accumulated(ordinal: c_int) -> Result<()> {
    if let Some(gpu) = asked(ordinal)? {
        let totals = gpu.shared.totals();
        gpu.books().counters.reset_accumulated(&totals);
    }
    Ok(())
}

/// The part of a GPU's memory that may be held.
pub fn fraction(ordinal: c_int) -> Result<f64> {
    Ok(asked(ordinal)?.map_or(ALL, |gpu| gpu.books().fraction))
}

/// Limits what is held to a part of a GPU's memory, beside the limit in bytes.
pub fn set_fraction(ordinal: c_int, fraction: f64) -> Result<()> {
    asked(ordinal)?;
    get(ordinal)?.set_fraction(fraction)
}

#[cold]
fn open(ordinal: c_int, slot: &'static OnceLock<Gpu>) -> Result<&'static Gpu> {
    let plan = Plan::lock();
    if let Some(gpu) = slot.get() {
        return Ok(gpu);
    }
    call::watch_forks();
    let settings = plan.settings.clone().unwrap_or_default();
    let gpu = Gpu::open(ordinal, &settings)?;
    if let Some(path) = &plan.recording {
        gpu.shared.record_to(&trace(path, ordinal))?;
    }
    Ok(slot.get_or_init(|| gpu))
}

impl Gpu {
    fn open(ordinal: c_int, settings: &Settings) -> Result<Gpu> {
        let name = settings.device.clone().unwrap_or_else(|| format!("cuda:{ordinal}"));
        let driver = tilework_cuda::ordinal(&name).map(open::gpu).transpose()?;
        let streams = tilework_cuda::ordinal(&name).map(open::gpu).transpose()?.map(CudaStreams::new);
        let shared = Arc::new(open::shared(&name, settings)?);
        Ok(Gpu {
            handle: handles::register(shared.clone()),
            shared,
            total_bytes: driver.as_ref().map(tilework_cuda::gpu::Gpu::total_bytes),
            driver,
            streams,
            books: Mutex::new(Books {
                counters: Counters::default(),
                limit: settings.limit,
                fraction: ALL,
                pools: HashMap::new(),
            }),
        })
    }

    /// Its manager.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Its manager's handle for the functions of `tilework.h`.
    pub fn handle(&self) -> *mut TileworkManager {
        std::ptr::without_provenance_mut(self.handle)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Figures only: whatever a panic has left is as good as any.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a request of the calling thread.
    pub fn alloc(&self, bytes: u64, stream: Stream) -> Result<u64> {
        let address = match entered::entered(Whose::Torch) {
            None => self.shared.alloc(bytes, stream),
            Some(name) => {
                self.shared.group(&name).and_then(|group| self.shared.alloc_for(group, bytes, stream))
            }
        }?;
        self.books().counters.alloc(bytes);
        Ok(address)
    }

    /// Takes a block back; `bytes` are those of its request.
    pub fn free(&self, address: u64, bytes: u64) -> Result<()> {
        self.shared.free(address)?;
        self.books().counters.free(bytes);
        Ok(())
    }

    /// Waits on the host for what is queued on the default stream.
    pub fn settle(&self) -> Result<()> {
        let Some(streams) = &self.streams else { return Ok(()) };
        let mark = streams.record(Stream::default()).map_err(tilework::Error::from)?;
        Ok(mark.synchronize().map_err(tilework::Error::from)?)
    }

    /// Waits on the host for all work of the GPU.
    pub fn synchronize(&self) -> Result<()> {
        let Some(streams) = &self.streams else { return Ok(()) };
        Ok(streams.synchronize_device().map_err(tilework::Error::from)?)
    }

    /// Gives back what is unused.
    pub fn trim(&self) -> Result<()> {
        let released = self.shared.trim()?;
        self.books().counters.released(released);
        Ok(())
    }

    fn set_fraction(&self, fraction: f64) -> Result<()> {
        if !(0.0..=ALL).contains(&fraction) {
            return Err(Failure::argument("the fraction of memory must be from 0 to 1"));
        }
        let mut books = self.books();
        self.apply(books.limit, fraction)?;
        books.fraction = fraction;
        Ok(())
    }

    /// Limits what is held, bytes, beside the part of the GPU's memory; `None` lifts this limit.
    pub fn set_limit(&self, limit: Option<u64>) -> Result<()> {
        let mut books = self.books();
        self.apply(limit, books.fraction)?;
        books.limit = limit;
        Ok(())
    }

    fn apply(&self, limit: Option<u64>, fraction: f64) -> Result<()> {
        let part = self.total_bytes.filter(|_| fraction < ALL).map(|total| (total as f64 * fraction) as u64);
        Ok(self.shared.set_limit(part.into_iter().chain(limit).min())?)
    }

    /// How much could be asked for without failing: what is held and unused, what the GPU has free, and no
    /// more than the limit leaves.
    pub fn available(&self) -> u64 {
        let usage = self.shared.usage();
        // What is evicted takes nothing of the GPU's.
        let live = usage.live.saturating_sub(self.shared.absent_bytes());
        let free = self.driver.as_ref().and_then(|gpu| gpu.free_and_total().ok()).map_or(0, |(free, _)| free);
        let unused = usage.held.saturating_sub(live).saturating_add(free);
        unused.min(self.shared.limit().unwrap_or(u64::MAX).saturating_sub(live))
    }

    /// Opens a pool and takes a reference on it.
    pub fn begin_pool(&self, pool: PoolId, filter: Filter) -> Result<()> {
        self.shared.begin_pool(pool, Box::new(move |stream| filter.lets_in(stream)))?;
        *self.books().pools.entry(pool).or_insert(0) += 1;
        Ok(())
    }

    /// Takes a reference on a pool.
    pub fn retain_pool(&self, pool: PoolId) -> Result<()> {
        self.shared.retain_pool(pool)?;
        *self.books().pools.entry(pool).or_insert(0) += 1;
        Ok(())
    }

    /// Gives a reference on a pool back.
    pub fn release_pool(&self, pool: PoolId) -> Result<()> {
        self.shared.release_pool(pool)?;
        let mut books = self.books();
        if let Some(uses) = books.pools.get_mut(&pool) {
            *uses -= 1;
            if *uses == 0 {
                books.pools.remove(&pool);
            }
        }
        Ok(())
    }

    /// The references on a pool.
    pub fn pool_uses(&self, pool: PoolId) -> c_int {
        self.books().pools.get(&pool).copied().unwrap_or(0)
    }

    fn stats(&self) -> DeviceStats {
        let totals = self.shared.totals();
        self.books().counters.report(&totals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gpu_has_a_trace_of_its_own() {
        let name = |path: &str, ordinal| trace(Path::new(path), ordinal).to_str().unwrap().to_owned();
        assert_eq!(name("runs/a.csv.gz", 0), "runs/a.csv.gz");
        assert_eq!(name("runs/a.csv.gz", 1), "runs/a.gpu1.csv.gz");
        assert_eq!(name("a", 2), "a.gpu2");
    }

    const MIB: u64 = 1 << 20;

    /// A GPU with 100 MiB.
    fn small() -> Gpu {
        Gpu {
            shared: Arc::new(open::shared("sim-h200", &Settings::default()).unwrap()),
            handle: 0,
            total_bytes: Some(100 * MIB),
            driver: None,
            streams: None,
            books: Mutex::new(Books {
                counters: Counters::default(),
                limit: None,
                fraction: ALL,
                pools: HashMap::new(),
            }),
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// A limit, MiB.
        Limit(Option<u64>),
        /// A part of the memory.
        Part(f64),
    }

    #[test]
    fn of_a_limit_and_a_part_of_the_memory_the_lesser_counts() {
        use Step::{Limit, Part};
        let cases = [
            // Either order.
            (vec![Limit(Some(40)), Part(0.5)], 40),
            (vec![Part(0.5), Limit(Some(40))], 40),
            (vec![Limit(Some(60)), Part(0.5)], 50),
            (vec![Part(0.5), Limit(Some(60))], 50),
            // One that is raised or lifted leaves what the other says.
            (vec![Limit(Some(40)), Part(0.5), Limit(Some(60))], 50),
            (vec![Part(0.5), Limit(Some(40)), Limit(None)], 50),
            (vec![Limit(Some(60)), Part(0.5), Part(0.75)], 60),
            (vec![Part(0.5), Limit(Some(60)), Part(1.0)], 60),
        ];
        for (steps, mib) in cases {
            let gpu = small();
            for &step in &steps {
                match step {
                    Limit(mib) => gpu.set_limit(mib.map(|mib| mib * MIB)).unwrap(),
                    Part(fraction) => gpu.set_fraction(fraction).unwrap(),
                }
            }
            assert_eq!(gpu.shared.limit(), Some(mib * MIB), "{steps:?}");
        }
    }

    #[test]
    fn a_limit_that_is_refused_is_forgotten() {
        let gpu = small();
        // A group is made pinned.
        let group = gpu.shared.group("pinned").unwrap();
        gpu.shared.alloc_for(group, 30 * MIB, Stream(0)).unwrap();
        gpu.set_limit(Some(60 * MIB)).unwrap();
        for failed in [gpu.set_limit(Some(20 * MIB)), gpu.set_fraction(0.2), gpu.set_fraction(1.5)] {
            failed.unwrap_err();
            assert_eq!(gpu.shared.limit(), Some(60 * MIB));
        }
        // Neither counts when the other is changed later.
        gpu.set_fraction(0.5).unwrap();
        assert_eq!(gpu.shared.limit(), Some(50 * MIB));
        gpu.set_limit(None).unwrap();
        assert_eq!((gpu.shared.limit(), gpu.books().fraction), (Some(50 * MIB), 0.5));
        assert_eq!(gpu.alloc(51 * MIB, Stream(0)).unwrap_err().status, call::TileworkStatus::OutOfMemory);
    }
}

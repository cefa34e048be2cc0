//! A CUDA driver of our own, for tests without a GPU. Linux; feature `testing`.
//!
//! It keeps the rules that real drivers were seen to keep, with host memory behind its addresses:
//!
//! * a physical handle maps whole or not at all (`NOT_SUPPORTED`), at any number of addresses, in
//!   multiples of the granularity (`INVALID_VALUE`);
//! * what is mapped can be used by the GPUs that `cuMemSetAccess` has named only, and a use of anything else by a
//!   GPU or by a stray pointer is a fault;
//! * an unmapping takes whole mappings without gaps; a reservation in which anything is mapped stays;
//! * a released handle keeps its memory until its last mapping is gone, and is zeros when new, which
//!   what `cuMemAlloc` returns is not;
//! * an asynchronous copy is made when its stream gets there, to or from memory of the host that is registered;
//!   nothing is registered twice;
//! * memory belongs to contexts: without a current one, its functions fail;
//! * so do streams and events: an event is recorded on streams of its own context only, any stream may wait for it;
//! * while the thread's capture mode is not relaxed and a stream is being captured, calls that could
//!   break the capture fail;
//! * work queued on a stream that a test [holds](Fake::hold) is unfinished until it is
//!   [let go](Fake::let_go), and an unmapping of what it [uses](Fake::launch_using) is counted as the fault it
//!   would be.
//!
//! Of documentation only, no real driver was asked: what `cuMemGetAccess` and `cuPointerGetAttribute` say of memory of
//! the host that is mapped.
//!
//! A driver's functions have no argument that says which driver, so each thread has its own: the one it
//! made last or was [given](Fake::attach). Every call is counted by its name and can be made to
//! [fail](Fake::fail).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use self::memory::Memory;
use self::streams::Streams;
use crate::driver::{
    Address, CAPTURE_GLOBAL, CAPTURE_RELAXED, Code, Context, Driver, INVALID_CONTEXT, NOT_INITIALIZED,
    STREAM_CAPTURE_UNSUPPORTED, SUCCESS, Stream,
};

mod functions;
mod memory;
mod streams;

/// What the fake's GPUs are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// How many there are.
    pub gpus: u32,
    /// Whether they map memory.
    pub maps_memory: bool,
    /// What physical memory comes in multiples of, bytes; a multiple of the page.
    pub granularity: u64,
    /// The memory of each, bytes. Only what is used takes memory of the host.
    pub total_bytes: u64,
    /// Whether they map memory of the host, in multiples of the same.
    pub maps_host_memory: bool,
    /// Whether `cuPointerGetAttribute` has an address on the host for that memory. NVIDIA's documentation allows for
    /// either.
    pub tells_host_addresses: bool,
}

impl Default for Config {
    /// Two GPUs that map memory, with 4 GiB each in multiples of 2 MiB, and the host's.
    fn default() -> Config {
        Config {
            gpus: 2,
            maps_memory: true,
            granularity: 2 << 20,
            total_bytes: 4 << 30,
            maps_host_memory: true,
            tells_host_addresses: false,
        }
    }
}

/// A fake driver, and the hand on it.
#[derive(Clone)]
pub struct Fake {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Told whenever queued work finishes.
    finished: Condvar,
}

struct State {
    config: Config,
    initialized: bool,
    memory: Memory,
    streams: Streams,
    /// How often each GPU's primary context is retained.
    retained: Vec<u32>,
    calls: BTreeMap<&'static str, u64>,
    faults: Vec<Fault>,
    unmapped_under_work: u64,
}

struct Fault {
    function: &'static str,
    /// Calls until it strikes; strikes at zero.
    left: u64,
    code: Code,
}

thread_local! {
    static DRIVER: RefCell<Option<Fake>> = const { RefCell::new(None) };
    /// The contexts that are current on the thread, the innermost last. A context is a GPU's ordinal and
    /// one more; zero, the null context, may be pushed too.
    static CONTEXTS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    static CAPTURE_MODE: Cell<u32> = const { Cell::new(CAPTURE_GLOBAL) };
}

impl Fake {
    /// A driver that nothing was taken from yet, and makes it this thread's.
    pub fn new(config: Config) -> Fake {
        let state = State {
            config,
            initialized: false,
            memory: Memory::new(config),
            streams: Streams::default(),
            retained: vec![0; config.gpus as usize],
            calls: BTreeMap::new(),
            faults: Vec::new(),
            unmapped_under_work: 0,
        };
        let fake = Fake { shared: Arc::new(Shared { state: Mutex::new(state), finished: Condvar::new() }) };
        fake.attach();
        fake
    }

    /// This thread's driver; one of the default configuration where it has none.
    pub fn of_this_thread() -> Fake {
        DRIVER.with_borrow(Option::clone).unwrap_or_else(|| Fake::new(Config::default()))
    }

    /// Makes it this thread's.
    pub fn attach(&self) {
        DRIVER.set(Some(self.clone()));
    }

    /// What its GPUs are like.
    pub fn config(&self) -> Config {
        self.state().config
    }

    /// Its functions, loaded. They call the driver of the thread they are called on.
    pub fn driver(&self) -> Arc<Driver> {
        // SAFETY: each function of the table does what NVIDIA's documentation says of its namesake, as far
        // as this crate uses it; what it does not do it refuses.
        unsafe { Driver::from_functions(functions::TABLE) }
    }

    /// Makes the `nth` call of a function from now on, 1 being the next, return `code` and do nothing.
    /// `function` is the C name, such as "cuMemMap".
    pub fn fail(&self, function: &'static str, nth: u64, code: Code) {
        assert!(nth > 0, "calls are counted from one");
        self.state().faults.push(Fault { function, left: nth - 1, code });
    }

    /// How often a function was called.
    pub fn calls(&self, function: &str) -> u64 {
        self.state().calls.get(function).copied().unwrap_or(0)
    }

    /// How often any function was called.
    pub fn all_calls(&self) -> u64 {
        self.state().calls.values().sum()
    }

    /// Physical memory in use on the GPUs, bytes: what a GPU's own count would show.
    pub fn held_bytes(&self) -> u64 {
        self.state().memory.held_bytes()
    }

    /// Physical memory in use on the host, bytes.
    pub fn host_bytes(&self) -> u64 {
        self.state().memory.host_bytes()
    }

    /// Host memory that is registered, bytes.
    pub fn registered_bytes(&self) -> u64 {
        self.state().memory.registered_bytes()
    }

    /// Reservations and allocations of address space.
    pub fn ranges(&self) -> usize {
        self.state().memory.ranges()
    }

    /// How often the primary context of a GPU is retained.
    pub fn retained(&self, ordinal: u32) -> u32 {
        self.state().retained[ordinal as usize]
    }

    /// The contexts current on this thread, the innermost last: for each the ordinal of its GPU and one
    /// more, zero for none.
    pub fn contexts(&self) -> Vec<usize> {
        CONTEXTS.with_borrow(Vec::clone)
    }

    /// Puts a context on this thread as an application would.
    pub fn push_context(&self, context: usize) {
        CONTEXTS.with_borrow_mut(|contexts| contexts.push(context));
    }

    /// This thread's capture mode.
    pub fn capture_mode(&self) -> u32 {
        CAPTURE_MODE.get()
    }

    /// Says that `stream` is being captured, or no longer.
    pub fn capture(&self, stream: Stream, on: bool) {
        self.state().streams.capture(stream, on);
    }

    /// Queues work on `stream` that takes no time once its turn comes: a kernel, as far as order goes.
    pub fn launch(&self, stream: Stream) {
        self.state().streams.launch(stream);
        self.run_queues();
    }

    /// As [`launch`](Fake::launch), for a kernel that uses `bytes` from `address`: until it has run, no mapping
    /// there may be undone.
    pub fn launch_using(&self, stream: Stream, address: Address, bytes: u64) {
        self.state().streams.launch_using(stream, address, bytes);
        self.run_queues();
    }

    /// How many unmappings, and ends of registrations, took addresses away that queued work used: faults on a real
    /// GPU.
    pub fn unmapped_under_work(&self) -> u64 {
        self.state().unmapped_under_work
    }

    /// Keeps what is queued on `stream` from running.
    pub fn hold(&self, stream: Stream) {
        self.state().streams.hold(stream, true);
    }

    /// Lets what is queued on `stream` run again.
    pub fn let_go(&self, stream: Stream) {
        self.state().streams.hold(stream, false);
        self.run_queues();
    }

    /// Runs all that may run, host functions outside the lock, as they may call the test's own code.
    fn run_queues(&self) {
        loop {
            let function = {
                let state = &mut *self.state();
                state.streams.run(&state.memory)
            };
            self.shared.finished.notify_all();
            match function {
                Some(function) => function.call(),
                None => return,
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until(&self, mut done: impl FnMut(&State) -> bool) {
        let mut state = self.state();
        while !done(&state) {
            state = self.shared.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What a function asks before it begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Nothing.
    Nothing,
    /// That `cuInit` was called.
    Init,
    /// A current context.
    Context,
    /// A current context, and that it could break no capture.
    Memory,
}

/// Serves one call: counts it, lets it fail if it is to, checks what it needs.
fn serve(function: &'static str, needs: Needs, body: impl FnOnce(&mut State) -> Result<(), Code>) -> Code {
    let Some(fake) = DRIVER.with_borrow(Option::clone) else { return NOT_INITIALIZED };
    let mut state = fake.state();
    *state.calls.entry(function).or_insert(0) += 1;
    if let Some(code) = state.fault(function) {
        return code;
    }
    let context = current();
    if needs != Needs::Nothing && !state.initialized {
        return NOT_INITIALIZED;
    }
    if matches!(needs, Needs::Context | Needs::Memory) {
        let alive = context.checked_sub(1).is_some_and(|gpu| state.retained[gpu] > 0);
        if !alive {
            return INVALID_CONTEXT;
        }
    }
    if needs == Needs::Memory && state.streams.any_capturing() && CAPTURE_MODE.get() != CAPTURE_RELAXED {
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    match body(&mut state) {
        Ok(()) => SUCCESS,
        Err(code) => code,
    }
}

impl State {
    fn fault(&mut self, function: &str) -> Option<Code> {
        let mut struck = None;
        self.faults.retain_mut(|fault| {
            if fault.function != function {
                return true;
            }
            if fault.left == 0 && struck.is_none() {
                struck = Some(fault.code);
                return false;
            }
            fault.left = fault.left.saturating_sub(1);
            true
        });
        struck
    }

    /// The GPU with this handle.
    fn gpu(&self, handle: i32) -> Result<usize, Code> {
        let index = usize::try_from(handle).ok().filter(|&index| index < self.retained.len());
        index.ok_or(crate::driver::INVALID_DEVICE)
    }
}

/// The context that is current on this thread; zero for none.
fn current() -> usize {
    CONTEXTS.with_borrow(|contexts| contexts.last().copied()).unwrap_or(0)
}

/// The context of a GPU, as its users see it.
fn context_of(gpu: usize) -> Context {
    std::ptr::without_provenance_mut(gpu + 1)
}

#[cfg(test)]
mod tests;

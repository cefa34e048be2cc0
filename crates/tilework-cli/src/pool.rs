//! One pool for several models: the weights of each are a group, everything else belongs to none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tilework::device::Calls;
use tilework::manager::{Stream, Usage};
use tilework::shared::{GroupId, Residence, Shared};
use tilework::{Error, Result};
use tilework_ort::table::Figures;
use tilework_ort::weights::is_weight;
use tilework_ort::{Place, Source};

/// What ONNX Runtime has its memory from; a copy stays with whoever looks after it.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    shared: Shared,
    place: Place,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The group of the model that is being loaded.
    loading: Option<GroupId>,
    /// What that group would have had with the request that it was refused first, bytes.
    lacked: Option<u64>,
    /// The groups to look at after each request and free, if any.
    watched: Vec<GroupId>,
    moments: Vec<Moment>,
}

/// What was live and held at a moment, and which groups were on the device.
#[derive(Clone)]
pub struct Moment {
    pub usage: Usage,
    /// By the group's place among those that are watched.
    pub here: Vec<bool>,
}

impl Pool {
    /// A pool of the memory of `place`.
    pub fn new(shared: Shared, place: Place) -> Pool {
        Pool(Arc::new(Inner { shared, place, state: Mutex::default() }))
    }

    pub fn shared(&self) -> &Shared {
        &self.0.shared
    }

    /// Has `load` request its weights for a group. Also what the group would have had, bytes, with a request that it was
    /// refused for want of memory.
    pub fn load<R>(&self, group: GroupId, load: impl FnOnce() -> R) -> (R, Option<u64>) {
        self.state().loading = Some(group);
        let loaded = load();
        let mut state = self.state();
        state.loading = None;
        (loaded, state.lacked.take())
    }

    /// What streams have that is no group's, in use or free, bytes.
    pub fn apart(&self) -> u64 {
        let streams = self.shared().stats().streams;
        streams.iter().filter(|stream| stream.group.is_none()).map(|stream| stream.held).sum()
    }

    /// Keeps a moment now and after each request and free, until [`Pool::unwatch`].
    pub fn watch(&self, groups: &[GroupId]) {
        self.state().watched = groups.to_vec();
        self.look();
    }

    /// Ends [`Pool::watch`] with one more moment, and returns them.
    pub fn unwatch(&self) -> Vec<Moment> {
        self.look();
        let mut state = self.state();
        state.watched.clear();
        std::mem::take(&mut state.moments)
    }

    fn look(&self) {
        let mut state = self.state();
        if state.watched.is_empty() {
            return;
        }
        let is_here =
            |&group: &GroupId| self.shared().residence(group).is_ok_and(|r| r != Residence::Evicted);
        let here = state.watched.iter().map(is_here).collect();
        state.moments.push(Moment { usage: self.shared().usage(), here });
    }

    fn serve(&self, bytes: u64, stream: Stream) -> Result<u64> {
        let loading = self.state().loading;
        let Some(group) = loading.filter(|_| is_weight(self.0.place, bytes, stream)) else {
            return self.shared().alloc_guest(bytes, stream);
        };
        self.shared().alloc_for(group, bytes, stream).inspect_err(|error| {
            if let (Error::OutOfMemory { request, .. }, Ok(stats)) = (error, self.shared().group_stats(group))
            {
                self.state().lacked.get_or_insert(stats.live + request);
            }
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Pool {
    fn alloc(&mut self, bytes: u64, stream: Stream) -> Result<u64> {
        let served = self.serve(bytes, stream);
        self.look();
        served
    }

    fn free(&mut self, address: u64) -> Result<()> {
        self.shared().free(address)?;
        self.look();
        Ok(())
    }

    fn end_of_execution(&mut self) -> Result<()> {
        self.shared().end_of_execution()
    }

    fn trim(&mut self) -> Result<u64> {
        self.shared().trim()
    }

    fn figures(&self) -> Figures {
        let stats = self.shared().stats();
        Figures { usage: stats.usage, allocations: stats.allocations }
    }

    fn calls(&self) -> Calls {
        self.shared().calls()
    }

    fn reset_peaks(&mut self) {
        self.shared().reset_peaks();
    }

    fn check_invariants(&self) {
        self.shared().check_invariants();
    }
}

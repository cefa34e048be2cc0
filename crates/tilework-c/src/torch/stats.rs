//! The figures of `torch.cuda.memory_stats()`.
//!
//! PyTorch's words for ours: *requested* and *allocated* bytes are live ones, *active* are these and what
//! waits for a stream, *reserved* are held, *inactive split* are held and not active. It keeps requests
//! below 1 MiB in a pool of their own, which is why its figures come three times; what we hold serves both,
//! and is told as the large pool's.

use tilework::shared::Totals;

/// Numbers in [`DeviceStats`].
pub const FIGURES: usize = size_of::<DeviceStats>() / size_of::<i64>();

const _: () = assert!(FIGURES == 122);

/// `c10::CachingAllocator::Stat`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stat {
    pub current: i64,
    pub peak: i64,
    /// What it grew by, in all.
    pub allocated: i64,
    /// What it shrank by, in all.
    pub freed: i64,
}

/// `c10::CachingAllocator::StatArray`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub all: Stat,
    pub small: Stat,
    pub large: Stat,
}

/// `c10::CachingDeviceAllocator::DeviceStats` of PyTorch 2.11.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceStats {
    pub allocation: Stats,
    pub segment: Stats,
    pub active: Stats,
    pub inactive_split: Stats,
    pub allocated_bytes: Stats,
    pub reserved_bytes: Stats,
    pub active_bytes: Stats,
    pub inactive_split_bytes: Stats,
    pub requested_bytes: Stats,
    pub num_alloc_retries: i64,
    pub num_ooms: i64,
    pub oversize_allocations: Stat,
    pub oversize_segments: Stat,
    pub num_sync_all_streams: i64,
    pub num_device_alloc: i64,
    pub num_device_free: i64,
    pub max_split_size: i64,
}

/// Requests below this are PyTorch's small ones, bytes.
const LARGE: u64 = 1 << 20;

/// What is counted request by request, since the manager does not tell sizes apart.
#[derive(Debug, Default)]
pub struct Counters {
    requests: Stats,
    bytes: Stats,
    /// Bytes given back to the GPU when the program asked for it.
    released: i64,
    /// What the manager told when what only grows was reset: counts begin there.
    since: Totals,
    /// Bytes that were held and not active then.
    inactive_since: i64,
}

impl Stat {
    /// Of what was `before`, and of which `freed` at least are known to have gone meanwhile.
    fn since(before: i64, current: i64, peak: i64, freed: i64) -> Stat {
        let grown = current - before;
        let allocated = (grown + freed).max(0);
        Stat { current, peak, allocated, freed: allocated - grown }
    }

    fn grow(&mut self, by: i64) {
        self.current += by;
        self.allocated += by;
        self.peak = self.peak.max(self.current);
    }

    fn shrink(&mut self, by: i64) {
        self.current -= by;
        self.freed += by;
    }
}

impl Stats {
    fn parts(&mut self, bytes: u64) -> [&mut Stat; 2] {
        [&mut self.all, if bytes < LARGE { &mut self.small } else { &mut self.large }]
    }

    fn every(&mut self) -> [&mut Stat; 3] {
        [&mut self.all, &mut self.small, &mut self.large]
    }

    /// Figures of what has no small part.
    fn whole(stat: Stat) -> Stats {
        Stats { all: stat, small: Stat::default(), large: stat }
    }
}

impl Counters {
    /// A request was served.
    pub fn alloc(&mut self, bytes: u64) {
        self.requests.parts(bytes).into_iter().for_each(|stat| stat.grow(1));
        self.bytes.parts(bytes).into_iter().for_each(|stat| stat.grow(bytes as i64));
    }

    /// A block was taken back.
    pub fn free(&mut self, bytes: u64) {
        self.requests.parts(bytes).into_iter().for_each(|stat| stat.shrink(1));
        self.bytes.parts(bytes).into_iter().for_each(|stat| stat.shrink(bytes as i64));
    }

    /// Memory was given back.
    pub fn released(&mut self, bytes: u64) {
        self.released += bytes as i64;
    }

    /// Makes the peaks start again.
    pub fn reset_peaks(&mut self) {
        for stat in self.requests.every().into_iter().chain(self.bytes.every()) {
            stat.peak = stat.current;
        }
    }

    /// Makes what only grows start again.
    pub fn reset_accumulated(&mut self, totals: &Totals) {
        for stat in self.requests.every().into_iter().chain(self.bytes.every()) {
            (stat.allocated, stat.freed) = (0, 0);
        }
        self.released = 0;
        self.since = *totals;
        self.inactive_since = self.inactive(totals);
    }

    /// Bytes held that no request has, and that do not wait for a stream.
    fn inactive(&self, totals: &Totals) -> i64 {
        (totals.usage.held as i64 - totals.pending as i64 - self.bytes.all.current).max(0)
    }

    /// Everything, with what the manager knows.
    pub fn report(&self, totals: &Totals) -> DeviceStats {
        let (usage, since) = (&totals.usage, &self.since);
        let count = |now: u64, then: u64| now.saturating_sub(then) as i64;
        let (held, peak_held) = (usage.held as i64, usage.peak_held as i64);
        let pending = totals.pending as i64;
        let mut active_bytes = self.bytes;
        for stat in [&mut active_bytes.all, &mut active_bytes.large] {
            stat.current += pending;
            stat.peak = stat.peak.max(stat.current);
        }
        let reserved = Stat::since(since.usage.held as i64, held, peak_held, self.released);
        let inactive = self.inactive(totals);
        let inactive = Stat::since(self.inactive_since, inactive, inactive, 0);
        DeviceStats {
            allocation: self.requests,
            active: self.requests,
            allocated_bytes: self.bytes,
            requested_bytes: self.bytes,
            active_bytes,
            reserved_bytes: Stats::whole(reserved),
            inactive_split_bytes: Stats::whole(inactive),
            num_alloc_retries: count(totals.retries, since.retries),
            num_ooms: count(totals.ooms, since.ooms),
            num_device_alloc: count(totals.device_calls.create, since.device_calls.create),
            num_device_free: count(totals.device_calls.release, since.device_calls.release),
            max_split_size: -1,
            ..DeviceStats::default()
        }
    }
}

#[cfg(test)]
mod tests;

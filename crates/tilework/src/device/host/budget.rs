//! How many mappings the kernel lets a process have: `vm.max_map_count`.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

/// The kernel's own default, for systems that do not tell.
const DEFAULT_MAX_MAP_COUNT: u64 = 65_530;

/// The mappings that all host devices sharing this budget have, and how many they may have.
#[derive(Debug)]
pub(super) struct MapBudget {
    limit: u64,
    used: AtomicU64,
}

impl MapBudget {
    pub(super) fn new(limit: u64) -> MapBudget {
        MapBudget { limit, used: AtomicU64::new(0) }
    }

    /// The budget of this process. A sixteenth of what the kernel allows is left to everything else in
    /// it: libraries, stacks, other allocators, and the kernel's own splitting while it replaces a part.
    pub(super) fn of_process() -> Arc<MapBudget> {
        static PROCESS: LazyLock<Arc<MapBudget>> = LazyLock::new(|| {
            let max = fs::read_to_string("/proc/sys/vm/max_map_count")
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(DEFAULT_MAX_MAP_COUNT);
            Arc::new(MapBudget::new(max - max / 16))
        });
        Arc::clone(&PROCESS)
    }

    /// Takes `gained` mappings in exchange for `lost`.
    ///
    /// # Errors
    /// The limit, when it would be exceeded; nothing is exchanged then.
    pub(super) fn take(&self, lost: u64, gained: u64) -> Result<(), u64> {
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            let next = used - lost + gained;
            (next <= self.limit || gained <= lost).then_some(next)
        });
        taken.map(|_| ()).map_err(|_| self.limit)
    }

    /// Gives `lost` mappings back, in exchange for `kept`. Unmapping the middle of a run leaves more
    /// entries than it found; memory must always go back, so this may eat into what was left to others.
    pub(super) fn give(&self, lost: u64, kept: u64) {
        self.used.fetch_add(kept.wrapping_sub(lost), Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_and_giving_back_always_succeeds() {
        let budget = MapBudget::new(4);
        budget.take(0, 3).unwrap();
        assert_eq!(budget.take(0, 2), Err(4));
        assert_eq!(budget.used(), 3);
        budget.take(1, 2).unwrap();
        budget.give(1, 3);
        assert_eq!(budget.used(), 6);
        assert_eq!(budget.take(0, 1), Err(4));
        budget.take(1, 1).unwrap();
        budget.give(6, 0);
        assert_eq!(budget.used(), 0);
    }
}

//! Limits of the system and of the process that Tilework can meet.

use serde::Serialize;

use crate::units;

/// A limit and what is used of it.
#[derive(Serialize)]
pub struct Limit {
    pub name: String,
    pub value: Amount,
    /// In use now: by this process, of memory and disks by all.
    pub used: Option<Amount>,
    /// What it bounds.
    pub bounds: &'static str,
    /// What to do, where it is low.
    pub fix: Option<String>,
}

/// How much.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "no limits are read elsewhere"))]
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Amount {
    Bytes(u64),
    Count(u64),
    Supported(bool),
    Unlimited,
}

impl Amount {
    pub fn text(self) -> String {
        match self {
            Amount::Bytes(bytes) => units::bytes(bytes),
            Amount::Count(count) => units::count(count),
            Amount::Supported(true) => "yes".to_owned(),
            Amount::Supported(false) => "no".to_owned(),
            Amount::Unlimited => "unlimited".to_owned(),
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub fn read() -> Vec<Limit> {
    Vec::new()
}

#[cfg(target_os = "linux")]
pub use self::linux::read;

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;
    use std::path::Path;

    use rustix::fs::{MemfdFlags, memfd_create, statvfs};
    use rustix::process::{Resource, getrlimit};

    use super::{Amount, Limit};
    use crate::engine::kib_of;
    use crate::units;

    /// What the kernel has from the start.
    const DEFAULT_MAP_COUNT: u64 = 65_530;
    /// The host's tile.
    const TILE_BYTES: u64 = 64 << 10;
    /// What should be free of memory and of disks.
    const ENOUGH_BYTES: u64 = 1 << 30;

    /// All limits that could be read.
    pub fn read() -> Vec<Limit> {
        let mut limits: Vec<Limit> = [maps(), memory(), group()].into_iter().flatten().collect();
        limits.extend([address_space(), locked(), memfd()]);
        limits.extend(disk());
        limits
    }

    fn number(path: impl AsRef<Path>) -> Option<u64> {
        fs::read_to_string(path).ok()?.trim().parse().ok()
    }

    /// Of what is wanted for all of the host's memory in single tiles, a power of two above that.
    fn maps() -> Option<Limit> {
        let value = number("/proc/sys/vm/max_map_count")?;
        let used = fs::read_to_string("/proc/self/maps").ok().map(|maps| maps.lines().count() as u64);
        let wanted = kib_of("/proc/meminfo", "MemTotal:").unwrap_or(0) / TILE_BYTES;
        let wanted = wanted.max(DEFAULT_MAP_COUNT).next_power_of_two();
        Some(Limit {
            name: "vm.max_map_count".to_owned(),
            value: Amount::Count(value),
            used: used.map(Amount::Count),
            bounds: "runs of tiles that host and software Vulkan map",
            fix: (value < DEFAULT_MAP_COUNT).then(|| {
                format!("raise it with sysctl -w vm.max_map_count={wanted}, and in /etc/sysctl.d to keep it")
            }),
        })
    }

    fn memory() -> Option<Limit> {
        let total = kib_of("/proc/meminfo", "MemTotal:")?;
        let available = kib_of("/proc/meminfo", "MemAvailable:")?;
        Some(Limit {
            name: "memory".to_owned(),
            value: Amount::Bytes(total),
            used: Some(Amount::Bytes(total.saturating_sub(available))),
            bounds: "what host holds, and weights that left a GPU",
            fix: (available < ENOUGH_BYTES)
                .then(|| "end other programs, or hold less with --limit and --scale".to_owned()),
        })
    }

    /// The tightest of the process's control group and of those that it is in.
    fn group() -> Option<Limit> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let root = Path::new("/sys/fs/cgroup");
        let of =
            |group: &Path| Some((number(group.join("memory.max"))?, number(group.join("memory.current"))));
        let within = root.join(path);
        let (value, used) = within.ancestors().take_while(|g| g.starts_with(root)).filter_map(of).min()?;
        let free = value.saturating_sub(used.unwrap_or(0));
        Some(Limit {
            name: "memory.max of the control group".to_owned(),
            value: Amount::Bytes(value),
            used: used.map(Amount::Bytes),
            bounds: "memory of this process: beyond it the kernel ends it",
            fix: (free < ENOUGH_BYTES)
                .then(|| "raise it (docker run --memory), and stay below it with --limit".to_owned()),
        })
    }

    fn resource(resource: Resource) -> Amount {
        getrlimit(resource).current.map_or(Amount::Unlimited, Amount::Bytes)
    }

    fn address_space() -> Limit {
        let value = resource(Resource::As);
        let wanted = kib_of("/proc/meminfo", "MemTotal:").unwrap_or(0).saturating_mul(4);
        let is_low = matches!(value, Amount::Bytes(bytes) if bytes < wanted);
        Limit {
            name: "address space (ulimit -v)".to_owned(),
            value,
            used: kib_of("/proc/self/status", "VmSize:").map(Amount::Bytes),
            bounds: "ranges that host and GPU drivers reserve",
            fix: is_low.then(|| {
                let wanted = units::bytes(wanted);
                format!("lift it with ulimit -v unlimited: {wanted}, four times the memory, is the least that serves well")
            }),
        }
    }

    fn locked() -> Limit {
        let value = resource(Resource::Memlock);
        Limit {
            name: "locked memory (ulimit -l)".to_owned(),
            value,
            used: kib_of("/proc/self/status", "VmLck:").map(Amount::Bytes),
            bounds: "pinned memory (--keep pinned=), where a driver counts it",
            fix: matches!(value, Amount::Bytes(0))
                .then(|| "raise it with ulimit -l, or memlock in limits.conf".to_owned()),
        }
    }

    fn memfd() -> Limit {
        let supported = memfd_create("tilework-doctor", MemfdFlags::CLOEXEC).is_ok();
        Limit {
            name: "memfd_create".to_owned(),
            value: Amount::Supported(supported),
            used: None,
            bounds: "the device host",
            fix: (!supported).then(|| super::super::HOST_FIX.to_owned()),
        }
    }

    fn disk() -> Option<Limit> {
        let folder = std::env::temp_dir();
        let disk = statvfs(&folder).ok()?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let total = disk.f_blocks.saturating_mul(disk.f_frsize);
        Some(Limit {
            name: format!("disk of {}", folder.display()),
            value: Amount::Bytes(total),
            used: Some(Amount::Bytes(total.saturating_sub(free))),
            bounds: "files of weights that left a GPU (--keep DIR), models that are converted",
            fix: (free < ENOUGH_BYTES)
                .then(|| "make room there, or set TMPDIR to a folder on another disk".to_owned()),
        })
    }
}

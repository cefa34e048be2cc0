//! Whether the system has memory left. `fallocate` alone would not say no: the kernel ends a process
//! before it lets the last page be refused.

use std::fs;

use rustix::system::sysinfo;

/// Whether `bytes` of memory can be had without driving the system out of memory. Yes where the system
/// does not say.
pub(super) fn bytes_available(bytes: u64) -> bool {
    let info = sysinfo();
    let free = info.freeram.saturating_mul(u64::from(info.mem_unit));
    // Free memory is the cheap half of the answer, and mostly enough of one. The rest can be reclaimed.
    bytes <= free || meminfo().is_none_or(|available| bytes <= available)
}

/// Memory that can be had without swapping, and swap, bytes.
fn meminfo() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').trim_end_matches("kB").trim().parse::<u64>().ok()
    };
    Some((kib("MemAvailable")? + kib("SwapFree").unwrap_or(0)) << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_available_and_an_exbibyte_is_not() {
        assert!(bytes_available(4096));
        assert!(!bytes_available(1 << 60));
        assert!(meminfo().is_some_and(|bytes| bytes > 0));
    }
}

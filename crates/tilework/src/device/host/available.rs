//! Whether the system has memory left. `fallocate` alone would not say no: the kernel ends a process
//! before it lets the last page be refused. Pages of a memfd are nobody's, so it would end others first.

use std::fs;

use rustix::system::sysinfo;

/// This part of the system's memory is left to others.
const MARGIN: u64 = 32;

/// Whether `bytes` of memory can be had without driving the system out of memory. Yes where the system
/// does not say.
pub(super) fn bytes_available(bytes: u64) -> bool {
    let info = sysinfo();
    let in_bytes = |units: u64| units.saturating_mul(u64::from(info.mem_unit));
    let needed = bytes.saturating_add(in_bytes(info.totalram) / MARGIN);
    // Free memory is the cheap half of the answer, and mostly enough of one. The rest can be reclaimed.
    needed <= in_bytes(info.freeram) || meminfo().is_none_or(|available| needed <= available)
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
        let available = meminfo().expect("the system says");
        assert!(!bytes_available(available), "nothing would be left to others");
    }
}

//! What the host has left. Linux promises more memory than there is, and ends a process that takes it at its word; so
//! whoever is about to take much asks first.

/// Bytes that the process can still take; `None` where the system does not tell.
#[cfg(target_os = "linux")]
pub fn available() -> Option<u64> {
    use std::path::Path;

    let text = |path: &Path| std::fs::read_to_string(path).ok();
    let system = text(Path::new("/proc/meminfo")).and_then(|text| of_system(&text));
    let root = Path::new("/sys/fs/cgroup");
    let groups = text(Path::new("/proc/self/cgroup"));
    let group =
        groups.as_deref().and_then(|groups| groups.lines().find_map(|line| line.strip_prefix("0::/")));
    let within = group.map(|group| root.join(group));
    let all = within.iter().flat_map(|path| path.ancestors()).take_while(|path| path.starts_with(root));
    let of = |path: &Path| {
        let read = |name| text(&path.join(name));
        of_group(&read("memory.max")?, &read("memory.current")?, &read("memory.stat")?)
    };
    all.filter_map(of).chain(system).min()
}

#[cfg(not(target_os = "linux"))]
pub fn available() -> Option<u64> {
    None
}

/// Of `/proc/meminfo`: what there is without pushing anything out.
#[cfg(any(target_os = "linux", test))]
fn of_system(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// Of a control group's files: what it may take beside what it has, of which pages of files go when there is need.
/// `None` for one without a limit.
#[cfg(any(target_os = "linux", test))]
fn of_group(max: &str, current: &str, stat: &str) -> Option<u64> {
    let max: u64 = max.trim().parse().ok()?;
    let current: u64 = current.trim().parse().ok()?;
    let of = |name| stat.lines().find_map(|line| line.strip_prefix(name))?.trim().parse::<u64>().ok();
    let files = of("inactive_file ")?.saturating_add(of("active_file ")?);
    Some(max.saturating_sub(current.saturating_sub(files)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_read() {
        let text = "MemTotal:       24608924 kB\nMemFree:  12 kB\nMemAvailable:   23000001 kB\n";
        assert_eq!(of_system(text), Some(23_000_001 << 10));
        assert_eq!(of_system("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_group_may_take_what_its_limit_leaves() {
        let stat = "anon 300\ninactive_file 200\nactive_file 7\n";
        assert_eq!(of_group("1000\n", "700\n", stat), Some(507));
        assert_eq!(of_group("max\n", "700\n", stat), None);
        assert_eq!(of_group("100\n", "700\n", stat), Some(0));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_host_tells() {
        assert!(available().is_some_and(|bytes| bytes > 0));
    }
}

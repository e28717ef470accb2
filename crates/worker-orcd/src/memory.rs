//! What this process holds in memory, and what the machine has left.

use std::fs;

/// Bytes of memory that this process has resident: its own and mapped files' together.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    kib_line(&status, "VmRSS:")
}

/// Bytes that this process could still take without pushing anything but caches out: the machine's, or less where a
/// control group allows less. `None` where the machine cannot tell.
pub(crate) fn available_bytes() -> Option<u64> {
    let machine = kib_line(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    Some(match cgroup_available("/sys/fs/cgroup") {
        Some(group) => machine.min(group),
        None => machine,
    })
}

/// What the control group mounted at `root` (version 2: the one a container sees as its own) has left, where it has a
/// limit. Cached file pages count as left: they go when memory is needed.
fn cgroup_available(root: &str) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(format!("{root}/{name}")).ok();
    let limit: u64 = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    let stat = read("memory.stat")?;
    let cached: u64 = stat
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(key, _)| matches!(*key, "inactive_file" | "active_file"))
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum();
    Some(limit.saturating_sub(used.saturating_sub(cached)))
}

/// The value of `key` in a file of `Key:   123 kB` lines, in bytes.
fn kib_line(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    value.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// `1.3 GB`: decimal units, as file sizes and memory modules are sold.
pub(crate) fn shown(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        1_000_000_000..1_000_000_000_000 => format!("{:.2} GB", bytes as f64 / 1e9),
        _ => format!("{:.2} TB", bytes as f64 / 1e12),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_tables() {
        assert_eq!(kib_line("VmPeak:  9 kB\nVmRSS:\t    1234 kB\n", "VmRSS:"), Some(1234 * 1024));
        assert_eq!(kib_line("VmRSS:\t    many kB\n", "VmRSS:"), None);
        assert_eq!(kib_line("", "VmRSS:"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_holds_less_than_the_machine_has() {
        assert!(resident_bytes().unwrap() > 100_000);
        assert!(available_bytes().unwrap() > 1_000_000);
    }

    #[test]
    fn a_control_group_counts_its_cached_files_as_left() {
        let group = tempfile::tempdir().unwrap();
        let root = group.path().to_str().unwrap();
        assert_eq!(cgroup_available(root), None);
        fs::write(group.path().join("memory.current"), "700\n").unwrap();
        fs::write(group.path().join("memory.stat"), "anon 300\nactive_file 100\ninactive_file 200\n").unwrap();
        fs::write(group.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(cgroup_available(root), None);
        fs::write(group.path().join("memory.max"), "1000\n").unwrap();
        assert_eq!(cgroup_available(root), Some(600));
    }

    #[test]
    fn shows_sizes_in_decimal_units() {
        let sizes = [999, 1_500, 12_345_678, 1_260_000_000].map(shown);
        assert_eq!(sizes, ["999 B", "1.5 kB", "12.3 MB", "1.26 GB"]);
    }
}

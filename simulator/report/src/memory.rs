//! Memory in bytes, as Linux keeps account of it; where the system tells nothing, nothing.

use std::fs;

/// What this process holds.
pub fn resident_bytes() -> Option<u64> {
    account("/proc/self/status", "VmRSS:")
}

/// The most that this process ever held.
pub fn peak_resident_bytes() -> Option<u64> {
    account("/proc/self/status", "VmHWM:")
}

/// What the machine could still give to processes.
pub fn available_bytes() -> Option<u64> {
    account("/proc/meminfo", "MemAvailable:")
}

/// What the machine has.
pub fn machine_bytes() -> Option<u64> {
    account("/proc/meminfo", "MemTotal:")
}

fn account(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1_024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_holds_less_than_it_held_at_most_and_the_machine_has_more() {
        let [resident, peak, machine] = [resident_bytes(), peak_resident_bytes(), machine_bytes()]
            .map(|bytes| bytes.expect("Linux tells"));
        assert!(100_000 < resident && resident <= peak && peak < machine, "{resident} {peak} {machine}");
        assert!(available_bytes().is_some_and(|available| available < machine));
    }
}

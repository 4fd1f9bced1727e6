//! What a process has cost: processor time and memory, as Linux keeps account of them.

use std::fs;
use std::ops::AddAssign;

use fleetkey_report::memory;
use serde::{Deserialize, Serialize};

/// The account of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Time on a processor, all threads, in microseconds. Threads that have ended are left out.
    pub cpu_microseconds: u64,
    /// Memory in use, in bytes.
    pub resident_bytes: u64,
    /// The most that it ever was, in bytes.
    pub peak_resident_bytes: u64,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.cpu_microseconds += other.cpu_microseconds;
        self.resident_bytes += other.resident_bytes;
        self.peak_resident_bytes += other.peak_resident_bytes;
    }
}

impl Usage {
    /// Of this process; zeros where the system tells nothing.
    pub fn of_this_process() -> Self {
        let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let nanoseconds: u64 = threads
            .filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok())
            .filter_map(|text| text.split_ascii_whitespace().next()?.parse::<u64>().ok())
            .sum();
        Self {
            cpu_microseconds: nanoseconds / 1_000,
            resident_bytes: memory::resident_bytes().unwrap_or(0),
            peak_resident_bytes: memory::peak_resident_bytes().unwrap_or(0),
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_cost_something() {
        let usage = Usage::of_this_process();
        assert!(usage.cpu_microseconds > 0 && usage.resident_bytes > 100_000, "{usage:?}");
        assert!(usage.peak_resident_bytes >= usage.resident_bytes, "{usage:?}");
    }
}

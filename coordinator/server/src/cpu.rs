//! What a thread has cost: its time on a CPU, as Linux keeps account of it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// The account of one thread.
#[derive(Debug, Clone)]
pub(crate) struct ThreadCpu {
    schedstat: PathBuf,
}

impl ThreadCpu {
    /// The account of the calling thread, where the system keeps one (`/proc/thread-self/schedstat`).
    pub(crate) fn of_this_thread() -> Option<Self> {
        let thread = fs::read_link("/proc/thread-self").ok()?;
        let account = Self { schedstat: PathBuf::from("/proc").join(thread).join("schedstat") };
        account.read().is_some().then_some(account)
    }

    /// Its time so far; `None` once the thread is gone.
    pub(crate) fn read(&self) -> Option<Duration> {
        let text = fs::read_to_string(&self.schedstat).ok()?;
        text.split_ascii_whitespace().next()?.parse().ok().map(Duration::from_nanos)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn work_is_accounted_to_the_thread_that_did_it() {
        let account = ThreadCpu::of_this_thread().unwrap();
        let before = account.read().unwrap();
        let mut digits = 0_u64;
        while account.read().unwrap() < before + Duration::from_millis(5) {
            digits = digits.wrapping_mul(31).wrapping_add(7);
        }
        assert!(account.read().unwrap() >= before + Duration::from_millis(5), "{digits}");
    }
}

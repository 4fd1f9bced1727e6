//! CPU time of a thread: what a piece of work costs, whoever else uses the machine.
//!
//! The MLS libraries spread their work with rayon. What is measured runs in a pool of one thread, so that nothing of it
//! happens elsewhere and idle workers count for nobody.

use std::sync::OnceLock;
use std::time::Duration;

use rayon::ThreadPool;
use rustix::time::{ClockId, clock_gettime};

static ALONE: OnceLock<ThreadPool> = OnceLock::new();

/// Does `work` on one thread, and says how much CPU time that took.
pub fn timed<T: Send>(work: impl FnOnce() -> T + Send) -> (Duration, T) {
    let pool = ALONE.get_or_init(|| {
        let name = |_| "measured".to_owned();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).thread_name(name).build();
        pool.expect("a thread can be started")
    });
    pool.install(|| {
        let before = cpu_of_this_thread();
        let done = work();
        (cpu_of_this_thread().saturating_sub(before), done)
    })
}

/// What the calling thread has cost so far.
pub fn cpu_of_this_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    #[test]
    fn work_that_spreads_over_threads_counts_in_full() {
        let spin = |_| (0..2_000_000_u64).fold(0, |sum: u64, number| std::hint::black_box(sum ^ number));
        let (one, _) = timed(|| spin(0));
        let (eight, _) = timed(|| (0..8).into_par_iter().map(spin).max());
        assert!(eight > one * 4, "eight times {one:?} was {eight:?}");
    }

    #[test]
    fn waiting_costs_nothing() {
        let (cpu, ()) = timed(|| {
            // Not to wait for something: the wait itself is what is measured.
            std::thread::sleep(Duration::from_millis(30));
        });
        assert!(cpu < Duration::from_millis(20), "{cpu:?}");
    }
}

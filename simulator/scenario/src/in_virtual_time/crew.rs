//! Threads for the many devices of a window, with their processor time told.
//!
//! Each is a pool of its own, of one thread: what the MLS library spreads over threads stays on the thread whose time is
//! counted. Reading a thread's time takes as long as many a device's whole work in a window, so that on the thread that drives
//! pieces are timed by the clock, and scaled by how much of the time the thread was on a processor at all.
//!
//! Leaves what is done to whoever gives the work.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fleetkey_report::cpu_of_this_thread;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// So many pieces are taken at a time.
const CHUNK: usize = 2;
/// Fewer pieces than this are not worth waking a second thread: most take tens of microseconds, as waking it does.
const WORTH_A_THREAD: usize = 8;

/// The threads: one that drives, and the others that help.
#[derive(Debug)]
pub(super) struct Crew {
    driver: ThreadPool,
    helpers: Vec<ThreadPool>,
}

impl Crew {
    /// As many threads as there are processors for this process.
    pub(super) fn new() -> anyhow::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let one = |name: &str| {
            let name = name.to_owned();
            ThreadPoolBuilder::new().num_threads(1).thread_name(move |_| name.clone()).build()
        };
        let helpers =
            (1..threads).map(|number| one(&format!("helper-{number}"))).collect::<Result<_, _>>()?;
        Ok(Self { driver: one("driver")?, helpers })
    }

    /// Does `work` on the thread that drives, and says which share of the time that thread was on a processor.
    pub(super) fn drive<T: Send>(&self, work: impl FnOnce() -> T + Send) -> (T, f64) {
        self.driver.install(|| {
            let (began, began_at) = (cpu_of_this_thread(), Instant::now());
            let done = work();
            let (cpu, elapsed) = (cpu_of_this_thread().saturating_sub(began), began_at.elapsed());
            (done, (cpu.as_secs_f64() / elapsed.as_secs_f64().max(1e-9)).min(1.0))
        })
    }

    /// Does `first` here, and `work` on each of `pieces`, here and on the other threads.
    pub(super) fn share<T: Send, D>(
        &self,
        pieces: &mut [T],
        first: impl FnOnce() -> D,
        work: impl Fn(&mut T) + Sync,
    ) -> Shared<D> {
        if pieces.len() < WORTH_A_THREAD || self.helpers.is_empty() {
            let done = first();
            let began = Instant::now();
            pieces.iter_mut().for_each(work);
            return Shared { done, own_elapsed: began.elapsed(), helped_cpu: Duration::ZERO };
        }
        let chunks = Mutex::new(pieces.chunks_mut(CHUNK));
        let take = || chunks.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work_on = || {
            while let Some(chunk) = take() {
                chunk.iter_mut().for_each(&work);
            }
        };
        let helped = Mutex::new(Duration::ZERO);
        let help = || {
            let began = cpu_of_this_thread();
            work_on();
            let cost = cpu_of_this_thread().saturating_sub(began);
            *helped.lock().unwrap_or_else(PoisonError::into_inner) += cost;
        };
        let (done, own_elapsed) = with_help(&self.helpers, &help, || {
            let done = first();
            let began = Instant::now();
            work_on();
            (done, began.elapsed())
        });
        Shared { done, own_elapsed, helped_cpu: helped.into_inner().unwrap_or_else(PoisonError::into_inner) }
    }
}

/// What became of shared work.
#[derive(Debug)]
pub(super) struct Shared<D> {
    /// What was done first.
    pub(super) done: D,
    /// How long this thread worked on pieces, by the clock.
    pub(super) own_elapsed: Duration,
    /// What pieces have cost on the other threads: processor time.
    pub(super) helped_cpu: Duration,
}

/// Does `own` here, and `help` on each of these threads; ends when all have.
fn with_help<D>(helpers: &[ThreadPool], help: &(dyn Fn() + Sync), own: impl FnOnce() -> D) -> D {
    match helpers.split_first() {
        None => own(),
        Some((helper, others)) => helper.in_place_scope(|scope| {
            scope.spawn(move |_| help());
            with_help(others, help, own)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_worked_on_once_and_its_cost_is_counted() {
        let crew = Crew::new().expect("threads can be started");
        for count in [0, 1, WORTH_A_THREAD, 1_000] {
            let mut pieces = vec![0_u64; count];
            let shared = crew.share(
                &mut pieces,
                || 7,
                |piece| {
                    *piece += 1;
                    std::hint::black_box(
                        (0..10_000_u64).fold(0, |sum, number| std::hint::black_box(sum ^ number)),
                    );
                },
            );
            assert_eq!(shared.done, 7);
            assert!(pieces.iter().all(|piece| *piece == 1));
            assert!(count == 0 || shared.own_elapsed + shared.helped_cpu > Duration::ZERO);
        }
    }
}

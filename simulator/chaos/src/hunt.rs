//! Many seeds, on every core.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};

use crate::run::{Options, Outcome, run};

/// Enough for the deepest decision in an unoptimised build.
const STACK_BYTES: usize = 16 * 1024 * 1024;

/// One seed's run.
#[derive(Debug, Clone)]
pub struct Hunted {
    /// What was run.
    pub options: Options,
    /// How it ended.
    pub outcome: Outcome,
}

/// Runs the `count` worlds that `world` tells by their number, on `threads` threads, until one fails or, when `goes_on`, all
/// of them. `done` hears of each as it ends, in no order.
pub fn hunt(
    world: &(dyn Fn(u64) -> Options + Sync),
    count: u64,
    threads: usize,
    goes_on: bool,
    done: &(dyn Fn(&Hunted) + Sync),
) -> Vec<Hunted> {
    let next = AtomicU64::new(0);
    let has_failed = AtomicU64::new(0);
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for number in 0..threads.max(1) {
            let body = || {
                while goes_on || has_failed.load(Ordering::Relaxed) == 0 {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    let options = world(number);
                    let outcome = run(&options);
                    let hunted = Hunted { options, outcome };
                    done(&hunted);
                    if hunted.outcome.violation.is_some() {
                        has_failed.store(1, Ordering::Relaxed);
                        failures.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(hunted);
                    }
                }
            };
            spawn_for_worlds(scope, format!("world-{number}"), body);
        }
    });
    let mut failures = failures.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    failures.sort_by_key(|hunted| hunted.options.seed);
    failures
}

/// A thread that worlds can run on, one after the other.
pub(crate) fn spawn_for_worlds<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: String,
    body: impl FnOnce() -> T + Send + 'scope,
) -> ScopedJoinHandle<'scope, T> {
    let on_one_core = || {
        // Sealing inside MLS is spread over threads otherwise, and every core has a world to itself.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
        debug_assert!(pool.is_ok(), "this thread has no pool yet");
        body()
    };
    thread::Builder::new()
        .name(name)
        .stack_size(STACK_BYTES)
        .spawn_scoped(scope, on_one_core)
        .expect("the system gives a thread")
}

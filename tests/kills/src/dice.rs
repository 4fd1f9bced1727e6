//! Choices from one seed. What the processes make of them is theirs: the same seed gives the same faults, not the
//! same run.

use std::time::Duration;

use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};

/// A source of choices.
#[derive(Debug, Clone)]
pub struct Dice(ChaCha12Rng);

impl Dice {
    /// The choices that follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha12Rng::seed_from_u64(seed))
    }

    /// A number below `end`; zero when there is none.
    pub fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.0.next_u64() % end as u64) as usize }
    }

    /// True in one of `n` cases.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A time below `most`, in milliseconds.
    pub fn time(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.0.next_u64() % most.max(1))
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, among: &'a [T]) -> Option<&'a T> {
        among.get(self.below(among.len()))
    }

    /// Up to `count` of them, in no order.
    pub fn some<T>(&mut self, count: usize, mut among: Vec<T>) -> Vec<T> {
        let mut chosen = Vec::new();
        while chosen.len() < count && !among.is_empty() {
            let at = self.below(among.len());
            chosen.push(among.swap_remove(at));
        }
        chosen
    }
}

//! Chance, from a seed: a stream of its own for each purpose, so that one more roll here moves nothing there.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};

/// A stream of chance.
#[derive(Debug, Clone)]
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    /// The stream of `seed` for `purpose`.
    pub(crate) fn of(seed: u64, purpose: &str, number: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_be_bytes());
        hash.update(number.to_be_bytes());
        hash.update(purpose.as_bytes());
        Self(ChaCha8Rng::from_seed(hash.finalize().into()))
    }

    /// For whoever wants a source of randomness.
    pub(crate) const fn rng(&mut self) -> &mut ChaCha8Rng {
        &mut self.0
    }

    /// One of `0..below`; 0 when there is none.
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        if below == 0 { 0 } else { self.0.next_u64() % below }
    }

    /// A number from 0 up to and without 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Whether something happens that has this probability.
    pub(crate) fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.unit() < probability
    }

    /// The time to the next arrival of a Poisson process with so many a second; none when there are none.
    pub(crate) fn next_arrival(&mut self, per_second: f64) -> Option<Duration> {
        let seconds = -(1.0 - self.unit()).ln() / per_second;
        (per_second > 0.0).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
    }

    /// So many of these, each as likely as any other, in their order.
    pub(crate) fn choose<T: Copy>(&mut self, from: &[T], count: usize) -> Vec<T> {
        let mut left = count.min(from.len());
        let mut chosen = Vec::with_capacity(left);
        for (at, item) in from.iter().enumerate() {
            if self.below((from.len() - at) as u64) < left as u64 {
                chosen.push(*item);
                left -= 1;
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_chosen_as_are_asked_for() {
        let from: Vec<u32> = (0..100).collect();
        let mut dice = Dice::of(1, "test", 0);
        for count in [0, 1, 37, 100] {
            assert_eq!(dice.choose(&from, count).len(), count);
        }
    }

    #[test]
    fn arrivals_are_as_many_as_the_rate_says() {
        let mut dice = Dice::of(1, "test", 0);
        let total: Duration = (0..10_000).filter_map(|_| dice.next_arrival(0.5)).sum();
        assert!((19_000..21_000).contains(&total.as_secs()), "{total:?}");
        assert_eq!(dice.next_arrival(0.0), None);
    }
}

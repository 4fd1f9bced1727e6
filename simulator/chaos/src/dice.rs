//! Chance, from a seed: a stream of its own for each purpose, so that one more roll here moves nothing there.

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};

/// A stream of chance.
#[derive(Debug, Clone)]
pub(crate) struct Dice(ChaCha20Rng);

impl Dice {
    /// The stream of `seed` for `purpose`.
    pub(crate) fn of(seed: u64, purpose: &str, number: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_be_bytes());
        hash.update(number.to_be_bytes());
        hash.update(purpose.as_bytes());
        Self(ChaCha20Rng::from_seed(hash.finalize().into()))
    }

    /// For whoever wants a source of randomness.
    pub(crate) const fn rng(&mut self) -> &mut ChaCha20Rng {
        &mut self.0
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// One of `0..below`; 0 when there is none.
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        if below == 0 { 0 } else { self.0.next_u64() % below }
    }

    /// One of `from..=to`.
    pub(crate) fn within(&mut self, (from, to): (u64, u64)) -> u64 {
        from + self.below(to.saturating_sub(from) + 1)
    }

    /// Whether something happens that happens `per_mille` times in a thousand.
    pub(crate) fn happens(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.below(1_000) < u64::from(per_mille)
    }
}

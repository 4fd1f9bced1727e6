//! How often a device may do what others can make it do, and how a wait is spread.

use fleetkey_wire::Millis;
use rand_core::CryptoRngCore;

/// Lets one thing happen at most once per gap. What comes too early is put off, never forgotten.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    gap_ms: u64,
    last: Option<Millis>,
}

impl Pace {
    pub(crate) const fn of(gap_ms: u64) -> Self {
        Self { gap_ms, last: None }
    }

    /// When the thing may happen that is asked for now.
    pub(crate) fn next(&mut self, now: Millis) -> Millis {
        let at = match self.last {
            None => now,
            // It is put off already: this asks for nothing more.
            Some(last) if last > now => last,
            Some(last) => now.max(last.plus(self.gap_ms)),
        };
        self.last = Some(at);
        at
    }
}

/// A wait that doubles from `first_ms` to `longest_ms`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BackOff {
    first_ms: u64,
    longest_ms: u64,
    next_ms: u64,
}

impl BackOff {
    pub(crate) const fn new(first_ms: u64, longest_ms: u64) -> Self {
        Self { first_ms, longest_ms, next_ms: first_ms }
    }

    /// The wait that is due, and twice as long the next time.
    pub(crate) fn step(&mut self) -> u64 {
        let wait_ms = self.next_ms;
        self.next_ms = (wait_ms * 2).min(self.longest_ms);
        wait_ms
    }

    /// Begins again with the shortest wait.
    pub(crate) const fn reset(&mut self) {
        self.next_ms = self.first_ms;
    }
}

/// Lets one thing happen less and less often, until it is worth it again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BackOffPace {
    pace: Pace,
    back_off: BackOff,
}

impl BackOffPace {
    pub(crate) const fn new(back_off: BackOff) -> Self {
        Self { pace: Pace::of(0), back_off }
    }

    /// When the thing may happen that is asked for now.
    pub(crate) fn next(&mut self, now: Millis) -> Millis {
        if self.pace.last.is_none_or(|last| last <= now) {
            let at = self.pace.next(now);
            self.pace.gap_ms = self.back_off.step();
            return at;
        }
        self.pace.next(now)
    }

    /// It was worth it: the next wait is the shortest again.
    pub(crate) fn reset(&mut self) {
        self.back_off.reset();
        self.pace.gap_ms = self.back_off.step();
    }
}

/// `wait_ms`, a fifth shorter or longer at most.
pub(crate) fn jittered(wait_ms: u64, rng: &mut dyn CryptoRngCore) -> u64 {
    let spread_ms = wait_ms * 2 / 5;
    wait_ms - wait_ms / 5 + rng.next_u64() % (spread_ms + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_too_early_is_put_off_once() {
        let mut pace = Pace::of(1_000);
        assert_eq!(pace.next(Millis(5)), Millis(5));
        assert_eq!(pace.next(Millis(5)), Millis(1_005));
        assert_eq!(pace.next(Millis(900)), Millis(1_005));
        assert_eq!(pace.next(Millis(1_005)), Millis(2_005));
        assert_eq!(pace.next(Millis(9_000)), Millis(9_000));
    }

    #[test]
    fn a_back_off_doubles_up_to_its_bound() {
        let mut back_off = BackOff::new(2, 10);
        assert_eq!([(); 5].map(|()| back_off.step()), [2, 4, 8, 10, 10]);
        back_off.reset();
        assert_eq!(back_off.step(), 2);
    }

    #[test]
    fn jitter_stays_within_a_fifth() {
        let mut rng = rand_core::OsRng;
        for wait_ms in [0, 1, 7, 1_000, 1_800_000] {
            for _ in 0..200 {
                let jittered = jittered(wait_ms, &mut rng);
                assert!(jittered.abs_diff(wait_ms) <= wait_ms / 5 + 1, "{jittered} for {wait_ms}");
            }
        }
    }
}

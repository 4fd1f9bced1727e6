//! How long one scheme may take for one size, set-up included.

use std::time::{Duration, Instant};

use crate::scheme::Stopped;

/// A moment until which there is time.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    whole: Duration,
    until: Instant,
}

impl Budget {
    /// So much from now on.
    pub fn of(whole: Duration) -> Self {
        let now = Instant::now();
        Self { whole, until: now.checked_add(whole).unwrap_or(now) }
    }

    /// Whether there is time left.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Goes on only while there is time; `doing` says what was not finished.
    pub(crate) fn check(&self, doing: impl FnOnce() -> String) -> Result<(), Stopped> {
        if self.is_over() {
            return Err(Stopped::OutOfTime { doing: doing(), seconds: self.whole.as_secs() });
        }
        Ok(())
    }
}

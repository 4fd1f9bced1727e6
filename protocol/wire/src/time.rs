//! Time, as an argument. Cores never read a clock.

use serde::{Deserialize, Serialize};

/// Milliseconds on a monotonic clock that starts anywhere and never goes back while the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// This much later.
    pub const fn plus(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }

    /// Milliseconds from `earlier` to this, zero if it is not earlier.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// What time it is: for intervals, and for the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// For intervals and deadlines within one life of the process.
    pub mono: Millis,
    /// Seconds since 1970, for what is stored, signed or shown.
    pub unix_seconds: u64,
}

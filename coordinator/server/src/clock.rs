//! The one place that reads clocks.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use fleetkey_wire::{Millis, Now};

/// When the first clock of this process was read: what [`Millis`] count from.
fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(Instant::now)
}

/// What time it is.
pub(crate) fn now() -> Now {
    let mono = origin().elapsed().as_millis();
    Now { mono: Millis(u64::try_from(mono).unwrap_or(u64::MAX)), unix_seconds: unix_seconds() }
}

/// Seconds since 1970; zero on a clock that stands before.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The instant of a time that a core named.
pub(crate) fn instant(at: Millis) -> Instant {
    // A time too far ahead for the system's clock is as good as an hour: the core is asked again then.
    let hour = Duration::from_secs(3600);
    origin().checked_add(Duration::from_millis(at.0)).unwrap_or_else(|| Instant::now() + hour)
}

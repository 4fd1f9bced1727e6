//! Waiting for a condition: asked again and again until it holds, or its time is up. Then it says what is missing.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until `check` finds nothing missing.
///
/// # Errors
/// What was missing last, when `within` is over; what `check` fails with, at once.
pub fn until(what: &str, within: Duration, mut check: impl FnMut() -> Result<Option<String>>) -> Result<()> {
    let end = Instant::now() + within;
    loop {
        let Some(missing) = check()? else { return Ok(()) };
        if Instant::now() >= end {
            bail!("{what}: not within {} s: {missing}", within.as_secs());
        }
        thread::sleep(PAUSE);
    }
}

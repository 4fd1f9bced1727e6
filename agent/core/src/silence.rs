//! How long the coordinator has been silent, and when that is too long.
//!
//! A broker that withholds a revocation can make the device seal for `max_silence` more, and no longer. Time without
//! an answer is stored as it passes, so a restart does not set it back. Time while the device is off is not counted:
//! it needs a clock that the device may not have.

use fleetkey_wire::Millis;

use crate::stored::StoredSilence;

/// The time that has passed is stored this often, or more rarely: [`MARKS`] times within the longest silence.
const MARK_MS: u64 = 10 * 60 * 1000;
/// Often enough that a restart costs little of the longest silence, and rare enough for flash.
const MARKS: u64 = 144;
/// How often a device says hello, until it is told otherwise.
const DEFAULT_HELLO_INTERVAL_SECONDS: u32 = 30 * 60;
/// After how long it stops sealing, until it is told otherwise.
const DEFAULT_MAX_SILENCE_SECONDS: u32 = 24 * 60 * 60;

#[derive(Debug, Clone)]
pub(crate) struct Silence {
    /// What counts already at `since`.
    before_ms: u64,
    since: Millis,
    hello_interval_seconds: u32,
    max_silence_seconds: u32,
    stored: Option<StoredSilence>,
    announced: bool,
}

impl Silence {
    pub(crate) fn resume(stored: Option<StoredSilence>, now: Millis) -> Self {
        Self {
            before_ms: stored.map_or(0, |stored| stored.elapsed_ms),
            since: now,
            hello_interval_seconds: stored
                .map_or(DEFAULT_HELLO_INTERVAL_SECONDS, |stored| stored.hello_interval_seconds),
            max_silence_seconds: stored
                .map_or(DEFAULT_MAX_SILENCE_SECONDS, |stored| stored.max_silence_seconds),
            stored,
            announced: false,
        }
    }

    pub(crate) const fn elapsed_ms(&self, now: Millis) -> u64 {
        self.before_ms.saturating_add(now.since(self.since))
    }

    pub(crate) const fn max_silence_seconds(&self) -> u32 {
        self.max_silence_seconds
    }

    const fn max_ms(&self) -> u64 {
        self.max_silence_seconds as u64 * 1000
    }

    /// How much time is worth a write of its own.
    const fn mark_ms(&self) -> u64 {
        let share = self.max_ms() / MARKS;
        if share > MARK_MS { share } else { MARK_MS }
    }

    pub(crate) const fn is_too_long(&self, now: Millis) -> bool {
        self.elapsed_ms(now) > self.max_ms()
    }

    /// The wait between two hellos: as the coordinator says, but at least two within the longest silence.
    pub(crate) fn hello_interval_ms(&self) -> u64 {
        (u64::from(self.hello_interval_seconds) * 1000).min(self.max_ms() / 2).max(1000)
    }

    /// A hello that was said at `said` is answered. Returns whether that ends a silence that was announced.
    pub(crate) fn end(
        &mut self,
        said: Millis,
        hello_interval_seconds: u32,
        max_silence_seconds: u32,
    ) -> bool {
        // An older hello may be answered after a newer one.
        if self.before_ms > 0 || said > self.since {
            self.before_ms = 0;
            self.since = said;
        }
        self.hello_interval_seconds = hello_interval_seconds;
        self.max_silence_seconds = max_silence_seconds;
        std::mem::take(&mut self.announced)
    }

    /// Whether the silence has just become too long: true once.
    pub(crate) fn announce(&mut self, now: Millis) -> bool {
        let is_news = self.is_too_long(now) && !self.announced;
        self.announced |= is_news;
        is_news
    }

    /// What is to be stored now, if anything: settings when they have changed, the time when a mark's worth has
    /// passed or when less has passed than is stored.
    pub(crate) fn mark(&mut self, now: Millis) -> Option<StoredSilence> {
        let elapsed_ms = self.elapsed_ms(now);
        let due = StoredSilence {
            // Less than a mark's worth is not worth a write of its own the next time.
            elapsed_ms: if elapsed_ms < self.mark_ms() { 0 } else { elapsed_ms },
            hello_interval_seconds: self.hello_interval_seconds,
            max_silence_seconds: self.max_silence_seconds,
        };
        let is_worth_it = self.stored.is_none_or(|stored| {
            elapsed_ms < stored.elapsed_ms
                || elapsed_ms >= stored.elapsed_ms.saturating_add(self.mark_ms())
                || stored.hello_interval_seconds != due.hello_interval_seconds
                || stored.max_silence_seconds != due.max_silence_seconds
        });
        is_worth_it.then(|| *self.stored.insert(due))
    }

    /// When to look again.
    pub(crate) fn wake_at(&self) -> Millis {
        let after = |elapsed_ms: u64| self.since.plus(elapsed_ms.saturating_sub(self.before_ms));
        let stored_ms = self.stored.map_or(0, |stored| stored.elapsed_ms);
        let mark = after(stored_ms.saturating_add(self.mark_ms()));
        if self.announced { mark } else { mark.min(after(self.max_ms().saturating_add(1))) }
    }
}

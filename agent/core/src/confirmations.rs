//! When a group's confirmation is sent: at once for news, at most once a second for what was confirmed before.

use fleetkey_wire::{KeyEpoch, Millis};

use crate::pacing::Pace;

/// Duplicates are confirmed at most this often, so that whoever replays them gains little.
const DUPLICATE_GAP_MS: u64 = 1_000;

/// The confirmation of one group that is to be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Confirmations {
    due: Option<(KeyEpoch, Millis)>,
    duplicates: Pace,
}

impl Confirmations {
    pub(crate) const fn new() -> Self {
        Self { due: None, duplicates: Pace::of(DUPLICATE_GAP_MS) }
    }

    /// A statement advanced something, and is stored by the time a confirmation leaves.
    pub(crate) fn news(&mut self, key_epoch: KeyEpoch, now: Millis) {
        self.due = Some((key_epoch, now));
    }

    /// A statement came that advanced nothing.
    pub(crate) fn duplicate(&mut self, key_epoch: KeyEpoch, now: Millis) {
        let at = self.duplicates.next(now);
        self.due = Some(match self.due {
            // What is due already is news, or newer: it goes first, and the coordinator asks again.
            Some((due, due_at)) if due > key_epoch || due_at < at => (due, due_at),
            Some(_) | None => (key_epoch, at),
        });
    }

    /// The key epoch to confirm now.
    pub(crate) fn take(&mut self, now: Millis) -> Option<KeyEpoch> {
        self.due.take_if(|(_, at)| *at <= now).map(|(key_epoch, _)| key_epoch)
    }

    /// When to look again.
    pub(crate) fn wake_at(&self) -> Option<Millis> {
        self.due.map(|(_, at)| at)
    }
}

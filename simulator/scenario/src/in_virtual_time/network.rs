//! What the network does to a message: delay, loss, duplicates. Order on a connection is kept.

use crate::dice::Dice;
use crate::scenario::NetworkProfile;

/// After a connection that was lost or refused, a device waits at least so many milliseconds, and up to three times as many.
pub(super) const UNREACHABLE_WAIT: u64 = 2_000;
/// Round trips until a device is connected: TCP, TLS 1.3, CONNECT.
const HANDSHAKE_ROUND_TRIPS: u64 = 3;
/// A lost packet of a handshake, or of a subscription, is sent again after so many milliseconds.
const AGAIN_MILLISECONDS: u64 = 1_000;
/// So often at most.
const AGAIN_AT_MOST: u32 = 10;

/// The way between a device and the broker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Legs {
    min: u64,
    spread: u64,
    loss: f64,
    duplicates: f64,
}

impl Legs {
    pub(super) fn new(profile: &NetworkProfile) -> Self {
        let min = (profile.min_delay.as_millis() as u64).max(1);
        let spread = (profile.max_delay.as_millis() as u64).saturating_sub(min);
        Self { min, spread, loss: profile.loss, duplicates: profile.duplicates }
    }

    /// Nothing gets from one side to the other in less than so many milliseconds.
    pub(super) const fn shortest(&self) -> u64 {
        self.min
    }

    fn delay(&self, dice: &mut Dice) -> u64 {
        self.min + dice.below(self.spread + 1)
    }

    /// When a message at QoS 0 arrives, that is sent `at`: never, once, or twice.
    pub(super) fn arrivals(
        &self,
        at: u64,
        last: &mut u64,
        dice: &mut Dice,
    ) -> impl Iterator<Item = u64> + use<> {
        let copies = if dice.happens(self.loss) { 0 } else { 1 + u32::from(dice.happens(self.duplicates)) };
        let arrives = (at + self.delay(dice)).max(*last);
        if copies > 0 {
            *last = arrives;
        }
        (0..copies).map(move |_| arrives)
    }

    /// There and back, until it has worked.
    pub(super) fn round_trip(&self, dice: &mut Dice) -> u64 {
        let mut took = self.delay(dice) + self.delay(dice);
        for _ in 0..AGAIN_AT_MOST {
            if !dice.happens(self.loss) && !dice.happens(self.loss) {
                break;
            }
            took += AGAIN_MILLISECONDS;
        }
        took
    }

    /// Until a device is connected.
    pub(super) fn handshake(&self, dice: &mut Dice) -> u64 {
        (0..HANDSHAKE_ROUND_TRIPS).map(|_| self.round_trip(dice)).sum()
    }
}

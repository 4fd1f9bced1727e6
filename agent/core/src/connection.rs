//! One connection to the broker: its link, its subscriptions, and the hellos said on it.
//!
//! A hello follows the last SUBACK that is awaited: nothing can be missed after it. Keeping subscriptions, across
//! refusals too, is the shell's.

use std::collections::BTreeMap;

use fleetkey_wire::keys::LinkKey;
use fleetkey_wire::link::DeviceLink;
use fleetkey_wire::{Millis, Topic};
use rand_core::CryptoRngCore;

use crate::pacing::{BackOff, jittered};

/// A hello that no answer has come to is said again after this long, and then after twice as long, and so on.
const HELLO_RETRY: BackOff = BackOff::new(2_000, 60_000);
/// When one SUBACK has come, the others are waited for this long before the hello.
const OTHER_SUBACKS_MS: u64 = 1_000;
/// Hellos that an answer is still accepted for.
const MAX_OUTSTANDING: usize = 8;

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) link: DeviceLink,
    subscriptions: BTreeMap<Topic, Subscription>,
    down: Topic,
    /// When a hello is due that something has asked for.
    hello_asked: Option<Millis>,
    /// When the last hello is due again: soon when it is not answered, else as often as the coordinator wants it.
    hello_repeat: Option<Millis>,
    hello_retry: BackOff,
    /// When each hello was said that may still be answered, by its counter.
    outstanding: BTreeMap<u64, Millis>,
    /// Whether the coordinator was told which pre-shared keys are held.
    pub(crate) are_psks_told: bool,
}

/// Whether the broker has answered for a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subscription {
    Requested,
    Granted,
    Refused,
}

impl Connection {
    pub(crate) fn new(key: LinkKey, down: Topic, rng: &mut dyn CryptoRngCore) -> Self {
        Self {
            link: DeviceLink::connect(key, rng),
            subscriptions: BTreeMap::new(),
            down,
            hello_asked: None,
            hello_repeat: None,
            hello_retry: HELLO_RETRY,
            outstanding: BTreeMap::new(),
            are_psks_told: false,
        }
    }

    /// The topic is to be subscribed to. Returns whether that is news.
    pub(crate) fn want(&mut self, topic: Topic) -> bool {
        if self.subscriptions.contains_key(&topic) {
            return false;
        }
        self.subscriptions.insert(topic, Subscription::Requested);
        true
    }

    /// The topic is of no interest any more. Returns whether it was.
    pub(crate) fn unwant(&mut self, topic: Topic) -> bool {
        self.subscriptions.remove(&topic).is_some()
    }

    /// A SUBACK came. Where it is news, something may have been missed before it: a hello is due, after the other
    /// SUBACKs if they come soon.
    pub(crate) fn granted(&mut self, topic: Topic, now: Millis) {
        let Some(subscription) = self.subscriptions.get_mut(&topic) else { return };
        if *subscription == Subscription::Granted {
            return;
        }
        *subscription = Subscription::Granted;
        let others_are_coming = self.subscriptions.values().any(|other| *other == Subscription::Requested);
        self.ask_for_hello(if others_are_coming { now.plus(OTHER_SUBACKS_MS) } else { now });
    }

    /// A subscription was refused, for now.
    pub(crate) fn denied(&mut self, topic: Topic) {
        if let Some(subscription) = self.subscriptions.get_mut(&topic) {
            *subscription = Subscription::Refused;
        }
    }

    fn can_be_answered(&self) -> bool {
        self.subscriptions.get(&self.down).is_some_and(|down| *down == Subscription::Granted)
    }

    /// A hello is to be said at `at` at the latest.
    pub(crate) fn ask_for_hello(&mut self, at: Millis) {
        self.hello_asked = Some(self.hello_asked.map_or(at, |asked| asked.min(at)));
    }

    fn hello_due(&self) -> Option<Millis> {
        self.hello_asked.into_iter().chain(self.hello_repeat).min().filter(|_| self.can_be_answered())
    }

    /// Whether a hello is due now.
    pub(crate) fn is_hello_due(&self, now: Millis) -> bool {
        self.hello_due().is_some_and(|due| due <= now)
    }

    /// A hello with this counter was said. It will be said again unless an answer comes.
    pub(crate) fn said_hello(&mut self, counter: u64, now: Millis, rng: &mut dyn CryptoRngCore) {
        self.outstanding.insert(counter, now);
        // With each hello again: it may have been lost.
        self.are_psks_told = false;
        while self.outstanding.len() > MAX_OUTSTANDING {
            self.outstanding.pop_first();
        }
        self.hello_asked = self.hello_asked.filter(|asked| *asked > now);
        self.hello_repeat = Some(now.plus(jittered(self.hello_retry.step(), rng)));
    }

    /// When the hello with this counter was said, if an answer to it still counts. One to an earlier hello than the
    /// newest proves no less that the coordinator was there when that was said.
    pub(crate) fn said_when(&self, hello: u64) -> Option<Millis> {
        self.outstanding.get(&hello).copied()
    }

    /// An answer came. Only one to the newest hello ends its repetition.
    pub(crate) fn answered(
        &mut self,
        hello: u64,
        now: Millis,
        hello_interval_ms: u64,
        rng: &mut dyn CryptoRngCore,
    ) {
        let is_newest = self.outstanding.last_key_value().is_some_and(|(newest, _)| *newest == hello);
        self.outstanding.retain(|counter, _| *counter > hello);
        if is_newest {
            self.hello_retry.reset();
            self.hello_repeat = Some(now.plus(jittered(hello_interval_ms, rng)));
        }
    }

    /// The coordinator has begun anew: so does the link, and a hello is due at `at`.
    pub(crate) fn begin_anew(&mut self, at: Millis, rng: &mut dyn CryptoRngCore) {
        self.link.restart(rng);
        self.outstanding.clear();
        self.are_psks_told = false;
        self.hello_retry.reset();
        self.hello_repeat = Some(at);
    }

    /// When to look again.
    pub(crate) fn wake_at(&self) -> Option<Millis> {
        self.hello_due()
    }
}

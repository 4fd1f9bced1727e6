//! One connection to the broker: its link, its subscriptions, and the hellos said on it.
//!
//! Cell topics are subscribed to before `down`, so that the hello which follows the last SUBACK is said when nothing
//! more can be missed.

use std::collections::BTreeMap;

use fleetkey_wire::keys::LinkKey;
use fleetkey_wire::link::DeviceLink;
use fleetkey_wire::{Millis, Topic};
use rand_core::CryptoRngCore;

use crate::pacing::{BackOff, jittered};

/// A hello that no answer has come to is said again after this long, and then after twice as long, and so on.
const HELLO_RETRY: BackOff = BackOff::new(2_000, 60_000);
/// A subscription that was refused is asked for again after this long, and then after twice as long, and so on.
const SUBSCRIBE_RETRY: BackOff = BackOff::new(2_000, 60_000);
/// A SUBACK that has not come by then never will.
const SUBACK_MS: u64 = 10_000;
/// Hellos that an answer is still accepted for.
const MAX_OUTSTANDING: usize = 8;

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) link: DeviceLink,
    subscriptions: BTreeMap<Topic, Subscription>,
    down: Topic,
    hello_due: Option<Millis>,
    hello_retry: BackOff,
    /// When each hello was said that may still be answered, by its counter.
    outstanding: BTreeMap<u64, Millis>,
}

#[derive(Debug, Clone, Copy)]
struct Subscription {
    state: SubscriptionState,
    retry: BackOff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SubscriptionState {
    /// Asked for; when it is to be asked for again.
    Requested(Millis),
    Granted,
    /// Refused; when it is to be asked for again.
    Refused(Millis),
}

impl Connection {
    pub(crate) fn new(key: LinkKey, down: Topic, rng: &mut dyn CryptoRngCore) -> Self {
        Self {
            link: DeviceLink::connect(key, rng),
            subscriptions: BTreeMap::new(),
            down,
            hello_due: None,
            hello_retry: HELLO_RETRY,
            outstanding: BTreeMap::new(),
        }
    }

    /// The topic is to be subscribed to. Returns whether that is to be asked for now.
    pub(crate) fn want(&mut self, topic: Topic, now: Millis) -> bool {
        if self.subscriptions.contains_key(&topic) {
            return false;
        }
        let state = SubscriptionState::Requested(now.plus(SUBACK_MS));
        self.subscriptions.insert(topic, Subscription { state, retry: SUBSCRIBE_RETRY });
        true
    }

    /// The topic is of no interest any more. Returns whether it was.
    pub(crate) fn unwant(&mut self, topic: Topic) -> bool {
        self.subscriptions.remove(&topic).is_some()
    }

    /// A SUBACK came. Where it is news, something may have been missed before it: a hello is due, after the other
    /// SUBACKs if they come soon.
    pub(crate) fn granted(&mut self, topic: Topic, now: Millis) {
        const OTHERS_MS: u64 = 1_000;
        let Some(subscription) = self.subscriptions.get_mut(&topic) else { return };
        if subscription.state == SubscriptionState::Granted {
            return;
        }
        subscription.state = SubscriptionState::Granted;
        subscription.retry.reset();
        let others_are_coming =
            self.subscriptions.values().any(|s| matches!(s.state, SubscriptionState::Requested(_)));
        self.ask_for_hello(if others_are_coming { now.plus(OTHERS_MS) } else { now });
    }

    /// A subscription was refused.
    pub(crate) fn denied(&mut self, topic: Topic, now: Millis) {
        let Some(subscription) = self.subscriptions.get_mut(&topic) else { return };
        subscription.state = SubscriptionState::Refused(now.plus(subscription.retry.step()));
    }

    /// The subscriptions to ask for again.
    pub(crate) fn resubscribe(&mut self, now: Millis) -> Vec<Topic> {
        let mut due = Vec::new();
        for (topic, subscription) in &mut self.subscriptions {
            let is_due = match subscription.state {
                SubscriptionState::Requested(at) | SubscriptionState::Refused(at) => at <= now,
                SubscriptionState::Granted => false,
            };
            if is_due {
                subscription.state = SubscriptionState::Requested(now.plus(SUBACK_MS));
                due.push(*topic);
            }
        }
        due
    }

    fn can_be_answered(&self) -> bool {
        self.subscriptions.get(&self.down).is_some_and(|down| down.state == SubscriptionState::Granted)
    }

    /// A hello is to be said at `at` at the latest.
    pub(crate) fn ask_for_hello(&mut self, at: Millis) {
        self.hello_due = Some(self.hello_due.map_or(at, |due| due.min(at)));
    }

    /// Whether a hello is due now.
    pub(crate) fn is_hello_due(&self, now: Millis) -> bool {
        self.can_be_answered() && self.hello_due.is_some_and(|due| due <= now)
    }

    /// A hello with this counter was said. It will be said again unless an answer comes.
    pub(crate) fn said_hello(&mut self, counter: u64, now: Millis, rng: &mut dyn CryptoRngCore) {
        self.outstanding.insert(counter, now);
        while self.outstanding.len() > MAX_OUTSTANDING {
            self.outstanding.pop_first();
        }
        self.hello_due = Some(now.plus(jittered(self.hello_retry.step(), rng)));
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
            self.hello_due = Some(now.plus(jittered(hello_interval_ms, rng)));
        }
    }

    /// The coordinator has begun anew: so does the link, and a hello is due at `at`.
    pub(crate) fn begin_anew(&mut self, at: Millis, rng: &mut dyn CryptoRngCore) {
        self.link.restart(rng);
        self.outstanding.clear();
        self.hello_retry.reset();
        self.hello_due = Some(at);
    }

    /// When to look again.
    pub(crate) fn wake_at(&self) -> Option<Millis> {
        let subscriptions = self.subscriptions.values().filter_map(|subscription| match subscription.state {
            SubscriptionState::Requested(at) | SubscriptionState::Refused(at) => Some(at),
            SubscriptionState::Granted => None,
        });
        subscriptions.chain(self.hello_due.filter(|_| self.can_be_answered())).min()
    }
}

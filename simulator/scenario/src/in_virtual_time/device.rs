//! A device in virtual time: the real agent core on its store, and its side of the network.
//!
//! Works through what comes to it within a window of time, on its own, so that many devices can at once. Leaves who
//! listens where to the broker's side.

use std::sync::Arc;

use fleetkey_agent_core::{AgentConfig, Input, Keeper, Kept, MemoryStore, Output};
use fleetkey_identity::{FleetRoots, IdentityKey};
use fleetkey_wire::{DeviceId, FleetId, Millis, Now, Topic};

use super::network::{Legs, UNREACHABLE_WAIT};
use crate::dice::Dice;
use crate::scenario::Sleep;

/// The calendar when a run begins.
pub(super) const START_UNIX_SECONDS: u64 = 1_800_000_000;
/// A monotonic clock shows this when its process starts.
const BOOT_MILLISECONDS: u64 = 1_000;

/// What all devices of a fleet are given.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) fleet: FleetId,
    pub(super) roots: FleetRoots,
    pub(super) coordinator_chain: Vec<Vec<u8>>,
}

/// Something that happens to a device.
#[derive(Debug, Clone)]
pub(super) enum Happening {
    /// A message arrives, on this session of it.
    Message { session: u32, topic: Topic, payload: Arc<[u8]> },
    /// A subscription is granted.
    Granted { session: u32, topic: Topic },
    /// Its attempt to connect succeeds, if the broker is there.
    Connects { attempt: u32 },
    /// Its agent's timer, or its own alarm clock; it knows which.
    Timer,
    /// Its connection is gone.
    Cut,
    /// Its power is gone.
    PowerOff,
    /// Its power is back.
    PowerOn,
}

/// Something that a device does.
#[derive(Debug)]
pub(super) enum Deed {
    /// A message is on its way to the coordinator.
    Says { arrives: u64, payload: Vec<u8> },
    /// It subscribes from then on.
    Subscribes { topic: Topic },
    /// It does not any more.
    Unsubscribes { topic: Topic },
    /// It has gone from the broker.
    Leaves,
    /// It wants to hear of this at that time.
    Later { at: u64, what: Happening },
    /// The coordinator has answered it on its connection.
    IsAnswered,
}

/// What is the same for all devices in a window of time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window<'a> {
    /// Where it ends: nothing at or after this is to be done.
    pub(super) end: u64,
    pub(super) legs: &'a Legs,
    /// When the broker is there again, if it is away.
    pub(super) broker_back_at: u64,
    pub(super) bundle: &'a Bundle,
}

/// What it has cost and seen.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
    pub(super) messages: u64,
    pub(super) refused: u64,
}

/// A device.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) id: DeviceId,
    identity: IdentityKey,
    store: MemoryStore,
    agent: Option<Box<Keeper<MemoryStore>>>,
    booted_at: u64,
    /// Nothing happens to it before this any more: time goes on.
    clock: u64,
    dice: Dice,
    sleep: Option<Sleep>,
    /// When it falls asleep, or wakes up.
    turns_at: u64,
    is_asleep: bool,
    has_power: bool,
    was_booted: bool,
    is_connected: bool,
    /// Counts its connections, and attempts.
    pub(super) session: u32,
    attempt: u32,
    /// When its next timer event is, of those that it has asked for.
    alarm_at: u64,
    /// Whether it says so when it is answered: after it was cut off.
    tells_of_answer: bool,
    last_said: u64,
    pub(super) tally: Tally,
}

impl Device {
    pub(super) fn new(seed: u64, number: u64, sleep: Option<Sleep>) -> Self {
        let mut dice = Dice::of(seed, "device", number);
        Self {
            id: DeviceId::random(dice.rng()),
            identity: IdentityKey::generate(dice.rng()),
            store: MemoryStore::default(),
            agent: None,
            booted_at: 0,
            clock: 0,
            dice,
            sleep,
            turns_at: u64::MAX,
            is_asleep: false,
            has_power: false,
            was_booted: false,
            is_connected: false,
            session: 0,
            attempt: 0,
            alarm_at: u64::MAX,
            tells_of_answer: false,
            last_said: 0,
            tally: Tally::default(),
        }
    }

    pub(super) fn public_key(&self) -> [u8; 32] {
        self.identity.public_key()
    }

    /// Whether the broker's end would be noticed by it.
    pub(super) const fn is_on_the_network(&self) -> bool {
        self.has_power && !self.is_asleep
    }

    /// It has no power any more, and never will.
    pub(super) fn scrap(&mut self) {
        self.agent = None;
        self.has_power = false;
        self.is_connected = false;
        self.session += 1;
        self.attempt += 1;
        self.store = MemoryStore::default();
    }

    /// Works through what happens to it, in order, and through its own timers, until the window ends.
    pub(super) fn live(
        &mut self,
        happenings: &mut Vec<(u64, Happening)>,
        window: Window<'_>,
    ) -> anyhow::Result<Vec<Deed>> {
        let mut deeds = Vec::new();
        for (at, what) in happenings.drain(..) {
            self.pass_time(at, window, &mut deeds);
            self.clock = self.clock.max(at);
            self.meet(self.clock, what, window, &mut deeds)?;
        }
        self.pass_time(window.end - 1, window, &mut deeds);
        let next = self.next_timer();
        if next < self.alarm_at {
            self.alarm_at = next;
            deeds.push(Deed::Later { at: next, what: Happening::Timer });
        }
        Ok(deeds)
    }

    /// Does what is due by itself up to `until`.
    fn pass_time(&mut self, until: u64, window: Window<'_>, deeds: &mut Vec<Deed>) {
        loop {
            let next = self.next_timer().max(self.clock);
            if next > until {
                return;
            }
            // Also where its agent wants to be woken at a moment that is over.
            self.clock = next + 1;
            if next >= self.turns_at {
                self.turn(next, window, deeds);
            } else {
                self.feed(Input::Timeout, next, window, deeds);
            }
        }
    }

    /// When something is due by itself.
    fn next_timer(&self) -> u64 {
        let Some(agent) = self.agent.as_ref().filter(|_| self.has_power) else { return u64::MAX };
        let own = self.turns_at;
        if self.is_asleep {
            return own;
        }
        let due = agent.agent().poll_timeout().map_or(u64::MAX, |at| self.moment(at));
        own.min(due)
    }

    /// A moment of its process's clock.
    const fn moment(&self, at: Millis) -> u64 {
        at.0.saturating_sub(BOOT_MILLISECONDS).saturating_add(self.booted_at)
    }

    const fn now(&self, time: u64) -> Now {
        let mono = Millis(time.saturating_sub(self.booted_at) + BOOT_MILLISECONDS);
        Now { mono, unix_seconds: START_UNIX_SECONDS + time / 1_000 }
    }

    fn meet(
        &mut self,
        at: u64,
        what: Happening,
        window: Window<'_>,
        deeds: &mut Vec<Deed>,
    ) -> anyhow::Result<()> {
        match what {
            Happening::Message { session, topic, payload } if session == self.session => {
                self.tally.received_bytes += payload.len() as u64;
                self.tally.messages += 1;
                self.feed(Input::Message { topic, payload: &payload }, at, window, deeds);
            }
            Happening::Granted { session, topic } if session == self.session => {
                deeds.push(Deed::Subscribes { topic });
                self.feed(Input::Subscribed { topic }, at, window, deeds);
            }
            Happening::Connects { attempt } if attempt == self.attempt => self.connect(at, window, deeds),
            // Of a session, or an attempt, that is over.
            Happening::Message { .. } | Happening::Granted { .. } | Happening::Connects { .. } => {}
            Happening::Timer => {
                if self.alarm_at <= at {
                    self.alarm_at = u64::MAX;
                }
            }
            Happening::Cut => {
                self.disconnect(at, window, deeds);
                self.tells_of_answer = true;
                self.attempt_to_connect(at, UNREACHABLE_WAIT, window, deeds);
            }
            Happening::PowerOff => {
                self.disconnect(at, window, deeds);
                self.agent = None;
                self.has_power = false;
            }
            Happening::PowerOn => self.boot(at, window, deeds)?,
        }
        Ok(())
    }

    fn boot(&mut self, at: u64, window: Window<'_>, deeds: &mut Vec<Deed>) -> anyhow::Result<()> {
        let is_first = !std::mem::replace(&mut self.was_booted, true);
        self.tells_of_answer = !is_first;
        self.booted_at = at;
        self.has_power = true;
        self.is_asleep = false;
        self.alarm_at = u64::MAX;
        let config = AgentConfig {
            fleet: window.bundle.fleet,
            device: self.id,
            identity: self.identity.clone(),
            roots: window.bundle.roots.clone(),
            coordinator_chain: window.bundle.coordinator_chain.clone(),
        };
        self.agent = Some(Box::new(Keeper::open(config, self.store.clone(), self.now(at))?));
        if let Some(sleep) = self.sleep {
            // Devices that are set up together do not sleep in step.
            let offset = if is_first { self.dice.below(sleep.asleep.as_millis() as u64) } else { 0 };
            self.turns_at = at + sleep.awake.as_millis() as u64 + offset;
        }
        self.attempt_to_connect(at, 0, window, deeds);
        Ok(())
    }

    /// Falls asleep, or wakes up.
    fn turn(&mut self, at: u64, window: Window<'_>, deeds: &mut Vec<Deed>) {
        let Some(sleep) = self.sleep else { return };
        self.is_asleep = !self.is_asleep;
        if self.is_asleep {
            let slot = (sleep.slot.as_millis() as u64).max(1);
            self.turns_at = (at + sleep.asleep.as_millis() as u64).next_multiple_of(slot);
            self.disconnect(at, window, deeds);
            self.attempt += 1;
        } else {
            self.turns_at = at + sleep.awake.as_millis() as u64;
            self.attempt_to_connect(at, 0, window, deeds);
        }
    }

    fn attempt_to_connect(&mut self, at: u64, wait: u64, window: Window<'_>, deeds: &mut Vec<Deed>) {
        if !self.has_power || self.is_asleep || self.is_connected {
            return;
        }
        self.attempt += 1;
        let wait = wait + self.dice.below(2 * wait + 1);
        let at = at + wait + window.legs.handshake(&mut self.dice);
        deeds.push(Deed::Later { at, what: Happening::Connects { attempt: self.attempt } });
    }

    fn connect(&mut self, at: u64, window: Window<'_>, deeds: &mut Vec<Deed>) {
        if !self.has_power || self.is_asleep || self.is_connected {
            return;
        }
        if at < window.broker_back_at {
            return self.attempt_to_connect(at, UNREACHABLE_WAIT, window, deeds);
        }
        self.session += 1;
        self.is_connected = true;
        self.feed(Input::Connected, at, window, deeds);
    }

    fn disconnect(&mut self, at: u64, window: Window<'_>, deeds: &mut Vec<Deed>) {
        if !self.is_connected {
            return;
        }
        self.is_connected = false;
        self.session += 1;
        deeds.push(Deed::Leaves);
        self.feed(Input::Disconnected, at, window, deeds);
    }

    /// Gives its agent an input, and does what it asks for.
    fn feed(&mut self, input: Input<'_>, at: u64, window: Window<'_>, deeds: &mut Vec<Deed>) {
        let now = self.now(at);
        let Some(agent) = &mut self.agent else { return };
        // Its store is memory: it neither fills up nor breaks.
        let Ok(Ok(Kept { outputs, refused })) = agent.handle(input, now, self.dice.rng()) else { return };
        self.tally.refused += u64::from(refused.is_some());
        if self.tells_of_answer && self.is_connected && agent.agent().status(now).is_answered {
            self.tells_of_answer = false;
            deeds.push(Deed::IsAnswered);
        }
        for output in outputs {
            match output {
                Output::Publish { payload, .. } if self.is_connected => {
                    self.tally.sent_bytes += payload.len() as u64;
                    for arrives in window.legs.arrivals(at, &mut self.last_said, &mut self.dice) {
                        deeds.push(Deed::Says { arrives, payload: payload.clone() });
                    }
                }
                Output::Publish { .. } | Output::Event(_) => {}
                Output::Subscribe { topic } => {
                    let granted = at + window.legs.round_trip(&mut self.dice);
                    let what = Happening::Granted { session: self.session, topic };
                    deeds.push(Deed::Later { at: granted, what });
                }
                Output::Unsubscribe { topic } => deeds.push(Deed::Unsubscribes { topic }),
            }
        }
    }
}

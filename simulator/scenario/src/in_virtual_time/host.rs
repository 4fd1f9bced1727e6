//! The coordinator in virtual time, and the broker's side of the network: who listens where.
//!
//! The core is the real one, through the real writer, on a store in memory. What it has decided is in the ledger. Takes no
//! time of its own: how long deciding takes is measured, and does not delay what follows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fleetkey_coordinator_core::writer::{AccessNews, Concluded, Readiness};
use fleetkey_coordinator_core::{Access, Coordinator, Event, MemoryStore, Setup, Store as _, Writer};
use fleetkey_wire::{DeviceId, GroupId, KeyEpoch, Millis, Now, Topic};
use rand_core::CryptoRngCore;

use super::crew::Crew;
use super::device::{Happening, START_UNIX_SECONDS};
use super::network::Legs;
use crate::dice::Dice;
use crate::ledger::Ledger;

/// Its monotonic clock shows this when the run begins.
const BOOT_MILLISECONDS: u64 = 1_000;
/// After the broker is back, the coordinator is connected again within so many milliseconds.
const RECONNECT_MILLISECONDS: u64 = 500;

/// The broker's side of a device.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: DeviceId,
    pub(super) session: u32,
    topics: BTreeSet<Topic>,
    dice: Dice,
    last_arrival: u64,
}

/// The coordinator, and who listens.
#[derive(Debug)]
pub(super) struct Host {
    crew: Arc<Crew>,
    writer: Writer<MemoryStore>,
    dice: Dice,
    pub(super) links: Vec<Link>,
    pub(super) runners: BTreeMap<DeviceId, u32>,
    listeners: HashMap<Topic, BTreeSet<u32>>,
    pub(super) groups: Vec<GroupId>,
    newest: Vec<KeyEpoch>,
    pub(super) ledger: Ledger,
    connected_at: u64,
    /// Nothing is decided before this any more: time goes on.
    clock: u64,
    /// Processor time of deciding and storing.
    pub(super) busy: Duration,
    /// The same since it was settled last, by the clock.
    elapsed: Duration,
    pub(super) refused: u64,
    /// Those who were revoked since this was looked at last.
    pub(super) revoked: Vec<u32>,
    pub(super) deliveries: Vec<(u64, u32, Happening)>,
}

/// A time since the run began.
pub(super) const fn since_began(at: u64) -> Duration {
    Duration::from_millis(at)
}

fn now(at: u64) -> Now {
    Now { mono: Millis(at + BOOT_MILLISECONDS), unix_seconds: START_UNIX_SECONDS + at / 1_000 }
}

impl Host {
    pub(super) fn start(setup: Setup, groups: usize, seed: u64, crew: Arc<Crew>) -> anyhow::Result<Self> {
        let mut store = MemoryStore::default();
        store.commit(&Coordinator::initial_rows(START_UNIX_SECONDS))?;
        let mut dice = Dice::of(seed, "coordinator", 0);
        let (mut writer, _) = Writer::open(setup, store, now(0), dice.rng(), &mut |_, _| {})?;
        writer.set_connected(true);
        Ok(Self {
            crew,
            writer,
            dice,
            links: Vec::new(),
            runners: BTreeMap::new(),
            listeners: HashMap::new(),
            groups: Vec::new(),
            newest: Vec::new(),
            ledger: Ledger::new(groups),
            connected_at: 0,
            clock: 0,
            busy: Duration::ZERO,
            elapsed: Duration::ZERO,
            refused: 0,
            revoked: Vec::new(),
            deliveries: Vec::new(),
        })
    }

    pub(super) fn add_group(&mut self, group: GroupId) {
        self.groups.push(group);
        self.newest.push(KeyEpoch::default());
    }

    pub(super) fn add_link(&mut self, id: DeviceId, seed: u64) {
        let runner = self.links.len() as u32;
        let dice = Dice::of(seed, "link", runner.into());
        self.links.push(Link { id, session: 0, topics: BTreeSet::new(), dice, last_arrival: 0 });
        self.runners.insert(id, runner);
    }

    /// Decides on a command, stores it, and says what follows.
    pub(super) fn command<T: Send, E: std::error::Error + Send + Sync + 'static>(
        &mut self,
        at: u64,
        legs: &Legs,
        decide: impl FnOnce(&mut Coordinator, Now, &mut dyn CryptoRngCore) -> Result<T, E> + Send,
    ) -> anyhow::Result<T> {
        let crew = Arc::clone(&self.crew);
        let (done, share) = crew.drive(|| {
            let began = Instant::now();
            let coordinator = self.writer.coordinator().ok_or_else(store_failed)?;
            let done = decide(coordinator, now(at), self.dice.rng())?;
            self.conclude(began, at, legs)?;
            Ok(done)
        });
        self.settle(share);
        done
    }

    /// Of the time by the clock, so large a share was processor time.
    pub(super) fn settle(&mut self, share: f64) {
        self.busy += std::mem::take(&mut self.elapsed).mul_f64(share);
    }

    /// Looks at the coordinator.
    pub(super) fn look<T>(
        &mut self,
        at: u64,
        look: impl FnOnce(&Coordinator, Now) -> T,
    ) -> anyhow::Result<T> {
        let coordinator = self.writer.coordinator().ok_or_else(store_failed)?;
        Ok(look(coordinator, now(at)))
    }

    /// When it has something to do without a message.
    pub(super) fn next_timer(&self) -> u64 {
        let due = self.writer.poll_timeout().map_or(u64::MAX, |at| at.0.saturating_sub(BOOT_MILLISECONDS));
        if self.writer.has_message() { due.min(self.connected_at) } else { due }
    }

    /// Works through what devices have said, in order, and its own timers, until the window ends.
    pub(super) fn live(&mut self, said: &[(u64, u32, Vec<u8>)], end: u64, legs: &Legs) -> anyhow::Result<()> {
        let mut said = said.iter().peekable();
        loop {
            let next_said = said.peek().map_or(u64::MAX, |(at, _, _)| *at);
            let at = next_said.min(self.next_timer()).max(self.clock);
            if at >= end {
                return Ok(());
            }
            self.clock = at + 1;
            let began = Instant::now();
            self.writer.set_connected(at >= self.connected_at);
            let readiness = self.writer.ready(now(at), self.dice.rng(), &mut |_, _| {});
            match readiness {
                Readiness::Ready => {}
                Readiness::Loaded(concluded) => self.hear(at, concluded),
                Readiness::NotYet { .. } => return Err(store_failed()),
            }
            let coordinator = self.writer.coordinator().ok_or_else(store_failed)?;
            while let Some((_, runner, payload)) = said.next_if(|(then, _, _)| *then <= at) {
                let device = self.links[*runner as usize].id;
                if at >= self.connected_at
                    && coordinator.handle_up(device, payload, now(at), self.dice.rng()).is_err()
                {
                    self.refused += 1;
                }
            }
            if coordinator.poll_timeout().is_some_and(|due| due <= now(at).mono) {
                coordinator.handle_timeout(now(at), self.dice.rng());
            }
            self.conclude(began, at, legs)?;
        }
    }

    /// Stores what was decided since `began`, and sends it: only what is the coordinator's own counts.
    fn conclude(&mut self, began: Instant, at: u64, legs: &Legs) -> anyhow::Result<()> {
        let concluded = self.writer.conclude(now(at), &mut |_, _| {})?;
        self.elapsed += began.elapsed();
        self.hear(at, concluded);
        if at < self.connected_at {
            return Ok(());
        }
        while let Some(message) = self.writer.next_message() {
            if let Some(ticket) = message.ticket {
                self.writer.settle(ticket, now(at));
            }
            let Some(listeners) = self.listeners.get(&message.topic) else { continue };
            let payload: Arc<[u8]> = message.payload.into();
            for runner in listeners {
                let link = &mut self.links[*runner as usize];
                for arrives in legs.arrivals(at, &mut link.last_arrival, &mut link.dice) {
                    let (session, topic, payload) = (link.session, message.topic, Arc::clone(&payload));
                    self.deliveries.push((arrives, *runner, Happening::Message { session, topic, payload }));
                }
            }
        }
        Ok(())
    }

    fn group(&self, id: GroupId) -> Option<usize> {
        self.groups.iter().position(|group| *group == id)
    }

    /// Enters what was decided into the ledger.
    fn hear(&mut self, at: u64, concluded: Concluded) {
        let time = since_began(at);
        let (AccessNews::Changes(access) | AccessNews::Everything(access)) = concluded.access;
        let mut left = BTreeMap::<usize, Vec<DeviceId>>::new();
        for event in concluded.events {
            match event {
                Event::Rekeyed { group, key_epoch, .. } => {
                    let Some(group) = self.group(group) else { continue };
                    let is_new_key = std::mem::replace(&mut self.newest[group], key_epoch) < key_epoch;
                    self.ledger.rekeyed(group, is_new_key, time);
                }
                Event::Confirmed { group, device, is_current: true, .. } => {
                    if let Some(group) = self.group(group) {
                        self.ledger.current(group, device, time);
                    }
                }
                Event::Joined { group, device, .. } => {
                    if let Some(group) = self.group(group) {
                        self.ledger.joined(group, device, time);
                    }
                }
                Event::Left { group, device } => {
                    if let Some(group) = self.group(group) {
                        self.ledger.left(group, device, time);
                        left.entry(group).or_default().push(device);
                    }
                }
                Event::Confirmed { is_current: false, .. }
                | Event::AllConfirmed { .. }
                | Event::Deadline { .. }
                | Event::Resent { .. }
                | Event::CaughtUp { .. }
                | Event::Quarantined { .. }
                | Event::Superseded { .. } => {}
            }
        }
        let mut revoked = BTreeSet::new();
        for change in access {
            match change {
                Access::Revoked { device } => {
                    revoked.insert(device);
                    self.ledger.gone(device, time);
                    if let Some(runner) = self.runners.get(&device) {
                        self.revoked.push(*runner);
                    }
                }
                Access::CellMembers { .. } | Access::CellGone { .. } => {}
            }
        }
        for (group, left) in left {
            if left.iter().any(|device| revoked.contains(device)) {
                self.ledger.revoked(group, time);
            }
        }
    }

    pub(super) fn listens(&mut self, runner: u32, topic: Topic) {
        self.links[runner as usize].topics.insert(topic);
        self.listeners.entry(topic).or_default().insert(runner);
    }

    pub(super) fn stops_listening(&mut self, runner: u32, topic: Topic) {
        self.links[runner as usize].topics.remove(&topic);
        if let Some(listeners) = self.listeners.get_mut(&topic) {
            listeners.remove(&runner);
            if listeners.is_empty() {
                self.listeners.remove(&topic);
            }
        }
    }

    pub(super) fn leaves(&mut self, runner: u32) {
        for topic in std::mem::take(&mut self.links[runner as usize].topics) {
            self.stops_listening(runner, topic);
        }
    }

    /// The broker is away until then, and has forgotten who listened.
    pub(super) fn broker_restarts(&mut self, back_at: u64) {
        self.listeners.clear();
        for link in &mut self.links {
            link.topics.clear();
        }
        self.connected_at = back_at + RECONNECT_MILLISECONDS;
        self.writer.set_connected(false);
    }
}

fn store_failed() -> anyhow::Error {
    anyhow::anyhow!("the coordinator's store in memory has failed")
}

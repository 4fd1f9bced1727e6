//! A coordinator's process: the real writer on its disk, its connection, its deaths.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::rc::Rc;

use fleetkey_coordinator_core::records::{IssuedRecord, Record as _};
use fleetkey_coordinator_core::writer::{Concluded, Readiness};
use fleetkey_coordinator_core::{Event, Place, Publish, Store as _, Table, Writer};
use fleetkey_wire::error::Named as _;
use fleetkey_wire::{CellFrame, Commitment, DeviceId, KeyEpoch, SignedStatement, Topic};

use crate::dice::Dice;
use crate::disk::CoordinatorDisk;
use crate::fleet::Clock;
use crate::model::{Rule, Voice};
use crate::world::{Due, World};

/// Messages of devices that wait for a coordinator at most: in the service, at its connection and behind that.
pub(crate) const MAX_INBOX: usize = 65_536 + 4_096;
/// Messages decided on in one transaction at most.
const MAX_BATCH: u64 = 8;
/// What a step costs, so that steps are not all at the same moment.
const STEP_MILLISECONDS: u64 = 2;

/// A coordinator's process.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) voice: Voice,
    pub(crate) disk: CoordinatorDisk,
    pub(crate) clock: Clock,
    pub(crate) writer: Option<Writer<CoordinatorDisk>>,
    pub(crate) dice: Dice,
    /// Counts the starts and the deaths of its process.
    pub(crate) life: u64,
    pub(crate) is_connected: bool,
    inbox: VecDeque<(DeviceId, Rc<[u8]>)>,
    /// When its next step is, if one is planned.
    step_at: Option<u64>,
    /// Cell frames that are stored and were not sent yet; and those that are stored at all.
    owed: BTreeSet<u64>,
    said: BTreeSet<u64>,
    pub(crate) has_ended: bool,
}

impl Host {
    pub(crate) fn new(voice: Voice, disk: CoordinatorDisk, dice: Dice, clock: Clock) -> Self {
        Self {
            voice,
            disk,
            clock,
            writer: None,
            dice,
            life: 0,
            is_connected: false,
            inbox: VecDeque::new(),
            step_at: None,
            owed: BTreeSet::new(),
            said: BTreeSet::new(),
            has_ended: false,
        }
    }

    /// Frames that were stored and never sent.
    pub(crate) fn owed(&self) -> usize {
        self.owed.len()
    }

    /// It begins from other contents of its disk.
    pub(crate) fn replace_disk(&mut self, disk: CoordinatorDisk) {
        self.disk = disk;
        self.owed.clear();
    }

    /// What a copy of this host knows of what was said before.
    pub(crate) fn said(&self) -> BTreeSet<u64> {
        self.said.clone()
    }

    pub(crate) fn has_said(&mut self, said: BTreeSet<u64>) {
        self.said = said;
    }

    /// Whether it has said this, to this cell.
    pub(crate) fn is_its_own(&self, topic: Topic, payload: &[u8]) -> bool {
        self.said.contains(&fingerprint(topic, payload))
    }
}

/// What a transaction is about to say.
#[derive(Debug, Default)]
struct Overheard {
    frames: Vec<(Topic, Vec<u8>)>,
    events: Vec<Event>,
}

impl Overheard {
    fn hear(&mut self, publishes: &[Publish], events: &[Event]) {
        let frames = publishes.iter().filter(|publish| matches!(publish.topic, Topic::Cell { .. }));
        self.frames.extend(frames.map(|publish| (publish.topic, publish.payload.clone())));
        self.events.extend(events.iter().cloned());
    }
}

fn fingerprint(topic: Topic, payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    topic.hash(&mut hasher);
    payload.hash(&mut hasher);
    hasher.finish()
}

impl World {
    /// Starts a coordinator's process from what it has stored.
    pub(crate) fn start_host(&mut self, at: usize) {
        let time = self.time;
        let setup = self.fleet.setup();
        let host = &mut self.hosts[at];
        if host.writer.is_some() || host.has_ended {
            return;
        }
        host.disk.health().revive();
        host.clock.boot(time);
        let mut heard = Overheard::default();
        let opened = Writer::open(
            setup,
            host.disk.clone(),
            host.clock.now(time),
            host.dice.rng(),
            &mut |publishes, events| heard.hear(publishes, events),
        );
        match opened {
            Ok((writer, concluded)) => {
                host.writer = Some(writer);
                host.life += 1;
                self.figures.coordinator_starts += 1;
                self.after(50, Due::HostConnects { host: at });
                self.reconcile(at);
                if let Some(concluded) = concluded {
                    self.concluded(at, heard, &concluded);
                }
                self.examine(at);
                self.check_limits(at);
                self.plan_step(at, STEP_MILLISECONDS);
            }
            Err(error) => {
                self.broken(Rule::StoreMakesSense, format!("the coordinator does not load: {error}"))
            }
        }
    }

    /// A coordinator's process ends, as in a crash, and comes back.
    pub(crate) fn kill_host(&mut self, at: usize, back_in: u64) {
        let host = &mut self.hosts[at];
        host.writer = None;
        host.life += 1;
        host.is_connected = false;
        host.inbox.clear();
        host.step_at = None;
        if !host.has_ended {
            self.after(back_in, Due::HostStarts { host: at });
        }
    }

    pub(crate) fn connect_host(&mut self, at: usize) {
        if self.time < self.broker_back_at {
            return self.after(500, Due::HostConnects { host: at });
        }
        let host = &mut self.hosts[at];
        if host.writer.is_some() && !host.has_ended {
            host.is_connected = true;
            self.plan_step(at, STEP_MILLISECONDS);
        }
    }

    pub(crate) fn disconnect_host(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        if host.is_connected {
            host.is_connected = false;
            self.after(500, Due::HostConnects { host: at });
        }
    }

    pub(crate) fn end_copy(&mut self, at: usize) {
        self.hosts[at].has_ended = true;
        self.kill_host(at, 0);
    }

    pub(crate) fn at_host(&mut self, at: usize, life: u64, device: DeviceId, payload: &Rc<[u8]>) {
        let host = &mut self.hosts[at];
        if host.life != life || !host.is_connected {
            return;
        }
        if host.inbox.len() >= MAX_INBOX {
            self.figures.shed += 1;
            return;
        }
        host.inbox.push_back((device, Rc::clone(payload)));
        self.figures.deepest_inbox = self.figures.deepest_inbox.max(host.inbox.len());
        self.plan_step(at, STEP_MILLISECONDS);
    }

    fn plan_step(&mut self, at: usize, wait: u64) {
        let when = self.time + wait;
        let host = &mut self.hosts[at];
        if host.step_at.is_none_or(|planned| planned > when) {
            host.step_at = Some(when);
            self.after(wait, Due::HostStep { host: at });
        }
    }

    /// One batch of a coordinator: decide, store, speak.
    pub(crate) fn host_step(&mut self, at: usize) {
        if self.hosts[at].step_at != Some(self.time) {
            return;
        }
        self.hosts[at].step_at = None;
        if self.is_ready(at) {
            self.decide_batch(at);
        }
        self.plan_next_step(at);
    }

    /// Whether there is a coordinator to decide with.
    pub(crate) fn is_ready(&mut self, at: usize) -> bool {
        let time = self.time;
        let host = &mut self.hosts[at];
        let Some(writer) = &mut host.writer else { return false };
        writer.set_connected(host.is_connected);
        let mut heard = Overheard::default();
        let readiness = writer.ready(host.clock.now(time), host.dice.rng(), &mut |publishes, events| {
            heard.hear(publishes, events);
        });
        match readiness {
            Readiness::Ready => true,
            Readiness::Loaded(concluded) => {
                self.concluded(at, heard, &concluded);
                self.hosts[at].writer.is_some()
            }
            Readiness::NotYet { why } => {
                self.hosts[at].inbox.clear();
                if let Some(why) = why {
                    self.failed(at, &why);
                }
                false
            }
        }
    }

    fn decide_batch(&mut self, at: usize) {
        let time = self.time;
        let host = &mut self.hosts[at];
        let Some(writer) = &mut host.writer else { return };
        let now = host.clock.now(time);
        let batch = 1 + host.dice.below(MAX_BATCH) as usize;
        let mut refused = None;
        let mut decided = 0;
        if let Some(coordinator) = writer.coordinator() {
            while decided < batch
                && let Some((device, payload)) = host.inbox.pop_front()
            {
                decided += 1;
                if let Err(why) = coordinator.handle_up(device, &payload, now, host.dice.rng()) {
                    *self.figures.coordinator_refusals.entry(why.name()).or_default() += 1;
                    refused = Some(why);
                }
            }
            let is_due = coordinator.poll_timeout().is_some_and(|due| due <= now.mono);
            if is_due {
                coordinator.handle_timeout(now, host.dice.rng());
            } else if decided == 1
                && let Some(refused) = refused
            {
                // Nothing but a refused input: whatever is stored now, it has caused.
                let commits = host.disk.health().commits();
                let _ = self.conclude(at);
                let host = &self.hosts[at];
                let touched = host.disk.touched();
                if host.disk.health().commits() != commits
                    && let Some(table) = touched.iter().find(|table| !matches!(table, Table::Outbox))
                {
                    let what = format!("refused {} and stored a row of {}", refused.name(), table.name());
                    self.broken(Rule::BadInputCostsItsSender, what);
                }
                return;
            }
        }
        let _ = self.conclude(at);
    }

    /// Stores what was decided, and says it. Whether it is stored.
    pub(crate) fn conclude(&mut self, at: usize) -> bool {
        let time = self.time;
        let host = &mut self.hosts[at];
        let Some(writer) = &mut host.writer else { return false };
        let mut heard = Overheard::default();
        let concluded =
            writer.conclude(host.clock.now(time), &mut |publishes, events| heard.hear(publishes, events));
        match concluded {
            Ok(concluded) => {
                self.concluded(at, heard, &concluded);
                true
            }
            Err(discarded) => {
                self.failed(at, &discarded.why);
                false
            }
        }
    }

    /// A transaction did not come to its end.
    fn failed(&mut self, at: usize, why: &str) {
        // Whatever is queued now, the connection takes: it knows of no transaction.
        self.drain(at, None);
        let health = self.hosts[at].disk.health();
        let (is_dead, is_full) = (health.is_dead(), health.is_full.get());
        if is_dead {
            // Killed at its transaction: what was decided may be stored, and nobody heard of it.
            let back_in = 100 + self.hosts[at].dice.below(20_000);
            self.kill_host(at, back_in);
        } else if !is_full {
            self.broken(Rule::NothingBreaks, format!("a decision failed half-way: {why}"));
        }
    }

    /// A transaction is stored: the model hears of it, and its messages leave.
    fn concluded(&mut self, at: usize, heard: Overheard, concluded: &Concluded) {
        self.figures.transactions += u64::from(concluded.has_committed);
        self.hear(at, heard);
        let health = self.hosts[at].disk.health();
        let dies_after = if concluded.has_committed { health.dies_after_messages() } else { None };
        self.drain(at, dies_after);
    }

    /// A cell's id is never used again, whatever was restored or copied since.
    fn learn_cells(&mut self, at: usize) {
        for cell in self.hosts[at].disk.take_new_cells() {
            if !self.cells_ever.insert(cell.clone()) {
                let what = format!("a second cell has the id {cell:02x?}");
                self.broken(Rule::OneSecretPerKeyEpoch, what);
            }
        }
    }

    fn hear(&mut self, at: usize, heard: Overheard) {
        let voice = self.hosts[at].voice;
        self.learn_cells(at);
        self.learn_keys(at);
        for (topic, payload) in &heard.frames {
            let print = fingerprint(*topic, payload);
            self.hosts[at].owed.insert(print);
            self.hosts[at].said.insert(print);
            let Ok(CellFrame { rekey: Some(rekey), .. }) = CellFrame::decode(payload) else { continue };
            if let Ok(signed) = SignedStatement::from_trusted(&rekey.statement) {
                let judged = self.model.stated(voice, &signed);
                self.judge(judged);
            }
        }
        for event in heard.events {
            self.hear_event(at, &event);
        }
    }

    /// What the last transaction issued, as it is stored.
    fn learn_keys(&mut self, at: usize) {
        if !self.hosts[at].disk.touched().contains(&Table::Issued) {
            return;
        }
        self.learn_all_keys(at);
    }

    fn learn_all_keys(&mut self, at: usize) {
        let of_host = self.hosts[at].voice;
        let incarnation = self.hosts[at]
            .writer
            .as_mut()
            .and_then(Writer::coordinator)
            .map_or(0, |coordinator| coordinator.incarnation());
        let rows = self.hosts[at].disk.rows(Table::Issued).unwrap_or_default();
        for issued in rows.iter().filter_map(|row| IssuedRecord::read(row).ok()) {
            // What was issued before a restore may have been a copy's doing.
            let is_past = issued.key_epoch.incarnation() < incarnation;
            let voice = if is_past { Voice::Copy } else { of_host };
            let judged =
                self.model.named(voice, issued.group, issued.key_epoch, Commitment(issued.commitment));
            self.judge(judged);
        }
    }

    /// What is stored is what holds, whatever was heard before the process died.
    fn reconcile(&mut self, at: usize) {
        self.learn_cells(at);
        self.learn_all_keys(at);
        if self.hosts[at].voice == Voice::Copy {
            return;
        }
        let Some(coordinator) = self.hosts[at].writer.as_mut().and_then(Writer::coordinator) else { return };
        let mut stored = Vec::new();
        for group in self.groups.iter().flatten() {
            let Some(record) = coordinator.group(*group) else { continue };
            let members = coordinator.members(*group).filter(|member| member.place != Place::Wanted);
            let members: BTreeMap<DeviceId, KeyEpoch> =
                members.map(|member| (member.device, member.admitted)).collect();
            stored.push((*group, record.send, members));
        }
        for (group, send, members) in stored {
            self.model.reconcile(group, send, &members);
        }
    }

    fn hear_event(&mut self, at: usize, event: &Event) {
        let is_main = self.hosts[at].voice == Voice::Main;
        let coordinator = self.hosts[at].writer.as_mut().and_then(Writer::coordinator);
        match event {
            Event::Joined { group, device, .. } if is_main => {
                let member = coordinator.and_then(|all| all.member(*group, *device).cloned());
                if let Some(member) = member {
                    self.model.joined(*group, *device, member.admitted);
                }
            }
            Event::Joined { group, device, .. } => self.model.joined_copy(*group, *device),
            Event::Left { group, device } if is_main => {
                let send = coordinator.and_then(|all| all.group(*group)).map(|group| group.send);
                self.model.left(*group, *device, send.unwrap_or_default());
            }
            Event::Confirmed { group, device, key_epoch, .. } => {
                let judged = self.model.confirmed(*device, *group, *key_epoch);
                self.judge(judged);
                self.figures.confirmations += 1;
            }
            Event::Quarantined { device } if is_main => self.operator_hears_of_quarantine(*device),
            Event::Superseded { .. } => self.figures.superseded += 1,
            Event::Rekeyed { .. } => self.figures.rekeys += 1,
            Event::CaughtUp { by, .. } => *self.figures.catch_ups.entry(by.name()).or_default() += 1,
            Event::Left { .. }
            | Event::Quarantined { .. }
            | Event::AllConfirmed { .. }
            | Event::Deadline { .. }
            | Event::Resent { .. } => {}
        }
    }

    /// Messages leave, in order; the process may die among them.
    fn drain(&mut self, at: usize, dies_after: Option<u32>) {
        let mut left = 0;
        loop {
            let host = &mut self.hosts[at];
            let Some(writer) = &mut host.writer else { return };
            if !host.is_connected || dies_after.is_some_and(|messages| left >= messages) {
                break;
            }
            let Some(message) = writer.next_message() else { break };
            left += 1;
            if let Some(ticket) = message.ticket {
                writer.settle(ticket, host.clock.now(self.time));
            }
            if matches!(message.topic, Topic::Cell { .. }) {
                let print = fingerprint(message.topic, &message.payload);
                self.hosts[at].owed.remove(&print);
                if !self.hosts[at].said.contains(&print) {
                    let what = format!("a frame for {} was sent, and never stored", message.topic);
                    self.broken(Rule::StoredThenSpoken, what);
                }
            }
            self.publish(message.topic, message.payload.into());
        }
        if dies_after.is_some() {
            let back_in = 100 + self.hosts[at].dice.below(60_000);
            self.kill_host(at, back_in);
        }
    }

    fn plan_next_step(&mut self, at: usize) {
        let time = self.time;
        let host = &self.hosts[at];
        let Some(writer) = &host.writer else { return };
        let has_work = !host.inbox.is_empty() || (host.is_connected && writer.has_message());
        let wait = match writer.poll_timeout() {
            _ if has_work => STEP_MILLISECONDS,
            Some(due) => host.clock.until(due, time),
            None => return,
        };
        self.plan_step(at, wait);
    }
}

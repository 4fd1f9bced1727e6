//! Scenarios in real time: the real coordinator, a real broker, and each device on its own connection.
//!
//! What the coordinator says of devices is entered into the ledger as it is heard; a rekey that was commanded is due from
//! the command on. Leaves what a scenario is to `fleetkey-scenario`, and what a fleet is to [`crate::field`].

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fleetkey_coordinator_core::{Event, GroupStatus, Place, Timing};
use fleetkey_report::{Connections, Mode, Moment, RunReport};
use fleetkey_scenario::{
    Act, Ledger, Looked, NetworkProfile, RunOptions, Scenario, Until, Waited, World, policy,
};
use fleetkey_wire::{DeviceId, GroupId, KeyEpoch};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;

use crate::field::{Field, FieldBroker, FieldOptions};
use crate::following::Following;

/// How often it is asked whether a wait is over.
const PAUSE: Duration = Duration::from_millis(5);
/// How often devices are asked whether they are answered; each says how long ago it was.
const ASK: Duration = Duration::from_millis(200);
/// Connections that are made at once, on each thread.
const MAX_CONNECTING: usize = 256;
/// How often whoever watches is told.
const TELL: Duration = Duration::from_millis(200);

/// Said of a run whose scenario has a network of its own.
const NETWORK_NOT_APPLIED: &str =
    "The scenario's [network] was not applied: in real time the network is the one that is there.";

/// A scenario asks for something that is simulated only.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotInRealTime {
    /// Another network.
    #[error("phase {phase} changes the network, which in real time is the one that is there: --virtual")]
    Network {
        /// The phase.
        phase: String,
    },
    /// Devices that sleep.
    #[error("devices of class {class} sleep, which is simulated only: --virtual")]
    Sleep {
        /// The class.
        class: String,
    },
    /// A restart of a broker that is somebody else's.
    #[error("phase {phase} restarts the broker, and the one of --broker is not ours to restart")]
    Broker {
        /// The phase.
        phase: String,
    },
}

/// Whether all that a scenario asks for can be had in real time.
fn check(scenario: &Scenario, broker: &FieldBroker) -> Result<(), NotInRealTime> {
    if let Some(class) = scenario.classes.iter().find(|class| class.sleep.is_some()) {
        return Err(NotInRealTime::Sleep { class: class.name.clone() });
    }
    for phase in &scenario.phases {
        match (&phase.act, broker) {
            (Act::Network(_), _) => return Err(NotInRealTime::Network { phase: phase.name.clone() }),
            (Act::RestartBroker { .. }, FieldBroker::Plain(_)) => {
                return Err(NotInRealTime::Broker { phase: phase.name.clone() });
            }
            (
                Act::Onboard { .. }
                | Act::Churn { .. }
                | Act::Revoke { .. }
                | Act::Rekey
                | Act::Rotate
                | Act::PowerCut { .. }
                | Act::RestartBroker { .. }
                | Act::Wait { .. },
                _,
            ) => {}
        }
    }
    Ok(())
}

/// Runs a scenario in real time.
///
/// # Errors
/// [`NotInRealTime`], and what does not start or breaks.
pub async fn run(
    scenario: &Scenario,
    broker: FieldBroker,
    seed: u64,
    shape: Option<PathBuf>,
    mut following: Following,
) -> anyhow::Result<RunReport> {
    check(scenario, &broker)?;
    let options = RunOptions {
        seed,
        mode: Mode::Real,
        connections: Connections::OnePerDevice,
        broker: crate::bound::describe(&broker),
        shape,
    };
    let mut world = RealWorld::start(scenario, broker, following.clone()).await?;
    let report = fleetkey_scenario::run(scenario, &mut world, &options, &mut following).await;
    world.shutdown().await;
    let mut report = report?;
    if scenario.network != NetworkProfile::default() {
        report.notes.push(NETWORK_NOT_APPLIED.to_owned());
    }
    Ok(report)
}

/// The most devices that a run will have, as far as can be told: churn goes by chance.
fn most_devices(scenario: &Scenario) -> usize {
    let come = |act: &Act| match act {
        Act::Onboard { count, .. } => count.unwrap_or(scenario.fleet.devices),
        Act::Churn { lasts, joins, .. } => (lasts.as_secs_f64() * joins * 2.0) as usize + 100,
        Act::Revoke { .. }
        | Act::Rekey
        | Act::Rotate
        | Act::PowerCut { .. }
        | Act::RestartBroker { .. }
        | Act::Network(_)
        | Act::Wait { .. } => 0,
    };
    scenario.phases.iter().map(|phase| come(&phase.act)).sum::<usize>().max(scenario.fleet.devices)
}

/// Who owes what, as heard of the coordinator.
#[derive(Debug)]
struct Books {
    ledger: Ledger,
    groups: Vec<Book>,
    /// Devices that are being revoked, or were.
    revoked: BTreeSet<DeviceId>,
    /// Why nothing in here is to be trusted any more.
    broken: Option<String>,
}

/// One group.
#[derive(Debug)]
struct Book {
    id: GroupId,
    newest: KeyEpoch,
    members: BTreeSet<DeviceId>,
    /// When a command was given that will lead to a rekey, which has not been heard of.
    commanded: Option<Duration>,
    rekeyed_at: Duration,
    /// Whether the ledger knows that the last rekey was for a revocation.
    is_exposed: bool,
}

impl Books {
    fn hear(&mut self, event: Event, at: Duration) {
        let number = |groups: &[Book], id| groups.iter().position(|book| book.id == id);
        match event {
            Event::Rekeyed { group, key_epoch, .. } => {
                let Some(number) = number(&self.groups, group) else { return };
                let book = &mut self.groups[number];
                let is_new_key = std::mem::replace(&mut book.newest, key_epoch) < key_epoch;
                book.rekeyed_at = book.commanded.take().unwrap_or(at);
                book.is_exposed = false;
                self.ledger.rekeyed(number, is_new_key, book.rekeyed_at);
            }
            Event::Confirmed { group, device, is_current: true, .. } => {
                if let Some(number) = number(&self.groups, group) {
                    self.ledger.current(number, device, at);
                }
            }
            Event::Joined { group, device, .. } => {
                let Some(number) = number(&self.groups, group) else { return };
                self.groups[number].members.insert(device);
                self.ledger.joined(number, device, at);
            }
            Event::Left { group, device } => {
                let Some(number) = number(&self.groups, group) else { return };
                let book = &mut self.groups[number];
                book.members.remove(&device);
                self.ledger.left(number, device, at);
                if self.revoked.contains(&device) && !book.is_exposed {
                    book.is_exposed = true;
                    self.ledger.revoked(number, book.rekeyed_at);
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

    /// A command was given: whoever is in a group that it moves is due from now on.
    fn command(&mut self, at: Duration, moves: impl Fn(usize, &Book) -> bool) {
        for (number, book) in self.groups.iter_mut().enumerate() {
            if !book.members.is_empty() && moves(number, book) {
                book.commanded.get_or_insert(at);
            }
        }
    }

    fn is_settled(&self) -> bool {
        self.ledger.is_current() && self.groups.iter().all(|book| book.commanded.is_none())
    }
}

/// A fleet in real time.
struct RealWorld {
    field: Field,
    began: Instant,
    groups: Vec<GroupId>,
    books: Arc<Mutex<Books>>,
    /// Devices that are switched off, or revoked.
    off: BTreeSet<DeviceId>,
    /// Devices that were cut off, and are due to be answered.
    unanswered: BTreeSet<DeviceId>,
    asked: Instant,
    /// When the broker is to be there again.
    broker_back: Option<Duration>,
    /// What has happened since the runner asked, as far as whoever watches was told.
    told: Waited,
    told_at: Instant,
    following: Following,
    hears: JoinHandle<()>,
}

impl RealWorld {
    /// Starts broker and coordinator, with the groups of a scenario and without devices.
    async fn start(scenario: &Scenario, broker: FieldBroker, following: Following) -> anyhow::Result<Self> {
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let timing = Timing {
            hello_interval_seconds: seconds(scenario.fleet.hello_interval),
            max_silence_seconds: seconds(scenario.fleet.max_silence),
            ..Timing::default()
        };
        let options = FieldOptions {
            max_connecting: MAX_CONNECTING,
            ..FieldOptions::new(broker, most_devices(scenario), timing)
        };
        let field = Field::start(options).await?;
        let mut groups = Vec::new();
        for group in &scenario.groups {
            let created = field.coordinator().create_group(&group.name, policy(group)).await;
            groups.push(created.with_context(|| format!("create the group {}", group.name))?);
        }
        let book = |id: &GroupId| Book {
            id: *id,
            newest: KeyEpoch::default(),
            members: BTreeSet::new(),
            commanded: None,
            rekeyed_at: Duration::ZERO,
            is_exposed: false,
        };
        let books = Arc::new(Mutex::new(Books {
            ledger: Ledger::new(groups.len()),
            groups: groups.iter().map(book).collect(),
            revoked: BTreeSet::new(),
            broken: None,
        }));
        let began = Instant::now();
        let hears = tokio::spawn(listen(field.coordinator().events(), began, Arc::clone(&books)));
        Ok(Self {
            field,
            began,
            groups,
            books,
            off: BTreeSet::new(),
            unanswered: BTreeSet::new(),
            asked: began,
            broker_back: None,
            told: Waited::default(),
            told_at: began,
            following,
            hears,
        })
    }

    async fn shutdown(self) {
        self.hears.abort();
        self.field.shutdown().await;
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is due by now: the broker's return, and a look at who is answered.
    async fn keep_up(&mut self) -> anyhow::Result<()> {
        if self.broker_back.is_some_and(|back| self.now() >= back) {
            self.broker_back = None;
            self.field.restart_broker().await?;
            let there = self.field.ids().iter().filter(|id| !self.off.contains(id)).copied();
            let there: Vec<DeviceId> = there.collect();
            self.are_back(&there);
        }
        if !self.unanswered.is_empty() && self.broker_back.is_none() && self.asked.elapsed() >= ASK {
            // Who has confirmed a key since has been answered.
            let ids: Vec<DeviceId> = {
                let books = self.books();
                self.unanswered.iter().copied().filter(|id| books.ledger.is_unanswered(*id)).collect()
            };
            let answered = self.field.answered(&ids).await?;
            let now = self.now();
            self.unanswered = ids.into_iter().collect();
            for (id, ago) in answered {
                self.unanswered.remove(&id);
                self.books().ledger.answered(id, now.saturating_sub(ago));
            }
            self.asked = Instant::now();
        }
        Ok(())
    }

    /// Tells whoever watches how it goes.
    fn tell(&mut self) {
        if self.told_at.elapsed() < TELL {
            return;
        }
        let now = self.now();
        let (happened, members, late) = {
            let mut books = self.books();
            let members: usize = books.groups.iter().map(|book| book.members.len()).sum();
            (books.ledger.take(), members, books.ledger.late().len())
        };
        let all = self.field.ids().len() - self.off.len().min(self.field.ids().len());
        self.following.moment(&Moment {
            now,
            done: all.saturating_sub(late) as u64,
            of: Some(all as u64),
            members: members as u64,
            stragglers: late as u64,
            latencies: &happened.latencies,
        });
        add(&mut self.told, happened);
        self.told_at = Instant::now();
    }

    fn are_back(&mut self, ids: &[DeviceId]) {
        let now = self.now();
        self.unanswered.extend(ids);
        let mut books = self.books();
        ids.iter().for_each(|id| books.ledger.back(*id, now));
    }
}

fn add(all: &mut Waited, more: Waited) {
    all.latencies.extend(more.latencies);
    all.exposures.extend(more.exposures);
    all.key_ages.extend(more.key_ages);
}

/// Enters what happens, until the coordinator has ended.
async fn listen(mut events: Receiver<Event>, began: Instant, books: Arc<Mutex<Books>>) {
    loop {
        let event = events.recv().await;
        let at = began.elapsed();
        let mut books = books.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Ok(event) => books.hear(event, at),
            Err(RecvError::Lagged(missed)) => {
                books.broken = Some(format!("{missed} events of the coordinator were missed"));
            }
            Err(RecvError::Closed) => return books.broken = Some("the coordinator has ended".to_owned()),
        }
    }
}

impl World for RealWorld {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    async fn enrol(&mut self, classes: &[usize]) -> anyhow::Result<Vec<DeviceId>> {
        self.field.add(classes.len(), |_| {}).await
    }

    async fn bring_in(&mut self, group: usize, ids: &[DeviceId], due: Duration) -> anyhow::Result<()> {
        self.books().ledger.wanted(group, ids, due);
        let coordinator = self.field.coordinator();
        coordinator.add_members(self.groups[group], ids.to_vec()).await.context("bring devices in")?;
        Ok(())
    }

    async fn revoke(&mut self, ids: &[DeviceId], reason: &str) -> anyhow::Result<()> {
        let now = self.now();
        {
            let mut books = self.books();
            books.revoked.extend(ids);
            books.command(now, |_, book| ids.iter().any(|id| book.members.contains(id)));
            ids.iter().for_each(|id| books.ledger.gone(*id, now));
        }
        self.off.extend(ids);
        self.unanswered.retain(|id| !ids.contains(id));
        self.field.coordinator().revoke(ids.to_vec(), reason).await.context("revoke devices")?;
        // The broker lets them in no more: they need not go on trying.
        self.field.plug(ids, false).await
    }

    async fn evict(&mut self, group: usize, ids: &[DeviceId]) -> anyhow::Result<()> {
        let now = self.now();
        self.books()
            .command(now, |number, book| number == group && ids.iter().any(|id| book.members.contains(id)));
        let coordinator = self.field.coordinator();
        coordinator.evict(self.groups[group], ids.to_vec()).await.context("evict devices")?;
        // Of one that was only wanted nothing is heard.
        let mut books = self.books();
        ids.iter().for_each(|id| books.ledger.left(group, *id, now));
        Ok(())
    }

    async fn rekey(&mut self, group: usize) -> anyhow::Result<()> {
        let now = self.now();
        self.books().command(now, |number, _| number == group);
        self.field.coordinator().rekey(self.groups[group]).await.context("rekey")?;
        Ok(())
    }

    async fn rotate(&mut self, group: usize) -> anyhow::Result<()> {
        let now = self.now();
        self.books().command(now, |number, _| number == group);
        self.field.coordinator().rotate(self.groups[group]).await.context("rotate")?;
        Ok(())
    }

    async fn power(&mut self, ids: &[DeviceId], is_on: bool) -> anyhow::Result<()> {
        if is_on {
            ids.iter().for_each(|id| _ = self.off.remove(id));
            // Due from when the power is back, not from when the last of them was told.
            self.are_back(ids);
            self.field.plug(ids, true).await
        } else {
            self.off.extend(ids);
            self.field.cut_power(ids).await
        }
    }

    async fn reconnect(&mut self, ids: &[DeviceId], rounds: usize) -> anyhow::Result<Option<Vec<Duration>>> {
        self.field.reconnect(ids, rounds).await.map(Some)
    }

    async fn restart_broker(&mut self, away: Duration) -> anyhow::Result<()> {
        self.field.end_broker().await?;
        self.broker_back = Some(self.now() + away);
        Ok(())
    }

    async fn network(&mut self, _profile: &NetworkProfile) -> anyhow::Result<()> {
        anyhow::bail!("in real time the network is the one that is there")
    }

    async fn cells(&mut self, group: usize) -> anyhow::Result<Vec<Vec<DeviceId>>> {
        let mut cells = std::collections::BTreeMap::<_, Vec<DeviceId>>::new();
        for member in self.field.coordinator().members(self.groups[group]).await? {
            if let Place::In { cell } = member.place {
                cells.entry(cell).or_default().push(member.device);
            }
        }
        Ok(cells.into_values().collect())
    }

    async fn shape(&mut self) -> anyhow::Result<Vec<GroupStatus>> {
        Ok(self.field.coordinator().group_statuses().await?)
    }

    async fn wait(&mut self, until: Until) -> anyhow::Result<Waited> {
        let (end, stops_when_current) = match until {
            Until::Time(end) => (end, false),
            Until::Current { deadline } => (deadline, true),
        };
        loop {
            self.keep_up().await?;
            self.tell();
            let left = end.saturating_sub(self.now());
            let over = {
                let mut books = self.books();
                if let Some(why) = &books.broken {
                    anyhow::bail!("{why}");
                }
                let is_settled = books.is_settled() && self.broker_back.is_none();
                let is_over = left.is_zero() || (stops_when_current && is_settled);
                is_over.then(|| (is_settled, books.ledger.take()))
            };
            if let Some((is_current, happened)) = over {
                let mut waited = std::mem::take(&mut self.told);
                add(&mut waited, happened);
                return Ok(Waited { is_current, ..waited });
            }
            tokio::time::sleep(left.min(PAUSE)).await;
        }
    }

    async fn look(&mut self) -> anyhow::Result<Looked> {
        let status = self.field.coordinator().group_statuses().await?;
        let looked = self.field.look().await?;
        let (spent, seen) = (looked.spent, looked.devices);
        let broker_memory = spent.broker.map_or(0, |usage| usage.resident_bytes);
        Ok(Looked {
            members: status.iter().map(|group| group.members).sum(),
            wanted: status.iter().map(|group| group.wanted).sum(),
            stragglers: status.iter().map(|group| group.stragglers).sum(),
            cells: status.iter().map(|group| group.cells.len()).sum(),
            received_bytes: seen.received_bytes,
            sent_bytes: seen.sent_bytes,
            messages: seen.traffic.cell.messages + seen.traffic.down.messages,
            coordinator_cpu: Duration::from_micros(spent.deciding_cpu_microseconds),
            device_cpu: Duration::from_micros(spent.devices.cpu_microseconds),
            broker_cpu: spent.broker.map(|usage| Duration::from_micros(usage.cpu_microseconds)),
            memory_bytes: spent.coordinator.resident_bytes + spent.devices.resident_bytes + broker_memory,
            refused: seen.refused.values().sum(),
        })
    }
}

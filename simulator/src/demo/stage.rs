//! One stage: from a command to the moment at which the coordinator knows of every device, and what that cost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fleetkey_agent::Traffic;
use fleetkey_coordinator::Stats;
use fleetkey_coordinator_core::{Event, GroupStatus};
use fleetkey_wire::{DeviceId, GroupId, Reason};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::fleet::{Device, Fleet};
use crate::progress::Progress;
use crate::report::Stage;
use fleetkey_report::{Times, distribution_of};

/// How long a stage may take, whatever the size of the fleet, and what each device adds.
const LONGEST: Duration = Duration::from_secs(60);
const LONGEST_PER_DEVICE: Duration = Duration::from_millis(40);
const LOOK: Duration = Duration::from_millis(50);

/// A stage under way.
#[derive(Debug)]
pub(super) struct Watch {
    name: String,
    group: GroupId,
    expected: BTreeSet<DeviceId>,
    confirmed: BTreeSet<DeviceId>,
    events: broadcast::Receiver<Event>,
    missed_events: u64,
    started: Instant,
    times: Times,
    seen: Seen,
    before: Stats,
    traffic_before: BTreeMap<DeviceId, Traffic>,
    progress: Progress,
}

/// What happened in a stage, beside its figures.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Devices that were to confirm.
    pub(super) expected: usize,
    /// Devices that did not, and where each stands.
    pub(super) failures: Vec<String>,
    /// The statements, in order.
    pub(super) statements: Vec<Reason>,
    /// Signatures that the coordinator made.
    pub(super) signatures: u64,
    /// How devices caught up, by way.
    pub(super) catch_ups: BTreeMap<&'static str, usize>,
}

impl Watch {
    pub(super) async fn begin(
        fleet: &Fleet,
        group: GroupId,
        name: &str,
        expected: BTreeSet<DeviceId>,
    ) -> anyhow::Result<Self> {
        let before = fleet.coordinator().stats().await?;
        let traffic_before = fleet.devices().iter().map(|device| (device.id(), device.traffic())).collect();
        Ok(Self {
            name: name.to_owned(),
            group,
            progress: Progress::start(name, expected.len()),
            seen: Seen { expected: expected.len(), ..Seen::default() },
            expected,
            confirmed: BTreeSet::new(),
            events: fleet.coordinator().events(),
            missed_events: 0,
            started: Instant::now(),
            times: Times::default(),
            before,
            traffic_before,
        })
    }

    /// Waits for the end of the stage.
    pub(super) async fn finish(mut self, fleet: &Fleet) -> anyhow::Result<(Stage, Seen)> {
        let deadline = self.started + LONGEST + LONGEST_PER_DEVICE * self.expected.len() as u32;
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                event = self.events.recv() => self.note(event)?,
                _ = look.tick() => {
                    self.progress.set(self.confirmed.len());
                    if self.is_over(fleet).await? || Instant::now() >= deadline {
                        break;
                    }
                }
            }
        }
        while let Ok(event) = self.events.try_recv() {
            self.note(Ok(event))?;
        }
        self.conclude(fleet).await
    }

    fn note(&mut self, event: Result<Event, RecvError>) -> anyhow::Result<()> {
        let event = match event {
            Ok(event) => event,
            Err(RecvError::Lagged(missed)) => {
                self.missed_events += missed;
                return Ok(());
            }
            Err(RecvError::Closed) => {
                anyhow::bail!("the coordinator has ended: FLEETKEY_LOG=info shows its log")
            }
        };
        match event {
            Event::Confirmed { group, device, is_current, .. } if group == self.group && is_current => {
                if self.expected.contains(&device) && self.confirmed.insert(device) {
                    self.times.record(self.started.elapsed());
                }
            }
            Event::Rekeyed { group, reason, .. } if group == self.group => self.seen.statements.push(reason),
            Event::CaughtUp { by, .. } => *self.seen.catch_ups.entry(by.name()).or_default() += 1,
            Event::Confirmed { .. }
            | Event::Rekeyed { .. }
            | Event::AllConfirmed { .. }
            | Event::Deadline { .. }
            | Event::Joined { .. }
            | Event::Left { .. }
            | Event::Resent { .. }
            | Event::Quarantined { .. }
            | Event::Superseded { .. } => {}
        }
        Ok(())
    }

    /// Every expected device has applied the newest statement, nobody waits to come in, and no rotation is under way.
    async fn is_over(&self, fleet: &Fleet) -> anyhow::Result<bool> {
        let status = fleet.coordinator().group_status(self.group).await?;
        Ok(status.rotation.is_none() && status.wanted == 0 && self.behind(fleet, &status).await?.is_empty())
    }

    /// The expected devices that have not confirmed the newest key epoch.
    async fn behind(&self, fleet: &Fleet, status: &GroupStatus) -> anyhow::Result<Vec<DeviceId>> {
        if status.stragglers == 0 && status.members >= self.expected.len() {
            return Ok(Vec::new());
        }
        let members = fleet.coordinator().members(self.group).await?;
        let current: BTreeSet<DeviceId> = members
            .iter()
            .filter(|member| member.confirmed.to_string() == status.key_epoch)
            .map(|member| member.device)
            .collect();
        Ok(self.expected.difference(&current).copied().collect())
    }

    async fn conclude(mut self, fleet: &Fleet) -> anyhow::Result<(Stage, Seen)> {
        let status = fleet.coordinator().group_status(self.group).await?;
        let behind = self.behind(fleet, &status).await?;
        for device in fleet.devices().iter().filter(|device| behind.contains(&device.id())) {
            self.seen.failures.push(describe(device, &status).await?);
        }
        if self.missed_events > 0 {
            self.seen.failures.push(format!("{} events of the coordinator were missed", self.missed_events));
        }
        let after = fleet.coordinator().stats().await?;
        let bytes = distribution_of(self.expected.iter().filter_map(|id| {
            let device = fleet.devices().iter().find(|device| device.id() == *id)?;
            let before = self.traffic_before.get(id).copied().unwrap_or_default();
            let now = device.traffic();
            Some((now.cell.bytes + now.down.bytes) - (before.cell.bytes + before.down.bytes))
        }));
        let decided = after.decided().since(self.before.decided());
        let resent = after.down_resends.since(self.before.down_resends).messages;
        let of_down = |stats: &Stats| stats.down_answers.and(stats.down_catch_ups).and(stats.down_resends);
        let spent = |stats: &Stats| stats.cpu_microseconds.unwrap_or(0);
        self.seen.signatures = after.signatures - self.before.signatures;
        let stage = Stage {
            name: self.name,
            milliseconds: self.times.milliseconds(),
            bytes_per_device: bytes,
            published: decided.messages,
            published_bytes: decided.bytes,
            answered: of_down(&after).since(of_down(&self.before)).messages,
            resent,
            received: after.received.since(self.before.received).messages,
            signatures: self.seen.signatures,
            coordinator_cpu_milliseconds: (spent(&after) - spent(&self.before)) as f64 / 1_000.0,
        };
        self.progress.finish(self.expected.len() - behind.len());
        Ok((stage, self.seen))
    }
}

/// Where a device stands that should stand elsewhere.
async fn describe(device: &Device, status: &GroupStatus) -> anyhow::Result<String> {
    let shown = device.agent.status().await?;
    let id = device.id();
    if !shown.is_connected {
        return Ok(format!("{id}: is not connected"));
    }
    if !shown.is_answered {
        return Ok(format!("{id}: has no answer from the coordinator"));
    }
    let refused =
        if shown.refused.is_empty() { String::new() } else { format!(", refused {:?}", shown.refused) };
    Ok(match shown.groups.iter().find(|of| of.group == status.id) {
        None => format!("{id}: is not in the group{refused}"),
        Some(of) => format!(
            "{id}: holds {:?} at epoch {} of cell {}, {} is current{refused}",
            of.held, of.cell_epoch, of.cell, status.key_epoch
        ),
    })
}

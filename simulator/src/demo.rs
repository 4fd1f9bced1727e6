//! The main job, shown and checked: onboard, seal, revoke, join late, rotate, miss two rekeys and catch up.

mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fleetkey_agent::Recorded;
use fleetkey_coordinator_core::Policy;
use fleetkey_wire::{CellId, DeviceId, GroupId, Reason, Topic};
use rand_core::{OsRng, RngCore};

use crate::fleet::{BrokerChoice, Device, Fleet, until};
use crate::progress::Progress;
use crate::report::{Report, RevocationFigures, Stage};
use crate::thief::Thief;
use fleetkey_report::Check;
use stage::Watch;

/// Devices that are revoked.
const REVOKED: usize = 3;
/// Devices that come late.
const LATE: usize = 10;
/// A statement with its wrap, outside a revoked device's cell, is at most this large, in bytes of MQTT payload.
const STATEMENT_FRAME_LIMIT_BYTES: u64 = 300;
/// And the frame with the commit, inside.
const COMMIT_FRAME_LIMIT_BYTES: u64 = 7 * 1024;

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Devices to begin with.
    pub devices: usize,
    /// Which broker to use.
    pub broker: BrokerChoice,
    /// What to run in a shell as soon as the revocation has begun: to kill a node of the broker in the middle of it.
    pub with_revocation: Option<String>,
}

impl Options {
    /// Whether this machine and this build can run it.
    ///
    /// # Errors
    /// What stands in the way, and what to do about it.
    pub fn check(&self) -> anyhow::Result<()> {
        let sockets_per_device: u64 = match self.broker {
            BrokerChoice::Embedded(_) => 2,
            BrokerChoice::Plain(_) | BrokerChoice::Outside(_) => 1,
        };
        let needed = (self.devices + LATE) as u64 * sockets_per_device + 200;
        let allowed = rlimit::increase_nofile_limit(needed).context("read the limit on open files")?;
        if allowed < needed {
            anyhow::bail!(
                "{} devices need {needed} open files, and this process may open {allowed}: raise `ulimit -Hn`, or use \
                 fewer devices",
                self.devices
            );
        }
        Ok(())
    }
}

/// Runs the demo.
///
/// # Errors
/// When something does not start. What starts and does not do its job is a failed check in the report.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let started = Instant::now();
    let mut demo = Demo::start(options).await?;
    let before = demo.onboard(options.devices).await?;
    demo.revoke().await?;
    demo.join_late(&before).await?;
    demo.rotate().await?;
    demo.miss_two_rekeys().await?;
    demo.compare_everyone().await?;
    let mut report = demo.report;
    report.seconds = started.elapsed().as_secs_f64();
    demo.fleet.shutdown().await;
    Ok(report)
}

struct Demo {
    fleet: Fleet,
    group: GroupId,
    report: Report,
    with_revocation: Option<String>,
}

impl Demo {
    async fn start(options: &Options) -> anyhow::Result<Self> {
        let fleet = Fleet::start(&options.broker).await?;
        // A short overlap, so that a rotation takes seconds; the revoked devices' key is not accepted a moment longer.
        let policy = Policy { overlap_seconds: 2, rotation_interval_seconds: 0, ..Policy::default() };
        let group = fleet.coordinator().create_group("meters", policy).await.context("create the group")?;
        let broker = match &options.broker {
            BrokerChoice::Plain(url) => format!("{url}, plain TCP"),
            BrokerChoice::Embedded(fan_out) => format!("the embedded broker over TLS ({fan_out:?})"),
            BrokerChoice::Outside(outside) => {
                let urls: Vec<String> = outside.urls.iter().map(ToString::to_string).collect();
                format!("{} over TLS", urls.join(", "))
            }
        };
        let report = Report {
            version: 1,
            devices: options.devices,
            broker,
            stages: Vec::new(),
            revocation: RevocationFigures::default(),
            checks: Vec::new(),
            seconds: 0.0,
        };
        Ok(Self { fleet, group, report, with_revocation: options.with_revocation.clone() })
    }

    /// Enrols the fleet, brings it into the group, and seals a message that everyone opens.
    async fn onboard(&mut self, count: usize) -> anyhow::Result<Vec<u8>> {
        let connecting = Progress::start(format!("enrol and connect {count}"), count);
        let ids = self.fleet.add_devices(count).await?;
        self.wait_until_answered(&connecting).await?;
        connecting.finish(self.answered().await?);

        let watch = self.watch("onboard", ids.iter().copied().collect()).await?;
        self.fleet.coordinator().add_members(self.group, ids).await.context("add the devices")?;
        self.finish(watch, "every device joined, and confirmed the group's key").await?;

        let sealed = self.seal(b"before the revocation").await?;
        self.check_opens("a sealed message opens on every device", &sealed).await?;
        Ok(sealed)
    }

    async fn revoke(&mut self) -> anyhow::Result<()> {
        let gone = self.choose(REVOKED);
        let cells = self.cells_of(&gone).await?;
        let thieves = self.thieves(&gone)?;
        let aside = self.fleet.set_aside(&gone);
        let remaining: BTreeSet<DeviceId> = self.fleet.devices().iter().map(Device::id).collect();
        let before = self.fleet.coordinator().stats().await?;
        self.fleet.coordinator().restart_maxima();

        let watch = self.watch("revoke 3", remaining.clone()).await?;
        self.fleet.coordinator().revoke(gone, "stolen").await.context("revoke")?;
        if let Some(command) = &self.with_revocation {
            let done = tokio::process::Command::new("sh").args(["-c", command]).status().await;
            anyhow::ensure!(
                done.context("--with-revocation")?.success(),
                "--with-revocation {command:?} did not succeed"
            );
        }
        let seen = self.finish(watch, "every remaining device confirmed the new key").await?;

        let status = self.fleet.coordinator().group_status(self.group).await?;
        let after = self.fleet.coordinator().stats().await?;
        let at = RevocationFigures {
            revoked: REVOKED,
            remaining: remaining.len(),
            cells: status.cells.len() as u64,
            statement_frames: after.cell_statements.since(before.cell_statements).messages,
            statement_frame_max_bytes: after.cell_statements.max_bytes,
            commit_frames: after.cell_commits.since(before.cell_commits).messages,
            commit_frame_max_bytes: after.cell_commits.max_bytes,
            published: after.decided().since(before.decided()).messages,
            resent: after.down_resends.since(before.down_resends).messages,
            signatures: after.signatures - before.signatures,
            statements: seen.statements.len() as u64,
        };
        self.report.checks.extend(check_revocation(&at));
        self.report.revocation = at;

        let sealed = self.seal(b"after the revocation").await?;
        self.check_opens("the next sealed message opens on every remaining device", &sealed).await?;
        self.check_locked_out(&aside, &thieves, &cells, &sealed).await
    }

    /// The revoked devices, their copies from before the revocation, and whatever anybody in their cells heard: all
    /// of it together does not open the next message.
    async fn check_locked_out(
        &mut self,
        revoked: &[Device],
        thieves: &[Thief],
        cells: &BTreeMap<DeviceId, CellId>,
        sealed: &[u8],
    ) -> anyhow::Result<()> {
        let mut failures = Vec::new();
        let mut overheard_messages = 0;
        for (device, thief) in revoked.iter().zip(thieves) {
            if device.agent.open(sealed, b"").await.is_ok() {
                failures.push(format!("{}: its agent opened the message", device.id()));
            }
            let overheard = self.overheard(device, cells.get(&device.id()));
            overheard_messages += overheard.len();
            let after = Thief::copy(&device.config, &device.store)?;
            for (thief, when) in [(thief, "before"), (&after, "after")] {
                if thief.opens(&overheard, sealed)? {
                    failures.push(format!("{}: a copy from {when} the revocation opened it", thief.device()));
                }
            }
            device.agent.stop().await;
        }
        let claim = format!(
            "no revoked device opens it, with all it stored and {overheard_messages} messages overheard"
        );
        self.report.checks.push(Check::each(claim, revoked.len(), &failures));
        if let Some(broker) = self.fleet.broker() {
            let closed = broker.stats().closed("revoked");
            let claim = "the broker closed the sessions of the revoked devices";
            self.report.checks.push(Check::that(claim, closed == revoked.len() as u64, closed.to_string()));
        }
        Ok(())
    }

    /// What the device recorded, and what was said in its former cell since, as a neighbour recorded it.
    fn overheard(&self, device: &Device, cell: Option<&CellId>) -> Vec<Recorded> {
        let in_cell =
            |message: &Recorded| matches!(&message.topic, Topic::Cell { cell: of, .. } if Some(of) == cell);
        let neighbour = self
            .fleet
            .devices()
            .iter()
            .map(|neighbour| neighbour.agent.recorded())
            .find(|recorded| recorded.iter().any(in_cell));
        let mut overheard = device.agent.recorded();
        overheard.extend(neighbour.into_iter().flatten().filter(in_cell));
        overheard
    }

    async fn join_late(&mut self, before: &[u8]) -> anyhow::Result<()> {
        let ids = self.fleet.add_devices(LATE).await?;
        let watch = self.watch("ten join late", ids.iter().copied().collect()).await?;
        self.fleet
            .coordinator()
            .add_members(self.group, ids.clone())
            .await
            .context("add the late devices")?;
        self.finish(watch, "every late device joined, and confirmed").await?;
        // The joins may have come in two rekeys, and nobody has waited for what the others hold of the last.
        let deadline = Instant::now() + Duration::from_secs(30);
        let hold_newest =
            async || Ok(self.fleet.coordinator().group_status(self.group).await?.stragglers == 0);
        anyhow::ensure!(until(deadline, hold_newest).await?, "not everybody holds the key of the last join");

        let sealed = self.seal(b"after the late devices joined").await?;
        let mut failures = Vec::new();
        for device in self.fleet.devices().iter().filter(|device| ids.contains(&device.id())) {
            if device.agent.open(before, b"").await.is_ok() {
                failures.push(format!("{}: opened the message from before it joined", device.id()));
            }
            if Thief::copy(&device.config, &device.store)?.opens(&device.agent.recorded(), before)? {
                failures.push(format!("{}: opened it with all that it heard", device.id()));
            }
        }
        self.report.checks.push(Check::each("no late device opens the message from before", LATE, &failures));
        self.check_opens("a new message opens on every device, late ones included", &sealed).await
    }

    async fn rotate(&mut self) -> anyhow::Result<()> {
        let former = self.seal(b"under the former key").await?;
        let everyone: BTreeSet<DeviceId> = self.fleet.devices().iter().map(Device::id).collect();
        let watch = self.watch("rotate", everyone).await?;
        self.fleet.coordinator().rotate(self.group).await.context("rotate")?;
        let seen = self.finish(watch, "every device confirmed through the rotation").await?;

        let expected = [Reason::Distribute, Reason::Activate, Reason::Retire];
        let shown = format!("{} statements, {} signatures", seen.statements.len(), seen.signatures);
        let held = seen.statements == expected && seen.signatures == expected.len() as u64;
        self.report.checks.push(Check::that("a rotation is three statements", held, shown));

        // The overlap ends on each device's own clock, at most its length after the last statement came.
        let mut failures = Vec::new();
        for device in self.fleet.devices() {
            let deadline = Instant::now() + Duration::from_secs(5);
            let is_over =
                until(deadline, async || Ok(device.agent.open(&former, b"").await.is_err())).await?;
            if !is_over {
                failures.push(format!("{}: still opens a message under the former key", device.id()));
            }
        }
        let count = self.fleet.devices().len();
        self.report.checks.push(Check::each("the former key is retired on every device", count, &failures));
        let sealed = self.seal(b"under the rotated key").await?;
        self.check_opens("a message under the rotated key opens on every device", &sealed).await
    }

    async fn miss_two_rekeys(&mut self) -> anyhow::Result<()> {
        let unplugged = self.choose(self.fleet.devices().len() / 10);
        for device in self.fleet.devices().iter().filter(|device| unplugged.contains(&device.id())) {
            device.agent.disconnect().await?;
        }
        let plugged: BTreeSet<DeviceId> =
            self.fleet.devices().iter().map(Device::id).filter(|id| !unplugged.contains(id)).collect();
        let watch = self.watch("rekey, a tenth unplugged", plugged.clone()).await?;
        self.fleet.coordinator().rekey(self.group).await.context("rekey")?;
        self.finish(watch, "every plugged device confirmed").await?;

        let (evicted, plugged) = self.one_of(plugged)?;
        let aside = self.fleet.set_aside(&[evicted]);
        let watch = self.watch("evict one, a tenth unplugged", plugged).await?;
        self.fleet.coordinator().evict(self.group, vec![evicted]).await.context("evict")?;
        self.finish(watch, "every plugged device confirmed again").await?;
        for device in aside {
            device.agent.stop().await;
        }

        let watch = self.watch("replug a tenth", unplugged.iter().copied().collect()).await?;
        for device in self.fleet.devices().iter().filter(|device| unplugged.contains(&device.id())) {
            device.agent.reconnect().await?;
        }
        let seen = self.finish(watch, "every replugged device caught up over two rekeys").await?;
        let ways = seen.catch_ups.iter().map(|(way, count)| format!("{count} by {way}"));
        let ways = ways.collect::<Vec<_>>().join(", ");
        let without_joins = !seen.catch_ups.contains_key("fresh_join");
        self.report.checks.push(Check::that("catching up took no fresh join", without_joins, ways));
        let sealed = self.seal(b"after everybody is back").await?;
        self.check_opens("a message opens on every device again", &sealed).await
    }

    /// At the end, each device stands where the coordinator believes it to stand.
    async fn compare_everyone(&mut self) -> anyhow::Result<()> {
        let status = self.fleet.coordinator().group_status(self.group).await?;
        let mut failures = Vec::new();
        for device in self.fleet.devices() {
            let shown = device.agent.status().await?;
            let Some(of) = shown.groups.iter().find(|of| of.group == self.group) else {
                failures.push(format!("{}: is not in the group", device.id()));
                continue;
            };
            if (of.send.to_string(), of.oldest.to_string()) != (status.send.clone(), status.oldest.clone()) {
                failures.push(format!("{}: seals with {}, not {}", device.id(), of.send, status.send));
            }
            if !shown.alarms.is_empty() {
                failures.push(format!("{}: raised an alarm", device.id()));
            }
        }
        let count = self.fleet.devices().len();
        let claim = format!("every device is at key epoch {} in the end", status.send);
        self.report.checks.push(Check::each(claim, count, &failures));
        let is_whole = (status.members, status.stragglers, status.wanted) == (count, 0, 0);
        let seen = format!("{} members, {} stragglers", status.members, status.stragglers);
        self.report.checks.push(Check::that("the coordinator counts the same", is_whole, seen));
        Ok(())
    }

    /// Begins a stage that is over when each of `expected` has confirmed and the group is at rest.
    async fn watch(&self, name: &str, expected: BTreeSet<DeviceId>) -> anyhow::Result<Watch> {
        Watch::begin(&self.fleet, self.group, name, expected).await
    }

    /// Ends a stage, and takes its figures into the report.
    async fn finish(&mut self, watch: Watch, claim: &str) -> anyhow::Result<stage::Seen> {
        let (stage, seen): (Stage, stage::Seen) = watch.finish(&self.fleet).await?;
        self.report.checks.push(Check::each(claim, seen.expected, &seen.failures));
        self.report.stages.push(stage);
        Ok(seen)
    }

    async fn wait_until_answered(&self, progress: &Progress) -> anyhow::Result<()> {
        let count = self.fleet.devices().len();
        let deadline = Instant::now() + Duration::from_secs(30) + Duration::from_millis(20) * count as u32;
        until(deadline, async || {
            let answered = self.answered().await?;
            progress.set(answered);
            Ok(answered == count)
        })
        .await?;
        Ok(())
    }

    async fn answered(&self) -> anyhow::Result<usize> {
        let ids: Vec<DeviceId> = self.fleet.devices().iter().map(Device::id).collect();
        let online = self
            .fleet
            .coordinator()
            .query(move |coordinator, now| ids.iter().filter(|id| coordinator.is_online(**id, now)).count());
        Ok(online.await?)
    }

    async fn seal(&self, text: &[u8]) -> anyhow::Result<Vec<u8>> {
        let sender = self.fleet.devices().first().context("there is a device")?;
        sender.agent.seal(self.group, text, b"", false).await.context("seal a message")
    }

    async fn check_opens(&mut self, claim: &str, sealed: &[u8]) -> anyhow::Result<()> {
        let mut failures = Vec::new();
        for device in self.fleet.devices() {
            if let Err(error) = device.agent.open(sealed, b"").await {
                failures.push(format!("{}: {error}", device.id()));
            }
        }
        self.report.checks.push(Check::each(claim, self.fleet.devices().len(), &failures));
        Ok(())
    }

    /// Some devices by chance, but never the first: it seals.
    fn choose(&self, count: usize) -> Vec<DeviceId> {
        let mut ids: Vec<DeviceId> = self.fleet.devices().iter().skip(1).map(Device::id).collect();
        (0..count.min(ids.len())).map(|_| ids.swap_remove(OsRng.next_u32() as usize % ids.len())).collect()
    }

    /// One of `ids`, but not the first device, and the others.
    fn one_of(&self, mut ids: BTreeSet<DeviceId>) -> anyhow::Result<(DeviceId, BTreeSet<DeviceId>)> {
        let first = self.fleet.devices().first().map(Device::id);
        let one = ids.iter().copied().find(|id| Some(*id) != first).context("there are devices")?;
        ids.remove(&one);
        Ok((one, ids))
    }

    fn thieves(&self, ids: &[DeviceId]) -> anyhow::Result<Vec<Thief>> {
        let devices = self.fleet.devices().iter().filter(|device| ids.contains(&device.id()));
        devices.map(|device| Thief::copy(&device.config, &device.store)).collect()
    }

    async fn cells_of(&self, ids: &[DeviceId]) -> anyhow::Result<BTreeMap<DeviceId, CellId>> {
        let mut cells = BTreeMap::new();
        for device in self.fleet.devices().iter().filter(|device| ids.contains(&device.id())) {
            let status = device.agent.status().await?;
            cells.extend(status.groups.first().map(|of| (device.id(), of.cell)));
        }
        Ok(cells)
    }
}

fn check_revocation(at: &RevocationFigures) -> Vec<Check> {
    vec![
        Check::that(
            format!(
                "a device outside the revoked devices' cells gets one message of at most {STATEMENT_FRAME_LIMIT_BYTES} bytes"
            ),
            at.statement_frame_max_bytes <= STATEMENT_FRAME_LIMIT_BYTES
                && at.commit_frames <= at.revoked as u64,
            format!("{} frames, at most {} bytes", at.statement_frames, at.statement_frame_max_bytes),
        ),
        Check::that(
            format!("a device inside gets one of at most {COMMIT_FRAME_LIMIT_BYTES} bytes"),
            at.commit_frames > 0 && at.commit_frame_max_bytes <= COMMIT_FRAME_LIMIT_BYTES,
            format!("{} frames, at most {} bytes", at.commit_frames, at.commit_frame_max_bytes),
        ),
        Check::that(
            "the coordinator publishes at most cells + 2 messages",
            at.published > 0 && at.published <= at.cells + 2,
            format!("{} for {} cells, and {} re-sends", at.published, at.cells, at.resent),
        ),
        Check::that(
            "the coordinator signs once for each statement",
            at.signatures == at.statements && at.statements == 1,
            format!("{} signatures, {} statement", at.signatures, at.statements),
        ),
    ]
}

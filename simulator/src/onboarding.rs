//! A fleet comes in: identities are made and enrolled, devices connect, join, and confirm that they hold the group's key.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fleetkey_report::memory;
use fleetkey_wire::{DeviceId, GroupId};
use serde::Serialize;

use crate::field::{Field, Spent, pause_after};
use crate::parts::Usage;
use crate::progress::Progress;

/// What it took.
#[derive(Debug, Clone, Serialize)]
pub struct Onboarding {
    /// Devices.
    pub devices: usize,
    /// Until all were made and enrolled, in seconds.
    pub enrol_seconds: f64,
    /// From there until the coordinator had answered all of them.
    pub connect_seconds: f64,
    /// From the command that all are members to the last confirmation.
    pub join_seconds: f64,
    /// The coordinator's process, which also measures.
    pub coordinator: Usage,
    /// Of that, the thread that decides, in microseconds of a processor.
    pub deciding_cpu_microseconds: u64,
    /// The broker, with its edges, where it is ours.
    pub broker: Option<Usage>,
    /// All processes of devices.
    pub devices_usage: Usage,
    /// What the whole machine had in use at the end, beyond what it had before the first process: with the kernel's part of
    /// each connection, and with what others have begun or ended meanwhile. Nothing where the system does not tell.
    pub machine_bytes: Option<u64>,
}

impl Onboarding {
    /// Brings so many devices into the group.
    ///
    /// # Errors
    /// When a part fails, or it takes too long.
    pub async fn of(
        field: &mut Field,
        group: GroupId,
        count: usize,
    ) -> anyhow::Result<(Vec<DeviceId>, Self)> {
        let before = memory::available_bytes();
        let started = Instant::now();
        let ids = field.add_devices(count).await?;
        let enrol_seconds = started.elapsed().as_secs_f64();
        let connect_seconds = field.wait_until_answered(0).await?.as_secs_f64();
        let join_seconds = join(field, group, ids.clone()).await?.as_secs_f64();
        let Spent { coordinator, deciding_cpu_microseconds, broker, devices } = field.look().await?.spent;
        let machine_bytes =
            before.zip(memory::available_bytes()).map(|(before, now)| before.saturating_sub(now));
        let onboarding = Self {
            devices: count,
            enrol_seconds,
            connect_seconds,
            join_seconds,
            coordinator,
            deciding_cpu_microseconds,
            broker,
            devices_usage: devices,
            machine_bytes,
        };
        Ok((ids, onboarding))
    }

    /// From nothing to the last confirmation, in seconds.
    pub fn seconds(&self) -> f64 {
        self.enrol_seconds + self.connect_seconds + self.join_seconds
    }

    /// The most that all processes together have had in memory, in bytes: each at its worst.
    pub fn peak_bytes(&self) -> u64 {
        let Self { coordinator, broker, devices_usage, .. } = self;
        coordinator.peak_resident_bytes
            + broker.unwrap_or_default().peak_resident_bytes
            + devices_usage.peak_resident_bytes
    }
}

impl fmt::Display for Onboarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broker = self.broker.unwrap_or_default();
        let per_device = |microseconds: u64| microseconds as f64 / self.devices.max(1) as f64;
        let seconds = |usage: Usage| usage.cpu_microseconds as f64 / 1e6;
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        writeln!(
            f,
            "onboarded in {:.1} s: made and enrolled {:.1} s (connecting meanwhile), all connected and answered {:.1} s, joined and confirmed {:.1} s",
            self.seconds(),
            self.enrol_seconds,
            self.connect_seconds,
            self.join_seconds
        )?;
        writeln!(
            f,
            "processor: coordinator {:.1} s ({:.0} us a device; deciding {:.1} s), broker {:.1} s ({:.0} us), devices {:.1} s \
             ({:.0} us)",
            seconds(self.coordinator),
            per_device(self.coordinator.cpu_microseconds),
            self.deciding_cpu_microseconds as f64 / 1e6,
            seconds(broker),
            per_device(broker.cpu_microseconds),
            seconds(self.devices_usage),
            per_device(self.devices_usage.cpu_microseconds),
        )?;
        write!(
            f,
            "memory at its peak: {:.2} GiB: coordinator {:.2}, broker {:.2}, devices {:.2} ({:.1} KiB each)",
            gib(self.peak_bytes()),
            gib(self.coordinator.peak_resident_bytes),
            gib(broker.peak_resident_bytes),
            gib(self.devices_usage.peak_resident_bytes),
            per_device(self.devices_usage.peak_resident_bytes) / 1024.0,
        )?;
        match self.machine_bytes {
            Some(bytes) => writeln!(f, "; in use on the machine, with the kernel's: {:.2}", gib(bytes)),
            None => writeln!(f),
        }
    }
}

/// Brings everybody in: from the command to the last confirmation.
async fn join(field: &Field, group: GroupId, ids: Vec<DeviceId>) -> anyhow::Result<Duration> {
    let count = ids.len();
    let progress = Progress::start(format!("onboard {count}"), count);
    let started = Instant::now();
    field.coordinator().add_members(group, ids).await.context("add the devices")?;
    let patience = Duration::from_secs(60) + Duration::from_millis(40) * u32::try_from(count)?;
    loop {
        let asked = Instant::now();
        let status = field.coordinator().group_status(group).await?;
        let current = status.members.saturating_sub(status.stragglers);
        progress.set(current);
        if status.members == count && status.stragglers == 0 && status.wanted == 0 {
            break;
        }
        anyhow::ensure!(
            started.elapsed() < patience,
            "{current} of {count} devices came in within {} s",
            patience.as_secs()
        );
        tokio::time::sleep(pause_after(asked).max(Duration::from_millis(100))).await;
    }
    progress.finish(count);
    Ok(started.elapsed())
}

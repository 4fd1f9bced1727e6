//! `fleetkey-sim twin`: what a revocation will cost a fleet that there is, tried out on one like it in virtual time.
//!
//! The shape is what `fleetkey group list --json` says: sizes, policies, who is out of reach; nothing secret is in it. Leaves
//! revoking to the operator, and what comes of holding a prediction against what happened to [`held`].

pub mod held;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use fleetkey_coordinator_core::{GroupStatus, OnJoin, Policy};
use fleetkey_report::{RunReport, Times};
use fleetkey_wire::DeviceId;
use serde::{Deserialize, Serialize};

use self::held::Held;
use crate::dice::Dice;
use crate::in_virtual_time::VirtualWorld;
use crate::scenario::{Class, Fleet, Group, NetworkProfile, Scenario};
use crate::units::{Quantity as _, Time, people};
use crate::world::{Until, World as _};

/// How long the twin waits for its devices.
const SETTLES_WITHIN: Duration = Duration::from_secs(1_800);
/// Longer than a device that is connected takes, to see them all in.
const QUIET: Duration = Duration::from_secs(60);

/// Predicts what revoking devices of a live fleet will cost: time, bytes, stragglers.
///
/// Takes the fleet's shape from `fleetkey group list --json`, which holds no secrets, builds one like it in virtual time, with
/// the real cores, and revokes there. It cannot know in which cells your devices are: --which says what to assume. Devices in
/// several groups are assumed to be in the larger ones too. With --against, the prediction is held against what a run shows.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  \
    fleetkey group list --json > shape.json && fleetkey-sim twin --from shape.json --revoke 300 --which same-cells\n  \
    fleetkey-sim run stolen-truck --devices 1000 --shape shape.json --json truck.json\n  \
    fleetkey-sim twin --from shape.json --revoke 30 --which same-cells --one-machine --min-delay 1ms --max-delay 1ms --against truck.json")]
pub struct Twin {
    /// The live fleet's shape.
    #[arg(long, value_name = "FILE")]
    pub from: PathBuf,
    /// How many devices to revoke.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub revoke: u32,
    /// Whether they share as few cells as can be, or are spread over all.
    #[arg(long, value_enum, default_value_t = Cells::Spread)]
    pub which: Cells,
    /// The shortest way between a device and the broker, in time.
    #[arg(long, default_value = "20ms", value_parser = read_time)]
    pub min_delay: Duration,
    /// The longest.
    #[arg(long, default_value = "80ms", value_parser = read_time)]
    pub max_delay: Duration,
    /// What chance is drawn from.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The report of a run (`fleetkey-sim run --json`) that revoked so many devices of a fleet of this shape.
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
    /// Which of its phases; without it the first that was a revocation.
    #[arg(long, value_name = "NAME", requires = "against")]
    pub phase: Option<String>,
    /// All devices of that run shared this machine's processors: their computing counts.
    #[arg(long, requires = "against")]
    pub one_machine: bool,
    /// Where to write the prediction as JSON, and what it was held against.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Which devices are revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Cells {
    /// Any, by chance.
    Spread,
    /// As few cells as hold so many.
    SameCells,
}

fn read_time(text: &str) -> Result<Duration, String> {
    Time::read(text).map(|time| time.0).ok_or_else(|| Time::LIKE.to_owned())
}

/// A fleet's shape as a file: what `fleetkey group list --json` says.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn shape_of(groups: &[GroupStatus]) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec_pretty(&serde_json::json!({ "groups": groups }))
}

/// The shape of a live fleet. What else is in the file is not looked at.
#[derive(Debug, Clone, Deserialize)]
pub struct LiveFleet {
    /// Its groups.
    pub groups: Vec<LiveGroup>,
}

/// The shape of a live group.
#[derive(Debug, Clone, Deserialize)]
pub struct LiveGroup {
    /// Its name.
    pub name: String,
    /// How it is run.
    pub policy: Policy,
    /// Devices in it.
    pub members: usize,
    /// Those of them that are out of reach.
    #[serde(default)]
    pub behind: LiveBehind,
}

/// Members out of reach.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct LiveBehind {
    /// Not heard since the coordinator's start.
    #[serde(default)]
    pub never_heard: usize,
    /// Heard since then, and not lately.
    #[serde(default)]
    pub offline: usize,
}

/// What is written to a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// The prediction.
    #[serde(flatten)]
    pub predicted: Prediction,
    /// What it was held against.
    pub held: Option<Held>,
}

/// What a revocation will cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Devices that are revoked.
    pub revoked: usize,
    /// Members that are to have a new key, counted in each group.
    pub remaining: usize,
    /// Half of them have it within so many milliseconds.
    pub p50_milliseconds: f64,
    /// 99 of 100 of those in reach.
    pub p99_milliseconds: f64,
    /// All that are in reach.
    pub max_milliseconds: f64,
    /// Those that have none after that: out of reach now.
    pub stragglers: usize,
    /// Payload bytes to all devices together.
    pub bytes: u64,
    /// To one device, at most.
    pub bytes_per_device_max: u64,
    /// To half of them, at most.
    pub bytes_per_device_p50: u64,
    /// What deciding costs, on this machine.
    pub coordinator_cpu_milliseconds: f64,
    /// What all devices together compute, on this machine.
    pub device_cpu_milliseconds: f64,
}

impl Twin {
    /// Predicts, and says so on `out`.
    ///
    /// # Errors
    /// When the shape cannot be read, or makes no sense.
    pub fn run(self, out: &mut dyn Write) -> anyhow::Result<bool> {
        let text = fs::read(&self.from).with_context(|| format!("read {}", self.from.display()))?;
        let live: LiveFleet = serde_json::from_slice(&text).with_context(|| {
            format!("{} is not what `fleetkey group list --json` says", self.from.display())
        })?;
        let network = NetworkProfile {
            min_delay: self.min_delay.max(Duration::from_millis(1)),
            max_delay: self.max_delay.max(self.min_delay),
            ..NetworkProfile::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().context("start the runtime")?;
        let predicted =
            runtime.block_on(predict(&live, self.revoke as usize, self.which, network, self.seed))?;
        let held = self.hold(&predicted)?;
        if let Some(path) = &self.json {
            let told = Told { predicted, held: held.clone() };
            let text = serde_json::to_vec_pretty(&told).context("write the prediction")?;
            fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
        }
        tell(&predicted, out).context("print the prediction")?;
        if let Some(held) = held {
            write!(out, "\n{held}").context("print what happened")?;
        }
        Ok(true)
    }

    fn hold(&self, predicted: &Prediction) -> anyhow::Result<Option<Held>> {
        let Some(path) = &self.against else { return Ok(None) };
        let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let report: RunReport = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not what `fleetkey-sim run --json` writes", path.display()))?;
        let cores = self.one_machine.then_some(report.machine.cores);
        let held = Held::against(predicted, &report, self.phase.as_deref(), cores);
        held.map(Some).with_context(|| path.display().to_string())
    }
}

/// What revoking so many devices of a fleet of this shape costs.
///
/// # Errors
/// When there is no such fleet, or fewer devices than are to be revoked.
pub async fn predict(
    live: &LiveFleet,
    revoke: usize,
    which: Cells,
    network: NetworkProfile,
    seed: u64,
) -> anyhow::Result<Prediction> {
    let devices = live.groups.iter().map(|group| group.members).max().unwrap_or(0);
    anyhow::ensure!(devices > revoke, "the largest group has {devices} members, not more than {revoke}");
    let mut world = VirtualWorld::new(&shape(live, devices, network), seed)?;
    let ids = world.enrol(&vec![0; devices]).await?;
    let mut dice = Dice::of(seed, "twin", 0);
    for (number, group) in live.groups.iter().enumerate().filter(|(_, group)| group.members > 0) {
        let members = dice.choose(&ids, group.members);
        world.bring_in(number, &members, Duration::ZERO).await?;
    }
    settle(&mut world).await?;
    let largest =
        live.groups.iter().enumerate().max_by_key(|(_, group)| group.members).map_or(0, |(at, _)| at);
    let revoked: Vec<DeviceId> = match which {
        Cells::Spread => dice.choose(&ids, revoke),
        Cells::SameCells => world.cells(largest).await?.into_iter().flatten().take(revoke).collect(),
    };
    let offline =
        live.groups.iter().map(|group| group.behind.never_heard + group.behind.offline).max().unwrap_or(0);
    let gone: std::collections::BTreeSet<DeviceId> = revoked.iter().copied().collect();
    let others: Vec<DeviceId> = ids.iter().copied().filter(|id| !gone.contains(id)).collect();
    let offline = dice.choose(&others, offline);
    world.power(&offline, false).await?;
    world.wait(Until::Time(world.now() + Duration::from_secs(1))).await?;

    let before = world.look().await?;
    world.revoke(&revoked, "twin").await?;
    let mut waited = world.wait(Until::Time(world.now() + QUIET)).await?;
    let after = world.look().await?;
    let mut times = Times::default();
    waited.latencies.drain(..).for_each(|latency| times.record(latency));
    let times = times.milliseconds();
    let received =
        after.received_bytes.iter().zip(&before.received_bytes).map(|(after, before)| after - before);
    let received: Vec<u64> = received.collect();
    let bytes = fleetkey_report::distribution_of(received.iter().copied());
    Ok(Prediction {
        revoked: revoked.len(),
        remaining: after.members,
        p50_milliseconds: times.p50,
        p99_milliseconds: times.p99,
        max_milliseconds: times.max,
        stragglers: after.stragglers,
        bytes: received.iter().sum(),
        bytes_per_device_max: bytes.max as u64,
        bytes_per_device_p50: bytes.p50 as u64,
        coordinator_cpu_milliseconds: (after.coordinator_cpu - before.coordinator_cpu).as_secs_f64()
            * 1_000.0,
        device_cpu_milliseconds: (after.device_cpu - before.device_cpu).as_secs_f64() * 1_000.0,
    })
}

async fn settle(world: &mut VirtualWorld) -> anyhow::Result<()> {
    let waited = world.wait(Until::Current { deadline: world.now() + SETTLES_WITHIN }).await?;
    anyhow::ensure!(waited.is_current, "the twin does not come up within {}", people(SETTLES_WITHIN));
    world.wait(Until::Time(world.now() + QUIET)).await?;
    Ok(())
}

fn shape(live: &LiveFleet, devices: usize, network: NetworkProfile) -> Scenario {
    let group = |live: &LiveGroup| Group {
        name: live.name.clone(),
        share: live.members as f64 / devices as f64,
        cell_capacity: live.policy.cell_capacity,
        suite: live.policy.suite,
        // What is predicted is one revocation, with nothing else in between.
        rotation: None,
        rotation_deadline: Duration::from_secs(live.policy.rotation_deadline_seconds),
        cell_max_age: Duration::from_secs(live.policy.cell_max_age_seconds),
        join_window: Duration::from_millis(live.policy.rekey_window_milliseconds.into()),
        rekeys_on_join: live.policy.on_join == OnJoin::Rekey,
        overlap: Duration::from_secs(live.policy.overlap_seconds.into()),
    };
    Scenario {
        name: "twin".into(),
        about: "A fleet like one that there is.".into(),
        fleet: Fleet {
            devices,
            hello_interval: Duration::from_secs(1_800),
            max_silence: Duration::from_secs(86_400),
        },
        groups: live.groups.iter().map(group).collect(),
        classes: vec![Class { name: "always-on".into(), share: 1.0, sleep: None }],
        network,
        phases: Vec::new(),
    }
}

fn tell(predicted: &Prediction, out: &mut dyn Write) -> std::io::Result<()> {
    let milliseconds = |ms: f64| people(Duration::from_secs_f64(ms / 1_000.0));
    let Prediction { revoked, remaining, stragglers, bytes, .. } = predicted;
    writeln!(out, "Revoking {revoked} devices, predicted for the {remaining} memberships that remain:")?;
    writeln!(
        out,
        "  a new key: p50 {}, p99 {}, the last in reach {}",
        milliseconds(predicted.p50_milliseconds),
        milliseconds(predicted.p99_milliseconds),
        milliseconds(predicted.max_milliseconds)
    )?;
    writeln!(out, "  stragglers: {stragglers}, out of reach now; each catches up when it is back")?;
    writeln!(
        out,
        "  bytes: {bytes} to all, {} to a device at p50, {} at most",
        predicted.bytes_per_device_p50, predicted.bytes_per_device_max
    )?;
    writeln!(
        out,
        "  coordinator: {} of CPU, on this machine",
        milliseconds(predicted.coordinator_cpu_milliseconds)
    )
}

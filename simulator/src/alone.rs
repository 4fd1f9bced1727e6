//! `fleetkey-sim coordinator`: what fleets cost the coordinator, without a broker and without devices.
//!
//! The real core and writer on a real SQLite file, with real cells; devices are there as their key packages, which real agents
//! made, and most agents are dropped once they are in. Measured: onboarding, one revocation by its steps, starting on what is
//! stored, and memory. How a fleet comes in is in `fleetkey-peers`; the table is in [`told`].

mod told;

use std::io::{IsTerminal as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fleetkey_coordinator::SqliteStore;
use fleetkey_peers::{Alone, Rekeyed};
use fleetkey_report::{Check, Machine, median_seconds};
use fleetkey_vault::MasterKey;
use rand_core::{OsRng, RngCore as _};
use serde::Serialize;

use crate::parts::{CoordinatorBegin, CoordinatorStarted, hear, say};

/// Of the coordinator's processor, for one revocation.
const REVOCATION_CPU_MILLISECONDS: f64 = 100.0;
/// With up to so many devices.
const REVOCATION_DEVICES: usize = 100_000;
/// To a device whose cell has lost nobody.
const OUTSIDE_BYTES: usize = 300;
/// To a device whose cell has.
const INSIDE_BYTES: usize = 7_000;
/// For one more cell.
const CELL_MICROSECONDS: f64 = 10.0;
/// How often it is said how far onboarding has come.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Sizes of the fleet.
    pub devices: Vec<usize>,
    /// Revocations to take the median of, and rekeys.
    pub revocations: usize,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    /// The version of this format.
    pub version: u32,
    /// On what.
    pub machine: Machine,
    /// By size of the fleet, the smallest first.
    pub sizes: Vec<OfSize>,
    /// What one more cell adds to a revocation, in microseconds of processor time: the slope between the smallest fleet and the
    /// largest that the target is for. None of a single size.
    pub microseconds_a_cell: Option<f64>,
    /// What was claimed, and whether it held.
    pub checks: Vec<Check>,
    /// What was counted up from parts and not seen as a whole.
    pub extrapolated: Vec<String>,
}

/// What a fleet of one size costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OfSize {
    /// Devices.
    pub devices: usize,
    /// Cells.
    pub cells: usize,
    /// Devices that live, on which each rekey was checked.
    pub living: usize,
    /// From the first device's enrolment until all were in, devices' work included.
    pub onboarded_in_seconds: f64,
    /// The coordinator's processor time of that.
    pub onboarding_cpu_seconds: f64,
    /// What is stored.
    pub database_bytes: u64,
    /// From opening the database until it can decide.
    pub start_seconds: f64,
    /// Processor time of that.
    pub start_cpu_seconds: f64,
    /// Memory of a process that has just started.
    pub resident_bytes: u64,
    /// Of that what the fleet takes, for each device.
    pub resident_bytes_per_device: f64,
    /// The coordinator's processor time for one device's confirmation, on those that live.
    pub confirmation_cpu_microseconds: f64,
    /// A rekey without anybody going: all that a revocation does but for the MLS commit.
    pub rekey: Costs,
    /// A revocation.
    pub revocation: Costs,
}

/// What one rekey costs the coordinator: medians, in milliseconds of processor time where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Costs {
    /// Deciding: MLS, signatures, wraps, encoding.
    pub decide: f64,
    /// Storing it in one transaction.
    pub store: f64,
    /// Handing over each message.
    pub hand_over: f64,
    /// All three.
    pub cpu: f64,
    /// The same as time passes, with the wait for the disk.
    pub elapsed: f64,
    /// Later, in a transaction with whatever comes next: rows of messages that were sent are deleted.
    pub clean_up: f64,
    /// Messages handed over.
    pub messages: usize,
    /// Their bytes, each message counted once.
    pub published_bytes: u64,
    /// The largest message to a cell that lost nobody.
    pub outside_bytes: usize,
    /// The largest to one that did; none of a mere rekey.
    pub inside_bytes: usize,
}

/// Measures.
///
/// # Errors
/// When a rekey does not do its work, or something cannot be stored or started.
pub fn run(options: &Options) -> anyhow::Result<Found> {
    let mut devices = options.devices.clone();
    devices.sort_unstable();
    devices.dedup();
    let sizes = devices
        .into_iter()
        .map(|devices| measure(devices, options.revocations).with_context(|| format!("{devices} devices")))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let microseconds_a_cell = slope(&sizes);
    let checks = checks(&sizes, microseconds_a_cell);
    let extrapolated = sizes.iter().map(told::extrapolated).collect();
    Ok(Found { version: 1, machine: Machine::this(), sizes, microseconds_a_cell, checks, extrapolated })
}

fn measure(devices: usize, revocations: usize) -> anyhow::Result<OfSize> {
    let directory = tempfile::tempdir().context("make a directory for the database")?;
    let database = directory.path().join("coordinator.db");
    let mut master_key = [0; 32];
    OsRng.fill_bytes(&mut master_key);
    let store = SqliteStore::create(&database, &MasterKey::from_bytes(&master_key), &[])?;
    let mut alone = Alone::onboard(devices, Box::new(store), &mut telling(devices))?;
    let rekeys = (0..revocations).map(|_| alone.rekey()).collect::<Result<Vec<_>, _>>()?;
    let revoked = (0..revocations).map(|_| alone.revoke()).collect::<Result<Vec<_>, _>>()?;
    let cells = rekeys.first().map_or(0, |rekeyed| rekeyed.cells);
    let (onboarded_in, onboarding_cpu) = (alone.onboarded_in(), alone.onboarding_cpu());
    let (living, confirmation) = (alone.living(), alone.confirmation_cpu_seconds().unwrap_or(0.0));
    let setup = alone.end();
    let database_bytes = std::fs::metadata(&database).context("look at the database")?.len();
    let started = start_again(&CoordinatorBegin {
        database,
        master_key,
        fleet: setup.fleet,
        seed: *setup.identity.seed(),
        generation: setup.generation.0,
        chain: setup.chain,
    })?;
    let grown = started.resident_bytes.saturating_sub(started.empty_bytes);
    Ok(OfSize {
        devices,
        cells,
        living,
        onboarded_in_seconds: onboarded_in.as_secs_f64(),
        onboarding_cpu_seconds: onboarding_cpu.as_secs_f64(),
        database_bytes,
        start_seconds: started.elapsed_microseconds as f64 / 1e6,
        start_cpu_seconds: started.cpu_microseconds as f64 / 1e6,
        resident_bytes: started.resident_bytes,
        resident_bytes_per_device: grown as f64 / devices as f64,
        confirmation_cpu_microseconds: confirmation * 1e6,
        rekey: Costs::of(&rekeys),
        revocation: Costs::of(&revoked),
    })
}

/// Says now and then how far onboarding has come.
fn telling(devices: usize) -> impl FnMut(usize) {
    let (began, is_terminal) = (Instant::now(), std::io::stderr().is_terminal());
    let mut told_at = began;
    move |in_by_now| {
        let is_done = in_by_now == devices;
        if told_at.elapsed() < TELL_EVERY && !is_done {
            return;
        }
        told_at = Instant::now();
        let seconds = began.elapsed().as_secs_f64();
        let line = format!("{in_by_now} of {devices} devices in, {seconds:.0} s");
        // Whoever does not look is told all the same at the end.
        _ = match (is_terminal, is_done) {
            (true, false) => write!(std::io::stderr(), "\r{line} "),
            (true, true) => writeln!(std::io::stderr(), "\r{line} "),
            (false, _) => writeln!(std::io::stderr(), "{line}"),
        };
    }
}

/// Starts a coordinator on the database, in a process that holds nothing else.
fn start_again(begin: &CoordinatorBegin) -> anyhow::Result<CoordinatorStarted> {
    let mut child = Command::new(std::env::current_exe().context("find this program")?)
        .args(["part", "coordinator"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the coordinator's process")?;
    let (Some(mut orders), Some(mut answers)) = (child.stdin.take(), child.stdout.take()) else {
        anyhow::bail!("the coordinator's process has no pipes");
    };
    say(&mut orders, begin)?;
    let started = hear(&mut answers)?;
    let ended = child.wait().context("end the coordinator's process")?;
    started.with_context(|| format!("the coordinator's process: {ended}"))
}

impl Costs {
    fn of(rekeys: &[Rekeyed]) -> Self {
        let time = |of: fn(&Rekeyed) -> Duration| median_seconds(rekeys.iter().map(of)) * 1_000.0;
        let most = |of: fn(&Rekeyed) -> usize| rekeys.iter().map(of).max().unwrap_or(0);
        Self {
            decide: time(|of| of.steps.decide),
            store: time(|of| of.steps.store),
            hand_over: time(|of| of.steps.hand_over),
            cpu: time(|of| of.steps.cpu()),
            elapsed: time(|of| of.steps.elapsed),
            clean_up: time(|of| of.clean_up),
            messages: most(|of| of.messages),
            published_bytes: rekeys.iter().map(|of| of.published_bytes).max().unwrap_or(0),
            outside_bytes: most(|of| of.outside_bytes),
            inside_bytes: most(|of| of.inside_bytes),
        }
    }
}

/// Between the smallest and the largest of the fleets that the target is for, or of all if there are no two of those.
fn slope(sizes: &[OfSize]) -> Option<f64> {
    let within = sizes.iter().filter(|size| size.devices <= REVOCATION_DEVICES).count();
    let sizes = if within >= 2 { &sizes[..within] } else { sizes };
    let (first, last) = (sizes.first()?, sizes.last()?);
    let cells = last.cells.checked_sub(first.cells).filter(|cells| *cells > 0)?;
    Some((last.revocation.cpu - first.revocation.cpu) * 1_000.0 / cells as f64)
}

fn checks(sizes: &[OfSize], microseconds_a_cell: Option<f64>) -> Vec<Check> {
    let mut checks = Vec::new();
    for size in sizes {
        let (devices, costs) = (told::count(size.devices), &size.revocation);
        if size.devices <= REVOCATION_DEVICES {
            checks.push(Check::that(
                format!("{devices} devices: a revocation costs at most {REVOCATION_CPU_MILLISECONDS} ms of processor time"),
                costs.cpu <= REVOCATION_CPU_MILLISECONDS,
                format!("{:.1} ms", costs.cpu),
            ));
        }
        checks.push(Check::that(
            format!("{devices} devices: at most {OUTSIDE_BYTES} B to a device of another cell"),
            (1..=OUTSIDE_BYTES).contains(&costs.outside_bytes),
            format!("{} B", costs.outside_bytes),
        ));
        checks.push(Check::that(
            format!("{devices} devices: at most {INSIDE_BYTES} B to a device of the same cell"),
            (1..=INSIDE_BYTES).contains(&costs.inside_bytes),
            format!("{} B", costs.inside_bytes),
        ));
    }
    if let Some(slope) = microseconds_a_cell {
        checks.push(Check::that(
            format!("one more cell costs less than {CELL_MICROSECONDS} us"),
            slope < CELL_MICROSECONDS,
            format!("{slope:.2} us"),
        ));
    }
    checks
}

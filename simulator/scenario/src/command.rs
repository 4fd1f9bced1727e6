//! `fleetkey-sim run`: a scenario from the command line.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use fleetkey_report::{Connections, Mode, RunReport};
use indicatif::{ProgressBar, ProgressStyle};

use crate::in_virtual_time::VirtualWorld;
use crate::run::{RunOptions, Watch, run};
use crate::scenario::{Phase, Scenario};
use crate::shipped::{SHIPPED, shipped};
use crate::units::people;
use crate::world::Looked;

/// Runs a fleet through a scenario, and holds it against the scenario's targets.
///
/// With --virtual time is simulated: the real coordinator core and real agent cores, on a clock and a network that are not.
/// A target that is missed is named in the table at the end, and makes the exit code 1.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    fleetkey-sim run stolen-truck --virtual\n  \
    fleetkey-sim run steady-year --virtual --devices 1000 --json year.json\n  \
    fleetkey-sim run my-fleet.toml --virtual --seed 7\n\
    Shipped: first-day, stolen-truck, steady-year, power-cut, bad-cellular, post-quantum")]
pub struct Run {
    /// A scenario's file, or the name of a shipped one.
    pub scenario: String,
    /// Simulate the time and the network.
    #[arg(long = "virtual")]
    pub is_virtual: bool,
    /// Devices, instead of as many as the scenario says; what it does to a number of them shrinks or grows with that.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub devices: Option<u32>,
    /// What chance is drawn from: the same seed makes the same run.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where to write the report as JSON, beside the table.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl Run {
    /// The scenario that is meant.
    ///
    /// # Errors
    /// When there is none, or it is none, or it asks for what is not there.
    pub fn load(&self) -> anyhow::Result<Scenario> {
        let text = match shipped(&self.scenario) {
            Some(text) if !Path::new(&self.scenario).exists() => text.to_owned(),
            Some(_) | None => fs::read_to_string(&self.scenario).with_context(|| {
                let names: Vec<&str> = SHIPPED.iter().map(|(name, _)| *name).collect();
                format!("read the scenario {} (shipped are: {})", self.scenario, names.join(", "))
            })?,
        };
        let mut scenario = Scenario::from_toml(&text).with_context(|| self.scenario.clone())?;
        if let Some(devices) = self.devices {
            scenario.scale_to(devices as usize);
        }
        scenario.check_supported()?;
        Ok(scenario)
    }

    /// Runs it, and says on `out` what was seen. Whether every check held.
    ///
    /// # Errors
    /// What could not be done, and why.
    pub fn run(self, out: &mut dyn Write) -> anyhow::Result<bool> {
        let scenario = self.load()?;
        anyhow::ensure!(
            self.is_virtual,
            "there is no world in real time here yet: run it in virtual time, with --virtual"
        );
        // Before the work, so that a path that cannot be written is not found out after it.
        let json = self.json.as_ref();
        let json = json
            .map(|path| File::create(path).with_context(|| format!("create {}", path.display())))
            .transpose()?;
        let report = run_in_virtual_time(&scenario, self.seed, &mut Bar::new())?;
        if let Some(file) = json {
            serde_json::to_writer_pretty(file, &report).context("write the report")?;
        }
        tell(&report, out).context("print the report")?;
        Ok(report.passed())
    }
}

/// Runs a scenario in virtual time.
///
/// # Errors
/// When it asks for what is not there.
pub fn run_in_virtual_time(
    scenario: &Scenario,
    seed: u64,
    watch: &mut dyn Watch,
) -> anyhow::Result<RunReport> {
    let mut world = VirtualWorld::new(scenario, seed)?;
    let options = RunOptions {
        seed,
        mode: Mode::Virtual,
        connections: Connections::None,
        broker: "simulated".to_owned(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().context("start the runtime")?;
    runtime.block_on(run(scenario, &mut world, &options, watch))
}

/// Progress on stderr.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    name: String,
}

impl Bar {
    /// An empty one.
    pub fn new() -> Self {
        let style = ProgressStyle::with_template("{bar:20} {elapsed:>4} {wide_msg}");
        let bar = ProgressBar::new(1);
        Self { bar: bar.with_style(style.expect("the template is one")), name: String::new() }
    }
}

impl Default for Bar {
    fn default() -> Self {
        Self::new()
    }
}

impl Watch for Bar {
    fn begins(&mut self, number: usize, of: usize, phase: &Phase) {
        self.bar.set_length(of as u64);
        self.bar.set_position(number as u64);
        self.name.clone_from(&phase.name);
        self.bar.set_message(phase.name.clone());
    }

    fn stands(&mut self, now: Duration, looked: &Looked) {
        let Looked { members, wanted, stragglers, .. } = looked;
        let at = people(now);
        let name = &self.name;
        self.bar.set_message(format!(
            "{name}: {at} in, {members} members, {wanted} to come in, {stragglers} without the newest key"
        ));
    }
}

/// Says what was seen, as a table.
///
/// # Errors
/// When it cannot be written.
pub fn tell(report: &RunReport, out: &mut dyn Write) -> std::io::Result<()> {
    let RunReport { scenario, about, shape, mode, seconds, .. } = report;
    let time = match mode {
        Mode::Virtual => "virtual time",
        Mode::Real => "real time",
    };
    writeln!(out, "{scenario}: {about}")?;
    writeln!(
        out,
        "{} devices, {} groups, {} cells of at most {}, {}; {time}; took {}",
        shape.devices,
        shape.groups,
        shape.cells,
        shape.cell_capacity,
        shape.suite,
        people(Duration::from_secs_f64(*seconds)),
    )?;
    writeln!(
        out,
        "\n{:<18} {:>10} {:>8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>12} {:>11}",
        "phase", "took", "keys", "p50", "p99", "max", "B p50", "B max", "coordinator", "stragglers"
    )?;
    for phase in &report.phases {
        let figure = |name: &str| phase.figures.get(name).map_or(0.0, |figure| figure.value);
        let latency = |share| {
            let quantile = phase.latency.as_ref().map(|latency| latency.quantile(share));
            quantile.map_or("-".to_owned(), |micros| people(Duration::from_micros(micros)))
        };
        let bytes = |share| {
            let quantile = phase.bytes_per_device.as_ref().map(|bytes| bytes.quantile(share));
            quantile.map_or("-".to_owned(), |bytes| bytes.to_string())
        };
        writeln!(
            out,
            "{:<18} {:>10} {:>8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>12} {:>11}",
            phase.name,
            people(Duration::from_secs_f64(phase.took_seconds)),
            phase.latency.as_ref().map_or(0, fleetkey_report::Histogram::count),
            latency(0.5),
            latency(0.99),
            latency(1.0),
            bytes(0.5),
            bytes(1.0),
            people(Duration::from_secs_f64(figure("coordinator_cpu") / 1_000.0)),
            figure("stragglers"),
        )?;
    }
    for phase in &report.phases {
        for (name, what) in [("exposure", "exposed after a revocation"), ("key_age", "a key was in use")] {
            let figure = |part: &str| phase.figures.get(&format!("{name}_{part}")).map(|figure| figure.value);
            let [Some(count), Some(p50), Some(p99), Some(max)] = ["count", "p50", "p99", "max"].map(figure)
            else {
                continue;
            };
            let seconds = |seconds| people(Duration::from_secs_f64(seconds));
            let (p50, p99, max) = (seconds(p50), seconds(p99), seconds(max));
            writeln!(out, "{}: {what}: p50 {p50}, p99 {p99}, max {max} ({count} times)", phase.name)?;
        }
        if let Some(bytes) = phase.figures.get("bytes_per_device_and_day") {
            writeln!(out, "{}: {:.0} B per device and day, both ways", phase.name, bytes.value)?;
        }
    }
    writeln!(out)?;
    for check in &report.checks {
        let verdict = if check.held { "held  " } else { "FAILED" };
        writeln!(out, "{verdict} {}: {}", check.claim, check.seen)?;
    }
    Ok(())
}

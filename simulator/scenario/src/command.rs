//! `fleetkey-sim run`: a scenario from the command line.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use fleetkey_report::{Connections, Mode, RunReport};

use crate::in_virtual_time::VirtualWorld;
use crate::run::{RunOptions, Watch, run};
use crate::scenario::Scenario;
use crate::shipped::{SHIPPED, shipped};

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
    /// Where to write the fleet's shape, as it is before the first phase that revokes: `fleetkey-sim twin --from` takes it.
    #[arg(long, value_name = "FILE")]
    pub shape: Option<PathBuf>,
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
        Ok(scenario)
    }
}

/// Runs a scenario in virtual time.
///
/// # Errors
/// When it asks for what is not there.
pub fn run_in_virtual_time(
    scenario: &Scenario,
    seed: u64,
    shape: Option<PathBuf>,
    watch: &mut dyn Watch,
) -> anyhow::Result<RunReport> {
    let mut world = VirtualWorld::new(scenario, seed)?;
    let options = RunOptions {
        seed,
        mode: Mode::Virtual,
        connections: Connections::None,
        broker: "simulated".to_owned(),
        shape,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().context("start the runtime")?;
    runtime.block_on(run(scenario, &mut world, &options, watch))
}

//! The whole of a run, as it is written to a file: the same shape whatever was run, so that runs can be compared.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};

use crate::check::Check;
use crate::measure::Histogram;
use crate::memory;

/// The version of this format.
pub const RUN_REPORT_VERSION: u32 = 1;

/// A run of a scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// The version of this format: [`RUN_REPORT_VERSION`].
    pub version: u32,
    /// The scenario's name.
    pub scenario: String,
    /// What it shows, in a sentence.
    pub about: String,
    /// When it began, in Unix seconds.
    pub began_unix_seconds: u64,
    /// What it ran on.
    pub machine: Machine,
    /// How time passed.
    pub mode: Mode,
    /// How devices were connected.
    pub connections: Connections,
    /// The fleet.
    pub shape: Shape,
    /// What was done, in order.
    pub phases: Vec<Phase>,
    /// What changed over time.
    pub series: Vec<Series>,
    /// What was claimed, targets among them.
    pub checks: Vec<Check>,
    /// What was counted up from parts and not seen as a whole, in words: nothing, where all was measured.
    pub extrapolated: Vec<String>,
    /// What else is to be known of the run, in words: such as what was asked for and could not be had.
    #[serde(default)]
    pub notes: Vec<String>,
    /// How long the run took, in seconds of the machine that ran it.
    pub seconds: f64,
}

impl RunReport {
    /// Whether every check held.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.held)
    }
}

/// A machine, as far as figures depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its processor.
    pub processor: String,
    /// How many cores this process may use.
    pub cores: usize,
    /// Its memory, in bytes.
    pub memory_bytes: u64,
    /// The system's kernel.
    pub system: String,
    /// This program's version; of a build without optimisation, with a word on that.
    pub program: String,
}

impl Machine {
    /// This one, as Linux tells of it; elsewhere with gaps.
    pub fn this() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim_start_matches([':', '\t', ' ']).to_owned())
        };
        let build = if cfg!(debug_assertions) { " (not optimised)" } else { "" };
        Self {
            processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory::machine_bytes().unwrap_or(0),
            system: format!("{} {}", std::env::consts::OS, read("/proc/sys/kernel/osrelease").trim()),
            program: format!("{}{build}", env!("CARGO_PKG_VERSION")),
        }
    }
}

/// How time passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// As it passes: real sockets, a real broker.
    Real,
    /// Simulated: the real cores, and a network that is none.
    Virtual,
}

/// How devices were connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Connections {
    /// Each device on its own.
    OnePerDevice,
    /// Many devices on each, as behind a gateway.
    Shared {
        /// How many.
        devices: usize,
    },
    /// Not at all: time was simulated, or there were no devices.
    None,
}

/// A fleet, as it was at the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Devices.
    pub devices: usize,
    /// Groups.
    pub groups: usize,
    /// Cells of all groups.
    pub cells: usize,
    /// Devices in a cell at most.
    pub cell_capacity: usize,
    /// The cipher suite.
    pub suite: String,
    /// The broker, in words.
    pub broker: String,
}

/// One thing that was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// When it began, in seconds since the run did, in the run's own time.
    pub began_seconds: f64,
    /// How long it took, in the run's own time.
    pub took_seconds: f64,
    /// From when a device was due to hold a new key to when the coordinator knew that it does, in microseconds. It is
    /// taken from when it was due, not from when somebody got round to it.
    pub latency: Option<Histogram>,
    /// Payload bytes that a device received.
    pub bytes_per_device: Option<Histogram>,
    /// Whatever else there is, by name.
    pub figures: BTreeMap<String, Figure>,
}

/// A number with its unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// How much.
    pub value: f64,
    /// Of what: `ms`, `B`, `messages`, or nothing for a ratio.
    pub unit: String,
}

impl Figure {
    /// So much of that.
    pub fn new(value: f64, unit: &str) -> Self {
        Self { value, unit: unit.to_owned() }
    }
}

/// Something that changed over time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// What.
    pub name: String,
    /// In which unit.
    pub unit: String,
    /// When, in seconds since the run began, and how much then.
    pub points: Vec<(f64, f64)>,
}

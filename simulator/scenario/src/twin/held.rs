//! A prediction held against what happened: what the twin said of a revocation, and what a run's report shows of it.
//!
//! Computing takes no time in the twin. What it costs there is added to what the network takes: the coordinator's in full,
//! as nobody is confirmed before it has decided, and the devices' where all of them share this machine.

use std::fmt;

use fleetkey_plot::Unit;
use fleetkey_report::{Phase, RunReport};
use serde::{Deserialize, Serialize};

use super::Prediction;

/// A prediction, and what happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// The phase of the run that it was held against.
    pub phase: String,
    /// Each figure.
    pub lines: Vec<Line>,
}

/// One figure of both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// What.
    pub what: String,
    /// What the twin said.
    pub predicted: f64,
    /// What happened.
    pub happened: f64,
    /// Seconds, bytes or a count.
    unit: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Seconds,
    Bytes,
    Count,
}

impl Line {
    /// What happened, over what was said; none where nothing was said to happen.
    pub fn ratio(&self) -> Option<f64> {
        (self.predicted > 0.0).then(|| self.happened / self.predicted)
    }
}

/// The report has nothing to hold a prediction against.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NothingToHold {
    /// No phase of that name.
    #[error("the report has no phase {name}; it has: {known}")]
    NoPhase {
        /// The name.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// No phase revoked anything.
    #[error("no phase of the report is a revocation that came to its end")]
    NoRevocation,
    /// Nobody was brought a new key.
    #[error("phase {phase} of the report tells of no device")]
    NoDevices {
        /// The phase.
        phase: String,
    },
}

impl Held {
    /// Holds a prediction against a phase of a run: the one of this name, or the first that ended a revocation. `cores` says
    /// among how many processors devices share their computing, where they are all on one machine.
    ///
    /// # Errors
    /// [`NothingToHold`].
    pub fn against(
        predicted: &Prediction,
        report: &RunReport,
        phase: Option<&str>,
        cores: Option<usize>,
    ) -> Result<Self, NothingToHold> {
        let phase = find(report, phase)?;
        let no_devices = || NothingToHold::NoDevices { phase: phase.name.clone() };
        let times = phase.latency.as_ref().filter(|times| times.count() > 0).ok_or_else(no_devices)?;
        let bytes = phase.bytes_per_device.as_ref().ok_or_else(no_devices)?;
        let all_bytes: u64 = bytes.values().iter().map(|(value, times)| value * times).sum();
        let figure = |name: &str| phase.figures.get(name).map_or(0.0, |figure| figure.value);
        let of_devices = cores.map_or(0.0, |cores| predicted.device_cpu_milliseconds / cores.max(1) as f64);
        let computing = predicted.coordinator_cpu_milliseconds + of_devices;
        let took = |of_network: f64, share_of_computing: f64| {
            (of_network + computing * share_of_computing) / 1_000.0
        };
        let happened = |share| times.quantile(share) as f64 / 1e6;
        let line =
            |what: &str, unit, predicted, happened| Line { what: what.to_owned(), predicted, happened, unit };
        let lines = vec![
            line(
                "a new key: half of them",
                Kind::Seconds,
                took(predicted.p50_milliseconds, 0.5),
                happened(0.5),
            ),
            line("99 of 100", Kind::Seconds, took(predicted.p99_milliseconds, 0.99), happened(0.99)),
            line("the last in reach", Kind::Seconds, took(predicted.max_milliseconds, 1.0), happened(1.0)),
            line("stragglers", Kind::Count, predicted.stragglers as f64, figure("stragglers")),
            line("bytes to all devices", Kind::Bytes, predicted.bytes as f64, all_bytes as f64),
            line(
                "to half of them, at most",
                Kind::Bytes,
                predicted.bytes_per_device_p50 as f64,
                bytes.quantile(0.5) as f64,
            ),
            line(
                "to any, at most",
                Kind::Bytes,
                predicted.bytes_per_device_max as f64,
                bytes.quantile(1.0) as f64,
            ),
            line(
                "coordinator CPU",
                Kind::Seconds,
                predicted.coordinator_cpu_milliseconds / 1_000.0,
                figure("coordinator_cpu") / 1_000.0,
            ),
        ];
        Ok(Self { phase: phase.name.clone(), lines })
    }
}

fn find<'a>(report: &'a RunReport, name: Option<&str>) -> Result<&'a Phase, NothingToHold> {
    let mut phases = report.phases.iter();
    match name {
        Some(name) => phases.find(|phase| phase.name == name).ok_or_else(|| {
            let known: Vec<&str> = report.phases.iter().map(|phase| phase.name.as_str()).collect();
            NothingToHold::NoPhase { name: name.to_owned(), known: known.join(", ") }
        }),
        // Only revocations expose anybody.
        None => phases
            .find(|phase| phase.figures.contains_key("exposure_count"))
            .ok_or(NothingToHold::NoRevocation),
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Held against phase {}:", self.phase)?;
        writeln!(f, "  {:<26}{:>12}{:>12}{:>8}", "", "predicted", "happened", "ratio")?;
        for line in &self.lines {
            let show = |value: f64| match line.unit {
                Kind::Seconds => Unit::Seconds.show(value),
                Kind::Bytes => Unit::Bytes.show(value),
                Kind::Count => Unit::Count.show(value),
            };
            let ratio = line.ratio().map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
            writeln!(
                f,
                "  {:<26}{:>12}{:>12}{ratio:>8}",
                line.what,
                show(line.predicted),
                show(line.happened)
            )?;
        }
        Ok(())
    }
}

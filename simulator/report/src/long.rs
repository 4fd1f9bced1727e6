//! Runs as CSV: one long table, a number in each row.
//!
//! One table and not one for each kind: its columns stay the same when a scenario gains a figure, files of several runs
//! can be put under each other, and whoever draws something picks rows. `kind` says what a row is:
//!
//! ```text
//! kind      name                   x                                 value, unit
//! run       devices, seconds, …                                      of the run as a whole; `text` where it is none
//! phase     began, took                                              s
//! figure    its name                                                 as it is
//! latency   count; quantile        share of devices, from 0 to 1     at most so many us
//! bytes     count; quantile        share of devices, from 0 to 1     at most so many B
//! series    its name               s since the run began             as it is
//! check     the claim                                                1 held, 0 did not; `text` is what was seen
//! caveat    extrapolated                                             `text` says what
//! ```

use std::io::Write;

use serde::{Deserialize, Serialize};

use crate::measure::Histogram;
use crate::run::{Phase, RunReport};
use crate::words;

/// The shares of devices for which a distribution is written. JSON has all of it.
pub(crate) const SHARES: [f64; 8] = [0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0];

/// One row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The scenario.
    pub scenario: String,
    /// When the run began, in Unix seconds: with the scenario, which run it is.
    pub began: u64,
    /// Devices at its beginning.
    pub devices: usize,
    /// What the row is.
    pub kind: String,
    /// The phase, where it is of one.
    pub phase: String,
    /// Of what.
    pub name: String,
    /// Where on the x axis, where there is one.
    pub x: Option<f64>,
    /// How much.
    pub value: Option<f64>,
    /// In which unit.
    pub unit: String,
    /// Words, where it is no number.
    pub text: String,
}

/// Writes runs under each other, under one head.
///
/// # Errors
/// What the writer says.
pub fn write_csv(reports: &[RunReport], to: impl Write) -> csv::Result<()> {
    let mut writer = csv::Writer::from_writer(to);
    for report in reports {
        for row in rows(report) {
            writer.serialize(row)?;
        }
    }
    writer.flush()?;
    Ok(())
}

/// The rows of one run.
fn rows(report: &RunReport) -> Vec<Row> {
    let shape = &report.shape;
    let base = Row {
        scenario: report.scenario.clone(),
        began: report.began_unix_seconds,
        devices: shape.devices,
        kind: "run".to_owned(),
        phase: String::new(),
        name: String::new(),
        x: None,
        value: None,
        unit: String::new(),
        text: String::new(),
    };
    let number = |name: &str, value: f64, unit: &str| Row {
        name: name.to_owned(),
        value: Some(value),
        unit: unit.to_owned(),
        ..base.clone()
    };
    let text = |name: &str, text: &str| Row { name: name.to_owned(), text: text.to_owned(), ..base.clone() };
    let machine = &report.machine;
    let mut rows = vec![
        number("devices", shape.devices as f64, ""),
        number("groups", shape.groups as f64, ""),
        number("cells", shape.cells as f64, ""),
        number("cell capacity", shape.cell_capacity as f64, ""),
        number("seconds", report.seconds, "s"),
        number("cores", machine.cores as f64, ""),
        number("memory", machine.memory_bytes as f64, "B"),
        text("suite", &shape.suite),
        text("broker", &shape.broker),
        text("mode", words::mode(report.mode)),
        text("connections", &words::connections(report.connections)),
        text("processor", &machine.processor),
        text("system", &machine.system),
        text("program", &machine.program),
    ];
    for phase in &report.phases {
        of_phase(phase, &base, &mut rows);
    }
    for series in &report.series {
        rows.extend(series.points.iter().map(|(x, value)| Row {
            kind: "series".to_owned(),
            name: series.name.clone(),
            x: Some(*x),
            value: Some(*value),
            unit: series.unit.clone(),
            ..base.clone()
        }));
    }
    rows.extend(report.checks.iter().map(|check| Row {
        kind: "check".to_owned(),
        name: check.claim.clone(),
        value: Some(f64::from(u8::from(check.held))),
        text: check.seen.clone(),
        ..base.clone()
    }));
    rows.extend(report.extrapolated.iter().map(|what| Row {
        kind: "caveat".to_owned(),
        name: "extrapolated".to_owned(),
        text: what.clone(),
        ..base.clone()
    }));
    rows
}

fn of_phase(phase: &Phase, base: &Row, rows: &mut Vec<Row>) {
    let row = |kind: &str, name: &str, x: Option<f64>, value: f64, unit: &str| Row {
        kind: kind.to_owned(),
        phase: phase.name.clone(),
        name: name.to_owned(),
        x,
        value: Some(value),
        unit: unit.to_owned(),
        ..base.clone()
    };
    rows.push(row("phase", "began", None, phase.began_seconds, "s"));
    rows.push(row("phase", "took", None, phase.took_seconds, "s"));
    let mut distribution = |kind, of: Option<&Histogram>, unit| {
        let Some(of) = of.filter(|of| of.count() > 0) else { return };
        rows.push(row(kind, "count", None, of.count() as f64, ""));
        let at = |share| row(kind, "quantile", Some(share), of.quantile(share) as f64, unit);
        rows.extend(SHARES.map(at));
    };
    distribution("latency", phase.latency.as_ref(), "us");
    distribution("bytes", phase.bytes_per_device.as_ref(), "B");
    rows.extend(
        phase.figures.iter().map(|(name, figure)| row("figure", name, None, figure.value, &figure.unit)),
    );
}

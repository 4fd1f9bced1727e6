//! A run for a terminal: what was done with its figures, and the checks.

use std::fmt;

use fleetkey_plot::Unit;

use crate::measure::Histogram;
use crate::quantity::{microseconds, seconds, shown};
use crate::run::{Phase, RunReport};
use crate::words;

/// The columns of the table of phases.
pub(crate) const COLUMNS: [&str; 9] =
    ["phase", "began", "took", "devices", "new key: p50", "p99", "last", "bytes to a device: median", "most"];

/// One row of it.
pub(crate) fn cells(phase: &Phase) -> [String; 9] {
    let latency = phase.latency.as_ref().filter(|of| of.count() > 0);
    let bytes = phase.bytes_per_device.as_ref().filter(|of| of.count() > 0);
    let time = |share| latency.map_or_else(none, |of| microseconds(of.quantile(share)));
    let size = |share| bytes.map_or_else(none, |of| Unit::Bytes.show(of.quantile(share) as f64));
    let devices = latency.or(bytes).map_or_else(none, |of: &Histogram| Unit::Count.show(of.count() as f64));
    [
        phase.name.clone(),
        seconds(phase.began_seconds),
        seconds(phase.took_seconds),
        devices,
        time(0.5),
        time(0.99),
        time(1.0),
        size(0.5),
        size(1.0),
    ]
}

fn none() -> String {
    "-".to_owned()
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{}: {}\n{}\n{}\n",
            self.scenario,
            self.about,
            words::setting(self),
            words::circumstances(self)
        )?;
        let rows: Vec<_> = self.phases.iter().map(cells).collect();
        let head = COLUMNS.map(str::to_owned);
        let mut widths = [0; COLUMNS.len()];
        for row in std::iter::once(&head).chain(&rows) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in std::iter::once(&head).chain(&rows) {
            for (at, (cell, width)) in row.iter().zip(widths).enumerate() {
                match at {
                    0 => write!(f, "{cell:<width$}")?,
                    _ => write!(f, "  {cell:>width$}")?,
                }
            }
            writeln!(f)?;
        }
        for phase in self.phases.iter().filter(|phase| !phase.figures.is_empty()) {
            writeln!(f, "\n{}", phase.name)?;
            let width = phase.figures.keys().map(|name| name.chars().count()).max().unwrap_or(0);
            for (name, figure) in &phase.figures {
                writeln!(f, "  {:<width$}  {:>14}", words::name(name), shown(figure))?;
            }
        }
        writeln!(f)?;
        for check in &self.checks {
            writeln!(f, "{} {}: {}", if check.held { "  ok  " } else { "FAILED" }, check.claim, check.seen)?;
        }
        for caveat in words::caveats(self) {
            writeln!(f, "{caveat}")?;
        }
        writeln!(f, "\n{}", words::verdict(self))
    }
}

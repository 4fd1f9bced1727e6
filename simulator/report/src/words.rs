//! What is said of a run in words, the same on a terminal and on a page.

use fleetkey_plot::Unit;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::quantity::seconds;
use crate::run::{Connections, Machine, Mode, RunReport, Shape};

pub(crate) fn count(of: usize) -> String {
    Unit::Count.show(of as f64)
}

/// A figure's name for people.
pub(crate) fn name(of: &str) -> String {
    of.replace('_', " ").replace("cpu", "CPU")
}

/// So many of them.
pub(crate) fn some(of: usize, one: &str) -> String {
    format!("{} {one}{}", count(of), if of == 1 { "" } else { "s" })
}

pub(crate) const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Real => "real time",
        Mode::Virtual => "virtual time",
    }
}

pub(crate) fn connections(connections: Connections) -> String {
    match connections {
        Connections::OnePerDevice => "one connection for each device".to_owned(),
        Connections::Shared { devices } => {
            format!("{} on each connection, as behind a gateway", some(devices, "device"))
        }
        Connections::None => "no connections".to_owned(),
    }
}

pub(crate) fn machine(machine: &Machine) -> String {
    format!(
        "{}, {}, {:.0} GiB, {}, fleetkey {}",
        machine.processor,
        some(machine.cores, "core"),
        machine.memory_bytes as f64 / (1_u64 << 30) as f64,
        machine.system,
        machine.program
    )
}

pub(crate) fn shape(shape: &Shape) -> String {
    format!(
        "{} in {} and {} of at most {}, {}",
        some(shape.devices, "device"),
        some(shape.groups, "group"),
        some(shape.cells, "cell"),
        count(shape.cell_capacity),
        shape.suite
    )
}

/// The fleet, how it was connected, and how time passed.
pub(crate) fn setting(report: &RunReport) -> String {
    let broker = match report.connections {
        Connections::None => report.shape.broker.clone(),
        Connections::OnePerDevice | Connections::Shared { .. } => format!("through {}", report.shape.broker),
    };
    let time = match report.mode {
        Mode::Real => "in real time",
        Mode::Virtual => "in virtual time: real cores, simulated clock and network",
    };
    format!("{}; {}, {broker}; {time}", shape(&report.shape), connections(report.connections))
}

/// When it was, on what, and how long it took.
pub(crate) fn circumstances(report: &RunReport) -> String {
    format!(
        "{}, on {}; took {}",
        date(report.began_unix_seconds),
        machine(&report.machine),
        seconds(report.seconds)
    )
}

/// How the checks went.
pub(crate) fn verdict(report: &RunReport) -> String {
    let failed = report.checks.iter().filter(|check| !check.held).count();
    match (report.checks.len(), failed) {
        (0, _) => "nothing was checked".to_owned(),
        (1, 0) => "the one check held".to_owned(),
        (all, 0) => format!("all {all} checks held"),
        (all, failed) => format!("{failed} of {all} checks FAILED"),
    }
}

/// What is to be known besides the figures, and what was measured and what was not.
pub(crate) fn caveats(report: &RunReport) -> Vec<String> {
    let measured = match report.extrapolated.as_slice() {
        [] => vec!["All figures were measured; none is extrapolated.".to_owned()],
        parts => parts.iter().map(|what| format!("Extrapolated, not measured: {what}")).collect(),
    };
    report.notes.iter().cloned().chain(measured).collect()
}

pub(crate) fn date(unix_seconds: u64) -> String {
    let date = i64::try_from(unix_seconds).ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    date.and_then(|date| date.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{unix_seconds} s Unix time"))
}

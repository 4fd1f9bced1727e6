//! What several runs of one scenario show together: figures against the size of the fleet.

use fleetkey_plot::{Axis, Chart, Marks, Page, PlotError, Series as Line, Table, Unit};

use crate::page::CPU_PARTS;
use crate::quantity::{Quantity, seconds};
use crate::run::{Phase, RunReport};
use crate::words;

/// One thing that may depend on the size: its name, unit, and what a phase says of it (in seconds, or bytes).
struct Measure {
    name: &'static str,
    unit: Unit,
    of: fn(&Phase) -> Option<f64>,
}

const MEASURES: [Measure; 6] = [
    Measure { name: "Bytes to a device, median", unit: Unit::Bytes, of: |phase| bytes(phase, 0.5) },
    Measure { name: "Bytes to a device, most", unit: Unit::Bytes, of: |phase| bytes(phase, 1.0) },
    Measure { name: "Coordinator CPU", unit: Unit::Seconds, of: coordinator },
    Measure { name: "Time to a new key, median", unit: Unit::Seconds, of: |phase| latency(phase, 0.5) },
    Measure { name: "Time to a new key, 99 of 100", unit: Unit::Seconds, of: |phase| latency(phase, 0.99) },
    Measure { name: "Time to a new key, the last", unit: Unit::Seconds, of: |phase| latency(phase, 1.0) },
];

fn bytes(phase: &Phase, share: f64) -> Option<f64> {
    let of = phase.bytes_per_device.as_ref().filter(|of| of.count() > 0)?;
    Some(of.quantile(share) as f64)
}

fn latency(phase: &Phase, share: f64) -> Option<f64> {
    let of = phase.latency.as_ref().filter(|of| of.count() > 0)?;
    Some(of.quantile(share) as f64 / 1e6)
}

fn coordinator(phase: &Phase) -> Option<f64> {
    let of = phase.figures.get(CPU_PARTS[0])?;
    Some(Quantity::of(&of.unit).drawn(of.value))
}

/// A part of the page: a table with a column for each run, and a plot for each measure.
pub(crate) fn write(page: &mut Page, reports: &[RunReport]) -> Result<(), PlotError> {
    let mut runs: Vec<&RunReport> = reports.iter().collect();
    runs.sort_by_key(|report| report.shape.devices);
    page.heading("Against the size of the fleet");
    let mut table = Table::new(
        std::iter::once(String::new())
            .chain(runs.iter().map(|report| words::some(report.shape.devices, "device"))),
    );
    for measure in &MEASURES {
        let lines = lines(measure, &runs);
        if lines.is_empty() {
            continue;
        }
        table.group(measure.name);
        for (name, values) in &lines {
            let cell = |value: &Option<f64>| match (value, measure.unit) {
                (None, _) => "-".to_owned(),
                (Some(value), Unit::Seconds) => seconds(*value),
                (Some(value), Unit::Count | Unit::Bytes | Unit::Share) => measure.unit.show(*value),
            };
            table.row(std::iter::once(name.clone()).chain(values.iter().map(cell)), false);
        }
    }
    page.table(&table);
    for measure in &MEASURES {
        let lines = lines(measure, &runs);
        // One point is no line, and is in the table.
        let lines: Vec<_> = lines.iter().filter(|(_, values)| values.iter().flatten().count() > 1).collect();
        if lines.is_empty() {
            continue;
        }
        let x = Axis::logarithmic("devices in the fleet", Unit::Count);
        let mut chart = Chart::new(measure.name, x, Axis::logarithmic("", measure.unit));
        for (name, values) in lines {
            let points = runs.iter().zip(values);
            let points = points.filter_map(|(run, value)| Some((run.shape.devices as f64, (*value)?)));
            chart.add(Line::new(name.as_str(), Marks::LineAndPoints, points));
        }
        page.chart(&chart)?;
    }
    Ok(())
}

/// Phase by phase, what each run says; phases of which none says anything are left out.
fn lines(measure: &Measure, runs: &[&RunReport]) -> Vec<(String, Vec<Option<f64>>)> {
    let mut names: Vec<&str> = Vec::new();
    for phase in runs.iter().flat_map(|report| &report.phases) {
        if !names.contains(&phase.name.as_str()) {
            names.push(&phase.name);
        }
    }
    let of = |name: &str, report: &RunReport| {
        report.phases.iter().find(|phase| phase.name == name).and_then(measure.of)
    };
    let lines = names.into_iter().map(|name| {
        let values: Vec<_> = runs.iter().map(|report| of(name, report)).collect();
        (name.to_owned(), values)
    });
    lines.filter(|(_, values)| values.iter().any(Option::is_some)).collect()
}

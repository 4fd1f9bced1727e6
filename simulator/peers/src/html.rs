//! The report as one page: the table, and plots against the size of the fleet.

use fleetkey_plot::{Axis, Chart, Marks, Page, PlotError, Series, Table, Unit};

use crate::measure::Figures;
use crate::report::{COLUMNS, Outcome, Report, SchemeReport, cells, group};

/// The page.
///
/// # Errors
/// [`PlotError`], when a plot cannot be drawn.
pub fn page(report: &Report) -> Result<String, PlotError> {
    let mut page = Page::new("What one removal costs");
    page.paragraph(&report.machine.to_string());
    page.table(&table(report));
    page.list(report.notes());

    page.heading("Against the size of the fleet");
    for chart in charts(report) {
        page.chart(&chart)?;
    }

    page.heading("What was measured");
    page.list(report.schemes.iter().map(|scheme| format!("{}: {}", scheme.name, scheme.about)));
    page.paragraph(&format!(
        "Each scheme had {} s for each size, set-up included. Where that was not enough there is no figure, and none is guessed.",
        report.budget_seconds
    ));
    Ok(page.to_html())
}

fn table(report: &Report) -> Table {
    let mut table = Table::new(COLUMNS);
    for devices in report.sizes() {
        table.group(group(devices));
        for (scheme, outcome) in report.at(devices) {
            let name = scheme.name.clone();
            match outcome {
                Outcome::Figures(figures) => {
                    table.row(std::iter::once(name).chain(cells(figures)), scheme.is_ours)
                }
                Outcome::NotReached(why) => table.row([name, why.clone()], scheme.is_ours),
            }
        }
    }
    table
}

/// A figure, and the same of the devices that it is largest for, where that is worth a line of its own.
type Value = fn(&Figures) -> f64;

fn charts(report: &Report) -> Vec<Chart> {
    let chart = |title: &str, label: &str, unit: Unit, value: Value, most: Option<Value>| {
        let axis = Axis::logarithmic(label, unit);
        let mut chart = Chart::new(title, Axis::logarithmic("devices in the group", Unit::Count), axis);
        for scheme in &report.schemes {
            let series = series(scheme, scheme.name.clone(), value);
            chart.add(if scheme.is_ours { series.emphasised() } else { series });
        }
        // After all others, so that each keeps its colour in every plot.
        for scheme in report.schemes.iter().filter(|scheme| scheme.is_ours) {
            if let Some(most) = most {
                chart.add(series(scheme, format!("{}, own cell", scheme.name), most));
            }
        }
        chart
    };
    let (bytes, seconds) = (Unit::Bytes, Unit::Seconds);
    vec![
        chart("Coordinator CPU for one removal", "CPU time", seconds, |of| of.coordinator_cpu_seconds, None),
        chart(
            "Bytes to a device",
            "bytes, median",
            bytes,
            |of| of.device_bytes_median as f64,
            Some(|of| of.device_bytes_max as f64),
        ),
        chart("Bytes published by the coordinator", "bytes", bytes, |of| of.published_bytes as f64, None),
        chart(
            "Device CPU",
            "CPU time, median",
            seconds,
            |of| of.device_cpu_seconds_median,
            Some(|of| of.device_cpu_seconds_max),
        ),
        chart("State on a device", "bytes stored", bytes, |of| of.device_state_bytes as f64, None),
    ]
}

fn series(scheme: &SchemeReport, name: String, value: Value) -> Series {
    let points = scheme.sizes.iter().filter_map(|size| match &size.outcome {
        Outcome::Figures(figures) => Some((size.devices as f64, value(figures))),
        Outcome::NotReached(_) => None,
    });
    Series::new(name, Marks::LineAndPoints, points)
}

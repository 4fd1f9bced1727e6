//! Runs as one self-contained page: tables, plots, checks, and what they were taken on.
//!
//! Leaves to `sizes` what several runs of one scenario show together.

use std::collections::BTreeSet;

use fleetkey_plot::{Axis, Bars, Chart, Marks, Page, PlotError, Series as Line, Table, Unit};

use crate::measure::Histogram;
use crate::quantity::{Quantity, long_axis, shown};
use crate::run::{Phase, RunReport, Series};
use crate::sizes;
use crate::text::{COLUMNS, cells};
use crate::words;

/// What processors did, by part, as those who run fleets name it among the figures of a phase.
pub const CPU_PARTS: [&str; 3] = ["coordinator_cpu", "broker_cpu", "device_cpu"];

/// Steps of a distribution that are drawn.
const STEPS: usize = 300;
/// Points of a series that are drawn.
const POINTS: usize = 1_200;
/// Series share a plot while none is smaller than the largest by more than this.
const SAME_PLOT: f64 = 20.0;
/// From so many times the smallest to the largest on, an axis is logarithmic.
const WIDE: u64 = 50;

/// One run; or several of one scenario, in the order given, with a part on what they show together.
///
/// # Errors
/// [`PlotError`], when a plot cannot be drawn.
pub fn page(reports: &[RunReport]) -> Result<String, PlotError> {
    let Some(first) = reports.first() else { return Ok(Page::new("No runs").to_html()) };
    let mut page = Page::new(match reports.len() {
        1 => format!("{}: {}", first.scenario, words::some(first.shape.devices, "device")),
        runs => format!("{}: {runs} runs", first.scenario),
    });
    page.paragraph(&first.about);
    if reports.len() > 1 {
        sizes::write(&mut page, reports)?;
    }
    for report in reports {
        let is_alone = reports.len() == 1;
        if !is_alone {
            let devices = words::some(report.shape.devices, "device");
            page.heading(&format!("{devices}, {}", words::date(report.began_unix_seconds)));
        }
        run(&mut page, report, is_alone)?;
    }
    Ok(page.to_html())
}

fn run(page: &mut Page, report: &RunReport, is_alone: bool) -> Result<(), PlotError> {
    let part =
        |page: &mut Page, name: &str| if is_alone { page.heading(name) } else { page.subheading(name) };
    page.list([words::setting(report), words::circumstances(report), words::verdict(report)]);

    part(page, "Phases");
    let mut table = Table::new(COLUMNS);
    report.phases.iter().for_each(|phase| table.row(cells(phase), false));
    page.table(&table);
    page.paragraph(
        "New key: from when a device was due to hold a new key to when the coordinator knew that it does, whenever \
         somebody got round to it. Bytes are payloads.",
    );

    if let Some(chart) =
        distribution(&report.phases, "Time to a new key", |phase| phase.latency.as_ref(), 1e-6)
    {
        part(page, "Time to a new key");
        page.chart(&chart)?;
    }
    let bytes = |phase: &'_ Phase| phase.bytes_per_device.clone();
    let phases: Vec<_> = report.phases.iter().map(|phase| (phase.name.clone(), bytes(phase))).collect();
    if let Some(chart) = cumulative("Bytes to a device", "bytes", Unit::Bytes, 1.0, phases) {
        part(page, "Bytes to a device");
        page.chart(&chart)?;
    }
    let charts = over_time(&report.series);
    if !charts.is_empty() {
        part(page, "Over time");
        charts.iter().try_for_each(|chart| page.chart(chart))?;
    }
    if let Some(bars) = cpu_by_part(&report.phases) {
        part(page, "CPU by part");
        page.bars(&bars);
    }
    if let Some(table) = figures(&report.phases) {
        part(page, "Figures");
        page.table(&table);
    }
    part(page, "Checks");
    let mut table = Table::new(["claim", "", "what was seen"]);
    for check in &report.checks {
        let held = if check.held { "held" } else { "FAILED" };
        table.row([check.claim.clone(), held.to_owned(), check.seen.clone()], !check.held);
    }
    if report.checks.is_empty() {
        page.paragraph("Nothing was checked.")
    } else {
        page.table(&table)
    }

    part(page, "What was measured");
    page.list(words::caveats(report));
    Ok(())
}

fn distribution(
    phases: &[Phase],
    title: &str,
    of: impl Fn(&Phase) -> Option<&Histogram>,
    factor: f64,
) -> Option<Chart> {
    let phases = phases.iter().map(|phase| (phase.name.clone(), of(phase).cloned()));
    cumulative(title, "time", Unit::Seconds, factor, phases)
}

/// Cumulative distributions, each with its name, of those that there are.
pub(crate) fn cumulative(
    title: &str,
    label: &str,
    unit: Unit,
    factor: f64,
    of: impl IntoIterator<Item = (String, Option<Histogram>)>,
) -> Option<Chart> {
    let there = of.into_iter().filter_map(|(name, of)| Some((name, of.filter(|of| of.count() > 0)?)));
    let there: Vec<(String, Histogram)> = there.collect();
    let all = || there.iter().flat_map(|(_, of)| of.values().iter().map(|(value, _)| *value));
    let (low, high) = (all().min()?, all().max()?);
    let x = match low > 0 && high / low >= WIDE {
        true => Axis::logarithmic(label, unit),
        false => Axis::linear(label, unit),
    };
    let mut chart = Chart::new(title, x, Axis::linear("share of devices", Unit::Share));
    for (name, of) in &there {
        chart.add(Line::new(name.as_str(), Marks::Steps, steps(of, factor)));
    }
    Some(chart)
}

/// The steps of a distribution: all, or as many as can be told apart; the last ones always.
fn steps(of: &Histogram, factor: f64) -> Vec<(f64, f64)> {
    let count = of.count();
    let stride = (count / STEPS as u64).max(1);
    let mut steps: Vec<(f64, f64)> = Vec::new();
    let (mut seen, mut drawn) = (0, 0);
    for (value, times) in of.values() {
        let x = *value as f64 * factor;
        if steps.is_empty() {
            steps.push((x, 0.0));
        }
        seen += times;
        if seen - drawn >= stride || count - seen < stride {
            drawn = seen;
            steps.push((x, seen as f64 / count as f64));
        }
    }
    steps
}

/// Series that fit on one plot, plot by plot.
fn over_time(series: &[Series]) -> Vec<Chart> {
    let peak = |of: &Series| of.points.iter().fold(0.0_f64, |peak, (_, value)| peak.max(value.abs()));
    let mut plots: Vec<Vec<&Series>> = Vec::new();
    for of in series.iter().filter(|of| !of.points.is_empty()) {
        let fits = |plot: &&mut Vec<&Series>| {
            plot.iter().all(|other| {
                let (one, other_peak) = (peak(of), peak(other));
                let (low, high) = (one.min(other_peak), one.max(other_peak));
                of.unit == other.unit && (high <= low * SAME_PLOT || high == 0.0)
            })
        };
        match plots.iter_mut().find(fits) {
            Some(plot) => plot.push(of),
            None => plots.push(vec![of]),
        }
    }
    plots.iter().map(|plot| time_plot(plot)).collect()
}

fn time_plot(plot: &[&Series]) -> Chart {
    let last = plot.iter().flat_map(|of| of.points.iter()).fold(0.0_f64, |last, (at, _)| last.max(*at));
    let (x, scale) = match long_axis(last) {
        Some((name, scale)) => (Axis::linear(format!("time ({name})"), Unit::Count), scale),
        None => (Axis::linear("time", Unit::Seconds), 1.0),
    };
    let unit = plot.first().map_or("", |of| of.unit.as_str());
    let quantity = Quantity::of(unit);
    let names: Vec<_> = plot.iter().map(|of| of.name.as_str()).collect();
    let label = match quantity.unit {
        Unit::Bytes => "bytes",
        Unit::Seconds => "time",
        Unit::Count | Unit::Share => unit,
    };
    let mut chart = Chart::new(names.join(", "), x, Axis::linear(label, quantity.unit));
    for of in plot {
        let points = thinned(&of.points).into_iter().map(|(at, value)| (at * scale, quantity.drawn(value)));
        chart.add(Line::new(of.name.as_str(), Marks::Line, points));
    }
    chart
}

/// Of each stretch of points the least and the most, so that no peak is lost.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= POINTS {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(POINTS / 2);
    let ends = points.chunks(stretch).flat_map(|stretch| {
        let least = stretch.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        let most = stretch.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        let mut ends: Vec<_> = least.into_iter().chain(most).copied().collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        ends
    });
    ends.collect()
}

fn cpu_by_part(phases: &[Phase]) -> Option<Bars> {
    let mut bars = Bars::new("CPU time", Unit::Seconds, ["coordinator", "broker", "devices"]);
    let mut are_some = false;
    for phase in phases {
        let part = |name| phase.figures.get(name).map(|of| Quantity::of(&of.unit).drawn(of.value));
        let parts = CPU_PARTS.map(part);
        if parts.iter().any(Option::is_some) {
            are_some = true;
            bars.row(phase.name.as_str(), parts.map(|part| part.unwrap_or(0.0)));
        }
    }
    are_some.then_some(bars)
}

/// A row for each figure, a column for each phase.
fn figures(phases: &[Phase]) -> Option<Table> {
    let phases: Vec<_> = phases.iter().filter(|phase| !phase.figures.is_empty()).collect();
    let names: BTreeSet<&str> =
        phases.iter().flat_map(|phase| phase.figures.keys().map(String::as_str)).collect();
    if names.is_empty() {
        return None;
    }
    let head = phases.iter().map(|phase| phase.name.as_str());
    let mut table = Table::new(std::iter::once("figure").chain(head));
    for name in names {
        let cells = phases.iter().map(|phase| phase.figures.get(name).map_or_else(String::new, shown));
        table.row(std::iter::once(words::name(name)).chain(cells), false);
    }
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Times;

    #[test]
    fn a_distribution_with_many_values_keeps_its_first_and_last_step() {
        let mut times = Times::default();
        (1..=100_000).for_each(|value| times.count(value));
        let all = times.histogram();
        let steps = steps(&all, 1.0);
        assert!(steps.len() < 2 * STEPS, "{}", steps.len());
        assert_eq!(steps.first().map(|step| step.1), Some(0.0));
        assert_eq!(steps.last(), Some(&(all.quantile(1.0) as f64, 1.0)));
        assert!(steps.windows(2).all(|pair| pair[0].1 <= pair[1].1 && pair[0].0 <= pair[1].0));
    }

    #[test]
    fn thinning_keeps_every_peak() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|at| (f64::from(at), 1.0)).collect();
        points[54_321].1 = 900.0;
        let thin = thinned(&points);
        assert!(thin.len() <= POINTS + 2, "{}", thin.len());
        assert!(thin.contains(&(54_321.0, 900.0)));
        assert!(thin.is_sorted_by(|a, b| a.0 <= b.0));
    }

    #[test]
    fn what_is_small_is_not_drawn_beside_what_is_large() {
        let series = |name: &str, unit: &str, peak| Series {
            name: name.to_owned(),
            unit: unit.to_owned(),
            points: vec![(0.0, 0.0), (1.0, peak)],
        };
        let all = [
            series("members", "devices", 10_000.0),
            series("stragglers", "devices", 12.0),
            series("connected", "devices", 9_000.0),
            series("sent", "B", 9_000.0),
        ];
        assert_eq!(over_time(&all).len(), 3);
    }
}

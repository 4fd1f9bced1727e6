//! How a comparison is told: on a terminal, and on a page with both runs' distributions in one plot.

use std::fmt;

use fleetkey_plot::{Page, PlotError, Table, Unit};

use crate::compare::{Compared, Comparison, Verdict};
use crate::page::cumulative;
use crate::quantity::Quantity;
use crate::run::{Phase, RunReport};
use crate::words;

const COLUMNS: [&str; 5] = ["figure", "before", "after", "ratio", ""];

/// One line of the table, and what it says in the end.
type Line = ([String; 5], Verdict);

const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Same => "",
        Verdict::Better => "better",
        Verdict::Worse => "WORSE",
        Verdict::Changed => "changed",
        Verdict::OnlyBefore => "only before",
        Verdict::OnlyAfter => "only after",
    }
}

fn cells(of: &Compared) -> [String; 5] {
    let quantity = Quantity::of(&of.unit);
    let show = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| quantity.show(value));
    let ratio = of.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
    [words::name(&of.name), show(of.before), show(of.after), ratio, word(of.verdict).to_owned()]
}

fn check_cells(of: &Compared) -> [String; 5] {
    let show = |value: Option<f64>| match value {
        Some(held) if held > 0.0 => "held".to_owned(),
        Some(_) => "FAILED".to_owned(),
        None => "-".to_owned(),
    };
    [of.name.clone(), show(of.before), show(of.after), String::new(), word(of.verdict).to_owned()]
}

impl Comparison {
    fn summary(&self) -> String {
        format!(
            "{} worse, {} better, {} changed, {} within {}",
            self.count(Verdict::Worse),
            self.count(Verdict::Better),
            self.count(Verdict::Changed),
            self.count(Verdict::Same),
            Unit::Share.show(self.noise)
        )
    }

    /// Each group of lines, with its name.
    fn groups(&self) -> Vec<(&str, Vec<Line>)> {
        let row = |of: &Compared| (cells(of), of.verdict);
        let phases = self.phases.iter();
        let mut groups: Vec<_> =
            phases.map(|phase| (phase.name.as_str(), phase.figures.iter().map(row).collect())).collect();
        if !self.checks.is_empty() {
            groups.push((
                "checks that came out otherwise",
                self.checks.iter().map(|of| (check_cells(of), of.verdict)).collect(),
            ));
        }
        groups
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}: before and after, noise {}\n", self.scenario, Unit::Share.show(self.noise))?;
        for differs in &self.differs {
            writeln!(
                f,
                "not the same {}: {} | {}",
                differs.what,
                said(&differs.before),
                said(&differs.after)
            )?;
        }
        let width =
            self.groups().iter().flat_map(|(_, rows)| rows).map(|(row, _)| row[0].chars().count()).max();
        let width = width.unwrap_or(0).max(20);
        writeln!(f, "{:<width$}  {:>16} {:>16} {:>9}", COLUMNS[0], COLUMNS[1], COLUMNS[2], COLUMNS[3])?;
        for (name, rows) in self.groups() {
            writeln!(f, "\n{name}")?;
            for ([figure, before, after, ratio, verdict], _) in rows {
                let line = format!("{figure:<width$}  {before:>16} {after:>16} {ratio:>9}  {verdict}");
                writeln!(f, "{}", line.trim_end())?;
            }
        }
        writeln!(f, "\n{}", self.summary())
    }
}

/// Nothing is said as such.
fn said(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

/// The comparison as a page; `names` are what the two runs are called in it.
///
/// # Errors
/// [`PlotError`], when a plot cannot be drawn.
pub fn comparison_page(
    comparison: &Comparison,
    before: &RunReport,
    after: &RunReport,
    names: [&str; 2],
) -> Result<String, PlotError> {
    let mut page = Page::new(format!("{}: two runs", comparison.scenario));
    let [first, second] = names;
    page.list([
        format!("before: {first}, {}", words::circumstances(before)),
        format!("after: {second}, {}", words::circumstances(after)),
        comparison.summary(),
    ]);
    page.heading("What is not the same");
    if comparison.differs.is_empty() {
        page.paragraph("Machine, program, time, connections and fleet are the same.");
    } else {
        let mut table = Table::new(["", "before", "after"]);
        for of in &comparison.differs {
            table.row([of.what.as_str(), said(&of.before), said(&of.after)], false);
        }
        page.table(&table);
        page.paragraph("With any of it, figures differ for more reasons than one.");
    }
    page.heading("Figures");
    let mut table = Table::new(COLUMNS);
    for (name, rows) in comparison.groups() {
        table.group(name);
        for (row, verdict) in rows {
            table.row(row, matches!(verdict, Verdict::Worse | Verdict::Better));
        }
    }
    page.table(&table);
    page.heading("Time to a new key");
    for phase in &before.phases {
        let Some(other) = after.phases.iter().find(|other| other.name == phase.name) else { continue };
        let named = |name: &str, phase: &Phase| (name.to_owned(), phase.latency.clone());
        let both = [named("before", phase), named("after", other)];
        if let Some(chart) = cumulative(&phase.name, "time", Unit::Seconds, 1e-6, both) {
            page.chart(&chart)?;
        }
    }
    Ok(page.to_html())
}

//! `fleetkey-sim report` and `fleetkey-sim compare`: what was written about runs, told again.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use crate::compare::Comparison;
use crate::compare_told::comparison_page;
use crate::file::{Rendered, create, read};
use crate::run::RunReport;

/// Tells of runs again, from the JSON that they have written: as a table, as CSV, as a page with plots.
///
/// Several runs of one scenario with fleets of several sizes also show how figures depend on the size.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey-sim report first-day.json --html first-day.html
  fleetkey-sim report small.json middle.json large.json --html sizes.html --csv sizes.csv")]
pub struct Report {
    /// Reports of runs, as `fleetkey-sim run --json` writes them.
    #[arg(required = true, value_name = "FILE")]
    runs: Vec<PathBuf>,
    #[command(flatten)]
    rendered: Rendered,
}

/// Reports are of several scenarios.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("several scenarios: {}; one page is about runs of one", .0.join(", "))]
pub struct SeveralScenarios(Vec<String>);

impl Report {
    /// Reads, writes what was asked for, and the tables to `out`. Whether all checks of all runs held.
    ///
    /// # Errors
    /// When something cannot be read or written, or the runs are of several scenarios.
    pub fn run(self, out: &mut impl Write) -> anyhow::Result<bool> {
        let reports = self.runs.iter().map(|path| read(path)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut scenarios: Vec<_> = reports.iter().map(|report| report.scenario.clone()).collect();
        scenarios.sort();
        scenarios.dedup();
        if scenarios.len() > 1 {
            return Err(SeveralScenarios(scenarios).into());
        }
        self.rendered.create()?.render(&reports)?;
        for report in &reports {
            write!(out, "{report}").context("print the report")?;
        }
        Ok(reports.iter().all(RunReport::passed))
    }
}

/// Puts two runs of a scenario beside each other, phase by phase and figure by figure.
///
/// Figures that change by more than the noise are marked as better or worse: of times, bytes and messages less is better, of
/// rates more; what is neither has changed. What differs in machine, program, fleet and connections is said first. Something
/// that has become worse makes the exit code 1.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey-sim compare before.json after.json
  fleetkey-sim compare before.json after.json --noise 10% --html compare.html")]
pub struct Compare {
    /// The report of the run before.
    before: PathBuf,
    /// The report of the run after.
    after: PathBuf,
    /// By how much of itself a figure may change unremarked.
    #[arg(long, value_name = "SHARE", default_value = "5%", value_parser = share)]
    noise: f64,
    /// Compare runs of two scenarios too.
    #[arg(long)]
    force: bool,
    /// Where to write the comparison as JSON, beside the table.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where to write the comparison as a page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// `5%`, or `0.05`.
fn share(text: &str) -> Result<f64, String> {
    let (number, scale) = match text.strip_suffix('%') {
        Some(percent) => (percent.trim_end(), 0.01),
        None => (text, 1.0),
    };
    let share = number.parse::<f64>().map(|number| number * scale);
    share.ok().filter(|share| (0.0..=10.0).contains(share)).ok_or_else(|| "say 5%, or 0.05".to_owned())
}

impl Compare {
    /// Compares, and writes the table to `out`. Whether nothing has become worse.
    ///
    /// # Errors
    /// When something cannot be read or written, or the runs are of two scenarios.
    pub fn run(self, out: &mut impl Write) -> anyhow::Result<bool> {
        let (before, after) = (read(&self.before)?, read(&self.after)?);
        let comparison = Comparison::of(&before, &after, self.noise, self.force)?;
        if let Some(file) = create(self.json.as_deref())? {
            serde_json::to_writer_pretty(file, &comparison).context("write the comparison")?;
        }
        if let Some(mut file) = create(self.html.as_deref())? {
            let names = [self.before.to_string_lossy(), self.after.to_string_lossy()];
            let page =
                comparison_page(&comparison, &before, &after, names.each_ref().map(|name| name.as_ref()))?;
            file.write_all(page.as_bytes()).context("write the page")?;
        }
        write!(out, "{comparison}").context("print the comparison")?;
        Ok(comparison.is_good())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_a_share_of_one_or_of_a_hundred() {
        assert_eq!(share("5%"), Ok(0.05));
        assert_eq!(share("0.2"), Ok(0.2));
        for wrong in ["", "%", "-1%", "much", "NaN"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}

//! Two runs beside each other: phase by phase and figure by figure, and what differs in what they were taken on.
//!
//! Leaves to `compare_text` and `compare_page` how that is told.

use serde::Serialize;

use crate::measure::Histogram;
use crate::quantity::{Better, Quantity};
use crate::run::{Phase, RunReport};
use crate::words;

/// The version of the JSON document.
pub const COMPARISON_VERSION: u32 = 1;

/// Two runs cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotCompare {
    /// They are of two scenarios.
    #[error("another scenario: {before} and {after}; --force compares them all the same")]
    AnotherScenario {
        /// The first run's.
        before: String,
        /// The second run's.
        after: String,
    },
}

/// Whether a figure has changed, and which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// By no more than noise.
    Same,
    /// It has become better.
    Better,
    /// It has become worse.
    Worse,
    /// It has changed, and neither way is better.
    Changed,
    /// Only the first run has it.
    OnlyBefore,
    /// Only the second run has it.
    OnlyAfter,
}

/// One figure in both runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// In the first run.
    pub before: Option<f64>,
    /// In the second run.
    pub after: Option<f64>,
    /// The second over the first, where both are there and the first is not zero.
    pub ratio: Option<f64>,
    /// What that means.
    pub verdict: Verdict,
}

/// One phase in both runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseCompared {
    /// Its name, with a number where there are several of that name.
    pub name: String,
    /// Its figures.
    pub figures: Vec<Compared>,
}

/// Something the runs were taken on, or with, that is not the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What.
    pub what: String,
    /// In the first run.
    pub before: String,
    /// In the second run.
    pub after: String,
}

/// Two runs beside each other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// [`COMPARISON_VERSION`].
    pub version: u32,
    /// The scenario, or both.
    pub scenario: String,
    /// By how much of itself a figure may change unremarked: 0.05.
    pub noise: f64,
    /// What differs in what they were taken on: with any of it, figures differ for more reasons than one.
    pub differs: Vec<Difference>,
    /// The run as a whole, then each phase.
    pub phases: Vec<PhaseCompared>,
    /// Checks that held in one run and not in the other, or are in one alone: 1 held, 0 did not.
    pub checks: Vec<Compared>,
}

impl Comparison {
    /// Puts `after` beside `before`. Figures that change by at most `noise` of themselves count as the same.
    ///
    /// # Errors
    /// [`CannotCompare`], when they are of two scenarios and nobody insists.
    pub fn of(
        before: &RunReport,
        after: &RunReport,
        noise: f64,
        is_forced: bool,
    ) -> Result<Self, CannotCompare> {
        let is_same = before.scenario == after.scenario;
        if !is_same && !is_forced {
            let (before, after) = (before.scenario.clone(), after.scenario.clone());
            return Err(CannotCompare::AnotherScenario { before, after });
        }
        let scenario = match is_same {
            true => before.scenario.clone(),
            false => format!("{} and {}", before.scenario, after.scenario),
        };
        let whole = compared("took", "s", Some(before.seconds), Some(after.seconds), noise);
        let mut phases = vec![PhaseCompared { name: "the whole run".to_owned(), figures: vec![whole] }];
        phases.extend(compare_phases(&before.phases, &after.phases, noise));
        Ok(Self {
            version: COMPARISON_VERSION,
            scenario,
            noise,
            differs: differences(before, after),
            phases,
            checks: compare_checks(before, after),
        })
    }

    /// Whether nothing has become worse.
    pub fn is_good(&self) -> bool {
        self.count(Verdict::Worse) == 0
    }

    /// How many figures and checks have come to that.
    pub fn count(&self, verdict: Verdict) -> usize {
        let all = self.phases.iter().flat_map(|phase| &phase.figures).chain(&self.checks);
        all.filter(|figure| figure.verdict == verdict).count()
    }
}

fn differences(before: &RunReport, after: &RunReport) -> Vec<Difference> {
    let told = |report: &RunReport| {
        let (machine, shape) = (&report.machine, &report.shape);
        [
            ("scenario", report.scenario.clone()),
            ("program", machine.program.clone()),
            ("time", words::mode(report.mode).to_owned()),
            ("connections", words::connections(report.connections)),
            ("broker", shape.broker.clone()),
            ("devices", words::count(shape.devices)),
            ("groups", words::count(shape.groups)),
            ("cells", words::count(shape.cells)),
            ("cell capacity", words::count(shape.cell_capacity)),
            ("suite", shape.suite.clone()),
            ("processor", machine.processor.clone()),
            ("cores", words::count(machine.cores)),
            ("memory", format!("{:.1} GiB", machine.memory_bytes as f64 / (1_u64 << 30) as f64)),
            ("system", machine.system.clone()),
            ("extrapolated", report.extrapolated.join("; ")),
        ]
    };
    let pairs = told(before).into_iter().zip(told(after)).filter(|((_, before), (_, after))| before != after);
    let differ =
        pairs.map(|((what, before), (_, after))| Difference { what: what.to_owned(), before, after });
    differ.collect()
}

/// A phase's figures by name, its distributions among them.
fn figures(phase: &Phase) -> Vec<(String, String, f64)> {
    let mut figures = vec![("took".to_owned(), "s".to_owned(), phase.took_seconds)];
    let mut distribution = |of: Option<&Histogram>, name: &str, last: &str, unit: &str| {
        let Some(of) = of.filter(|of| of.count() > 0) else { return };
        figures.push((format!("{name}: devices"), String::new(), of.count() as f64));
        for (which, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), (last, 1.0)] {
            figures.push((format!("{name}: {which}"), unit.to_owned(), of.quantile(share) as f64));
        }
    };
    distribution(phase.latency.as_ref(), "new key", "last", "us");
    distribution(phase.bytes_per_device.as_ref(), "bytes to a device", "most", "B");
    figures
        .extend(phase.figures.iter().map(|(name, figure)| (name.clone(), figure.unit.clone(), figure.value)));
    figures
}

/// Phases with names that are theirs alone: a second one of a name has a number.
fn named(phases: &[Phase]) -> Vec<(String, &Phase)> {
    let number =
        |at: usize, name: &str| phases.iter().take(at).filter(|phase| phase.name == name).count() + 1;
    let named = phases.iter().enumerate().map(|(at, phase)| match number(at, &phase.name) {
        1 => (phase.name.clone(), phase),
        number => (format!("{} ({number})", phase.name), phase),
    });
    named.collect()
}

fn compare_phases(before: &[Phase], after: &[Phase], noise: f64) -> Vec<PhaseCompared> {
    let (before, after) = (named(before), named(after));
    let find = |of: &[(String, &Phase)], name: &str| {
        let phase = of.iter().find(|(other, _)| other == name).map(|(_, phase)| *phase);
        phase.map(figures).unwrap_or_default()
    };
    let mut names: Vec<&String> = before.iter().map(|(name, _)| name).collect();
    let is_new = |name: &&String| before.iter().all(|(other, _)| other != *name);
    names.extend(after.iter().map(|(name, _)| name).filter(is_new));
    let phases = names.into_iter().map(|name| {
        let (before, after) = (find(&before, name), find(&after, name));
        PhaseCompared { name: name.clone(), figures: compare_figures(&before, &after, noise) }
    });
    phases.collect()
}

fn compare_figures(
    before: &[(String, String, f64)],
    after: &[(String, String, f64)],
    noise: f64,
) -> Vec<Compared> {
    // A figure that has changed its unit is another one.
    let value = |of: &[(String, String, f64)], name: &str, unit: &str| {
        of.iter().find(|(n, u, _)| n == name && u == unit).map(|(_, _, value)| *value)
    };
    let is_new = |(name, unit, _): &&(String, String, f64)| value(before, name, unit).is_none();
    let all = before.iter().chain(after.iter().filter(is_new));
    all.map(|(name, unit, _)| {
        compared(name, unit, value(before, name, unit), value(after, name, unit), noise)
    })
    .collect()
}

fn compared(name: &str, unit: &str, before: Option<f64>, after: Option<f64>, noise: f64) -> Compared {
    let verdict = match (before, after) {
        (Some(before), Some(after)) if (after - before).abs() <= before.abs() * noise => Verdict::Same,
        (Some(before), Some(after)) => match (Quantity::of(unit).better(name), after > before) {
            (Better::Neither, _) => Verdict::Changed,
            (Better::Less, true) | (Better::More, false) => Verdict::Worse,
            (Better::Less, false) | (Better::More, true) => Verdict::Better,
        },
        (Some(_), None) => Verdict::OnlyBefore,
        (None, _) => Verdict::OnlyAfter,
    };
    let ratio = before.zip(after).filter(|(before, _)| *before != 0.0).map(|(before, after)| after / before);
    Compared { name: name.to_owned(), unit: unit.to_owned(), before, after, ratio, verdict }
}

fn compare_checks(before: &RunReport, after: &RunReport) -> Vec<Compared> {
    let held = |report: &RunReport, claim: &str| {
        report.checks.iter().find(|check| check.claim == claim).map(|check| check.held)
    };
    let mut claims: Vec<&str> = Vec::new();
    for check in before.checks.iter().chain(&after.checks) {
        if !claims.contains(&check.claim.as_str()) {
            claims.push(&check.claim);
        }
    }
    let checks = claims.into_iter().filter_map(|claim| {
        let (before, after) = (held(before, claim), held(after, claim));
        let verdict = match (before, after) {
            (Some(true), Some(false)) => Verdict::Worse,
            (Some(false), Some(true)) => Verdict::Better,
            (Some(_), Some(_)) => return None,
            (Some(_), None) => Verdict::OnlyBefore,
            // A new claim that does not hold is no good news either.
            (None, Some(false)) => Verdict::Worse,
            (None, _) => Verdict::OnlyAfter,
        };
        let number = |held: Option<bool>| held.map(|held| f64::from(u8::from(held)));
        let (before, after) = (number(before), number(after));
        Some(Compared { name: claim.to_owned(), unit: String::new(), before, after, ratio: None, verdict })
    });
    checks.collect()
}

//! `fleetkey-sim peers`: the comparison from the command line.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use fleetkey_plot::Unit;

use crate::budget::Budget;
use crate::fleetkey::Fleetkey;
use crate::html;
use crate::lkh::KeyTree;
use crate::machine::Machine;
use crate::measure::{NoFigures, measure};
#[cfg(feature = "mls-rs")]
use crate::mls_rs_flat::FlatMlsRs;
use crate::openmls_flat::FlatOpenMls;
use crate::pairwise::Pairwise;
use crate::report::{Outcome, REPORT_VERSION, Report, SchemeReport, Size};
use crate::scheme::{Scheme, Stopped};

/// Compares what one removal costs here and elsewhere, in the same run on the same machine.
///
/// Fleetkey against a flat MLS group on openmls and on mls-rs, pairwise delivery with HPKE, and key trees (LKH): the
/// coordinator's CPU time, the bytes it publishes, and what that means for a device. Each removal is checked: those
/// who remain hold the new key, and the one who is gone does not. A check that fails makes the exit code 1.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey-sim peers                                          100 to 100,000 devices
  fleetkey-sim peers --devices 100,1000 --html peers.html     a quick one, with plots
  fleetkey-sim peers --schemes fleetkey,lkh --budget 10m --devices 1000000")]
pub struct Peers {
    /// Sizes of the fleet.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "100,1000,10000,100000",
        value_parser = clap::value_parser!(u32).range(20..=4_000_000))]
    devices: Vec<u32>,
    /// What to compare.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum)]
    schemes: Vec<Which>,
    /// Children of a node in key trees, a tree for each.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "2,4",
        value_parser = clap::value_parser!(u16).range(2..=256))]
    degree: Vec<u16>,
    /// What each scheme may take for each size, set-up included, in seconds or minutes: 120s, 10m.
    #[arg(long, value_name = "TIME", default_value = "600s", value_parser = duration)]
    budget: Duration,
    /// Removals to take the median of.
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=10))]
    removals: u8,
    /// Where to write the report as JSON, beside the table.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where to write the report as a page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// A scheme, or a family of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    Fleetkey,
    Openmls,
    #[cfg(feature = "mls-rs")]
    MlsRs,
    Pairwise,
    Lkh,
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, factor) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let number: u32 = number.parse().map_err(|_| "say 120s, or 10m".to_owned())?;
    Ok(Duration::from_secs(u64::from(number) * factor))
}

impl Peers {
    /// Measures, and writes the table to `out`. Whether every removal did its work.
    ///
    /// # Errors
    /// When something cannot be written.
    pub fn run(self, out: &mut impl Write) -> anyhow::Result<bool> {
        // Before the work, so that a path that cannot be written is not found out after it.
        let create =
            |path: PathBuf| File::create(&path).with_context(|| format!("create {}", path.display()));
        let json = self.json.clone().map(create).transpose()?;
        let html = self.html.clone().map(create).transpose()?;
        let machine = Machine::here();
        if !machine.is_release {
            eprintln!("this is a debug build: its times say nothing; cargo run --release");
        }
        let (report, broken) = self.measure(machine);
        write!(out, "{report}").context("print the report")?;
        if let Some(file) = json {
            serde_json::to_writer_pretty(file, &report).context("write the report")?;
        }
        if let Some(mut file) = html {
            file.write_all(html::page(&report)?.as_bytes()).context("write the page")?;
        }
        for what in &broken {
            writeln!(out, "BROKEN {what}")?;
        }
        Ok(broken.is_empty())
    }

    fn schemes(&self) -> Vec<Box<dyn Scheme>> {
        let chosen = if self.schemes.is_empty() { Which::value_variants() } else { &self.schemes };
        // In the order of the table, however they were named.
        let chosen = Which::value_variants().iter().filter(|which| chosen.contains(which));
        chosen
            .flat_map(|which| -> Vec<Box<dyn Scheme>> {
                match which {
                    Which::Fleetkey => vec![Box::new(Fleetkey)],
                    Which::Openmls => vec![Box::new(FlatOpenMls)],
                    #[cfg(feature = "mls-rs")]
                    Which::MlsRs => vec![Box::new(FlatMlsRs)],
                    Which::Pairwise => vec![Box::new(Pairwise)],
                    Which::Lkh => {
                        let tree = |degree: &u16| KeyTree { degree: usize::from(*degree) };
                        self.degree.iter().map(tree).map(|tree| Box::new(tree) as Box<dyn Scheme>).collect()
                    }
                }
            })
            .collect()
    }

    /// Everything, and the removals that did not do their work.
    fn measure(&self, machine: Machine) -> (Report, Vec<String>) {
        let mut sizes: Vec<usize> = self.devices.iter().map(|devices| *devices as usize).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let mut broken = Vec::new();
        let measured = self.schemes().into_iter().map(|scheme| {
            let mut of_scheme = Vec::new();
            let mut gave_up_at = None;
            for devices in &sizes {
                let name = format!("{}, {} devices", scheme.name(), Unit::Count.show(*devices as f64));
                let outcome = match &gave_up_at {
                    Some(smaller) => {
                        Outcome::NotReached(format!("not reached: out of time at {smaller} already"))
                    }
                    None => {
                        let budget = Budget::of(self.budget);
                        match measure(scheme.as_ref(), *devices, usize::from(self.removals), &budget) {
                            Ok(figures) => Outcome::Figures(figures),
                            Err(why) => {
                                match &why {
                                    NoFigures::NotReached(Stopped::OutOfTime { .. }) => {
                                        gave_up_at = Some(Unit::Count.show(*devices as f64));
                                    }
                                    NoFigures::NotReached(Stopped::Failed { .. }) => {}
                                    NoFigures::Broken { .. } => broken.push(why.to_string()),
                                }
                                Outcome::NotReached(why.to_string())
                            }
                        }
                    }
                };
                tell(&name, &outcome);
                of_scheme.push(Size { devices: *devices, outcome });
            }
            let (name, about, is_ours) = (scheme.name(), scheme.about().to_owned(), scheme.is_ours());
            SchemeReport { name, about, is_ours, sizes: of_scheme }
        });
        let schemes = measured.collect();
        let budget_seconds = self.budget.as_secs();
        (Report { version: REPORT_VERSION, machine, budget_seconds, schemes }, broken)
    }
}

fn tell(name: &str, outcome: &Outcome) {
    match outcome {
        Outcome::Figures(figures) => eprintln!(
            "{name:<40} {:>9} of coordinator CPU, {} removals, set up in {:.1} s",
            Unit::Seconds.show(figures.coordinator_cpu_seconds),
            figures.removals,
            figures.set_up_seconds
        ),
        Outcome::NotReached(why) => eprintln!("{name:<40} {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_in_seconds_or_minutes() {
        assert_eq!(duration("120s"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert!(duration("soon").is_err());
    }
}

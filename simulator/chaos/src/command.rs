//! `fleetkey-sim chaos`: seeds from the command line.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::hunt::{Hunted, hunt, spawn_for_worlds};
use crate::minimise::minimise;
use crate::named::NAMED;
use crate::profile::Profile;
use crate::run::{Figures, Options, plan_of};

/// Runs whole fleets in virtual time, with every fault, and checks every rule.
///
/// The real coordinator core, the real agent cores and real MLS run in one thread for each core of the machine; time,
/// network, disks and chance are simulated from a seed. A plan drawn from the seed says what goes wrong and when. After
/// each step, and once the faults have stopped, a reference model says whether every rule still holds. A rule that was
/// broken is named with the line that runs it again, and the plan is made as small as it can be.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey-sim chaos                                      20 seeds of the hardest profile
  fleetkey-sim chaos --seeds 2000 --profile hell          a long hunt
  fleetkey-sim chaos --seed 17                            one seed
  fleetkey-sim chaos --profile power-cut --devices 10000 --seeds 1

Profiles: calm, rough, storm, hell (everything, malice included), guarded (the same with a\npre-shared key), power-cut.")]
pub struct Chaos {
    /// The first seed, or the only one when --seeds is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds, one after the other.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,
    /// Devices that each world begins with.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    devices: u32,
    /// How bad the world is.
    #[arg(long, default_value = "hell", value_parser = profile)]
    profile: Profile,
    /// The worlds with a name, each known to show a certain fault should it come back; instead of seeds.
    #[arg(long, conflicts_with_all = ["seed", "seeds", "profile", "only"])]
    named: bool,
    /// Only these acts of the plan, by number; `none` for none.
    #[arg(long, value_name = "NUMBERS", value_parser = numbers)]
    only: Option<Numbers>,
    /// A network that loses and delays nothing, whatever the profile says.
    #[arg(long)]
    calm_network: bool,
    /// Go on after a failure, and count them.
    #[arg(long)]
    keep_going: bool,
    /// Do not make a failing plan smaller.
    #[arg(long)]
    no_minimise: bool,
    /// Worlds at the same time; as many as there are cores when not given.
    #[arg(long, value_name = "COUNT")]
    threads: Option<usize>,
    /// Print what will happen in the first world, and run nothing.
    #[arg(long)]
    plan: bool,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone)]
struct Numbers(Vec<usize>);

fn profile(name: &str) -> Result<Profile, String> {
    Profile::named(name).ok_or_else(|| {
        let names: Vec<_> = Profile::all().iter().map(|profile| profile.name).collect();
        format!("there are {}", names.join(", "))
    })
}

fn numbers(text: &str) -> Result<Numbers, String> {
    if text == "none" {
        return Ok(Numbers(Vec::new()));
    }
    let numbers: Result<Vec<usize>, _> = text.split(',').map(str::parse).collect();
    numbers.map(Numbers).map_err(|error| error.to_string())
}

/// What was counted in all worlds.
#[derive(Default)]
struct Sums {
    worlds: u64,
    failed: u64,
    fleet_hours: f64,
    device_hours: f64,
    figures: Figures,
    schedules: BTreeMap<u64, u64>,
}

impl Sums {
    fn add(&mut self, hunted: &Hunted) {
        let (outcome, sum) = (&hunted.outcome, &mut self.figures);
        let of = &outcome.figures;
        self.worlds += 1;
        self.failed += u64::from(outcome.violation.is_some());
        self.fleet_hours += outcome.fleet_hours();
        self.device_hours += outcome.fleet_hours() * of.devices as f64;
        self.schedules.insert(hunted.options.seed, of.schedule);
        sum.steps += of.steps;
        sum.acts += of.acts;
        sum.commands += of.commands;
        sum.published += of.published;
        sum.delivered += of.delivered;
        sum.connections += of.connections;
        sum.coordinator_starts += of.coordinator_starts;
        sum.transactions += of.transactions;
        sum.rekeys += of.rekeys;
        sum.confirmations += of.confirmations;
        sum.quarantined += of.quarantined;
        sum.superseded += of.superseded;
        sum.copies_detected += of.copies_detected;
        sum.restores += of.restores;
        sum.lies += of.lies;
        sum.shed += of.shed;
        sum.deepest_inbox = sum.deepest_inbox.max(of.deepest_inbox);
        sum.devices += of.devices;
        for (into, from) in [
            (&mut sum.catch_ups, &of.catch_ups),
            (&mut sum.coordinator_refusals, &of.coordinator_refusals),
            (&mut sum.device_refusals, &of.device_refusals),
        ] {
            from.iter().for_each(|(name, count)| *into.entry(name).or_default() += count);
        }
        if let (Some(back), Some(current)) = (of.power_back_at, of.all_current_at) {
            (sum.power_back_at, sum.all_current_at) = (Some(back), Some(current));
        }
    }
}

impl Chaos {
    /// Runs the seeds, and writes to `out` how that went. Whether every rule held.
    ///
    /// # Errors
    /// When nothing can be written.
    pub fn run(self, out: &mut impl Write) -> anyhow::Result<bool> {
        let of_seeds = self.seeds.unwrap_or(if self.seed.is_some() { 1 } else { 20 });
        let count = if self.named { NAMED.len() as u64 } else { of_seeds };
        let threads = self.threads.unwrap_or_else(cores).min(usize::try_from(count).unwrap_or(usize::MAX));
        let template = Options {
            seed: self.seed.unwrap_or(1),
            profile: self.profile.clone(),
            devices: self.devices as usize,
            only: self.only.as_ref().map(|only| only.0.clone()),
            calm_network: self.calm_network,
        };
        if self.plan {
            for line in plan_of(&template) {
                writeln!(out, "{line}")?;
            }
            return Ok(true);
        }
        // Panics are caught, and told as broken rules.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let started = Instant::now();
        let bar = progress_bar(count);
        let sums = Mutex::new(Sums::default());
        let world = |number: u64| match NAMED.get(number as usize).filter(|_| self.named) {
            Some(named) => named.options(),
            None => Options { seed: template.seed + number, ..template.clone() },
        };
        let failures = hunt(&world, count, threads, self.keep_going || self.named, &|hunted| {
            let mut sums = sums.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            sums.add(hunted);
            bar.set_message(format!(
                "{:.0} fleet-hours/s, {} failed",
                sums.fleet_hours / started.elapsed().as_secs_f64(),
                sums.failed
            ));
            bar.inc(1);
        });
        bar.finish_and_clear();
        let sums = sums.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        let seconds = started.elapsed().as_secs_f64();
        let smallest = failures.first().filter(|_| !self.no_minimise).map(smaller);
        std::panic::set_hook(hook);
        if self.json {
            write_json(out, &template, &sums, seconds, &failures, smallest.as_ref())?;
        } else {
            write_text(out, &template, &sums, seconds, &failures, smallest.as_ref())?;
        }
        Ok(failures.is_empty())
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn progress_bar(count: u64) -> ProgressBar {
    let bar = ProgressBar::new(count);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} worlds  {elapsed}  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

fn smaller(failing: &Hunted) -> Hunted {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(200));
    bar.set_message("making the plan smaller");
    let (options, outcome) = std::thread::scope(|scope| {
        let body = || {
            minimise(&failing.options, &failing.outcome, |options| {
                let acts =
                    options.only.as_ref().map_or_else(|| "all".to_owned(), |only| only.len().to_string());
                bar.set_message(format!("still fails with {acts} acts and {} devices", options.devices));
            })
        };
        spawn_for_worlds(scope, "smaller".to_owned(), body)
            .join()
            .unwrap_or_else(|_| (failing.options.clone(), failing.outcome.clone()))
    });
    bar.finish_and_clear();
    Hunted { options, outcome }
}

fn write_text(
    out: &mut impl Write,
    template: &Options,
    sums: &Sums,
    seconds: f64,
    failures: &[Hunted],
    smallest: Option<&Hunted>,
) -> anyhow::Result<()> {
    let all = &sums.figures;
    writeln!(
        out,
        "{} worlds of profile {}, {} devices each to begin with, {:.1} s",
        sums.worlds, template.profile.name, template.devices, seconds
    )?;
    let rows: [(&str, String); 9] = [
        (
            "simulated",
            format!(
                "{:.0} fleet-hours, {:.0} a second; {:.0} device-hours",
                sums.fleet_hours,
                sums.fleet_hours / seconds,
                sums.device_hours
            ),
        ),
        ("went wrong", format!("{} planned acts, {} lies of hostile devices", all.acts, all.lies)),
        (
            "messages",
            format!(
                "{} sent, {} reached devices, {} connections",
                all.published, all.delivered, all.connections
            ),
        ),
        (
            "coordinator",
            format!(
                "{} starts, {} transactions, {} commands, {} rekeys",
                all.coordinator_starts, all.transactions, all.commands, all.rekeys
            ),
        ),
        ("confirmations", all.confirmations.to_string()),
        ("catch-ups", counts(&all.catch_ups)),
        (
            "set right",
            format!(
                "{} restores, {} times superseded, {} quarantined, {} messages shed",
                all.restores, all.superseded, all.quarantined, all.shed
            ),
        ),
        ("refused by it", counts(&all.coordinator_refusals)),
        ("by devices", counts(&all.device_refusals)),
    ];
    for (name, value) in rows {
        writeln!(out, "  {name:<14} {value}")?;
    }
    if let (Some(back), Some(current)) = (all.power_back_at, all.all_current_at) {
        let seconds = (current.saturating_sub(back)) as f64 / 1_000.0;
        writeln!(
            out,
            "  {:<14} the last device was current {seconds:.1} simulated seconds after the power was back; at most {} messages waited",
            "power cut", all.deepest_inbox
        )?;
    }
    if let Some(peak) = peak_memory_bytes() {
        writeln!(
            out,
            "  {:<14} {:.0} MiB at the peak, everything",
            "memory",
            peak as f64 / f64::from(1 << 20)
        )?;
    }
    if let [only] = sums.schedules.iter().collect::<Vec<_>>()[..] {
        writeln!(out, "  {:<14} {:016x}", "schedule", only.1)?;
    }
    for failure in failures.iter().take(20) {
        let Some(violation) = &failure.outcome.violation else { continue };
        writeln!(
            out,
            "BROKEN seed {}: {} at {:.1} s: {}\n  {}",
            failure.options.seed,
            violation.rule.name(),
            violation.at_milliseconds as f64 / 1_000.0,
            violation.what,
            failure.options.command_line()
        )?;
    }
    if let Some(Hunted { options, outcome }) = smallest
        && let Some(violation) = &outcome.violation
    {
        let acts = options.only.as_ref().map_or(outcome.planned, Vec::len);
        writeln!(
            out,
            "smallest, {acts} acts of {}: {}: {}\n  {}",
            outcome.planned,
            violation.rule.name(),
            violation.what,
            options.command_line()
        )?;
    }
    let verdict = if failures.is_empty() { "every rule held" } else { "rules were broken" };
    writeln!(out, "{verdict}: {} of {} worlds passed", sums.worlds - sums.failed, sums.worlds)?;
    Ok(())
}

fn counts(counts: &BTreeMap<&'static str, u64>) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    let mut sorted: Vec<_> = counts.iter().collect();
    sorted.sort_by(|a, b| b.1.cmp(a.1));
    let shown: Vec<String> = sorted.iter().map(|(name, count)| format!("{name} {count}")).collect();
    shown.join(", ")
}

fn write_json(
    out: &mut impl Write,
    template: &Options,
    sums: &Sums,
    seconds: f64,
    failures: &[Hunted],
    smallest: Option<&Hunted>,
) -> anyhow::Result<()> {
    let told = |hunted: &Hunted| {
        json!({
            "seed": hunted.options.seed,
            "command": hunted.options.command_line(),
            "violation": hunted.outcome.violation,
        })
    };
    let report = json!({
        "profile": template.profile,
        "devices": template.devices,
        "worlds": sums.worlds,
        "failed": sums.failed,
        "seconds": seconds,
        "fleet_hours": sums.fleet_hours,
        "fleet_hours_per_second": sums.fleet_hours / seconds,
        "device_hours": sums.device_hours,
        "figures": sums.figures,
        "peak_memory_bytes": peak_memory_bytes(),
        "failures": failures.iter().map(told).collect::<Vec<_>>(),
        "smallest": smallest.map(told),
    });
    serde_json::to_writer_pretty(&mut *out, &report)?;
    writeln!(out)?;
    Ok(())
}

/// The most memory that this process ever had, where the system tells.
fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}

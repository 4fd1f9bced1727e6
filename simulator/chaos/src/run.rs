//! One run: from a seed to an outcome.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::time::Instant;

use serde::Serialize;

use crate::fleet::Fleet;
use crate::image::{self, Image};
use crate::model::{Rule, Violation};
use crate::plan;
use crate::profile::Profile;
use crate::world::{Due, World};

const MINUTE: u64 = 60_000;

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The seed: everything is drawn from it.
    pub seed: u64,
    /// How bad the world is.
    pub profile: Profile,
    /// Devices to begin with.
    pub devices: usize,
    /// Only these acts of the plan, by their numbers; all of them when that is `None`.
    pub only: Option<Vec<usize>>,
    /// Whether the network is calm, whatever the profile says.
    pub calm_network: bool,
}

impl Options {
    /// The line that runs this again.
    pub fn command_line(&self) -> String {
        let mut line = format!(
            "fleetkey-sim chaos --profile {} --seed {} --devices {}",
            self.profile.name, self.seed, self.devices
        );
        if self.calm_network {
            line.push_str(" --calm-network");
        }
        if let Some(only) = &self.only {
            let only: Vec<String> = only.iter().map(ToString::to_string).collect();
            let only = if only.is_empty() { "none".to_owned() } else { only.join(",") };
            line.push_str(&format!(" --only {only}"));
        }
        line
    }
}

/// The acts of a run, a line each: number, minute, what.
pub fn plan_of(options: &Options) -> Vec<String> {
    let full = plan::draw(options.seed, &options.profile);
    let is_in = |number: &usize| options.only.as_ref().is_none_or(|only| only.contains(number));
    let line = |number: usize| {
        let planned = full.get(number)?;
        Some(format!("{number:>4} {:>7.2} min  {:?}", planned.at as f64 / MINUTE as f64, planned.act))
    };
    (0..full.len()).filter(is_in).filter_map(line).collect()
}

/// What was counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Things that happened.
    pub steps: u64,
    /// The schedule in one number: the same for every run of one seed.
    pub schedule: u64,
    /// Acts of the plan that were carried out.
    pub acts: u64,
    /// Commands that the operator gave.
    pub commands: u64,
    /// Messages sent.
    pub published: u64,
    /// Messages that reached devices.
    pub delivered: u64,
    /// Connections made.
    pub connections: u64,
    /// Starts of the coordinator's process.
    pub coordinator_starts: u64,
    /// Transactions of the coordinator.
    pub transactions: u64,
    /// Rekeys.
    pub rekeys: u64,
    /// Confirmations that counted.
    pub confirmations: u64,
    /// Catch-ups, by their means.
    pub catch_ups: BTreeMap<&'static str, u64>,
    /// Devices put aside.
    pub quarantined: u64,
    /// Coordinators that were shown not to be the only one.
    pub superseded: u64,
    /// Copies that were known for what they were, of those that issued anything.
    pub copies_detected: u64,
    /// Restores, from a backup or in place.
    pub restores: u64,
    /// Lies of hostile devices.
    pub lies: u64,
    /// Messages of devices that were shed, as too many waited.
    pub shed: u64,
    /// The most messages that ever waited for a coordinator.
    pub deepest_inbox: usize,
    /// When the power was back after the last cut, in milliseconds.
    pub power_back_at: Option<u64>,
    /// When the last device was current again after that.
    pub all_current_at: Option<u64>,
    /// What the coordinator refused, by name.
    pub coordinator_refusals: BTreeMap<&'static str, u64>,
    /// What devices refused, by name.
    pub device_refusals: BTreeMap<&'static str, u64>,
    /// Devices at the end.
    pub devices: usize,
}

/// How a run ended.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The first rule that was broken, if one was.
    pub violation: Option<Violation>,
    /// What was counted.
    pub figures: Figures,
    /// Acts in the plan.
    pub planned: usize,
    /// How long the world lasted, in milliseconds of simulated time.
    pub simulated_milliseconds: u64,
    /// How long that took, in seconds of real time.
    pub seconds: f64,
}

impl Outcome {
    /// Devices times simulated hours.
    pub fn fleet_hours(&self) -> f64 {
        self.simulated_milliseconds as f64 / 3_600_000.0
    }
}

/// Runs one world, from its beginning to its end or to the first rule that is broken.
pub fn run(options: &Options) -> Outcome {
    let started = Instant::now();
    let full = plan::draw(options.seed, &options.profile);
    let planned = full.len();
    let acts: Vec<_> = match &options.only {
        None => full,
        Some(only) => only.iter().filter_map(|number| full.get(*number)).cloned().collect(),
    };
    let image = image::of_seed(options.seed, &options.profile, options.devices);
    let fleet = image.as_ref().map_or_else(|| Fleet::new(options.seed), |image| image.fleet());
    let begun_at = image.as_ref().map_or(0, |image| image.time);
    let mut world = World::new(options.seed, options.profile.clone(), acts, fleet);
    if options.calm_network {
        world.weather = crate::world::Weather::CALM;
    }
    let lived = panic::catch_unwind(AssertUnwindSafe(|| live(&mut world, options, image.as_deref())));
    if let Err(panicked) = lived {
        let what = panicked
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panicked.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_else(|| "a panic".to_owned());
        let at_milliseconds = world.time;
        world.violation.get_or_insert(Violation { rule: Rule::NothingBreaks, at_milliseconds, what });
    }
    world.figures.devices = world.devices.len();
    world.figures.restores = world.operator.restores;
    Outcome {
        violation: world.violation.take(),
        figures: std::mem::take(&mut world.figures),
        planned,
        simulated_milliseconds: world.time - begun_at,
        seconds: started.elapsed().as_secs_f64(),
    }
}

fn live(world: &mut World, options: &Options, image: Option<&Image>) {
    match image {
        Some(image) => image.begin(world),
        None => world.begin(options.devices),
    }
    let begun_at = world.time;
    for (number, planned) in world.plan.clone().iter().enumerate() {
        world.after(planned.at, Due::Act(number));
    }
    world.run_until(begun_at + options.profile.minutes * MINUTE);
    if world.violation.is_none() {
        world.heal_and_check();
    }
}

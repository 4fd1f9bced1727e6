//! Walks through the phases of a scenario on a world, and fills a report.
//!
//! Who is meant by a phase, and when churn happens, is drawn from the seed: in both worlds the same. Leaves what a fleet is
//! to the world, and how a report is shown to `fleetkey-report`.

mod acts;
mod gathered;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use fleetkey_report::{Connections, Machine, Mode, RUN_REPORT_VERSION, RunReport, Series, Shape};
use fleetkey_wire::DeviceId;

use self::gathered::Gathered;
use crate::dice::Dice;
use crate::scenario::{Act, Phase, Scenario};
use crate::world::{Looked, Until, World};

/// How long a phase waits for everybody, where it does not say.
const SETTLES_WITHIN: Duration = Duration::from_secs(3_600);
/// How often the fleet is looked at in a phase, at most.
const LOOKS_PER_PHASE: u32 = 100;

/// How a scenario is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOptions {
    /// What chance is drawn from.
    pub seed: u64,
    /// How time passes.
    pub mode: Mode,
    /// How devices are connected.
    pub connections: Connections,
    /// The broker, in words.
    pub broker: String,
    /// Where to write the fleet's shape as it is before the first phase that revokes, for a twin.
    pub shape: Option<PathBuf>,
}

/// Somebody who watches a run.
pub trait Watch {
    /// The phase of this number begins, of so many.
    fn begins(&mut self, number: usize, of: usize, phase: &Phase);

    /// This is how the fleet stands in the middle of a phase.
    fn stands(&mut self, now: Duration, looked: &Looked);

    /// The phase has ended.
    fn ended(&mut self, phase: &fleetkey_report::Phase) {
        _ = phase;
    }
}

/// Nobody watches.
#[derive(Debug, Clone, Copy)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn begins(&mut self, _number: usize, _of: usize, _phase: &Phase) {}

    fn stands(&mut self, _now: Duration, _looked: &Looked) {}
}

/// A device that is in use.
#[derive(Debug, Clone, Copy)]
struct Known {
    id: DeviceId,
    class: usize,
    /// Which it was, of all that were ever enrolled.
    number: usize,
}

impl Known {
    /// Whether it belongs in a group: numbers spread evenly, whatever share of them a group has.
    fn belongs_in(&self, group: usize, share: f64) -> bool {
        (self.number as f64 * acts::SILVER + group as f64 * 0.37).fract() < share
    }
}

/// A run on its way.
struct Walk<'a, W> {
    scenario: &'a Scenario,
    world: &'a mut W,
    watch: &'a mut dyn Watch,
    dice: Dice,
    in_use: Vec<Known>,
    enrolled: usize,
    gathered: Gathered,
    /// How the fleet stood when the phase began.
    before: Looked,
    members: Vec<(f64, f64)>,
    stragglers: Vec<(f64, f64)>,
    notes: Vec<String>,
}

/// Runs a scenario to its end.
///
/// # Errors
/// When the world breaks. A target that is missed is no error: it is a check of the
/// report that did not hold.
pub async fn run<W: World>(
    scenario: &Scenario,
    world: &mut W,
    options: &RunOptions,
    watch: &mut dyn Watch,
) -> anyhow::Result<RunReport> {
    let began = Instant::now();
    let began_unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut walk = Walk {
        scenario,
        world,
        watch,
        dice: Dice::of(options.seed, "phases", 0),
        in_use: Vec::new(),
        enrolled: 0,
        gathered: Gathered::default(),
        before: Looked::default(),
        members: Vec::new(),
        stragglers: Vec::new(),
        notes: Vec::new(),
    };
    let mut phases = Vec::new();
    let mut checks = Vec::new();
    let mut cells = 0;
    let mut shape = options.shape.as_ref();
    for (number, phase) in scenario.phases.iter().enumerate() {
        walk.watch.begins(number, scenario.phases.len(), phase);
        if let Some(path) = shape.take_if(|_| matches!(phase.act, Act::Revoke { .. })) {
            let shape = crate::twin::shape_of(&walk.world.shape().await?)?;
            std::fs::write(path, shape).with_context(|| format!("write {}", path.display()))?;
        }
        let (told, held) = walk.phase(phase).await?;
        walk.watch.ended(&told);
        phases.push(told);
        checks.extend(held);
        cells = cells.max(walk.world.look().await?.cells);
    }
    let (members, stragglers, notes) = (walk.members, walk.stragglers, walk.notes);
    let series = |name: &str, points| Series { name: name.into(), unit: "devices".into(), points };
    Ok(RunReport {
        version: RUN_REPORT_VERSION,
        scenario: scenario.name.clone(),
        about: scenario.about.clone(),
        began_unix_seconds,
        machine: Machine::this(),
        mode: options.mode,
        connections: options.connections,
        shape: Shape {
            devices: scenario.fleet.devices,
            groups: scenario.groups.len(),
            cells,
            cell_capacity: scenario.groups.iter().map(|group| group.cell_capacity.into()).max().unwrap_or(0),
            suite: suites(scenario),
            broker: options.broker.clone(),
        },
        phases,
        series: vec![series("members", members), series("stragglers", stragglers)],
        checks,
        extrapolated: Vec::new(),
        notes,
        seconds: began.elapsed().as_secs_f64(),
    })
}

fn suites(scenario: &Scenario) -> String {
    let mut names: Vec<&str> = scenario.groups.iter().map(|group| group.suite.name()).collect();
    names.dedup();
    names.join(", ")
}

impl<W: World> Walk<'_, W> {
    async fn phase(
        &mut self,
        phase: &Phase,
    ) -> anyhow::Result<(fleetkey_report::Phase, Vec<fleetkey_report::Check>)> {
        let began = self.world.now();
        self.before = self.world.look().await?;
        self.gathered = Gathered::default();
        self.act(phase).await?;
        let acted = self.world.now();
        let settled = if phase.targets.current_within.is_some() || settles(&phase.act) {
            let within = phase.targets.current_within.unwrap_or(SETTLES_WITHIN);
            let waited = self.world.wait(Until::Current { deadline: acted + within }).await?;
            let is_current = waited.is_current;
            self.gathered.take(waited);
            Some(is_current)
        } else {
            None
        };
        let after = self.world.look().await?;
        self.note(&after);
        let ended = self.world.now();
        let in_use: Vec<usize> = self.in_use.iter().map(|known| known.number).collect();
        Ok(self.gathered.tell(phase, [began, acted, ended], settled, [&self.before, &after], &in_use))
    }

    fn note(&mut self, looked: &Looked) {
        let now = self.world.now();
        self.members.push((now.as_secs_f64(), looked.members as f64));
        self.stragglers.push((now.as_secs_f64(), looked.stragglers as f64));
        self.watch.stands(now, looked);
    }

    /// Lets time pass.
    async fn pass(&mut self, until: Duration) -> anyhow::Result<()> {
        let waited = self.world.wait(Until::Time(until)).await?;
        self.gathered.take(waited);
        Ok(())
    }

    /// Lets time pass, and looks at the fleet now and then.
    async fn watch(&mut self, until: Duration) -> anyhow::Result<()> {
        let began = self.world.now();
        let step = until.saturating_sub(began) / LOOKS_PER_PHASE;
        for number in 1..=LOOKS_PER_PHASE {
            let at = if number == LOOKS_PER_PHASE { until } else { began + step * number };
            self.pass(at).await?;
            let looked = self.world.look().await?;
            self.note(&looked);
        }
        Ok(())
    }
}

/// Whether everybody is waited for after it, also where nothing is expected.
const fn settles(act: &Act) -> bool {
    match act {
        Act::Onboard { .. }
        | Act::Revoke { .. }
        | Act::Rekey
        | Act::Rotate
        | Act::PowerCut { .. }
        | Act::RestartBroker { .. } => true,
        Act::Churn { .. } | Act::Network(_) | Act::Wait { .. } => false,
    }
}

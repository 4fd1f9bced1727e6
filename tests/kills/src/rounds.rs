//! Rounds: one activity, kills while it goes on, and the wait until all is well; after each, every rule is checked.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::device::Device;
use crate::dice::Dice;
use crate::fleet::{Cli, Fleet, provision};
use crate::ledger::Ledger;
use crate::model::{EVERYBODY, GROUPS, Model, SOME};
use crate::rules;
use crate::wait;

/// All is well again within this, after the last fault.
const WELL_WITHIN: Duration = Duration::from_secs(90);
/// A command is followed within this, however often its coordinator dies.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(60);
/// Kills come this long after one another at most. Every other one comes sooner, in the middle of the transactions.
const BETWEEN_MS: [u64; 2] = [700, 60];
/// What was killed stays dead this long, at most.
const DEAD_MS: u64 = 500;
/// Dead devices whose disk is looked at in one round.
const LOOKED_AT: usize = 12;
/// While things are killed, one device after the other is asked for what it shows.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Devices are killed as they confirm every so many rounds, and so many of them.
const SHARP_EVERY: usize = 4;
const SHARP: usize = 3;
/// The intruder comes every so many rounds.
const INTRUDER_EVERY: usize = 10;

/// How many, of what, and from which seed.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Rounds.
    pub rounds: usize,
    /// Devices that are alive.
    pub agents: usize,
    /// Where the choices come from.
    pub seed: u64,
}

/// What is killed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Coordinator,
    Broker,
    Agents(Vec<String>),
    Everything,
}

/// What an operator does in one round.
#[derive(Debug, Default)]
struct Activity {
    what: String,
    commands: Vec<Vec<String>>,
    /// A device to be made, started and put into the first group meanwhile.
    newcomer: Option<String>,
    revoked: Vec<String>,
    /// Devices that all this is about.
    about: Vec<String>,
}

/// A fleet under kills, and what is known of it.
#[derive(Debug)]
pub struct Rounds {
    /// The fleet.
    pub fleet: Fleet,
    /// What should be so.
    pub model: Model,
    /// What was seen.
    pub ledger: Ledger,
    plan: Plan,
    dice: Dice,
    made: usize,
    kills: usize,
    slowest: Duration,
}

impl Rounds {
    /// A fleet in which all is well.
    ///
    /// # Errors
    /// When it does not come to that.
    pub fn begin(plan: Plan) -> Result<Self> {
        let mut dice = Dice::new(plan.seed);
        let fleet = Fleet::init(Vec::new(), &mut dice)?;
        Self::on(fleet, plan, dice)
    }

    /// The same on a fleet that was made already.
    ///
    /// # Errors
    /// When it does not come to that.
    pub fn on(fleet: Fleet, plan: Plan, dice: Dice) -> Result<Self> {
        let (model, ledger) = (Model::default(), Ledger::default());
        let mut rounds =
            Self { fleet, model, ledger, plan, dice, made: 0, kills: 0, slowest: Duration::ZERO };
        rounds.fleet.start()?;
        for (group, suite) in GROUPS.into_iter().zip(["aes128gcm", "chacha20poly1305"]) {
            create_group(&rounds.fleet.cli(), group, suite)?;
        }
        rounds.onboard(plan.agents)?;
        Ok(rounds)
    }

    /// Puts new devices in, and waits until all is well.
    ///
    /// # Errors
    /// When it does not come to that.
    pub fn onboard(&mut self, count: usize) -> Result<()> {
        let names = (0..count).map(|_| self.make()).collect::<Result<Vec<_>>>()?;
        for command in self.admit(&names) {
            let words: Vec<&str> = command.iter().map(String::as_str).collect();
            self.fleet.cli().ask(&words)?;
        }
        self.is_well()?;
        self.check()
    }

    /// Waits until all is well (rule 3).
    ///
    /// # Errors
    /// What is missing in the end.
    pub fn is_well(&mut self) -> Result<()> {
        let started = Instant::now();
        let Self { fleet, model, ledger, .. } = self;
        wait::until("all is well", WELL_WITHIN, || rules::missing(fleet, model, ledger))?;
        self.slowest = self.slowest.max(started.elapsed());
        let status = self.fleet.cli().ask(&["status"])?;
        self.ledger.saw_coordinator(&status)
    }

    /// Rules 1 to 5, as far as they show while all is well.
    ///
    /// # Errors
    /// The rule that does not hold.
    pub fn check(&mut self) -> Result<()> {
        rules::check(&self.fleet, &mut self.model, &mut self.ledger, &mut self.dice)
    }

    /// One round.
    ///
    /// # Errors
    /// What went wrong, with what was done.
    pub fn round(&mut self, number: usize) -> Result<()> {
        let activity = self.choose()?;
        let mut report = format!("round {} of {}: {}; killed:", number + 1, self.plan.rounds, activity.what);
        let outcome = self.perform(&activity, &mut report).with_context(|| report.clone());
        eprintln!("{report}");
        outcome
    }

    fn perform(&mut self, activity: &Activity, report: &mut String) -> Result<()> {
        let dead = self.under_kills(activity, report)?;
        self.revive(&dead)?;
        let since = Instant::now();
        let revoked = self.set_aside(&activity.revoked)?;
        self.is_well()?;
        report.push_str(&format!("; well after {:.1} s", since.elapsed().as_secs_f64()));
        self.check()?;
        self.are_locked_out(revoked)?;
        if self.dice.one_in(SHARP_EVERY) {
            self.kill_as_they_confirm()?;
            report.push_str("; some as they confirmed");
        }
        if self.dice.one_in(INTRUDER_EVERY) {
            rules::intruder_moves_nothing(&mut self.fleet, &self.model, &mut self.dice)?;
            report.push_str("; an intruder");
            self.is_well()?;
        }
        Ok(())
    }

    /// Devices were revoked: they are none of the fleet any more.
    ///
    /// # Errors
    /// When there are no such devices.
    pub fn set_aside(&mut self, names: &[String]) -> Result<Vec<Device>> {
        let mut aside = Vec::new();
        for name in names {
            let at = self.fleet.find(name)?;
            // Nothing is sealed before all is well: what is sealed then is what it must not open.
            GROUPS.iter().for_each(|group| self.model.put_out(group, name));
            aside.push(self.fleet.devices.swap_remove(at));
        }
        Ok(aside)
    }

    /// Rule 1 for devices that were set aside. Their agents are ended, and what they stored is kept.
    ///
    /// # Errors
    /// When it does not hold.
    pub fn are_locked_out(&mut self, aside: Vec<Device>) -> Result<()> {
        for mut device in aside {
            rules::is_locked_out(&self.fleet, &self.model, &mut device)?;
            device.process.kill();
            self.model.revoked.push(device);
        }
        Ok(())
    }

    /// The names of the devices that run.
    pub fn names(&self) -> Vec<String> {
        self.fleet.devices.iter().map(|device| device.name.clone()).collect()
    }

    /// Rule 6, for some devices, at the moment that counts.
    fn kill_as_they_confirm(&mut self) -> Result<()> {
        let members = self.model.members(EVERYBODY).cloned().collect();
        let some = self.dice.some(SHARP, members);
        rules::killed_as_they_confirm(&mut self.fleet, &some)?;
        self.kills += some.len();
        self.is_well()
    }

    /// Does the activity while things are killed. The devices that are left dead.
    fn under_kills(&mut self, activity: &Activity, report: &mut String) -> Result<Vec<String>> {
        let cli = self.fleet.cli();
        let handles: Vec<Device> = self.fleet.devices.iter().map(|device| self.handle(device)).collect();
        let over = AtomicBool::new(false);
        let parent = self.fleet.directory().to_owned();
        let mut ledger = std::mem::take(&mut self.ledger);
        let mut watching = self.dice.clone();
        let (newcomer, dead) = thread::scope(|scope| {
            let work = scope.spawn(|| follow(&cli, &parent, activity));
            let watch = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if let Some(device) = watching.pick(&handles) {
                        ledger.look_at(device)?;
                    }
                    thread::sleep(LOOK_EVERY);
                }
                anyhow::Ok(())
            });
            let dead = self.strike(activity, report);
            let newcomer = work.join();
            over.store(true, Ordering::Relaxed);
            watch.join().map_err(|_| anyhow!("the watcher panicked"))??;
            let (newcomer, again) = newcomer.map_err(|_| anyhow!("the activity panicked"))??;
            if again > 0 {
                report.push_str(&format!("; commands said again: {again}"));
            }
            anyhow::Ok((newcomer, dead?))
        })?;
        self.ledger = ledger;
        if let Some(device) = newcomer {
            self.model.admit(EVERYBODY, &device.name);
            self.fleet.devices.push(device);
        }
        Ok(dead)
    }

    /// A device to be asked while its agent comes and goes.
    fn handle(&self, device: &Device) -> Device {
        let binaries = self.fleet.binaries().clone();
        Device::new(binaries, device.name.clone(), device.id.clone(), device.directory().to_owned())
    }

    /// Some kills, one after the other. The devices that are left dead; coordinator and broker are not.
    fn strike(&mut self, activity: &Activity, report: &mut String) -> Result<Vec<String>> {
        let mut dead = BTreeSet::new();
        let mut last = None;
        for _ in 0..=self.dice.below(3) {
            let most = BETWEEN_MS[self.dice.below(2)];
            thread::sleep(self.dice.time(most));
            // Twice in a row, now and then: the second comes in the middle of the recovery from the first.
            let target = match last.take() {
                Some(again) if self.dice.one_in(4) => again,
                Some(_) | None => self.target(activity),
            };
            self.kill(&target, &mut dead, report)?;
            thread::sleep(self.dice.time(DEAD_MS));
            self.start_again(&target, &mut dead)?;
            last = Some(target);
        }
        Ok(dead.into_iter().collect())
    }

    fn target(&mut self, activity: &Activity) -> Target {
        match self.dice.below(10) {
            0..=3 => Target::Coordinator,
            4..=5 => Target::Broker,
            6..=8 => {
                let count = 1 + self.dice.below(self.fleet.devices.len() / 3);
                let all = self.fleet.devices.iter().map(|device| device.name.clone()).collect();
                let whose = if self.dice.one_in(2) { activity.about.clone() } else { all };
                Target::Agents(self.dice.some(count, whose))
            }
            _ => Target::Everything,
        }
    }

    fn kill(&mut self, target: &Target, dead: &mut BTreeSet<String>, report: &mut String) -> Result<()> {
        match target {
            Target::Coordinator => self.fleet.coordinator.kill(),
            Target::Broker => self.fleet.broker.kill(),
            Target::Agents(names) => {
                for name in names {
                    self.fleet.device_mut(name)?.process.kill();
                    dead.insert(name.clone());
                }
            }
            Target::Everything => {
                self.fleet.coordinator.kill();
                self.fleet.broker.kill();
                for device in &mut self.fleet.devices {
                    device.process.kill();
                    dead.insert(device.name.clone());
                }
            }
        }
        self.kills += 1;
        report.push_str(&match target {
            Target::Coordinator => " coordinator".to_owned(),
            Target::Broker => " broker".to_owned(),
            Target::Agents(names) => format!(" {} agents", names.len()),
            Target::Everything => " everything".to_owned(),
        });
        Ok(())
    }

    /// Coordinator and broker come back; of the agents half do, and the others stay dead to be looked at.
    fn start_again(&mut self, target: &Target, dead: &mut BTreeSet<String>) -> Result<()> {
        match target {
            Target::Coordinator => self.fleet.start_coordinator()?,
            Target::Broker => self.fleet.start_broker()?,
            Target::Agents(_) => {}
            Target::Everything => {
                self.fleet.start_broker()?;
                self.fleet.start_coordinator()?;
            }
        }
        for name in std::mem::take(dead) {
            if self.dice.one_in(2) {
                dead.insert(name);
            } else {
                self.fleet.device_mut(&name)?.start()?;
            }
        }
        Ok(())
    }

    /// Everything runs again; some of the dead devices are looked at first (rule 6).
    fn revive(&mut self, dead: &[String]) -> Result<()> {
        self.fleet.is_up()?;
        let looked_at = self.dice.some(LOOKED_AT, dead.to_vec());
        rules::confirmed_is_held(&mut self.fleet, &looked_at)?;
        for name in dead {
            self.fleet.device_mut(name)?.start()?;
        }
        Ok(())
    }

    /// A new device, whose agent runs.
    fn make(&mut self) -> Result<String> {
        let name = self.name();
        let mut device = self.fleet.provision(&name)?;
        device.start()?;
        let name = device.name.clone();
        self.fleet.devices.push(device);
        Ok(name)
    }

    fn name(&mut self) -> String {
        self.made += 1;
        format!("d{}", self.made)
    }

    /// The commands that put devices into their groups.
    fn admit(&mut self, names: &[String]) -> Vec<Vec<String>> {
        let mut commands = Vec::new();
        for (group, every) in [(EVERYBODY, 1), (SOME, 2)] {
            let joiners: Vec<String> = names.iter().step_by(every).cloned().collect();
            joiners.iter().for_each(|name| self.model.admit(group, name));
            commands.push(words(&["group", "add", group], &joiners));
        }
        commands
    }

    fn choose(&mut self) -> Result<Activity> {
        let short = self.plan.agents.saturating_sub(self.fleet.devices.len());
        // Those who were put out in an earlier round.
        let out: Vec<String> = self
            .fleet
            .devices
            .iter()
            .map(|device| device.name.clone())
            .filter(|name| !self.model.is_member(EVERYBODY, name))
            .collect();
        let kind = if short > self.plan.agents / 8 { 0 } else { self.dice.below(7) };
        match kind {
            0..=1 => self.choose_onboard(short, &out),
            2 => Ok(self.choose_revoke()),
            3..=4 => Ok(self.choose_evict(kind == 4)),
            5 => Ok(self.choose_move("rotate", &["rotate"])),
            _ => Ok(self.choose_move("rekey", &["group", "rekey"])),
        }
    }

    fn choose_onboard(&mut self, short: usize, out: &[String]) -> Result<Activity> {
        let mut about = (0..short.max(1)).map(|_| self.make()).collect::<Result<Vec<_>>>()?;
        about.extend_from_slice(out);
        let what = format!("onboard {}, {} of them again", about.len() + 1, out.len());
        let commands = self.admit(&about);
        Ok(Activity { what, commands, newcomer: Some(self.name()), about, ..Activity::default() })
    }

    fn choose_revoke(&mut self) -> Activity {
        let count = 1 + self.dice.below(3);
        let everybody = self.fleet.devices.iter().map(|device| device.name.clone()).collect();
        let about = self.dice.some(count, everybody);
        let commands = vec![words(&["revoke", "--reason", "stolen"], &about)];
        let what = format!("revoke {}", about.len());
        Activity { what, commands, revoked: about.clone(), about, ..Activity::default() }
    }

    fn choose_evict(&mut self, and_add: bool) -> Activity {
        let count = 1 + self.dice.below(4);
        let members = self.model.members(EVERYBODY).cloned().collect();
        let about = self.dice.some(count, members);
        let mut commands = vec![words(&["group", "remove", EVERYBODY], &about)];
        if and_add {
            commands.push(words(&["group", "add", EVERYBODY], &about));
        } else {
            about.iter().for_each(|name| self.model.put_out(EVERYBODY, name));
        }
        let again = if and_add { ", and add again" } else { "" };
        Activity { what: format!("evict {}{again}", about.len()), commands, about, ..Activity::default() }
    }

    fn choose_move(&mut self, what: &str, command: &[&str]) -> Activity {
        let about = self.model.members(SOME).cloned().collect();
        let commands = GROUPS.map(|group| words(command, &[group.to_owned()])).to_vec();
        Activity { what: what.to_owned(), commands, about, ..Activity::default() }
    }

    /// The end: every rule once more, thoroughly, and nothing that should not have been logged or counted.
    ///
    /// # Errors
    /// What does not hold.
    pub fn finish(&mut self) -> Result<()> {
        self.check()?;
        self.kill_as_they_confirm()?;
        let before = self.shown()?;
        // From disk alone, everything at once; the devices first without a word from anybody.
        self.fleet.coordinator.kill();
        self.fleet.broker.kill();
        self.fleet.devices.iter_mut().for_each(|device| device.process.kill());
        self.fleet.start()?;
        let names: Vec<String> = self.fleet.devices.iter().map(|device| device.name.clone()).collect();
        self.revive(&names)?;
        self.is_well()?;
        ensure!(self.shown()? == before, "a restart moved a group: {before:?} to {:?}", self.shown()?);
        self.check()?;
        rules::intruder_moves_nothing(&mut self.fleet, &self.model, &mut self.dice)?;
        self.is_well()?;
        for mut device in std::mem::take(&mut self.model.revoked) {
            rules::is_locked_out(&self.fleet, &self.model, &mut device)?;
            device.process.kill();
        }
        self.check()?;
        rules::nothing_odd_is_logged(&self.fleet)?;
        let (rounds, slowest) = (self.plan.rounds, self.slowest.as_secs_f64());
        eprintln!("{} kills in {rounds} rounds; all well again after {slowest:.1} s at most", self.kills);
        eprintln!("{}", self.ledger.summary());
        Ok(())
    }

    fn shown(&self) -> Result<Vec<[String; 3]>> {
        GROUPS
            .iter()
            .map(|group| {
                let shown = self.fleet.cli().ask(&["group", "show", group])?;
                Ok(["key_epoch", "send", "oldest"].map(|field| shown[field].to_string()))
            })
            .collect()
    }
}

/// Creates a group in which everything that takes its time in the field is quick, in cells that are soon full.
///
/// # Errors
/// When the coordinator does not.
pub fn create_group(cli: &Cli, name: &str, suite: &str) -> Result<()> {
    let settings = [
        ["--suite", suite],
        ["--cell-capacity", "8"],
        ["--rekey-window-milliseconds", "200"],
        ["--overlap-seconds", "1"],
        ["--rotation-interval-seconds", "0"],
        ["--rotation-deadline-seconds", "20"],
        ["--rotation-threshold-percent", "100"],
        ["--cell-max-age-seconds", "60"],
    ];
    let mut words = vec!["group", "create", name];
    words.extend(settings.iter().flatten());
    cli.ask(&words).map(drop)
}

/// Does what the activity says, however often it takes; with the device that was made meanwhile, and how often a
/// command had to be said again.
fn follow(cli: &Cli, parent: &Path, activity: &Activity) -> Result<(Option<Device>, usize)> {
    // What an earlier attempt has done whose answer was lost.
    const DONE_IF: [&str; 2] = ["is not in group", "is under way already"];
    let mut again = 0;
    for command in &activity.commands {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        again += cli.insist(&words, &DONE_IF, FOLLOWED_WITHIN)? - 1;
    }
    let Some(name) = &activity.newcomer else { return Ok((None, again)) };
    let mut device = provision(cli, parent, name)?;
    device.start()?;
    again += cli.insist(&["group", "add", EVERYBODY, &device.name], &[], FOLLOWED_WITHIN)? - 1;
    Ok((Some(device), again))
}

fn words(command: &[&str], names: &[String]) -> Vec<String> {
    command.iter().map(|word| (*word).to_owned()).chain(names.iter().cloned()).collect()
}

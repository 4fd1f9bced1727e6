//! Other faults than death: full disks, processes that stand still, a broker that is away, a clock that is wrong.
//!
//! How long they last: FLEETKEY_KILLS_STOP_SECONDS and FLEETKEY_KILLS_AWAY_SECONDS.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fleetkey_kills::device::epoch;
use fleetkey_kills::fleet::Said;
use fleetkey_kills::model::EVERYBODY;
use fleetkey_kills::process::Process;
use fleetkey_kills::rounds::{Plan, Rounds};
use fleetkey_kills::rules;
use fleetkey_kills::scarce::Disk;
use fleetkey_kills::{Dice, Fleet, faketime, setting, wait};
use fleetkey_wire::KeyEpoch;
use serde_json::Value;

/// A command is followed within this, once the fault is over.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(90);
/// What a fault does shows within this.
const SHOWN_WITHIN: Duration = Duration::from_secs(60);
/// Commands that fill what room is left in the log of a database.
const ENOUGH: usize = 600;
/// Lines that a broker has to say: more than a full disk may still have room for.
const LINES: usize = 3;

fn small_fleet(seed: u64) -> Result<Rounds> {
    Rounds::begin(Plan { rounds: 0, agents: 6, seed })
}

/// Fails with what was logged where FLEETKEY_KILLS_KEEP is set.
fn with(mut rounds: Rounds, test: impl FnOnce(&mut Rounds) -> Result<()>) -> Result<()> {
    let outcome = test(&mut rounds);
    if outcome.is_err() {
        rounds.fleet.keep();
    }
    outcome
}

/// The first and the second device, by name.
fn two(rounds: &Rounds) -> Result<[String; 2]> {
    let names = rounds.names();
    Ok([names.first().context("a device")?.clone(), names.get(1).context("another")?.clone()])
}

fn newest(shown: &Value) -> Result<KeyEpoch> {
    epoch(&shown["key_epoch"])
}

fn show(rounds: &Rounds) -> Result<Value> {
    rounds.fleet.cli().ask(&["group", "show", EVERYBODY])
}

/// Revokes a device, and sees every rule hold after that.
fn revoke_and_check(rounds: &mut Rounds, name: &str) -> Result<()> {
    rounds.fleet.cli().insist(&["revoke", name, "--reason", "stolen"], &[], FOLLOWED_WITHIN)?;
    let aside = rounds.set_aside(&[name.to_owned()])?;
    rounds.is_well()?;
    rounds.check()?;
    rounds.are_locked_out(aside)
}

#[test]
#[ignore = "takes up to a minute: `just faults`"]
fn a_coordinator_on_a_full_disk_says_so_and_loses_nothing() -> Result<()> {
    with(small_fleet(11)?, |rounds| {
        let Some(disk) = Disk::new(rounds.fleet.directory().join("disk"))? else { return Ok(()) };
        rounds.fleet.coordinator.kill();
        let database = disk.take_in(&rounds.fleet.home().join("fleetkey.db"))?;
        set(&mut rounds.fleet.coordinator_settings, "FLEETKEY__DATABASE", &database);
        // What it has to say goes there as well: that it cannot be written must not end it.
        rounds.fleet.coordinator = Process::new(disk.path().join("coordinator.log"));
        let command = disk.wrap(&rounds.fleet.coordinator_command());
        rounds.fleet.coordinator.start(command)?;
        rounds.fleet.is_up()?;
        rounds.is_well()?;
        let [revoked, _] = two(rounds)?;

        disk.fill(&rounds.fleet.coordinator)?;
        // The log of the database still has some room.
        let cli = rounds.fleet.cli();
        let mut last = newest(&show(rounds)?)?;
        let mut failed = None;
        for _ in 0..ENOUGH {
            match cli.say(&["group", "rekey", EVERYBODY])? {
                Said::Done(rekeyed) => last = epoch(&rekeyed["key_epoch"])?,
                Said::Failed(why) => {
                    failed = Some(why);
                    break;
                }
            }
        }
        is_clear(&failed.context("the disk is full, and every command is followed")?)?;
        let revoke = ["revoke", &revoked, "--reason", "stolen"];
        let Said::Failed(why) = cli.say(&revoke)? else { bail!("a revocation is followed, and not stored") };
        is_clear(&why)?;
        ensure!(rounds.fleet.coordinator.is_running(), "a full disk ends no coordinator");
        // Whoever asks for a state is told the one that is stored.
        if let Said::Done(shown) = cli.say(&["group", "show", EVERYBODY])? {
            ensure!(newest(&shown)? == last, "{} is shown, {last} was stored", newest(&shown)?);
        }

        // Started again on a full disk, it does as much as it can: it says what is wrong.
        let command = disk.wrap(&rounds.fleet.coordinator_command());
        rounds.fleet.coordinator.start(command)?;
        disk.fill(&rounds.fleet.coordinator)?;
        wait::until("a command is refused", SHOWN_WITHIN, || {
            Ok(match cli.say(&["group", "rekey", EVERYBODY])? {
                Said::Done(rekeyed) => {
                    last = epoch(&rekeyed["key_epoch"])?;
                    Some("followed".to_owned())
                }
                Said::Failed(why) => is_clear(&why).err().map(|_| why),
            })
        })?;
        ensure!(rounds.fleet.coordinator.is_running(), "a full disk ends no coordinator");

        disk.clear(&rounds.fleet.coordinator)?;
        cli.insist(&["group", "rekey", EVERYBODY], &[], FOLLOWED_WITHIN)?;
        ensure!(newest(&show(rounds)?)? > last, "a key epoch was used again");
        rounds.is_well()?;
        rounds.check()?;
        revoke_and_check(rounds, &revoked)?;
        // And from the disk.
        rounds.fleet.coordinator.kill();
        rounds.fleet.start_coordinator()?;
        rounds.fleet.is_up()?;
        rounds.is_well()?;
        rounds.check()
    })
}

#[test]
#[ignore = "takes a few seconds: `just faults`"]
fn a_broker_whose_log_is_full_goes_on() -> Result<()> {
    with(small_fleet(13)?, |rounds| {
        let Some(disk) = Disk::new(rounds.fleet.directory().join("disk"))? else { return Ok(()) };
        rounds.fleet.broker.kill();
        rounds.fleet.broker = Process::new(disk.path().join("broker.log"));
        let command = disk.wrap(&rounds.fleet.broker_command());
        rounds.fleet.broker.start(command)?;
        rounds.is_well()?;
        disk.fill(&rounds.fleet.broker)?;
        // It warns of each break of the policy stream, or would.
        for _ in 0..LINES {
            rounds.fleet.coordinator.kill();
            rounds.fleet.start_coordinator()?;
            rounds.fleet.is_up()?;
        }
        let [revoked, _] = two(rounds)?;
        revoke_and_check(rounds, &revoked)?;
        ensure!(rounds.fleet.broker.is_running(), "it went on by itself");
        Ok(())
    })
}

#[test]
#[ignore = "takes up to a minute: `just faults`"]
fn an_agent_on_a_full_disk_confirms_nothing_and_catches_up() -> Result<()> {
    with(small_fleet(12)?, |rounds| {
        let Some(disk) = Disk::new(rounds.fleet.directory().join("disk"))? else { return Ok(()) };
        let [full, other] = two(rounds)?;
        let device = rounds.fleet.device_mut(&full)?;
        device.process.kill();
        let state = disk.take_in(&device.directory().join("state.db"))?;
        set(&mut device.settings, "FLEETKEY_AGENT__STATE", &state);
        device.process = Process::new(disk.path().join("agent.log"));
        device.process.start(disk.wrap(&device.command(&[])))?;
        rounds.is_well()?;

        falls_behind(rounds, &disk, &full)?;
        disk.clear(&rounds.fleet.device(&full)?.process)?;
        rounds.is_well().context("there is space again")?;
        ensure!(rounds.fleet.device_mut(&full)?.process.is_running(), "it went on by itself");
        rounds.check()?;

        // Dead on the full disk, it has what it confirmed.
        falls_behind(rounds, &disk, &full)?;
        rounds.fleet.device_mut(&full)?.process.kill();
        disk.clear(&rounds.fleet.device(&full)?.process)?;
        rules::confirmed_is_held(&mut rounds.fleet, std::slice::from_ref(&full))?;
        rounds.fleet.device_mut(&full)?.start()?;
        rounds.is_well()?;
        rounds.check()?;
        revoke_and_check(rounds, &other)
    })
}

/// Takes a device's space away, and rekeys until it confirms no more. What it has confirmed it holds, all the time.
fn falls_behind(rounds: &mut Rounds, disk: &Disk, full: &str) -> Result<()> {
    disk.fill(&rounds.fleet.device(full)?.process)?;
    let cli = rounds.fleet.cli();
    let mut rekeys = 0..ENOUGH;
    wait::until("the full device falls behind, and nobody else", SHOWN_WITHIN, || {
        let shown = show(rounds)?;
        if shown["stragglers"] == 0 && rekeys.next().is_some() {
            cli.ask(&["group", "rekey", EVERYBODY])?;
        }
        let confirmed = confirmed_by(rounds, full)?;
        if let Ok(Some(held)) = rounds.fleet.device(full)?.held(EVERYBODY) {
            ensure!(
                held.held.contains(&confirmed) || held.oldest > confirmed,
                "rule 6: {full} has confirmed {confirmed}, and holds {held:?}"
            );
        }
        let is_alone_behind = shown["stragglers"] == 1 && confirmed < newest(&shown)?;
        Ok((!is_alone_behind).then(|| shown.to_string()))
    })
}

/// The newest key epoch that the coordinator lists a device to have confirmed.
fn confirmed_by(rounds: &Rounds, name: &str) -> Result<KeyEpoch> {
    let shown = rounds.fleet.cli().ask(&["device", "show", name])?;
    let groups = shown["groups"].as_array().context("groups")?;
    let of = groups.iter().find(|of| of["group_name"] == EVERYBODY).context("a member")?;
    epoch(&of["confirmed"])
}

/// An answer that says what is wrong.
fn is_clear(why: &str) -> Result<()> {
    let words = ["nothing was changed", "its store has failed"];
    ensure!(words.iter().any(|words| why.contains(words)), "not a clear answer: {why}");
    Ok(())
}

fn set(settings: &mut Vec<(String, String)>, name: &str, path: &Path) {
    settings.push((name.to_owned(), path.display().to_string()));
}

/// Who stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Coordinator,
    Broker,
    Agent,
}

/// Lets one of them stand still, while a device is revoked and the group rekeyed.
fn stand_still(who: Who, seed: u64) -> Result<()> {
    let seconds = setting("FLEETKEY_KILLS_STOP_SECONDS", 20);
    with(small_fleet(seed)?, |rounds| {
        let [revoked, still] = two(rounds)?;
        process(rounds, who, &still)?.stop()?;
        let until = Instant::now() + Duration::from_secs(seconds);
        let cli = rounds.fleet.cli();
        while Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now()).min(Duration::from_secs(2));
            // A coordinator that stands still does not answer, and whoever asks goes away.
            let said = cli.say_within(&["group", "rekey", EVERYBODY], left + Duration::from_millis(500));
            ensure!(said.is_ok() != (who == Who::Coordinator), "{who:?} stands still: {said:?}");
            std::thread::sleep(left / 2);
        }
        if who != Who::Coordinator {
            cli.ask(&["revoke", &revoked, "--reason", "stolen"])?;
        }
        process(rounds, who, &still)?.go_on()?;
        revoke_and_check(rounds, &revoked)?;
        rounds.fleet.is_up()
    })
}

fn process<'a>(rounds: &'a Rounds, who: Who, agent: &str) -> Result<&'a Process> {
    Ok(match who {
        Who::Coordinator => &rounds.fleet.coordinator,
        Who::Broker => &rounds.fleet.broker,
        Who::Agent => &rounds.fleet.device(agent)?.process,
    })
}

#[test]
#[ignore = "takes up to a minute: `just faults`"]
fn a_coordinator_that_stood_still_goes_on() -> Result<()> {
    stand_still(Who::Coordinator, 21)
}

#[test]
#[ignore = "takes up to a minute: `just faults`"]
fn a_broker_that_stood_still_goes_on() -> Result<()> {
    stand_still(Who::Broker, 22)
}

#[test]
#[ignore = "takes up to a minute: `just faults`"]
fn an_agent_that_stood_still_catches_up() -> Result<()> {
    stand_still(Who::Agent, 23)
}

#[test]
#[ignore = "takes up to a minute: `just faults`"]
fn a_revocation_is_delivered_when_the_broker_is_back() -> Result<()> {
    let away = Duration::from_secs(setting("FLEETKEY_KILLS_AWAY_SECONDS", 20));
    with(small_fleet(31)?, |rounds| {
        let [revoked, moved] = two(rounds)?;
        let cli = rounds.fleet.cli();
        let before = newest(&show(rounds)?)?;
        rounds.fleet.broker.kill();
        let until = Instant::now() + away;
        cli.ask(&["revoke", &revoked, "--reason", "stolen"])?;
        cli.ask(&["group", "remove", EVERYBODY, &moved])?;
        let aside = rounds.set_aside(&[revoked])?;
        rounds.model.put_out(EVERYBODY, &moved);
        while Instant::now() < until {
            cli.ask(&["group", "rekey", EVERYBODY])?;
            std::thread::sleep(away / 20);
        }
        let shown = show(rounds)?;
        ensure!(newest(&shown)? > before && shown["confirmed"] == 0, "nobody can have heard: {shown}");
        rounds.fleet.start_broker()?;
        rounds.fleet.is_up()?;
        rounds.is_well()?;
        ensure!(newest(&show(rounds)?)? == newest(&shown)?, "nothing more was needed");
        rounds.check()?;
        rounds.are_locked_out(aside)?;
        // And dead while it is away, with the revocation in its outbox.
        let [revoked, _] = two(rounds)?;
        rounds.fleet.broker.kill();
        cli.ask(&["revoke", &revoked, "--reason", "stolen"])?;
        rounds.fleet.coordinator.kill();
        rounds.fleet.start()?;
        revoke_and_check(rounds, &revoked)
    })
}

#[test]
#[ignore = "takes half a minute, and needs libfaketime: `just faults`"]
fn key_epochs_grow_whatever_the_clock_says() -> Result<()> {
    if faketime::clock("+0").is_none() {
        eprintln!("NOT RUN: a wrong clock needs libfaketime (apt-get install faketime)");
        return Ok(());
    }
    let clock = |clock: &str| faketime::clock(clock).unwrap_or_default();
    let mut dice = Dice::new(41);
    // Made a month ago: certificates that are younger than the clock says are refused, and rightly so.
    let mut fleet = Fleet::init(clock("-30d"), &mut dice)?;
    fleet.coordinator_settings = clock("+0");
    let plan = Plan { rounds: 0, agents: 6, seed: 41 };
    with(Rounds::on(fleet, plan, dice)?, |rounds| {
        let mut last = newest(&show(rounds)?)?;
        for time in ["-1d", "+1y", "+0"] {
            rounds.fleet.coordinator.kill();
            rounds.fleet.coordinator_settings = clock(time);
            rounds.fleet.start_coordinator()?;
            rounds.fleet.is_up().with_context(|| format!("clock {time}"))?;
            let cli = rounds.fleet.cli();
            for command in [&["group", "rekey", EVERYBODY][..], &["rotate", EVERYBODY]] {
                let moved = epoch(&cli.ask(command)?["key_epoch"])?;
                ensure!(moved > last, "clock {time}: {moved} after {last}");
                last = moved;
                rounds.is_well().with_context(|| format!("clock {time}, {command:?}"))?;
            }
            let [revoked, _] = two(rounds)?;
            revoke_and_check(rounds, &revoked).with_context(|| format!("clock {time}"))?;
            let now = newest(&show(rounds)?)?;
            ensure!(now > last, "clock {time}: {now} after {last}");
            last = now;
        }
        Ok(())
    })
}

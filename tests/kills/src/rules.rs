//! DESIGN §10, checked from outside: by what operators and applications are shown, and by what opens and what does not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fleetkey_wire::KeyEpoch;
use serde_json::Value;

use crate::device::{Device, Held, epoch, held_in, text};
use crate::dice::Dice;
use crate::fleet::{COMMAND_WITHIN, Fleet, Said};
use crate::intruder::{Intruder, NOT_AUTHORIZED, Verdict};
use crate::ledger::Ledger;
use crate::model::{EVERYBODY, GROUPS, Model, Sealed};
use crate::process;
use crate::wait;

/// A broker that is up has heard of a revocation within this.
const HEARD_WITHIN: Duration = Duration::from_secs(30);
/// Messages of one time out of a group that are tried.
const TRIED: usize = 6;

/// Warnings of a connection that was lost.
const KNOWN_WARNINGS: [&str; 2] = ["no connection to the broker", "policy stream broken"];

/// Rule 3: what is missing until every member shows the newest key epoch, `send` and `oldest` that the coordinator
/// shows, and nobody straggles. Every device of the fleet has to run.
///
/// # Errors
/// When what is shown breaks another rule.
pub fn missing(fleet: &Fleet, model: &Model, ledger: &mut Ledger) -> Result<Option<String>> {
    let cli = fleet.cli();
    let mut statuses = BTreeMap::new();
    for device in &fleet.devices {
        let Ok(status) = device.status() else {
            return Ok(Some(format!("{} does not answer", device.name)));
        };
        ledger.saw_device(&device.name, &status)?;
        if status["connected"] != true {
            return Ok(Some(format!("{} is not connected", device.name)));
        }
        statuses.insert(device.name.as_str(), status);
    }
    for group in GROUPS {
        let (shown, listed) =
            match (cli.say(&["group", "show", group])?, cli.say(&["group", "members", group])?) {
                (Said::Done(shown), Said::Done(listed)) => (shown, listed),
                (Said::Failed(why), _) | (_, Said::Failed(why)) => return Ok(Some(why)),
            };
        ledger.saw_group(&shown)?;
        if let Some(missing) = missing_at_coordinator(group, model, &shown, &listed)? {
            return Ok(Some(missing));
        }
        for (device, status) in &statuses {
            let held = held_in(status, group)?;
            let missing = match (&held, model.is_member(group, device)) {
                (None, true) => Some("is not in yet".to_owned()),
                // One that is out may not have heard of it: that it opens nothing is what counts.
                (Some(_) | None, false) => None,
                (Some(held), true) => behind(held, &shown)?,
            };
            if let Some(missing) = missing {
                return Ok(Some(format!("{group}: {device} {missing}")));
            }
        }
    }
    Ok(None)
}

fn missing_at_coordinator(
    group: &str,
    model: &Model,
    shown: &Value,
    listed: &Value,
) -> Result<Option<String>> {
    for count in ["wanted", "stragglers"] {
        if shown[count] != 0 {
            return Ok(Some(format!("{group}: {} {count}", shown[count])));
        }
    }
    if !shown["rotation"].is_null() {
        return Ok(Some(format!("{group}: a rotation is under way: {}", shown["rotation"])));
    }
    let listed = listed["members"].as_array().context("members")?;
    let names: BTreeSet<String> = listed.iter().map(|of| text(&of["device_name"])).collect::<Result<_>>()?;
    let expected: BTreeSet<String> = model.members(group).cloned().collect();
    if names != expected {
        let odd: Vec<_> = names.symmetric_difference(&expected).collect();
        return Ok(Some(format!("{group}: {odd:?} is in, or is not, against what was said")));
    }
    let behind = listed.iter().find(|of| of["confirmed"] != shown["key_epoch"] || of["cell"].is_null());
    Ok(behind.map(|of| format!("{group}: {} has confirmed {}", of["device_name"], of["confirmed"])))
}

fn behind(held: &Held, shown: &Value) -> Result<Option<String>> {
    let (newest, send, oldest) =
        (epoch(&shown["key_epoch"])?, epoch(&shown["send"])?, epoch(&shown["oldest"])?);
    if held.send != send || held.oldest != oldest || held.held.iter().max() != Some(&newest) {
        return Ok(Some(format!("shows {held:?}, the coordinator {newest} {send} {oldest}")));
    }
    let cells = shown["cells"].as_array().context("cells")?;
    let is_at_its_epoch =
        cells.iter().any(|cell| cell["id"] == held.cell.as_str() && cell["epoch"] == held.cell_epoch);
    Ok((!is_at_its_epoch).then(|| format!("is at epoch {} of cell {}", held.cell_epoch, held.cell)))
}

/// Rules 1 to 5, when all is well: members agree on every key and open what one of them seals; whoever is out, or came
/// later, opens nothing of it.
///
/// # Errors
/// The first rule that does not hold.
pub fn check(fleet: &Fleet, model: &mut Model, ledger: &mut Ledger, dice: &mut Dice) -> Result<()> {
    for group in GROUPS {
        let members: Vec<String> = model.members(group).cloned().collect();
        let mut epochs = BTreeSet::new();
        for name in &members {
            let (key_epoch, key) = fleet
                .device(name)?
                .app_key(group)?
                .with_context(|| format!("{name} gives no key of {group}"))?;
            ledger.saw_key(name, group, key_epoch, key)?;
            epochs.insert(key_epoch);
        }
        ensure!(epochs.len() <= 1, "rule 3: members of {group} use {epochs:?}");
        let Some(sealer) = dice.pick(&members) else { continue };
        let sealed = seal(fleet, group, sealer)?;
        said_by_command(fleet.device(sealer)?, group)?;
        for device in &fleet.devices {
            match (device.open(&sealed.message)?, model.is_member(group, &device.name)) {
                (Ok((plaintext, key_epoch)), true) => {
                    ensure!(
                        plaintext == sealed.plaintext && key_epoch == sealed.key_epoch,
                        "another message"
                    );
                }
                (Err(_), false) => {}
                (Err(refused), true) => bail!("rule 3: {} does not open {sealer}'s: {refused}", device.name),
                (Ok(_), false) => bail!("rule 1: {} is out of {group}, and opens its messages", device.name),
            }
        }
        model.keep(sealed);
    }
    for device in &fleet.devices {
        stays_shut(device, model, TRIED)?;
    }
    Ok(())
}

/// What `fleetkey-agent status` prints is what its socket says.
fn said_by_command(device: &Device, group: &str) -> Result<()> {
    let printed = process::run(device.command(&["status", "--json"]), COMMAND_WITHIN)?;
    ensure!(printed.status.success(), "status: {}", String::from_utf8_lossy(&printed.stderr));
    let printed = held_in(&serde_json::from_slice(&printed.stdout)?, group)?;
    let held = device.held(group)?;
    // A key that has had its time may go in between.
    let keys = |held: Option<Held>| held.map(|held| (held.send, held.oldest));
    ensure!(keys(printed) == keys(held), "{} prints something else than it says", device.name);
    Ok(())
}

fn seal(fleet: &Fleet, group: &'static str, sealer: &str) -> Result<Sealed> {
    let plaintext = format!("{sealer} says so");
    let device = fleet.device(sealer)?;
    let message = device.seal(group, &plaintext)?;
    let key_epoch = match device.open(&message)? {
        Ok((_, key_epoch)) => key_epoch,
        Err(refused) => bail!("{sealer} does not open what it sealed: {refused}"),
    };
    Ok(Sealed { group, key_epoch, message, plaintext })
}

/// Rules 1 and 2: a device that runs opens nothing that must stay shut for it.
///
/// # Errors
/// When it does.
pub fn stays_shut(device: &Device, model: &Model, limit: usize) -> Result<()> {
    for sealed in model.shut_for(&device.name, limit) {
        if device.open(&sealed.message)?.is_ok() {
            let Sealed { group, key_epoch, .. } = sealed;
            bail!("rules 1, 2: {} opens a message of {group} {key_epoch} that is not for it", device.name);
        }
    }
    Ok(())
}

/// Rule 1: a revoked device, running on all that it had stored, is off the broker and opens nothing new.
///
/// # Errors
/// When it does, or gets in.
pub fn is_locked_out(fleet: &Fleet, model: &Model, device: &mut Device) -> Result<()> {
    if !device.process.is_running() {
        device.start()?;
    }
    device.answers()?;
    wait::until(&format!("{} is cut off", device.name), HEARD_WITHIN, || {
        let is_connected = device.status()?["connected"] != false;
        let (_, code) = Intruder::connect(device.directory(), &device.id, fleet.broker_port())?;
        Ok((is_connected || code != NOT_AUTHORIZED)
            .then(|| format!("CONNACK {code}, connected {is_connected}")))
    })?;
    stays_shut(device, model, TRIED)
}

/// Rule 6: devices that were killed hold, on disk alone, what the coordinator lists them to have confirmed. Their
/// agents do not run, before and after.
///
/// # Errors
/// When one does not.
pub fn confirmed_is_held(fleet: &mut Fleet, dead: &[String]) -> Result<()> {
    for name in dead {
        let shown = fleet.cli().ask(&["device", "show", name])?;
        let device = fleet.device_mut(name)?;
        device.start_cut_off()?;
        for listed in shown["groups"].as_array().context("groups")? {
            let (group, confirmed) = (text(&listed["group_name"])?, epoch(&listed["confirmed"])?);
            if listed["cell"].is_null() || confirmed == KeyEpoch::default() {
                continue;
            }
            let held = device.held(&group)?;
            let is_held =
                held.as_ref().is_some_and(|of| of.held.contains(&confirmed) || of.oldest > confirmed);
            ensure!(
                is_held,
                "rule 6: {name} has confirmed {group} {confirmed}, and has {held:?} on its disk"
            );
        }
        device.process.kill();
    }
    Ok(())
}

/// Rule 6, at its sharpest: devices are killed as soon as the coordinator is seen to know of their confirmation.
///
/// # Errors
/// When one of them does not hold what it has confirmed.
pub fn killed_as_they_confirm(fleet: &mut Fleet, names: &[String]) -> Result<()> {
    for name in names {
        let key_epoch = epoch(&fleet.cli().ask(&["group", "rekey", EVERYBODY])?["key_epoch"])?;
        let cli = fleet.cli();
        wait::until(&format!("{name} confirms {key_epoch}"), HEARD_WITHIN, || {
            let shown = cli.ask(&["device", "show", name])?;
            let groups = shown["groups"].as_array().context("groups")?;
            let of = groups.iter().find(|of| of["group_name"] == EVERYBODY).context("a member")?;
            Ok((epoch(&of["confirmed"])? < key_epoch).then(|| of.to_string()))
        })?;
        fleet.device_mut(name)?.process.kill();
        confirmed_is_held(fleet, std::slice::from_ref(name))?;
        fleet.device_mut(name)?.start()?;
    }
    Ok(())
}

/// Rule 5: with a device's certificate, garbage published anywhere but to its own topic is refused by the broker, and
/// what it takes on the device's own topic is refused by the coordinator. Nothing moves. The device is silenced
/// meanwhile.
///
/// # Errors
/// When something is taken.
pub fn intruder_moves_nothing(fleet: &mut Fleet, model: &Model, dice: &mut Dice) -> Result<()> {
    let members: Vec<String> = model.members(EVERYBODY).cloned().collect();
    let [name, other] = &dice.some(2, members)[..] else { bail!("an intruder and a victim are needed") };
    let (held, victim) = (fleet.device(name)?.held(EVERYBODY)?, fleet.device(other)?);
    let status = victim.status()?;
    let (theirs, fleet_id) = (held_in(&status, EVERYBODY)?, text(&status["fleet"])?);
    let cells: BTreeSet<String> = [&held, &theirs].into_iter().flatten().map(|of| of.cell.clone()).collect();
    let victim = victim.id.clone();
    let before = fleet.cli().ask(&["group", "show", EVERYBODY])?;
    let port = fleet.broker_port();
    let device = fleet.device_mut(name)?;
    device.process.kill();
    let connect = || -> Result<Intruder> {
        let (intruder, code) = Intruder::connect(device.directory(), &device.id, port)?;
        ensure!(code == 0, "{} is not let in: CONNACK {code}", device.name);
        Ok(intruder)
    };
    // Of a version that nobody knows.
    let mut garbage = vec![0xff];
    for _ in 0..200 {
        garbage.push(u8::try_from(dice.below(256))?);
    }
    let mut topics: Vec<String> = cells.iter().map(|cell| format!("fk/{fleet_id}/cell/{cell}")).collect();
    topics.push(format!("fk/{fleet_id}/dev/{}/down", device.id));
    topics.extend(["up", "down"].map(|way| format!("fk/{fleet_id}/dev/{victim}/{way}")));
    for topic in &topics {
        ensure!(connect()?.publish(topic, &garbage)? == Verdict::Refused, "rule 5: the broker takes {topic}");
    }
    for filter in [format!("fk/{fleet_id}/dev/{victim}/down"), format!("fk/{fleet_id}/dev/+/up")] {
        let verdict = connect()?.subscribe(&filter)?;
        ensure!(verdict == Verdict::Refused, "the broker lets a device hear {filter}");
    }
    let own = format!("fk/{fleet_id}/dev/{}/up", device.id);
    ensure!(connect()?.publish(&own, &garbage)? == Verdict::Taken, "a device may speak on its own topic");
    device.start()?;
    let after = fleet.cli().ask(&["group", "show", EVERYBODY])?;
    for field in ["key_epoch", "send", "oldest", "members"] {
        ensure!(before[field] == after[field], "rule 5: {field} moved");
    }
    Ok(())
}

/// Rule 7: nothing was logged that says of a fault, other than that others were gone.
///
/// # Errors
/// The line that was.
pub fn nothing_odd_is_logged(fleet: &Fleet) -> Result<()> {
    let mut logs = vec![fleet.coordinator.log().to_owned(), fleet.broker.log().to_owned()];
    for entry in std::fs::read_dir(fleet.directory())? {
        logs.push(entry?.path().join("agent.log"));
    }
    for log in logs.iter().filter(|log| log.exists()) {
        let lines = std::fs::read(log).with_context(|| log.display().to_string())?;
        let lines = String::from_utf8_lossy(&lines);
        let is_odd = |line: &&str| {
            let is_known = KNOWN_WARNINGS.iter().any(|known| line.contains(known));
            [" ERROR ", "panicked"].iter().any(|sign| line.contains(sign))
                || (line.contains(" WARN ") && !is_known)
        };
        if let Some(line) = lines.lines().find(is_odd) {
            bail!("rule 7: {}: {line}", log.display());
        }
    }
    Ok(())
}

//! A group's pre-shared key, by real processes: who was not given it stays out, and nobody else notices.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fleetkey_kills::fleet::{COMMAND_WITHIN, Fleet};
use fleetkey_kills::{Device, Dice, process, wait};

const WITHIN: Duration = Duration::from_secs(60);

/// `fleetkey-agent psk`, to a device that runs or does not.
fn psk(device: &Device, arguments: &[&str]) -> Result<String> {
    let output = process::run(device.command(&[&["psk"], arguments].concat()), COMMAND_WITHIN)?;
    ensure!(output.status.success(), "psk {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path of text")
}

/// Waits until each device holds the same newest key.
fn all_hold_it(fleet: &Fleet, devices: &mut [&mut Device]) -> Result<()> {
    wait::until("every device holds the group's newest key", WITHIN, || {
        let newest = fleet.cli().ask(&["group", "show", "pumps"])?["key_epoch"].clone();
        for device in &mut *devices {
            device.answers()?;
            let held = device.held("pumps")?;
            let is_there = held
                .is_some_and(|held| held.held.last().is_some_and(|last| newest == last.to_string().as_str()));
            if !is_there {
                return Ok(Some(format!("{} does not hold {newest}", device.name)));
            }
        }
        Ok(None)
    })
}

/// Waits until `group members` says of exactly these devices that they lack the key.
fn lacked_by(fleet: &Fleet, names: &[&str]) -> Result<()> {
    wait::until("those without the key are named", WITHIN, || {
        let answer = fleet.cli().ask(&["group", "members", "pumps"])?;
        let members = answer["members"].as_array().context("a list")?;
        let lacking: Vec<&str> = members
            .iter()
            .filter(|member| member["lacks_psk"] == true)
            .filter_map(|member| member["device_name"].as_str())
            .collect();
        Ok((lacking != names).then(|| format!("{lacking:?} lack it")))
    })
}

#[test]
fn a_group_is_open_to_those_who_were_given_its_key_and_to_no_others() -> Result<()> {
    let mut fleet = Fleet::init(Vec::new(), &mut Dice::new(901))?;
    fleet.start()?;
    let cli = fleet.cli();
    let (first, second) = (fleet.directory().join("pumps.psk"), fleet.directory().join("pumps-2.psk"));
    let name = cli.ask(&["psk", "generate", path(&first)?])?["id"].clone();
    ensure!(cli.ask(&["psk", "generate", path(&first)?]).is_err(), "a key was written over");
    // The second one is made by a tool that is not ours.
    let mut made = Command::new("sh");
    made.current_dir(fleet.directory()).args(["-c", "umask 077; openssl rand -hex 32 > pumps-2.psk"]);
    ensure!(process::run(made, COMMAND_WITHIN)?.status.success(), "openssl makes no key");

    let group = cli.ask(&["group", "create", "pumps", "--psk", path(&first)?])?;
    ensure!(group["psk"]["id"] == name && group["psk"]["installed"] == true, "{group}");
    let (mut holder, mut other) = (fleet.provision("pump-1")?, fleet.provision("pump-2")?);
    psk(&holder, &["add", "--group", "pumps", path(&first)?])?;
    holder.start()?;
    other.start()?;
    cli.ask(&["group", "add", "pumps", "pump-1", "pump-2"])?;
    all_hold_it(&fleet, &mut [&mut holder])?;
    other.answers()?;
    lacked_by(&fleet, &["pump-2"])?;

    // Nor does it come in when everything dies and comes back, or the group moves on.
    for process in [&mut fleet.coordinator, &mut holder.process, &mut other.process] {
        process.kill();
    }
    fleet.start_coordinator()?;
    fleet.is_up()?;
    holder.start()?;
    other.start()?;
    cli.ask(&["group", "rekey", "pumps"])?;
    all_hold_it(&fleet, &mut [&mut holder])?;
    other.answers()?;
    lacked_by(&fleet, &["pump-2"])?;
    ensure!(other.held("pumps")?.is_none(), "it is in the group without the key");

    // It is given the key while it runs; and the group its next one, which a third device alone lacks.
    psk(&other, &["add", "--group", "pumps", path(&first)?])?;
    all_hold_it(&fleet, &mut [&mut holder, &mut other])?;
    psk(&holder, &["add", "--group", "pumps", path(&second)?])?;
    let mut late = fleet.provision("pump-3")?;
    psk(&late, &["add", "--group", "pumps", path(&second)?])?;
    cli.ask(&["group", "psk", "pumps", path(&second)?])?;
    late.start()?;
    cli.ask(&["group", "add", "pumps", "pump-3"])?;
    all_hold_it(&fleet, &mut [&mut holder, &mut late])?;
    lacked_by(&fleet, &["pump-2"])?;
    let held = psk(&holder, &["list"])?;
    ensure!(!held.contains(name.as_str().context("a name")?), "the former key is still held: {held}");
    psk(&other, &["add", "--group", "pumps", path(&second)?])?;
    all_hold_it(&fleet, &mut [&mut holder, &mut other, &mut late])?;
    lacked_by(&fleet, &[])
}

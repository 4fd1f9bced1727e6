//! What anybody was seen to hold or to say, kept across all kills: keys that must stay what they were, epochs that must
//! only grow, refusals that somebody has to explain.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use fleetkey_wire::KeyEpoch;
use serde_json::Value;

use crate::device::{Device, Held, epoch, held_in, text};
use crate::model::GROUPS;

/// Everything that anybody was seen to hold or to say, at any time.
#[derive(Debug, Default)]
pub struct Ledger {
    keys: BTreeMap<(String, KeyEpoch), String>,
    devices: BTreeMap<(String, String), (KeyEpoch, KeyEpoch)>,
    groups: BTreeMap<String, [KeyEpoch; 3]>,
    /// Refusals that devices counted, by name, and what the coordinator counted: the most that one showed.
    refused: [BTreeMap<String, u64>; 2],
}

/// What devices refuse when processes die: frames from before, to epochs and cells they have left, or said twice.
const REFUSED_BY_DEVICES: [&str; 7] = [
    "peer_restarted",
    "stale_nonce",
    "stale_cell_epoch",
    "ahead_cell_epoch",
    "stale_key_epoch",
    "unknown_cell",
    "unknown_key_package",
];

/// What the coordinator refuses when processes die: answers to what it asked in a former life, or that come too late.
/// `unknown_version` is the intruder's garbage.
const REFUSED_BY_COORDINATOR: [&str; 8] = [
    "stale_nonce",
    "key_epoch_not_live",
    "not_asked_for",
    "not_a_member",
    "not_in_cell",
    "update_epoch",
    "revoked_device",
    "unknown_version",
];

impl Ledger {
    /// Rule 4: one key for each group and key epoch, for ever.
    ///
    /// # Errors
    /// When another key was seen there.
    pub fn saw_key(&mut self, who: &str, group: &str, key_epoch: KeyEpoch, key: String) -> Result<()> {
        let held = self.keys.entry((group.to_owned(), key_epoch)).or_insert_with(|| key.clone());
        ensure!(*held == key, "rule 4: {who} has another key for {group} {key_epoch} than others had");
        Ok(())
    }

    /// Rule 5: nobody moves a device back.
    ///
    /// # Errors
    /// When it was seen further on, or has an alarm.
    pub fn saw_device(&mut self, device: &str, status: &Value) -> Result<()> {
        let alarms = status["alarms"].as_array().context("alarms")?;
        ensure!(alarms.is_empty(), "rule 4: {device} has an alarm: {alarms:?}");
        self.saw_refused(0, &REFUSED_BY_DEVICES, device, &status["refused"])?;
        for group in GROUPS {
            let Some(Held { send, oldest, .. }) = held_in(status, group)? else { continue };
            let high = self.devices.entry((device.to_owned(), group.to_owned())).or_default();
            ensure!(
                send >= high.0 && oldest >= high.1,
                "rule 5: {device} went back in {group}: send {send}, oldest {oldest}, was at {high:?}"
            );
            *high = (send, oldest);
        }
        Ok(())
    }

    /// Rule 4: what the coordinator says of key epochs only grows, across its restarts.
    ///
    /// # Errors
    /// When it was seen further on.
    pub fn saw_group(&mut self, shown: &Value) -> Result<()> {
        let name = text(&shown["name"])?;
        let now = [epoch(&shown["key_epoch"])?, epoch(&shown["send"])?, epoch(&shown["oldest"])?];
        let before = self.groups.entry(name.clone()).or_default();
        ensure!(
            now.iter().zip(before.iter()).all(|(now, before)| now >= before),
            "rule 4: the coordinator went back in {name}: {now:?}, was at {before:?}"
        );
        *before = now;
        Ok(())
    }

    /// Rules 4 and 7: the coordinator is the only one, and has refused nothing that only an attack would send.
    ///
    /// # Errors
    /// When it is not, or has.
    pub fn saw_coordinator(&mut self, status: &Value) -> Result<()> {
        let coordinator = &status["coordinator"];
        ensure!(coordinator["superseded"] == false, "rule 4: the coordinator takes itself for a copy");
        ensure!(coordinator["quarantined"] == 0, "{} devices are quarantined", coordinator["quarantined"]);
        self.saw_refused(1, &REFUSED_BY_COORDINATOR, "the coordinator", &coordinator["refusals"])
    }

    fn saw_refused(&mut self, at: usize, known: &[&str], who: &str, counts: &Value) -> Result<()> {
        for (name, count) in counts.as_object().context("refusals")? {
            ensure!(known.contains(&name.as_str()), "rule 7: {who} has refused {count} x {name}");
            let most = self.refused[at].entry(name.clone()).or_default();
            *most = (*most).max(count.as_u64().unwrap_or(0));
        }
        Ok(())
    }

    /// What was seen, in a line.
    pub fn summary(&self) -> String {
        let [devices, coordinator] = &self.refused;
        let keys = self.keys.len();
        format!(
            "{keys} keys seen; refused by a device, at most: {devices:?}; by the coordinator: {coordinator:?}"
        )
    }

    /// Asks a device for whatever it shows just now, if it runs.
    ///
    /// # Errors
    /// When that breaks a rule.
    pub fn look_at(&mut self, device: &Device) -> Result<()> {
        let Ok(status) = device.status() else { return Ok(()) };
        self.saw_device(&device.name, &status)?;
        for group in GROUPS {
            if let Ok(Some((key_epoch, key))) = device.app_key(group) {
                self.saw_key(&device.name, group, key_epoch, key)?;
            }
        }
        Ok(())
    }
}

//! `fleetkey group`, `fleetkey revoke`, `fleetkey rotate`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use fleetkey_coordinator::api::{DeviceNames, LabelText, MemberList, NewGroup, NewPsk, Revocation};
use fleetkey_coordinator::when;
use fleetkey_coordinator_core::{OnJoin, Policy};
use fleetkey_wire::Suite;
use fleetkey_wire::psk::PskText;
use serde_json::Value;

use super::client::{Client, segment};
use super::psk::read_psk;
use super::show;
use super::wait::{Goal, WaitOptions};

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    Create(Create),
    /// List every group.
    List,
    /// Show a group: its keys, how many hold them, its cells.
    Show {
        /// Name or UUID.
        group: String,
    },
    /// List the devices of a group, and which of them hold its newest key.
    Members {
        /// Name or UUID.
        group: String,
    },
    /// Say which devices belong in a group by their labels. Those in it stay.
    Select {
        /// Name or UUID.
        group: String,
        /// KEY=VALUE,KEY=VALUE: all of them must be there; "" for nobody.
        labels: String,
    },
    Psk(SetPsk),
    Add(Add),
    Remove(Remove),
    Rekey(Rekey),
}

/// Create a group: devices that share a key.
///
/// What is not set has its default.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey group create pumps
  fleetkey group create valves --cell-capacity 16 --suite chacha20poly1305 --rotation-interval-seconds 3600
  fleetkey group create ledgers --suite xwing-chacha20poly1305")]
pub(crate) struct Create {
    /// A name, not taken by another group.
    name: String,
    /// Devices with these labels belong in it: those that are enrolled now, and those that are enrolled later.
    #[arg(long, value_name = "KEY=VALUE,...")]
    select: Option<String>,
    /// A file with the pre-shared key that its devices hold (`fleetkey psk generate FILE`): nobody comes in without it.
    #[arg(long, value_name = "FILE")]
    psk: Option<PathBuf>,
    /// Devices in a cell, 8 to 256 [default: 64]; with xwing-chacha20poly1305 8 to 24 [default: 8].
    #[arg(long, value_name = "N")]
    cell_capacity: Option<u16>,
    /// The cipher suite: aes128gcm, chacha20poly1305, or xwing-chacha20poly1305, whose key exchange is hybrid post-quantum
    /// [default: aes128gcm].
    #[arg(long, value_name = "SUITE")]
    suite: Option<Suite>,
    /// How long joins wait for each other, to share one rekey [default: 1000].
    #[arg(long, value_name = "N")]
    rekey_window_milliseconds: Option<u32>,
    /// How long the former key is accepted after a rekey [default: 30].
    #[arg(long, value_name = "N")]
    overlap_seconds: Option<u32>,
    /// How long a key is used before the next rotation; 0 for no rotations [default: 86400].
    #[arg(long, value_name = "N")]
    rotation_interval_seconds: Option<u64>,
    /// How long a rotation waits for confirmations at each step [default: 3600].
    #[arg(long, value_name = "N")]
    rotation_deadline_seconds: Option<u64>,
    /// The share of members whose confirmation moves a rotation on [default: 99].
    #[arg(long, value_name = "N")]
    rotation_threshold_percent: Option<u8>,
    /// Every cell heals at least this often [default: 604800].
    #[arg(long, value_name = "N")]
    cell_max_age_seconds: Option<u64>,
    /// What a join does to the key: `rekey`, or `next` to leave it to the next rotation [default: rekey].
    #[arg(long, value_name = "WHAT", value_parser = parse_on_join)]
    on_join: Option<OnJoin>,
}

/// Give a group its next pre-shared key, or the same one again after a restore.
///
/// From then on nobody comes in with the former one. Give the devices the next one before: those that lack it stay in the
/// group until the next device joins their cell, and wait then until they have it. A group that was created without a
/// pre-shared key cannot be given one.
#[derive(Debug, Args)]
#[command(after_help = "Example, with the device's side:
  fleetkey psk generate pumps-2.psk
  fleetkey-agent --config pump-1/agent.toml psk add --group pumps pumps-2.psk     on every device
  fleetkey group psk pumps pumps-2.psk
  fleetkey group members pumps                                               who lacks it")]
pub(crate) struct SetPsk {
    /// Name or UUID.
    group: String,
    /// A file with 64 hexadecimal digits, readable by its owner alone.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Put devices into a group. Offline devices come in when they are back.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  fleetkey group add pumps pump-1 pump-2 --wait")]
pub(crate) struct Add {
    /// Name or UUID.
    group: String,
    /// Names or UUIDs.
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<String>,
    #[command(flatten)]
    wait: WaitOptions,
}

/// Take devices out of a group, and move the others to a new key. The devices stay enrolled: to end one, revoke it.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Name or UUID.
    group: String,
    /// Names or UUIDs.
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<String>,
    #[command(flatten)]
    wait: WaitOptions,
}

/// Move a group to a new key at once.
#[derive(Debug, Args)]
pub(crate) struct Rekey {
    /// Name or UUID.
    group: String,
    #[command(flatten)]
    wait: WaitOptions,
}

/// Rotate a group's key in three steps, so that no message is lost: hand the new key out, use it, drop the old one.
#[derive(Debug, Args)]
pub(crate) struct Rotate {
    /// Name or UUID.
    group: String,
    #[command(flatten)]
    wait: WaitOptions,
}

/// End the identities of devices, for ever: out of every group, off the broker.
///
/// Every group they were in moves to a new key at once, which they do not get. A device that is to come back is
/// provisioned anew.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  fleetkey revoke pump-1 pump-7 --reason 'stolen from depot 3' --deadline 30s --wait")]
pub(crate) struct Revoke {
    /// Names or UUIDs.
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<String>,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// By when whoever remains in their groups is to hold the new keys: 30s, 5m, 2h. The audit log and `group show`
    /// say whether they did; with --wait, this command does.
    #[arg(long, value_name = "TIME", value_parser = when::parse_span)]
    deadline: Option<u64>,
    #[command(flatten)]
    wait: WaitOptions,
}

impl GroupCommand {
    pub(crate) fn run(self, client: &Client, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        match self {
            Self::Create(create) => {
                let psk = create.psk.as_deref().map(read_psk).transpose()?.map(PskText);
                let policy = create.policy();
                let select = create.select.unwrap_or_default();
                let new = NewGroup { name: create.name, policy, select, psk };
                print(&client.post("/v1/groups", &new)?, json, out)
            }
            Self::List => {
                let answer = client.get("/v1/groups")?;
                if json { show::json(out, &answer) } else { show::groups(out, &answer) }
            }
            Self::Show { group } => print(&client.get(&path(&group, ""))?, json, out),
            Self::Members { group } => {
                let answer = client.get(&path(&group, "/members"))?;
                if json {
                    return show::json(out, &answer);
                }
                let list: MemberList = serde_json::from_value(answer).context("read the answer")?;
                show::members(out, &list.members)
            }
            Self::Select { group, labels } => {
                let answer = client.post(&path(&group, "/select"), &LabelText { labels })?;
                if json { show::json(out, &answer) } else { show::group(out, &answer["group"]) }
            }
            Self::Psk(SetPsk { group, file }) => {
                let psk = PskText(read_psk(&file)?);
                let answer = client.post(&path(&group, "/psk"), &NewPsk { psk })?;
                if json { show::json(out, &answer) } else { show::group(out, &answer["group"]) }
            }
            Self::Add(Add { group, devices, wait }) => {
                let mut answer = client.post(&path(&group, "/add"), &DeviceNames { devices })?;
                wait.until(client, Goal::AllIn, &mut answer["group"])?;
                if json {
                    return show::json(out, &answer);
                }
                writeln!(out, "{} added", show::count(answer["added"].as_u64().unwrap_or(0), "device"))?;
                show::group(out, &answer["group"])
            }
            Self::Remove(Remove { group, devices, wait }) => {
                let mut answer = client.post(&path(&group, "/remove"), &DeviceNames { devices })?;
                wait.until(client, Goal::Confirmed, &mut answer)?;
                print(&answer, json, out)
            }
            Self::Rekey(Rekey { group, wait }) => {
                let mut answer = client.post_nothing(&path(&group, "/rekey"))?;
                wait.until(client, Goal::Confirmed, &mut answer["group"])?;
                if json { show::json(out, &answer) } else { show::group(out, &answer["group"]) }
            }
        }
    }
}

impl Rotate {
    pub(crate) fn run(self, client: &Client, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        let mut answer = client.post_nothing(&path(&self.group, "/rotate"))?;
        self.wait.until(client, Goal::Rotated, &mut answer["group"])?;
        if json { show::json(out, &answer) } else { show::group(out, &answer["group"]) }
    }
}

impl Revoke {
    pub(crate) fn run(mut self, client: &Client, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        self.wait.or_timeout(self.deadline);
        let revocation =
            Revocation { devices: self.devices, reason: self.reason, deadline_seconds: self.deadline };
        let mut answer = client.post("/v1/revoke", &revocation)?;
        if let Some(groups) = answer["groups"].as_array_mut() {
            for group in groups {
                self.wait.until(client, Goal::Confirmed, group)?;
            }
        }
        if json {
            return show::json(out, &answer);
        }
        let revoked = answer["devices"].as_array().map_or(0, Vec::len) as u64;
        writeln!(out, "{} revoked", show::count(revoked, "device"))?;
        show::groups(out, &answer)
    }
}

impl Create {
    fn policy(&self) -> Policy {
        let default = Policy::of(self.suite.unwrap_or_default());
        Policy {
            cell_capacity: self.cell_capacity.unwrap_or(default.cell_capacity),
            suite: default.suite,
            rekey_window_milliseconds: self
                .rekey_window_milliseconds
                .unwrap_or(default.rekey_window_milliseconds),
            overlap_seconds: self.overlap_seconds.unwrap_or(default.overlap_seconds),
            rotation_interval_seconds: self
                .rotation_interval_seconds
                .unwrap_or(default.rotation_interval_seconds),
            rotation_deadline_seconds: self
                .rotation_deadline_seconds
                .unwrap_or(default.rotation_deadline_seconds),
            rotation_threshold_percent: self
                .rotation_threshold_percent
                .unwrap_or(default.rotation_threshold_percent),
            cell_max_age_seconds: self.cell_max_age_seconds.unwrap_or(default.cell_max_age_seconds),
            on_join: self.on_join.unwrap_or(default.on_join),
        }
    }
}

fn parse_on_join(text: &str) -> Result<OnJoin, String> {
    match text {
        "rekey" => Ok(OnJoin::Rekey),
        "next" => Ok(OnJoin::Next),
        _ => Err("use rekey or next".into()),
    }
}

fn path(group: &str, what: &str) -> String {
    format!("/v1/groups/{}{what}", segment(group))
}

fn print(group: &Value, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    if json { show::json(out, group) } else { show::group(out, group) }
}

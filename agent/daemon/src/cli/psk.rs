//! `fleetkey-agent psk`: the pre-shared keys that the device's operator gives it.
//!
//! A running agent is asked on its socket; of one that does not run the state is opened, so that a device can be given
//! its keys before it connects for the first time.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Subcommand;
use fleetkey_agent::settings::Settings;
use fleetkey_agent::socket::{Request, status_json};
use fleetkey_agent_core::{Input, Keeper, Kept};
use fleetkey_vault::files;
use fleetkey_wire::psk::PskText;
use fleetkey_wire::{Millis, Now, Psk, PskId};
use rand_core::OsRng;
use serde_json::Value;

use super::{ask, list, print_json, text};

#[derive(Debug, Subcommand)]
pub(super) enum PskCommand {
    /// Give the device a group's pre-shared key. From then on it is in that group only with one.
    #[command(after_help = "Example:
  fleetkey-agent --config pump-1/agent.toml psk add --group pumps pumps.psk

The next key of a group is given the same way, before `fleetkey group psk` makes the group use it. The former one goes
by itself as soon as the group does.")]
    Add {
        /// The group's UUID or name. The device need not be in it yet.
        #[arg(long)]
        group: String,
        /// A file with 64 hexadecimal digits, readable by its owner alone.
        file: PathBuf,
    },
    /// List the pre-shared keys that the device holds, by their names.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take a pre-shared key from the device. Without any for a group it joins that group without.
    Remove {
        /// The key's name, as `list` shows it.
        id: PskId,
    },
}

impl PskCommand {
    pub(super) fn run(self, settings: &Settings, out: &mut impl Write) -> anyhow::Result<()> {
        let is_running = UnixStream::connect(&settings.socket).is_ok();
        match self {
            Self::Add { group, file } => {
                let psk = Psk::from_text(&files::read_secret(&file)?)
                    .with_context(|| format!("read {}", file.display()))?;
                let id = psk.id();
                if is_running {
                    ask(&settings.socket, &Request::PskAdd { group: group.clone(), psk: PskText(psk) })?;
                } else {
                    at_rest(settings, Some(Input::AddPsk { group: &group, psk: &psk }))?;
                }
                writeln!(out, "pre-shared key {id} is held for group {group}")?;
            }
            Self::List { json } => {
                let status = if is_running {
                    ask(&settings.socket, &Request::Status)?
                } else {
                    at_rest(settings, None)?
                };
                if json {
                    return print_json(out, &status["psks"]);
                }
                for psk in list(&status["psks"]) {
                    writeln!(out, "{}  {}", text(&psk["id"]), text(&psk["group"]))?;
                }
            }
            Self::Remove { id } if is_running => {
                ask(&settings.socket, &Request::PskRemove { id }).map(drop)?
            }
            Self::Remove { id } => at_rest(settings, Some(Input::RemovePsk { psk: id })).map(drop)?,
        }
        Ok(())
    }
}

/// Gives an agent that does not run one input, and says where it stands then.
fn at_rest(settings: &Settings, input: Option<Input<'_>>) -> anyhow::Result<Value> {
    let (setup, _) = settings.prepare()?;
    let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = Now { mono: Millis::default(), unix_seconds };
    let mut keeper = Keeper::open(setup.config, setup.store, now)
        .with_context(|| format!("open {}", settings.state.display()))?;
    if let Some(input) = input {
        match keeper.handle(input, now, &mut OsRng)? {
            Ok(Kept { refused: None, .. }) => {}
            Ok(Kept { refused: Some(refused), .. }) => return Err(refused.into()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(status_json(&keeper.agent().status(now)))
}

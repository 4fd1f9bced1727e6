//! `fleetkey device`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use fleetkey_coordinator::api::{Bundle, DeviceList, DeviceView, NewDevice};
use fleetkey_coordinator::{check_bundle_directory, write_bundle};

use super::client::{Client, segment};
use super::show;

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    Provision(Provision),
    /// List every device.
    List,
    /// Show a device and the groups it is in.
    Show {
        /// Name or UUID.
        device: String,
    },
    /// Let a device out of quarantine, after it was found not to be cloned.
    Release {
        /// Name or UUID.
        device: String,
    },
}

/// Make a device: an identity, and a directory with all that fleetkey-agent needs.
///
/// The directory holds the device's private key, which the coordinator does not keep: install it on the device, and
/// delete it here.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey device provision pump-1
  fleetkey device provision pump-1 --out /media/stick/pump-1")]
pub(crate) struct Provision {
    /// A label for people, not taken by another device.
    name: String,
    /// The directory to make [default: NAME, here].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl DeviceCommand {
    pub(crate) fn run(self, client: &Client, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        match self {
            Self::Provision(provision) => provision.run(client, json, out),
            Self::List => {
                let answer = client.get("/v1/devices")?;
                if json {
                    return show::json(out, &answer);
                }
                let list: DeviceList = serde_json::from_value(answer).context("read the answer")?;
                show::devices(out, &list.devices)
            }
            Self::Show { device } => {
                print(client.get(&format!("/v1/devices/{}", segment(&device)))?, json, out)
            }
            Self::Release { device } => {
                print(client.post_nothing(&format!("/v1/devices/{}/release", segment(&device)))?, json, out)
            }
        }
    }
}

fn print(answer: serde_json::Value, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    if json {
        return show::json(out, &answer);
    }
    let device: DeviceView = serde_json::from_value(answer).context("read the answer")?;
    show::device(out, &device)
}

impl Provision {
    fn run(self, client: &Client, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        let directory = match self.out {
            Some(directory) => directory,
            None => default_directory(&self.name)?,
        };
        check_bundle_directory(&directory)?;
        let answer = client.post("/v1/devices", &NewDevice { name: self.name })?;
        let bundle: Bundle = serde_json::from_value(answer).context("read the answer")?;
        let config = write_bundle(&directory, &bundle)?;
        if json {
            // Everything but the key, which is in its file.
            let made = serde_json::json!({
                "device": bundle.device, "name": bundle.name, "fleet": bundle.fleet,
                "directory": directory, "config": config,
            });
            return show::json(out, &made);
        }
        writeln!(out, "device {} is {}", bundle.name, bundle.device)?;
        writeln!(out, "start it: fleetkey-agent --config {}", config.display())?;
        Ok(())
    }
}

/// A name is a directory only where it looks like one.
fn default_directory(name: &str) -> anyhow::Result<PathBuf> {
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if is_plain && !name.starts_with(['.', '-']) && !name.is_empty() {
        Ok(Path::new(name).to_owned())
    } else {
        bail!("the name {name:?} makes no directory: name one with --out DIR")
    }
}

//! `fleetkey device`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use fleetkey_coordinator::api::{
    Adoption, Bundle, Certification, Certified, DeviceList, DeviceView, LabelText, NewDevice, RequestList,
    RequestView,
};
use fleetkey_coordinator::{check_bundle_directory, when, write_bundle, write_private};

use super::client::{Client, segment};
use super::provision_list::ProvisionList;
use super::show;

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    Provision(Provision),
    Adopt(Adopt),
    Certify(Certify),
    /// List every device.
    List,
    /// Show a device and the groups it is in.
    Show {
        /// Name or UUID.
        device: String,
    },
    /// Label a device anew, and put it into the groups that select it. It leaves none.
    Label {
        /// Name or UUID.
        device: String,
        /// KEY=VALUE,KEY=VALUE; "" for none.
        labels: String,
    },
    /// List the devices that wait for an operator's word, and those that were denied.
    Requests,
    /// Let a device in that waits. It gets its certificate when it asks again.
    Approve {
        /// Name or UUID, as `requests` shows them.
        device: String,
    },
    /// Keep a device out that waits. Its key is refused until the request is forgotten.
    Deny {
        /// Name or UUID, as `requests` shows them.
        device: String,
    },
    /// Forget a request: whoever made it may ask anew.
    Forget {
        /// Name or UUID, as `requests` shows them.
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
  fleetkey device provision pump-1 --out /media/stick/pump-1
  fleetkey device provision --csv pumps.csv --out pumps

pumps.csv, where id and labels may be left out:
  name,id,labels
  pump-1,,\"site=hamburg,type=pump\"
  pump-2,0b9f3c7e-6a52-4d0e-9c39-2f6d0b1a7c11,")]
pub(crate) struct Provision {
    /// A label for people, not taken by another device.
    #[arg(required_unless_present = "csv", conflicts_with = "csv")]
    name: Option<String>,
    /// Make a device for each row of a list, `-` for standard input: with a header, and the columns name, id, labels. All
    /// rows are checked first. Given again, it goes on where it stopped.
    #[arg(long, value_name = "FILE", requires = "out")]
    csv: Option<PathBuf>,
    /// The directory to make [default: NAME, here]; with --csv, the one that holds a directory for each device.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Enrol devices by their own certificates: after a restore, those that were enrolled after the backup.
///
/// A device's certificate is `device.crt` in its bundle; the fleet's CA has vouched for it, so nothing has to be done on
/// the device, which comes back by itself. Its groups have to be named anew: `fleetkey group add`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey device adopt pump-7/device.crt
  fleetkey device adopt --name pump-7 /tmp/certificate.pem")]
pub(crate) struct Adopt {
    /// Certificates, PEM.
    #[arg(required = true, value_name = "CERTIFICATE")]
    certificates: Vec<PathBuf>,
    /// A label for people, not taken by another device [default: DIR for DIR/device.crt, else the file's name].
    #[arg(long)]
    name: Option<String>,
}

/// Make a further certificate for a device that was away for longer than its own has lasted.
///
/// It stays the device that it is, on the key that it has: a signing request made with another key is refused, and so is a
/// device that is revoked. On the device: openssl req -new -key device.key -subj /CN=device -out request.pem
#[derive(Debug, Args)]
#[command(after_help = "Example:
  fleetkey device certify pump-3 --csr request.pem --out device.crt")]
pub(crate) struct Certify {
    /// Name or UUID.
    device: String,
    /// The signing request, PEM.
    #[arg(long, value_name = "FILE")]
    csr: PathBuf,
    /// Where the certificate is written, which is not written over.
    #[arg(long, value_name = "FILE", default_value = "device.crt")]
    out: PathBuf,
}

impl Certify {
    fn run(self, client: &Client, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        let request =
            std::fs::read_to_string(&self.csr).with_context(|| format!("read {}", self.csr.display()))?;
        if self.out.exists() {
            bail!("{} exists already, and nothing is written over", self.out.display());
        }
        let path = format!("/v1/devices/{}/certify", segment(&self.device));
        let answer = client.post(&path, &Certification { request })?;
        let certified: Certified = serde_json::from_value(answer).context("read the answer")?;
        write_private(&self.out, certified.certificate.as_bytes(), false)?;
        if json {
            return show::json(out, &serde_json::json!({ "certificate": self.out }));
        }
        writeln!(out, "wrote {}: put it in the place of the device's device.crt", self.out.display())?;
        Ok(())
    }
}

impl Adopt {
    fn run(self, client: &Client, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        if self.name.is_some() && self.certificates.len() > 1 {
            bail!("--name names one device, and {} certificates are given", self.certificates.len());
        }
        let mut adopted = Vec::new();
        for path in &self.certificates {
            let shown = || path.display().to_string();
            let certificate = std::fs::read_to_string(path).with_context(|| format!("read {}", shown()))?;
            let name = self.name.clone().map_or_else(|| name_of(path), Ok)?;
            let answer =
                client.post("/v1/devices/adopt", &Adoption { name, certificate }).with_context(shown)?;
            let device: DeviceView = serde_json::from_value(answer).context("read the answer")?;
            if !json {
                writeln!(out, "device {} is {}: add it to its groups", device.name, device.id)?;
            }
            adopted.push(device);
        }
        if json { show::json(out, &serde_json::to_value(DeviceList { devices: adopted })?) } else { Ok(()) }
    }
}

/// Bundles are directories named after their devices.
fn name_of(certificate: &Path) -> anyhow::Result<String> {
    let bundle = certificate.parent().and_then(Path::file_name);
    let bundle = bundle.filter(|_| certificate.file_name().is_some_and(|name| name == "device.crt"));
    let name = bundle.or(certificate.file_stem()).and_then(|name| name.to_str());
    name.map(str::to_owned).with_context(|| format!("{} gives no name: say --name", certificate.display()))
}

impl DeviceCommand {
    pub(crate) fn run(self, client: &Client, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        match self {
            Self::Provision(provision) => provision.run(client, json, out),
            Self::Adopt(adopt) => adopt.run(client, json, out),
            Self::Certify(certify) => certify.run(client, json, out),
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
            Self::Label { device, labels } => {
                let path = format!("/v1/devices/{}/label", segment(&device));
                print(client.post(&path, &LabelText { labels })?, json, out)
            }
            Self::Requests => requests(&client.get("/v1/requests")?, json, out),
            Self::Approve { device } => print(client.post_nothing(&about(&device, "approve"))?, json, out),
            Self::Deny { device } => requests(&client.post_nothing(&about(&device, "deny"))?, json, out),
            Self::Forget { device } => requests(&client.post_nothing(&about(&device, "forget"))?, json, out),
            Self::Release { device } => {
                print(client.post_nothing(&format!("/v1/devices/{}/release", segment(&device)))?, json, out)
            }
        }
    }
}

fn about(device: &str, what: &str) -> String {
    format!("/v1/requests/{}/{what}", segment(device))
}

fn requests(answer: &serde_json::Value, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    if json {
        return show::json(out, answer);
    }
    let RequestList { requests } = serde_json::from_value(answer.clone()).context("read the answer")?;
    if requests.is_empty() {
        writeln!(out, "nobody waits")?;
    }
    for RequestView { device, name, origin, labels, unix_seconds, is_denied } in requests {
        let state = if is_denied { "denied" } else { "waits" };
        writeln!(out, "{device}  {name}  {state} since {}, by {origin}  {labels}", when::show(unix_seconds))?;
    }
    Ok(())
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
        let name = match (self.name, self.csv, &self.out) {
            (_, Some(csv), Some(directory)) => {
                return ProvisionList::read(&csv, directory.clone())?.run(client, json, out);
            }
            (Some(name), _, _) => name,
            (None, _, _) => bail!("name the device, or a list with --csv FILE --out DIR"),
        };
        let directory = match self.out {
            Some(directory) => directory,
            None => default_directory(&name)?,
        };
        check_bundle_directory(&directory)?;
        let new = NewDevice { name, id: None, public_key: None, labels: None };
        let answer = client.post("/v1/devices", &new)?;
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

/// Whether a name is a directory too: only where it looks like one.
pub(super) fn is_plain(name: &str) -> bool {
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    is_plain && !name.starts_with(['.', '-']) && !name.is_empty()
}

fn default_directory(name: &str) -> anyhow::Result<PathBuf> {
    if is_plain(name) {
        Ok(Path::new(name).to_owned())
    } else {
        bail!("the name {name:?} makes no directory: name one with --out DIR")
    }
}

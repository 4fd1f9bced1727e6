//! A fleet with an EST server: every way in, as a device or an operator would use it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::device::{Device, text};
use crate::dice::Dice;
use crate::fleet::{COMMAND_WITHIN, Fleet, free_port};
use crate::process;

/// A fleet with an EST server.
#[derive(Debug)]
pub struct Door {
    /// The fleet.
    pub fleet: Fleet,
    /// Where the EST server listens.
    pub est: SocketAddr,
}

impl Door {
    /// Makes the fleet and starts it. `settings` are the coordinator's, as it takes them from its environment.
    ///
    /// # Errors
    /// When it does not start.
    pub fn open(seed: u64, settings: &[(&str, &str)]) -> Result<Self> {
        let mut dice = Dice::new(seed);
        let est: SocketAddr = format!("127.0.0.1:{}", free_port(&mut dice)?).parse()?;
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut all: Vec<(String, String)> = settings.iter().map(own).collect();
        all.push(("FLEETKEY__ENROLMENT__LISTEN".to_owned(), est.to_string()));
        all.push(("FLEETKEY__ENROLMENT__ASK_AGAIN_SECONDS".to_owned(), "1".to_owned()));
        let mut fleet = Fleet::init(all, &mut dice)?;
        fleet.start()?;
        Ok(Self { fleet, est })
    }

    /// A path beside the fleet.
    pub fn path(&self, name: &str) -> PathBuf {
        self.fleet.directory().join(name)
    }

    /// What a device must trust from the start.
    pub fn roots(&self) -> PathBuf {
        self.fleet.home().join("fleet-roots.pem")
    }

    /// What an operator's command answers.
    ///
    /// # Errors
    /// What the command says when it fails.
    pub fn ask(&self, arguments: &[&str]) -> Result<Value> {
        self.fleet.cli().ask(arguments)
    }

    /// A claim, `id:secret`.
    ///
    /// # Errors
    /// What the command says when it fails.
    pub fn claim(&self, arguments: &[&str]) -> Result<String> {
        text(&self.ask(&[&["claim", "create"], arguments].concat())?["claim"])
    }

    /// `fleetkey-agent enroll`, with what speaks for the device still to be named.
    pub fn enroll(&self, name: &str) -> Command {
        let mut command = self.fleet.binaries().command("fleetkey-agent");
        command.arg("enroll").arg("--json").args(["--est", &format!("https://{}", self.est)]);
        command.arg("--roots").arg(self.roots()).arg("--out").arg(self.path(name));
        command
    }

    /// The device that `fleetkey-agent enroll` has made.
    ///
    /// # Errors
    /// When it has made none.
    pub fn enrolled(&self, name: &str, output: &Output) -> Result<Device> {
        ensure!(output.status.success(), "enroll {name}: {}", String::from_utf8_lossy(&output.stderr));
        let said: Value = serde_json::from_slice(&output.stdout)?;
        let binaries = self.fleet.binaries().clone();
        Ok(Device::new(binaries, name.to_owned(), text(&said["device"])?, self.path(name)))
    }

    /// Runs curl, which trusts the fleet's roots.
    ///
    /// # Errors
    /// When it does not end.
    pub fn curl(&self, directory: &Path, arguments: &[&str]) -> Result<Output> {
        let mut curl = Command::new("curl");
        curl.current_dir(directory).args(["--silent", "--show-error", "--fail-with-body"]);
        curl.arg("--cacert").arg(self.roots()).args(arguments);
        process::run(curl, COMMAND_WITHIN)
    }

    /// The address of an EST operation.
    pub fn url(&self, operation: &str) -> String {
        format!("https://{}/.well-known/est/{operation}", self.est)
    }

    /// Whether the newest revocation list has the device's certificate.
    ///
    /// # Errors
    /// When there is no list, or no certificate.
    pub fn is_listed(&self, device: &Device) -> Result<bool> {
        let certificate = std::fs::read_to_string(device.directory().join("device.crt"))?;
        let leaf = fleetkey_identity::chain_from_pem(&certificate)?.remove(0);
        let serial = hex::encode(fleetkey_identity::read_certificate(&leaf)?.serial);
        let list = self.ask(&["ca", "crl"])?;
        Ok(list["revoked"].as_array().context("a list")?.iter().any(|listed| *listed == serial.as_str()))
    }
}

//! `fleetkey-agent enroll`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use fleetkey_agent::enrol::{Enrolled, Enrolment, enrol};
use fleetkey_agent::est::EstUrl;
use fleetkey_vault::files::{read, read_secret};
use zeroize::Zeroizing;

/// The variable that holds a claim, where no file does.
const CLAIM_VARIABLE: &str = "FLEETKEY_CLAIM";

/// Make a key, and get a certificate for it over EST (RFC 7030).
///
/// The key is made here and does not leave. What speaks for the device is a claim (`fleetkey claim create`), or the
/// certificate that it has from its manufacturer. A device that has to wait for an operator asks again until it knows;
/// one that is interrupted is enrolled by the same command later, with the same key.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey-agent enroll --est https://fleet.example:7601 --roots fleet-roots.pem --claim-file claim --out pump-3
  fleetkey-agent enroll --est https://fleet.example:7601 --roots fleet-roots.pem \\
    --manufacturer-certificate idevid.crt --manufacturer-key idevid.key --out pump-4")]
pub(super) struct Enroll {
    /// The EST server: https://HOST:PORT.
    #[arg(long, value_name = "URL")]
    est: EstUrl,
    /// The fleet's roots, brought here by hand: all else rests on them.
    #[arg(long, value_name = "FILE")]
    roots: PathBuf,
    /// The file of the claim; FLEETKEY_CLAIM may hold the claim itself.
    #[arg(long, value_name = "FILE", conflicts_with = "manufacturer_certificate")]
    claim_file: Option<PathBuf>,
    /// The certificate chain that the device has from its manufacturer.
    #[arg(long, value_name = "FILE", requires = "manufacturer_key")]
    manufacturer_certificate: Option<PathBuf>,
    /// The key of that certificate, Ed25519 in PKCS #8.
    #[arg(long, value_name = "FILE", requires = "manufacturer_certificate")]
    manufacturer_key: Option<PathBuf>,
    /// What the device would like to be called [default: the directory's name].
    #[arg(long)]
    name: Option<String>,
    /// The directory to make: all that the agent needs.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Enroll {
    pub(super) fn run(self, out: &mut impl Write) -> anyhow::Result<()> {
        let manufacturer = match (&self.manufacturer_certificate, &self.manufacturer_key) {
            (Some(chain), Some(key)) => Some((read(chain)?, read_secret(key)?)),
            (Some(_), None) | (None, Some(_)) | (None, None) => None,
        };
        let claim = if manufacturer.is_some() { None } else { Some(claim(self.claim_file.as_deref())?) };
        let named = self.out.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = self.name.unwrap_or_else(|| named.to_owned());
        let roots = read(&self.roots)?;
        let enrolment = Enrolment { est: self.est, roots, claim, manufacturer, name, directory: self.out };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let waits = |wait: std::time::Duration| {
            // Where standard error is closed, nobody can be told.
            let _ = writeln!(
                std::io::stderr(),
                "not yet: the registrar is busy, or an operator has not decided; asking again in {} s",
                wait.as_secs()
            );
        };
        let enrolled = runtime.context("start the runtime")?.block_on(enrol(&enrolment, waits))?;
        let Enrolled { fleet, device, config } = enrolled;
        if self.json {
            return super::print_json(
                out,
                &serde_json::json!({ "fleet": fleet, "device": device, "config": config }),
            );
        }
        writeln!(out, "device {device} of fleet {fleet}")?;
        writeln!(out, "start it: fleetkey-agent --config {}", config.display())?;
        Ok(())
    }
}

fn claim(file: Option<&Path>) -> anyhow::Result<Zeroizing<String>> {
    let text = match (file, std::env::var(CLAIM_VARIABLE)) {
        (Some(file), _) => read_secret(file)?,
        (None, Ok(claim)) => Zeroizing::new(claim),
        (None, Err(_)) => bail!(
            "nothing speaks for this device: name --claim-file or --manufacturer-certificate, or set {CLAIM_VARIABLE}"
        ),
    };
    Ok(Zeroizing::new(text.trim().to_owned()))
}

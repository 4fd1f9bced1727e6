//! `fleetkey ca`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use fleetkey_coordinator::config::{CA_PASSPHRASE_VARIABLE, Config};
use fleetkey_coordinator::{read_ca, when, write_private};
use fleetkey_identity::{Crl, FleetRoots};
use rand_core::OsRng;

use super::client::{ClientOptions, read_config};
use super::show;

/// A passphrase that somebody could guess protects nothing.
const MIN_PASSPHRASE_CHARACTERS: usize = 12;

#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Show the fleet's CA: its fleet, whether it is a root, whether its key is encrypted.
    Show,
    Protect(Protect),
    /// Show the newest revocation list, as the coordinator has published it.
    Crl,
}

/// Encrypt the CA's key under a passphrase, in place.
///
/// The passphrase comes from FLEETKEY_CA_PASSPHRASE or from a file, never from the command line, which others can read.
/// `fleetkey serve` then needs it too: in the same variable, or in the file named by `ca_passphrase` under [identity].
#[derive(Debug, Args)]
#[command(after_help = "Example:
  FLEETKEY_CA_PASSPHRASE='correct horse battery staple' fleetkey ca protect")]
pub(crate) struct Protect {
    /// The file that holds the passphrase.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl CaCommand {
    pub(crate) fn run(self, options: &ClientOptions, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        let config = read_config(options.config.as_deref())?;
        match self {
            Self::Show => show_ca(&config, json, out),
            Self::Protect(protect) => protect.run(&config, json, out),
            Self::Crl => show_crl(&config, json, out),
        }
    }
}

fn ca_file(config: &Config) -> anyhow::Result<&PathBuf> {
    config.identity.ca.as_ref().context("the settings name no CA: set `ca` under [identity]")
}

fn show_ca(config: &Config, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let path = ca_file(config)?;
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let is_encrypted = text.contains("BEGIN ENCRYPTED PRIVATE KEY");
    let ca = read_ca(path, config.identity.ca_passphrase.as_deref())?;
    let kind = if ca.is_root() { "root" } else { "intermediate" };
    if json {
        let shown = serde_json::json!({
            "fleet": ca.fleet(), "kind": kind, "file": path, "key_encrypted": is_encrypted,
        });
        return show::json(out, &shown);
    }
    let key = if is_encrypted {
        "encrypted under a passphrase"
    } else {
        "NOT encrypted: `fleetkey ca protect` encrypts it"
    };
    writeln!(out, "fleet {}", ca.fleet())?;
    writeln!(out, "  {kind} in {}", path.display())?;
    writeln!(out, "  its key is {key}")?;
    Ok(())
}

impl Protect {
    fn run(self, config: &Config, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        let path = ca_file(config)?;
        let passphrase = match (&self.passphrase_file, std::env::var(CA_PASSPHRASE_VARIABLE)) {
            (Some(file), _) => {
                std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?
            }
            (None, Ok(passphrase)) => passphrase,
            (None, Err(_)) => bail!("no passphrase: set {CA_PASSPHRASE_VARIABLE}, or name --passphrase-file"),
        };
        let passphrase = zeroize::Zeroizing::new(passphrase);
        let passphrase = passphrase.trim_end_matches(['\r', '\n']);
        if passphrase.chars().count() < MIN_PASSPHRASE_CHARACTERS {
            bail!(
                "the passphrase has fewer than {MIN_PASSPHRASE_CHARACTERS} characters: choose a longer one"
            );
        }
        let ca = read_ca(path, config.identity.ca_passphrase.as_deref())?;
        let encrypted = ca.to_encrypted_pem(passphrase, &mut OsRng).context("the key is not in this file")?;
        write_private(path, encrypted.as_bytes(), true)?;
        if json {
            return show::json(out, &serde_json::json!({ "file": path, "key_encrypted": true }));
        }
        writeln!(out, "the key in {} is encrypted now", path.display())?;
        writeln!(out, "copies of the file as it was still hold it in the clear: find and delete them")?;
        Ok(())
    }
}

fn show_crl(config: &Config, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let path = &config.enrolment.crl;
    let shown = || path.display().to_string();
    let bytes = std::fs::read(path)
        .with_context(|| format!("read {}: is `fleetkey serve` running, with the CA?", shown()))?;
    let list = Crl::read(&bytes).with_context(shown)?;
    let roots_file = &config.identity.roots;
    let roots = std::fs::read_to_string(roots_file).with_context(|| roots_file.display().to_string())?;
    let ca = ca_file(config).and_then(|path| Ok(std::fs::read_to_string(path)?)).unwrap_or_default();
    let intermediates = fleetkey_identity::certificates_from_pem(&ca).unwrap_or_default();
    FleetRoots::from_pem(&roots)
        .with_context(|| roots_file.display().to_string())?
        .check_crl(&list, &intermediates)
        .with_context(shown)?;
    let serials: Vec<String> = list.revoked.keys().map(hex::encode).collect();
    let made = list.this_update_unix_seconds.unsigned_abs();
    let next = list.next_update_unix_seconds.map(i64::unsigned_abs);
    if json {
        let shown = serde_json::json!({
            "file": path, "number": list.number, "this_update_unix_seconds": made,
            "next_update_unix_seconds": next, "revoked": serials,
        });
        return show::json(out, &shown);
    }
    writeln!(out, "revocation list {} of {}", list.number, when::show(made))?;
    if let Some(next) = next {
        writeln!(out, "  valid until {}", when::show(next))?;
    }
    writeln!(out, "  no longer counting: {}", show::count(serials.len() as u64, "certificate"))?;
    for serial in serials {
        writeln!(out, "  {serial}")?;
    }
    Ok(())
}

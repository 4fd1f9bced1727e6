//! `fleetkey ca roll`: another CA, or another root, in the place of the one that issues.
//!
//! It works on the files alone, as the root's key is for no service to read; `fleetkey serve` takes what it finds.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use fleetkey_coordinator::config::Config;
use fleetkey_coordinator::pkcs11::{TokenError, generate, label_in, reference_to};
use fleetkey_coordinator::{CaFiles, ca_passphrase, read_ca, read_ca_text, unix_seconds, write_private};
use fleetkey_identity::{CaKey, FleetCa, FleetRoots, Validity};
use fleetkey_vault::files;
use rand_core::OsRng;
use zeroize::Zeroizing;

use super::ca::{ca_file, root_passphrase};
use super::show;

/// Make a new CA that issues from now on; the one before goes on counting until it is retired.
///
/// The root's key is read from the file that `fleetkey init` wrote it to; FLEETKEY_ROOT_PASSPHRASE opens it where it is
/// encrypted. A running `fleetkey serve` takes the new CA by itself. Devices come over when they renew their certificates,
/// those that were made by hand never: `fleetkey ca show` says who is left.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey ca roll --root-key /media/safe/root-ca.pem
  fleetkey ca roll --root --root-key /media/safe/root-ca.pem --new-root-key /media/safe/root-2.pem")]
pub(crate) struct Roll {
    /// The root's certificate and key; not needed where the root itself issues.
    #[arg(long, value_name = "FILE")]
    root_key: Option<PathBuf>,
    /// Make a new root too, which the old one vouches for: devices pin it when they renew.
    #[arg(long, requires = "new_root_key")]
    root: bool,
    /// Make the new CA's key in the PKCS #11 token of the settings, under this label: it never leaves it.
    #[arg(long, value_name = "LABEL")]
    pkcs11: Option<String>,
    /// Where the new root's key is written.
    #[arg(long, value_name = "FILE", requires = "root")]
    new_root_key: Option<PathBuf>,
}

impl Roll {
    pub(crate) fn run(self, config: &Config, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        let identity = &config.identity;
        let before = read_ca(ca_file(config)?, identity)?;
        let pinned = FleetRoots::from_pem(&files::read(&identity.roots)?)
            .with_context(|| identity.roots.display().to_string())?;
        if before.certificates().count() > 1 {
            bail!("the root is being replaced already: `fleetkey ca retire` the old one first");
        }
        let passphrase = root_passphrase()?;
        let root = match &self.root_key {
            Some(path) => read_root(path, passphrase.clone(), config)?,
            None if before.is_root() => read_ca(ca_file(config)?, identity)?,
            None => bail!("name the file of the root's key: --root-key FILE"),
        };
        if !pinned.ders().iter().any(|der| der == root.certificate_der()) {
            bail!("this is no root of the fleet: it is not in {}", identity.roots.display());
        }
        let in_token = label_in(&files::read_secret(ca_file(config)?)?).is_some();
        if in_token && self.pkcs11.is_none() {
            bail!(
                "the CA's key is in a token, and the next one would be in a file: name it with --pkcs11 LABEL"
            );
        }
        let key = match &self.pkcs11 {
            Some(label) => Some(generate(identity.pkcs11.as_ref().ok_or(TokenError::NotConfigured)?, label)?),
            None => None,
        };
        let always = Validity::without_end(i64::try_from(unix_seconds()).unwrap_or(i64::MAX));
        let after = match &self.new_root_key {
            None => below(&root, key, always)?,
            Some(path) => new_root(path, &root, key, always, passphrase.as_ref(), config)?,
        };
        let text = match &self.pkcs11 {
            Some(label) => Zeroizing::new(format!("{}{}", reference_to(label)?, after.certificates_pem())),
            None => like_before(&after, config)?,
        };
        CaFiles(identity).replace_issuing(before.id(), &text)?;
        if json {
            let made = serde_json::json!({ "ca": after.id().to_string(), "before": before.id().to_string() });
            return show::json(out, &made);
        }
        writeln!(
            out,
            "CA {} issues from now on; {} counts until `fleetkey ca retire {1}`",
            after.id(),
            before.id()
        )?;
        writeln!(
            out,
            "then renew what servers show: `fleetkey ca renew coordinator`, `fleetkey ca renew broker`"
        )?;
        if self.root {
            writeln!(out, "bring {} to every broker now", identity.roots.display())?;
        }
        Ok(())
    }
}

/// A CA below a root, over a key in a token or one of its own.
fn below(root: &FleetCa, key: Option<Arc<dyn CaKey>>, always: Validity) -> anyhow::Result<FleetCa> {
    Ok(match key {
        Some(key) => root.create_intermediate_over(key, always)?,
        None => root.create_intermediate(&mut OsRng, always)?,
    })
}

fn read_root(path: &Path, passphrase: Option<Zeroizing<String>>, config: &Config) -> anyhow::Result<FleetCa> {
    let token = config.identity.pkcs11.as_ref();
    let root = read_ca_text(path, &files::read_secret(path)?, passphrase, token)?;
    if !root.is_root() {
        bail!("{} is no root", path.display());
    }
    Ok(root)
}

/// A root of its own, in its file, with a CA below it that the old root vouches for too.
fn new_root(
    path: &Path,
    old: &FleetCa,
    key: Option<Arc<dyn CaKey>>,
    always: Validity,
    passphrase: Option<&Zeroizing<String>>,
    config: &Config,
) -> anyhow::Result<FleetCa> {
    let root = FleetCa::create(old.fleet(), &mut OsRng, always)?;
    let text = match passphrase {
        Some(passphrase) => root.to_encrypted_pem(passphrase, &mut OsRng).map(Zeroizing::new),
        None => root.to_pem(),
    };
    let issuing = below(&root, key, always)?;
    let issuing = {
        let cross = old.cross_certify(&issuing, always)?;
        issuing.with_cross(cross)?
    };
    let link = old.cross_certify(&root, always)?;
    write_private(path, text.context("the key is in memory")?.as_bytes(), false)?;
    CaFiles(&config.identity).add_root(&root, &link)?;
    Ok(issuing)
}

/// The file of a CA, encrypted if that of the one before is.
fn like_before(after: &FleetCa, config: &Config) -> anyhow::Result<Zeroizing<String>> {
    let before = files::read_secret(ca_file(config)?)?;
    let text = if before.contains("BEGIN ENCRYPTED PRIVATE KEY") {
        let passphrase = ca_passphrase(&config.identity)?.context("the CA's passphrase")?;
        after.to_encrypted_pem(passphrase.trim_end_matches(['\r', '\n']), &mut OsRng).map(Zeroizing::new)
    } else {
        after.to_pem()
    };
    text.context("the key is in memory")
}

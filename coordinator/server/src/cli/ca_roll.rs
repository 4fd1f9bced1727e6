//! `fleetkey ca roll`: another CA, or another root, in the place of the one that issues.
//!
//! It works on the files alone, as the root's key is for no service to read; `fleetkey serve` takes what it finds.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use fleetkey_coordinator::config::Config;
use fleetkey_coordinator::pkcs11::{Pkcs11Config, TokenError, generate, label_in, open, reference_to};
use fleetkey_coordinator::{
    CaFiles, FileError, Rolling, ca_passphrase, read_ca, read_ca_text, unix_seconds, write_private,
};
use fleetkey_identity::{CaKey, FleetCa, FleetRoots, KeyId, Validity, certificates_from_pem};
use fleetkey_vault::files;
use rand_core::OsRng;
use zeroize::Zeroizing;

use super::ca::{ca_file, root_passphrase};
use super::show;

/// Make a new CA that issues from now on; the one before goes on counting until it is retired.
///
/// The root's key is read from the file that `fleetkey init` wrote it to; FLEETKEY_ROOT_PASSPHRASE opens it where it is
/// encrypted. A running `fleetkey serve` takes the new CA by itself. Devices come over when they renew their certificates,
/// those that were made by hand never: `fleetkey ca show` says who is left. A roll that was cut off goes on when the same
/// command is given again.
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
        let files = CaFiles(identity);
        let _alone = files.lock()?;
        let before = read_ca(ca_file(config)?, identity)?;
        let begun = files.begun_roll()?.filter(|begun| self.is_same(begun));
        if let Some(begun) =
            begun.as_ref().filter(|begun| begun.before != before.id() && self.has_made(begun))
        {
            // It was cut off when all was done but to say so.
            files.end_roll()?;
            return self.tell(config, before.id(), begun.before, json, out);
        }
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
        let begun = begun.filter(|begun| begun.before == before.id());
        let after = self.make(&root, before.id(), begun.as_ref(), passphrase, config)?;
        let text = match &self.pkcs11 {
            Some(label) => Zeroizing::new(format!("{}{}", reference_to(label)?, after.certificates_pem())),
            None => like_before(&after, config)?,
        };
        files.replace_issuing(before.id(), &text)?;
        files.end_roll()?;
        self.tell(config, after.id(), before.id(), json, out)
    }

    /// Makes the CA that is to issue, and the root above it where there is to be one: what `begun` has made already is taken.
    fn make(
        &self,
        root: &FleetCa,
        before: KeyId,
        begun: Option<&Rolling>,
        passphrase: Option<Zeroizing<String>>,
        config: &Config,
    ) -> anyhow::Result<FleetCa> {
        let files = CaFiles(&config.identity);
        let always = Validity::without_end(i64::try_from(unix_seconds()).unwrap_or(i64::MAX));
        let next = match &self.new_root_key {
            Some(path) => Some((path, next_root(path, root, begun, passphrase.clone(), config)?)),
            None => None,
        };
        let key = self.key_in_token(begun, config)?;
        let der = next.as_ref().map(|(_, next)| next.certificate_der().to_vec());
        files.begin_roll(&Rolling { before, label: self.pkcs11.clone(), root: der })?;
        if let Some((path, next)) = &next {
            write_root(path, next, passphrase.as_ref())?;
        }
        let key = match (&self.pkcs11, key) {
            (Some(label), None) => Some(generate(token(config)?, label)?),
            (_, key) => key,
        };
        let Some((_, next)) = next else { return below(root, key, always) };
        let issuing = below(&next, key, always)?;
        let cross = root.cross_certify(&issuing, always)?;
        // With the root's own validity it is the same whenever it is made.
        files.add_root(&next, &root.cross_certify(&next, next.validity())?)?;
        Ok(issuing.with_cross(cross)?)
    }

    /// Whether this is the roll that has begun, given again.
    fn is_same(&self, begun: &Rolling) -> bool {
        begun.label == self.pkcs11 && begun.root.is_some() == self.root
    }

    /// Whether the root that it was to make is in the file named here.
    fn has_made(&self, begun: &Rolling) -> bool {
        match (&self.new_root_key, &begun.root) {
            (Some(path), Some(root)) => holds(path, root),
            (_, None) => true,
            (None, Some(_)) => false,
        }
    }

    /// The key that this roll made in the token before it was cut off; none where it is still to be made.
    fn key_in_token(
        &self,
        begun: Option<&Rolling>,
        config: &Config,
    ) -> anyhow::Result<Option<Arc<dyn CaKey>>> {
        let Some(label) = &self.pkcs11 else { return Ok(None) };
        reference_to(label)?;
        match (open(token(config)?, label), begun) {
            (Ok(key), Some(_)) => Ok(Some(key)),
            (Ok(_), None) => Err(TokenError::Taken { label: label.clone() }.into()),
            (Err(TokenError::NotOneKey { count: 0, .. }), _) => Ok(None),
            (Err(error), _) => Err(error.into()),
        }
    }

    fn tell(
        &self,
        config: &Config,
        after: KeyId,
        before: KeyId,
        json: bool,
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        if json {
            let made = serde_json::json!({ "ca": after.to_string(), "before": before.to_string() });
            return show::json(out, &made);
        }
        writeln!(out, "CA {after} issues from now on; {before} counts until `fleetkey ca retire {before}`")?;
        writeln!(
            out,
            "then renew what servers show: `fleetkey ca renew coordinator`, `fleetkey ca renew broker`"
        )?;
        if self.root {
            writeln!(out, "bring {} to every broker now", config.identity.roots.display())?;
        }
        Ok(())
    }
}

fn token(config: &Config) -> Result<&Pkcs11Config, TokenError> {
    config.identity.pkcs11.as_ref().ok_or(TokenError::NotConfigured)
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

/// The next root: the one that this roll made before it was cut off, or a new one.
fn next_root(
    path: &Path,
    old: &FleetCa,
    begun: Option<&Rolling>,
    passphrase: Option<Zeroizing<String>>,
    config: &Config,
) -> anyhow::Result<FleetCa> {
    if begun.and_then(|begun| begun.root.as_ref()).is_some_and(|root| holds(path, root)) {
        return read_root(path, passphrase, config);
    }
    if path.exists() {
        return Err(FileError::Exists { path: path.to_owned() }.into());
    }
    let always = Validity::without_end(i64::try_from(unix_seconds()).unwrap_or(i64::MAX));
    Ok(FleetCa::create(old.fleet(), &mut OsRng, always)?)
}

/// Whether this file is that of the root with this certificate (DER).
fn holds(path: &Path, root: &[u8]) -> bool {
    let found = files::read_secret(path).ok().and_then(|text| certificates_from_pem(&text).ok());
    found.is_some_and(|found| found.first().is_some_and(|der| der == root))
}

/// Writes the file of a root, if it is not there already.
fn write_root(path: &Path, root: &FleetCa, passphrase: Option<&Zeroizing<String>>) -> anyhow::Result<()> {
    if holds(path, root.certificate_der()) {
        return Ok(());
    }
    let text = match passphrase {
        Some(passphrase) => root.to_encrypted_pem(passphrase, &mut OsRng).map(Zeroizing::new),
        None => root.to_pem(),
    };
    Ok(write_private(path, text.context("the key is in memory")?.as_bytes(), false)?)
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

//! `fleetkey ca`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use fleetkey_coordinator::api::{CaList, CaView, RetiredView, Retirement};
use fleetkey_coordinator::config::{CA_PASSPHRASE_VARIABLE, Config, ROOT_PASSPHRASE_VARIABLE};
use fleetkey_coordinator::{CaFiles, Cas, ServeError, read_ca, read_ca_text, when, write_private};
use fleetkey_identity::{Crl, FleetCa, FleetRoots, KeyId};
use fleetkey_vault::files;
use rand_core::OsRng;
use zeroize::Zeroizing;

use super::ca_roll::Roll;
use super::client::{Client, ClientOptions, read_config, segment};
use super::show;

/// A passphrase that somebody could guess protects nothing.
const MIN_PASSPHRASE_CHARACTERS: usize = 12;

#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Show the fleet's CA: its fleet, whether it is a root, whether its key is encrypted.
    Show,
    Protect(Protect),
    Roll(Roll),
    Retire(Retire),
    Renew(Renew),
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
            Self::Show => show_ca(&config, options, json, out),
            Self::Roll(roll) => roll.run(&config, json, out),
            Self::Renew(renew) => renew.run(&config, options, json, out),
            Self::Retire(retire) => retire.run(&Client::connect(options)?, json, out),
            Self::Protect(protect) => protect.run(&config, json, out),
            Self::Crl => show_crl(&config, json, out),
        }
    }
}

/// What the root's key is encrypted under, where something is said of it.
pub(super) fn root_passphrase() -> anyhow::Result<Option<Zeroizing<String>>> {
    let Ok(passphrase) = std::env::var(ROOT_PASSPHRASE_VARIABLE) else { return Ok(None) };
    let passphrase = Zeroizing::new(passphrase);
    check_passphrase(&passphrase)?;
    Ok(Some(passphrase))
}

fn check_passphrase(passphrase: &str) -> anyhow::Result<()> {
    if passphrase.chars().count() < MIN_PASSPHRASE_CHARACTERS {
        bail!("the passphrase has fewer than {MIN_PASSPHRASE_CHARACTERS} characters: choose a longer one");
    }
    Ok(())
}

pub(super) fn ca_file(config: &Config) -> anyhow::Result<&PathBuf> {
    config.identity.ca.as_ref().context("the settings name no CA: set `ca` under [identity]")
}

fn show_ca(config: &Config, options: &ClientOptions, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let path = ca_file(config)?;
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let is_encrypted = text.contains("BEGIN ENCRYPTED PRIVATE KEY");
    let cas = Cas::read(&config.identity)?.context("the settings name no CA")?;
    let ca = &cas.issuing;
    let kind = if ca.is_root() { "root" } else { "intermediate" };
    let list = Client::connect(options).and_then(|client| client.get("/v1/ca"));
    let list: Option<CaList> = list.ok().and_then(|list| serde_json::from_value(list).ok());
    if json {
        let ids = |all: &mut dyn Iterator<Item = String>| all.collect::<Vec<_>>();
        let shown = serde_json::json!({
            "fleet": ca.fleet(), "kind": kind, "file": path, "key_encrypted": is_encrypted,
            "ca": ca.id().to_string(),
            "former": ids(&mut cas.former.iter().map(|ca| ca.id().to_string())),
            "retired": ids(&mut cas.retired.iter().map(|ca| ca.id().to_string())),
            "hanging": list,
        });
        return show::json(out, &shown);
    }
    let key = if fleetkey_coordinator::pkcs11::label_in(&text).is_some() {
        "in a PKCS #11 token"
    } else if is_encrypted {
        "encrypted under a passphrase"
    } else {
        "NOT encrypted: `fleetkey ca protect` encrypts it"
    };
    writeln!(out, "fleet {}", ca.fleet())?;
    let roots = std::fs::read_to_string(&config.identity.roots).unwrap_or_default();
    for root in fleetkey_identity::certificates_from_pem(&roots).unwrap_or_default() {
        writeln!(out, "root {}", KeyId::of_certificate(&root))?;
    }
    writeln!(out, "CA {} issues: {kind} in {}", ca.id(), path.display())?;
    writeln!(out, "  its key is {key}")?;
    for former in &cas.former {
        let view =
            list.as_ref().and_then(|list| list.former.iter().find(|view| view.id == former.id().to_string()));
        let hanging = match view {
            Some(CaView { devices, coordinator, .. }) => {
                let own = if *coordinator { ", and the coordinator's certificate" } else { "" };
                format!("{}{own} still hang on it", show::count(*devices as u64, "device"))
            }
            None => "what hangs on it only a running coordinator tells".to_owned(),
        };
        writeln!(out, "CA {} issued before: {hanging}", former.id())?;
    }
    for retired in &cas.retired {
        writeln!(out, "CA {} is retired", retired.id())?;
    }
    Ok(())
}

/// Renew the certificate of the coordinator or a broker, on the key that it has.
///
/// `fleetkey serve` renews the coordinator's by itself when two thirds of its time are over. A running `fleetkey serve` and a
/// running `fleetkey-broker` take a certificate that has changed; no connection breaks.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey ca renew coordinator
  fleetkey ca renew broker
  fleetkey ca renew broker --certificate /tmp/of-the-second-broker.crt")]
pub(crate) struct Renew {
    /// Whose.
    #[arg(value_enum)]
    whose: Whose,
    /// The certificate that is replaced, instead of the coordinator's in the settings, or broker/broker.crt beside them.
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Whose {
    Coordinator,
    Broker,
}

impl Renew {
    fn run(
        self,
        config: &Config,
        options: &ClientOptions,
        json: bool,
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        let home = options.config.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
        let path = self.certificate.unwrap_or_else(|| match self.whose {
            Whose::Coordinator => config.identity.certificate.clone(),
            Whose::Broker => home.join("broker").join("broker.crt"),
        });
        let _alone = CaFiles(&config.identity).lock()?;
        let ca = read_ca(ca_file(config)?, &config.identity)?;
        let roots = FleetRoots::from_pem(&std::fs::read_to_string(&config.identity.roots)?)?;
        // A certificate of the time of another root names that one.
        roots.hear_of(&ca.certificates().map(<[u8]>::to_vec).collect::<Vec<_>>());
        fleetkey_coordinator::renew(&path, &ca, &roots, fleetkey_coordinator::unix_seconds())?;
        if json {
            return show::json(out, &serde_json::json!({ "certificate": path }));
        }
        writeln!(out, "renewed {}", path.display())?;
        Ok(())
    }
}

/// Take nothing more from a CA that issued before, or from a root that has been replaced.
///
/// It refuses while somebody would be cut off. The CA's last revocation list names all that it issued; its key is deleted.
/// A root's key is not deleted, but no longer read.
#[derive(Debug, Args)]
pub(crate) struct Retire {
    /// Its id, as `fleetkey ca show` tells it.
    ca: String,
    /// Even if that cuts somebody off.
    #[arg(long)]
    force: bool,
}

impl Retire {
    fn run(self, client: &Client, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        let path = format!("/v1/ca/{}/retire", segment(&self.ca));
        let answer = client.post(&path, &Retirement { force: self.force })?;
        if json {
            return show::json(out, &answer);
        }
        let retired: RetiredView = serde_json::from_value(answer).context("read the answer")?;
        writeln!(out, "CA {} is retired", retired.ca)?;
        if let Some(key) = retired.root_key {
            writeln!(out, "its key is in {}: put it away, off this host", key.display())?;
        }
        Ok(())
    }
}

impl Protect {
    fn run(self, config: &Config, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        let path = ca_file(config)?;
        let _alone = CaFiles(&config.identity).lock()?;
        let passphrase = match (&self.passphrase_file, std::env::var(CA_PASSPHRASE_VARIABLE)) {
            (Some(file), _) => {
                std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?
            }
            (None, Ok(passphrase)) => passphrase,
            (None, Err(_)) => bail!("no passphrase: set {CA_PASSPHRASE_VARIABLE}, or name --passphrase-file"),
        };
        let passphrase = Zeroizing::new(passphrase);
        let passphrase = passphrase.trim_end_matches(['\r', '\n']);
        check_passphrase(passphrase)?;
        // All are read before one is written, and that of the CA that issues is changed last.
        let former = Cas::kept_files(&config.identity)?;
        let mut cas = Vec::new();
        for file in former.iter().chain([path]) {
            cas.push((file, read_under_either(file, config, passphrase)?));
        }
        for (file, ca) in &cas {
            match ca.to_encrypted_pem(passphrase, &mut OsRng) {
                Some(encrypted) => write_private(file, encrypted.as_bytes(), true)?,
                None if file == &path => bail!("the key is not in this file"),
                // It is in a token.
                None => {}
            }
        }
        if json {
            let former = former.as_slice();
            return show::json(
                out,
                &serde_json::json!({ "file": path, "former": former, "key_encrypted": true }),
            );
        }
        writeln!(out, "the key in {} is encrypted now", path.display())?;
        writeln!(out, "copies of the file as it was still hold it in the clear: find and delete them")?;
        Ok(())
    }
}

/// Reads a CA under the passphrase of the settings or, where a run that was cut off has come to it already, under the next.
fn read_under_either(file: &Path, config: &Config, next: &str) -> anyhow::Result<FleetCa> {
    let identity = &config.identity;
    Ok(match read_ca(file, identity) {
        Err(ServeError::CaPassphrase { path, why }) => {
            let text = files::read_secret(file)?;
            let next = Some(Zeroizing::new(next.to_owned()));
            // What is said is what is wrong with the passphrase that it should be under.
            read_ca_text(file, &text, next, identity.pkcs11.as_ref())
                .map_err(|_| ServeError::CaPassphrase { path, why })?
        }
        read => read?,
    })
}

fn show_crl(config: &Config, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let path = &config.enrolment.crl;
    let shown = || path.display().to_string();
    let bytes = std::fs::read(path)
        .with_context(|| format!("read {}: is `fleetkey serve` running, with the CA?", shown()))?;
    let mut lists = Crl::read_all(&bytes).with_context(shown)?;
    let roots_file = &config.identity.roots;
    let roots = std::fs::read_to_string(roots_file).with_context(|| roots_file.display().to_string())?;
    let roots = FleetRoots::from_pem(&roots).with_context(|| roots_file.display().to_string())?;
    let intermediates = fleetkey_identity::certificates_among_crls(&String::from_utf8_lossy(&bytes));
    for list in &lists {
        match roots.check_crl(list, &intermediates) {
            // Of a retired CA whose root is retired, too.
            Err(_) if list.is_last() => {}
            checked => checked.with_context(shown)?,
        }
    }
    lists.retain(|list| roots.check_crl(list, &intermediates).is_ok());
    if json {
        let shown: Vec<_> = lists.iter().map(|list| crl_json(path, list)).collect();
        // One CA is the usual case, and was the only one.
        return match shown.as_slice() {
            [one] => show::json(out, one),
            several => show::json(out, &serde_json::json!({ "lists": several })),
        };
    }
    for list in &lists {
        write_crl(list, out)?;
    }
    Ok(())
}

fn crl_json(path: &Path, list: &Crl) -> serde_json::Value {
    serde_json::json!({
        "file": path, "number": list.number,
        "this_update_unix_seconds": list.this_update_unix_seconds.unsigned_abs(),
        "next_update_unix_seconds": list.next_update_unix_seconds.map(i64::unsigned_abs),
        "is_last": list.is_last(),
        "revoked": list.revoked.keys().map(hex::encode).collect::<Vec<_>>(),
    })
}

fn write_crl(list: &Crl, out: &mut impl Write) -> anyhow::Result<()> {
    let made = when::show(list.this_update_unix_seconds.unsigned_abs());
    writeln!(out, "revocation list {} of {made}", list.number)?;
    if list.is_last() {
        writeln!(out, "  the last of a CA that is retired")?;
    } else if let Some(next) = list.next_update_unix_seconds {
        writeln!(out, "  valid until {}", when::show(next.unsigned_abs()))?;
    }
    writeln!(out, "  no longer counting: {}", show::count(list.revoked.len() as u64, "certificate"))?;
    for serial in list.revoked.keys() {
        writeln!(out, "  {}", hex::encode(serial))?;
    }
    Ok(())
}

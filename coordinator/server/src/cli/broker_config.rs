//! `fleetkey broker-config`: settings for brokers that have rules of their own and ask nobody.
//!
//! What such a broker cannot be told is said in the files themselves: rules are static, so that any device of the fleet
//! may read any cell's topic, which costs privacy of traffic volume, not keys.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use fleetkey_coordinator::config::Config;
use fleetkey_identity::{
    FleetRoots, Role, certificates_from_pem, chain_from_pem, chain_to_pem, read_certificate,
};
use fleetkey_wire::{FleetId, Generation};

use super::client::{ClientOptions, read_config};

/// Renewals of the coordinator's certificate that the rules hold through.
const GENERATIONS: u32 = 16;

/// Which broker.
#[derive(Debug, Subcommand)]
pub(crate) enum BrokerConfig {
    Mosquitto(Mosquitto),
}

/// Write mosquitto.conf and its access rules.
///
/// Clients are who their certificates say. A device reads its own `down` and any cell, and writes its own `up`; the
/// coordinator writes cells and `down`, and reads every `up`. Run it again, with --force, when the CRL is first
/// published, when a CA is rolled or retired, and each time the coordinator's certificate has been renewed 16 times.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey broker-config mosquitto --config fleet/fleetkey.toml --out /etc/mosquitto/fleet
  mosquitto -c /etc/mosquitto/fleet/mosquitto.conf")]
pub(crate) struct Mosquitto {
    /// The directory to write to.
    #[arg(long, value_name = "DIR", default_value = "mosquitto")]
    out: PathBuf,
    /// Where mosquitto finds broker.crt, broker.key and fleet.crl, instead of `broker` beside the settings.
    #[arg(long, value_name = "DIR")]
    files: Option<PathBuf>,
    /// Where mosquitto listens, instead of on every address at the port of the broker's URL.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Write over what is there.
    #[arg(long)]
    force: bool,
}

/// Everything that the files are made of.
struct Facts {
    fleet: FleetId,
    generation: Generation,
    listen: String,
    files: PathBuf,
    has_crl: bool,
    acl: PathBuf,
    cas: PathBuf,
}

impl BrokerConfig {
    pub(crate) fn run(self, options: &ClientOptions, out: &mut impl Write) -> anyhow::Result<()> {
        match self {
            Self::Mosquitto(mosquitto) => mosquitto.run(options, out),
        }
    }
}

impl Mosquitto {
    fn run(self, options: &ClientOptions, out: &mut impl Write) -> anyhow::Result<()> {
        let config = read_config(options.config.as_deref())?;
        let (fleet, generation) = identity(&config)?;
        std::fs::create_dir_all(&self.out).with_context(|| format!("make {}", self.out.display()))?;
        let directory = absolute(&self.out)?;
        let home = options.config.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
        let files = absolute(&self.files.unwrap_or_else(|| home.join("broker")))?;
        let facts = Facts {
            fleet,
            generation,
            listen: match self.listen {
                Some(address) => format!("{} {}", address.port(), address.ip()),
                None => config.broker.url()?.port().to_string(),
            },
            has_crl: files.join("fleet.crl").exists(),
            files,
            acl: directory.join("acl"),
            cas: directory.join("cas.pem"),
        };
        let cas = ca_certificates(&config)?;
        let files = [("acl", facts.acl()), ("cas.pem", cas), ("mosquitto.conf", facts.mosquitto_conf())];
        for (name, text) in files {
            let path = directory.join(name);
            let mut how = OpenOptions::new();
            how.write(true);
            if self.force {
                how.create(true).truncate(true)
            } else {
                how.create_new(true)
            };
            let mut file = match how.open(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    bail!("{} exists already: --force writes over it", path.display())
                }
                opened => opened.with_context(|| format!("write {}", path.display()))?,
            };
            file.write_all(text.as_bytes()).with_context(|| format!("write {}", path.display()))?;
            writeln!(out, "wrote {}", path.display())?;
        }
        if !facts.has_crl {
            let crl = facts.files.join("fleet.crl");
            writeln!(
                out,
                "there is no {}: until it is named in mosquitto.conf, revoked devices get in",
                crl.display()
            )?;
        }
        Ok(())
    }
}

impl Facts {
    fn mosquitto_conf(&self) -> String {
        let Self { fleet, listen, acl, cas, .. } = self;
        let file = |name: &str| self.files.join(name).display().to_string();
        let (certificate, key, cas) = (file("broker.crt"), file("broker.key"), cas.display());
        let crl_line = format!("{}crlfile {}", if self.has_crl { "" } else { "#" }, file("fleet.crl"));
        let acl = acl.display();
        format!(
            r#"# mosquitto 2.0 for fleet {fleet}. Made by `fleetkey broker-config mosquitto`.
per_listener_settings false

listener {listen}
# Clients are who their certificates say: the common name is the user name, and the client id too, so that nobody takes
# another's session over.
require_certificate true
use_identity_as_username true
use_username_as_clientid true
allow_anonymous false
tls_version tlsv1.3
# The roots, and the CAs below them. Make it anew when a CA is rolled or retired.
cafile {cas}
certfile {certificate}
keyfile {key}
# Revoked devices. Start mosquitto again when it has changed: sessions that are there end then, too.
{crl_line}

acl_file {acl}

# The coordinator confirms end to end, and nothing is kept.
max_qos 1
retain_available false
persistence false
persistent_client_expiration 1h
max_packet_size 66560
max_topic_alias 0
max_inflight_messages 64
max_queued_messages 512
max_queued_bytes 1048576
max_keepalive 1200
sys_interval 0
set_tcp_nodelay true
"#
        )
    }

    fn acl(&self) -> String {
        let Self { fleet, generation, .. } = self;
        let mut text = format!(
            r#"# Access rules for fleet {fleet}. Made by `fleetkey broker-config mosquitto`.

# A device, by the common name of its certificate. Any cell: who is in which, mosquitto cannot be told.
pattern read fk/{fleet}/dev/%u/down
pattern write fk/{fleet}/dev/%u/up
pattern read fk/{fleet}/cell/+
"#
        );
        text.push_str("\n# The coordinator, through renewals of its certificate.\n");
        for generation in generation.0..generation.0.saturating_add(GENERATIONS) {
            text.push_str(&format!(
                "user coordinator:{generation}\n\
                 topic write fk/{fleet}/cell/+\n\
                 topic write fk/{fleet}/dev/+/down\n\
                 topic read fk/{fleet}/dev/+/up\n"
            ));
        }
        text
    }
}

/// The pinned roots, and the CAs that they have certified and that still count: a device shows for long what it was given,
/// which may name a root that is gone.
fn ca_certificates(config: &Config) -> anyhow::Result<String> {
    let read =
        |path: &Path| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let path = &config.identity.roots;
    let roots = FleetRoots::from_pem(&read(path)?).with_context(|| path.display().to_string())?;
    let former = std::fs::read_dir(&config.identity.former_cas).into_iter().flatten().flatten();
    let former =
        former.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|is| is == "pem"));
    let mut files: Vec<PathBuf> = former.collect();
    files.sort();
    let mut all = roots.ders();
    for path in config.identity.ca.iter().chain(&files).filter(|path| path.exists()) {
        let certificates = certificates_from_pem(&read(path)?).with_context(|| path.display().to_string())?;
        for der in certificates {
            if roots.certifies(&der) && !all.contains(&der) {
                all.push(der);
            }
        }
    }
    Ok(chain_to_pem(&all))
}

/// The fleet, and the generation of its coordinator's certificate.
fn identity(config: &Config) -> anyhow::Result<(FleetId, Generation)> {
    let read =
        |path: &Path| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let roots = &config.identity.roots;
    let fleet = FleetRoots::from_pem(&read(roots)?).with_context(|| roots.display().to_string())?.fleet();
    let path = &config.identity.certificate;
    let chain = chain_from_pem(&read(path)?).with_context(|| path.display().to_string())?;
    let leaf = chain.first().with_context(|| format!("{} holds no certificate", path.display()))?;
    let role = read_certificate(leaf).with_context(|| path.display().to_string())?.role;
    let Role::Coordinator { generation } = role else {
        bail!("{} is not a coordinator's certificate, but one of {role}", path.display())
    };
    Ok((fleet, generation))
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("find {}", path.display()))
}

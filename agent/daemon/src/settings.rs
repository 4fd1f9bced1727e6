//! What a device is configured with: defaults, then the file, then `FLEETKEY_AGENT__…` variables, then flags.
//!
//! `fleetkey device provision NAME` writes a bundle: a directory with everything a device needs, readable by its owner
//! alone.
//!
//! ```text
//! agent.toml        this file; paths in it are relative to it
//! device.crt        the device's certificate, and its issuer's if that is no root (PEM)
//! device.key        its private key (PKCS #8, PEM)
//! fleet-roots.pem   the pinned roots of the fleet
//! coordinator.crt   the coordinator's certificate, as a start: newer ones come over the air
//! master.key        32 bytes in hexadecimal, under which everything stored is encrypted
//! ```
//!
//! The master key may instead be in the variable `FLEETKEY_AGENT_MASTER_KEY`. A key that is not known is refused by
//! name: a misspelt setting must not be a default in disguise.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Environment, File, FileFormat};
use fleetkey_agent_core::AgentConfig;
use fleetkey_identity::tls::{OwnCertificate, renewable_client_config};
use fleetkey_identity::{
    BadCertificate, BadPem, FleetRoots, IdentityKey, Role, chain_from_pem, read_certificate,
};
use fleetkey_mqtt::{BadBrokerUrl, BrokerUrl, Options};
use fleetkey_vault::{MasterKey, MasterKeyError};
use fleetkey_wire::{DeviceId, FleetId};
use serde::Deserialize;

use crate::est::EstError;
use crate::renewal::Renewal;
use crate::sqlite::SqliteStore;
use crate::task::{AgentSetup, StartError};

/// What every variable begins with; `FLEETKEY_AGENT__LOG__FILTER` is `filter` under `[log]`.
pub const ENVIRONMENT_PREFIX: &str = "FLEETKEY_AGENT";

/// The variable that holds the master key, where no file does.
pub const MASTER_KEY_VARIABLE: &str = "FLEETKEY_AGENT_MASTER_KEY";

/// Longest file of settings, keys or certificates that is read.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The fleet.
    pub fleet: FleetId,
    /// The device.
    pub device: DeviceId,
    /// `mqtts://host:port`, or `mqtt://host:port` without TLS.
    pub broker: String,
    /// Where the certificate is renewed, `https://host:port`; without it nobody renews it.
    #[serde(default)]
    pub est: Option<String>,
    /// The device's certificate.
    #[serde(default = "defaults::certificate")]
    pub certificate: PathBuf,
    /// The device's private key.
    #[serde(default = "defaults::key")]
    pub key: PathBuf,
    /// The fleet's roots.
    #[serde(default = "defaults::roots")]
    pub roots: PathBuf,
    /// The coordinator's certificate.
    #[serde(default = "defaults::coordinator")]
    pub coordinator: PathBuf,
    /// The file of the master key; not read when [`MASTER_KEY_VARIABLE`] is set.
    #[serde(default = "defaults::master_key")]
    pub master_key: PathBuf,
    /// The SQLite file that the agent remembers in.
    #[serde(default = "defaults::state")]
    pub state: PathBuf,
    /// Where applications reach the running agent.
    #[serde(default = "defaults::socket")]
    pub socket: PathBuf,
    /// The connection to the broker.
    #[serde(default)]
    pub mqtt: MqttSettings,
    /// Logs.
    #[serde(default)]
    pub log: LogSettings,
}

mod defaults {
    use std::path::PathBuf;

    pub(super) fn certificate() -> PathBuf {
        "device.crt".into()
    }
    pub(super) fn key() -> PathBuf {
        "device.key".into()
    }
    pub(super) fn roots() -> PathBuf {
        "fleet-roots.pem".into()
    }
    pub(super) fn coordinator() -> PathBuf {
        "coordinator.crt".into()
    }
    pub(super) fn master_key() -> PathBuf {
        "master.key".into()
    }
    pub(super) fn state() -> PathBuf {
        "state.db".into()
    }
    pub(super) fn socket() -> PathBuf {
        "agent.sock".into()
    }
}

/// The connection to the broker.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MqttSettings {
    /// More ways to the same broker, such as the other nodes of a cluster: when one is gone, the next is taken.
    pub others: Vec<String>,
    /// Longest silence before a ping: 5 to 65535.
    pub keep_alive_seconds: u16,
    /// Longest wait between two attempts to connect.
    pub max_backoff_seconds: u32,
}

/// Logs, which go to standard error.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// How they look.
    pub format: LogFormat,
    /// What is logged: `info`, or finer, such as `info,fleetkey_agent_core=debug`.
    pub filter: String,
}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// Lines of JSON.
    Json,
}

impl Default for MqttSettings {
    fn default() -> Self {
        Self { others: Vec::new(), keep_alive_seconds: 60, max_backoff_seconds: 60 }
    }
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { format: LogFormat::default(), filter: "info".into() }
    }
}

/// Settings, or files that they name, that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file cannot be read.
    #[error("read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's word on it.
        source: io::Error,
    },
    /// A file that is far too large to be what it should be.
    #[error("{} has {bytes} bytes, at most {MAX_FILE_BYTES} are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// A private key that others than its owner may read.
    #[error("{} is open to others than its owner (mode {mode:03o}): chmod 600 it, and consider the key known", path.display())]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A key that is not known, a value that does not fit, or no TOML at all.
    #[error("{}: {why}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong, by name.
        why: String,
    },
    /// Not a broker's address.
    #[error("{}: broker: {why}", path.display())]
    Broker {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: BadBrokerUrl,
    },
    /// A file of keys or certificates does not hold what it should.
    #[error("{}: {why}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: BadPem,
    },
    /// A certificate that the fleet's roots do not vouch for, or of somebody else.
    #[error("{}: {why}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: BadCertificate,
    },
    /// A certificate of the fleet that is not this device's.
    #[error("{} is the certificate of {got}, not of device {device}", path.display())]
    CertificateOfAnother {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        got: String,
        /// The device.
        device: DeviceId,
    },
    /// Not an EST server's address.
    #[error("est: {why}")]
    Est {
        /// What is wrong with it.
        why: String,
    },
    /// There is no master key.
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// Certificate and key cannot be used for TLS.
    #[error("TLS: {0}")]
    Tls(String),
    /// The state cannot be opened.
    #[error("{}: {why}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: StartError,
    },
}

/// Settings that flags put on top.
pub type Overrides = Vec<(&'static str, String)>;

impl Settings {
    /// Reads a file, and puts the environment and `overrides` on top of it.
    ///
    /// # Errors
    /// [`SettingsError`], naming the file and what is wrong in it.
    pub fn load(path: &Path, overrides: Overrides) -> Result<Self, SettingsError> {
        let environment = Environment::with_prefix(ENVIRONMENT_PREFIX)
            .prefix_separator("__")
            .separator("__")
            .try_parsing(true);
        Self::from_layers(path, &read(path)?, environment, overrides)
    }

    /// Reads the text of a file, with nothing on top of it.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        Self::from_layers(path, text, Environment::default().source(Some(Default::default())), Vec::new())
    }

    fn from_layers(
        path: &Path,
        text: &str,
        environment: Environment,
        overrides: Overrides,
    ) -> Result<Self, SettingsError> {
        let bad = |error: config::ConfigError| SettingsError::Bad {
            path: path.to_owned(),
            // One line: TOML's own errors draw a picture of the place.
            why: error.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
        };
        let mut layers = config::Config::builder()
            .add_source(File::from_str(text, FileFormat::Toml))
            .add_source(environment);
        for (key, value) in overrides {
            layers = layers.set_override(key, value).map_err(bad)?;
        }
        let settings: Self = layers.build().and_then(config::Config::try_deserialize).map_err(bad)?;
        settings
            .broker
            .parse::<BrokerUrl>()
            .map_err(|why| SettingsError::Broker { path: path.to_owned(), why })?;
        Ok(settings.anchored(path))
    }

    /// Paths are relative to the directory of the file that names them.
    fn anchored(mut self, path: &Path) -> Self {
        let home = path.parent().unwrap_or(Path::new(""));
        let Self { certificate, key, roots, coordinator, master_key, state, socket, .. } = &mut self;
        for path in [certificate, key, roots, coordinator, master_key, state, socket] {
            *path = home.join(&*path);
        }
        self
    }

    /// Reads every file that the settings name, opens the state, and puts an agent together.
    ///
    /// # Errors
    /// [`SettingsError`], naming the file and what is wrong with it.
    pub fn prepare(&self) -> Result<(AgentSetup, Option<Renewal>), SettingsError> {
        let pem = |path: &Path| {
            let path = path.to_owned();
            move |why: BadPem| SettingsError::Pem { path, why }
        };
        let roots = FleetRoots::from_pem(&read(&self.roots)?).map_err(pem(&self.roots))?;
        let chain = chain_from_pem(&read(&self.certificate)?).map_err(pem(&self.certificate))?;
        let identity = self.read_key()?;
        self.check_own(&chain, &roots, &identity)?;
        let coordinator_chain = chain_from_pem(&read(&self.coordinator)?).map_err(pem(&self.coordinator))?;
        let own =
            OwnCertificate::new(&chain, &identity).map_err(|error| SettingsError::Tls(error.to_string()))?;
        let mqtt = self.mqtt_options(&own, &roots)?;
        let renewal = self.renewal(chain, &identity, &roots, own)?;
        let master = match std::env::var_os(MASTER_KEY_VARIABLE) {
            Some(_) => MasterKey::from_env(MASTER_KEY_VARIABLE)?,
            None => MasterKey::from_file(&self.master_key)?,
        };
        let store = SqliteStore::open(&self.state, &master)
            .map_err(|error| SettingsError::State { path: self.state.clone(), why: error.into() })?;
        let config =
            AgentConfig { fleet: self.fleet, device: self.device, identity, roots, coordinator_chain };
        Ok((AgentSetup::new(config, Box::new(store), mqtt), renewal))
    }

    fn renewal(
        &self,
        chain: Vec<Vec<u8>>,
        key: &IdentityKey,
        roots: &FleetRoots,
        own: OwnCertificate,
    ) -> Result<Option<Renewal>, SettingsError> {
        let Some(est) = &self.est else { return Ok(None) };
        let est = est.parse().map_err(|why: EstError| SettingsError::Est { why: why.to_string() })?;
        let (roots, key, device) = (roots.clone(), key.clone(), self.device);
        let (file, roots_file) = (self.certificate.clone(), self.roots.clone());
        Ok(Some(Renewal { est, roots, roots_file, device, key, chain, own, file }))
    }

    fn read_key(&self) -> Result<IdentityKey, SettingsError> {
        let path = self.key.clone();
        let text = zeroize::Zeroizing::new(read(&path)?);
        check_private(&path)?;
        IdentityKey::from_pkcs8_pem(&text).map_err(|why| SettingsError::Pem { path, why })
    }

    /// The certificate is this device's, of this fleet, and for this key. Whether it is valid today is the broker's to
    /// judge: a device's clock may be anywhere.
    fn check_own(
        &self,
        chain: &[Vec<u8>],
        roots: &FleetRoots,
        key: &IdentityKey,
    ) -> Result<(), SettingsError> {
        let path = self.certificate.clone();
        let identity = match roots.verify(chain, None) {
            Ok(identity) => identity,
            Err(why) => return Err(SettingsError::Certificate { path, why }),
        };
        if identity.public_key != key.public_key() {
            return Err(SettingsError::Pem { path: self.key.clone(), why: BadPem::OtherKey });
        }
        if identity.fleet != self.fleet {
            let why = BadCertificate::OtherFleet { got: identity.fleet, expected: self.fleet };
            return Err(SettingsError::Certificate { path, why });
        }
        match identity.role {
            Role::Device(device) if device == self.device => Ok(()),
            other @ (Role::Device(_)
            | Role::Coordinator { .. }
            | Role::Broker
            | Role::Registrar
            | Role::Operator { .. }) => {
                Err(SettingsError::CertificateOfAnother { path, got: other.to_string(), device: self.device })
            }
        }
    }

    fn mqtt_options(&self, own: &OwnCertificate, roots: &FleetRoots) -> Result<Options, SettingsError> {
        let parse = |url: &String| -> Result<BrokerUrl, SettingsError> {
            url.parse().map_err(|why| SettingsError::Broker { path: self.certificate.clone(), why })
        };
        let url = parse(&self.broker)?;
        let mut options = Options::new(url.clone(), self.device.to_string());
        options.others = self.mqtt.others.iter().map(parse).collect::<Result<_, _>>()?;
        options.keep_alive = Duration::from_secs(self.mqtt.keep_alive_seconds.into());
        options.backoff.max = Duration::from_secs(self.mqtt.max_backoff_seconds.into());
        if url.is_tls() {
            let tls =
                renewable_client_config(own, roots).map_err(|error| SettingsError::Tls(error.to_string()))?;
            options.tls = Some(tls);
        }
        Ok(options)
    }
}

/// Whose certificate a file holds, with what came beside it, leaf first: to be made known to a running agent.
///
/// # Errors
/// When the file cannot be read, or holds no certificate of a fleet.
pub fn read_chain(path: &Path) -> Result<Vec<Vec<u8>>, SettingsError> {
    let chain =
        chain_from_pem(&read(path)?).map_err(|why| SettingsError::Pem { path: path.to_owned(), why })?;
    if let Some(leaf) = chain.first() {
        read_certificate(leaf).map_err(|why| SettingsError::Certificate { path: path.to_owned(), why })?;
    }
    Ok(chain)
}

fn read(path: &Path) -> Result<String, SettingsError> {
    let unreadable = |source| SettingsError::Unreadable { path: path.to_owned(), source };
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(SettingsError::TooLarge { path: path.to_owned(), bytes });
    }
    fs::read_to_string(path).map_err(unreadable)
}

#[cfg(unix)]
fn check_private(path: &Path) -> Result<(), SettingsError> {
    use std::os::unix::fs::PermissionsExt;
    let metadata =
        fs::metadata(path).map_err(|source| SettingsError::Unreadable { path: path.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(SettingsError::OpenToOthers { path: path.to_owned(), mode }) }
}

#[cfg(not(unix))]
fn check_private(_: &Path) -> Result<(), SettingsError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const IDS: &str = "fleet = '11111111-1111-4111-8111-111111111111'
device = '22222222-2222-4222-8222-222222222222'
";

    fn load(text: &str, variables: &[(&str, &str)], overrides: Overrides) -> Result<Settings, SettingsError> {
        let variables: HashMap<String, String> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let environment = Environment::with_prefix(ENVIRONMENT_PREFIX)
            .prefix_separator("__")
            .separator("__")
            .try_parsing(true)
            .source(Some(variables.into_iter().collect()));
        Settings::from_layers(Path::new("/etc/pump/agent.toml"), text, environment, overrides)
    }

    #[test]
    fn later_layers_win() {
        let text =
            format!("{IDS}broker = 'mqtt://a'\n[mqtt]\nkeep_alive_seconds = 7\n[log]\nfilter = 'warn'");
        let variables = [
            ("FLEETKEY_AGENT__BROKER", "mqtt://b"),
            ("FLEETKEY_AGENT__MQTT__KEEP_ALIVE_SECONDS", "8"),
            // Not a setting: the master key itself.
            ("FLEETKEY_AGENT_MASTER_KEY", "00"),
        ];
        let settings = load(&text, &variables, vec![("broker", "mqtt://c".into())]).unwrap();
        assert_eq!(settings.broker, "mqtt://c");
        assert_eq!(settings.mqtt.keep_alive_seconds, 8);
        assert_eq!(settings.log.filter, "warn");
        assert_eq!(settings.state, Path::new("/etc/pump/state.db"));
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        for (text, key) in
            [("brokr = 'mqtt://a'", "brokr"), ("broker = 'mqtt://a'\n[mqtt]\nkeepalive = 1", "keepalive")]
        {
            let refused = load(&format!("{IDS}{text}"), &[], vec![]).unwrap_err().to_string();
            assert!(refused.contains(key), "{refused}");
            assert!(refused.contains("/etc/pump/agent.toml"), "{refused}");
            assert!(!refused.contains('\n'), "{refused}");
        }
        let text = format!("{IDS}broker = 'mqtt://a'");
        let refused = load(&text, &[("FLEETKEY_AGENT__LOGG", "x")], vec![]).unwrap_err().to_string();
        assert!(refused.contains("logg"), "{refused}");
    }

    #[test]
    fn values_that_do_not_fit_are_refused_in_one_line() {
        for (text, what) in [
            (format!("{IDS}broker = 'tcp://x'"), "unknown scheme"),
            (IDS.to_owned(), "broker"),
            ("fleet = 'x'\ndevice = 'y'\nbroker = 'mqtt://a'".to_owned(), "UUID"),
            (format!("{IDS}broker = 'mqtt://a'\n[log]\nformat = 'xml'"), "format"),
            ("fleet = [".to_owned(), "agent.toml"),
        ] {
            let refused = load(&text, &[], vec![]).unwrap_err().to_string();
            assert!(refused.contains(what), "{refused}");
            assert!(!refused.contains('\n'), "{refused}");
        }
    }

    #[test]
    fn the_sample_configuration_loads_and_names_the_defaults() {
        let sample = include_str!("../../../deploy/agent.toml");
        let settings = load(sample, &[], vec![]).unwrap();
        let defaults = load(&format!("{IDS}broker = '{}'", settings.broker), &[], vec![]).unwrap();
        assert_eq!(Settings { fleet: defaults.fleet, device: defaults.device, ..settings }, defaults);
    }
}

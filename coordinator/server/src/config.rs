//! What `fleetkey serve` is configured with: defaults, then the file, then `FLEETKEY__…` variables, then flags.
//!
//! A key that is not known is refused by name: a misspelt setting must not be a default in disguise. Paths are
//! relative to the file they stand in.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use config::{Environment, File, FileFormat};
use fleetkey_coordinator_core::Timing;
use fleetkey_est::IdFrom;
use fleetkey_mqtt::{BadBrokerUrl, BrokerUrl};
use serde::Deserialize;

use crate::pkcs11::Pkcs11Config;
use fleetkey_vault::files::{self, FileError};

/// What every variable begins with; `FLEETKEY__API__LISTEN` is `listen` under `[api]`.
pub const ENVIRONMENT_PREFIX: &str = "FLEETKEY";

/// The variable that holds the master key, where no file does.
pub const MASTER_KEY_VARIABLE: &str = "FLEETKEY_MASTER_KEY";

/// The variable that holds the passphrase of the root's key.
pub const ROOT_PASSPHRASE_VARIABLE: &str = "FLEETKEY_ROOT_PASSPHRASE";

/// The variable that holds the passphrase of the CA's key, where no file does.
pub const CA_PASSPHRASE_VARIABLE: &str = "FLEETKEY_CA_PASSPHRASE";

/// Certificates that end sooner are renewed all day.
const MIN_DEVICE_DAYS: u32 = 7;

/// Where a broker is looked for that was not named.
pub const DEFAULT_BROKER_URL: &str = "mqtts://localhost:8883";

/// The API's address where none is set.
pub const DEFAULT_API_ADDRESS: &str = "127.0.0.1:7600";

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The SQLite file.
    pub database: PathBuf,
    /// The file of the master key; not read when [`MASTER_KEY_VARIABLE`] is set.
    pub master_key: PathBuf,
    /// Certificates and keys.
    pub identity: IdentityConfig,
    /// The HTTP API.
    pub api: ApiConfig,
    /// The connection to the broker.
    pub broker: BrokerConfig,
    /// Who is let in, and how long certificates are valid.
    pub enrolment: EnrolmentConfig,
    /// Manufacturers whose devices are let in by their own certificates.
    pub manufacturers: Vec<ManufacturerConfig>,
    /// Intervals.
    pub timing: TimingConfig,
    /// Logs.
    pub log: LogConfig,
}

/// Who is let in, and how long certificates are valid.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EnrolmentConfig {
    /// Where the EST server listens; without it there is none.
    pub listen: Option<SocketAddr>,
    /// Host names and addresses that devices reach it by.
    pub names: Vec<String>,
    /// Whether devices that show a claim come in at once; a claim may ask for an operator besides.
    pub claims: Approval,
    /// When a device that waits for an operator is to ask again.
    pub ask_again_seconds: u32,
    /// How long devices' certificates are valid, in days. They renew them when two thirds are over.
    pub device_days: u32,
    /// The file that the revocation list is put into, PEM, for brokers that read files.
    pub crl: PathBuf,
    /// How long a revocation list is valid, in hours. A new one is made four times as often, and at each revocation.
    pub crl_hours: u32,
}

/// Who says yes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approval {
    /// Nobody has to.
    #[default]
    Automatic,
    /// An operator: `fleetkey device approve`.
    Operator,
    /// Nobody can.
    Never,
}

/// A manufacturer whose devices are let in by their own certificates.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManufacturerConfig {
    /// A name, which is part of its devices' names.
    pub name: String,
    /// Its CA certificates, PEM.
    pub roots: PathBuf,
    /// Which name of a certificate tells its devices apart.
    #[serde(default)]
    pub device_from: IdFrom,
    /// Whether they come in at once.
    #[serde(default)]
    pub approval: Approval,
    /// What they are labelled with: `key=value,key=value`.
    #[serde(default)]
    pub labels: String,
}

/// Certificates and keys, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IdentityConfig {
    /// The fleet's roots.
    pub roots: PathBuf,
    /// The coordinator's certificate, and its issuer's if that is no root.
    pub certificate: PathBuf,
    /// The coordinator's private key.
    pub key: PathBuf,
    /// The CA's certificate and private key; without it no devices are provisioned here.
    pub ca: Option<PathBuf>,
    /// The file of the passphrase that opens the CA's key; not read when [`CA_PASSPHRASE_VARIABLE`] is set.
    pub ca_passphrase: Option<PathBuf>,
    /// The directory of the CAs that issued before, and still count.
    pub former_cas: PathBuf,
    /// The token that the CA's key is in, if it is in none of these files.
    pub pkcs11: Option<Pkcs11Config>,
}

/// The HTTP API.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether that may be another address than the host's own: there is no TLS in front of it.
    pub allow_remote: bool,
    /// The file of the operator's token.
    pub token: PathBuf,
    /// The file of the brokers' token.
    pub broker_token: PathBuf,
}

/// The connection to the broker.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerConfig {
    /// `mqtts://host:port`, or `mqtt://host:port` without TLS.
    pub url: String,
    /// More ways to the same broker, such as the other nodes of a cluster.
    pub others: Vec<String>,
    /// Where devices are told to find the broker, if they reach it by another name.
    pub device_url: Option<String>,
    /// Longest wait between two attempts to connect.
    pub max_backoff_seconds: u32,
}

/// Intervals that hold for the whole fleet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimingConfig {
    /// How often a device says hello without being asked.
    pub hello_interval_seconds: Option<u32>,
    /// After how long without a fresh answer a device stops sealing.
    pub max_silence_seconds: Option<u32>,
    /// How long after a statement stragglers that are online are sent it again, at first.
    pub resend_milliseconds: Option<u64>,
    /// The longest that this goes.
    pub resend_max_milliseconds: Option<u64>,
    /// How long a rekey for joins waits for confirmations before the next may follow.
    pub in_flight_milliseconds: Option<u64>,
    /// How long devices' key updates are collected.
    pub update_window_milliseconds: Option<u64>,
    /// After how long a device may join afresh again.
    pub fresh_join_backoff_seconds: Option<u64>,
    /// Fresh joins within a day before a device is quarantined.
    pub fresh_joins_per_day: Option<u32>,
}

/// Logs, which go to standard error.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// How they look.
    pub format: LogFormat,
    /// What is logged: `info`, or finer, such as `info,fleetkey_coordinator=debug`.
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

impl Default for Config {
    fn default() -> Self {
        Self {
            database: "fleetkey.db".into(),
            master_key: "master.key".into(),
            identity: IdentityConfig::default(),
            api: ApiConfig::default(),
            broker: BrokerConfig::default(),
            enrolment: EnrolmentConfig::default(),
            manufacturers: Vec::new(),
            timing: TimingConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for IdentityConfig {
    fn default() -> Self {
        Self {
            roots: "fleet-roots.pem".into(),
            certificate: "coordinator.crt".into(),
            key: "coordinator.key".into(),
            ca: None,
            ca_passphrase: None,
            former_cas: "former-cas".into(),
            pkcs11: None,
        }
    }
}

impl Default for EnrolmentConfig {
    fn default() -> Self {
        Self {
            listen: None,
            names: vec!["localhost".into(), "127.0.0.1".into()],
            claims: Approval::default(),
            ask_again_seconds: 30,
            device_days: 365,
            crl: "fleet.crl".into(),
            crl_hours: 48,
        }
    }
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            listen: DEFAULT_API_ADDRESS.parse().expect("it is an address"),
            allow_remote: false,
            token: "api.token".into(),
            broker_token: "broker.token".into(),
        }
    }
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self { url: DEFAULT_BROKER_URL.into(), others: Vec::new(), device_url: None, max_backoff_seconds: 15 }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::default(), filter: "info".into() }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
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
    /// The API would be open to other hosts.
    #[error("{}: api.listen is {address}, which other hosts reach: set api.allow_remote if that is meant", path.display())]
    Remote {
        /// The file.
        path: PathBuf,
        /// The address.
        address: SocketAddr,
    },
}

/// Settings that flags put on top.
pub type Overrides = Vec<(&'static str, String)>;

impl Config {
    /// Reads a file, and puts the environment and `overrides` on top of it.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file and what is wrong in it.
    pub fn load(path: &Path, overrides: Overrides) -> Result<Self, ConfigError> {
        let environment = Environment::with_prefix(ENVIRONMENT_PREFIX)
            .prefix_separator("__")
            .separator("__")
            .try_parsing(true);
        Self::from_layers(path, &files::read(path)?, environment, overrides)
    }

    /// Reads the text of a file, with nothing on top of it.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::from_layers(path, text, Environment::default().source(Some(Default::default())), Vec::new())
    }

    fn from_layers(
        path: &Path,
        text: &str,
        environment: Environment,
        overrides: Overrides,
    ) -> Result<Self, ConfigError> {
        let bad = |error: config::ConfigError| ConfigError::Bad {
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
        let config: Self = layers.build().and_then(config::Config::try_deserialize).map_err(bad)?;
        config.anchored(path).checked(path)
    }

    /// Paths are relative to the directory of the file that names them.
    fn anchored(mut self, path: &Path) -> Self {
        let home = path.parent().unwrap_or(Path::new(""));
        let Self { database, master_key, identity, api, enrolment, manufacturers, .. } = &mut self;
        let IdentityConfig { roots, certificate, key, ca, ca_passphrase, former_cas, pkcs11 } = identity;
        let pin = pkcs11.as_mut().and_then(|token| token.pin_file.as_mut());
        let named = [
            database,
            master_key,
            roots,
            certificate,
            key,
            former_cas,
            &mut api.token,
            &mut api.broker_token,
            &mut enrolment.crl,
        ];
        let makers = manufacturers.iter_mut().map(|manufacturer| &mut manufacturer.roots);
        for path in
            named.into_iter().chain(ca.as_mut()).chain(ca_passphrase.as_mut()).chain(pin).chain(makers)
        {
            *path = home.join(&*path);
        }
        self
    }

    fn checked(self, path: &Path) -> Result<Self, ConfigError> {
        let broker = |why| ConfigError::Broker { path: path.to_owned(), why };
        self.broker.url().map_err(broker)?;
        self.broker.others().map_err(broker)?;
        self.broker.device_url().map_err(broker)?;
        if self.enrolment.device_days < MIN_DEVICE_DAYS {
            let why = format!(
                "enrolment.device_days is {}: at least {MIN_DEVICE_DAYS}, or devices do nothing but renew",
                self.enrolment.device_days
            );
            return Err(ConfigError::Bad { path: path.to_owned(), why });
        }
        let address = self.api.listen;
        if !address.ip().is_loopback() && !self.api.allow_remote {
            return Err(ConfigError::Remote { path: path.to_owned(), address });
        }
        Ok(self)
    }
}

impl BrokerConfig {
    /// Where the coordinator finds the broker.
    ///
    /// # Errors
    /// When it is no address.
    pub fn url(&self) -> Result<BrokerUrl, BadBrokerUrl> {
        self.url.parse()
    }

    /// More ways to it.
    ///
    /// # Errors
    /// When one is no address.
    pub fn others(&self) -> Result<Vec<BrokerUrl>, BadBrokerUrl> {
        self.others.iter().map(|url| url.parse()).collect()
    }

    /// Where devices find it.
    ///
    /// # Errors
    /// When it is no address.
    pub fn device_url(&self) -> Result<BrokerUrl, BadBrokerUrl> {
        self.device_url.as_deref().unwrap_or(&self.url).parse()
    }
}

impl TimingConfig {
    /// What is not set has the core's default.
    pub fn timing(&self) -> Timing {
        let default = Timing::default();
        Timing {
            hello_interval_seconds: self.hello_interval_seconds.unwrap_or(default.hello_interval_seconds),
            max_silence_seconds: self.max_silence_seconds.unwrap_or(default.max_silence_seconds),
            resend_milliseconds: self.resend_milliseconds.unwrap_or(default.resend_milliseconds),
            resend_max_milliseconds: self.resend_max_milliseconds.unwrap_or(default.resend_max_milliseconds),
            in_flight_milliseconds: self.in_flight_milliseconds.unwrap_or(default.in_flight_milliseconds),
            update_window_milliseconds: self
                .update_window_milliseconds
                .unwrap_or(default.update_window_milliseconds),
            fresh_join_backoff_seconds: self
                .fresh_join_backoff_seconds
                .unwrap_or(default.fresh_join_backoff_seconds),
            fresh_joins_per_day: self.fresh_joins_per_day.unwrap_or(default.fresh_joins_per_day),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn load(text: &str, variables: &[(&str, &str)], overrides: Overrides) -> Result<Config, ConfigError> {
        let variables: HashMap<String, String> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let environment = Environment::with_prefix(ENVIRONMENT_PREFIX)
            .prefix_separator("__")
            .separator("__")
            .try_parsing(true)
            .source(Some(variables.into_iter().collect()));
        Config::from_layers(Path::new("/etc/fleetkey/fleetkey.toml"), text, environment, overrides)
    }

    #[test]
    fn later_layers_win() {
        let text = "[api]\nlisten = '127.0.0.1:1'\n[broker]\nurl = 'mqtt://a'\n[log]\nfilter = 'warn'";
        let variables = [("FLEETKEY__API__LISTEN", "127.0.0.1:2"), ("FLEETKEY__BROKER__URL", "mqtt://b")];
        let config = load(text, &variables, vec![("broker.url", "mqtt://c".into())]).unwrap();
        assert_eq!(config.log.filter, "warn");
        assert_eq!(config.api.listen.port(), 2);
        assert_eq!(config.broker.url, "mqtt://c");
        assert_eq!(config.log.format, LogFormat::Text);
    }

    #[test]
    fn the_sample_configuration_loads_and_names_the_defaults() {
        let sample = include_str!("../../../deploy/coordinator.toml");
        let config = load(sample, &[], vec![]).unwrap();
        let mut defaults = load("", &[], vec![]).unwrap();
        defaults.identity.ca = config.identity.ca.clone();
        defaults.broker.device_url = config.broker.device_url.clone();
        assert_eq!(config.timing.timing(), defaults.timing.timing());
        defaults.timing = config.timing.clone();
        assert_eq!(config, defaults);
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let config = load("database = 'x.db'\nmaster_key = '/run/master'", &[], vec![]).unwrap();
        assert_eq!(config.database, Path::new("/etc/fleetkey/x.db"));
        assert_eq!(config.master_key, Path::new("/run/master"));
        assert_eq!(config.identity.ca, None);
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        for (text, key) in [("databse = 'x'", "databse"), ("[api]\nlisn = 'x'", "lisn"), ("[apii]", "apii")] {
            let refused = load(text, &[], vec![]).unwrap_err().to_string();
            assert!(refused.contains(key), "{refused}");
            assert!(refused.contains("/etc/fleetkey/fleetkey.toml"), "{refused}");
            assert!(!refused.contains('\n'), "{refused}");
        }
        let refused = load("", &[("FLEETKEY__LOGG__FILTER", "x")], vec![]).unwrap_err().to_string();
        assert!(refused.contains("logg"), "{refused}");
    }

    #[test]
    fn values_that_do_not_fit_are_refused_with_their_key() {
        for (text, what) in [
            ("[api]\nlisten = 'here'", "api.listen"),
            ("[timing]\nhello_interval_seconds = 'often'", "hello_interval_seconds"),
            ("[log]\nformat = 'xml'", "format"),
            ("[broker]\nurl = 'tcp://x'", "unknown scheme"),
            ("[api]\nlisten = '0.0.0.0:7600'", "api.allow_remote"),
            ("[api", "fleetkey.toml"),
        ] {
            let refused = load(text, &[], vec![]).unwrap_err().to_string();
            assert!(refused.contains(what), "{refused}");
            assert!(!refused.contains('\n'), "{refused}");
        }
        load("[api]\nlisten = '0.0.0.0:7600'\nallow_remote = true", &[], vec![]).unwrap();
    }
}

//! What `fleetkey-broker` is configured with: defaults, then the file, then `FLEETKEY_BROKER__…` variables, then flags.
//!
//! A key that is not known is refused by name: a misspelt setting must not be a default in disguise. Paths are
//! relative to the file they stand in.

mod error;
mod gate;
mod limits;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use config::{Environment, File, FileFormat};
use fleetkey_identity::tls::{OwnCertificate, renewable_server_config};
use fleetkey_identity::{FleetRoots, IdentityKey, Role, chain_from_pem};
use fleetkey_policy::CellAccess;
use fleetkey_policy_follow::PolicySource;
use fleetkey_wire::FleetId;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::certificate_file::CertificateFile;
use super::crl_file::{CrlFile, Crls};
use crate::config::{BrokerConfig, FanOutKind, Listener};

pub use error::SettingsError;
pub use gate::{EmqxSettings, GateSettings, GateSetup, KickSettings, RabbitMqSettings};
pub use limits::LimitSettings;

/// What every variable begins with; `FLEETKEY_BROKER__LISTEN__METRICS` is `metrics` under `[listen]`.
pub const ENVIRONMENT_PREFIX: &str = "FLEETKEY_BROKER";

/// Settings that are lists; in a variable their items are separated by commas.
const LISTS: [&str; 2] = ["listen.tls", "listen.insecure_loopback"];

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The fleet, for a broker without TLS; with TLS the fleet is that of the roots.
    pub fleet: Option<FleetId>,
    /// What carries cell messages to the members.
    pub fan_out: FanOutName,
    /// Certificates and keys.
    pub tls: TlsSettings,
    /// Addresses.
    pub listen: ListenSettings,
    /// Where the policy comes from.
    pub policy: PolicySettings,
    /// Answers for brokers that ask.
    pub gate: GateSettings,
    /// Everything that is bounded.
    pub limits: LimitSettings,
    /// Logs.
    pub log: LogSettings,
}

/// What carries cell messages to the members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FanOutName {
    /// The router of rumqttd.
    Router,
    /// A map from cell to sessions.
    #[default]
    ExactMap,
}

/// Certificates and keys, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// The fleet's roots.
    pub roots: PathBuf,
    /// The broker's certificate, and its issuer's if that is no root.
    pub certificate: PathBuf,
    /// The broker's private key.
    pub key: PathBuf,
    /// Certificates that no longer count. It is read again when it changes.
    pub crl: Option<PathBuf>,
}

/// Addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenSettings {
    /// MQTT over TLS with client certificates.
    pub tls: Vec<SocketAddr>,
    /// MQTT without TLS, where clients are whoever they say they are: loopback only, for tests and benchmarks.
    pub insecure_loopback: Vec<SocketAddr>,
    /// `/metrics` for Prometheus.
    pub metrics: Option<SocketAddr>,
}

/// Where the policy comes from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicySettings {
    /// Who may subscribe to a cell.
    pub cells: Cells,
    /// The coordinator's stream, `http://host:port/v1/policy`.
    pub url: Option<String>,
    /// The file of the token that the coordinator knows this broker by.
    pub token: Option<PathBuf>,
    /// Whether the coordinator may be on another host: the stream and its token travel in the clear.
    pub allow_remote: bool,
    /// Longest wait between two attempts to reach it, half as much on top.
    pub max_backoff_seconds: u32,
}

/// Who may subscribe to a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cells {
    /// Its members, as the coordinator names them.
    #[default]
    Members,
    /// Any device of the fleet.
    AnyDevice,
}

/// Logs, which go to standard error.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// How they look.
    pub format: LogFormat,
    /// What is logged: `info`, or finer, such as `info,fleetkey_broker=debug`.
    pub filter: String,
}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// Lines of JSON.
    Json,
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self {
            roots: "fleet-roots.pem".into(),
            certificate: "broker.crt".into(),
            key: "broker.key".into(),
            crl: None,
        }
    }
}

impl Default for PolicySettings {
    fn default() -> Self {
        Self { cells: Cells::default(), url: None, token: None, allow_remote: false, max_backoff_seconds: 15 }
    }
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { format: LogFormat::default(), filter: "info,rumqttd=warn".into() }
    }
}

/// Settings that flags put on top.
pub type Overrides = Vec<(&'static str, config::Value)>;

/// Settings with everything they name read and checked: what a broker is started with.
#[derive(Debug)]
pub struct Setup {
    /// The fleet.
    pub fleet: FleetId,
    /// The broker, unless it only answers for another.
    pub broker: Option<BrokerConfig>,
    /// The CRL in force at the start, and where the next one will be.
    pub crl: Option<(CrlFile, Crls)>,
    /// The broker's certificate, where the next one will be.
    pub certificate: Option<CertificateFile>,
    /// Answers for brokers that ask.
    pub gate: Option<GateSetup>,
    /// Who may subscribe to a cell.
    pub access: CellAccess,
    /// The coordinator's stream.
    pub policy: Option<PolicySource>,
}

impl Settings {
    /// Reads a file, if there is one, and puts the environment and `overrides` on top of it.
    ///
    /// # Errors
    /// [`SettingsError`], naming the file and what is wrong in it.
    pub fn load(path: Option<&Path>, overrides: Overrides) -> Result<Self, SettingsError> {
        let text = path.map(read).transpose()?.unwrap_or_default();
        let environment = Environment::default();
        Self::from_layers(path.unwrap_or(Path::new("settings")), &text, environment, overrides)
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
        let mut environment = environment
            .prefix(ENVIRONMENT_PREFIX)
            .prefix_separator("__")
            .separator("__")
            .list_separator(",")
            .try_parsing(true);
        for list in LISTS {
            environment = environment.with_list_parse_key(list);
        }
        let mut layers = config::Config::builder()
            .add_source(File::from_str(text, FileFormat::Toml))
            .add_source(environment);
        for (key, value) in overrides {
            layers = layers.set_override(key, value).map_err(bad)?;
        }
        let settings: Self = layers.build().and_then(config::Config::try_deserialize).map_err(bad)?;
        Ok(settings.anchored(path))
    }

    /// Paths are relative to the directory of the file that names them.
    fn anchored(mut self, path: &Path) -> Self {
        let home = path.parent().unwrap_or(Path::new(""));
        let TlsSettings { roots, certificate, key, crl } = &mut self.tls;
        for path in [roots, certificate, key]
            .into_iter()
            .chain(crl.as_mut())
            .chain(self.policy.token.as_mut())
            .chain(self.gate.kick.secret_files())
        {
            *path = home.join(&*path);
        }
        self
    }

    /// Reads every file that is named, and checks that it all fits together.
    ///
    /// # Errors
    /// [`SettingsError`], naming what does not.
    pub fn set_up(&self) -> Result<Setup, SettingsError> {
        let ListenSettings { tls, insecure_loopback, .. } = &self.listen;
        let gate = self.gate.read()?;
        if tls.is_empty() && insecure_loopback.is_empty() && gate.is_none() {
            return Err(SettingsError::NoListeners);
        }
        let mut listeners: Vec<_> =
            insecure_loopback.iter().map(|address| Listener::insecure_loopback(*address)).collect();
        listeners.iter().try_for_each(Listener::check)?;
        let (mut crl, mut certificate) = (None, None);
        let fleet = if tls.is_empty() {
            self.fleet.ok_or(SettingsError::NoFleet)?
        } else {
            let TlsSetup { fleet: of_roots, config, certificate: own, crl: read } = self.tls.read()?;
            (crl, certificate) = (read, Some(own));
            listeners.extend(tls.iter().map(|address| Listener::tls(*address, config.clone())));
            match self.fleet {
                Some(set) if set != of_roots => {
                    return Err(SettingsError::OtherFleet { set, roots: of_roots });
                }
                Some(_) | None => of_roots,
            }
        };
        let fan_out = match self.fan_out {
            FanOutName::Router => FanOutKind::Router,
            FanOutName::ExactMap => FanOutKind::ExactMap,
        };
        let (access, policy) = self.policy.read()?;
        let limits = self.limits.limits()?;
        let broker = (!listeners.is_empty()).then_some(BrokerConfig { fleet, listeners, limits, fan_out });
        Ok(Setup { fleet, broker, crl, certificate, gate, access, policy })
    }
}

/// What TLS is set up from.
struct TlsSetup {
    fleet: FleetId,
    config: Arc<rustls::ServerConfig>,
    certificate: CertificateFile,
    crl: Option<(CrlFile, Crls)>,
}

/// The broker's own files, read and checked.
pub(crate) struct OwnFiles {
    pub(crate) roots: FleetRoots,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) key: IdentityKey,
    pub(crate) not_after_unix_seconds: i64,
}

impl TlsSettings {
    pub(crate) fn read_own(&self) -> Result<OwnFiles, SettingsError> {
        let pem = |path: &Path| {
            let path = path.to_owned();
            move |source| SettingsError::Pem { path, source }
        };
        let roots = FleetRoots::from_pem(&read(&self.roots)?).map_err(pem(&self.roots))?;
        let chain = chain_from_pem(&read(&self.certificate)?).map_err(pem(&self.certificate))?;
        let key_text = Zeroizing::new(read(&self.key)?);
        let key = IdentityKey::from_pkcs8_pem(&key_text).map_err(pem(&self.key))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let identity = roots
            .verify(&chain, i64::try_from(now).ok())
            .map_err(|source| SettingsError::Certificate { path: self.certificate.clone(), source })?;
        match identity.role {
            Role::Broker if identity.server_auth => {}
            Role::Broker => return Err(SettingsError::NoHostName { path: self.certificate.clone() }),
            role @ (Role::Coordinator { .. } | Role::Registrar | Role::Operator { .. } | Role::Device(_)) => {
                return Err(SettingsError::NotBroker { path: self.certificate.clone(), role });
            }
        }
        let not_after_unix_seconds = identity.not_after_unix_seconds;
        Ok(OwnFiles { roots, chain, key, not_after_unix_seconds })
    }

    fn read(&self) -> Result<TlsSetup, SettingsError> {
        let OwnFiles { roots, chain, key, .. } = self.read_own()?;
        let tls = |source| SettingsError::Tls {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            source,
        };
        let own = OwnCertificate::new(&chain, &key).map_err(tls)?;
        let config = renewable_server_config(&own, &roots).map_err(tls)?;
        let fleet = roots.fleet();
        let mut crl = None;
        if let Some(path) = &self.crl {
            let file = CrlFile::new(path.clone(), roots.clone(), chain);
            let first = file.read()?;
            crl = Some((file, first));
        }
        let certificate = CertificateFile::new(self.clone(), own, roots);
        Ok(TlsSetup { fleet, config, certificate, crl })
    }
}

impl PolicySettings {
    fn read(&self) -> Result<(CellAccess, Option<PolicySource>), SettingsError> {
        let access = match self.cells {
            Cells::Members => CellAccess::Members,
            Cells::AnyDevice => CellAccess::AnyDevice,
        };
        let Some(url) = &self.url else {
            return match self.cells {
                Cells::Members => Err(SettingsError::NoPolicy),
                Cells::AnyDevice => Ok((access, None)),
            };
        };
        let host = host_of(url).ok_or_else(|| SettingsError::BadUrl { url: url.clone() })?;
        let is_local =
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if !is_local && !self.allow_remote {
            return Err(SettingsError::RemotePolicy { host });
        }
        let path = self.token.as_ref().ok_or(SettingsError::NoToken)?;
        let token = Zeroizing::new(read(path)?.trim().to_owned());
        let longest_pause = Duration::from_secs(self.max_backoff_seconds.into());
        Ok((access, Some(PolicySource { url: url.clone(), token, longest_pause })))
    }
}

/// The host in `http://host[:port]/path`.
fn host_of(url: &str) -> Option<String> {
    let uri: ureq::http::Uri = url.parse().ok()?;
    if uri.scheme_str() != Some("http") {
        return None;
    }
    uri.host().map(|host| host.trim_matches(['[', ']']).to_owned())
}

fn read(path: &Path) -> Result<String, SettingsError> {
    std::fs::read_to_string(path).map_err(|source| SettingsError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;

    fn load(text: &str, variables: &[(&str, &str)], overrides: Overrides) -> Result<Settings, SettingsError> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let environment = Environment::default().source(Some(variables.collect()));
        Settings::from_layers(Path::new("/etc/fleetkey/broker.toml"), text, environment, overrides)
    }

    #[test]
    fn later_layers_win() {
        let text = "[listen]\ntls = ['0.0.0.0:1']\nmetrics = '127.0.0.1:1'\n[log]\nfilter = 'warn'";
        let variables = [
            ("FLEETKEY_BROKER__LISTEN__TLS", "0.0.0.0:2,[::]:2"),
            ("FLEETKEY_BROKER__LISTEN__METRICS", "127.0.0.1:2"),
            ("FLEETKEY_BROKER__POLICY__ALLOW_REMOTE", "true"),
            ("FLEETKEY_BROKER__LIMITS__MAX_CONNECTIONS", "7"),
        ];
        let overrides = vec![("listen.metrics", "127.0.0.1:3".into())];
        let settings = load(text, &variables, overrides).unwrap();
        assert_eq!(settings.listen.tls, ["0.0.0.0:2".parse().unwrap(), "[::]:2".parse().unwrap()]);
        assert_eq!(settings.listen.metrics, Some("127.0.0.1:3".parse().unwrap()));
        assert_eq!(settings.log.filter, "warn");
        assert!(settings.policy.allow_remote);
        assert_eq!(settings.limits.max_connections, Some(7));
        assert_eq!(settings.fan_out, FanOutName::default());
    }

    #[test]
    fn what_is_not_known_is_refused_by_name_in_one_line() {
        for (text, variables, name) in [
            ("[listen]\ntsl = []", &[][..], "tsl"),
            ("colour = 1", &[], "colour"),
            ("[limits]\nmax_connections = 'many'", &[], "max_connections"),
            ("fan_out = 'magic'", &[], "magic"),
            ("[listen", &[], "listen"),
            ("", &[("FLEETKEY_BROKER__LISTEN__PORT", "1")], "port"),
            ("", &[("FLEETKEY_BROKER__LISTEN__TLS", "somewhere")], "listen.tls"),
        ] {
            let error = load(text, variables, Vec::new()).unwrap_err().to_string();
            assert!(error.starts_with("/etc/fleetkey/broker.toml: "), "{error}");
            assert!(error.contains(name), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn the_sample_shows_the_defaults() {
        let sample = include_str!("../../../../deploy/broker.toml");
        let settings = load(sample, &[], Vec::new()).unwrap();
        assert_eq!(settings.limits.limits().unwrap(), Limits::default());
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let settings = load("[policy]\ntoken = '/run/token'\n[tls]\nkey = 'k'", &[], Vec::new()).unwrap();
        assert_eq!(settings.tls.key, Path::new("/etc/fleetkey/k"));
        assert_eq!(settings.policy.token.as_deref(), Some(Path::new("/run/token")));
    }

    #[test]
    fn what_does_not_fit_together_is_refused_by_name() {
        let fleet = "fleet = '11111111-1111-4111-8111-111111111111'\n";
        let local = "[listen]\ninsecure_loopback = ['127.0.0.1:0']\n";
        let set_up = |parts: &[&str]| load(&parts.concat(), &[], Vec::new()).unwrap().set_up();
        let error = |parts: &[&str]| set_up(parts).unwrap_err().to_string();
        assert!(error(&[]).contains("listen.tls"));
        assert!(error(&[local]).contains("which fleet"));
        assert!(error(&[fleet, local]).contains("policy.url is not set"));
        let policy = |line: &str| error(&[fleet, local, "[policy]\n", line]);
        assert!(policy("url = 'http://localhost:1/v1/policy'").contains("policy.token"));
        assert!(policy("url = 'http://far.example/v1/policy'").contains("far.example"));
        assert!(policy("url = 'https://localhost/v1/policy'").contains("http://host:port/path"));
        assert!(policy("url = '???'").contains("???"));
        assert!(policy("url = 'http://[::1]:1/'\ntoken = 'none'").starts_with("read /etc/fleetkey/none: "));
        let limits = error(&[fleet, local, "[policy]\ncells = 'any_device'\n[limits]\nmax_in_flight = 0"]);
        assert_eq!(limits, "limits.max_in_flight cannot be 0");
        assert!(
            error(&["[listen]\ntls = ['127.0.0.1:0']"]).starts_with("read /etc/fleetkey/fleet-roots.pem: ")
        );
        let setup = set_up(&[fleet, local, "[policy]\ncells = 'any_device'"]).unwrap();
        assert_eq!((setup.access, setup.policy.is_none()), (CellAccess::AnyDevice, true));
        assert_eq!(setup.broker.unwrap().limits, Limits::default());
    }
}

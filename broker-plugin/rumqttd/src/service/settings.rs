//! What `fleetkey-broker` is configured with: defaults, then the file, then `FLEETKEY_BROKER__…` variables, then flags.
//!
//! A key that is not known is refused by name: a misspelt setting must not be a default in disguise. Paths are
//! relative to the file they stand in.

mod error;
mod gate;
mod limits;
mod upstream;

use std::net::SocketAddr;
use std::path::Path;

use config::Environment;
use fleetkey_door::certificate_file::CertificateFile;
use fleetkey_door::crl_file::{CrlFile, Crls};
use fleetkey_door::settings::{Layers, TlsSetup, read};
use fleetkey_policy::CellAccess;
use fleetkey_policy_follow::PolicySource;
use fleetkey_wire::FleetId;
use serde::Deserialize;

use crate::config::{BrokerConfig, FanOutKind, Listener};

pub use error::SettingsError;
pub use fleetkey_door::settings::{Cells, LogFormat, LogSettings, Overrides, PolicySettings, TlsSettings};
pub use gate::{EmqxSettings, GateSettings, GateSetup, KickSettings, RabbitMqSettings};
pub use limits::LimitSettings;
pub use upstream::UpstreamSettings;

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
    /// The broker above.
    pub upstream: UpstreamSettings,
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
        let layers = Layers { path, text, environment, prefix: ENVIRONMENT_PREFIX, lists: &LISTS, overrides };
        let settings: Self = layers.settle()?;
        Ok(settings.anchored(path))
    }

    /// Paths are relative to the directory of the file that names them.
    fn anchored(mut self, path: &Path) -> Self {
        let home = path.parent().unwrap_or(Path::new(""));
        for path in self.tls.paths().chain(self.policy.token.as_mut()).chain(self.gate.kick.secret_files()) {
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
        let (mut crl, mut certificate, mut client) = (None, None, None);
        let is_tls_upwards = self.upstream.url()?.is_some_and(|url| url.is_tls());
        let fleet = if tls.is_empty() && !is_tls_upwards {
            self.fleet.ok_or(SettingsError::NoFleet)?
        } else {
            let TlsSetup { fleet: of_roots, config, client: as_client, certificate: own, crl: read } =
                self.tls.read()?;
            (crl, certificate, client) = (read, Some(own), Some(as_client));
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
        let revocations = crl.as_ref().map(|(_, first)| first.revocations()).unwrap_or_default();
        let broker = (!listeners.is_empty()).then_some(BrokerConfig {
            fleet,
            listeners,
            limits,
            fan_out,
            revocations,
            upstream: self.upstream.read(client.as_ref())?,
        });
        Ok(Setup { fleet, broker, crl, certificate, gate, access, policy })
    }
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
        let upstream =
            |line: &str| error(&[fleet, local, "[policy]\ncells = 'any_device'\n[upstream]\n", line]);
        assert!(upstream("url = 'central'").contains("upstream.url"));
        assert!(upstream("url = 'mqtt://central'\nclient_id = 'edge'").contains("begin with \"relay\""));
        assert!(upstream("url = 'mqtts://central'").starts_with("read /etc/fleetkey/fleet-roots.pem: "));
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

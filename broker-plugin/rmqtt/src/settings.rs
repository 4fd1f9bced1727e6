//! What `fleetkey-broker-rmqtt` is configured with: defaults, then the file, then `FLEETKEY_BROKER_RMQTT__…` variables, then
//! flags. A key that is not known is refused by name.

mod cluster;
mod error;
mod limits;

use std::net::SocketAddr;
use std::path::Path;

use config::Environment;
use fleetkey_door::certificate_file::CertificateFile;
use fleetkey_door::crl_file::{CrlFile, Crls};
use fleetkey_door::settings::{Layers, LogSettings, Overrides, PolicySettings, TlsSettings, TlsSetup, read};
use fleetkey_policy::CellAccess;
use fleetkey_policy_follow::PolicySource;
use serde::Deserialize;

use crate::config::NodeConfig;

pub use cluster::{ClusterSettings, PeerSettings};
pub use error::SettingsError;
pub use limits::LimitSettings;

/// What every variable begins with; `FLEETKEY_BROKER_RMQTT__LISTEN__METRICS` is `metrics` under `[listen]`.
pub const ENVIRONMENT_PREFIX: &str = "FLEETKEY_BROKER_RMQTT";

/// Settings that are lists; in a variable their items are separated by commas.
const LISTS: [&str; 1] = ["listen.tls"];

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Certificates and keys.
    pub tls: TlsSettings,
    /// Addresses.
    pub listen: ListenSettings,
    /// Where the policy comes from.
    pub policy: PolicySettings,
    /// The nodes that are one broker with this one.
    pub cluster: Option<ClusterSettings>,
    /// Everything that is bounded.
    pub limits: LimitSettings,
    /// Logs.
    pub log: LogSettings,
}

/// Addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenSettings {
    /// MQTT over TLS with client certificates.
    pub tls: Vec<SocketAddr>,
    /// `/metrics` for Prometheus, and `/health`.
    pub metrics: Option<SocketAddr>,
}

/// Settings with everything they name read and checked: what a node is started with.
#[derive(Debug)]
pub struct Setup {
    /// The node.
    pub node: NodeConfig,
    /// The broker's own certificate, and where the next one will be.
    pub certificate: CertificateFile,
    /// The CRLs in force at the start, and where the next ones will be.
    pub crl: Option<(CrlFile, Crls)>,
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
        let path = path.unwrap_or(Path::new("settings"));
        Self::from_layers(path, &text, Environment::default(), overrides)
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
        for path in self.tls.paths().chain(self.policy.token.as_mut()) {
            *path = home.join(&*path);
        }
        self
    }

    /// Reads every file that is named, and checks that it all fits together.
    ///
    /// # Errors
    /// [`SettingsError`], naming what does not.
    pub fn set_up(&self) -> Result<Setup, SettingsError> {
        if self.listen.tls.is_empty() {
            return Err(SettingsError::NoListeners);
        }
        let cluster = self.cluster.as_ref().map(ClusterSettings::read).transpose()?;
        let limits = self.limits.limits()?;
        let (access, policy) = self.policy.read()?;
        let TlsSetup { fleet, config, certificate, crl, .. } = self.tls.read()?;
        let revocations = crl.as_ref().map(|(_, first)| first.revocations()).unwrap_or_default();
        let listen = self.listen.tls.clone();
        let node = NodeConfig { fleet, listen, tls: config, limits, cluster, revocations };
        Ok(Setup { node, certificate, crl, access, policy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;

    fn load(text: &str) -> Result<Settings, SettingsError> {
        let none = Environment::default().source(Some(Default::default()));
        Settings::from_layers(Path::new("/etc/fleetkey/rmqtt.toml"), text, none, Vec::new())
    }

    const NODES: &str = "nodes = [\n\
        { node = 1, raft = '127.0.0.1:1', messages = '127.0.0.1:2' },\n\
        { node = 2, raft = '127.0.0.1:3', messages = '127.0.0.1:4' },\n\
        { node = 3, raft = '127.0.0.1:5', messages = '127.0.0.1:6' },\n]\n";

    fn refused(cluster: &str) -> String {
        let settings = load(&format!("[listen]\ntls = ['127.0.0.1:0']\n[cluster]\n{cluster}")).unwrap();
        settings.set_up().unwrap_err().to_string()
    }

    #[test]
    fn the_sample_shows_the_defaults() {
        let settings = load(include_str!("../../../deploy/rmqtt.toml")).unwrap();
        assert_eq!(settings.limits.limits().unwrap(), Limits::default());
        assert_eq!(settings.cluster, None, "one node, unless it is said otherwise");
        let sample = include_str!("../../../deploy/rmqtt.toml");
        let with_cluster = sample.replace("# cluster: ", "");
        let cluster = load(&with_cluster).unwrap().cluster.unwrap();
        assert_eq!(cluster.nodes.len(), 3);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (text, name) in [
            ("[listen]\ntsl = []", "tsl"),
            ("[cluster]\nnode = 1\nnodes = []\npeers = []", "peers"),
            ("[limits]\nmax_connections = 'many'", "max_connections"),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.starts_with("/etc/fleetkey/rmqtt.toml: ") && error.contains(name), "{error}");
        }
    }

    #[test]
    fn a_cluster_that_makes_no_sense_is_refused_by_name() {
        assert!(refused(&format!("node = 4\n{NODES}")).contains("node 4 is none of cluster.nodes"));
        assert!(refused(&format!("node = 0\n{NODES}")).contains("from 1"));
        let twice = NODES.replace("node = 3", "node = 2");
        assert!(refused(&format!("node = 1\n{twice}")).contains("node 2 twice"));
        let same = NODES.replace(":6'", ":1'");
        assert!(refused(&format!("node = 1\n{same}")).contains("127.0.0.1:1 twice"));
        let far = NODES.replace("127.0.0.1:6", "10.0.0.3:6");
        assert!(refused(&format!("node = 1\n{far}")).contains("cluster.allow_remote"));
        let allowed = refused(&format!("node = 1\nallow_remote = true\n{far}"));
        assert!(!allowed.contains("cluster."), "{allowed}");
    }

    #[test]
    fn what_is_missing_is_refused_by_name() {
        assert!(load("").unwrap().set_up().unwrap_err().to_string().contains("listen.tls"));
        let listens = "[listen]\ntls = ['127.0.0.1:0']\n";
        let no_policy = load(listens).unwrap().set_up().unwrap_err().to_string();
        assert!(no_policy.contains("policy.url is not set"), "{no_policy}");
        let limits = load(&format!("{listens}[limits]\nmax_in_flight = 0")).unwrap();
        assert_eq!(limits.set_up().unwrap_err().to_string(), "limits.max_in_flight cannot be 0");
    }
}

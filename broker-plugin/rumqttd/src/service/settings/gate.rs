//! `[gate]`: answers over HTTP for brokers that ask, and their management APIs.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use fleetkey_door::settings::read;
use fleetkey_gate::{Management, ManagementKind};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::SettingsError;

/// Answers for brokers that ask.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateSettings {
    /// Where brokers ask. Without it nobody can.
    pub listen: Option<SocketAddr>,
    /// Whether brokers may be on another host: questions, answers and management accounts travel in the clear.
    pub allow_remote: bool,
    /// Devices are denied when the coordinator was not heard for this long.
    pub max_silence_seconds: u64,
    /// Brokers whose sessions are ended when the policy says so.
    pub kick: KickSettings,
}

/// Brokers whose sessions are ended when the policy says so.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KickSettings {
    /// EMQX 5.
    pub emqx: Option<EmqxSettings>,
    /// RabbitMQ.
    pub rabbitmq: Option<RabbitMqSettings>,
}

/// EMQX's management API.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmqxSettings {
    /// `http://127.0.0.1:18083`.
    pub url: String,
    /// The name of an API key.
    pub key: String,
    /// The file of the key's secret.
    pub secret_file: Option<PathBuf>,
}

/// RabbitMQ's management API.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RabbitMqSettings {
    /// `http://127.0.0.1:15672`.
    pub url: String,
    /// A user with the tag `administrator`.
    pub user: String,
    /// The file of the user's password.
    pub secret_file: Option<PathBuf>,
    /// The virtual host of the fleet.
    #[serde(default = "first_vhost")]
    pub vhost: String,
}

/// What a gate is started with.
#[derive(Debug)]
pub struct GateSetup {
    /// Where brokers ask.
    pub listen: SocketAddr,
    /// Devices are denied when the coordinator was not heard for this long.
    pub max_silence: Duration,
    /// Where sessions are ended.
    pub management: Vec<Management>,
}

impl Default for GateSettings {
    fn default() -> Self {
        Self { listen: None, allow_remote: false, max_silence_seconds: 60, kick: KickSettings::default() }
    }
}

impl KickSettings {
    pub(super) fn secret_files(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let emqx = self.emqx.as_mut().and_then(|emqx| emqx.secret_file.as_mut());
        emqx.into_iter().chain(self.rabbitmq.as_mut().and_then(|rabbitmq| rabbitmq.secret_file.as_mut()))
    }
}

impl GateSettings {
    pub(super) fn read(&self) -> Result<Option<GateSetup>, SettingsError> {
        let Some(listen) = self.listen else { return Ok(None) };
        if !listen.ip().is_loopback() && !self.allow_remote {
            return Err(SettingsError::RemoteGate { address: listen });
        }
        let mut management = Vec::new();
        if let Some(emqx) = &self.kick.emqx {
            let EmqxSettings { url, key, secret_file } = emqx;
            management.push(manage(
                "emqx",
                ManagementKind::Emqx,
                url,
                key,
                secret_file.as_ref(),
                self.allow_remote,
            )?);
        }
        if let Some(rabbitmq) = &self.kick.rabbitmq {
            let RabbitMqSettings { url, user, secret_file, vhost } = rabbitmq;
            let kind = ManagementKind::RabbitMq { vhost: vhost.clone() };
            management.push(manage("rabbitmq", kind, url, user, secret_file.as_ref(), self.allow_remote)?);
        }
        let max_silence = Duration::from_secs(self.max_silence_seconds);
        Ok(Some(GateSetup { listen, max_silence, management }))
    }
}

fn manage(
    broker: &'static str,
    kind: ManagementKind,
    url: &str,
    account: &str,
    secret_file: Option<&PathBuf>,
    allow_remote: bool,
) -> Result<Management, SettingsError> {
    let is_safe = url.parse::<ureq::http::Uri>().is_ok_and(|uri| {
        let host = uri.host().map(|host| host.trim_matches(['[', ']']));
        let is_local = host.is_some_and(|host| {
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        });
        uri.scheme_str() == Some("http") && host.is_some() && (is_local || allow_remote)
    });
    if !is_safe {
        return Err(SettingsError::BadManagementUrl { broker, url: url.to_owned() });
    }
    let path = secret_file.ok_or(SettingsError::NoSecret { broker })?;
    let secret = Zeroizing::new(read(path)?);
    Ok(Management::new(kind, url, account, secret.trim()))
}

fn first_vhost() -> String {
    "/".to_owned()
}

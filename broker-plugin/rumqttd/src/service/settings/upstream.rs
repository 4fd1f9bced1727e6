//! `[upstream]`: the broker that this one is an edge of.

use std::sync::Arc;
use std::time::Duration;

use fleetkey_mqtt::BrokerUrl;
use fleetkey_policy::RELAY_CLIENT_ID_PREFIX;
use rand_core::{OsRng, RngCore};
use serde::Deserialize;

use super::SettingsError;
use crate::config::Upstream;

/// The broker that this one is an edge of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamSettings {
    /// Where it is: `mqtts://host:port`, reached with the certificate under `[tls]`.
    pub url: Option<String>,
    /// See [`Upstream::client_id`]; without it one that begins with `relay-` is made up at each start.
    pub client_id: Option<String>,
    /// See [`Upstream::patience`].
    pub patience_seconds: Option<u64>,
}

impl UpstreamSettings {
    pub(super) fn url(&self) -> Result<Option<BrokerUrl>, SettingsError> {
        let parsed = self.url.as_deref().map(str::parse::<BrokerUrl>).transpose();
        parsed.map_err(SettingsError::BadUpstream)
    }

    pub(super) fn read(
        &self,
        tls: Option<&Arc<rustls::ClientConfig>>,
    ) -> Result<Option<Upstream>, SettingsError> {
        let Some(url) = self.url()? else { return Ok(None) };
        let made_up = || format!("{RELAY_CLIENT_ID_PREFIX}-{:016x}", OsRng.next_u64());
        let mut upstream = Upstream::new(url, self.client_id.clone().unwrap_or_else(made_up));
        upstream.tls = tls.filter(|_| upstream.url.is_tls()).cloned();
        if let Some(seconds) = self.patience_seconds {
            upstream.patience = Duration::from_secs(seconds);
        }
        upstream.check()?;
        Ok(Some(upstream))
    }
}

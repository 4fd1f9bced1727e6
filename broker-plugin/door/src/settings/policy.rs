//! `[policy]`: where the policy comes from.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use fleetkey_policy::CellAccess;
use fleetkey_policy_follow::PolicySource;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{SettingsError, read};

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

impl Default for PolicySettings {
    fn default() -> Self {
        Self { cells: Cells::default(), url: None, token: None, allow_remote: false, max_backoff_seconds: 15 }
    }
}

impl PolicySettings {
    /// Who may subscribe to cells, and the stream to follow, with its token.
    ///
    /// # Errors
    /// [`SettingsError`], naming what is missing or does not fit.
    pub fn read(&self) -> Result<(CellAccess, Option<PolicySource>), SettingsError> {
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

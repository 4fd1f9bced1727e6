//! What turns the library into a process: settings, the coordinator's policy stream, `/metrics`.
//!
//! Leaves to `main` the command line, logs and signals.

mod metrics_endpoint;
mod settings;

pub use fleetkey_policy_follow::{Follower, MAX_UPDATE_BYTES, PolicySource, follow};
pub use metrics_endpoint::{MetricsEndpoint, MetricsError};
pub use settings::{
    Cells, ENVIRONMENT_PREFIX, FanOutName, LimitSettings, ListenSettings, LogFormat, LogSettings, Overrides,
    PolicySettings, Settings, SettingsError, Setup, TlsSettings,
};

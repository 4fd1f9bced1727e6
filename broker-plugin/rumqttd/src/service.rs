//! What turns the library into a process: settings, the coordinator's policy stream, the gate, `/metrics`.
//!
//! Leaves to `main` the command line, logs and signals.

mod gate_service;
mod settings;

pub use fleetkey_door::certificate_file::CertificateFile;
pub use fleetkey_door::crl_file::{CrlError, CrlFile, Crls};
pub use fleetkey_door::metrics_endpoint::{MetricsEndpoint, MetricsError};
pub use fleetkey_policy_follow::{Follower, MAX_UPDATE_BYTES, PolicySource, follow};
pub use gate_service::{GateError, GateService, RunningGate};
pub use settings::{
    Cells, ENVIRONMENT_PREFIX, EmqxSettings, FanOutName, GateSettings, GateSetup, KickSettings,
    LimitSettings, ListenSettings, LogFormat, LogSettings, Overrides, PolicySettings, RabbitMqSettings,
    Settings, SettingsError, Setup, TlsSettings, UpstreamSettings,
};

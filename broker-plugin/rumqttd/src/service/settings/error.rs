//! Settings that cannot be used: what is wrong, by name, and what to do about it.

use std::net::SocketAddr;

use fleetkey_wire::FleetId;

use crate::config::BrokerError;

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Settings that every broker has, or the files that they name.
    #[error(transparent)]
    Door(#[from] fleetkey_door::settings::SettingsError),
    /// A listener that makes no sense.
    #[error(transparent)]
    Listener(#[from] BrokerError),
    /// There is nowhere to connect to.
    #[error(
        "there is nowhere to connect to: set listen.tls, for example to [\"0.0.0.0:8883\"], or gate.listen"
    )]
    NoListeners,
    /// Without TLS nothing says which fleet it is.
    #[error("which fleet? set fleet, or listen.tls and the fleet's roots")]
    NoFleet,
    /// The roots are another fleet's.
    #[error("fleet is set to {set}, but the roots are those of fleet {roots}")]
    OtherFleet {
        /// What was set.
        set: FleetId,
        /// What the roots say.
        roots: FleetId,
    },
    /// The broker above is nowhere.
    #[error("upstream.url: {0}")]
    BadUpstream(#[source] fleetkey_mqtt::BadBrokerUrl),
    /// Whoever reaches the gate learns who may do what.
    #[error(
        "gate.listen is {address}, and questions and answers are not encrypted: set gate.allow_remote if only the broker \
         can reach it"
    )]
    RemoteGate {
        /// The address.
        address: SocketAddr,
    },
    /// A broker's management API needs an account.
    #[error("gate.kick.{broker}.secret_file is not set: the management API wants to know who asks")]
    NoSecret {
        /// Which broker's.
        broker: &'static str,
    },
    /// The secret would travel in the clear, or nowhere.
    #[error(
        "gate.kick.{broker}.url is {url:?}: set http://host:port on this machine, or gate.allow_remote if the way to \
         another is safe"
    )]
    BadManagementUrl {
        /// Which broker's.
        broker: &'static str,
        /// What was set.
        url: String,
    },
}

//! Settings that cannot be used: what is wrong, by name, and what to do about it.

use std::net::SocketAddr;

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Settings that every broker has, or the files that they name.
    #[error(transparent)]
    Door(#[from] fleetkey_door::settings::SettingsError),
    /// There is nowhere to connect to.
    #[error("there is nowhere to connect to: set listen.tls, for example to [\"0.0.0.0:8883\"]")]
    NoListeners,
    /// Zero stands for nobody.
    #[error("cluster.nodes has a node {node}: they are numbered from 1")]
    BadNode {
        /// Its number.
        node: u64,
    },
    /// This node is none of the cluster's.
    #[error("node {node} is none of cluster.nodes")]
    NotInCluster {
        /// Its number.
        node: u64,
    },
    /// Two nodes of one number.
    #[error("cluster.nodes has node {node} twice")]
    NodeTwice {
        /// Its number.
        node: u64,
    },
    /// Two listeners on one address.
    #[error("cluster.nodes has {address} twice")]
    AddressTwice {
        /// The address.
        address: SocketAddr,
    },
    /// Whoever reaches it can speak in the name of any client.
    #[error(
        "cluster.nodes has {address}, and nodes neither know each other nor encrypt what they say: set \
         cluster.allow_remote if nobody else can reach these addresses"
    )]
    RemoteNode {
        /// The address.
        address: SocketAddr,
    },
}

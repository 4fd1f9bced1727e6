//! What a node is started with, its limits, and why it may not start.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fleetkey_door::rate::RateLimit;
use fleetkey_identity::Revocations;
use fleetkey_wire::FleetId;

/// What a [`crate::Node`] is started with.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The fleet it serves; must be that of the policy.
    pub fleet: FleetId,
    /// Where clients connect, over TLS with client certificates; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// What connections are accepted with.
    pub tls: Arc<rustls::ServerConfig>,
    /// Everything that is bounded.
    pub limits: Limits,
    /// The nodes that are one broker with this one.
    pub cluster: Option<ClusterConfig>,
    /// Certificates that do not count from the first connection on.
    pub revocations: Revocations,
}

/// The nodes that are one broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Which of them this one is.
    pub node: u64,
    /// All of them, this one too.
    pub peers: Vec<Peer>,
}

/// A node of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its number, from 1.
    pub node: u64,
    /// Where it agrees with the others on who is connected where.
    pub raft: SocketAddr,
    /// Where the others hand it messages for its clients.
    pub messages: SocketAddr,
}

impl ClusterConfig {
    /// This node.
    pub fn own(&self) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.node == self.node)
    }

    /// The node that begins a cluster which is not there yet; all others join it.
    pub fn first(&self) -> u64 {
        self.peers.iter().map(|peer| peer.node).min().unwrap_or(self.node)
    }
}

/// Everything that is bounded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Devices and coordinators that are connected to this node; a few places beyond are kept for coordinators.
    pub max_connections: usize,
    /// Connections from one address, where they are to be counted.
    pub max_connections_per_address: Option<usize>,
    /// TLS handshakes under way at once; further ones wait, within their time.
    pub max_handshakes: usize,
    /// From the TCP connection to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// From there to the end of the CONNECT packet.
    pub connect_timeout: Duration,
    /// The largest packet from a client, fixed header included.
    pub max_packet_bytes: usize,
    /// What a device may say.
    pub device_rate: RateLimit,
    /// Messages that wait for a device; further ones are dropped.
    pub device_queue_messages: usize,
    /// Messages that wait for a coordinator; further ones are dropped.
    pub coordinator_queue_messages: usize,
    /// QoS 1 messages on their way to one client and not acknowledged.
    pub max_in_flight: u16,
    /// Clients must promise to say something at least this often.
    pub max_keep_alive: Duration,
    /// How long a client may take nothing of what is sent to it.
    pub write_timeout: Duration,
    /// Subscriptions of one client.
    pub max_subscriptions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 16_384,
            max_connections_per_address: None,
            max_handshakes: 256,
            handshake_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            max_packet_bytes: 65 * 1024,
            device_rate: RateLimit::default(),
            device_queue_messages: 512,
            coordinator_queue_messages: 65_536,
            max_in_flight: 64,
            max_keep_alive: Duration::from_secs(20 * 60),
            write_timeout: Duration::from_secs(30),
            max_subscriptions: 64,
        }
    }
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The policy is about another fleet.
    #[error("the broker is to serve fleet {broker}, but its policy is about fleet {policy}")]
    OtherFleet {
        /// The broker's.
        broker: FleetId,
        /// The policy's.
        policy: FleetId,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// rmqtt cannot be reached by its own front.
    #[error("rmqtt's own listener: {why}")]
    Inner {
        /// What it says.
        why: String,
    },
    /// The other nodes cannot be joined.
    #[error("node {node} cannot join its cluster: {why}")]
    Cluster {
        /// This node.
        node: u64,
        /// What rmqtt says.
        why: String,
    },
    /// One node is all that this build knows.
    #[error("this build is of one node: build it with --features cluster")]
    NoClusters,
}

//! What a broker is started with, its limits, and why it may not start.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fleetkey_door::rate::RateLimit;
use fleetkey_identity::Revocations;
use fleetkey_mqtt::BrokerUrl;
use fleetkey_policy::RELAY_CLIENT_ID_PREFIX;
use fleetkey_wire::FleetId;

/// What a [`crate::Broker`] is started with.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// The fleet it serves; must be that of the policy.
    pub fleet: FleetId,
    /// Where clients connect.
    pub listeners: Vec<Listener>,
    /// Everything that is bounded.
    pub limits: Limits,
    /// What carries cell messages to the members.
    pub fan_out: FanOutKind,
    /// Certificates that do not count from the first connection on.
    pub revocations: Revocations,
    /// The broker that this one is an edge of.
    pub upstream: Option<Upstream>,
}

impl BrokerConfig {
    /// A broker for `fleet` without listeners, with the default limits and fan-out.
    pub fn new(fleet: FleetId) -> Self {
        let (limits, fan_out) = (Limits::default(), FanOutKind::default());
        let revocations = Revocations::default();
        Self { fleet, listeners: Vec::new(), limits, fan_out, revocations, upstream: None }
    }

    /// The same with one more listener.
    #[must_use]
    pub fn listen(mut self, listener: Listener) -> Self {
        self.listeners.push(listener);
        self
    }
}

/// The broker above: the coordinator is there, and this broker's clients are reached from there through it.
#[derive(Clone)]
pub struct Upstream {
    /// Where it is.
    pub url: BrokerUrl,
    /// As whom to connect, unique among its clients: it begins with `relay`.
    pub client_id: String,
    /// For `mqtts`: with this broker's own certificate.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// For how long the way up may be lost before sessions end, and nobody is let in until it is there again.
    pub patience: Duration,
}

impl Upstream {
    /// The broker there.
    pub fn new(url: BrokerUrl, client_id: impl Into<String>) -> Self {
        Self { url, client_id: client_id.into(), tls: None, patience: Duration::from_secs(5) }
    }

    /// Does it make sense?
    ///
    /// # Errors
    /// [`BrokerError::BadRelayId`] or [`BrokerError::UpstreamTls`].
    pub fn check(&self) -> Result<(), BrokerError> {
        if !self.client_id.starts_with(RELAY_CLIENT_ID_PREFIX) {
            return Err(BrokerError::BadRelayId { client_id: self.client_id.clone() });
        }
        if self.url.is_tls() != self.tls.is_some() {
            return Err(BrokerError::UpstreamTls { url: self.url.clone() });
        }
        Ok(())
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("url", &self.url)
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

/// Where clients connect, and how they are known.
#[derive(Debug, Clone)]
pub struct Listener {
    /// The address; port 0 takes a free one.
    pub address: SocketAddr,
    /// TLS with client certificates; without it connections are plain TCP.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// How clients are known.
    pub identify: Identify,
}

impl Listener {
    /// TLS: clients are who their certificates say.
    pub const fn tls(address: SocketAddr, config: Arc<rustls::ServerConfig>) -> Self {
        Self { address, tls: Some(config), identify: Identify::ClientCertificate }
    }

    /// Plain TCP where a client is whoever it says it is: for tests and benchmarks on the loopback interface.
    pub const fn insecure_loopback(address: SocketAddr) -> Self {
        Self { address, tls: None, identify: Identify::ClientId }
    }

    /// Does it make sense?
    ///
    /// # Errors
    /// [`BrokerError::InsecureListener`] or [`BrokerError::CertificatesWithoutTls`].
    pub fn check(&self) -> Result<(), BrokerError> {
        let address = self.address;
        match self.identify {
            Identify::ClientId if !address.ip().is_loopback() => {
                Err(BrokerError::InsecureListener { address })
            }
            Identify::ClientCertificate if self.tls.is_none() => {
                Err(BrokerError::CertificatesWithoutTls { address })
            }
            Identify::ClientId | Identify::ClientCertificate => Ok(()),
        }
    }
}

/// How clients are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identify {
    /// By the certificate they show in TLS.
    ClientCertificate,
    /// By their client id: a device's UUID, or anything that starts with `coordinator` or `relay`. Anyone can claim to be
    /// anyone, so that only loopback addresses are accepted.
    ClientId,
}

/// What carries cell messages to the members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FanOutKind {
    /// The router of rumqttd.
    Router,
    /// A map from cell to sessions.
    #[default]
    ExactMap,
}

/// Everything that is bounded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Devices and coordinators that are connected; a few places beyond are kept for coordinators.
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
    /// What waits for a device before it is cut off as too slow.
    pub device_queue: QueueLimit,
    /// What waits for a coordinator before devices have to wait with theirs.
    pub coordinator_queue: QueueLimit,
    /// What waits for a relay, which carries many devices, before it is cut off as too slow.
    pub relay_queue: QueueLimit,
    /// QoS 1 messages on their way to one client and not acknowledged.
    pub max_in_flight: u16,
    /// Clients must promise to say something at least this often.
    pub max_keep_alive: Duration,
    /// How long a client may take nothing of what is sent to it.
    pub write_timeout: Duration,
    /// Subscriptions of one device.
    pub max_subscriptions_per_device: usize,
    /// Subscriptions of one relay: two for each of its devices, and one for each cell.
    pub max_subscriptions_per_relay: usize,
}

/// How much may wait for one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimit {
    /// Messages.
    pub messages: usize,
    /// Bytes of payload.
    pub bytes: usize,
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
            device_queue: QueueLimit { messages: 512, bytes: 1024 * 1024 },
            coordinator_queue: QueueLimit { messages: 65_536, bytes: 16 * 1024 * 1024 },
            relay_queue: QueueLimit { messages: 262_144, bytes: 128 * 1024 * 1024 },
            max_in_flight: 64,
            max_keep_alive: Duration::from_secs(20 * 60),
            write_timeout: Duration::from_secs(30),
            max_subscriptions_per_device: 64,
            max_subscriptions_per_relay: 262_144,
        }
    }
}

/// Why a broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// There is nowhere to connect to.
    #[error("no listeners are configured")]
    NoListeners,
    /// The policy is about another fleet.
    #[error("the broker is to serve fleet {broker}, but its policy is about fleet {policy}")]
    OtherFleet {
        /// The broker's.
        broker: FleetId,
        /// The policy's.
        policy: FleetId,
    },
    /// Without certificates anyone can claim to be anyone.
    #[error("clients cannot be told apart without certificates: {address} is not a loopback address")]
    InsecureListener {
        /// The address.
        address: SocketAddr,
    },
    /// Certificates are shown in TLS only.
    #[error("the listener on {address} wants client certificates, but has no TLS")]
    CertificatesWithoutTls {
        /// The address.
        address: SocketAddr,
    },
    /// The broker above would not take it for a relay.
    #[error("the client id for the broker above is {client_id:?}: it must begin with \"relay\"")]
    BadRelayId {
        /// What was set.
        client_id: String,
    },
    /// `mqtts` takes a certificate, `mqtt` takes none.
    #[error("{url}: mqtts needs this broker's certificate, and mqtt does not use it")]
    UpstreamTls {
        /// The broker above.
        url: BrokerUrl,
    },
    /// Somebody else is listening there.
    #[error("address {address} is in use")]
    AddressInUse {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The system gives no thread to the router.
    #[error("cannot start the router")]
    Router(#[source] io::Error),
}

//! A fleet on paper, a broker on loopback, and a client that says exactly what it is told to, byte by byte.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, unreachable_pub, reason = "every test file uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fleetkey_broker::policy::{CellAccess, PolicyHandle, PolicyState, PolicyUpdate};
use fleetkey_broker::{Broker, BrokerConfig, FanOutKind, Limits, Listener, RateLimit};
use fleetkey_identity::tls::{client_config, server_config};
use fleetkey_identity::{FleetCa, FleetRoots, IdentityKey, Role, Validity};
use fleetkey_wire::{CellId, DeviceId, FleetId, Generation, Topic};
use rand_core::OsRng;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub const FLEET: FleetId = FleetId::from_bytes([1; 16]);
pub const OTHER_FLEET: FleetId = FleetId::from_bytes([2; 16]);
pub const A: DeviceId = DeviceId::from_bytes([0xa; 16]);
pub const B: DeviceId = DeviceId::from_bytes([0xb; 16]);
pub const CELL: CellId = CellId::from_bytes([0xc; 16]);
pub const CELL_2: CellId = CellId::from_bytes([0xd; 16]);
pub const COORDINATOR: &str = "coordinator";

/// Nothing here takes this long; what does has failed.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn cell(cell: CellId) -> String {
    Topic::Cell { fleet: FLEET, cell }.to_string()
}

pub fn down(device: DeviceId) -> String {
    Topic::Down { fleet: FLEET, device }.to_string()
}

pub fn up(device: DeviceId) -> String {
    Topic::Up { fleet: FLEET, device }.to_string()
}

pub fn all_up() -> String {
    format!("fk/{FLEET}/dev/+/up")
}

/// The cell has both devices in it, the other one only B.
pub fn policy() -> PolicyHandle {
    let handle = PolicyHandle::new(PolicyState::new(FLEET, CellAccess::Members));
    let cells = BTreeMap::from([(CELL, BTreeSet::from([A, B])), (CELL_2, BTreeSet::from([B]))]);
    handle.apply(PolicyUpdate::Snapshot { sequence: 0, revoked: BTreeSet::new(), cells }).unwrap();
    handle
}

/// A certificate authority, and the broker's certificate.
pub struct Pki {
    pub ca: FleetCa,
    pub roots: FleetRoots,
}

impl Pki {
    pub fn new(fleet: FleetId) -> Self {
        let ca = FleetCa::create(fleet, &mut OsRng, Validity::without_end(0)).unwrap();
        let roots = FleetRoots::new(&[ca.certificate_der().to_vec()]).unwrap();
        Self { ca, roots }
    }

    pub fn issue(&self, role: &Role) -> (Vec<Vec<u8>>, IdentityKey) {
        let key = IdentityKey::generate(&mut OsRng);
        let names = match role {
            Role::Broker => vec!["localhost".to_owned()],
            Role::Coordinator { .. } | Role::Registrar | Role::Operator { .. } | Role::Device(_) => {
                Vec::new()
            }
        };
        let leaf = self.ca.issue(role, &key.public_key(), &names, Validity::without_end(0)).unwrap();
        (self.ca.chain(leaf), key)
    }

    pub fn server(&self) -> Arc<rustls::ServerConfig> {
        let (chain, key) = self.issue(&Role::Broker);
        server_config(&chain, &key, &self.roots).unwrap()
    }

    pub fn client(&self, role: &Role) -> Arc<rustls::ClientConfig> {
        let (chain, key) = self.issue(role);
        client_config(&chain, &key, &self.roots).unwrap()
    }
}

/// For devices that are there to say a lot.
pub const PLENTY: RateLimit = RateLimit {
    packets_per_second: u32::MAX,
    burst_packets: u32::MAX,
    bytes_per_second: u32::MAX,
    burst_bytes: u32::MAX,
    patience: Duration::from_secs(1),
};

pub fn coordinator_role() -> Role {
    Role::Coordinator { generation: Generation(1) }
}

/// A broker with a plain and a TLS listener.
pub struct Fixture {
    pub broker: Broker,
    pub policy: PolicyHandle,
    pub pki: Pki,
}

impl Fixture {
    pub fn start(fan_out: FanOutKind) -> Self {
        Self::with(fan_out, Limits::default(), policy())
    }

    pub fn with(fan_out: FanOutKind, limits: Limits, policy: PolicyHandle) -> Self {
        let pki = Pki::new(FLEET);
        let loopback = "127.0.0.1:0".parse().unwrap();
        let mut config = BrokerConfig::new(FLEET)
            .listen(Listener::insecure_loopback(loopback))
            .listen(Listener::tls(loopback, pki.server()));
        config.fan_out = fan_out;
        config.limits = limits;
        Self { broker: Broker::start(config, policy.clone()).unwrap(), policy, pki }
    }

    pub fn plain(&self) -> SocketAddr {
        self.broker.local_addrs()[0]
    }

    pub fn tls(&self) -> SocketAddr {
        self.broker.local_addrs()[1]
    }

    /// A transport to the broker for whoever this is, without a word of MQTT yet.
    pub async fn reach(&self, transport: Transport, version: Version, role: &Role) -> Client {
        match transport {
            Transport::Tcp => Client::plain(self.plain(), version).await,
            Transport::Tls => Client::tls(self.tls(), version, self.pki.client(role)).await.unwrap(),
        }
    }

    pub async fn device(&self, transport: Transport, version: Version, device: DeviceId) -> Client {
        let mut client = self.reach(transport, version, &Role::Device(device)).await;
        assert_eq!(client.connect(&device.to_string()).await, 0);
        client
    }

    pub async fn coordinator(&self, transport: Transport, version: Version) -> Client {
        let mut client = self.reach(transport, version, &coordinator_role()).await;
        assert_eq!(client.connect(COORDINATOR).await, 0);
        client
    }

    /// Proof that the broker still serves: a message there, and one back, through every part of it.
    pub async fn still_serves(&self) {
        let mut coordinator = self.reach(Transport::Tcp, Version::V4, &coordinator_role()).await;
        assert_eq!(coordinator.connect("coordinator-probe").await, 0);
        let mut device = self.device(Transport::Tcp, Version::V4, B).await;
        assert_eq!(coordinator.subscribe(&[(&all_up(), 1)]).await, [1]);
        assert_eq!(device.subscribe(&[(&cell(CELL), 1), (&down(B), 1)]).await, [1, 1]);
        for topic in [cell(CELL), down(B)] {
            coordinator.publish(&topic, b"there", 0).await;
            assert_eq!(device.expect_publish().await.payload, b"there");
        }
        device.publish(&up(B), b"back", 0).await;
        assert_eq!(coordinator.expect_publish().await.payload, b"back");
    }
}

pub const FAN_OUTS: [FanOutKind; 2] = [FanOutKind::Router, FanOutKind::ExactMap];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Tls,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V4,
    V5,
}

pub const EVERY_WAY: [(Transport, Version); 4] = [
    (Transport::Tcp, Version::V4),
    (Transport::Tcp, Version::V5),
    (Transport::Tls, Version::V4),
    (Transport::Tls, Version::V5),
];

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A client that does nothing by itself.
pub struct Client {
    stream: Box<dyn Stream>,
    pub version: Version,
    packet_id: u16,
}

/// A packet as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub first: u8,
    pub body: Vec<u8>,
}

/// A PUBLISH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub packet_id: u16,
}

impl Client {
    pub async fn plain(address: SocketAddr, version: Version) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: Box::new(stream), version, packet_id: 0 }
    }

    pub async fn tls(
        address: SocketAddr,
        version: Version,
        config: Arc<rustls::ClientConfig>,
    ) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        Ok(Self { stream: Box::new(stream), version, packet_id: 0 })
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Sends what the broker may not want to read to the end.
    pub async fn try_send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// The next packet; `None` when the broker has closed the connection.
    pub async fn receive(&mut self) -> Option<Received> {
        tokio::time::timeout(PATIENCE, self.receive_now()).await.expect("nothing came")
    }

    async fn receive_now(&mut self) -> Option<Received> {
        let first = self.stream.read_u8().await.ok()?;
        let (mut length, mut shift) = (0usize, 0);
        loop {
            let byte = self.stream.read_u8().await.ok()?;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.ok()?;
        Some(Received { first, body })
    }

    /// Connects and returns the code of the CONNACK.
    pub async fn connect(&mut self, client_id: &str) -> u8 {
        self.connect_with(0x02, 60, client_id, &[]).await
    }

    pub async fn connect_with(&mut self, flags: u8, keep_alive: u16, client_id: &str, will: &[u8]) -> u8 {
        let packet = self.connect_packet(flags, keep_alive, client_id, will);
        self.send(&packet).await;
        let ack = self.receive().await.expect("closed instead of a CONNACK");
        assert_eq!((ack.first, ack.body[0]), (0x20, 0), "{ack:?}");
        ack.body[1]
    }

    pub fn connect_packet(&self, flags: u8, keep_alive: u16, client_id: &str, will: &[u8]) -> Vec<u8> {
        let mut body = string("MQTT");
        body.push(if self.version == Version::V4 { 4 } else { 5 });
        body.push(flags);
        body.extend(keep_alive.to_be_bytes());
        if self.version == Version::V5 {
            body.push(0);
        }
        body.extend(string(client_id));
        body.extend(will);
        packet(0x10, &body)
    }

    pub fn subscribe_packet(&mut self, filters: &[(&str, u8)]) -> Vec<u8> {
        self.packet_id += 1;
        let mut body = self.packet_id.to_be_bytes().to_vec();
        if self.version == Version::V5 {
            body.push(0);
        }
        for (filter, qos) in filters {
            body.extend(string(filter));
            body.push(*qos);
        }
        packet(0x82, &body)
    }

    /// Subscribes and returns the codes of the SUBACK.
    pub async fn subscribe(&mut self, filters: &[(&str, u8)]) -> Vec<u8> {
        let packet = self.subscribe_packet(filters);
        self.send(&packet).await;
        let ack = self.receive().await.expect("closed instead of a SUBACK");
        assert_eq!((ack.first, &ack.body[..2]), (0x90, &self.packet_id.to_be_bytes()[..]), "{ack:?}");
        ack.body[self.after_id()..].to_vec()
    }

    pub async fn unsubscribe(&mut self, filter: &str) {
        self.packet_id += 1;
        let mut body = self.packet_id.to_be_bytes().to_vec();
        if self.version == Version::V5 {
            body.push(0);
        }
        body.extend(string(filter));
        self.send(&packet(0xa2, &body)).await;
        assert_eq!(self.receive().await.unwrap().first, 0xb0);
    }

    pub fn publish_packet(&mut self, topic: &str, payload: &[u8], qos: u8) -> Vec<u8> {
        let mut body = string(topic);
        if qos > 0 {
            self.packet_id += 1;
            body.extend(self.packet_id.to_be_bytes());
        }
        if self.version == Version::V5 {
            body.push(0);
        }
        body.extend(payload);
        packet(0x30 | qos << 1, &body)
    }

    /// Publishes, and at QoS 1 returns the reason in the PUBACK.
    pub async fn publish(&mut self, topic: &str, payload: &[u8], qos: u8) -> u8 {
        let packet = self.publish_packet(topic, payload, qos);
        self.send(&packet).await;
        if qos == 0 {
            return 0;
        }
        let ack = self.receive().await.expect("closed instead of a PUBACK");
        assert_eq!((ack.first, &ack.body[..2]), (0x40, &self.packet_id.to_be_bytes()[..]), "{ack:?}");
        ack.body.get(2).copied().unwrap_or(0)
    }

    /// The next packet, which must be a PUBLISH; acknowledged when it wants to be.
    pub async fn expect_publish(&mut self) -> Arrived {
        let arrived = self.expect_publish_unacknowledged().await;
        if arrived.qos == 1 {
            let id = arrived.packet_id.to_be_bytes();
            self.send(&[0x40, 2, id[0], id[1]]).await;
        }
        arrived
    }

    pub async fn expect_publish_unacknowledged(&mut self) -> Arrived {
        let received = self.receive().await.expect("closed instead of a PUBLISH");
        assert_eq!(received.first & 0xf0, 0x30, "{received:?}");
        let qos = received.first >> 1 & 3;
        let topic_bytes = usize::from(u16::from_be_bytes([received.body[0], received.body[1]]));
        let mut at = 2 + topic_bytes;
        let topic = String::from_utf8(received.body[2..at].to_vec()).unwrap();
        let mut packet_id = 0;
        if qos > 0 {
            packet_id = u16::from_be_bytes([received.body[at], received.body[at + 1]]);
            at += 2;
        }
        if self.version == Version::V5 {
            assert_eq!(received.body[at], 0, "no properties");
            at += 1;
        }
        Arrived { topic, payload: received.body[at..].to_vec(), qos, packet_id }
    }

    /// Nothing has come: an answer to a ping is the next thing.
    pub async fn expect_nothing(&mut self) {
        self.send(&[0xc0, 0]).await;
        let received = self.receive().await;
        assert_eq!(received, Some(Received { first: 0xd0, body: Vec::new() }));
    }

    /// The broker closes the connection, and says why to who speaks version 5.
    pub async fn expect_close(&mut self, reason: u8) {
        if self.version == Version::V5 {
            let goodbye = self.receive().await;
            assert_eq!(goodbye, Some(Received { first: 0xe0, body: vec![reason, 0] }));
        }
        assert_eq!(self.receive().await, None);
    }

    /// The broker closes the connection; what was on its way comes first.
    pub async fn expect_close_at_last(&mut self) {
        while self.receive().await.is_some() {}
    }

    const fn after_id(&self) -> usize {
        match self.version {
            Version::V4 => 2,
            Version::V5 => 3,
        }
    }
}

pub fn string(text: &str) -> Vec<u8> {
    let mut out = u16::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    out.extend(text.as_bytes());
    out
}

pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut length = body.len();
    loop {
        let low = u8::try_from(length & 0x7f).unwrap();
        length >>= 7;
        if length == 0 {
            out.push(low);
            break;
        }
        out.push(low | 0x80);
    }
    out.extend(body);
    out
}

/// Waits until the broker's counters say so.
pub async fn until(broker: &Broker, what: &str, reached: impl Fn(&fleetkey_broker::Stats) -> bool) {
    let waiting = async {
        while !reached(&broker.stats()) {
            tokio::task::yield_now().await;
        }
    };
    if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
        panic!("{what}: {:?}", broker.stats());
    }
}

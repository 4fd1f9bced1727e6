//! What is said to a part, and what it answers.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::AddAssign;
use std::path::PathBuf;

use fleetkey_policy::PolicyUpdate;
use fleetkey_swarm::Traffic;
use fleetkey_wire::{DeviceId, FleetId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::usage::Usage;

/// Longer messages are nonsense: a hundred thousand devices with their certificates take less.
const MAX_BYTES: u32 = 512 * 1024 * 1024;

/// A party's papers, as PEM: its certificate chain, leaf first, and its key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Papers {
    /// The chain.
    pub chain: String,
    /// The key.
    pub key: String,
}

/// The first words to a broker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BrokerBegin {
    /// The fleet that it serves.
    pub fleet: FleetId,
    /// The fleet's roots, as PEM.
    pub roots: String,
    /// With these papers over TLS; else plain TCP on the loopback interface.
    pub papers: Option<Papers>,
    /// Whether rumqttd's router carries cell messages, instead of the map.
    pub router: bool,
    /// The most clients.
    pub max_connections: usize,
    /// Where it listens: where another one did, whose place it takes. Else at a free port.
    pub address: Option<SocketAddr>,
    /// The broker that it is an edge of.
    pub above: Option<SocketAddr>,
    /// Threads that its connections share.
    pub threads: usize,
}

/// What a broker is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum BrokerOrder {
    /// The policy changes. Not answered.
    Policy(PolicyUpdate),
    /// How is it doing?
    Look,
}

/// What a broker answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum BrokerAnswer {
    /// It listens there.
    Listening(SocketAddr),
    /// How it is doing.
    Seen(Box<BrokerSeen>),
}

/// How a broker is doing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BrokerSeen {
    /// Clients connected.
    pub sessions: u64,
    /// Messages handed to clients.
    pub deliveries: u64,
    /// Sessions that it has ended, by reason.
    pub closed: BTreeMap<String, u64>,
    /// What it has refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// What it has cost.
    pub usage: Usage,
}

/// The first words to devices.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DevicesBegin {
    /// Their fleet.
    pub fleet: FleetId,
    /// Its roots, as PEM.
    pub roots: String,
    /// The coordinator's chain, as PEM.
    pub coordinator: String,
    /// The broker.
    pub broker: SocketAddr,
    /// What its certificate is for, if it speaks TLS.
    pub broker_name: Option<String>,
    /// The first of the addresses that connections come from.
    pub from: Option<Ipv4Addr>,
    /// Threads that they share.
    pub threads: usize,
    /// Connections that are made at once, on each thread.
    pub max_connecting: usize,
    /// Devices on one connection: more than one share a gateway's.
    pub per_connection: usize,
    /// What gateways show, if the broker speaks TLS.
    pub relay: Option<Papers>,
}

/// Which devices, by the numbers in which they were made: from the first to before the last.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Which {
    /// Those from the first number to before the second.
    Range(usize, usize),
    /// These.
    Ids(Vec<DeviceId>),
}

/// What devices are told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum DevicesOrder {
    /// So many more, without a connection. Answered with who they are.
    Make(usize),
    /// The chains of the devices made last, as PEM, in their order.
    Certify(Vec<String>),
    /// Connect, and stay connected.
    Connect(Which),
    /// Like pulling the cable.
    Disconnect(Which),
    /// Their power is gone: what is left of their agents is what these have stored. They start with the next [`Self::Connect`].
    CutPower(Which),
    /// Connect and subscribe, and nothing else, from now on; or be devices again.
    Bare(Which, bool),
    /// Answer each message of a cell with so many bytes, without a look at it; or have the agents look again.
    Echo(Option<usize>),
    /// How are they doing?
    Look,
    /// Which of these has the coordinator answered, on the connection that they have now?
    WhoIsAnswered(Vec<DeviceId>),
    /// How many of those that are bare have all their subscriptions, on the connection that they have now?
    HowManyAreSubscribed,
}

/// A device that was made: the key never leaves its process.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Made {
    /// Who it is.
    pub id: DeviceId,
    /// Its public key (Ed25519).
    pub public_key: [u8; 32],
}

/// How devices are doing, all of a part together.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Seen {
    /// Devices.
    pub devices: usize,
    /// Connections that the broker has accepted, and are there.
    pub connected: usize,
    /// Connections that were lost, or refused.
    pub lost: u64,
    /// Devices in a group at least.
    pub in_group: usize,
    /// Key epochs that devices were shown with two secrets.
    pub alarms: u64,
    /// What came and went.
    pub traffic: Traffic,
    /// What a device received, in bytes, each on its own, in the order in which they were made.
    pub received_bytes: Vec<u64>,
    /// What a device said, likewise.
    pub sent_bytes: Vec<u64>,
    /// What their agents have refused, by name.
    pub refused: BTreeMap<String, u64>,
    /// Messages that were answered without a look.
    pub echoed: u64,
    /// What their process has cost.
    pub usage: Usage,
}

impl AddAssign for Seen {
    /// Both together; what is told of each device on its own stands in the order of the two.
    fn add_assign(&mut self, other: Self) {
        self.devices += other.devices;
        self.connected += other.connected;
        self.lost += other.lost;
        self.in_group += other.in_group;
        self.alarms += other.alarms;
        self.traffic += other.traffic;
        self.received_bytes.extend(other.received_bytes);
        self.sent_bytes.extend(other.sent_bytes);
        self.echoed += other.echoed;
        self.usage += other.usage;
        for (name, count) in other.refused {
            *self.refused.entry(name).or_default() += count;
        }
    }
}

/// What devices answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum DevicesAnswer {
    /// The devices that were made.
    Made(Vec<Made>),
    /// It is done, or under way.
    Done,
    /// How they are doing.
    Seen(Box<Seen>),
    /// Those who are answered, and how many microseconds ago they were.
    Answered(Vec<(DeviceId, u64)>),
    /// Bare devices that have all their subscriptions.
    Subscribed {
        /// How many.
        devices: usize,
        /// How long ago the last of them had.
        microseconds_since_the_last: u64,
    },
}

/// The only words to a coordinator by itself.
#[derive(Clone, Serialize, Deserialize)]
pub struct CoordinatorBegin {
    /// Its database.
    pub database: PathBuf,
    /// The key that its secrets are sealed under.
    pub master_key: [u8; 32],
    /// Its fleet.
    pub fleet: FleetId,
    /// Its identity key.
    pub seed: [u8; 32],
    /// Its certificate's generation.
    pub generation: u32,
    /// Its chain, DER, leaf first.
    pub chain: Vec<Vec<u8>>,
}

/// What it answers.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct CoordinatorStarted {
    /// From opening the database until it can decide.
    pub elapsed_microseconds: u64,
    /// Processor time of that, all threads.
    pub cpu_microseconds: u64,
    /// Memory in use before.
    pub empty_bytes: u64,
    /// Memory in use after.
    pub resident_bytes: u64,
    /// The most on the way.
    pub peak_resident_bytes: u64,
}

/// Says one thing.
pub(crate) fn say(to: &mut impl Write, what: &impl Serialize) -> io::Result<()> {
    to.write_all(&encode(what)?)?;
    to.flush()
}

pub(crate) fn encode(what: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    ciborium::into_writer(what, &mut bytes).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len() - 4).map_err(io::Error::other)?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    Ok(bytes)
}

/// Hears one thing; nothing when the other side has ended.
pub(crate) fn hear<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut bytes = vec![0; bounded(length)?];
    from.read_exact(&mut bytes)?;
    decode(&bytes).map(Some)
}

pub(crate) fn bounded(length: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(length);
    if length > MAX_BYTES {
        return Err(io::Error::other("a message without measure"));
    }
    usize::try_from(length).map_err(io::Error::other)
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    ciborium::from_reader(bytes).map_err(io::Error::other)
}

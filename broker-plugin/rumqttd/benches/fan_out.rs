//! One message to every cell, received by every member: rumqttd's router against the exact map, in the same run.
//!
//! ```text
//! cargo bench -p fleetkey-broker --bench fan_out -- [--subscribers N] [--rounds N] [--qos 0|1] [--only router|exact_map]
//! ```
//!
//! Broker, publisher and subscribers share this process and its cores; every subscriber is a TCP connection of its
//! own. Rounds of the two fan-outs alternate, so that both see the same machine. The limit of open files bounds the
//! subscribers: two each, and twice that for two fan-outs.

#![expect(clippy::print_stdout, reason = "what it prints is its result")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fleetkey_broker::policy::{CellAccess, PolicyHandle, PolicyState};
use fleetkey_broker::{Broker, BrokerConfig, FanOutKind, Listener};
use fleetkey_wire::{CellId, DeviceId, FleetId, Topic};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;

const FLEET: FleetId = FleetId::from_bytes([7; 16]);
const CELL_CAPACITY: usize = 64;
const PAYLOAD_BYTES: usize = 260;
const WARM_UP_ROUNDS: usize = 3;

struct Arguments {
    subscribers: usize,
    rounds: usize,
    qos: u8,
    kinds: Vec<FanOutKind>,
}

/// Counts down what is still to be received in a round.
struct Round {
    missing: AtomicUsize,
    done: Notify,
}

/// A broker with its subscribers and one publisher.
struct Bench {
    kind: FanOutKind,
    broker: Broker,
    publisher: TcpStream,
    /// The publishes of one round, ready to be sent.
    publishes: Vec<u8>,
    round: Arc<Round>,
    subscribers: usize,
    kib_per_subscriber: u64,
    times: Vec<Duration>,
}

#[tokio::main]
async fn main() {
    let arguments = arguments();
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    println!(
        "{} subscribers in cells of {CELL_CAPACITY}, {PAYLOAD_BYTES} bytes to every cell at QoS {}, {} rounds",
        arguments.subscribers, arguments.qos, arguments.rounds
    );
    let mut benches = Vec::new();
    for kind in &arguments.kinds {
        benches.push(Bench::start(*kind, &arguments).await);
    }
    for round in 0..WARM_UP_ROUNDS + arguments.rounds {
        for bench in &mut benches {
            let time = bench.round().await;
            if round >= WARM_UP_ROUNDS {
                bench.times.push(time);
            }
        }
    }
    let mut medians = Vec::new();
    for bench in &mut benches {
        bench.times.sort();
        let at = |share: usize| bench.times[(bench.times.len() * share / 100).min(bench.times.len() - 1)];
        println!(
            "{:<10} all received: p50 {:>6.1} ms, p90 {:>6.1} ms, max {:>6.1} ms; {} KiB per subscriber when subscribed",
            format!("{:?}", bench.kind),
            at(50).as_secs_f64() * 1e3,
            at(90).as_secs_f64() * 1e3,
            at(100).as_secs_f64() * 1e3,
            bench.kib_per_subscriber,
        );
        medians.push(at(50).as_secs_f64());
    }
    if let [router, exact_map] = medians[..] {
        println!("router : exact map = {:.2} : 1", router / exact_map);
    }
    for bench in benches {
        bench.broker.shutdown().await;
    }
}

impl Bench {
    async fn start(kind: FanOutKind, arguments: &Arguments) -> Self {
        let policy = PolicyHandle::new(PolicyState::new(FLEET, CellAccess::AnyDevice));
        let loopback = "127.0.0.1:0".parse().expect("an address");
        let mut config = BrokerConfig::new(FLEET).listen(Listener::insecure_loopback(loopback));
        config.fan_out = kind;
        let broker = Broker::start(config, policy).expect("start the broker");
        let address = broker.local_addrs()[0];
        let before_kib = resident_kib();
        let round = Arc::new(Round { missing: AtomicUsize::new(0), done: Notify::new() });
        for number in 0..arguments.subscribers {
            let stream = subscriber(address, number, arguments.qos).await;
            tokio::spawn(receive(stream, round.clone(), arguments.qos));
        }
        let kib_per_subscriber = (resident_kib().saturating_sub(before_kib)) / arguments.subscribers as u64;
        let publisher = connect(address, "coordinator").await;
        let mut publishes = Vec::new();
        for number in 0..arguments.subscribers.div_ceil(CELL_CAPACITY) {
            publishes.extend(publish(&topic(number), arguments.qos));
        }
        Self {
            kind,
            broker,
            publisher,
            publishes,
            round,
            subscribers: arguments.subscribers,
            kib_per_subscriber,
            times: Vec::new(),
        }
    }

    async fn round(&mut self) -> Duration {
        self.round.missing.store(self.subscribers, Ordering::SeqCst);
        let started = Instant::now();
        let done = self.round.done.notified();
        self.publisher.write_all(&self.publishes).await.expect("publish");
        tokio::time::timeout(Duration::from_secs(60), done).await.expect("everything is received");
        let time = started.elapsed();
        // Acknowledgements of QoS 1, if any, must not pile up.
        let mut ignored = [0; 4096];
        while self.publisher.try_read(&mut ignored).is_ok() {}
        time
    }
}

async fn receive(mut stream: TcpStream, round: Arc<Round>, qos: u8) {
    let expected = publish(&topic(0), qos).len();
    let mut received = 0;
    let mut bytes = [0; 1024];
    while let Ok(read @ 1..) = stream.read(&mut bytes).await {
        received += read;
        if received == expected {
            received = 0;
            if qos == 1 {
                let at = expected - PAYLOAD_BYTES - 2;
                // Packets are far shorter than the buffer: one read holds the packet id.
                let ack = [0x40, 2, bytes[at], bytes[at + 1]];
                stream.write_all(&ack).await.expect("acknowledge");
            }
            if round.missing.fetch_sub(1, Ordering::SeqCst) == 1 {
                round.done.notify_one();
            }
        }
    }
}

async fn subscriber(address: SocketAddr, number: usize, qos: u8) -> TcpStream {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&(number as u64).to_be_bytes());
    let mut stream = connect(address, &DeviceId::from_bytes(id).to_string()).await;
    let mut body = vec![0, 1];
    body.extend(string(&topic(number / CELL_CAPACITY)));
    body.push(qos);
    stream.write_all(&packet(0x82, &body)).await.expect("subscribe");
    let mut ack = [0; 5];
    stream.read_exact(&mut ack).await.expect("SUBACK");
    assert_eq!(ack, [0x90, 3, 0, 1, qos]);
    stream
}

async fn connect(address: SocketAddr, client_id: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    let mut stream = socket.connect(address).await.expect("connect");
    stream.set_nodelay(true).expect("set nodelay");
    let mut body = string("MQTT");
    body.extend([4, 2, 0, 0]);
    body.extend(string(client_id));
    stream.write_all(&packet(0x10, &body)).await.expect("CONNECT");
    let mut ack = [0; 4];
    stream.read_exact(&mut ack).await.expect("CONNACK");
    assert_eq!(ack, [0x20, 2, 0, 0]);
    stream
}

fn topic(cell: usize) -> String {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&(cell as u64).to_be_bytes());
    Topic::Cell { fleet: FLEET, cell: CellId::from_bytes(id) }.to_string()
}

fn publish(topic: &str, qos: u8) -> Vec<u8> {
    let mut body = string(topic);
    if qos == 1 {
        body.extend([0, 1]);
    }
    body.extend([0x5a; PAYLOAD_BYTES]);
    packet(0x30 | qos << 1, &body)
}

fn string(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u16).to_be_bytes().to_vec();
    out.extend(text.as_bytes());
    out
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut length = body.len();
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend(body);
    out
}

/// Memory of this process: broker and subscribers together, which is the same for both fan-outs but for what they add.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse().ok()).unwrap_or(0)
}

fn arguments() -> Arguments {
    let mut arguments = Arguments {
        subscribers: 4_096,
        rounds: 30,
        qos: 0,
        kinds: vec![FanOutKind::Router, FanOutKind::ExactMap],
    };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        // Cargo adds it.
        if name == "--bench" {
            continue;
        }
        let value = given.next().unwrap_or_else(|| panic!("{name} needs a value"));
        let number = || value.parse().unwrap_or_else(|_| panic!("{name} needs a number"));
        match (name.as_str(), value.as_str()) {
            ("--subscribers", _) => arguments.subscribers = number(),
            ("--rounds", _) => arguments.rounds = number(),
            ("--qos", "0") => arguments.qos = 0,
            ("--qos", "1") => arguments.qos = 1,
            ("--only", "router") => arguments.kinds = vec![FanOutKind::Router],
            ("--only", "exact_map") => arguments.kinds = vec![FanOutKind::ExactMap],
            (name, value) => panic!("unknown argument {name} {value}"),
        }
    }
    arguments
}

//! Connections of a shard at a real broker.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fleetkey_broker::{Broker, BrokerConfig, Listener};
use fleetkey_policy::{CellAccess, PolicyHandle, PolicyState, PolicyUpdate};
use fleetkey_swarm::{Outbox, Rider, Route, Seat, Shard, ShardOptions};
use fleetkey_wire::{CellId, DeviceId, Filter, FleetId, Topic};

const FLEET: FleetId = FleetId::from_bytes([1; 16]);
const CELL: CellId = CellId::from_bytes([2; 16]);
const PATIENCE: Duration = Duration::from_secs(30);

fn device(number: u8) -> DeviceId {
    DeviceId::from_bytes([100 + number; 16])
}

#[derive(Default)]
struct Tally {
    connected: AtomicU64,
    granted: AtomicU64,
    refused: AtomicU64,
    heard: AtomicU64,
}

/// Subscribes to one topic, and answers what comes on another.
struct Echo {
    id: String,
    filter: String,
    answers_on: Option<String>,
    tally: Arc<Tally>,
}

impl Rider for Echo {
    fn client_id(&self) -> String {
        self.id.clone()
    }

    fn connected(&mut self, out: &mut Outbox) {
        self.tally.connected.fetch_add(1, Ordering::SeqCst);
        out.subscribe(self.filter.clone());
    }

    fn disconnected(&mut self, _: &mut Outbox) {}

    fn subscribed(&mut self, topic: &str, is_granted: bool, _: &mut Outbox) {
        assert_eq!(topic, self.filter);
        let which = if is_granted { &self.tally.granted } else { &self.tally.refused };
        which.fetch_add(1, Ordering::SeqCst);
    }

    fn message(&mut self, _: &str, payload: &[u8], out: &mut Outbox) {
        self.tally.heard.fetch_add(1, Ordering::SeqCst);
        if let Some(topic) = &self.answers_on {
            out.publish(topic.as_str(), payload.to_vec());
        }
    }

    fn timeout(&mut self, _: &mut Outbox) {}

    fn next_timeout(&self) -> Option<Instant> {
        None
    }
}

fn echoes(count: u8, tally: &Arc<Tally>) -> Vec<Echo> {
    let echo = |number| Echo {
        id: device(number).to_string(),
        filter: Topic::Cell { fleet: FLEET, cell: CELL }.to_string(),
        answers_on: Some(Topic::Up { fleet: FLEET, device: device(number) }.to_string()),
        tally: Arc::clone(tally),
    };
    (0..count).map(echo).collect()
}

fn coordinator(tally: &Arc<Tally>) -> Echo {
    let filter = Filter::AllUp { fleet: FLEET }.to_string();
    Echo { id: "coordinator-test".to_owned(), filter, answers_on: None, tally: Arc::clone(tally) }
}

fn policy(sequence: u64, members: u8) -> PolicyUpdate {
    let members: BTreeSet<DeviceId> = (0..members).map(device).collect();
    PolicyUpdate::Snapshot { sequence, revoked: BTreeSet::new(), cells: BTreeMap::from([(CELL, members)]) }
}

fn start_broker(address: SocketAddr, policy: &PolicyHandle) -> Broker {
    let config = BrokerConfig::new(FLEET).listen(Listener::insecure_loopback(address));
    Broker::start(config, policy.clone()).unwrap()
}

fn add(shard: &Shard<Echo>, riders: Vec<Echo>, broker: SocketAddr) -> Vec<Seat> {
    let add = move |crew: &mut fleetkey_swarm::Crew<Echo>| {
        let seats: Vec<Seat> =
            riders.into_iter().map(|rider| crew.add(rider, Route::plain(broker))).collect();
        seats.iter().for_each(|seat| crew.connect(*seat));
        seats
    };
    shard.call(add).unwrap()
}

/// Waits until a counter has come to `value`.
async fn reaches(counter: &AtomicU64, value: u64) {
    let deadline = Instant::now() + PATIENCE;
    while counter.load(Ordering::SeqCst) < value {
        assert!(Instant::now() < deadline, "{} of {value}", counter.load(Ordering::SeqCst));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn shard() -> Shard<Echo> {
    let options = ShardOptions {
        max_connecting: 8,
        back_off_min: Duration::from_millis(50),
        ..ShardOptions::default()
    };
    Shard::start("test", options).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_reaches_every_rider_and_each_answer_comes_back() {
    let handle = PolicyHandle::new(PolicyState::new(FLEET, CellAccess::Members));
    _ = handle.apply(policy(1, 100)).unwrap();
    let broker = start_broker("127.0.0.1:0".parse().unwrap(), &handle);
    let (shard, devices, judge) = (shard(), Arc::new(Tally::default()), Arc::new(Tally::default()));
    let seat = add(&shard, vec![coordinator(&judge)], broker.local_addrs()[0])[0];
    add(&shard, echoes(100, &devices), broker.local_addrs()[0]);
    reaches(&devices.granted, 100).await;
    reaches(&judge.granted, 1).await;
    for round in 1..=3 {
        let topic = Topic::Cell { fleet: FLEET, cell: CELL }.to_string();
        shard.call(move |crew| crew.with(seat, |_, out| out.publish(topic, vec![7; 300]))).unwrap();
        reaches(&judge.heard, 100 * round).await;
    }
    assert_eq!(devices.heard.load(Ordering::SeqCst), 300);
    assert_eq!(shard.call(|crew| (crew.open(), crew.lost())).unwrap(), (101, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_subscription_is_asked_for_until_it_is_granted() {
    let handle = PolicyHandle::new(PolicyState::new(FLEET, CellAccess::Members));
    _ = handle.apply(policy(1, 0)).unwrap();
    let broker = start_broker("127.0.0.1:0".parse().unwrap(), &handle);
    let (shard, devices) = (shard(), Arc::new(Tally::default()));
    add(&shard, echoes(3, &devices), broker.local_addrs()[0]);
    reaches(&devices.refused, 6).await;
    assert_eq!(devices.granted.load(Ordering::SeqCst), 0);
    _ = handle.apply(policy(2, 3)).unwrap();
    reaches(&devices.granted, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn riders_come_back_when_the_broker_does_and_stay_away_when_unplugged() {
    let handle = PolicyHandle::new(PolicyState::new(FLEET, CellAccess::Members));
    _ = handle.apply(policy(1, 20)).unwrap();
    let broker = start_broker("127.0.0.1:0".parse().unwrap(), &handle);
    let address = broker.local_addrs()[0];
    let (shard, devices) = (shard(), Arc::new(Tally::default()));
    let seats = add(&shard, echoes(20, &devices), address);
    reaches(&devices.granted, 20).await;
    broker.shutdown().await;
    let unplugged = seats[0];
    shard.call(move |crew| crew.disconnect(unplugged)).unwrap();
    let broker = start_broker(address, &handle);
    reaches(&devices.granted, 39).await;
    assert_eq!(broker.stats().sessions, 19);
    assert_eq!(shard.call(|crew| crew.open()).unwrap(), 19);
    shard.call(move |crew| crew.connect(unplugged)).unwrap();
    reaches(&devices.granted, 40).await;
}

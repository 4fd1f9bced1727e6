//! One broker as an edge of another: what passes, what does not, and what becomes of it when either is gone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use fleetkey_broker::policy::{CellAccess, PolicyHandle, PolicyState, PolicyUpdate};
use fleetkey_broker::{Broker, BrokerConfig, FanOutKind, Limits, Listener, QueueLimit, Upstream};
use fleetkey_identity::Role;
use support::{
    A, B, CELL, CELL_2, Client, EVERY_WAY, FAN_OUTS, FLEET, Fixture, PLENTY, Transport, Version, all_up,
    cell, down, policy, until, up,
};

const LOOPBACK: &str = "127.0.0.1:0";

/// An edge of the broker at this address, over plain TCP, with a policy of its own.
fn edge_of(central: SocketAddr, policy: &PolicyHandle, change: impl FnOnce(&mut BrokerConfig)) -> Broker {
    let mut config = BrokerConfig::new(FLEET).listen(Listener::insecure_loopback(LOOPBACK.parse().unwrap()));
    let url = format!("mqtt://{central}").parse().unwrap();
    config.upstream = Some(Upstream::new(url, "relay-1"));
    change(&mut config);
    Broker::start(config, policy.clone()).unwrap()
}

async fn device_at(edge: &Broker, device: fleetkey_wire::DeviceId) -> Client {
    let mut client = Client::plain(edge.local_addrs()[0], Version::V5).await;
    assert_eq!(client.connect(&device.to_string()).await, 0);
    client
}

async fn way_up(edge: &Broker) {
    until(edge, "the way up is there", |stats| stats.is_upstream_there).await;
}

/// A device behind the edge, with its subscriptions in force above.
async fn settled(edge: &Broker, central: &Broker, device: fleetkey_wire::DeviceId) -> Client {
    let mut client = device_at(edge, device).await;
    assert_eq!(client.subscribe(&[(&cell(CELL), 1), (&down(device), 1)]).await, [1, 1]);
    // What it says goes up after what it subscribes to.
    let before = central.stats().publishes;
    client.publish(&up(device), b"here", 1).await;
    until(central, "a word of the device", |stats| stats.publishes > before).await;
    client
}

/// A listener for what devices say, to be there before they say it.
async fn coordinator(central: &Fixture) -> Client {
    let mut client = central.coordinator(Transport::Tcp, Version::V4).await;
    assert_eq!(client.subscribe(&[(&all_up(), 0)]).await, [0]);
    client
}

#[tokio::test]
async fn messages_pass_an_edge_both_ways() {
    for fan_out in FAN_OUTS {
        let central = Fixture::start(fan_out);
        let edge = edge_of(central.plain(), &policy(), |config| config.fan_out = fan_out);
        way_up(&edge).await;
        let mut coordinator = coordinator(&central).await;
        let mut a = settled(&edge, &central.broker, A).await;
        let mut b = settled(&edge, &central.broker, B).await;
        for device in [A, B] {
            let heard = coordinator.expect_publish().await;
            assert_eq!((heard.topic, heard.payload), (up(device), b"here".to_vec()));
        }
        coordinator.publish(&cell(CELL), b"to all", 1).await;
        assert_eq!(a.expect_publish().await.payload, b"to all");
        assert_eq!(b.expect_publish().await.payload, b"to all");
        // Not before: the two go different ways where a router carries cells.
        coordinator.publish(&down(B), b"to one", 1).await;
        assert_eq!(b.expect_publish().await.payload, b"to one");
        a.expect_nothing().await;
        // One message for the two devices in the cell, one for the one.
        until(&central.broker, "two messages to the relay", |stats| stats.deliveries == 4).await;
    }
}

#[tokio::test]
async fn an_edge_asks_for_the_cells_of_its_sessions_only() {
    let central = Fixture::start(FanOutKind::ExactMap);
    let edge = edge_of(central.plain(), &policy(), |_| {});
    way_up(&edge).await;
    let mut coordinator = coordinator(&central).await;
    let mut a = settled(&edge, &central.broker, A).await;
    let mut b = settled(&edge, &central.broker, B).await;
    coordinator.publish(&cell(CELL_2), b"nobody's", 0).await;
    a.unsubscribe(&cell(CELL)).await;
    coordinator.publish(&cell(CELL), b"still B's", 0).await;
    assert_eq!(b.expect_publish().await.payload, b"still B's");
    let received = edge.stats().publishes;
    assert_eq!(received, 3, "two words of devices, and one message from above");
    // The last one that wanted it is gone: so is the subscription, and what is said now goes to nobody behind the edge.
    drop(b);
    until(&edge, "B is gone", |stats| stats.sessions == 1).await;
    a.publish(&up(A), b"after", 1).await;
    coordinator.expect_publish().await;
    coordinator.expect_publish().await;
    assert_eq!(coordinator.expect_publish().await.payload, b"after");
    let delivered = central.broker.stats().deliveries;
    coordinator.publish(&cell(CELL), b"nobody's any more", 0).await;
    coordinator.publish(&down(B), b"nor this", 0).await;
    coordinator.publish(&down(A), b"the end", 0).await;
    assert_eq!(a.expect_publish().await.payload, b"the end");
    assert_eq!(central.broker.stats().deliveries, delivered + 1);
}

#[tokio::test]
async fn an_edge_comes_in_with_its_certificate_and_devices_meet_it_with_theirs() {
    let central = Fixture::start(FanOutKind::ExactMap);
    let edge = edge_of(central.plain(), &policy(), |config| {
        config.listeners = vec![Listener::tls(LOOPBACK.parse().unwrap(), central.pki.server())];
        let url = format!("mqtts://localhost:{}", central.tls().port()).parse().unwrap();
        let mut upstream = Upstream::new(url, "relay-1");
        upstream.tls = Some(central.pki.client(&Role::Broker));
        config.upstream = Some(upstream);
    });
    way_up(&edge).await;
    let mut coordinator = central.coordinator(Transport::Tls, Version::V5).await;
    assert_eq!(coordinator.subscribe(&[(&all_up(), 1)]).await, [1]);
    let role = central.pki.client(&Role::Device(A));
    let mut device = Client::tls(edge.local_addrs()[0], Version::V5, role).await.unwrap();
    assert_eq!(device.connect(&A.to_string()).await, 0);
    assert_eq!(device.subscribe(&[(&down(A), 1)]).await, [1]);
    device.publish(&up(A), b"there", 1).await;
    assert_eq!(coordinator.expect_publish().await.payload, b"there");
    coordinator.publish(&down(A), b"and back", 1).await;
    assert_eq!(device.expect_publish().await.payload, b"and back");
}

#[tokio::test]
async fn a_device_is_no_relay_and_a_relay_no_coordinator() {
    for (transport, version) in EVERY_WAY {
        let central = Fixture::start(FanOutKind::ExactMap);
        if transport == Transport::Tls {
            let mut device = central.reach(transport, version, &Role::Device(A)).await;
            assert_ne!(device.connect("relay-1").await, 0);
        }
        let mut device = central.device(transport, version, A).await;
        assert_eq!(device.subscribe(&[(&down(B), 1)]).await[0] & 0x80, 0x80);
        let mut witness = central.device(Transport::Tcp, Version::V4, B).await;
        assert_eq!(witness.subscribe(&[(&cell(CELL), 0), (&down(B), 0)]).await, [0, 0]);
        for topic in [cell(CELL), down(B)] {
            let mut relay = central.reach(transport, version, &Role::Broker).await;
            assert_eq!(relay.connect("relay-1").await, 0);
            assert_eq!(relay.subscribe(&[(&all_up(), 1)]).await[0] & 0x80, 0x80);
            let hostile = relay.publish_packet(&topic, b"hostile", 0);
            relay.send(&hostile).await;
            relay.expect_close_at_last().await;
        }
        witness.expect_nothing().await;
        assert_eq!(central.broker.stats().refused("coordinator_publishes"), 2);
    }
}

#[tokio::test]
async fn what_a_relays_device_may_not_say_is_dropped_and_the_others_go_on() {
    let central = Fixture::start(FanOutKind::ExactMap);
    let mut coordinator = coordinator(&central).await;
    _ = central.policy.apply(PolicyUpdate::Revoked { sequence: 1, device: A }).unwrap();
    let mut relay = central.reach(Transport::Tls, Version::V4, &Role::Broker).await;
    assert_eq!(relay.connect("relay-1").await, 0);
    assert_eq!(relay.subscribe(&[(&down(A), 1), (&down(B), 1)]).await, [0x80, 1]);
    relay.publish(&up(A), b"of a revoked device", 0).await;
    relay.publish(&up(B), &[0; 33 * 1024], 0).await;
    relay.publish(&up(B), b"fine", 0).await;
    assert_eq!(coordinator.expect_publish().await.payload, b"fine");
    let stats = central.broker.stats();
    assert_eq!((stats.refused("revoked"), stats.refused("payload_too_large")), (2, 1));
}

#[tokio::test]
async fn nothing_for_a_revoked_device_is_handed_to_its_relay() {
    let central = Fixture::start(FanOutKind::ExactMap);
    let (policy, mut coordinator) = (policy(), coordinator(&central).await);
    let edge = edge_of(central.plain(), &policy, |_| {});
    way_up(&edge).await;
    let mut a = settled(&edge, &central.broker, A).await;
    let mut b = settled(&edge, &central.broker, B).await;
    let revoked = PolicyUpdate::Revoked { sequence: 1, device: A };
    // The broker above hears of it first.
    _ = central.policy.apply(revoked.clone()).unwrap();
    coordinator.publish(&down(A), b"not for it", 0).await;
    coordinator.publish(&down(B), b"for this one", 0).await;
    assert_eq!(b.expect_publish().await.payload, b"for this one");
    a.expect_nothing().await;
    a.publish(&up(A), b"too late", 0).await;
    until(&central.broker, "a refusal", |stats| stats.refused("revoked") == 1).await;
    // Then the edge, whose client it is.
    _ = policy.apply(revoked).unwrap();
    a.expect_close(0x87).await;
    b.publish(&up(B), b"still here", 0).await;
    for heard in [&b"here"[..], b"here", b"still here"] {
        assert_eq!(coordinator.expect_publish().await.payload, heard);
    }
}

#[tokio::test]
async fn a_relay_is_not_cut_off_where_a_device_is() {
    let limits = Limits {
        device_queue: QueueLimit { messages: 4, bytes: 64 * 1024 },
        max_subscriptions_per_device: 2,
        device_rate: fleetkey_broker::RateLimit { packets_per_second: 1, burst_packets: 8, ..PLENTY },
        ..Limits::default()
    };
    let central = Fixture::with(FanOutKind::ExactMap, limits, policy());
    let mut coordinator = coordinator(&central).await;
    let mut relay = central.reach(Transport::Tcp, Version::V4, &Role::Broker).await;
    assert_eq!(relay.connect("relay-1").await, 0);
    let filters = [cell(CELL), cell(CELL_2), down(A), down(B)];
    assert_eq!(relay.subscribe(&filters.each_ref().map(|filter| (&**filter, 0))).await, [0; 4]);
    for round in 0..50u8 {
        coordinator.publish(&cell(CELL), &[round; 30_000], 0).await;
        relay.publish(&up(A), &[round], 0).await;
    }
    for round in 0..50u8 {
        assert_eq!(relay.expect_publish().await.payload, [round; 30_000]);
        assert_eq!(coordinator.expect_publish().await.payload, [round]);
    }
    assert_eq!(central.broker.stats().throttled, 0);
}

#[tokio::test]
async fn sessions_end_when_the_way_up_was_lost_and_is_there_again() {
    let central = Fixture::start(FanOutKind::ExactMap);
    let address = central.plain();
    let edge = edge_of(address, &policy(), |_| {});
    way_up(&edge).await;
    let mut a = settled(&edge, &central.broker, A).await;
    central.broker.shutdown().await;
    until(&edge, "the way up is lost", |stats| !stats.is_upstream_there).await;
    // A moment without it is nobody's business yet.
    a.expect_nothing().await;
    let handle = policy();
    let config = BrokerConfig::new(FLEET).listen(Listener::insecure_loopback(address));
    let central = Broker::start(config, handle).unwrap();
    a.expect_close(0x9c).await;
    assert_eq!(edge.stats().closed("upstream_lost"), 1);
    let mut a = settled(&edge, &central, A).await;
    let mut coordinator = Client::plain(address, Version::V4).await;
    assert_eq!(coordinator.connect("coordinator").await, 0);
    coordinator.publish(&cell(CELL), b"on it goes", 0).await;
    assert_eq!(a.expect_publish().await.payload, b"on it goes");
}

#[tokio::test]
async fn nobody_is_let_in_while_the_way_up_is_closed() {
    let central = Fixture::start(FanOutKind::ExactMap);
    let address = central.plain();
    let edge = edge_of(address, &policy(), |config| {
        config.upstream.as_mut().unwrap().patience = Duration::from_millis(50);
    });
    way_up(&edge).await;
    let mut a = settled(&edge, &central.broker, A).await;
    central.broker.shutdown().await;
    a.expect_close(0x9c).await;
    let mut a = Client::plain(edge.local_addrs()[0], Version::V5).await;
    assert_eq!(a.connect(&A.to_string()).await, 0x88);
    assert_eq!(edge.stats().refused("no_upstream"), 1);
    let config = BrokerConfig::new(FLEET).listen(Listener::insecure_loopback(address));
    let central = Broker::start(config, policy()).unwrap();
    way_up(&edge).await;
    settled(&edge, &central, A).await;
}

#[tokio::test]
async fn an_edge_that_is_started_again_serves_the_same_devices() {
    let central = Fixture::start(FanOutKind::ExactMap);
    let mut coordinator = coordinator(&central).await;
    for _ in 0..2 {
        let edge = edge_of(central.plain(), &policy(), |_| {});
        way_up(&edge).await;
        let mut a = settled(&edge, &central.broker, A).await;
        assert_eq!(coordinator.expect_publish().await.payload, b"here");
        coordinator.publish(&down(A), b"hello", 0).await;
        assert_eq!(a.expect_publish().await.payload, b"hello");
        edge.shutdown().await;
        until(&central.broker, "the relay is gone", |stats| stats.sessions == 1).await;
        coordinator.publish(&down(A), b"to nobody", 0).await;
        until(&central.broker, "nobody takes it", |stats| stats.undeliverable > 0).await;
    }
}

#[tokio::test]
async fn an_edge_waits_for_a_policy_above() {
    let above = PolicyHandle::new(PolicyState::new(FLEET, CellAccess::Members));
    let central = Fixture::with(FanOutKind::ExactMap, Limits::default(), above);
    let edge = edge_of(central.plain(), &policy(), |_| {});
    until(&edge, "a refusal", |stats| stats.upstream_losses > 1).await;
    assert!(central.broker.stats().refused("policy_unknown") > 0);
    let cells = BTreeMap::from([(CELL, BTreeSet::from([A]))]);
    let known = PolicyUpdate::Snapshot { sequence: 0, revoked: BTreeSet::new(), cells };
    _ = central.policy.apply(known).unwrap();
    way_up(&edge).await;
    settled(&edge, &central.broker, A).await;
}

#[tokio::test]
async fn a_device_that_goes_to_another_edge_is_reached_there() {
    let central = Fixture::start(FanOutKind::ExactMap);
    let mut coordinator = coordinator(&central).await;
    let first = edge_of(central.plain(), &policy(), |_| {});
    let second = edge_of(central.plain(), &policy(), |config| {
        config.upstream.as_mut().unwrap().client_id = "relay-2".to_owned();
    });
    way_up(&first).await;
    way_up(&second).await;
    let mut before = settled(&first, &central.broker, A).await;
    let mut now = settled(&second, &central.broker, A).await;
    coordinator.publish(&down(A), b"wherever", 0).await;
    assert_eq!(before.expect_publish().await.payload, b"wherever");
    assert_eq!(now.expect_publish().await.payload, b"wherever");
    drop(before);
    until(&first, "it is gone", |stats| stats.sessions == 0).await;
    coordinator.publish(&down(A), b"here", 0).await;
    assert_eq!(now.expect_publish().await.payload, b"here");
}

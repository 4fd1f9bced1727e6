//! The door of the embedded broker: certificates that no longer count, devices that say too much, storms.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::{Duration, Instant};

use fleetkey_broker::policy::{PolicyUpdate, Qos};
use fleetkey_broker::{Broker, BrokerConfig, Limits, Listener, RateLimit};
use fleetkey_identity::tls::client_config;
use fleetkey_identity::{Crl, Revocations, Revoked, Role, Validity, read_certificate};
use fleetkey_wire::DeviceId;
use support::*;

/// What a list says that names the certificates of these chains.
fn crl(pki: &Pki, number: u64, chains: &[&[Vec<u8>]]) -> Revocations {
    let revoked: Vec<Revoked> = chains
        .iter()
        .map(|chain| Revoked { serial: read_certificate(&chain[0]).unwrap().serial, unix_seconds: 1 })
        .collect();
    // One without an end would be the CA's last.
    let list = pki.ca.revocation_list(number, Validity::days_from(0, 90_000), &revoked).unwrap();
    Revocations::of(&[Crl::read(&list).unwrap()])
}

#[tokio::test]
async fn a_certificate_on_the_crl_ends_its_session_and_opens_none_while_another_of_the_same_device_does() {
    let fixture = Fixture::start(FAN_OUTS[1]);
    let (old_chain, old_key) = fixture.pki.issue(&Role::Device(A));
    let old = client_config(&old_chain, &old_key, &fixture.pki.roots).unwrap();
    let mut a = Client::tls(fixture.tls(), Version::V5, old.clone()).await.unwrap();
    assert_eq!(a.connect(&A.to_string()).await, 0);
    let mut b = fixture.device(Transport::Tls, Version::V5, B).await;

    assert_eq!(fixture.broker.obey_crl(&crl(&fixture.pki, 1, &[&old_chain])), 1);
    a.expect_close(0x87).await;
    let mut again = Client::tls(fixture.tls(), Version::V5, old).await.unwrap();
    assert_eq!(again.connect(&A.to_string()).await, 0x87);
    let mut renewed = fixture.device(Transport::Tls, Version::V5, A).await;
    for honest in [&mut renewed, &mut b] {
        honest.expect_nothing().await;
    }
    let stats = fixture.broker.stats();
    assert_eq!((stats.refused("revoked_certificate"), stats.closed("revoked_certificate")), (2, 1));
    // The next list takes its place.
    assert_eq!(fixture.broker.obey_crl(&crl(&fixture.pki, 2, &[])), 0);
}

#[tokio::test]
async fn a_list_that_is_there_at_the_start_is_in_force_before_the_first_connection() {
    let pki = Pki::new(FLEET);
    let (chain, key) = pki.issue(&Role::Device(A));
    let mut config = BrokerConfig::new(FLEET);
    config = config.listen(Listener::tls("127.0.0.1:0".parse().unwrap(), pki.server()));
    config.revocations = crl(&pki, 1, &[&chain]);
    let broker = Broker::start(config, policy()).unwrap();
    let tls = client_config(&chain, &key, &pki.roots).unwrap();
    let mut revoked = Client::tls(broker.local_addrs()[0], Version::V5, tls).await.unwrap();
    assert_eq!(revoked.connect(&A.to_string()).await, 0x87);
}

#[tokio::test]
async fn a_session_ends_with_its_certificate() {
    let fixture = Fixture::start(FAN_OUTS[1]);
    let key = fleetkey_identity::IdentityKey::generate(&mut rand_core::OsRng);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let now = i64::try_from(now).unwrap();
    let validity = Validity { not_before_unix_seconds: now - 60, not_after_unix_seconds: now + 3 };
    let leaf = fixture.pki.ca.issue(&Role::Device(A), &key.public_key(), &[], validity).unwrap();
    let config = client_config(&fixture.pki.ca.chain(leaf), &key, &fixture.pki.roots).unwrap();
    let mut a = Client::tls(fixture.tls(), Version::V5, config).await.unwrap();
    assert_eq!(a.connect(&A.to_string()).await, 0);
    a.expect_close(0x87).await;
    assert_eq!(fixture.broker.stats().closed("expired_certificate"), 1);
}

#[tokio::test]
async fn a_device_that_says_too_much_is_slowed_down_then_cut_off_and_others_notice_nothing() {
    let device_rate = RateLimit {
        packets_per_second: 50,
        burst_packets: 100,
        patience: Duration::from_secs(2),
        ..RateLimit::default()
    };
    let fixture = Fixture::with(FAN_OUTS[1], Limits { device_rate, ..Limits::default() }, policy());
    let mut coordinator = fixture.coordinator(Transport::Tcp, Version::V5).await;
    coordinator.subscribe(&[(&all_up(), 0)]).await;
    let mut b = fixture.device(Transport::Tcp, Version::V5, B).await;
    let mut a = fixture.device(Transport::Tcp, Version::V5, A).await;
    let begun = Instant::now();
    let flood = tokio::spawn(async move {
        let packet = a.publish_packet(&up(A), b"flood", 0);
        for _ in 0..5_000 {
            a.try_send(&packet).await;
        }
        a.expect_close_at_last().await;
    });
    until(&fixture.broker, "throttled", |stats| stats.throttled > 0).await;
    assert_eq!(b.publish(&up(B), b"in between", 1).await, 0);
    until(&fixture.broker, "cut off", |stats| stats.closed("rate_exceeded") == 1).await;
    assert!(begun.elapsed() >= Duration::from_secs(2), "patience: {:?}", begun.elapsed());
    flood.await.unwrap();
    let passed = fixture.broker.stats().publishes;
    assert!(passed <= 300, "a burst of 100 and 50 a second: {passed} passed");
    fixture.still_serves().await;
}

#[tokio::test]
async fn answers_to_what_the_broker_sends_cost_a_device_nothing() {
    let device_rate = RateLimit {
        packets_per_second: 1,
        burst_packets: 10,
        patience: Duration::from_secs(1),
        ..RateLimit::default()
    };
    let fixture = Fixture::with(FAN_OUTS[1], Limits { device_rate, ..Limits::default() }, policy());
    let mut coordinator = fixture.coordinator(Transport::Tcp, Version::V5).await;
    let mut a = fixture.device(Transport::Tcp, Version::V5, A).await;
    a.subscribe(&[(&down(A), 1)]).await;
    for n in 0..200u8 {
        coordinator.publish(&down(A), &[n], 1).await;
        assert_eq!(a.expect_publish().await.payload, [n]);
    }
    let stats = fixture.broker.stats();
    assert_eq!((stats.throttled, stats.sessions), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_stall_in_the_handshake_do_not_keep_others_out() {
    let limits =
        Limits { max_handshakes: 2, handshake_timeout: Duration::from_secs(10), ..Limits::default() };
    let fixture = Fixture::with(FAN_OUTS[1], limits, policy());
    // Some say nothing at all, some begin and stop.
    let mut stalled = Vec::new();
    for round in 0..20 {
        let mut client = Client::plain(fixture.tls(), Version::V4).await;
        if round % 2 == 0 {
            client.send(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await;
        }
        stalled.push(client);
    }
    let begun = Instant::now();
    let mut a = fixture.device(Transport::Tls, Version::V5, A).await;
    a.expect_nothing().await;
    // Ten that stall, two at a time, have a second each.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_connections_is_worked_off() {
    let limits = Limits { max_handshakes: 8, ..Limits::default() };
    let fixture = Fixture::with(FAN_OUTS[1], limits, policy());
    let (chain, key) = fixture.pki.issue(&Role::Device(A));
    let config = client_config(&chain, &key, &fixture.pki.roots).unwrap();
    let address = fixture.tls();
    let storm: Vec<_> = (0..300)
        .map(|_| {
            let config = config.clone();
            tokio::spawn(async move { Client::tls(address, Version::V4, config).await.is_ok() })
        })
        .collect();
    let mut through = 0;
    for client in storm {
        through += u32::from(client.await.unwrap());
    }
    assert_eq!(through, 300);
    fixture.still_serves().await;
}

#[tokio::test]
async fn one_address_has_so_many_connections_and_no_more() {
    let limits = Limits { max_connections_per_address: Some(2), ..Limits::default() };
    let fixture = Fixture::with(FAN_OUTS[1], limits, policy());
    let a = fixture.device(Transport::Tcp, Version::V5, A).await;
    let mut b = fixture.device(Transport::Tcp, Version::V5, B).await;
    let mut third = Client::plain(fixture.plain(), Version::V5).await;
    assert_eq!(third.receive().await, None);
    assert_eq!(fixture.broker.stats().refused("too_many_from_address"), 1);
    drop(a);
    until(&fixture.broker, "one is gone", |stats| stats.connections == 1).await;
    let mut again = fixture.device(Transport::Tcp, Version::V5, A).await;
    again.expect_nothing().await;
    b.expect_nothing().await;
}

/// From the change of policy to the closed socket. `FLEETKEY_GATE_SESSIONS` has more of them, if so many files may be open.
#[tokio::test(flavor = "multi_thread")]
async fn revoked_sessions_end_within_a_second() {
    const REVOKED: usize = 50;
    let sessions = std::env::var("FLEETKEY_GATE_SESSIONS").map_or(200, |number| number.parse().unwrap());
    let pki = Pki::new(FLEET);
    let policy = policy();
    let mut config = BrokerConfig::new(FLEET);
    config = config.listen(Listener::tls("127.0.0.1:0".parse().unwrap(), pki.server()));
    let broker = Broker::start(config, policy.clone()).unwrap();
    let address = broker.local_addrs()[0];
    let mut clients = Vec::new();
    for n in 0..sessions {
        let device = DeviceId::from_bytes(u128::to_be_bytes(n));
        let mut client = Client::tls(address, Version::V5, pki.client(&Role::Device(device))).await.unwrap();
        assert_eq!(client.connect(&device.to_string()).await, 0);
        assert_eq!(client.subscribe(&[(&down(device), 1)]).await, [Qos::AtLeastOnce as u8]);
        clients.push((device, client));
    }
    let mut slowest = Duration::ZERO;
    for (sequence, (device, client)) in (1..).zip(clients.iter_mut().take(REVOKED)) {
        let begun = Instant::now();
        policy.apply(PolicyUpdate::Revoked { sequence, device: *device }).unwrap();
        client.expect_close(0x87).await;
        slowest = slowest.max(begun.elapsed());
    }
    println!("slowest of {REVOKED} revocations with {sessions} sessions: {slowest:?}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert_eq!(broker.stats().closed("revoked"), REVOKED as u64);
}

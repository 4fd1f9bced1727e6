//! Sessions come and go.

mod support;

use fleetkey_broker::policy::{CellAccess, PolicyHandle, PolicyState};
use fleetkey_broker::{Broker, BrokerConfig, BrokerError, Identify, Limits, Listener, QueueLimit};
use fleetkey_identity::Role;
use support::*;

#[tokio::test]
async fn a_new_connection_takes_over_from_the_old_one() {
    for fan_out in FAN_OUTS {
        let fixture = Fixture::start(fan_out);
        for (transport, version) in EVERY_WAY {
            let mut coordinator = fixture.coordinator(transport, version).await;
            let mut old = fixture.device(transport, version, A).await;
            old.subscribe(&[(&cell(CELL), 0), (&down(A), 0)]).await;
            let mut new = fixture.device(transport, version, A).await;
            old.expect_close(0x8e).await;
            // Nothing is inherited.
            coordinator.publish(&down(A), b"lost", 0).await;
            coordinator.publish(&cell(CELL), b"lost", 0).await;
            coordinator.expect_nothing().await;
            new.subscribe(&[(&cell(CELL), 0), (&down(A), 0)]).await;
            for topic in [cell(CELL), down(A)] {
                coordinator.publish(&topic, b"new", 0).await;
                assert_eq!(new.expect_publish().await.payload, b"new");
            }
            new.expect_nothing().await;

            let mut second = fixture.reach(transport, version, &coordinator_role()).await;
            assert_eq!(second.connect("coordinator-2").await, 0);
            coordinator.expect_nothing().await;
            assert_eq!(fixture.coordinator(transport, version).await.subscribe(&[(&all_up(), 0)]).await, [0]);
            coordinator.expect_close(0x8e).await;
        }
        assert_eq!(fixture.broker.stats().closed("taken_over"), 8);
    }
}

#[tokio::test]
async fn two_coordinators_both_hear_the_devices() {
    let fixture = Fixture::start(FAN_OUTS[1]);
    let mut a = fixture.device(Transport::Tls, Version::V4, A).await;
    let mut first = fixture.coordinator(Transport::Tls, Version::V4).await;
    let mut second = fixture.reach(Transport::Tls, Version::V5, &coordinator_role()).await;
    assert_eq!(second.connect("coordinator-2").await, 0);
    for coordinator in [&mut first, &mut second] {
        coordinator.subscribe(&[(&all_up(), 0)]).await;
    }
    a.publish(&up(A), b"x", 1).await;
    for coordinator in [&mut first, &mut second] {
        assert_eq!(coordinator.expect_publish().await.topic, up(A));
    }
    drop(first);
    until(&fixture.broker, "one has left", |stats| stats.sessions == 2).await;
    assert_eq!(a.publish(&up(A), b"y", 1).await, 0);
    assert_eq!(second.expect_publish().await.payload, b"y");
}

#[tokio::test]
async fn packets_sent_ahead_of_the_connack_are_handled() {
    let fixture = Fixture::start(FAN_OUTS[1]);
    for (transport, version) in EVERY_WAY {
        let mut a = fixture.reach(transport, version, &Role::Device(A)).await;
        let topic = down(A);
        let all =
            [a.connect_packet(2, 60, &A.to_string(), &[]), a.subscribe_packet(&[(&topic, 0)]), vec![0xc0, 0]]
                .concat();
        // In pieces, so that packets are cut in the middle.
        for piece in all.chunks(7) {
            a.send(piece).await;
        }
        for first in [0x20, 0x90, 0xd0] {
            assert_eq!(a.receive().await.unwrap().first, first);
        }
    }
}

#[tokio::test]
async fn a_client_gets_nothing_larger_than_it_takes() {
    let fixture = Fixture::start(FAN_OUTS[1]);
    let mut coordinator = fixture.coordinator(Transport::Tcp, Version::V5).await;
    let mut a = fixture.reach(Transport::Tcp, Version::V5, &Role::Device(A)).await;
    // Maximum packet size 200.
    let connect =
        [&string("MQTT")[..], &[5, 2, 0, 60, 5, 0x27, 0, 0, 0, 200], &string(&A.to_string())].concat();
    a.send(&packet(0x10, &connect)).await;
    assert_eq!(a.receive().await.unwrap().first, 0x20);
    a.subscribe(&[(&down(A), 0)]).await;
    coordinator.publish(&down(A), &[1; 200], 0).await;
    coordinator.publish(&down(A), b"small", 0).await;
    assert_eq!(a.expect_publish().await.payload, b"small");
}

#[tokio::test]
async fn shutting_down_says_goodbye() {
    for fan_out in FAN_OUTS {
        let fixture = Fixture::start(fan_out);
        let mut clients = Vec::new();
        for (transport, version) in EVERY_WAY {
            let device = if version == Version::V4 { A } else { B };
            if transport == Transport::Tls {
                clients.push(fixture.device(transport, version, device).await);
            }
        }
        clients.push(fixture.coordinator(Transport::Tcp, Version::V5).await);
        let unfinished = Client::plain(fixture.tls(), Version::V4).await;
        let address = fixture.plain();
        let goodbye = tokio::spawn(fixture.broker.shutdown());
        for mut client in clients {
            client.expect_close(0x8b).await;
        }
        goodbye.await.unwrap();
        drop(unfinished);
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
    }
}

#[tokio::test]
async fn many_sessions_come_and_go_at_once() {
    for fan_out in FAN_OUTS {
        let any = PolicyHandle::new(PolicyState::new(FLEET, CellAccess::AnyDevice));
        let fixture = Fixture::with(fan_out, Limits::default(), any);
        let address = fixture.plain();
        let mut clients = tokio::task::JoinSet::new();
        for n in 0..64u8 {
            clients.spawn(async move {
                let id = fleetkey_wire::DeviceId::from_bytes([n; 16]);
                for round in 0..6 {
                    let mut client = Client::plain(address, Version::V5).await;
                    assert_eq!(client.connect(&id.to_string()).await, 0);
                    let topic = cell(fleetkey_wire::CellId::from_bytes([n % 4; 16]));
                    assert_eq!(client.subscribe(&[(&topic, 1), (&down(id), 0)]).await, [1, 0]);
                    if round % 2 == 0 {
                        client.send(&[0xe0, 0]).await;
                        client.expect_close_at_last().await;
                    }
                }
            });
        }
        // Publish while they come and go.
        let mut coordinator = fixture.coordinator(Transport::Tcp, Version::V4).await;
        while !clients.is_empty() {
            for n in 0..4u8 {
                coordinator.publish(&cell(fleetkey_wire::CellId::from_bytes([n; 16])), &[n; 500], 1).await;
            }
            while let Some(done) = clients.try_join_next() {
                done.unwrap();
            }
        }
        until(&fixture.broker, "all have left", |stats| stats.sessions == 1).await;
        drop(coordinator);
        fixture.still_serves().await;
    }
}

#[tokio::test]
async fn a_burst_arrives_whole_and_leaving_in_its_middle_harms_nobody() {
    const MESSAGES: u32 = 900;
    for fan_out in FAN_OUTS {
        let limits =
            Limits { device_queue: QueueLimit { messages: 2_000, bytes: 1024 * 1024 }, ..Limits::default() };
        let fixture = Fixture::with(fan_out, limits, policy());
        for (transport, version) in EVERY_WAY {
            let mut coordinator = fixture.coordinator(transport, version).await;
            let mut stays = fixture.device(transport, version, A).await;
            let mut leaves = fixture.device(transport, version, B).await;
            for device in [&mut stays, &mut leaves] {
                device.subscribe(&[(&cell(CELL), 0)]).await;
            }
            let burst: Vec<u8> = (0..MESSAGES)
                .flat_map(|n| coordinator.publish_packet(&cell(CELL), &n.to_be_bytes(), 0))
                .collect();
            coordinator.send(&burst).await;
            for n in 0..MESSAGES {
                assert_eq!(stays.expect_publish().await.payload, n.to_be_bytes(), "{fan_out:?}");
                if n == MESSAGES / 3 {
                    let before = fixture.broker.stats().sessions;
                    leaves = fixture.device(transport, version, B).await;
                    leaves.expect_nothing().await;
                    until(&fixture.broker, "it was replaced", |stats| stats.sessions == before).await;
                }
            }
        }
        fixture.still_serves().await;
    }
}

#[tokio::test]
async fn a_full_broker_lets_a_device_take_over_from_itself() {
    let limits = Limits { max_connections: 1, ..Limits::default() };
    let fixture = Fixture::with(FAN_OUTS[1], limits, policy());
    let mut old = fixture.device(Transport::Tcp, Version::V5, A).await;
    let mut new = fixture.device(Transport::Tcp, Version::V5, A).await;
    old.expect_close(0x8e).await;
    new.expect_nothing().await;
}

#[tokio::test]
async fn what_cannot_be_started_is_refused_by_name() {
    let loopback = "127.0.0.1:0".parse().unwrap();
    let start = |config: BrokerConfig| Broker::start(config, policy()).map(drop).unwrap_err();
    assert!(matches!(start(BrokerConfig::new(FLEET)), BrokerError::NoListeners));
    assert!(matches!(
        start(BrokerConfig::new(OTHER_FLEET).listen(Listener::insecure_loopback(loopback))),
        BrokerError::OtherFleet { .. }
    ));
    let open = BrokerConfig::new(FLEET).listen(Listener::insecure_loopback("0.0.0.0:0".parse().unwrap()));
    assert!(matches!(start(open), BrokerError::InsecureListener { .. }));
    let certificates = Listener { address: loopback, tls: None, identify: Identify::ClientCertificate };
    assert!(matches!(
        start(BrokerConfig::new(FLEET).listen(certificates)),
        BrokerError::CertificatesWithoutTls { .. }
    ));
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = busy.local_addr().unwrap();
    let error = start(BrokerConfig::new(FLEET).listen(Listener::insecure_loopback(taken)));
    assert!(matches!(error, BrokerError::AddressInUse { address } if address == taken), "{error}");
}

//! Bad input of any kind costs its sender, nobody else.
//!
//! Each case ends with proof that the broker serves others: several of these have killed rumqttd's router.

mod support;

use std::time::Duration;

use fleetkey_broker::{Limits, QueueLimit};
use fleetkey_identity::Role;
use support::*;

#[tokio::test]
async fn a_topic_that_starts_with_a_non_ascii_character_harms_nobody() {
    for fan_out in FAN_OUTS {
        let fixture = Fixture::start(fan_out);
        for (transport, version) in EVERY_WAY {
            let mut bystander = fixture.device(transport, version, B).await;
            bystander.subscribe(&[(&cell(CELL), 0)]).await;
            for topic in ["é/x", "日本", "\u{10ffff}"] {
                let mut a = fixture.device(transport, version, A).await;
                a.publish(topic, b"x", 0).await;
                a.expect_close(0x90).await;
                let mut coordinator = fixture.coordinator(transport, version).await;
                coordinator.publish(topic, b"x", 0).await;
                coordinator.expect_close(0x90).await;
            }
            bystander.expect_nothing().await;
        }
        fixture.still_serves().await;
    }
}

#[tokio::test]
async fn a_shared_subscription_with_a_persistent_session_and_qos_1_harms_nobody() {
    for fan_out in FAN_OUTS {
        let fixture = Fixture::start(fan_out);
        for (transport, version) in EVERY_WAY {
            for _ in 0..2 {
                // No clean session, twice, with a message unacknowledged in between.
                let mut a = fixture.reach(transport, version, &Role::Device(A)).await;
                assert_eq!(a.connect_with(0x00, 60, &A.to_string(), &[]).await, 0);
                let shared = format!("$share/group/{}", cell(CELL));
                let refused = if version == Version::V5 { 0x8f } else { 0x80 };
                assert_eq!(a.subscribe(&[(&shared, 1), (&cell(CELL), 1)]).await, [refused, 1]);
                let mut coordinator = fixture.coordinator(transport, version).await;
                coordinator.publish(&cell(CELL), b"x", 1).await;
                a.expect_publish_unacknowledged().await;
                drop(a);
            }
        }
        fixture.still_serves().await;
    }
}

#[tokio::test]
async fn what_the_broker_does_not_do_is_refused_by_name() {
    for fan_out in FAN_OUTS {
        let fixture = Fixture::start(fan_out);
        for (transport, version) in EVERY_WAY {
            let topic = up(A);
            let plain = |first: u8, extra: &[u8], v5: &[u8]| {
                let properties: &[u8] = if version == Version::V5 { v5 } else { &[] };
                packet(first, &[&string(&topic)[..], extra, properties, b"x"].concat())
            };
            let mut cases = vec![
                (plain(0x34, &[0, 1], &[0]), 0x9b, "qos2"),
                (plain(0x31, &[], &[0]), 0x9a, "retain"),
                (plain(0x33, &[0, 1], &[0]), 0x9a, "retain"),
                (plain(0x36, &[0, 1], &[0]), 0x81, "malformed_packet"),
                (plain(0x32, &[0, 0], &[0]), 0x81, "malformed_packet"),
                (packet(0x30, &[0, 200, b'x']), 0x81, "malformed_packet"),
                (packet(0x30, &[0, 2, 0xc3, 0x28, 0]), 0x81, "bad_string"),
                (packet(0x30, &[0, 2, b'a', 0, 0]), 0x81, "bad_string"),
                (packet(0x82, &[0, 1]), if version == Version::V5 { 0x81 } else { 0x82 }, "malformed_packet"),
                (packet(0x80, &[0, 1, 0, 1, b'a', 0]), 0x81, "malformed_packet"),
                (vec![0x30, 0xff, 0xff, 0xff, 0xff, 0x01], 0x81, "malformed_packet"),
                (vec![0x30, 0xff, 0xff, 0xff, 0x7f], 0x95, "packet_too_large"),
                (vec![0xf0, 0], 0x82, "unexpected_packet"),
                (vec![0x00, 0], 0x82, "unexpected_packet"),
            ];
            // QoS 2's packets, a server's packets, a second CONNECT.
            for kind in [1u8, 2, 5, 7, 9, 11, 13] {
                cases.push((vec![kind << 4, 2, 0, 1], 0x82, "unexpected_packet"));
            }
            if version == Version::V5 {
                cases.push((plain(0x30, &[], &[3, 0x23, 0, 1]), 0x94, "topic_alias"));
                cases.push((packet(0x30, &[&[0, 0, 3, 0x23, 0, 1][..], b"x"].concat()), 0x94, "topic_alias"));
                cases.push((plain(0x30, &[], &[2, 0x0b, 1]), 0x82, "malformed_packet"));
                let identified = [&[0, 1, 2, 0x0b, 1][..], &string(&down(A)), &[0]].concat();
                cases.push((packet(0x82, &identified), 0xa1, "subscription_identifier"));
            }
            for (bytes, code, reason) in cases {
                let before = fixture.broker.stats().refused(reason);
                let mut a = fixture.device(transport, version, A).await;
                a.try_send(&bytes).await;
                println!("{fan_out:?} {transport:?} {version:?} {bytes:02x?}");
                a.expect_close(code).await;
                assert_eq!(fixture.broker.stats().refused(reason), before + 1, "{bytes:02x?}");
            }
        }
        fixture.still_serves().await;
    }
}

#[tokio::test]
async fn a_connect_that_asks_for_too_much_is_refused_by_name() {
    let fixture = Fixture::start(FAN_OUTS[0]);
    for (transport, version) in EVERY_WAY {
        let denied = if version == Version::V5 { 0x87 } else { 5 };
        let mut body = if version == Version::V5 { vec![0] } else { Vec::new() };
        body.extend([string(&up(A)), string("I am gone")].concat());
        for flags in [0x06, 0x26, 0x0e] {
            let mut a = fixture.reach(transport, version, &Role::Device(A)).await;
            assert_eq!(a.connect_with(flags, 60, &A.to_string(), &body).await, denied);
            assert_eq!(a.receive().await, None);
        }

        // Not a CONNECT, or not one we can read: nothing to answer.
        let long = packet(0x10, &[0; 5_000]);
        for bytes in [&[0xc0, 0][..], &[0x30, 3, 0, 1, b'a'], &[0x10, 0], &[0x10, 4, 0, 4, b'H', b'T'], &long]
        {
            let mut a = fixture.reach(transport, version, &Role::Device(A)).await;
            a.try_send(bytes).await;
            assert_eq!(a.receive().await, None, "{bytes:02x?}");
        }

        // Versions that are not spoken here.
        for level in [3, 6] {
            let mut a = fixture.reach(transport, version, &Role::Device(A)).await;
            let connect = [&string("MQTT")[..], &[level, 2, 0, 60], &string("x")].concat();
            a.send(&packet(0x10, &connect)).await;
            assert_eq!(a.receive().await, Some(Received { first: 0x20, body: vec![0, 1] }));
            assert_eq!(a.receive().await, None);
        }
    }
    let stats = fixture.broker.stats();
    assert_eq!((stats.refused("will"), stats.refused("protocol_version")), (12, 8));
    fixture.still_serves().await;
}

#[tokio::test]
async fn an_authentication_method_is_refused() {
    let fixture = Fixture::start(FAN_OUTS[1]);
    let mut a = fixture.reach(Transport::Tls, Version::V5, &Role::Device(A)).await;
    let properties = [&[0x15][..], &string("X")].concat();
    let connect = [&string("MQTT")[..], &[5, 2, 0, 60, 4], &properties, &string(&A.to_string())].concat();
    a.send(&packet(0x10, &connect)).await;
    assert_eq!(a.receive().await, Some(Received { first: 0x20, body: vec![0, 0x8c, 0] }));
}

#[tokio::test]
async fn random_bytes_harm_nobody() {
    let fixture = Fixture::start(FAN_OUTS[0]);
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_be_bytes()
    };
    for round in 0..300 {
        let version = if round % 2 == 0 { Version::V4 } else { Version::V5 };
        let noise: Vec<u8> = (0..20).flat_map(|_| random()).collect();
        let mut a = if round % 3 == 0 {
            fixture.reach(Transport::Tcp, version, &Role::Device(A)).await
        } else {
            fixture.device(Transport::Tcp, version, A).await
        };
        // One packet of every type with a body of noise.
        let first = noise[0] & 0x0f | u8::try_from(round % 16).unwrap() << 4;
        a.try_send(&packet(first, &noise[1..])).await;
    }
    fixture.still_serves().await;
}

#[tokio::test]
async fn who_says_nothing_is_shown_out() {
    let limits = Limits {
        handshake_timeout: Duration::from_millis(200),
        connect_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let fixture = Fixture::with(FAN_OUTS[1], limits, policy());
    // No handshake.
    let mut silent = Client::plain(fixture.tls(), Version::V4).await;
    assert_eq!(silent.receive().await, None);
    // Half a handshake.
    let mut half = Client::plain(fixture.tls(), Version::V4).await;
    half.send(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await;
    assert_eq!(half.receive().await, None);
    assert_eq!(fixture.broker.stats().refused("tls_timeout"), 2);
    // No CONNECT, or half of one.
    for transport in [Transport::Tcp, Transport::Tls] {
        let mut silent = fixture.reach(transport, Version::V4, &Role::Device(A)).await;
        assert_eq!(silent.receive().await, None);
        let mut half = fixture.reach(transport, Version::V4, &Role::Device(A)).await;
        let connect = half.connect_packet(2, 60, &A.to_string(), &[]);
        half.send(&connect[..20]).await;
        assert_eq!(half.receive().await, None);
    }
    assert_eq!(fixture.broker.stats().refused("connect_timeout"), 4);
    fixture.still_serves().await;
}

#[tokio::test]
async fn who_breaks_its_keep_alive_is_shown_out_even_while_it_drips() {
    let fixture = Fixture::start(FAN_OUTS[1]);
    for version in [Version::V4, Version::V5] {
        let mut a = fixture.reach(Transport::Tcp, version, &Role::Device(A)).await;
        assert_eq!(a.connect_with(2, 1, &A.to_string(), &[]).await, 0);
        // The start of a packet that never ends is not a sign of life.
        a.send(&[0x30, 100, 0]).await;
        a.expect_close(0x8d).await;
    }
    assert_eq!(fixture.broker.stats().closed("keep_alive"), 2);
}

#[tokio::test]
async fn who_promises_nothing_is_held_to_the_brokers_limit() {
    let limits = Limits { max_keep_alive: Duration::from_secs(1), ..Limits::default() };
    let fixture = Fixture::with(FAN_OUTS[1], limits, policy());
    for keep_alive in [0, 60] {
        let mut a = fixture.reach(Transport::Tcp, Version::V5, &Role::Device(A)).await;
        let connect = a.connect_packet(2, keep_alive, &A.to_string(), &[]);
        a.send(&connect).await;
        let ack = a.receive().await.unwrap();
        assert!(ack.body.windows(3).any(|bytes| bytes == [0x13, 0, 1]), "server keep alive: {ack:?}");
        a.expect_close(0x8d).await;
    }
}

#[tokio::test]
async fn a_slow_consumer_is_cut_off_and_costs_the_others_nothing() {
    const MESSAGES: usize = 400;
    for fan_out in FAN_OUTS {
        for (transport, version) in EVERY_WAY {
            let limits =
                Limits { device_queue: QueueLimit { messages: 64, bytes: 256 * 1024 }, ..Limits::default() };
            let fixture = Fixture::with(fan_out, limits, policy());
            let mut coordinator = fixture.coordinator(transport, version).await;
            let mut slow = fixture.device(transport, version, A).await;
            let mut quick = fixture.device(transport, version, B).await;
            for device in [&mut slow, &mut quick] {
                device.subscribe(&[(&cell(CELL), 0)]).await;
            }
            // More than sockets and queues hold; the slow one reads nothing.
            let payload = vec![7; 60 * 1024];
            for _ in 0..MESSAGES {
                assert_eq!(coordinator.publish(&cell(CELL), &payload, 1).await, 0);
                assert_eq!(quick.expect_publish().await.payload.len(), payload.len());
            }
            let stats = fixture.broker.stats();
            assert_eq!((stats.closed("slow_consumer"), stats.sessions), (1, 2), "{fan_out:?} {stats:?}");
            while slow.receive().await.is_some() {}
        }
    }
}

#[tokio::test]
async fn who_acknowledges_nothing_gets_no_more_than_the_window() {
    let limits = Limits { max_in_flight: 3, ..Limits::default() };
    let fixture = Fixture::with(FAN_OUTS[1], limits, policy());
    for (transport, version) in EVERY_WAY {
        let mut coordinator = fixture.coordinator(transport, version).await;
        let mut a = fixture.device(transport, version, A).await;
        a.subscribe(&[(&down(A), 1)]).await;
        for n in 0..5 {
            coordinator.publish(&down(A), &[n], 1).await;
        }
        let mut ids = Vec::new();
        for n in 0..3 {
            let arrived = a.expect_publish_unacknowledged().await;
            assert_eq!(arrived.payload, [n]);
            ids.push(arrived.packet_id);
        }
        a.expect_nothing().await;
        // In any order, and only one window's worth.
        a.send(&[0x40, 2, 0, u8::try_from(ids[2]).unwrap()]).await;
        assert_eq!(a.expect_publish_unacknowledged().await.payload, [3]);
        a.expect_nothing().await;
        a.send(&[0x40, 2, 0, u8::try_from(ids[0]).unwrap()]).await;
        assert_eq!(a.expect_publish_unacknowledged().await.payload, [4]);
    }
}

#[tokio::test]
async fn a_coordinator_that_reads_nothing_makes_devices_wait_but_is_not_cut_off() {
    let limits = Limits {
        coordinator_queue: QueueLimit { messages: 8, bytes: 64 * 1024 },
        device_rate: PLENTY,
        ..Limits::default()
    };
    let fixture = Fixture::with(FAN_OUTS[1], limits, policy());
    let mut coordinator = fixture.coordinator(Transport::Tcp, Version::V5).await;
    coordinator.subscribe(&[(&all_up(), 0)]).await;
    let mut a = fixture.device(Transport::Tcp, Version::V5, A).await;
    // More than the sockets on the way and the queue hold: the device's writes block in between.
    const MESSAGES: u32 = 2_000;
    let talk = tokio::spawn(async move {
        for n in 0..MESSAGES {
            let payload = [&n.to_be_bytes()[..], &[1; 30_000]].concat();
            a.publish(&up(A), &payload, 0).await;
        }
        a
    });
    // Wait until everything in between is full: the broker accepts no more.
    let mut last = 0;
    let mut unchanged = 0;
    while unchanged < 20_000 {
        tokio::task::yield_now().await;
        let now = fixture.broker.stats().publishes;
        unchanged = if now == last { unchanged + 1 } else { 0 };
        last = now;
    }
    // Others are served meanwhile.
    let mut b = fixture.device(Transport::Tcp, Version::V5, B).await;
    let mut second = fixture.reach(Transport::Tcp, Version::V5, &coordinator_role()).await;
    assert_eq!(second.connect("coordinator-2").await, 0);
    drop(second);
    for n in 0..MESSAGES {
        let arrived = coordinator.expect_publish().await;
        assert_eq!(arrived.payload[..4], n.to_be_bytes());
    }
    talk.await.unwrap().expect_nothing().await;
    b.expect_nothing().await;
    assert_eq!(fixture.broker.stats().closed("slow_consumer"), 0);
}

#[tokio::test]
async fn who_never_reads_is_given_up_in_the_end() {
    let limits = Limits {
        coordinator_queue: QueueLimit { messages: 8, bytes: 64 * 1024 },
        write_timeout: Duration::from_millis(300),
        device_rate: PLENTY,
        ..Limits::default()
    };
    let fixture = Fixture::with(FAN_OUTS[1], limits, policy());
    let mut coordinator = fixture.coordinator(Transport::Tcp, Version::V4).await;
    coordinator.subscribe(&[(&all_up(), 0)]).await;
    let mut a = fixture.device(Transport::Tcp, Version::V4, A).await;
    for _ in 0..2_000 {
        a.publish(&up(A), &[1; 30_000], 0).await;
    }
    a.expect_nothing().await;
    assert_eq!(fixture.broker.stats().closed("slow_consumer"), 1);
}

#[tokio::test]
async fn connections_are_bounded_and_coordinators_still_find_a_place() {
    let limits = Limits { max_connections: 1, ..Limits::default() };
    let fixture = Fixture::with(FAN_OUTS[0], limits, policy());
    for (transport, version) in EVERY_WAY {
        let a = fixture.device(transport, version, A).await;
        let mut b = fixture.reach(transport, version, &Role::Device(B)).await;
        assert_eq!(b.connect(&B.to_string()).await, if version == Version::V5 { 0x89 } else { 3 });
        drop(a);
        until(&fixture.broker, "the place is free", |stats| stats.sessions == 0).await;
        let b = fixture.device(transport, version, B).await;
        drop(b);
        until(&fixture.broker, "the place is free", |stats| stats.sessions == 0).await;
    }
    let _a = fixture.device(Transport::Tcp, Version::V4, A).await;
    fixture.coordinator(Transport::Tls, Version::V5).await;
    assert_eq!(fixture.broker.stats().refused("too_many_connections"), 4);
}

#[tokio::test]
async fn subscriptions_of_a_device_are_bounded() {
    use fleetkey_broker::policy::{CellAccess, PolicyHandle, PolicyState};
    let limits = Limits { max_subscriptions_per_device: 3, ..Limits::default() };
    for fan_out in FAN_OUTS {
        let any = PolicyHandle::new(PolicyState::new(FLEET, CellAccess::AnyDevice));
        let fixture = Fixture::with(fan_out, limits.clone(), any);
        let mut a = fixture.device(Transport::Tcp, Version::V5, A).await;
        assert_eq!(a.subscribe(&[(&down(A), 0)]).await, [0]);
        let cells: Vec<String> = (0..4u8).map(|n| cell(fleetkey_wire::CellId::from_bytes([n; 16]))).collect();
        let filters: Vec<(&str, u8)> = cells.iter().map(|cell| (cell.as_str(), 0)).collect();
        assert_eq!(a.subscribe(&filters).await, [0, 0, 0x97, 0x97]);
        assert_eq!(a.subscribe(&filters[..2]).await, [0, 0], "what it has it may ask for again");
        a.unsubscribe(&cells[0]).await;
        assert_eq!(a.subscribe(&filters[3..]).await, [0]);
    }
}

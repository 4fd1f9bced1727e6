//! Who gets what: the policy, both versions of MQTT, both transports, both fan-outs.

mod support;

use std::collections::BTreeSet;

use fleetkey_broker::policy::PolicyUpdate;
use fleetkey_identity::Role;
use support::*;

#[tokio::test]
async fn messages_reach_whom_they_are_for_and_nobody_else() {
    for fan_out in FAN_OUTS {
        let fixture = Fixture::start(fan_out);
        for (transport, version) in EVERY_WAY {
            println!("{fan_out:?} {transport:?} {version:?}");
            let mut coordinator = fixture.coordinator(transport, version).await;
            let mut a = fixture.device(transport, version, A).await;
            let mut b = fixture.device(transport, version, B).await;
            assert_eq!(coordinator.subscribe(&[(&all_up(), 1)]).await, [1]);
            assert_eq!(a.subscribe(&[(&cell(CELL), 0), (&down(A), 1)]).await, [0, 1]);
            assert_eq!(b.subscribe(&[(&cell(CELL), 1), (&cell(CELL_2), 2), (&down(B), 0)]).await, [1, 1, 0]);

            // A cell's message comes at the lower of the two QoS.
            assert_eq!(coordinator.publish(&cell(CELL), b"to all", 1).await, 0);
            for (device, qos) in [(&mut a, 0), (&mut b, 1)] {
                let arrived = device.expect_publish().await;
                assert_eq!(
                    (arrived.topic, &arrived.payload[..], arrived.qos),
                    (cell(CELL), &b"to all"[..], qos)
                );
            }
            assert_eq!(coordinator.publish(&cell(CELL_2), b"to b's cell", 0).await, 0);
            let arrived = b.expect_publish().await;
            assert_eq!(
                (arrived.topic, &arrived.payload[..], arrived.qos),
                (cell(CELL_2), &b"to b's cell"[..], 0)
            );

            // What is for one device.
            assert_eq!(coordinator.publish(&down(A), b"to a", 1).await, 0);
            let arrived = a.expect_publish().await;
            assert_eq!((arrived.topic, &arrived.payload[..], arrived.qos), (down(A), &b"to a"[..], 1));

            // What a device says.
            assert_eq!(a.publish(&up(A), b"", 1).await, 0);
            let arrived = coordinator.expect_publish().await;
            assert_eq!((arrived.topic, &arrived.payload[..], arrived.qos), (up(A), &b""[..], 1));

            for client in [&mut a, &mut b, &mut coordinator] {
                client.expect_nothing().await;
            }
        }
        fixture.broker.shutdown().await;
    }
}

#[tokio::test]
async fn nobody_to_send_to_is_told_in_version_5_and_counted() {
    let fixture = Fixture::start(FAN_OUTS[1]);
    for (transport, version) in EVERY_WAY {
        let before = fixture.broker.stats().undeliverable;
        let expected = if version == Version::V5 { 0x10 } else { 0 };
        let mut a = fixture.device(transport, version, A).await;
        assert_eq!(a.publish(&up(A), b"anyone?", 1).await, expected);
        let mut coordinator = fixture.coordinator(transport, version).await;
        assert_eq!(coordinator.publish(&down(A), b"not subscribed", 1).await, expected);
        assert_eq!(coordinator.publish(&down(B), b"not connected", 1).await, expected);
        assert_eq!(fixture.broker.stats().undeliverable, before + 3);
        a.expect_nothing().await;
    }
}

#[tokio::test]
async fn devices_subscribe_to_nothing_but_their_own() {
    for fan_out in FAN_OUTS {
        let fixture = Fixture::start(fan_out);
        for (transport, version) in EVERY_WAY {
            let mut a = fixture.device(transport, version, A).await;
            let foreign = format!("fk/{OTHER_FLEET}/cell/{CELL}");
            let before = fixture.broker.stats();
            for (filter, code, reason) in [
                (down(B), 0x87, "other_device"),
                (up(A), 0x87, "coordinator_subscribes"),
                (all_up(), 0x87, "coordinator_subscribes"),
                (cell(CELL_2), 0x87, "not_member"),
                (foreign, 0x87, "other_fleet"),
                ("#".into(), 0x8f, "bad_topic"),
                (format!("fk/{FLEET}/dev/+/down"), 0x8f, "bad_topic"),
                (format!("$share/g/{}", cell(CELL)), 0x8f, "bad_topic"),
                ("$SYS/broker".into(), 0x8f, "bad_topic"),
                ("é/x".into(), 0x8f, "bad_topic"),
                (String::new(), 0x8f, "bad_topic"),
            ] {
                let expected = if version == Version::V5 { code } else { 0x80 };
                assert_eq!(a.subscribe(&[(&filter, 1)]).await, [expected], "{filter:?}");
                let after = fixture.broker.stats();
                assert!(after.refused(reason) > before.refused(reason), "{filter:?} {reason}");
            }
            // A refused filter takes nothing from its neighbours.
            let codes = a.subscribe(&[(&down(B), 0), (&down(A), 0), ("#", 1), (&cell(CELL), 1)]).await;
            assert_eq!((codes[1], codes[3]), (0, 1));
            let mut coordinator = fixture.coordinator(transport, version).await;
            for topic in [down(B), cell(CELL_2), down(A)] {
                coordinator.publish(&topic, b"x", 0).await;
            }
            assert_eq!(a.expect_publish().await.topic, down(A));
            a.expect_nothing().await;
        }
        fixture.still_serves().await;
    }
}

#[tokio::test]
async fn devices_publish_nothing_but_their_own_up() {
    let fixture = Fixture::start(FAN_OUTS[0]);
    let large = vec![0; 32 * 1024 + 1];
    for (transport, version) in EVERY_WAY {
        let mut b = fixture.device(transport, version, B).await;
        b.subscribe(&[(&down(B), 0), (&cell(CELL), 0)]).await;
        for (topic, payload, code, reason) in [
            (up(B), &b"x"[..], 0x87, "other_device"),
            (down(A), b"x", 0x87, "coordinator_publishes"),
            (down(B), b"x", 0x87, "coordinator_publishes"),
            (cell(CELL), b"x", 0x87, "coordinator_publishes"),
            (format!("fk/{OTHER_FLEET}/dev/{A}/up"), b"x", 0x87, "other_fleet"),
            (up(A), &large, 0x97, "payload_too_large"),
            ("é/x".into(), b"x", 0x90, "bad_topic"),
            ("$SYS/x".into(), b"x", 0x90, "bad_topic"),
            (all_up(), b"x", 0x90, "bad_topic"),
            (String::new(), b"x", 0x90, "bad_topic"),
        ] {
            let before = fixture.broker.stats().refused(reason);
            let mut a = fixture.device(transport, version, A).await;
            if version == Version::V5 {
                // At QoS 1 the refusal is told and the connection goes on.
                assert_eq!(a.publish(&topic, payload, 1).await, code, "{topic:?}");
                assert_eq!(fixture.broker.stats().refused(reason), before + 1);
                a.expect_nothing().await;
                a.publish(&topic, payload, 0).await;
            } else {
                let packet = a.publish_packet(&topic, payload, 1);
                a.send(&packet).await;
            }
            a.expect_close(code).await;
            assert!(fixture.broker.stats().refused(reason) > before, "{topic:?}");
        }
        b.expect_nothing().await;
    }
    fixture.still_serves().await;
}

#[tokio::test]
async fn the_coordinator_says_nothing_for_devices_and_hears_only_them() {
    let fixture = Fixture::start(FAN_OUTS[1]);
    for (transport, version) in EVERY_WAY {
        let mut coordinator = fixture.coordinator(transport, version).await;
        let refused = if version == Version::V5 { 0x87 } else { 0x80 };
        for filter in [cell(CELL), down(A), up(A)] {
            assert_eq!(coordinator.subscribe(&[(&filter, 0)]).await, [refused], "{filter}");
        }
        coordinator.publish(&up(A), b"x", 0).await;
        coordinator.expect_close(0x87).await;
    }
}

#[tokio::test]
async fn only_parties_of_the_fleet_with_their_own_client_id_come_in() {
    let fixture = Fixture::start(FAN_OUTS[1]);
    let stranger = Pki::new(FLEET);
    for version in [Version::V4, Version::V5] {
        let (bad_id, denied) = if version == Version::V5 { (0x85, 0x87) } else { (2, 5) };
        for (role, client_id, code, reason) in [
            (Role::Device(A), B.to_string(), bad_id, "client_id_not_device"),
            (Role::Device(A), COORDINATOR.into(), bad_id, "client_id_not_device"),
            (Role::Device(A), String::new(), bad_id, "bad_client_id"),
            (coordinator_role(), A.to_string(), bad_id, "bad_client_id"),
            (Role::Broker, "broker".into(), bad_id, "client_id_not_relay"),
            (Role::Device(A), "relay-1".into(), bad_id, "client_id_not_device"),
            (coordinator_role(), "relay-1".into(), bad_id, "bad_client_id"),
            (Role::Operator { name: "ops".into() }, "ops".into(), denied, "role_without_topics"),
        ] {
            let before = fixture.broker.stats().refused(reason);
            let mut client = fixture.reach(Transport::Tls, version, &role).await;
            assert_eq!(client.connect(&client_id).await, code, "{role:?} as {client_id:?}");
            assert_eq!(client.receive().await, None);
            assert_eq!(fixture.broker.stats().refused(reason), before + 1);
        }

        // A certificate of another authority ends in the handshake, whatever fleet it names.
        let before = fixture.broker.stats().refused("tls_handshake");
        let other_root = {
            let (chain, key) = stranger.issue(&Role::Device(A));
            fleetkey_identity::tls::client_config(&chain, &key, &fixture.pki.roots).unwrap()
        };
        let refused = match Client::tls(fixture.tls(), version, other_root).await {
            // TLS 1.3: the client is done before the server has looked at its certificate.
            Ok(mut client) => {
                let connect = client.connect_packet(2, 60, &A.to_string(), &[]);
                client.try_send(&connect).await;
                client.receive().await.is_none()
            }
            Err(_) => true,
        };
        assert!(refused);
        until(&fixture.broker, "handshake refused", |stats| stats.refused("tls_handshake") == before + 1)
            .await;

        // No certificate at all: plain MQTT on the TLS port.
        let mut plain = Client::plain(fixture.tls(), version).await;
        let connect = plain.connect_packet(2, 60, &A.to_string(), &[]);
        plain.try_send(&connect).await;
        while plain.receive().await.is_some() {}
    }
    fixture.still_serves().await;
}

#[tokio::test]
async fn before_the_policy_is_known_only_the_coordinator_comes_in() {
    use fleetkey_broker::policy::{CellAccess, PolicyHandle, PolicyState};
    let unknown = PolicyHandle::new(PolicyState::new(FLEET, CellAccess::Members));
    let fixture = Fixture::with(FAN_OUTS[1], fleetkey_broker::Limits::default(), unknown);
    for (transport, version) in EVERY_WAY {
        let mut device = fixture.reach(transport, version, &Role::Device(A)).await;
        let unavailable = if version == Version::V5 { 0x88 } else { 3 };
        assert_eq!(device.connect(&A.to_string()).await, unavailable);
        fixture.coordinator(transport, version).await;
    }
    assert_eq!(fixture.broker.stats().refused("policy_unknown"), 4);
}

#[tokio::test]
async fn a_revoked_device_is_cut_off_and_stays_out() {
    for fan_out in FAN_OUTS {
        for (transport, version) in EVERY_WAY {
            let fixture = Fixture::start(fan_out);
            let mut a = fixture.device(transport, version, A).await;
            a.subscribe(&[(&cell(CELL), 0), (&down(A), 0)]).await;
            fixture.policy.apply(PolicyUpdate::Revoked { sequence: 1, device: A }).unwrap();
            a.expect_close(0x87).await;
            assert_eq!(fixture.broker.stats().closed("revoked"), 1);
            let mut again = fixture.reach(transport, version, &Role::Device(A)).await;
            assert_eq!(again.connect(&A.to_string()).await, if version == Version::V5 { 0x87 } else { 5 });
            fixture.still_serves().await;
        }
    }
}

#[tokio::test]
async fn who_leaves_a_cell_hears_no_more_of_it_but_stays_connected() {
    for fan_out in FAN_OUTS {
        for (transport, version) in EVERY_WAY {
            let fixture = Fixture::start(fan_out);
            let mut a = fixture.device(transport, version, A).await;
            let mut b = fixture.device(transport, version, B).await;
            let mut coordinator = fixture.coordinator(transport, version).await;
            for device in [&mut a, &mut b] {
                device.subscribe(&[(&cell(CELL), 0)]).await;
            }
            let members = |list: &[_], sequence| PolicyUpdate::CellMembers {
                sequence,
                cell: CELL,
                members: list.iter().copied().collect::<BTreeSet<_>>(),
            };
            fixture.policy.apply(members(&[B], 1)).unwrap();
            coordinator.publish(&cell(CELL), b"without a", 0).await;
            assert_eq!(b.expect_publish().await.payload, b"without a");
            a.expect_nothing().await;
            let refused = if version == Version::V5 { 0x87 } else { 0x80 };
            assert_eq!(a.subscribe(&[(&cell(CELL), 0)]).await, [refused]);

            // Coming back is possible.
            fixture.policy.apply(members(&[A, B], 2)).unwrap();
            assert_eq!(a.subscribe(&[(&cell(CELL), 0)]).await, [0]);
            for round in 0..3u8 {
                coordinator.publish(&cell(CELL), &[round], 0).await;
                assert_eq!(a.expect_publish().await.payload, [round]);
                assert_eq!(b.expect_publish().await.payload, [round]);
            }
        }
    }
}

#[tokio::test]
async fn unsubscribing_works_and_subscribing_twice_delivers_once() {
    for fan_out in FAN_OUTS {
        let fixture = Fixture::start(fan_out);
        for (transport, version) in EVERY_WAY {
            let mut a = fixture.device(transport, version, A).await;
            let mut coordinator = fixture.coordinator(transport, version).await;
            for topic in [cell(CELL), down(A)] {
                assert_eq!(a.subscribe(&[(&topic, 1)]).await, [1]);
                assert_eq!(a.subscribe(&[(&topic, 0), (&topic, 0)]).await, [0, 0]);
                coordinator.publish(&topic, b"once", 1).await;
                let arrived = a.expect_publish().await;
                assert_eq!((&arrived.payload[..], arrived.qos), (&b"once"[..], 0));
                a.unsubscribe(&topic).await;
                coordinator.publish(&topic, b"never", 1).await;
                a.expect_nothing().await;
            }
            coordinator.subscribe(&[(&all_up(), 0)]).await;
            a.publish(&up(A), b"heard", 0).await;
            coordinator.expect_publish().await;
            coordinator.unsubscribe(&all_up()).await;
            a.publish(&up(A), b"not heard", 0).await;
            a.expect_nothing().await;
            coordinator.expect_nothing().await;
        }
    }
}

#[tokio::test]
async fn many_large_messages_arrive_whole_and_in_order() {
    const MESSAGES: u32 = 300;
    for fan_out in FAN_OUTS {
        let fixture = Fixture::start(fan_out);
        for (transport, version) in EVERY_WAY {
            let mut coordinator = fixture.coordinator(transport, version).await;
            let mut a = fixture.device(transport, version, A).await;
            a.subscribe(&[(&cell(CELL), 1), (&down(A), 1)]).await;
            // Windowed, so that the device is never too slow: what is tested is order, not limits.
            for window in 0..MESSAGES / 30 {
                for n in window * 30..window * 30 + 30 {
                    let topic = if n % 3 == 0 { down(A) } else { cell(CELL) };
                    let payload = [&n.to_be_bytes()[..], &vec![n.to_be_bytes()[3]; 3_000]].concat();
                    assert_eq!(coordinator.publish(&topic, &payload, 1).await, 0);
                }
                let mut seen: Vec<Vec<u32>> = vec![Vec::new(), Vec::new()];
                for _ in 0..30 {
                    let arrived = a.expect_publish().await;
                    let n = u32::from_be_bytes(arrived.payload[..4].try_into().unwrap());
                    assert_eq!(arrived.payload[4..], vec![n.to_be_bytes()[3]; 3_000]);
                    seen[usize::from(n % 3 == 0)].push(n);
                }
                for list in seen {
                    assert!(list.is_sorted(), "{list:?}");
                }
            }
            a.expect_nothing().await;
        }
    }
}

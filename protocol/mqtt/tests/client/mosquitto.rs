//! The client against a real broker: mosquitto, when it is installed.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::{Mosquitto, PATIENCE, message, mosquitto, next, not_run, ready, until};
use fleetkey_identity::{FleetCa, FleetRoots, IdentityKey, Role, Validity, chain_to_pem, tls};
use fleetkey_mqtt::{Event, PublishError, Qos, connect};
use fleetkey_wire::{DeviceId, FleetId};
use rand_core::OsRng;

#[tokio::test]
async fn messages_reach_those_who_subscribed() {
    let Some(mut broker) = mosquitto("messages_reach_those_who_subscribed") else { return };
    broker.start();
    for qos in [Qos::AtMostOnce, Qos::AtLeastOnce] {
        let mut options = broker.options("listener", &["a/+", "b"]);
        options.qos = qos;
        let (_listener, mut heard) = ready(options).await;
        let mut options = broker.options("speaker", &[]);
        options.qos = qos;
        let (speaker, _events) = ready(options).await;

        for (topic, payload) in
            [("a/1", &b"one"[..]), ("a/1/2", b"not asked for"), ("b", b""), ("a/2", b"two")]
        {
            speaker.publish(topic, payload).await.unwrap();
        }

        assert_eq!(message(&mut heard).await, ("a/1".into(), b"one".to_vec()));
        assert_eq!(message(&mut heard).await, ("b".into(), vec![]));
        assert_eq!(message(&mut heard).await, ("a/2".into(), b"two".to_vec()));
    }
}

#[tokio::test]
async fn what_is_queued_without_a_broker_arrives_in_order_after_the_subscription() {
    let Some(mut broker) = mosquitto("what_is_queued_without_a_broker_arrives") else { return };
    let mut options = broker.options("c", &["own/#"]);
    options.queue_messages = 50;
    let (client, mut events) = connect(options).unwrap();
    for n in 0..50u8 {
        client.try_publish("own/x", vec![n]).unwrap();
    }
    assert_eq!(client.try_publish("own/x", vec![50]), Err(PublishError::QueueFull));
    let first = next(&mut events).await;
    assert!(matches!(&first, Event::Disconnected { reason, .. } if reason.contains("refused")), "{first:?}");

    broker.start();

    for n in 0..50u8 {
        assert_eq!(message(&mut events).await, ("own/x".into(), vec![n]));
    }
}

#[tokio::test]
async fn a_broker_that_is_killed_and_comes_back_finds_everyone_again() {
    let Some(mut broker) = mosquitto("a_broker_that_is_killed_and_comes_back") else { return };
    broker.start();
    let (client, mut events) = ready(broker.options("c", &["kept", "given up"])).await;
    client.subscribe("later").unwrap();
    until(&mut events, "later", |e| *e == Event::Subscribed { filter: "later".into() }).await;
    client.unsubscribe("given up");

    for _ in 0..3 {
        broker.kill();
        until(&mut events, "disconnected", |e| matches!(e, Event::Disconnected { .. })).await;
        broker.start();
        until(&mut events, "connected", |e| *e == Event::Connected).await;
        let mut filters = BTreeSet::new();
        while filters.len() < 2 {
            match next(&mut events).await {
                Event::Subscribed { filter } => assert!(filters.insert(filter)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(filters, BTreeSet::from(["kept".to_owned(), "later".to_owned()]));

        client.publish("given up", "x").await.unwrap();
        client.publish("later", "y").await.unwrap();
        assert_eq!(message(&mut events).await, ("later".into(), b"y".to_vec()));
    }
}

#[tokio::test]
async fn a_refused_subscription_is_reported_and_tried_again_until_it_is_granted() {
    let test = "a_refused_subscription_is_reported_and_tried_again";
    let Some(mut broker) = mosquitto(test) else { return };
    let plugin = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib", "/usr/local/lib"]
        .map(|place| std::path::Path::new(place).join("mosquitto_dynamic_security.so"));
    let Some(plugin) = plugin.into_iter().find(|plugin| plugin.is_file()) else {
        not_run(test, "mosquitto's dynamic security plugin is not installed");
        return;
    };
    let rules = broker.directory().join("rules.json");
    let role = r#"{"rolename":"r","acls":[
        {"acltype":"publishClientSend","topic":"$CONTROL/#","priority":9,"allow":true},
        {"acltype":"subscribePattern","topic":"closed/#","priority":9,"allow":false}]}"#;
    let everything =
        r#"{"publishClientSend":true,"publishClientReceive":true,"subscribe":true,"unsubscribe":true}"#;
    fs::write(
        &rules,
        format!(
            r#"{{"defaultACLAccess":{everything},"anonymousGroup":"g","clients":[],"roles":[{role}],
                "groups":[{{"groupname":"g","roles":[{{"rolename":"r"}}],"clients":[]}}]}}"#
        ),
    )
    .unwrap();
    broker.configure(&format!("plugin {}\nplugin_opt_config_file {}", plugin.display(), rules.display()));
    broker.start();
    let (client, mut events) = connect(broker.options("c", &["open/#", "closed/door"])).unwrap();

    until(&mut events, "connected", |event| *event == Event::Connected).await;
    let mut answers = vec![];
    while answers.len() < 3 {
        answers.push(next(&mut events).await);
    }
    let refused = Event::SubscribeRefused { filter: "closed/door".into() };
    assert!(answers.contains(&Event::Subscribed { filter: "open/#".into() }), "{answers:?}");
    assert!(answers.iter().filter(|&answer| *answer == refused).count() >= 2, "{answers:?}");

    // A refusal holds up nothing else.
    client.publish("open/x", "still works").await.unwrap();
    assert_eq!(message(&mut events).await.1, b"still works");

    let command = r#"{"commands":[{"command":"removeRoleACL","rolename":"r","acltype":"subscribePattern",
        "topic":"closed/#"}]}"#;
    client.publish("$CONTROL/dynamic-security/v1", command).await.unwrap();
    until(&mut events, "granted", |e| *e == Event::Subscribed { filter: "closed/door".into() }).await;
    client.publish("closed/door", "open now").await.unwrap();
    assert_eq!(message(&mut events).await.1, b"open now");
}

#[tokio::test]
async fn a_consumer_that_sleeps_loses_messages_but_neither_the_connection_nor_the_count() {
    let Some(mut broker) = mosquitto("a_consumer_that_sleeps") else { return };
    broker.start();
    let mut options = broker.options("sleeper", &["own"]);
    options.event_messages = 100;
    let (client, mut events) = ready(options).await;
    // One that stays awake shows when everything has been delivered.
    let mut options = broker.options("awake", &["own"]);
    options.event_messages = 100_000;
    let (_awake, mut seen_by_awake) = ready(options).await;

    // Nothing is read meanwhile: publishing does not depend on it.
    let count: u32 = 3_000;
    for n in 0..count {
        client.publish("own", n.to_be_bytes().to_vec()).await.unwrap();
    }
    for n in 0..count {
        assert_eq!(message(&mut seen_by_awake).await.1, n.to_be_bytes());
    }

    let (mut got, mut dropped) = (0, 0);
    while got + dropped < u64::from(count) {
        match next(&mut events).await {
            Event::Message { .. } => got += 1,
            Event::MessagesDropped { count } => dropped += count,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got + dropped, u64::from(count));
    assert!(got >= 100 && dropped > 0, "got {got}, dropped {dropped}");
    client.publish("own", "awake again").await.unwrap();
    assert_eq!(message(&mut events).await.1, b"awake again");
}

#[tokio::test]
async fn a_message_too_large_is_refused_here_and_ends_the_connection_of_who_receives_it() {
    let Some(mut broker) = mosquitto("a_message_too_large") else { return };
    broker.start();
    let mut options = broker.options("small", &["own"]);
    options.max_packet_bytes = 4_096;
    let (small, mut events) = ready(options).await;
    assert_eq!(
        small.try_publish("own", vec![0; 4_096]),
        Err(PublishError::TooLarge { bytes: 4_108, limit: 4_096 })
    );
    small.publish("own", vec![1; 4_084]).await.unwrap();
    assert_eq!(message(&mut events).await.1, vec![1; 4_084], "the largest that fits");

    let (large, _events) = ready(broker.options("large", &[])).await;
    large.publish("own", vec![0; 100_000]).await.unwrap();

    let gone = until(&mut events, "disconnected", |e| matches!(e, Event::Disconnected { .. })).await;
    assert!(matches!(&gone, Event::Disconnected { reason, .. } if reason.contains("limit")), "{gone:?}");
    until(&mut events, "subscribed", |e| matches!(e, Event::Subscribed { .. })).await;
    large.publish("own", "small again").await.unwrap();
    assert_eq!(message(&mut events).await.1, b"small again");
}

#[tokio::test]
async fn close_sends_what_is_queued_and_ends_the_events() {
    let Some(mut broker) = mosquitto("close_sends_what_is_queued") else { return };
    broker.start();
    let mut options = broker.options("listener", &["x"]);
    options.event_messages = 1_000;
    let (_listener, mut heard) = ready(options).await;
    let (client, mut events) = ready(broker.options("c", &[])).await;
    for n in 0..200u8 {
        client.try_publish("x", vec![n]).unwrap();
    }

    tokio::time::timeout(PATIENCE, client.close()).await.unwrap();

    assert_eq!(events.next().await, None);
    assert_eq!(client.try_publish("x", "late"), Err(PublishError::Closed));
    assert_eq!(client.publish("x", "late").await, Err(PublishError::Closed));
    for n in 0..200u8 {
        assert_eq!(message(&mut heard).await.1, [n]);
    }
}

#[tokio::test]
async fn a_client_is_pushed_out_by_another_of_the_same_id_and_says_so() {
    let Some(mut broker) = mosquitto("a_client_is_pushed_out") else { return };
    broker.start();
    let (_first, mut events) = ready(broker.options("twin", &[])).await;
    let (second, _) = ready(broker.options("twin", &[])).await;
    until(&mut events, "disconnected", |e| matches!(e, Event::Disconnected { .. })).await;
    second.close().await;
}

/// A fleet's CA and, in the broker's directory, the files that mosquitto needs of it.
fn certify(broker: &Mosquitto) -> FleetCa {
    let ca = ca(1);
    let (chain, key) = party(&ca, &Role::Broker, &["127.0.0.1"]);
    let file = |name: &str| broker.directory().join(name);
    fs::write(file("ca.pem"), ca.certificate_pem()).unwrap();
    fs::write(file("broker.pem"), chain_to_pem(&chain)).unwrap();
    fs::write(file("broker.key"), key.to_pkcs8_pem().as_bytes()).unwrap();
    ca
}

fn ca(byte: u8) -> FleetCa {
    FleetCa::create(FleetId::from_bytes([byte; 16]), &mut OsRng, today()).unwrap()
}

fn party(ca: &FleetCa, role: &Role, hosts: &[&str]) -> (Vec<Vec<u8>>, IdentityKey) {
    let key = IdentityKey::generate(&mut OsRng);
    let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
    (ca.chain(ca.issue(role, &key.public_key(), &hosts, today()).unwrap()), key)
}

fn today() -> Validity {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    Validity::days_from(now.try_into().unwrap(), 1)
}

/// A device of the fleet of `issuer` that trusts the fleet of `trusts`.
fn device(issuer: &FleetCa, trusts: &FleetCa) -> Arc<rustls::ClientConfig> {
    let (chain, key) = party(issuer, &Role::Device(DeviceId::from_bytes([7; 16])), &[]);
    let roots = FleetRoots::from_pem(&trusts.certificate_pem()).unwrap();
    tls::client_config(&chain, &key, &roots).unwrap()
}

#[tokio::test]
async fn tls_works_both_ways_and_only_within_the_fleet() {
    let Some(mut broker) = mosquitto("tls_works_both_ways") else { return };
    let ours = certify(&broker);
    let theirs = ca(2);
    let file = |name: &str| broker.directory().join(name).display().to_string();
    let config = format!(
        "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\ntls_version tlsv1.3",
        file("ca.pem"),
        file("broker.pem"),
        file("broker.key")
    );
    broker.configure(&config);
    broker.start();
    let with = |tls| {
        let mut options = crate::support::options(&broker.url("mqtts"), "c", &["own"]);
        options.tls = Some(tls);
        options
    };

    let (client, mut events) = ready(with(device(&ours, &ours))).await;
    client.publish("own", vec![7; 100_000]).await.unwrap();
    assert_eq!(message(&mut events).await, ("own".into(), vec![7; 100_000]));
    client.close().await;

    let is_down = |event: &Event| matches!(event, Event::Disconnected { .. });
    let (_client, mut events) = connect(with(device(&ours, &theirs))).unwrap();
    // It may still be starting when the first attempt is made: any other reason is passed over.
    let reason = "certificate belongs to fleet 01010101";
    until(&mut events, reason, |e| matches!(e, Event::Disconnected { reason: r, .. } if r.contains(reason)))
        .await;
    assert!(is_down(&next(&mut events).await), "it never connects");

    let (_client, mut events) = connect(with(device(&theirs, &ours))).unwrap();
    let reason = "alert";
    until(&mut events, reason, |e| matches!(e, Event::Disconnected { reason: r, .. } if r.contains(reason)))
        .await;
    assert!(is_down(&next(&mut events).await), "it never connects");
}

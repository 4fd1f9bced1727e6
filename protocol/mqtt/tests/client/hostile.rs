//! The client against brokers that misbehave: each is a bare socket that speaks only the bytes of its test.

use std::time::Duration;

use crate::support::{PATIENCE, free_port, message, next, options, until};
use bytes::BytesMut;
use fleetkey_mqtt::{Event, PublishError, Qos, connect};
use rumqttc::{Packet, Publish};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const CONNACK: &[u8] = &[0x20, 2, 0, 0];

/// One side of a bare socket.
struct Socket {
    stream: TcpStream,
    unread: BytesMut,
}

impl Socket {
    async fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = tokio::time::timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        Self { stream, unread: BytesMut::new() }
    }

    /// The client's next packet; `None` when it has hung up.
    async fn packet(&mut self) -> Option<Packet> {
        loop {
            match Packet::read(&mut self.unread, 1 << 20) {
                Ok(packet) => return Some(packet),
                Err(rumqttc::Error::InsufficientBytes(_)) => {}
                Err(error) => panic!("{error}"),
            }
            let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.unread)).await.unwrap();
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Accepts the MQTT connection.
    async fn welcome(listener: &TcpListener) -> Self {
        let mut socket = Self::accept(listener).await;
        assert!(matches!(socket.packet().await, Some(Packet::Connect(c)) if c.clean_session));
        socket.send(CONNACK).await;
        socket
    }

    async fn publish(&mut self) -> Publish {
        match self.packet().await {
            Some(Packet::Publish(publish)) => publish,
            other => panic!("{other:?}"),
        }
    }
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("mqtt://{}", listener.local_addr().unwrap());
    (listener, url)
}

fn is_down(reason: &str) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::Disconnected { reason: got, .. } if got.contains(reason))
}

#[tokio::test]
async fn a_dead_broker_is_tried_for_ever_with_growing_waits() {
    let (_client, mut events) =
        connect(options(&format!("mqtt://127.0.0.1:{}", free_port()), "c", &["x"])).unwrap();
    for attempt in 0..8 {
        match next(&mut events).await {
            Event::Disconnected { reason, retry_in } => {
                assert!(reason.contains("refused"), "{reason}");
                let limit = Duration::from_millis(20 << attempt).min(Duration::from_millis(200));
                assert!(retry_in < limit, "{retry_in:?} after {attempt} failures");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_broker_that_accepts_and_says_nothing_is_given_up() {
    let (listener, url) = listener().await;
    let mut options = options(&url, "c", &["x"]);
    options.connect_timeout = Duration::from_secs(1);
    let (_client, mut events) = connect(options).unwrap();
    let _silent = Socket::accept(&listener).await;
    until(&mut events, "timeout", is_down("timeout")).await;
    let _again = Socket::accept(&listener).await;
}

#[tokio::test]
async fn a_connection_that_is_refused_says_why() {
    let (listener, url) = listener().await;
    let (_client, mut events) = connect(options(&url, "c", &[])).unwrap();
    for (code, reason) in [(4, "BadUserNamePassword"), (5, "NotAuthorized")] {
        let mut socket = Socket::accept(&listener).await;
        socket.packet().await.unwrap();
        socket.send(&[0x20, 2, 0, code]).await;
        until(&mut events, reason, is_down(reason)).await;
    }
}

#[tokio::test]
async fn a_subscription_that_is_never_answered_ends_the_connection() {
    let (listener, url) = listener().await;
    let mut options = options(&url, "c", &["x"]);
    options.subscribe_timeout = Duration::from_millis(50);
    let (client, mut events) = connect(options).unwrap();
    client.try_publish("t", "must not leave before the subscription").unwrap();
    let mut socket = Socket::welcome(&listener).await;
    assert!(matches!(socket.packet().await, Some(Packet::Subscribe(_))));
    until(&mut events, "timeout", is_down("did not answer a subscription")).await;
    assert_eq!(socket.packet().await, None, "nothing else was sent");
}

#[tokio::test]
async fn an_answer_that_was_not_asked_for_ends_the_connection() {
    let (listener, url) = listener().await;
    let (_client, mut events) = connect(options(&url, "c", &["x"])).unwrap();
    for answer in [
        &[0x90, 3, 0, 9, 0][..], // another packet identifier
        &[0x90, 4, 0, 1, 0, 0],  // two answers to one filter
        &[0xb0, 2, 0, 1],        // UNSUBACK
    ] {
        let mut socket = Socket::welcome(&listener).await;
        assert!(matches!(socket.packet().await, Some(Packet::Subscribe(s)) if s.pkid == 1));
        socket.send(answer).await;
        until(&mut events, "unasked", is_down("not asked for")).await;
    }
}

#[tokio::test]
async fn garbage_and_oversized_packets_end_the_connection_and_nothing_else() {
    let (listener, url) = listener().await;
    let mut options = options(&url, "c", &[]);
    options.max_packet_bytes = 2_048;
    let (_client, mut events) = connect(options).unwrap();
    for bytes in [
        &[0xff, 0xff, 0xff, 0xff, 0xff][..], // no packet of MQTT
        &[0x30, 0x80, 0x80, 0x80, 0x01],     // a message of 2 MiB
        &[0x40, 2, 0, 3],                    // PUBACK for nothing
        &[0x40, 2, 0xff, 0xff],
        &[0x50, 2, 0, 1],
        &[0x62, 2, 0, 1],
        &[0x70, 2, 0, 1],
        &[0x20, 2, 0, 0],                                    // a second CONNACK
        &[0x10, 12, 0, 4, 77, 81, 84, 84, 4, 2, 0, 0, 0, 0], // a CONNECT
        &[0x30, 2, 0, 9],                                    // a topic longer than its packet
        &[0x32, 5, 0, 1, 120, 0, 0],                         // packet identifier 0
        &[0x36, 5, 0, 1, 120, 0, 1],                         // quality of service 3
        &[0x90, 2, 0, 1],                                    // SUBACK without an answer
        &[0x90, 3, 0, 1, 7],                                 // SUBACK with another code
        &[0x30, 4, 0, 2, 0xc3, 0x28],                        // a topic that is not UTF-8
    ] {
        let mut socket = Socket::welcome(&listener).await;
        until(&mut events, "connected", |event| *event == Event::Connected).await;
        socket.send(bytes).await;
        until(&mut events, "disconnected", is_down("")).await;
    }
    let mut socket = Socket::welcome(&listener).await;
    socket.send(&[0x30, 5, 0, 1, b't', b'o', b'k']).await;
    assert_eq!(message(&mut events).await, ("t".into(), b"ok".to_vec()));
}

#[tokio::test]
async fn unacknowledged_messages_are_sent_again_first_and_in_order() {
    let (listener, url) = listener().await;
    let mut options = options(&url, "c", &[]);
    options.qos = Qos::AtLeastOnce;
    options.inflight = 4;
    let (client, _events) = connect(options).unwrap();
    for n in 0..20u8 {
        client.try_publish("t", vec![n]).unwrap();
    }
    // Takes four, acknowledges one, takes the fifth, hangs up.
    let mut socket = Socket::welcome(&listener).await;
    let mut seen = vec![];
    let mut first = 0;
    for n in 0..4u8 {
        let publish = socket.publish().await;
        assert_eq!(publish.payload.as_ref(), [n]);
        first = if n == 0 { publish.pkid } else { first };
    }
    socket.send(&[0x40, 2, 0, u8::try_from(first).unwrap()]).await;
    assert_eq!(socket.publish().await.payload.as_ref(), [4]);
    drop(socket);

    let mut socket = Socket::welcome(&listener).await;
    while seen.len() < 19 {
        let publish = socket.publish().await;
        assert!(!publish.dup, "a clean session knows no duplicates");
        seen.push(publish.payload[0]);
        socket.send(&[0x40, 2, 0, u8::try_from(publish.pkid).unwrap()]).await;
    }
    assert_eq!(seen, (1..20).collect::<Vec<u8>>());
}

#[tokio::test]
async fn messages_not_yet_sent_survive_a_broken_connection() {
    let (listener, url) = listener().await;
    let (client, _events) = connect(options(&url, "c", &["x"])).unwrap();
    for n in 0..100u8 {
        client.try_publish("t", vec![n]).unwrap();
    }
    // Breaks before the subscription is answered, twice: nothing may have left by then.
    for _ in 0..2 {
        let mut socket = Socket::welcome(&listener).await;
        assert!(matches!(socket.packet().await, Some(Packet::Subscribe(_))));
    }
    let mut socket = Socket::welcome(&listener).await;
    assert!(matches!(socket.packet().await, Some(Packet::Subscribe(_))));
    socket.send(&[0x90, 3, 0, 1, 0]).await;
    for n in 0..100u8 {
        assert_eq!(socket.publish().await.payload.as_ref(), [n]);
    }
}

#[tokio::test]
async fn dropping_both_halves_hangs_up_and_dropping_one_does_not() {
    let (listener, url) = listener().await;
    let (client, mut events) = connect(options(&url, "c", &[])).unwrap();
    let mut socket = Socket::welcome(&listener).await;
    let second = client.clone();
    drop(client);
    drop(second);
    socket.send(&[0x30, 4, 0, 1, b't', b'1']).await;
    assert_eq!(message(&mut events).await.1, b"1", "it listens without anybody to publish");
    drop(events);
    assert_eq!(socket.packet().await, None);

    let (client, events) = connect(options(&url, "c", &[])).unwrap();
    let mut socket = Socket::welcome(&listener).await;
    drop(events);
    client.publish("t", "2").await.unwrap();
    assert_eq!(socket.publish().await.payload.as_ref(), b"2", "it publishes without anybody to listen");
    drop(client);
    assert_eq!(socket.packet().await, None);
}

#[tokio::test]
async fn close_ends_an_attempt_and_a_wait_at_once() {
    let (listener, url) = listener().await;
    let (client, mut events) = connect(options(&url, "c", &[])).unwrap();
    let mut socket = Socket::accept(&listener).await;
    assert!(matches!(socket.packet().await, Some(Packet::Connect(_))));
    tokio::time::timeout(PATIENCE, client.close()).await.unwrap();
    assert_eq!(events.next().await, None);
    assert_eq!(socket.packet().await, None);

    let mut options = options(&format!("mqtt://127.0.0.1:{}", free_port()), "c", &[]);
    options.backoff.min = Duration::from_secs(100_000);
    options.backoff.max = Duration::from_secs(100_000);
    let (client, mut events) = connect(options).unwrap();
    next(&mut events).await;
    tokio::time::timeout(PATIENCE, client.close()).await.unwrap();
    assert_eq!(client.try_publish("t", ""), Err(PublishError::Closed));
    assert_eq!(client.subscribe("t"), Err(fleetkey_mqtt::SubscribeError::Closed));
}

#[tokio::test]
async fn close_gives_up_on_a_broker_that_takes_nothing() {
    let (listener, url) = listener().await;
    let mut options = options(&url, "c", &[]);
    options.qos = Qos::AtLeastOnce;
    options.inflight = 1;
    let (client, _events) = connect(options).unwrap();
    let mut socket = Socket::welcome(&listener).await;
    for _ in 0..50 {
        client.try_publish("t", "never acknowledged").unwrap();
    }
    socket.publish().await;
    tokio::time::timeout(PATIENCE, client.close()).await.unwrap();
    // What is still in the socket comes first.
    while let Some(packet) = socket.packet().await {
        assert!(matches!(packet, Packet::Publish(_)), "{packet:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_a_topic_or_a_filter_is_refused_here() {
    let (_listener, url) = listener().await;
    let (client, _events) = connect(options(&url, "c", &[])).unwrap();
    for topic in ["", "a/+", "#", "a\0b", &"x".repeat(1_025)] {
        assert!(matches!(client.try_publish(topic, ""), Err(PublishError::BadTopic { .. })), "{topic:?}");
    }
    for filter in ["", "a/#/b", "a+", "a\0b", &"x".repeat(801)] {
        assert!(client.subscribe(filter).is_err(), "{filter:?}");
    }
}

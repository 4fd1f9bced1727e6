//! A broker for one client: MQTT 3.1.1 at quality of service 0, every subscription granted, driven by the test.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Longer than anything here takes, so that a test that waits for nothing fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Broker {
    listener: TcpListener,
}

/// One accepted connection.
pub(crate) struct Session {
    stream: TcpStream,
    pub(crate) client_id: String,
    pub(crate) subscribed: Vec<String>,
}

impl Broker {
    pub(crate) async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("mqtt://{}", self.address())
    }

    /// The next connection, accepted.
    pub(crate) async fn accept(&self) -> Session {
        let (stream, _) =
            timeout(PATIENCE, self.listener.accept()).await.expect("a client connects").unwrap();
        stream.set_nodelay(true).unwrap();
        let mut session = Session { stream, client_id: String::new(), subscribed: Vec::new() };
        let (kind, body) = session.packet().await.expect("the client says CONNECT");
        assert_eq!(kind >> 4, 1, "CONNECT");
        // Protocol name and level, flags, keep-alive: 10 bytes; then the client id.
        let (id, _) = text(&body[10..]);
        session.client_id = id;
        session.stream.write_all(&[0x20, 2, 0, 0]).await.unwrap();
        session
    }
}

impl Session {
    /// The next message that the client publishes; `None` when it has gone. What else it says is answered.
    pub(crate) async fn published(&mut self) -> Option<(String, Vec<u8>)> {
        loop {
            let (kind, body) = self.packet().await?;
            match kind >> 4 {
                3 => {
                    let (topic, payload) = text(&body);
                    return Some((topic, payload.to_vec()));
                }
                8 => {
                    let mut filters = &body[2..];
                    let mut answer = vec![0x90, 0, body[0], body[1]];
                    while !filters.is_empty() {
                        let (filter, rest) = text(filters);
                        self.subscribed.push(filter);
                        answer.push(0);
                        filters = &rest[1..];
                    }
                    answer[1] = u8::try_from(answer.len() - 2).unwrap();
                    self.stream.write_all(&answer).await.unwrap();
                }
                10 => self.stream.write_all(&[0xb0, 2, body[0], body[1]]).await.unwrap(),
                12 => self.stream.write_all(&[0xd0, 0]).await.unwrap(),
                14 => return None,
                other => panic!("packet type {other}"),
            }
        }
    }

    /// Publishes to the client.
    pub(crate) async fn publish(&mut self, topic: &str, payload: &[u8]) {
        let mut length = 2 + topic.len() + payload.len();
        let mut packet = vec![0x30];
        loop {
            let more = if length > 127 { 0x80 } else { 0 };
            packet.push(u8::try_from(length % 128).unwrap() | more);
            length /= 128;
            if more == 0 {
                break;
            }
        }
        packet.extend(u16::try_from(topic.len()).unwrap().to_be_bytes());
        packet.extend(topic.as_bytes());
        packet.extend(payload);
        self.stream.write_all(&packet).await.unwrap();
    }

    async fn packet(&mut self) -> Option<(u8, Vec<u8>)> {
        timeout(PATIENCE, async {
            let kind = self.stream.read_u8().await.ok()?;
            let (mut length, mut shift) = (0, 0);
            loop {
                let byte = self.stream.read_u8().await.ok()?;
                length |= usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body).await.ok()?;
            Some((kind, body))
        })
        .await
        .expect("the client says something")
    }
}

fn text(bytes: &[u8]) -> (String, &[u8]) {
    let length = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    (String::from_utf8(bytes[2..2 + length].to_vec()).unwrap(), &bytes[2 + length..])
}

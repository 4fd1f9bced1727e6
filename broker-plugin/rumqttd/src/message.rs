//! A message on its way from one publisher to any number of subscribers: encoded once per version, then shared.

use std::sync::OnceLock;

use bytes::Bytes;
use fleetkey_policy::Qos;

use crate::packet::{Version, publish_header_qos1, publish_qos0};

/// A publish that was allowed. Owns its bytes: nothing keeps the publisher's read buffer alive.
#[derive(Debug)]
pub(crate) struct Message {
    topic: Box<str>,
    payload: Bytes,
    qos: Qos,
    v4: OnceLock<Bytes>,
    v5: OnceLock<Bytes>,
}

impl Message {
    /// The topic must be one of ours, at most 96 bytes of ASCII.
    pub(crate) fn new(topic: &str, payload: Bytes, qos: Qos) -> Self {
        Self { topic: topic.into(), payload, qos, v4: OnceLock::new(), v5: OnceLock::new() }
    }

    /// The QoS it was published at.
    pub(crate) const fn qos(&self) -> Qos {
        self.qos
    }

    pub(crate) const fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The whole PUBLISH at QoS 0.
    pub(crate) fn packet(&self, version: Version) -> Bytes {
        let encoded = match version {
            Version::V4 => &self.v4,
            Version::V5 => &self.v5,
        };
        encoded.get_or_init(|| publish_qos0(version, &self.topic, &self.payload)).clone()
    }

    /// What comes before the payload in a PUBLISH at QoS 1.
    pub(crate) fn header_qos1(&self, version: Version, packet_id: u16) -> Bytes {
        publish_header_qos1(version, &self.topic, packet_id, self.payload.len())
    }

    /// Length of the whole PUBLISH.
    pub(crate) fn packet_bytes(&self, version: Version, qos: Qos) -> usize {
        let packet_id = if qos == Qos::AtMostOnce { 0 } else { 2 };
        let properties = usize::from(version == Version::V5);
        let remaining = 2 + self.topic.len() + packet_id + properties + self.payload.len();
        let length = match remaining {
            0..0x80 => 1,
            0x80..0x4000 => 2,
            0x4000..0x20_0000 => 3,
            0x20_0000.. => 4,
        };
        1 + length + remaining
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_that_of_the_packet() {
        for payload in [0, 1, 100, 120, 130, 16_000, 16_400] {
            let message = Message::new("a/topic", Bytes::from(vec![0; payload]), Qos::AtLeastOnce);
            for version in [Version::V4, Version::V5] {
                assert_eq!(message.packet_bytes(version, Qos::AtMostOnce), message.packet(version).len());
                let whole = message.header_qos1(version, 1).len() + payload;
                assert_eq!(message.packet_bytes(version, Qos::AtLeastOnce), whole);
            }
        }
    }
}

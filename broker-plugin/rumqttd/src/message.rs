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

    /// Length of the whole PUBLISH, at most.
    pub(crate) fn max_packet_bytes(&self) -> usize {
        5 + 2 + self.topic.len() + 2 + 1 + self.payload.len()
    }
}

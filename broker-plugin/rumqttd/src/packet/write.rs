//! Packets to bytes.

use bytes::{BufMut, Bytes, BytesMut};

use super::Version;

/// CONNACK; the rest says what this broker does not support, so that a client need not find out.
pub(crate) fn connack(
    version: Version,
    code: u8,
    max_packet_bytes: usize,
    server_keep_alive_seconds: Option<u16>,
    ends_session: bool,
) -> Bytes {
    let mut properties = BytesMut::new();
    if version == Version::V5 && code == 0 {
        // MQTT 5 §3.2.2.3: maximum QoS 1, no retained messages, no subscription identifiers, no shared subscriptions.
        properties.put_slice(&[0x24, 1, 0x25, 0, 0x29, 0, 0x2a, 0]);
        properties.put_u8(0x27);
        properties.put_u32(u32::try_from(max_packet_bytes).unwrap_or(u32::MAX));
        if let Some(seconds) = server_keep_alive_seconds {
            properties.put_u8(0x13);
            properties.put_u16(seconds);
        }
        if ends_session {
            properties.put_slice(&[0x11, 0, 0, 0, 0]);
        }
    }
    let mut body = BytesMut::new();
    body.put_slice(&[0, code]);
    if version == Version::V5 {
        put_variable(&mut body, properties.len());
        body.put_slice(&properties);
    }
    packet(0x20, &body)
}

/// A whole PUBLISH at QoS 0.
pub(crate) fn publish_qos0(version: Version, topic: &str, payload: &[u8]) -> Bytes {
    let properties = usize::from(version == Version::V5);
    let remaining = 2 + topic.len() + properties + payload.len();
    let mut out = BytesMut::with_capacity(5 + remaining);
    out.put_u8(0x30);
    put_variable(&mut out, remaining);
    put_string(&mut out, topic);
    out.put_bytes(0, properties);
    out.put_slice(payload);
    out.freeze()
}

/// What comes before the payload of a PUBLISH at QoS 1.
pub(crate) fn publish_header_qos1(
    version: Version,
    topic: &str,
    packet_id: u16,
    payload_bytes: usize,
) -> Bytes {
    let properties = usize::from(version == Version::V5);
    let header = 2 + topic.len() + 2 + properties;
    let mut out = BytesMut::with_capacity(5 + header);
    out.put_u8(0x32);
    put_variable(&mut out, header + payload_bytes);
    put_string(&mut out, topic);
    out.put_u16(packet_id);
    out.put_bytes(0, properties);
    out.freeze()
}

/// PUBACK; version 3.1.1 has no way to say anything but success.
pub(crate) fn puback(version: Version, packet_id: u16, reason_code: u8) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u16(packet_id);
    if version == Version::V5 && reason_code != 0 {
        body.put_u8(reason_code);
    }
    packet(0x40, &body)
}

/// SUBACK with one code for each filter.
pub(crate) fn suback(version: Version, packet_id: u16, codes: &[u8]) -> Bytes {
    packet(0x90, &acknowledgement(version, packet_id, codes))
}

/// UNSUBACK with one code for each filter, which only version 5 sees.
pub(crate) fn unsuback(version: Version, packet_id: u16, codes: &[u8]) -> Bytes {
    match version {
        Version::V4 => packet(0xb0, &packet_id.to_be_bytes()),
        Version::V5 => packet(0xb0, &acknowledgement(version, packet_id, codes)),
    }
}

/// PINGRESP.
pub(crate) const fn pingresp() -> Bytes {
    Bytes::from_static(&[0xd0, 0])
}

/// DISCONNECT, which a server sends in version 5 only.
pub(crate) fn disconnect(reason_code: u8) -> Bytes {
    packet(0xe0, &[reason_code, 0])
}

fn acknowledgement(version: Version, packet_id: u16, codes: &[u8]) -> BytesMut {
    let mut body = BytesMut::with_capacity(3 + codes.len());
    body.put_u16(packet_id);
    if version == Version::V5 {
        body.put_u8(0);
    }
    body.put_slice(codes);
    body
}

pub(super) fn packet(first: u8, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + body.len());
    out.put_u8(first);
    put_variable(&mut out, body.len());
    out.put_slice(body);
    out.freeze()
}

fn put_variable(out: &mut BytesMut, mut value: usize) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.put_u8(low);
            return;
        }
        out.put_u8(low | 0x80);
    }
}

pub(super) fn put_string(out: &mut BytesMut, text: &str) {
    out.put_u16(u16::try_from(text.len()).expect("our topics have at most 96 bytes"));
    out.put_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use rumqttd::protocol::{self, ConnectReturnCode, Packet, Protocol, v4::V4, v5::V5};

    use super::*;

    /// Reads with another implementation of MQTT.
    fn read(version: Version, bytes: &Bytes) -> Packet {
        let mut input = BytesMut::from(&bytes[..]);
        let packet = match version {
            Version::V4 => V4.read_mut(&mut input, 1 << 20),
            Version::V5 => V5.read_mut(&mut input, 1 << 20),
        };
        assert!(input.is_empty(), "left over: {input:?}");
        packet.unwrap()
    }

    #[test]
    fn another_codec_reads_what_is_written() {
        for version in [Version::V4, Version::V5] {
            for payload in [&b""[..], b"p", &[7; 200], &[7; 20_000]] {
                let Packet::Publish(publish, _) = read(version, &publish_qos0(version, "a/b", payload))
                else {
                    panic!("not a publish")
                };
                assert_eq!((&publish.topic[..], &publish.payload[..]), (&b"a/b"[..], payload));

                let mut whole = BytesMut::from(&publish_header_qos1(version, "a/b", 9, payload.len())[..]);
                whole.put_slice(payload);
                let Packet::Publish(publish, _) = read(version, &whole.freeze()) else {
                    panic!("not a publish")
                };
                assert_eq!(&publish.payload[..], payload);
                assert_eq!(publish.serialize()[..3], [0x32, 0, 9], "QoS 1, packet id 9");
            }
            let Packet::PubAck(ack, _) = read(version, &puback(version, 5, 0)) else {
                panic!("not a puback")
            };
            assert_eq!((ack.pkid, ack.reason), (5, protocol::PubAckReason::Success));
            let Packet::SubAck(ack, _) = read(version, &suback(version, 5, &[0, 1])) else {
                panic!("not a suback")
            };
            assert_eq!((ack.pkid, ack.return_codes.len()), (5, 2));
            assert!(matches!(read(version, &pingresp()), Packet::PingResp(_)));
        }
    }

    #[test]
    fn refusals_carry_their_codes() {
        assert_eq!(connack(Version::V4, 5, 1_000, None, false)[..], [0x20, 2, 0, 5]);
        assert_eq!(connack(Version::V5, 0x87, 1_000, None, false)[..], [0x20, 3, 0, 0x87, 0]);
        assert_eq!(puback(Version::V5, 1, 0x87)[..], [0x40, 3, 0, 1, 0x87]);
        assert_eq!(suback(Version::V4, 1, &[0x80])[..], [0x90, 3, 0, 1, 0x80]);
        assert_eq!(suback(Version::V5, 1, &[0x87])[..], [0x90, 4, 0, 1, 0, 0x87]);
        assert_eq!(unsuback(Version::V4, 1, &[0])[..], [0xb0, 2, 0, 1]);
        assert_eq!(unsuback(Version::V5, 1, &[0x11])[..], [0xb0, 4, 0, 1, 0, 0x11]);
        assert_eq!(disconnect(0x8e)[..], [0xe0, 2, 0x8e, 0]);
    }

    #[test]
    fn the_connack_of_version_5_says_what_is_not_supported() {
        let bytes = connack(Version::V5, 0, 65_536, Some(60), true);
        assert_eq!(
            bytes[..],
            [
                0x20, 24, 0, 0, 21, 0x24, 1, 0x25, 0, 0x29, 0, 0x2a, 0, 0x27, 0, 1, 0, 0, 0x13, 0, 60, 0x11,
                0, 0, 0, 0
            ]
        );
        let Packet::ConnAck(ack, _) = read(Version::V4, &connack(Version::V4, 0, 1, None, true)) else {
            panic!("not a connack")
        };
        assert_eq!((ack.session_present, ack.code), (false, ConnectReturnCode::Success));
    }
}

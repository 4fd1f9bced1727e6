//! The other side of the conversation: what this broker says to another as its client, and hears from it. MQTT 3.1.1.

use bytes::{BufMut, Bytes, BytesMut};

use super::malformed::Malformed;
use super::read::{Frame, publish};
use super::reader::Reader;
use super::write::{packet, put_string};
use super::{Publish, Version};

/// A packet of a server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer<'a> {
    /// CONNACK; 0 is yes.
    ConnAck { code: u8 },
    /// SUBACK, with a code for each filter.
    SubAck { packet_id: u16, codes: &'a [u8] },
    /// PUBLISH.
    Publish(Publish<'a>),
    /// UNSUBACK or PINGRESP.
    Nothing,
}

/// Reads a packet of a server.
pub(crate) fn read_answer<'a>(frame: &Frame<'a>) -> Result<Answer<'a>, Malformed> {
    let (kind, flags) = (frame.first >> 4, frame.first & 0x0f);
    let mut reader = Reader::new(frame.body);
    match kind {
        2 => {
            reader.byte()?;
            let code = reader.byte()?;
            reader.end().map(|()| Answer::ConnAck { code })
        }
        3 => publish(Version::V4, flags, reader).map(Answer::Publish),
        9 => Ok(Answer::SubAck { packet_id: reader.packet_id()?, codes: reader.rest() }),
        11 | 13 => Ok(Answer::Nothing),
        kind => Err(Malformed::UnexpectedPacket { kind }),
    }
}

/// CONNECT, with a clean session.
pub(crate) fn connect(client_id: &str, keep_alive_seconds: u16) -> Bytes {
    let mut body = BytesMut::new();
    put_string(&mut body, "MQTT");
    body.put_slice(&[4, 2]);
    body.put_u16(keep_alive_seconds);
    put_string(&mut body, client_id);
    packet(0x10, &body)
}

/// SUBSCRIBE at QoS 0.
pub(crate) fn subscribe(packet_id: u16, filters: &[String]) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u16(packet_id);
    for filter in filters {
        put_string(&mut body, filter);
        body.put_u8(0);
    }
    packet(0x82, &body)
}

/// UNSUBSCRIBE.
pub(crate) fn unsubscribe(packet_id: u16, filters: &[String]) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u16(packet_id);
    filters.iter().for_each(|filter| put_string(&mut body, filter));
    packet(0xa2, &body)
}

/// PINGREQ.
pub(crate) const fn pingreq() -> Bytes {
    Bytes::from_static(&[0xc0, 0])
}

#[cfg(test)]
mod tests {
    use super::super::read::{frame, read_connect, read_packet};
    use super::super::{Packet, connack, suback};
    use super::*;
    use crate::packet::publish_qos0;

    #[test]
    fn what_it_says_is_what_a_server_of_ours_reads() {
        let bytes = connect("relay-1", 30);
        let said = read_connect(&frame(&bytes, 1_000).unwrap().unwrap()).unwrap();
        assert_eq!((said.version, said.client_id, said.keep_alive_seconds), (Version::V4, "relay-1", 30));
        assert!(!said.has_will);
        let filters = ["a/b".to_owned(), "c".to_owned()];
        let bytes = subscribe(7, &filters);
        let Packet::Subscribe(said) =
            read_packet(Version::V4, &frame(&bytes, 1_000).unwrap().unwrap()).unwrap()
        else {
            panic!("not a SUBSCRIBE")
        };
        let topics: Vec<_> = said.filters.iter().map(|(filter, _)| *filter).collect();
        assert_eq!((said.packet_id, &topics[..]), (7, &["a/b", "c"][..]));
        let bytes = unsubscribe(8, &filters);
        let said = read_packet(Version::V4, &frame(&bytes, 1_000).unwrap().unwrap()).unwrap();
        assert_eq!(said, Packet::Unsubscribe { packet_id: 8, filters: vec!["a/b", "c"] });
        let bytes = pingreq();
        let said = read_packet(Version::V4, &frame(&bytes, 1_000).unwrap().unwrap()).unwrap();
        assert_eq!(said, Packet::PingReq);
    }

    #[test]
    fn what_a_server_of_ours_says_is_what_it_hears() {
        let hear = |bytes: &Bytes| {
            let cut = frame(bytes, 1_000).unwrap().unwrap();
            match read_answer(&cut).unwrap() {
                Answer::ConnAck { code } => format!("connack {code}"),
                Answer::SubAck { packet_id, codes } => format!("suback {packet_id} {codes:?}"),
                Answer::Publish(publish) => format!("publish {} {:?}", publish.topic, publish.payload),
                Answer::Nothing => "nothing".to_owned(),
            }
        };
        assert_eq!(hear(&connack(Version::V4, 5, 0, None, false)), "connack 5");
        assert_eq!(hear(&suback(Version::V4, 9, &[0, 0x80])), "suback 9 [0, 128]");
        assert_eq!(hear(&publish_qos0(Version::V4, "a/b", &[1, 2])), "publish a/b [1, 2]");
        assert_eq!(hear(&crate::packet::pingresp()), "nothing");
        let refused = Frame { first: 0x82, body: &[0, 1], bytes: 4 };
        assert_eq!(read_answer(&refused), Err(Malformed::UnexpectedPacket { kind: 8 }));
    }
}

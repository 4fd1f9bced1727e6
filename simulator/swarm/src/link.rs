//! The little MQTT 3.1.1 that a device speaks, at quality of service 0.

use bytes::{BufMut as _, BytesMut};
use fleetkey_mqtt::packets::v4::{
    Connect, ConnectReturnCode, Packet, Subscribe, SubscribeFilter, Unsubscribe,
};
use fleetkey_mqtt::packets::{self, QoS};

/// The largest packet that is taken, in bytes.
const MAX_PACKET_BYTES: usize = 128 * 1024;

/// What a broker says.
#[derive(Debug)]
pub(crate) enum Said {
    /// CONNACK; whether it lets the client in.
    Accepted(bool),
    /// SUBACK: which filter of the SUBSCRIBE of this id was granted, in order.
    Subscribed(u16, Vec<bool>),
    /// PUBLISH.
    Message(packets::v4::Publish),
    /// What calls for nothing.
    Nothing,
}

/// The broker says what is no MQTT, or what no broker says to a client like this.
#[derive(Debug, thiserror::Error)]
#[error("the broker breaks the protocol")]
pub(crate) struct NoSense;

/// Takes the next whole packet from what has come.
pub(crate) fn next(input: &mut BytesMut) -> Result<Option<Said>, NoSense> {
    use fleetkey_mqtt::packets::v4::SubscribeReasonCode as Code;
    let packet = match Packet::read(input, MAX_PACKET_BYTES) {
        Ok(packet) => packet,
        Err(packets::Error::InsufficientBytes(_)) => return Ok(None),
        Err(_) => return Err(NoSense),
    };
    Ok(Some(match packet {
        Packet::ConnAck(answer) => Said::Accepted(answer.code == ConnectReturnCode::Success),
        Packet::SubAck(answer) => {
            let granted = answer.return_codes.iter().map(|code| matches!(code, Code::Success(_)));
            Said::Subscribed(answer.pkid, granted.collect())
        }
        Packet::Publish(publish) => Said::Message(publish),
        Packet::UnsubAck(_) | Packet::PingResp => Said::Nothing,
        Packet::Connect(_)
        | Packet::PubAck(_)
        | Packet::PubRec(_)
        | Packet::PubRel(_)
        | Packet::PubComp(_)
        | Packet::Subscribe(_)
        | Packet::Unsubscribe(_)
        | Packet::PingReq
        | Packet::Disconnect => return Err(NoSense),
    }))
}

/// CONNECT, with a clean session.
pub(crate) fn connect(client_id: String, keep_alive_seconds: u16, out: &mut BytesMut) {
    let mut connect = Connect::new(client_id);
    connect.keep_alive = keep_alive_seconds;
    connect.clean_session = true;
    connect.write(out).expect("a client id is short");
}

/// SUBSCRIBE.
pub(crate) fn subscribe(packet_id: u16, filters: &[String], out: &mut BytesMut) {
    let filters = filters.iter().map(|filter| SubscribeFilter::new(filter.clone(), QoS::AtMostOnce));
    let mut subscribe = Subscribe::new_many(filters);
    subscribe.pkid = packet_id;
    subscribe.write(out).expect("there are filters, and they are short");
}

/// UNSUBSCRIBE.
pub(crate) fn unsubscribe(packet_id: u16, filters: Vec<String>, out: &mut BytesMut) {
    Unsubscribe { pkid: packet_id, topics: filters }.write(out).expect("filters are short");
}

/// PUBLISH at most once, not retained.
pub(crate) fn publish(topic: &str, payload: &[u8], out: &mut BytesMut) {
    // As the library writes it, without a copy of either for its sake (MQTT 3.1.1 §3.3).
    out.put_u8(0x30);
    let mut rest = 2 + topic.len() + payload.len();
    loop {
        let digit = (rest % 128) as u8;
        rest /= 128;
        out.put_u8(if rest > 0 { digit | 0x80 } else { digit });
        if rest == 0 {
            break;
        }
    }
    out.put_u16(topic.len() as u16);
    out.put_slice(topic.as_bytes());
    out.put_slice(payload);
}

/// PINGREQ.
pub(crate) fn ping(out: &mut BytesMut) {
    out.put_slice(&[0xc0, 0]);
}

#[cfg(test)]
mod tests {
    use fleetkey_mqtt::packets::v4::Publish;

    use super::*;

    #[test]
    fn a_publish_is_written_as_the_library_writes_it() {
        for bytes in [0, 1, 100, 127, 128, 300, 20_000] {
            let payload = vec![7; bytes];
            let (mut ours, mut theirs) = (BytesMut::new(), BytesMut::new());
            publish("fk/a/cell/b", &payload, &mut ours);
            Publish::new("fk/a/cell/b", QoS::AtMostOnce, payload).write(&mut theirs).unwrap();
            assert_eq!(ours, theirs, "{bytes} bytes");
        }
    }

    #[test]
    fn half_a_packet_is_none_yet() {
        let mut whole = BytesMut::new();
        publish("fk/a/cell/b", b"hello", &mut whole);
        for at in 0..whole.len() {
            let mut half = BytesMut::from(&whole[..at]);
            assert!(next(&mut half).unwrap().is_none(), "{at} bytes");
        }
        assert!(matches!(next(&mut whole), Ok(Some(Said::Message(_)))));
    }
}

//! Bytes to packets.

use super::malformed::Malformed;
use super::reader::{Property, Reader, USER_PROPERTY, qos};
use super::{Connect, Packet, Publish, Subscribe, Version};

/// More filters than this in one SUBSCRIBE or UNSUBSCRIBE are refused.
pub(super) const MAX_FILTERS: usize = 256;

/// One whole packet within the input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// Packet type and flags.
    pub(crate) first: u8,
    /// What follows the fixed header.
    pub(crate) body: &'a [u8],
    /// Length of the whole packet.
    pub(crate) bytes: usize,
}

/// Cuts the first packet off `input`; `None` when it is not all there yet.
///
/// The limit is checked as soon as the length is known, before the rest has arrived.
pub(crate) fn frame(input: &[u8], max_packet_bytes: usize) -> Result<Option<Frame<'_>>, Malformed> {
    let Some((&first, rest)) = input.split_first() else { return Ok(None) };
    let mut remaining = 0usize;
    for (index, shift) in [0, 7, 14, 21].into_iter().enumerate() {
        let Some(&byte) = rest.get(index) else { return Ok(None) };
        remaining |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            let header_bytes = index + 2;
            let bytes = header_bytes + remaining;
            if bytes > max_packet_bytes {
                return Err(Malformed::TooLarge { bytes, limit: max_packet_bytes });
            }
            return Ok(input.get(header_bytes..bytes).map(|body| Frame { first, body, bytes }));
        }
    }
    Err(Malformed::RemainingLength)
}

/// Reads the first packet of a connection, which must be a CONNECT.
pub(crate) fn read_connect<'a>(frame: &Frame<'a>) -> Result<Connect<'a>, Malformed> {
    if frame.first != 0x10 {
        return Err(Malformed::UnexpectedPacket { kind: frame.first >> 4 });
    }
    let mut reader = Reader::new(frame.body);
    let version = match (reader.binary()?, reader.byte()?) {
        (b"MQTT", 4) => Version::V4,
        (b"MQTT", 5) => Version::V5,
        // MQIsdp was the name in MQTT 3.1.
        (b"MQTT" | b"MQIsdp", level) => return Err(Malformed::ProtocolLevel { level }),
        _ => return Err(Malformed::ProtocolName),
    };
    let flags = reader.byte()?;
    let has_will = flags & 0x04 != 0;
    let will_bits = flags & 0x38;
    let [has_name, has_password] = [flags & 0x80 != 0, flags & 0x40 != 0];
    // MQTT 3.1.1 §3.1.2: bit 0 is reserved, will flags need a will, and a password needs a name.
    if flags & 0x01 != 0
        || (!has_will && will_bits != 0)
        || (version == Version::V4 && has_password && !has_name)
    {
        return Err(Malformed::ReservedBits);
    }
    if has_will {
        qos(flags >> 3)?;
    }
    let mut connect = Connect {
        version,
        client_id: "",
        keep_alive_seconds: reader.two()?,
        has_will,
        has_authentication_method: false,
        receive_maximum: u16::MAX,
        max_packet_bytes: None,
        wants_session: false,
    };
    if version == Version::V5 {
        connect_properties(&mut reader, &mut connect)?;
    }
    connect.client_id = reader.string()?;
    if has_will {
        if version == Version::V5 {
            reader.properties(&[0x18, 0x01, 0x02, 0x03, 0x08, 0x09, USER_PROPERTY], |_, _| Ok(()))?;
        }
        reader.string()?;
        reader.binary()?;
    }
    if has_name {
        reader.string()?;
    }
    if has_password {
        reader.binary()?;
    }
    reader.end()?;
    Ok(connect)
}

fn connect_properties(reader: &mut Reader<'_>, connect: &mut Connect<'_>) -> Result<(), Malformed> {
    let allowed = [0x11, 0x21, 0x27, 0x22, 0x19, 0x17, USER_PROPERTY, 0x15, 0x16];
    reader.properties(&allowed, |id, value| {
        match (id, value) {
            (0x21, Property::Two(0)) | (0x27, Property::Four(0)) => {
                return Err(Malformed::BadPropertyValue { id });
            }
            (0x17 | 0x19, Property::Byte(value)) if value > 1 => {
                return Err(Malformed::BadPropertyValue { id });
            }
            (0x11, Property::Four(seconds)) => connect.wants_session = seconds > 0,
            (0x21, Property::Two(maximum)) => connect.receive_maximum = maximum,
            (0x27, Property::Four(bytes)) => connect.max_packet_bytes = Some(bytes),
            (0x15, _) => connect.has_authentication_method = true,
            (_, Property::Byte(_) | Property::Two(_) | Property::Four(_) | Property::Skipped) => {}
        }
        Ok(())
    })
}

/// Reads any later packet of a connection.
pub(crate) fn read_packet<'a>(version: Version, frame: &Frame<'a>) -> Result<Packet<'a>, Malformed> {
    let (kind, flags) = (frame.first >> 4, frame.first & 0x0f);
    let reader = Reader::new(frame.body);
    let expected_flags = match kind {
        3 => flags,
        8 | 10 => 2,
        _ => 0,
    };
    if flags != expected_flags {
        return Err(Malformed::ReservedBits);
    }
    match kind {
        3 => publish(version, flags, reader).map(Packet::Publish),
        4 => puback(version, reader),
        8 => subscribe(version, reader).map(Packet::Subscribe),
        10 => unsubscribe(version, reader),
        12 => reader.end().map(|()| Packet::PingReq),
        14 => disconnect(version, reader),
        kind => Err(Malformed::UnexpectedPacket { kind }),
    }
}

pub(super) fn publish(version: Version, flags: u8, mut reader: Reader<'_>) -> Result<Publish<'_>, Malformed> {
    let qos = qos(flags >> 1)?;
    let topic = reader.string()?;
    let packet_id = if flags & 0x06 == 0 { 0 } else { reader.packet_id()? };
    let mut has_topic_alias = false;
    if version == Version::V5 {
        let allowed = [0x01, 0x02, 0x23, 0x08, 0x09, USER_PROPERTY, 0x03];
        reader.properties(&allowed, |id, value| {
            match (id, value) {
                (0x01, Property::Byte(value)) if value > 1 => return Err(Malformed::BadPropertyValue { id }),
                (0x23, _) => has_topic_alias = true,
                (_, Property::Byte(_) | Property::Two(_) | Property::Four(_) | Property::Skipped) => {}
            }
            Ok(())
        })?;
    }
    Ok(Publish { topic, payload: reader.rest(), qos, retain: flags & 1 != 0, packet_id, has_topic_alias })
}

fn puback(version: Version, mut reader: Reader<'_>) -> Result<Packet<'_>, Malformed> {
    let packet_id = reader.packet_id()?;
    if version == Version::V5 && !reader.is_empty() {
        reader.byte()?;
        if !reader.is_empty() {
            reader.properties(&[0x1f, USER_PROPERTY], |_, _| Ok(()))?;
        }
    }
    reader.end().map(|()| Packet::PubAck { packet_id })
}

fn subscribe(version: Version, mut reader: Reader<'_>) -> Result<Subscribe<'_>, Malformed> {
    let packet_id = reader.packet_id()?;
    let mut has_identifier = false;
    if version == Version::V5 {
        reader.properties(&[0x0b, USER_PROPERTY], |id, _| {
            has_identifier |= id == 0x0b;
            Ok(())
        })?;
    }
    let mut filters = Vec::new();
    while !reader.is_empty() {
        if filters.len() == MAX_FILTERS {
            return Err(Malformed::TooManyFilters { limit: MAX_FILTERS });
        }
        let filter = reader.string()?;
        let options = reader.byte()?;
        // MQTT 5 §3.8.3.1: no local, retain as published, retain handling; none of them matters without retained
        // messages and with nobody subscribed to what it publishes.
        let reserved = match version {
            Version::V4 => options & 0xfc,
            Version::V5 => options & 0xc0,
        };
        if reserved != 0 || options & 0x30 == 0x30 {
            return Err(Malformed::ReservedBits);
        }
        filters.push((filter, qos(options)?));
    }
    if filters.is_empty() {
        return Err(Malformed::NoFilters);
    }
    Ok(Subscribe { packet_id, has_identifier, filters })
}

fn unsubscribe(version: Version, mut reader: Reader<'_>) -> Result<Packet<'_>, Malformed> {
    let packet_id = reader.packet_id()?;
    if version == Version::V5 {
        reader.properties(&[USER_PROPERTY], |_, _| Ok(()))?;
    }
    let mut filters = Vec::new();
    while !reader.is_empty() {
        if filters.len() == MAX_FILTERS {
            return Err(Malformed::TooManyFilters { limit: MAX_FILTERS });
        }
        filters.push(reader.string()?);
    }
    if filters.is_empty() {
        return Err(Malformed::NoFilters);
    }
    Ok(Packet::Unsubscribe { packet_id, filters })
}

fn disconnect(version: Version, mut reader: Reader<'_>) -> Result<Packet<'_>, Malformed> {
    if version == Version::V5 && !reader.is_empty() {
        reader.byte()?;
        if !reader.is_empty() {
            reader.properties(&[0x11, 0x1f, USER_PROPERTY], |_, _| Ok(()))?;
        }
    }
    reader.end().map(|()| Packet::Disconnect)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use fleetkey_policy::Qos;
    use proptest::prelude::*;
    use rumqttd::protocol::{self, Protocol, v4::V4, v5::V5};

    use super::*;

    fn written(version: Version, packet: protocol::Packet) -> BytesMut {
        let mut out = BytesMut::new();
        match version {
            Version::V4 => V4.write(packet, &mut out).unwrap(),
            Version::V5 => V5.write(packet, &mut out).unwrap(),
        };
        out
    }

    #[test]
    fn what_another_codec_writes_is_read_back() {
        for version in [Version::V4, Version::V5] {
            let connect = protocol::Connect { keep_alive: 30, client_id: "me".into(), clean_session: true };
            let bytes = written(version, protocol::Packet::Connect(connect, None, None, None, None));
            let connect = read_connect(&frame(&bytes, 4096).unwrap().unwrap()).unwrap();
            assert_eq!((connect.version, connect.client_id, connect.keep_alive_seconds), (version, "me", 30));
            assert!(!connect.has_will);

            let mut publish =
                protocol::Publish::deserialize([&[0x32, 0, 7, 0, 3][..], b"a/b", b"payload"].concat().into());
            publish.retain = true;
            let bytes = written(version, protocol::Packet::Publish(publish, None));
            let expected = Publish {
                topic: "a/b",
                payload: b"payload",
                qos: Qos::AtLeastOnce,
                retain: true,
                packet_id: 7,
                has_topic_alias: false,
            };
            let cut = frame(&bytes, 4096).unwrap().unwrap();
            assert_eq!(read_packet(version, &cut).unwrap(), Packet::Publish(expected));

            let filter = protocol::Filter {
                path: "x/y".into(),
                qos: protocol::QoS::AtLeastOnce,
                nolocal: false,
                preserve_retain: false,
                retain_forward_rule: protocol::RetainForwardRule::OnEverySubscribe,
            };
            let subscribe = protocol::Subscribe { pkid: 3, filters: vec![filter] };
            let bytes = written(version, protocol::Packet::Subscribe(subscribe, None));
            let expected =
                Subscribe { packet_id: 3, has_identifier: false, filters: vec![("x/y", Qos::AtLeastOnce)] };
            let cut = frame(&bytes, 4096).unwrap().unwrap();
            assert_eq!(read_packet(version, &cut).unwrap(), Packet::Subscribe(expected));
        }
    }

    #[test]
    fn a_packet_that_is_too_large_is_refused_before_it_has_arrived() {
        let input = [0x30, 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(frame(&input, 1_000), Err(Malformed::TooLarge { bytes: 268_435_460, limit: 1_000 }));
        assert_eq!(frame(&[0x30, 0xff, 0xff, 0xff, 0xff], 1_000), Err(Malformed::RemainingLength));
        assert_eq!(frame(&[0x30, 0x80], 1_000), Ok(None));
        assert_eq!(frame(&[0x30, 3, 0, 1], 1_000), Ok(None));
    }

    #[test]
    fn packets_of_servers_and_of_qos_2_are_refused() {
        for kind in [0u8, 1, 2, 5, 6, 7, 9, 11, 13, 15] {
            let frame = Frame { first: kind << 4, body: &[0, 1], bytes: 4 };
            for version in [Version::V4, Version::V5] {
                assert_eq!(read_packet(version, &frame), Err(Malformed::UnexpectedPacket { kind }), "{kind}");
            }
        }
    }

    #[test]
    fn faults_are_told_apart() {
        let cases: [(u8, &[u8], Malformed); 11] = [
            (0x36, &[0, 1, b'a', 0, 1], Malformed::Qos3),
            (0x32, &[0, 1, b'a', 0, 0], Malformed::PacketIdZero),
            (0x30, &[0, 9, b'a'], Malformed::Truncated),
            (0x30, &[0, 1, 0xff], Malformed::BadString),
            (0x30, &[0, 1, 0x00], Malformed::BadString),
            (0x80, &[0, 1, 0, 1, b'a', 0], Malformed::ReservedBits),
            (0x82, &[0, 1], Malformed::NoFilters),
            (0x82, &[0, 1, 0, 1, b'a', 0x80], Malformed::ReservedBits),
            (0x82, &[0, 1, 0, 1, b'a', 3], Malformed::Qos3),
            (0xc0, &[1], Malformed::TrailingBytes { bytes: 1 }),
            (0xe0, &[0], Malformed::TrailingBytes { bytes: 1 }),
        ];
        for (first, body, why) in cases {
            let frame = Frame { first, body, bytes: body.len() + 2 };
            assert_eq!(read_packet(Version::V4, &frame), Err(why), "{first:#x} {body:?}");
        }
        let too_many = [&[0, 1][..], &[0, 1, b'a', 0].repeat(MAX_FILTERS + 1)].concat();
        let frame = Frame { first: 0x82, body: &too_many, bytes: too_many.len() + 4 };
        assert_eq!(read_packet(Version::V4, &frame), Err(Malformed::TooManyFilters { limit: MAX_FILTERS }));
    }

    #[test]
    fn properties_are_checked_even_where_they_are_not_used() {
        let publish = |properties: &[u8]| {
            let body =
                [&[0, 1, b'a'][..], &[u8::try_from(properties.len()).unwrap()], properties, b"p"].concat();
            let frame = Frame { first: 0x30, body: &body, bytes: body.len() + 2 };
            read_packet(Version::V5, &frame).map(|packet| {
                let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
                (publish.has_topic_alias, publish.payload == b"p")
            })
        };
        assert_eq!(publish(&[]), Ok((false, true)));
        assert_eq!(publish(&[0x23, 0, 1]), Ok((true, true)));
        assert_eq!(publish(&[0x26, 0, 1, b'k', 0, 1, b'v', 0x26, 0, 1, b'k', 0, 1, b'v']), Ok((false, true)));
        assert_eq!(publish(&[0x23, 0, 1, 0x23, 0, 1]), Err(Malformed::BadProperty { id: 0x23 }));
        assert_eq!(publish(&[0x0b, 1]), Err(Malformed::BadProperty { id: 0x0b }));
        assert_eq!(publish(&[0x7f]), Err(Malformed::BadProperty { id: 0x7f }));
        assert_eq!(publish(&[0x01, 2]), Err(Malformed::BadPropertyValue { id: 0x01 }));
        assert_eq!(publish(&[0x02, 0, 0]), Err(Malformed::Truncated));
    }

    proptest! {
        #[test]
        fn no_input_makes_the_reader_panic(input in proptest::collection::vec(any::<u8>(), 0..300), kind in 0u8..16) {
            for version in [Version::V4, Version::V5] {
                let whole = Frame { first: kind << 4 | input.first().unwrap_or(&0) & 0x0f, body: &input, bytes: input.len() };
                let _ = read_packet(version, &whole);
                let _ = read_connect(&Frame { first: 0x10, ..whole });
            }
            if let Ok(Some(cut)) = frame(&input, 1_000) {
                prop_assert!(cut.bytes <= input.len());
            }
        }

        #[test]
        fn a_connect_with_anything_after_its_name_never_panics(rest in proptest::collection::vec(any::<u8>(), 0..60), level in 3u8..7) {
            let body = [&[0, 4, b'M', b'Q', b'T', b'T', level][..], &rest].concat();
            let _ = read_connect(&Frame { first: 0x10, body: &body, bytes: body.len() + 2 });
        }
    }
}

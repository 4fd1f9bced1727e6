//! MQTT 3.1.1 and 5 packets as a server reads and writes them; and in `client`, the few that it exchanges with another.
//!
//! Reading borrows from the input and allocates nothing but the list of filters; every length is checked before use.
//! Packets that only a server sends, and those of QoS 2, are refused here. Leaves to others what a packet means and
//! whether it is allowed.

mod client;
mod malformed;
mod read;
mod reader;
mod write;

pub(crate) use client::{Answer, connect, pingreq, read_answer, subscribe, unsubscribe};
pub(crate) use malformed::Malformed;
pub(crate) use read::{frame, read_connect, read_packet};
pub(crate) use write::{
    connack, disconnect, pingresp, puback, publish_header_qos1, publish_qos0, suback, unsuback,
};

use fleetkey_policy::Qos;

/// The version of MQTT that a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// MQTT 3.1.1.
    V4,
    /// MQTT 5.
    V5,
}

/// CONNECT (MQTT 3.1.1 §3.1, MQTT 5 §3.1).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Connect<'a> {
    pub(crate) version: Version,
    pub(crate) client_id: &'a str,
    /// 0: the client promises nothing.
    pub(crate) keep_alive_seconds: u16,
    pub(crate) has_will: bool,
    /// MQTT 5: the client wants to authenticate in a way of its own.
    pub(crate) has_authentication_method: bool,
    /// How many unacknowledged QoS 1 publishes the client takes.
    pub(crate) receive_maximum: u16,
    /// The largest packet the client takes, if it named one.
    pub(crate) max_packet_bytes: Option<u32>,
    /// MQTT 5: the session is to outlive the connection, which none of ours does.
    pub(crate) wants_session: bool,
}

/// A packet of a connected client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Packet<'a> {
    Publish(Publish<'a>),
    PubAck { packet_id: u16 },
    Subscribe(Subscribe<'a>),
    Unsubscribe { packet_id: u16, filters: Vec<&'a str> },
    PingReq,
    Disconnect,
}

/// PUBLISH (MQTT 3.1.1 §3.3, MQTT 5 §3.3).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Publish<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// 0 at QoS 0.
    pub(crate) packet_id: u16,
    pub(crate) has_topic_alias: bool,
}

/// SUBSCRIBE (MQTT 3.1.1 §3.8, MQTT 5 §3.8).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Subscribe<'a> {
    pub(crate) packet_id: u16,
    pub(crate) has_identifier: bool,
    pub(crate) filters: Vec<(&'a str, Qos)>,
}

/// Reads all of `input` as one connection's packets, CONNECT first, as far as they are there and right, and shows each
/// topic and filter in them; the name of what was refused. It is how bytes are tried on the parser without a connection.
///
/// # Errors
/// The name that the refusal counts under.
#[doc(hidden)]
pub fn read_packets(
    input: &[u8],
    max_packet_bytes: usize,
    mut name: impl FnMut(&str),
) -> Result<usize, &'static str> {
    let mut version = None;
    let mut at = 0;
    while let Some(cut) = frame(&input[at..], max_packet_bytes).map_err(|malformed| malformed.name())? {
        match version {
            None => {
                let connect = read_connect(&cut).map_err(|malformed| malformed.name())?;
                name(connect.client_id);
                version = Some(connect.version);
            }
            Some(version) => match read_packet(version, &cut).map_err(|malformed| malformed.name())? {
                Packet::Publish(publish) => name(publish.topic),
                Packet::Subscribe(subscribe) => subscribe.filters.iter().for_each(|(filter, _)| name(filter)),
                Packet::Unsubscribe { filters, .. } => filters.into_iter().for_each(&mut name),
                Packet::PubAck { .. } | Packet::PingReq | Packet::Disconnect => {}
            },
        }
        at += cut.bytes;
    }
    Ok(at)
}

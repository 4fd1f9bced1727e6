//! The embedded broker: our acceptor and policy in front of a fan-out.
//!
//! MQTT 3.1.1 and 5 over TCP and TLS, QoS 0 and 1, three kinds of topics, and nothing else: no retained messages, no
//! wills, no sessions that outlive their connection, no wildcards but one. Every client is a party of one fleet, known
//! by its certificate, and does what [`fleetkey_policy`] allows.
//!
//! ```text
//! acceptor    TCP, TLS, CONNECT: who is it, may it come in
//! connection  one client: packets in, messages out, deadlines
//! hub         who is connected; `up` and `down`; what a change of policy does
//! fan_out     cells: rumqttd's router, or a map
//! uplink      an edge of another broker: what its clients say goes there, what is for them comes from there
//! ```
//!
//! Deliberately absent: keys, payloads, the policy itself, persistence, clustering.

mod acceptor;
mod broker;
mod config;
mod connection;
mod fan_out;
mod hub;
mod link;
mod message;
mod packet;
mod refusal;
pub mod service;
mod session;
mod stats;
mod uplink;

pub use broker::Broker;
pub use config::{BrokerConfig, BrokerError, FanOutKind, Identify, Limits, Listener, QueueLimit, Upstream};
pub use fleetkey_door::rate::RateLimit;
pub use fleetkey_policy as policy;
#[doc(hidden)]
pub use packet::read_packets;
pub use stats::Stats;

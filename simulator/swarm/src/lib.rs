//! Many devices in one process: real agent cores on connections that cost little.
//!
//! ```text
//! shard    a thread: sockets, timers, MQTT; one rider on each connection
//! rider    what a connection is for
//! device   a rider: the real agent core of one device
//! gateway  a rider: many devices on one connection
//! meter    what came and went; alarms: when each is to be looked at
//! ```
//!
//! A connection here is a socket and two buffers that are empty while nothing is under way; what `fleetkey-mqtt` promises to a
//! device on its own (queues, several brokers, quality of service 1) it does not have. What an agent decides is the real
//! agent's, to the last byte.
//!
//! Deliberately absent: any decision of the protocol, and the coordinator.

mod alarms;
mod device;
mod gateway;
mod link;
mod meter;
mod rider;
mod route;
mod shard;
mod socket;

pub use device::{Clock, Device};
pub use gateway::Gateway;
pub use meter::{Traffic, Volume};
pub use rider::{Outbox, Rider};
pub use route::{Route, Tls};
pub use shard::{Crew, Seat, Shard, ShardGone, ShardOptions};

//! The same gate in front of rmqtt: one node, or a raft cluster of several.
//!
//! rmqtt carries the messages; who may connect, publish and subscribe is decided by [`fleetkey_policy`], in its hooks.
//! It never sees TLS: connections end here, and their bytes go on to a listener of its own on the loopback interface.
//!
//! ```text
//! front    TCP, TLS: who is it, may it come in
//! relay    one connection's bytes, there and back: limits and deadlines
//! guests   who is behind each relay; what a change of policy does to them
//! hooks    rmqtt asks: CONNECT, PUBLISH, SUBSCRIBE, and again at each delivery
//! fitter   what rmqtt keeps for a session: nothing that outlives its connection
//! cluster  the nodes that are one broker
//! ```
//!
//! Deliberately absent: keys, payloads, the policy itself, persistence, retained messages, wills.

mod cluster;
mod config;
mod fitter;
mod front;
mod guests;
mod hooks;
mod meter;
mod node;
mod refusal;
mod relay;
pub mod settings;

pub use config::{ClusterConfig, Limits, NodeConfig, NodeError, Peer};
pub use node::{Checkup, Node};

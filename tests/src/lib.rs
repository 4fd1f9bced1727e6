//! A small world in which the two cores meet: real coordinator core, real agent cores, real MLS, and a broker,
//! a clock and stores that are a few lines each.
//!
//! Nothing in it waits: time passes when a test says so. Deliberately absent: MQTT, TLS, SQLite. Tests on those
//! run real processes and sockets.

pub mod forge;
pub mod hand;
pub mod world;

pub use hand::Hand;
pub use world::{Peer, Weather, World};

//! Whole fleets on real parts.
//!
//! [`demo`] shows the main job, end to end: a fleet is onboarded, devices are revoked, everyone else moves on, and
//! each claim is checked. Broker, coordinator and agents are the real ones, in one process.
//! Deliberately absent: any decision of the protocol, and any shortcut past MQTT, TLS or the disk.

pub mod alone;
pub mod bound;
pub mod demo;
pub mod device_cost;
pub mod field;
pub mod fleet;
pub mod following;
pub mod onboarding;
pub mod outside;
pub mod parts;
pub mod plain_sockets;
pub mod prober;
pub mod progress;
pub mod real_time;
pub mod report;
pub mod thief;

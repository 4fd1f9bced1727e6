//! The device process around the state machine of `fleetkey-agent-core`: MQTT, clock, entropy, the store on disk, and
//! the hand-off of keys to applications.
//!
//! [`spawn`] runs one agent as one task and returns an [`AgentHandle`]; a process may run thousands. The binary
//! `fleetkey-agent` runs one from a provisioning bundle ([`settings`]) and answers applications on a socket
//! ([`socket`]). Deliberately absent: every decision of the protocol.

pub mod enrol;
pub mod est;
mod handle;
pub mod renewal;
pub mod settings;
pub mod socket;
pub mod sqlite;
mod task;
mod traffic;

pub use fleetkey_agent_core::{
    AgentConfig, CannotOpen, CannotSeal, Event, GroupStatus, LoadError, MemoryStore, PskGroup, PskStatus,
    Refused, RemovedBecause, Status, Store, StoreError,
};
pub use fleetkey_wire::payload::Opened;
pub use handle::{AgentHandle, CallError, Stopped};
pub use sqlite::SqliteStore;
pub use task::{AgentEvent, AgentSetup, Observer, StartError, spawn};
pub use traffic::{MAX_RECORDED_BYTES, Recorded, Traffic, Volume};

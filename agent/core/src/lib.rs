//! The device's state machine: inputs and time in, writes and outputs out.
//!
//! [`Agent::handle`] takes one [`Input`], the time and a source of randomness, and returns [`Effects`]: what to
//! store, in one transaction, and then what to do. The shell commits the writes first, and only then performs the
//! outputs; when committing fails it drops the agent and loads it again. So a confirmation leaves only after
//! what it confirms is stored, and a crash at any point loses nothing but messages, which the coordinator sends again.
//!
//! An input that is refused changes nothing, in memory or stored, apart from counters; at most it leads to a hello,
//! and hellos are rate-limited, or to saying which pre-shared keys are held, once for each that is missing.
//!
//! Deliberately absent: sockets, MQTT, files, clocks, entropy, threads. Those are the shell's (`fleetkey-agent`).

mod agent;
mod cells;
mod certificate;
mod config;
mod confirmations;
pub mod conformance;
mod connection;
mod down;
mod effects;
mod evidence;
mod group;
mod keeper;
mod keypackages;
mod pacing;
mod payloads;
mod psks;
mod refused;
mod silence;
mod status;
pub mod store;
mod stored;

pub use agent::{Agent, LoadError};
pub use config::AgentConfig;
pub use effects::{Effects, Event, Input, Output, RemovedBecause};
pub use keeper::{Keeper, KeeperError, Kept, NotStored};
pub use payloads::{CannotOpen, CannotSeal, MAX_KNOWN_SENDERS};
pub use psks::PskGroup;
pub use refused::Refused;
pub use status::{GroupStatus, PskStatus, Status};
pub use store::{Entries, MemoryStore, Store, StoreError, Write, Writes};
pub use stored::StoredError;

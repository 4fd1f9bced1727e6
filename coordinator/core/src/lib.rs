//! The coordinator's decisions: membership, cells, rekeys, catch-up, deadlines.
//!
//! [`Coordinator`] decides; it has no clock, no entropy, no network and no disk. What must follow from a decision
//! it leaves in [`Effects`], and what must survive lies in a [`Store`]. Deliberately absent: MQTT, the database,
//! HTTP, configuration files.

mod actor;
pub mod audit;
pub mod backup;
mod behind;
pub mod certificates;
pub mod conformance;
mod context;
mod coordinator;
mod device;
pub mod doctor;
mod effects;
pub mod enrolment;
mod error;
mod group;
mod labels;
pub mod operators;
mod policy;
mod psks;
pub mod records;
pub mod restore;
mod secret;
mod status;
mod store;
mod strangers;
mod traces;
pub mod writer;

pub use actor::Actor;
pub use behind::{Behind, Stranger};
pub use context::{Setup, Timing};
pub use coordinator::Coordinator;
pub use effects::{Access, CatchUp, Effects, Event, Publish};
pub use error::{CommandError, LoadError, OutOfScope, Poisoned, UpRefused};
pub use labels::{BadLabels, Labels, MAX_LABEL_BYTES, MAX_LABELS};
pub use policy::{BadPolicy, OnJoin, Policy};
pub use records::{
    DeviceRecord, MemberRecord, OutboxRecord, Outcome, Place, Restored, Rotation, Standing, Superseded, Table,
};
pub use secret::{BadSecret, ShownSecret};
pub use status::{CellStatus, DeadlineStatus, GroupStatus, PskStatus, Status};
pub use store::{MemoryStore, Row, Store, StoreError, Write};
pub use writer::Writer;

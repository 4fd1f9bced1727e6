//! Bytes to types and back: everything two parties of a fleet must agree on byte for byte.
//!
//! Ids, topics, frames, statements, wraps, the key schedule, the link between a device and the coordinator,
//! confirmations and sealed payloads. `docs/PROTOCOL.md` says the same in prose.
//! Deliberately absent: I/O, MLS, storage, clocks. Randomness is a parameter.

mod aead;
mod cbor;
pub mod confirm;
mod cose;
pub mod down;
pub mod error;
pub mod frame;
pub mod ids;
pub mod keys;
pub mod limits;
pub mod link;
pub mod payload;
pub mod psk;
pub mod secret_writer;
pub mod statement;
pub mod suite;
pub mod time;
pub mod topic;
pub mod up;
pub mod wrap;

pub use confirm::Confirmation;
pub use down::{DismissReason, DownBody, EVERY_GROUP, Welcome};
pub use error::{BadFrame, BadStatement, BadWrap, Named};
pub use frame::{CellFrame, CommitMessages, StatementAndWrap};
pub use ids::{CellEpoch, CellId, DeviceId, FleetId, Generation, GroupId, KeyEpoch, PskId};
pub use keys::{Commitment, GroupSecret, Kek, Pairwise, Psk};
pub use secret_writer::SecretWriter;
pub use statement::{KeyId, Reason, ShortDigest, SignedStatement, Statement, StatementDigest};
pub use suite::Suite;
pub use time::{Millis, Now};
pub use topic::{Filter, Topic};
pub use up::{Hello, HelloCell, ShortAuthenticator, UpBody};

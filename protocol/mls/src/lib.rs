//! The cell: one MLS group (RFC 9420) of the coordinator and at most a few hundred devices, both sides.
//!
//! [`ManagedCell`] is the coordinator's side, [`MemberCell`] a device's. A cell keeps its openmls state as
//! the bytes that are stored, and loads a group from them for the length of one operation: little memory per
//! cell, and an operation that fails has changed nothing.
//!
//! Only the coordinator commits. Every name from openmls stays inside this crate; what leaves it are bytes and
//! types of our own. Deliberately absent: topics and frames (`fleetkey-wire`), where snapshots are kept, who
//! is enrolled, which device goes into which cell, and when anything is committed.

mod batch;
mod commit;
mod context;
mod crypto;
mod error;
mod join;
mod key_package;
mod leaf;
mod manager;
mod member;
mod message;
mod provider;
mod psk;
mod signer;
mod slots;
mod snapshot;
mod state;
mod storage;
mod welcome;

pub use commit::{AddDevice, Changes, CommitOutcome, Committed, Dropped};
pub use context::CellContext;
pub use error::{LocalError, MlsError, Refused};
pub use key_package::{KeyPackageRef, PrivateKeyPackage, make_key_package};
pub use leaf::max_leaf_bytes;
pub use manager::ManagedCell;
pub use member::{MemberCell, Processed};
pub use message::{
    MAX_COMMIT_BYTES, MAX_COVERED_UPDATES, MAX_UPDATE_BYTES, MAX_WELCOME_BYTES, max_key_package_bytes,
};
pub use signer::LeafSigner;
pub use welcome::welcome_key_package_ref;

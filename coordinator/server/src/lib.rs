//! The coordinator's service: the deciding thread with its database, the connection to the broker, the policy feed,
//! the HTTP API, and what the `fleetkey` command line is made of.
//!
//! [`Service`] runs in any process; [`serve`] puts one together from a configuration file. What is decided is
//! `fleetkey-coordinator-core`'s; here it is stored first, and then done.

pub mod api;
mod authority;
mod backup_file;
mod bundle;
mod cas;
mod clock;
pub mod config;
mod cpu;
mod engine;
mod evidence;
mod examine;
mod feed;
mod fleet;
mod handle;
pub mod http;
mod init;
mod last_lists;
mod link;
mod meter;
mod own_certificate;
pub mod pkcs11;
mod registrar;
mod remains;
mod restore;
mod retirement;
mod revocations;
mod rolling;
mod rules;
mod serve;
mod service;
mod shared_store;
mod stats;
mod store;
pub mod when;

pub use authority::{Authority, AuthorityError, NewIdentity, Validities};
pub use backup_file::{
    BACKUP_FILE_VERSION, BackupHeader, BadBackupFile, MAX_BACKUP_BYTES, inspect as inspect_backup,
    open_backup, seal_backup,
};
pub use bundle::{check_bundle_directory, write_bundle};
pub use cas::{CaFiles, Cas, RetiredCa};
pub use clock::unix_seconds;
pub use engine::CommandFailed;
pub use evidence::{AUDIT_VERSION, AuditEnd, AuditHeader, BadAudit, ExportedAudit, read_audit};
pub use examine::{ExamineError, examine};
pub use feed::{PolicyFeed, PolicyStream};
pub use fleet::{FIRST_GENERATION, Fleet, Party};
pub use fleetkey_vault::files::{FileError, write_private};
pub use handle::ServiceHandle;
pub use init::{InitError, InitOptions, Initialised, init};
pub use link::mqtt_options;
pub use own_certificate::{RenewError, renew};
pub use restore::{
    RestoreDone, RestoreError, RestoreFrom, RestoreOptions, UncertainWindow, UnknownDevice, restore,
};
pub use retirement::{Hanging, RetireError};
pub use revocations::{ListError, RevocationLists};
pub use rolling::Rolling;
pub use serve::{ServeError, ca_passphrase, read_ca, read_ca_text, serve};
pub use service::{Service, ServiceConfig, StartError};
pub use shared_store::{Closed, LastStep, SharedStore, StoreReader};
pub use stats::{Stats, Traffic};
pub use store::{OpenError, SCHEMA_VERSION, SqliteStore};

//! `fleetkey doctor` on a database that no coordinator runs on.

use fleetkey_coordinator_core::StoreError;
use fleetkey_coordinator_core::doctor::{self, About};

use crate::api::Examined;
use crate::clock;
use crate::config::Config;
use crate::serve::{Identity, ServeError, master_key};
use crate::store::{OpenError, SqliteStore};

/// Why a database was not examined.
#[derive(Debug, thiserror::Error)]
pub enum ExamineError {
    /// The coordinator's files.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The database does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database fails.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Examines the database that the settings name.
///
/// # Errors
/// [`ExamineError`]; what is wrong in the database is a finding.
pub fn examine(config: &Config) -> Result<Examined, ExamineError> {
    let master = master_key(config).map_err(ServeError::from)?;
    let identity = Identity::read(&config.identity)?;
    let mut store = SqliteStore::open(&config.database, &master)?;
    let about = About { fleet: identity.fleet, coordinator: identity.party.key.public_key() };
    Ok(Examined::of(&doctor::examine(&mut store, &about, clock::unix_seconds())?))
}

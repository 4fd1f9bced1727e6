//! `/v1/backup`, `/v1/audit`, `/v1/doctor`: what is read of the database past the deciding thread.
//!
//! Nothing is decided while the database is read, so what takes time is done on a copy.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::Query;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use fleetkey_coordinator_core::backup::Backup;
use fleetkey_coordinator_core::doctor::{self, About};
use fleetkey_coordinator_core::records::{AuditRecord, MetaRecord, Record as _};
use fleetkey_coordinator_core::{LoadError, MemoryStore, StoreError, Table};
use fleetkey_identity::FleetRoots;
use fleetkey_vault::{MasterKey, Vault};
use fleetkey_wire::FleetId;
use serde::Deserialize;
use tracing::info;

use super::Api;
use super::answers::ApiError;
use super::caller::Asked;
use crate::api::{AuditPage, BACKUP_HEADER, BackupSummary, Examined, MAX_AUDIT_PAGE, StoreView};
use crate::fleet::Party;
use crate::shared_store::{Closed, StoreReader};
use crate::{backup_file, clock};

/// The database of a running coordinator, and what is needed to make something of it.
#[derive(Debug)]
pub struct Keep {
    reader: StoreReader,
    vault: Vault,
    pub(super) roots: FleetRoots,
    about: About,
}

impl Keep {
    /// What is read through `reader` is of `fleet`, whose coordinators are `coordinator` and whose parties `roots`
    /// vouch for. Backups are sealed under `master`.
    pub fn new(
        reader: StoreReader,
        master: &MasterKey,
        fleet: FleetId,
        roots: &FleetRoots,
        coordinator: &Party,
    ) -> Self {
        let about = About { fleet, coordinator: coordinator.key.public_key() };
        Self { reader, vault: backup_file::vault(master), roots: roots.clone(), about }
    }
}

/// Reads on a thread that may wait.
async fn read<T: Send + 'static>(
    api: &Arc<Api>,
    read: impl FnOnce(&Keep) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let api = api.clone();
    let read =
        tokio::task::spawn_blocking(move || read(api.keep.as_ref().ok_or(ApiError::NoDatabase)?)).await;
    // The only other failure is a panic, which has been reported where it happened.
    read.unwrap_or(Err(ApiError::Closed(Closed)))
}

pub(super) async fn backup(api: Asked) -> Result<Response, ApiError> {
    let (summary, file) = read(&api, |keep| {
        let taken = clock::unix_seconds();
        let backup = keep.reader.read(|store| Backup::of_store(store, taken))??;
        let fleet = keep.about.fleet;
        let file = backup_file::seal(&keep.vault, fleet, &backup)?;
        Ok((BackupSummary::of(fleet, &backup, file.len()), file))
    })
    .await?;
    info!(devices = summary.devices, groups = summary.groups, bytes = summary.bytes, "backup taken");
    let told = serde_json::to_string(&summary).expect("ids and numbers always encode");
    let headers = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CACHE_CONTROL, "no-store".to_owned()),
        (BACKUP_HEADER, told),
    ];
    Ok((headers, Body::from(file)).into_response())
}

/// Which page.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    #[serde(default)]
    since: u64,
    after: Option<String>,
}

pub(super) async fn audit(
    api: Asked,
    Query(Page { since, after }): Query<Page>,
) -> Result<Json<AuditPage>, ApiError> {
    let mut after = match after {
        Some(after) => hex::decode(after).map_err(|error| ApiError::BadRequest(format!("after: {error}")))?,
        None => Vec::new(),
    };
    let page = read(&api, move |keep| {
        loop {
            // What is decided in this very second may be stored in the next.
            let until_unix_seconds = clock::unix_seconds().saturating_sub(1);
            let (rows, meta) = keep.reader.read(|store| -> Result<_, StoreError> {
                let rows = store.rows_after(Table::Audit, &after, MAX_AUDIT_PAGE)?;
                Ok((rows, store.rows(Table::Meta)?))
            })??;
            let entries: Result<Vec<_>, StoreError> = rows.iter().map(AuditRecord::read).collect();
            let mut entries = entries?;
            let last = rows.last().filter(|_| rows.len() == MAX_AUDIT_PAGE).map(|row| row.key.clone());
            let old = entries.iter().take_while(|entry| entry.unix_seconds < since).count();
            entries.drain(..old);
            match last {
                Some(last) if entries.is_empty() => after = last,
                last => {
                    let next = last.map(hex::encode);
                    let head = meta.first().map(MetaRecord::read).transpose()?;
                    let head = head.map(|meta| meta.audit).unwrap_or_default();
                    let fleet = keep.about.fleet;
                    return Ok(AuditPage { fleet, entries, next, head, until_unix_seconds });
                }
            }
        }
    });
    page.await.map(Json)
}

pub(super) async fn doctor(api: Asked) -> Result<Json<Examined>, ApiError> {
    let examined = read(&api, |keep| {
        let mut copy = keep.reader.read(MemoryStore::copy_of)??;
        let findings = doctor::examine(&mut copy, &keep.about, clock::unix_seconds())?;
        Ok(Examined::of(&findings))
    });
    examined.await.map(Json)
}

/// What the database says of itself, for the status.
pub(super) async fn store(api: &Arc<Api>) -> Result<Option<StoreView>, ApiError> {
    if api.keep.is_none() {
        return Ok(None);
    }
    read(api, |keep| {
        let outbox = keep.reader.read(|store| store.count(Table::Outbox))??;
        Ok(Some(StoreView { outbox, last_step: keep.reader.last_step()? }))
    })
    .await
}

impl From<LoadError> for ApiError {
    fn from(error: LoadError) -> Self {
        Self::Database(error.to_string())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::Database(error.to_string())
    }
}

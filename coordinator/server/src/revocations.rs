//! The revocation list: made anew after each revocation and before the last one ends, served, and put into a file.
//!
//! What is on it follows from the registry, so that after a crash it says what was stored, all of it or nothing. Leaves
//! the registry to the coordinator and signing to the [`Authority`].

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use axum::body::Bytes;
use fleetkey_identity::crl_to_pem;
use fleetkey_policy::PolicyUpdate;
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

use crate::authority::{Authority, AuthorityError};
use crate::feed::PolicyFeed;
use crate::handle::ServiceHandle;
use fleetkey_vault::files::{self, FileError};

/// After how long a list that could not be made is tried again.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(5);

/// The newest list, and what keeps it new. Clones are the same.
#[derive(Clone)]
pub struct RevocationLists(Arc<Lists>);

struct Lists {
    service: ServiceHandle,
    authority: Arc<Authority>,
    /// Where it is put for brokers that read files.
    file: Option<PathBuf>,
    newest: RwLock<Option<Bytes>>,
    /// One at a time, so that a newer list is never written over by an older one.
    making: Mutex<()>,
    wanted: Notify,
}

/// Why there is no new list.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The coordinator or the CA.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Its file.
    #[error(transparent)]
    File(#[from] FileError),
}

impl RevocationLists {
    pub(crate) fn new(service: ServiceHandle, authority: Arc<Authority>, file: Option<PathBuf>) -> Self {
        let (newest, making, wanted) = (RwLock::default(), Mutex::default(), Notify::new());
        Self(Arc::new(Lists { service, authority, file, newest, making, wanted }))
    }

    /// The newest list (DER).
    pub fn newest(&self) -> Option<Bytes> {
        self.0.newest.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes a list of everything that is revoked by now, and publishes it.
    ///
    /// # Errors
    /// [`ListError`]; the list before stays.
    pub async fn refresh(&self) -> Result<(), ListError> {
        let lists = &*self.0;
        let _one = lists.making.lock().await;
        let issuer = lists.authority.issuer();
        let list = lists
            .service
            .decide(move |coordinator, now, _| coordinator.next_revocation_list(issuer, now))
            .await
            .map_err(AuthorityError::from)?;
        let (number, count) = (list.number, list.revoked.len());
        let der = lists.authority.revocation_list(number, list.revoked).map_err(AuthorityError::from)?;
        let pem = crl_to_pem(&der);
        *lists.newest.write().unwrap_or_else(PoisonError::into_inner) = Some(der.into());
        metrics::gauge!("fleetkey_crl_number").set(number as f64);
        metrics::gauge!("fleetkey_crl_certificates").set(count as f64);
        // Last: a disk that is full keeps nobody else from the list.
        if let Some(path) = &lists.file {
            files::write_public(path, pem.as_bytes())?;
        }
        tracing::debug!(number, certificates = count, "revocation list published");
        Ok(())
    }

    /// Keeps the list new until told to stop: after each revocation, and long before the last one ends.
    pub(crate) async fn keep(self, feed: PolicyFeed, stop: CancellationToken) {
        let lists = self.0.clone();
        feed.listen(move |update| match update {
            PolicyUpdate::Snapshot { .. } | PolicyUpdate::Revoked { .. } => lists.wanted.notify_one(),
            PolicyUpdate::CellMembers { .. } | PolicyUpdate::CellGone { .. } => {}
        });
        loop {
            let wait = match self.refresh().await {
                Ok(()) => self.0.authority.list_every(),
                Err(error) => {
                    tracing::error!(%error, "no new revocation list: the last one stays");
                    AGAIN
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.0.wanted.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

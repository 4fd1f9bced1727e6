//! The revocation list of each CA: made anew after each revocation and before the last one ends, served, and put into a file.
//!
//! What is on it follows from the registry, so that after a crash it says what was stored, all of it or nothing. Leaves
//! the registry to the coordinator and signing to the [`Authority`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use axum::body::Bytes;
use fleetkey_identity::{KeyId, chain_to_pem, crl_to_pem};
use fleetkey_policy::PolicyUpdate;
use tokio::sync::{MutexGuard, Notify};
use tokio_util::sync::CancellationToken;

use crate::authority::{Authority, AuthorityError};
use crate::clock;
use crate::feed::PolicyFeed;
use crate::handle::ServiceHandle;
use crate::last_lists;
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
    /// Of each CA; that of the one that issues under its id too.
    newest: RwLock<Newest>,
    wanted: Notify,
    /// How often a revocation has made new lists wanted, and up to which of these there are some.
    wishes: AtomicU64,
    met: AtomicU64,
}

/// The newest lists (DER).
#[derive(Default)]
struct Newest {
    issuing: Option<KeyId>,
    of_each: BTreeMap<KeyId, Bytes>,
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
        let (newest, wanted) = (RwLock::default(), Notify::new());
        let (wishes, met) = (AtomicU64::default(), AtomicU64::default());
        Self(Arc::new(Lists { service, authority, file, newest, wanted, wishes, met }))
    }

    /// The newest list (DER) of the CA that issues.
    pub fn newest(&self) -> Option<Bytes> {
        let newest = self.0.newest.read().unwrap_or_else(PoisonError::into_inner);
        newest.of_each.get(&newest.issuing?).cloned()
    }

    /// The newest list (DER) of this CA.
    pub fn newest_of(&self, ca: KeyId) -> Option<Bytes> {
        self.0.newest.read().unwrap_or_else(PoisonError::into_inner).of_each.get(&ca).cloned()
    }

    /// Makes a list of everything that is revoked by now, for each CA, and publishes them.
    ///
    /// # Errors
    /// [`ListError`]; the lists before stay.
    pub async fn refresh(&self) -> Result<(), ListError> {
        let still = self.0.authority.still().await;
        self.make(&still).await
    }

    /// As [`Self::refresh`], unless somebody has made lists since the last revocation.
    ///
    /// # Errors
    /// [`ListError`]; the lists before stay.
    pub async fn catch_up(&self) -> Result<(), ListError> {
        let still = self.0.authority.still().await;
        let (wishes, met) = (&self.0.wishes, &self.0.met);
        if met.load(Ordering::Acquire) < wishes.load(Ordering::Acquire) {
            self.make(&still).await
        } else {
            Ok(())
        }
    }

    /// One at a time, so that a newer list is never written over by an older one, nor a last one followed by another.
    async fn make(&self, _still: &MutexGuard<'_, ()>) -> Result<(), ListError> {
        let lists = &*self.0;
        let wishes = lists.wishes.load(Ordering::Acquire);
        let cas = lists.authority.cas();
        let (mut pem, mut of_each, mut count, mut number) = (String::new(), BTreeMap::new(), 0, 0);
        for ca in cas.signing() {
            let id = ca.id();
            let list = lists
                .service
                .decide(move |coordinator, now, _| coordinator.next_revocation_list(id, now))
                .await
                .map_err(AuthorityError::from)?;
            (number, count) = (number.max(list.number), count + list.revoked.len());
            let der = lists.authority.revocation_list(ca, list).map_err(AuthorityError::from)?;
            put(&mut pem, ca.is_root(), &ca.certificates_pem(), &der);
            of_each.insert(id, der.into());
        }
        let roots = lists.authority.roots();
        for retired in last_lists::published(&cas.retired, roots, clock::unix_seconds()) {
            let is_root = roots.ders().contains(&retired.certificate);
            let certificate = chain_to_pem(std::slice::from_ref(&retired.certificate));
            put(&mut pem, is_root, &certificate, &retired.last_list);
        }
        for retired in &cas.retired {
            of_each.insert(retired.id(), retired.last_list.clone().into());
        }
        let issuing = Some(cas.issuing.id());
        *lists.newest.write().unwrap_or_else(PoisonError::into_inner) = Newest { issuing, of_each };
        metrics::gauge!("fleetkey_crl_number").set(number as f64);
        metrics::gauge!("fleetkey_crl_certificates").set(count as f64);
        // Last: a disk that is full keeps nobody else from the list.
        if let Some(path) = &lists.file {
            files::write_public(path, pem.as_bytes())?;
        }
        lists.met.store(wishes, Ordering::Release);
        tracing::debug!(number, certificates = count, "revocation lists published");
        Ok(())
    }

    /// Keeps the list new until told to stop: after each revocation, and long before the last one ends.
    pub(crate) async fn keep(self, feed: PolicyFeed, stop: CancellationToken) {
        let lists = self.0.clone();
        feed.listen(move |update| match update {
            PolicyUpdate::Snapshot { .. } | PolicyUpdate::Revoked { .. } => {
                lists.wishes.fetch_add(1, Ordering::AcqRel);
                lists.wanted.notify_one();
            }
            PolicyUpdate::CellMembers { .. } | PolicyUpdate::CellGone { .. } => {}
        });
        let mut is_due = true;
        loop {
            let made = if is_due { self.refresh().await } else { self.catch_up().await };
            let wait = match made {
                Ok(()) => self.0.authority.list_every(),
                Err(error) => {
                    tracing::error!(%error, "no new revocation list: the last one stays");
                    AGAIN
                }
            };
            is_due = tokio::select! {
                () = stop.cancelled() => return,
                () = self.0.wanted.notified() => false,
                () = self.0.authority.changed() => true,
                () = tokio::time::sleep(wait) => true,
            };
        }
    }
}

/// Puts a list into a text, behind the certificate of its CA where that is no root: readers learn the CA by it.
fn put(text: &mut String, is_root: bool, certificate: &str, list: &[u8]) {
    if !is_root {
        text.push_str(certificate);
    }
    text.push_str(&crl_to_pem(list));
}

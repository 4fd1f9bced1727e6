//! The fleet's CA at work: certificates for devices, and the list of those that no longer count.
//!
//! A certificate is stored before anybody gets it. Leaves who is let in to the coordinator, and files to whoever asked.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use fleetkey_coordinator_core::certificates::{NewCertificate, RevocationList};
use fleetkey_coordinator_core::{Labels, Standing};
use fleetkey_est::About;
use fleetkey_identity::{
    Crl, FleetCa, FleetRoots, IdentityKey, IssueError, KeyId, Revoked, Role, Validity, chain_to_pem,
    read_certificate,
};
use fleetkey_vault::files;
use fleetkey_wire::DeviceId;
use rand_core::OsRng;
use tokio::sync::{Mutex, MutexGuard, Notify};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::Bundle;
use crate::cas::{CaFiles, Cas, Stamp};
use crate::clock;
use crate::config::IdentityConfig;
use crate::engine::CommandFailed;
use crate::fleet::Party;
use crate::handle::ServiceHandle;
use crate::serve::ServeError;

/// How often the files of the CAs are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// After how long files that could not be read are tried again, at most.
const READ_AGAIN_MAX: Duration = Duration::from_secs(60);

/// A day, in seconds: a device that asks again within one gets the same certificate again.
const DAY_SECONDS: i64 = 86_400;

/// How long what it issues is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validities {
    /// Certificates of devices that renew them, in days.
    pub device_days: u32,
    /// Revocation lists, in hours.
    pub crl_hours: u32,
}

impl Default for Validities {
    fn default() -> Self {
        Self { device_days: 365, crl_hours: 48 }
    }
}

/// Issues from the fleet's CA.
#[derive(Debug)]
pub struct Authority {
    cas: RwLock<Arc<Cas>>,
    roots: FleetRoots,
    coordinator: RwLock<Vec<Vec<u8>>>,
    broker: String,
    validities: Validities,
    /// Where the CAs are, if they are in files.
    files: Option<IdentityConfig>,
    changed: Notify,
    /// Held while lists are made of the CAs, while one is retired, and while the coordinator's certificate is renewed.
    still: Mutex<()>,
}

/// A device that is to be made.
#[derive(Debug, Clone)]
pub struct NewIdentity {
    /// A label for people.
    pub name: String,
    /// Its id, or a random one.
    pub id: Option<DeviceId>,
    /// Its public key, where the pair is made elsewhere.
    pub public_key: Option<[u8; 32]>,
    /// Its labels.
    pub labels: Option<Labels>,
}

/// A certificate, and what has to be stored before anybody gets it.
#[derive(Debug, Clone)]
pub(crate) struct Issued {
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) record: NewCertificate,
}

/// Why a device got no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The coordinator did not follow.
    #[error(transparent)]
    Command(#[from] CommandFailed),
    /// The CA did not issue.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

impl Authority {
    /// An authority that issues from `ca`. Devices are told to pin `roots`, to know the coordinator by its
    /// certificate chain, and to find their broker at `broker`.
    pub fn new(ca: FleetCa, roots: FleetRoots, coordinator: Vec<Vec<u8>>, broker: String) -> Self {
        Self::of(Cas::only(ca), None, roots, coordinator, broker)
    }

    /// As [`Self::new`], with all the CAs of the files that these settings name.
    pub fn of_cas(
        cas: Cas,
        files: IdentityConfig,
        roots: FleetRoots,
        coordinator: Vec<Vec<u8>>,
        broker: String,
    ) -> Self {
        Self::of(cas, Some(files), roots, coordinator, broker)
    }

    fn of(
        cas: Cas,
        files: Option<IdentityConfig>,
        roots: FleetRoots,
        coordinator: Vec<Vec<u8>>,
        broker: String,
    ) -> Self {
        hear(&roots, &cas);
        Self {
            cas: RwLock::new(Arc::new(cas)),
            roots,
            coordinator: RwLock::new(coordinator),
            broker,
            validities: Validities::default(),
            files,
            changed: Notify::new(),
            still: Mutex::default(),
        }
    }

    /// The CAs as they are now.
    pub fn cas(&self) -> Arc<Cas> {
        self.cas.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The settings of the files that the CAs are in.
    pub(crate) fn files(&self) -> Option<&IdentityConfig> {
        self.files.as_ref()
    }

    /// The roots that count.
    pub(crate) fn roots(&self) -> &FleetRoots {
        &self.roots
    }

    fn put(&self, cas: Cas) {
        hear(&self.roots, &cas);
        *self.cas.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(cas);
        self.changed.notify_one();
    }

    /// Reads the CAs and the roots again, from their files.
    ///
    /// # Errors
    /// [`ServeError`]; then everything stays as it is.
    pub fn reload(&self) -> Result<(), ServeError> {
        let Some(files) = &self.files else { return Ok(()) };
        let Some(cas) = Cas::read(files)? else { return Err(ServeError::NoAuthority) };
        let roots = FleetRoots::from_pem(&files::read(&files.roots)?)
            .map_err(|why| ServeError::Pem { path: files.roots.clone(), why })?;
        let own = |why| ServeError::Certificate { path: files.roots.clone(), why };
        self.roots.replace(&roots.ders()).map_err(own)?;
        self.put(cas);
        Ok(())
    }

    /// Reads them whenever they have changed from what they were at `known`, until told to stop. What cannot be read is
    /// tried again until it can: the passphrase or the token may be what was missing.
    pub(crate) async fn follow(self: Arc<Self>, mut known: Stamp, stop: CancellationToken) {
        let Some(files) = self.files.clone() else { return };
        let mut trouble: Option<Trouble> = None;
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            let now = CaFiles(&files).stamp();
            if now == known && !trouble.as_ref().is_some_and(Trouble::is_over) {
                continue;
            }
            known = now;
            let reading = tokio::task::spawn_blocking({
                let authority = self.clone();
                move || authority.reload()
            });
            match reading.await {
                Ok(Ok(())) => {
                    trouble = None;
                    tracing::info!(issuing = %self.issuer(), "the CAs have changed");
                }
                Ok(Err(error)) => trouble = Some(Trouble::after(trouble, &error)),
                // It panicked, which has been reported, or the process ends.
                Err(_) => {}
            }
        }
    }

    /// Waits until nobody else makes lists, retires a CA, or renews the coordinator's certificate; nobody does while what
    /// this answers with lives.
    pub(crate) async fn still(&self) -> MutexGuard<'_, ()> {
        self.still.lock().await
    }

    /// Ends when the CAs have changed.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The coordinator's certificate chain, as devices are told it.
    pub(crate) fn set_coordinator(&self, chain: Vec<Vec<u8>>) {
        *self.coordinator.write().unwrap_or_else(PoisonError::into_inner) = chain;
    }

    pub(crate) fn coordinator(&self) -> Vec<Vec<u8>> {
        self.coordinator.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn coordinator_pem(&self) -> String {
        chain_to_pem(&self.coordinator())
    }

    /// With these validities.
    #[must_use]
    pub fn with_validities(self, validities: Validities) -> Self {
        Self { validities, ..self }
    }

    /// Makes a key pair, if there is none yet, and a certificate, and enrols the device. Its certificate has no end: nobody renews what was
    /// installed by hand, and what ends it is revocation.
    ///
    /// # Errors
    /// [`AuthorityError`]; the identity is then forgotten.
    pub async fn provision(
        &self,
        service: &ServiceHandle,
        new: NewIdentity,
    ) -> Result<Bundle, AuthorityError> {
        let NewIdentity { name, id, public_key, labels } = new;
        let id = id.unwrap_or_else(|| DeviceId::random(&mut OsRng));
        let (public_key, private_key) = match public_key {
            Some(theirs) => (theirs, String::new()),
            None => {
                let key = IdentityKey::generate(&mut OsRng);
                (key.public_key(), key.to_pkcs8_pem().to_string())
            }
        };
        // Whoever asks again gets the certificate that was made then, and no further one.
        let since = service
            .query(move |coordinator, _| coordinator.device(id).map(|known| known.enrolled_unix_seconds))
            .await?;
        let since = since.and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or_else(now);
        let issued = self.certify(id, &public_key, Validity::without_end(since))?;
        let (label, record) = (name.clone(), issued.record);
        service
            .decide(move |coordinator, now, rng| {
                coordinator.check_may_enroll()?;
                // Whoever lost the answer asks again, with the same key.
                let is_here = coordinator.device(id).is_some_and(|known| {
                    known.name == label
                        && known.public_key == public_key
                        && known.standing == Standing::Enrolled
                });
                if !is_here {
                    coordinator.enroll_device(id, &label, public_key, now)?;
                }
                coordinator.record_certificate(record, now)?;
                match labels {
                    Some(labels) if coordinator.device(id).is_some_and(|known| known.labels != labels) => {
                        coordinator.label_device(id, labels, now, rng)
                    }
                    Some(_) | None => Ok(()),
                }
            })
            .await?;
        Ok(Bundle {
            fleet: self.roots.fleet(),
            device: id,
            name,
            broker: self.broker.clone(),
            certificate: chain_to_pem(&issued.chain),
            private_key,
            fleet_roots: self.roots.to_pem(),
            coordinator_certificate: self.coordinator_pem(),
        })
    }

    /// A certificate for an enrolled device that will renew it, stored before it is handed out.
    ///
    /// # Errors
    /// [`AuthorityError`]; above all when the device is revoked, or has another key.
    pub(crate) async fn issue(
        &self,
        service: &ServiceHandle,
        device: DeviceId,
        public_key: &[u8; 32],
    ) -> Result<Vec<Vec<u8>>, AuthorityError> {
        let today = now() - now() % DAY_SECONDS;
        let validity = Validity::days_from(today, self.validities.device_days);
        let Issued { chain, record } = self.certify(device, public_key, validity)?;
        service.decide(move |coordinator, now, _| coordinator.record_certificate(record, now)).await?;
        Ok(chain)
    }

    fn certify(
        &self,
        device: DeviceId,
        public_key: &[u8; 32],
        validity: Validity,
    ) -> Result<Issued, IssueError> {
        let cas = self.cas();
        let leaf = cas.issuing.issue(&Role::Device(device), public_key, &[], validity)?;
        let identity = read_certificate(&leaf).expect("what our own CA issues reads back");
        let record = NewCertificate {
            device,
            public_key: *public_key,
            serial: identity.serial,
            issuer: cas.issuing.id(),
            not_after_unix_seconds: identity.not_after_unix_seconds.unsigned_abs(),
        };
        Ok(Issued { chain: cas.issuing.chain(leaf), record })
    }

    /// A certificate for the EST server, over a key that lives as long as the process.
    pub(crate) fn registrar(&self, names: &[String], days: u32) -> Result<Party, IssueError> {
        let key = IdentityKey::generate(&mut OsRng);
        let validity = Validity::days_from(now(), days);
        let cas = self.cas();
        let leaf = cas.issuing.issue(&Role::Registrar, &key.public_key(), names, validity)?;
        Ok(Party { key, chain: cas.issuing.chain(leaf) })
    }

    /// Signs a revocation list (DER) of `ca`.
    pub(crate) fn revocation_list(&self, ca: &FleetCa, list: RevocationList) -> Result<Vec<u8>, IssueError> {
        let hours = i64::from(self.validities.crl_hours.max(1));
        let validity = Validity {
            not_before_unix_seconds: now() - 3_600,
            not_after_unix_seconds: now() + hours * 3_600,
        };
        ca.revocation_list(list.number, validity, &revoked(list.revoked))
    }

    /// Signs the last revocation list (DER) of `ca`.
    pub(crate) fn last_list(ca: &FleetCa, list: RevocationList) -> Result<Vec<u8>, IssueError> {
        ca.revocation_list(list.number, Validity::without_end(now()), &revoked(list.revoked))
    }

    /// After how long the next list is made, though nothing has changed.
    pub(crate) fn list_every(&self) -> Duration {
        Duration::from_secs(u64::from(self.validities.crl_hours.max(1)) * 3_600 / 4)
    }

    /// The CA that issues.
    pub(crate) fn issuer(&self) -> KeyId {
        self.cas().issuing.id()
    }

    /// What is shown behind a certificate that is issued now (DER): another with another CA, or when its root has gone.
    pub(crate) fn shown_behind(&self) -> Vec<Vec<u8>> {
        self.cas().issuing.chain(Vec::new()).split_off(1)
    }

    /// What a device has to know besides its certificate.
    pub(crate) fn about(&self) -> About {
        About {
            fleet: self.roots.fleet(),
            broker: self.broker.clone(),
            coordinator_certificate: self.coordinator_pem(),
            fleet_roots: self.roots.to_pem(),
        }
    }

    /// What devices are to know: the pinned roots, what they say of one another, and the intermediates.
    pub(crate) fn ca_certificates(&self) -> Vec<Vec<u8>> {
        self.cas().certificates(&self.roots)
    }
}

/// Files that could not be read, and when they are tried again.
struct Trouble {
    error: String,
    wait: Duration,
    until: Instant,
}

impl Trouble {
    /// Says it, if it is another than before, and waits for longer than before.
    fn after(before: Option<Self>, error: &ServeError) -> Self {
        let error = error.to_string();
        let (is_known, wait) = match &before {
            Some(before) => (before.error == error, (before.wait * 2).min(READ_AGAIN_MAX)),
            None => (false, LOOK_EVERY),
        };
        if is_known {
            tracing::debug!(error, "the CAs still cannot be read");
        } else {
            tracing::error!(
                error,
                "the CAs have changed, and cannot be read: those before stay until they can"
            );
        }
        Self { error, wait, until: Instant::now() + wait }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }
}

/// Tells the roots of the CAs below them, and of those that count no more.
fn hear(roots: &FleetRoots, cas: &Cas) {
    let known: Vec<Vec<u8>> = cas.signing().flat_map(FleetCa::certificates).map(<[u8]>::to_vec).collect();
    roots.hear_of(&known);
    for retired in &cas.retired {
        if let Ok(last) = Crl::read(&retired.last_list) {
            roots.close(&last);
        }
    }
}

fn revoked(list: Vec<(Vec<u8>, u64)>) -> Vec<Revoked> {
    list.into_iter().map(|(serial, unix_seconds)| Revoked { serial, unix_seconds }).collect()
}

fn now() -> i64 {
    i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX)
}

//! The fleet's CA at work: certificates for devices, and the list of those that no longer count.
//!
//! A certificate is stored before anybody gets it. Leaves who is let in to the coordinator, and files to whoever asked.

use std::time::Duration;

use fleetkey_coordinator_core::certificates::NewCertificate;
use fleetkey_coordinator_core::{Labels, Standing};
use fleetkey_est::About;
use fleetkey_identity::{
    FleetCa, FleetRoots, IdentityKey, IssueError, KeyId, Revoked, Role, Validity, chain_to_pem,
    read_certificate,
};
use fleetkey_wire::DeviceId;
use rand_core::OsRng;

use crate::api::Bundle;
use crate::clock;
use crate::engine::CommandFailed;
use crate::fleet::Party;
use crate::handle::ServiceHandle;

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
    ca: FleetCa,
    roots: FleetRoots,
    coordinator: Vec<Vec<u8>>,
    broker: String,
    validities: Validities,
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
        Self { ca, roots, coordinator, broker, validities: Validities::default() }
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
        let issued = self.certify(id, &public_key, Validity::without_end(now()))?;
        let (label, record) = (name.clone(), issued.record);
        service
            .decide(move |coordinator, now, rng| {
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
            fleet: self.ca.fleet(),
            device: id,
            name,
            broker: self.broker.clone(),
            certificate: chain_to_pem(&issued.chain),
            private_key,
            fleet_roots: self.roots.to_pem(),
            coordinator_certificate: chain_to_pem(&self.coordinator),
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
        let leaf = self.ca.issue(&Role::Device(device), public_key, &[], validity)?;
        let identity = read_certificate(&leaf).expect("what our own CA issues reads back");
        let record = NewCertificate {
            device,
            public_key: *public_key,
            serial: identity.serial,
            issuer: self.issuer(),
            not_after_unix_seconds: identity.not_after_unix_seconds.unsigned_abs(),
        };
        Ok(Issued { chain: self.ca.chain(leaf), record })
    }

    /// A certificate for the EST server, over a key that lives as long as the process.
    pub(crate) fn registrar(&self, names: &[String], days: u32) -> Result<Party, IssueError> {
        let key = IdentityKey::generate(&mut OsRng);
        let validity = Validity::days_from(now(), days);
        let leaf = self.ca.issue(&Role::Registrar, &key.public_key(), names, validity)?;
        Ok(Party { key, chain: self.ca.chain(leaf) })
    }

    /// Signs a revocation list (DER).
    pub(crate) fn revocation_list(
        &self,
        number: u64,
        revoked: Vec<(Vec<u8>, u64)>,
    ) -> Result<Vec<u8>, IssueError> {
        let revoked: Vec<Revoked> =
            revoked.into_iter().map(|(serial, unix_seconds)| Revoked { serial, unix_seconds }).collect();
        let hours = i64::from(self.validities.crl_hours.max(1));
        let validity = Validity {
            not_before_unix_seconds: now() - 3_600,
            not_after_unix_seconds: now() + hours * 3_600,
        };
        self.ca.revocation_list(number, validity, &revoked)
    }

    /// After how long the next list is made, though nothing has changed.
    pub(crate) fn list_every(&self) -> Duration {
        Duration::from_secs(u64::from(self.validities.crl_hours.max(1)) * 3_600 / 4)
    }

    /// The CA that issues.
    pub(crate) fn issuer(&self) -> KeyId {
        KeyId::of_certificate(self.ca.certificate_der())
    }

    /// What a device has to know besides its certificate.
    pub(crate) fn about(&self) -> About {
        About {
            fleet: self.ca.fleet(),
            broker: self.broker.clone(),
            coordinator_certificate: chain_to_pem(&self.coordinator),
            fleet_roots: self.roots.to_pem(),
        }
    }

    /// What devices are to know: the pinned roots, and the intermediate that issues, if it is one.
    pub(crate) fn ca_certificates(&self) -> Vec<Vec<u8>> {
        let mut certificates: Vec<Vec<u8>> = self.roots.ders().map(<[u8]>::to_vec).collect();
        let issuer = self.ca.certificate_der();
        if certificates.iter().all(|known| known != issuer) {
            certificates.push(issuer.to_vec());
        }
        certificates
    }
}

fn now() -> i64 {
    i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX)
}

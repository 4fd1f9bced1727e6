//! The end of a CA: what still hangs on it, its last word, and its key put away.
//!
//! A CA that issued before goes on counting until it is retired; its last revocation list names every certificate that it
//! issued, and says that no other will follow, so that whoever reads it takes nothing more from that CA. A root is retired by
//! being unpinned.

use std::path::PathBuf;

use fleetkey_coordinator_core::certificates::RevocationList;
use fleetkey_identity::{FleetCa, FleetRoots, KeyId, chain_from_pem, chain_to_pem};
use fleetkey_vault::files::{self, write_private};
use fleetkey_wire::DeviceId;
use fleetkey_wire::error::Named;

use crate::authority::{Authority, AuthorityError};
use crate::cas::{CaFiles, Cas, RetiredCa};
use crate::clock;
use crate::engine::CommandFailed;
use crate::fleet::SERVER_VALIDITY_DAYS;
use crate::handle::ServiceHandle;
use crate::last_lists;
use crate::serve::ServeError;

/// What is cut off when a CA is retired.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hanging {
    /// Devices that have no certificate yet of the CA that issues now.
    pub devices: Vec<DeviceId>,
    /// Whether the coordinator's own certificate is of it.
    pub coordinator: bool,
}

impl Hanging {
    fn is_nothing(&self) -> bool {
        self.devices.is_empty() && !self.coordinator
    }
}

/// Why a CA is not retired.
#[derive(Debug, thiserror::Error)]
pub enum RetireError {
    /// There is none.
    #[error("there is no CA {0}: `fleetkey ca show` lists them")]
    Unknown(KeyId),
    /// It is needed.
    #[error("CA {0} is the one that issues: `fleetkey ca roll` makes another first")]
    Issues(KeyId),
    /// Somebody would be cut off.
    #[error(
        "{} still have no certificate of the CA that issues now{}: wait until they have renewed theirs, or say --force, which cuts them off",
        devices(hanging.devices.len()),
        if hanging.coordinator { ", nor has the coordinator (`fleetkey ca renew coordinator`)" } else { "" }
    )]
    StillInUse {
        /// Who.
        hanging: Hanging,
    },
    /// Another CA rests on it.
    #[error("CA {ca} rests on this root alone: retire it first")]
    RestsOnIt {
        /// The other.
        ca: KeyId,
    },
    /// Brokers would not read what is published then.
    #[error(
        "the last revocation lists of all retired CAs would be more than brokers read: one leaves when the last certificate of its CA has ended, and makes room when the root above its CA is retired"
    )]
    NoRoom,
    /// Its files.
    #[error(transparent)]
    Files(#[from] ServeError),
    /// The coordinator or the CA's key.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

fn devices(count: usize) -> String {
    if count == 1 { "1 device".to_owned() } else { format!("{count} devices") }
}

impl Named for RetireError {
    fn name(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "unknown_ca",
            Self::Issues(_) => "ca_issues",
            Self::StillInUse { .. } => "ca_in_use",
            Self::RestsOnIt { .. } => "root_in_use",
            Self::NoRoom => "no_room",
            Self::Files(_) => "ca_files",
            Self::Authority(AuthorityError::Command(command)) => command.name(),
            Self::Authority(AuthorityError::Issue(_)) => "issue",
        }
    }
}

impl From<CommandFailed> for RetireError {
    fn from(failed: CommandFailed) -> Self {
        Self::Authority(failed.into())
    }
}

impl Authority {
    /// What hangs on this CA, as far as the registry knows.
    ///
    /// # Errors
    /// When the coordinator does not answer.
    pub async fn hanging_on(&self, service: &ServiceHandle, ca: KeyId) -> Result<Hanging, CommandFailed> {
        let cas = self.cas();
        let current = cas.issuing.id();
        let of_issuer = cas.signing().any(|known| known.id() == ca).then_some(ca);
        let devices = service
            .query(move |coordinator, now| coordinator.devices_left_with(of_issuer, current, now).collect())
            .await?;
        let own = self.roots().issuer_of(&self.coordinator());
        Ok(Hanging { devices, coordinator: own.is_some_and(|own| cas.id_of(own) == ca) })
    }

    /// Retires a CA that issued before, or a root. Where the key of a root is, if it was this service's until now. Whoever
    /// was interrupted says it again.
    ///
    /// # Errors
    /// [`RetireError`].
    pub async fn retire(
        &self,
        service: &ServiceHandle,
        ca: KeyId,
        force: bool,
    ) -> Result<Option<PathBuf>, RetireError> {
        let files = CaFiles(self.files().ok_or(ServeError::NoAuthority)?);
        let _alone = files.lock()?;
        let _still = self.still().await;
        // What somebody else has changed since the files were looked at.
        self.reload()?;
        let cas = self.cas();
        if let Some(former) = cas.former.iter().find(|former| former.id() == ca) {
            self.check_hanging(service, ca, force).await?;
            return self.retire_former(service, &cas, former).await;
        }
        if cas.issuing.id() == ca {
            return Err(RetireError::Issues(ca));
        }
        let retired = cas.retired.iter().find(|retired| retired.id() == ca);
        if let Some(retired) = retired.filter(|_| files.keeps(ca)) {
            return Ok(files.put_key_away(ca, retired.is_root())?);
        }
        let (gone, left): (Vec<_>, Vec<_>) =
            self.roots().ders().into_iter().partition(|root| KeyId::of_certificate(root) == ca);
        let (Some(gone), false) = (gone.first(), left.is_empty()) else {
            return match retired {
                Some(retired) => Ok(files.put_key_away(ca, retired.is_root())?),
                None if gone.is_empty() && files.is_unpinned(ca) => Ok(None),
                None => Err(RetireError::Unknown(ca)),
            };
        };
        let roots = FleetRoots::new(&left).map_err(|why| self.bad_roots(why))?;
        let rests = |ca: &&FleetCa| !ca.certificates().any(|der| roots.certifies(der));
        if let Some(resting) = cas.signing().find(rests) {
            return Err(RetireError::RestsOnIt { ca: resting.id() });
        }
        self.check_hanging(service, ca, force).await?;
        service.decide(move |coordinator, now, _| coordinator.note_root_retired(ca, now)).await?;
        self.retire_root(&cas, gone, &roots, &left)?;
        Ok(None)
    }

    async fn check_hanging(
        &self,
        service: &ServiceHandle,
        ca: KeyId,
        force: bool,
    ) -> Result<(), RetireError> {
        let hanging = self.hanging_on(service, ca).await?;
        if hanging.is_nothing() || force { Ok(()) } else { Err(RetireError::StillInUse { hanging }) }
    }

    async fn retire_former(
        &self,
        service: &ServiceHandle,
        cas: &Cas,
        former: &FleetCa,
    ) -> Result<Option<PathBuf>, RetireError> {
        let id = former.id();
        let certificates_until = self.certificates_until(service, id).await?;
        let retired = |list| {
            let certificate = former.certificate_der().to_vec();
            let last_list = Self::last_list(former, list).map_err(AuthorityError::from)?;
            Ok::<_, RetireError>(RetiredCa { certificate, last_list, certificates_until })
        };
        // As long as the one that follows: nothing is entered before it is known to have room.
        let draft = service
            .query(move |coordinator, now| {
                let serials = coordinator.serials_of(id, now);
                let revoked = serials.map(|serial| (serial.to_vec(), now.unix_seconds)).collect();
                RevocationList { number: now.unix_seconds, revoked }
            })
            .await?;
        if !last_lists::has_room(&cas.retired, &retired(draft)?, self.roots(), clock::unix_seconds()) {
            return Err(RetireError::NoRoom);
        }
        let list =
            service.decide(move |coordinator, now, _| coordinator.last_revocation_list(id, now)).await?;
        let retired = retired(list)?;
        let Some(files) = self.files() else { return Err(ServeError::NoAuthority.into()) };
        let put_away = CaFiles(files).retire(&retired)?;
        self.reload()?;
        tracing::warn!(ca = %id, "CA retired");
        Ok(put_away)
    }

    /// When the last certificate of a CA that issues no more ends. Not known where the registry was restored: it may have
    /// issued some that the backup does not know of.
    async fn certificates_until(
        &self,
        service: &ServiceHandle,
        ca: KeyId,
    ) -> Result<Option<u64>, RetireError> {
        if service.status().await?.restored.is_some() {
            return Ok(None);
        }
        let of_devices = service.query(move |coordinator, _| coordinator.last_end_of(ca)).await?;
        // The registry does not know of servers'.
        let of_servers = clock::unix_seconds() + u64::from(SERVER_VALIDITY_DAYS) * 86_400;
        Ok(Some(of_devices.max(of_servers)))
    }

    fn retire_root(
        &self,
        cas: &Cas,
        gone: &[u8],
        roots: &FleetRoots,
        left: &[Vec<u8>],
    ) -> Result<(), RetireError> {
        let Some(files) = self.files() else { return Err(ServeError::NoAuthority.into()) };
        let Some(path) = &files.ca else { return Err(ServeError::NoAuthority.into()) };
        // What the coordinator shows must rest on what is left, before the root goes. It is read anew: it may have been
        // renewed since it was looked at.
        let own = &files.certificate;
        let pem = |why| ServeError::Pem { path: own.clone(), why };
        let mut chain = chain_from_pem(&files::read(own).map_err(ServeError::from)?).map_err(pem)?;
        if let (Some(_), Some(shown)) = (roots.verify(&chain, None).err(), chain.get_mut(1)) {
            *shown = cas.issuing.certificate_der().to_vec();
        }
        let bad = |why| ServeError::Certificate { path: own.clone(), why };
        roots.verify(&chain, None).map_err(bad)?;
        write_private(own, chain_to_pem(&chain).as_bytes(), true).map_err(ServeError::from)?;
        let text = files::read_secret(path).map_err(ServeError::from)?;
        let key = zeroize::Zeroizing::new(without_certificates(&text));
        let issuing = zeroize::Zeroizing::new(format!("{}{}", cas.issuing.certificate_pem(), *key));
        CaFiles(files).retire_root(gone, left, &issuing)?;
        self.reload()?;
        self.set_coordinator(chain);
        tracing::warn!("root retired");
        Ok(())
    }

    fn bad_roots(&self, why: fleetkey_identity::BadCertificate) -> ServeError {
        let path = self.files().map(|files| files.roots.clone()).unwrap_or_default();
        ServeError::Certificate { path, why }
    }
}

/// A PEM text without its certificates: the key, however it is kept.
fn without_certificates(text: &str) -> String {
    let mut inside = false;
    let mut left = String::new();
    for line in text.lines() {
        inside |= line.starts_with("-----BEGIN CERTIFICATE");
        if !inside {
            left.push_str(line);
            left.push('\n');
        }
        inside &= !line.starts_with("-----END CERTIFICATE");
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_without_certificates_is_the_key() {
        let key = "-----BEGIN PRIVATE KEY-----\nk\n-----END PRIVATE KEY-----\n";
        let certificate = "-----BEGIN CERTIFICATE-----\nc\n-----END CERTIFICATE-----\n";
        assert_eq!(without_certificates(&[certificate, key, certificate].concat()), key);
    }
}

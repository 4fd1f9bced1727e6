//! The end of a CA: what still hangs on it, its last word, and its key put away.
//!
//! A CA that issued before goes on counting until it is retired; its last revocation list names every certificate that it
//! issued, and says that no other will follow, so that whoever reads it takes nothing more from that CA. A root is retired by
//! being unpinned.

use std::path::PathBuf;

use fleetkey_identity::{FleetCa, FleetRoots, KeyId, chain_to_pem};
use fleetkey_vault::files::{self, write_private};
use fleetkey_wire::DeviceId;
use fleetkey_wire::error::Named;

use crate::authority::{Authority, AuthorityError};
use crate::cas::{CaFiles, Cas};
use crate::engine::CommandFailed;
use crate::handle::ServiceHandle;
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

    /// Retires a CA that issued before, or a root. Where the key of a root is, if it was this service's until now.
    ///
    /// # Errors
    /// [`RetireError`].
    pub async fn retire(
        &self,
        service: &ServiceHandle,
        ca: KeyId,
        force: bool,
    ) -> Result<Option<PathBuf>, RetireError> {
        let cas = self.cas();
        if let Some(former) = cas.former.iter().find(|former| former.id() == ca) {
            self.check_hanging(service, ca, force).await?;
            return self.retire_former(service, former).await;
        }
        if cas.issuing.id() == ca {
            return Err(RetireError::Issues(ca));
        }
        let (gone, left): (Vec<_>, Vec<_>) =
            self.roots().ders().into_iter().partition(|root| KeyId::of_certificate(root) == ca);
        if gone.is_empty() || left.is_empty() {
            return Err(RetireError::Unknown(ca));
        }
        let roots = FleetRoots::new(&left).map_err(|why| self.bad_roots(why))?;
        let rests = |ca: &&FleetCa| !ca.certificates().any(|der| roots.certifies(der));
        if let Some(resting) = cas.signing().find(rests) {
            return Err(RetireError::RestsOnIt { ca: resting.id() });
        }
        self.check_hanging(service, ca, force).await?;
        service.decide(move |coordinator, now, _| coordinator.note_root_retired(ca, now)).await?;
        self.retire_root(&cas, &roots, &left)?;
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
        former: &FleetCa,
    ) -> Result<Option<PathBuf>, RetireError> {
        let id = former.id();
        let list =
            service.decide(move |coordinator, now, _| coordinator.last_revocation_list(id, now)).await?;
        let last = Self::last_list(former, list).map_err(AuthorityError::from)?;
        let Some(files) = self.files() else { return Err(ServeError::NoAuthority.into()) };
        let put_away = CaFiles(files).retire(former, &last)?;
        self.reload()?;
        tracing::warn!(ca = %id, "CA retired");
        Ok(put_away)
    }

    fn retire_root(&self, cas: &Cas, roots: &FleetRoots, left: &[Vec<u8>]) -> Result<(), RetireError> {
        let Some(files) = self.files() else { return Err(ServeError::NoAuthority.into()) };
        let Some(path) = &files.ca else { return Err(ServeError::NoAuthority.into()) };
        // What the coordinator shows must rest on what is left, before the root goes.
        let mut chain = self.coordinator();
        if let (Some(_), Some(shown)) = (roots.verify(&chain, None).err(), chain.get_mut(1)) {
            *shown = cas.issuing.certificate_der().to_vec();
        }
        let own = |why| ServeError::Certificate { path: files.certificate.clone(), why };
        roots.verify(&chain, None).map_err(own)?;
        write_private(&files.certificate, chain_to_pem(&chain).as_bytes(), true).map_err(ServeError::from)?;
        let text = files::read_secret(path).map_err(ServeError::from)?;
        let key = zeroize::Zeroizing::new(without_certificates(&text));
        let issuing = zeroize::Zeroizing::new(format!("{}{}", cas.issuing.certificate_pem(), *key));
        CaFiles(files).retire_root(left, &issuing)?;
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

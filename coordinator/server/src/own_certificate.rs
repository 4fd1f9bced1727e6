//! The coordinator's own certificate: renewed by the service when two thirds of its time are over, and taken again whenever
//! its file changes.
//!
//! What is due is told by the clock on the wall, looked at often: a machine that slept renews when it wakes. The key stays:
//! all coordinators of a fleet share it. Statements are signed under the certificate that the service was started with.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fleetkey_identity::tls::OwnCertificate;
use fleetkey_identity::{
    FleetCa, FleetRoots, IdentityKey, IssueError, Role, Validity, chain_from_pem, chain_to_pem, host_names,
    read_certificate,
};
use fleetkey_vault::files::{self, write_private};
use fleetkey_wire::Generation;
use tokio_util::sync::CancellationToken;

use crate::authority::Authority;
use crate::clock;
use crate::config::IdentityConfig;
use crate::fleet::SERVER_VALIDITY_DAYS;
use crate::serve::{ServeError, read_ca};

/// How often the file and the clock are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// After how long a renewal that failed is tried again.
const AGAIN: Duration = Duration::from_secs(300);

/// The coordinator's certificate in its file, and what shows it.
pub(crate) struct Own {
    pub(crate) path: PathBuf,
    pub(crate) key: IdentityKey,
    /// The chain that was read at the start.
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) roots: FleetRoots,
    /// What connections to the broker show.
    pub(crate) shown: OwnCertificate,
    /// Who issues the next one; nobody where the CA is elsewhere.
    pub(crate) authority: Option<Arc<Authority>>,
}

impl Own {
    /// Keeps it new until told to stop.
    pub(crate) async fn keep(self, stop: CancellationToken) {
        let mut text = chain_to_pem(&self.chain);
        let mut not_before = 0;
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            let now = clock::unix_seconds();
            if let Some(authority) = &self.authority
                && now >= not_before
                && is_due(&text, now)
            {
                not_before = now + AGAIN.as_secs();
                let _still = authority.still().await;
                match renew(&self.path, &authority.cas().issuing, &self.roots, now) {
                    Ok(()) => tracing::info!("the coordinator's certificate is renewed"),
                    Err(error) => tracing::error!(%error, "the coordinator's certificate was not renewed"),
                }
            }
            match files::read(&self.path) {
                Ok(read) if read != text => {
                    text = read;
                    match self.take(&text) {
                        Ok(()) => tracing::info!("the coordinator's certificate is in use"),
                        Err(error) => {
                            tracing::error!(%error, "the coordinator's certificate has changed, and is not used")
                        }
                    }
                }
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn take(&self, text: &str) -> Result<(), ServeError> {
        let path = &self.path;
        let chain = chain_from_pem(text).map_err(|why| ServeError::Pem { path: path.clone(), why })?;
        let bad = |why| ServeError::Certificate { path: path.clone(), why };
        let identity = self.roots.verify(&chain, None).map_err(bad)?;
        match identity.role {
            Role::Coordinator { .. } => {}
            role @ (Role::Broker | Role::Registrar | Role::Operator { .. } | Role::Device(_)) => {
                return Err(ServeError::NotACoordinator { path: path.clone(), role });
            }
        }
        self.shown.replace(&chain, &self.key)?;
        if let Some(authority) = &self.authority {
            authority.set_coordinator(chain);
        }
        Ok(())
    }
}

/// Renews the coordinator's certificate before the service reads it, if it is due and the CA is here: a service that did not
/// run for long must start again.
///
/// # Errors
/// [`RenewError`].
pub(crate) fn renew_at_start(config: &IdentityConfig) -> Result<(), RenewError> {
    let Some(ca) = &config.ca else { return Ok(()) };
    let (path, now) = (&config.certificate, clock::unix_seconds());
    if !is_due(&files::read(path).map_err(ServeError::from)?, now) {
        return Ok(());
    }
    let roots = FleetRoots::from_pem(&files::read(&config.roots).map_err(ServeError::from)?)
        .map_err(|why| ServeError::Pem { path: config.roots.clone(), why })?;
    renew(path, &read_ca(ca, config)?, &roots, now)?;
    tracing::info!("the coordinator's certificate is renewed");
    Ok(())
}

/// Whether two thirds of the certificate's time are over.
fn is_due(text: &str, now_unix_seconds: u64) -> bool {
    let Some(chain) = chain_from_pem(text).ok() else { return false };
    let Some(Ok(leaf)) = chain.first().map(|leaf| read_certificate(leaf)) else { return false };
    leaf.is_due(i64::try_from(now_unix_seconds).unwrap_or(i64::MAX))
}

/// Why a server's certificate is not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The file, or what it holds.
    #[error(transparent)]
    File(#[from] ServeError),
    /// The CA did not issue.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// It is nobody's that is renewed like this.
    #[error("{} is of {role}, not of a coordinator or a broker", path.display())]
    Role {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        role: Role,
    },
}

/// Writes the next certificate of a coordinator or a broker over the one at `path`: same key, same names, and the next
/// generation of a coordinator.
///
/// # Errors
/// [`RenewError`]; the certificate before stays.
pub fn renew(path: &Path, ca: &FleetCa, roots: &FleetRoots, now_unix_seconds: u64) -> Result<(), RenewError> {
    let pem = |why| ServeError::Pem { path: path.to_owned(), why };
    let bad = |why| ServeError::Certificate { path: path.to_owned(), why };
    let chain = chain_from_pem(&files::read(path).map_err(ServeError::from)?).map_err(pem)?;
    let leaf = chain.first().map(Vec::as_slice).unwrap_or_default();
    // It may have expired; it must not be anybody else's.
    let identity = roots.verify(&chain, None).map_err(bad)?;
    let role = match identity.role {
        Role::Coordinator { generation } => {
            Role::Coordinator { generation: Generation(generation.0.saturating_add(1)) }
        }
        Role::Broker => Role::Broker,
        role @ (Role::Registrar | Role::Operator { .. } | Role::Device(_)) => {
            return Err(RenewError::Role { path: path.to_owned(), role });
        }
    };
    let names = host_names(leaf).map_err(bad)?;
    let now = i64::try_from(now_unix_seconds).unwrap_or(i64::MAX);
    let validity = Validity::days_from(now, SERVER_VALIDITY_DAYS);
    let renewed = ca.chain(ca.issue(&role, &identity.public_key, &names, validity)?);
    write_private(path, chain_to_pem(&renewed).as_bytes(), true).map_err(ServeError::from)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use fleetkey_wire::FleetId;
    use rand_core::OsRng;

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const DAY: u64 = 86_400;

    #[test]
    fn a_renewed_certificate_keeps_key_and_names_and_is_of_the_next_generation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.crt");
        let fleet = crate::fleet::Fleet::create(
            FleetId::from_bytes([1; 16]),
            &["b.example".into(), "127.0.0.1".into()],
            NOW,
            &mut OsRng,
        )
        .unwrap();
        for party in [&fleet.coordinator, &fleet.broker] {
            files::write_private(&path, chain_to_pem(&party.chain).as_bytes(), true).unwrap();
            let stranger = crate::fleet::Fleet::create(fleet.id(), &[], NOW, &mut OsRng).unwrap();
            renew(&path, fleet.ca(), stranger.roots(), NOW).unwrap_err();
            renew(&path, fleet.ca(), fleet.roots(), NOW + 100 * DAY).unwrap();
            let chain = chain_from_pem(&files::read(&path).unwrap()).unwrap();
            let at = i64::try_from(NOW + 3_700 * DAY).unwrap();
            let renewed = fleet.roots().verify(&chain, Some(at)).unwrap();
            assert_eq!(renewed.public_key, party.key.public_key());
            assert_eq!(host_names(&chain[0]).unwrap(), host_names(&party.chain[0]).unwrap());
            match renewed.role {
                Role::Coordinator { generation } => assert_eq!(generation, Generation(2)),
                role @ (Role::Broker | Role::Registrar | Role::Operator { .. } | Role::Device(_)) => {
                    assert_eq!(role, Role::Broker);
                }
            }
        }
        assert_eq!(host_names(&fleet.broker.chain[0]).unwrap(), ["b.example", "127.0.0.1"]);
    }

    #[test]
    fn it_is_due_when_two_thirds_of_its_time_are_over() {
        let fleet = crate::fleet::Fleet::create(FleetId::from_bytes([1; 16]), &[], NOW, &mut OsRng).unwrap();
        let text = chain_to_pem(&fleet.coordinator.chain);
        assert!(!is_due(&text, NOW));
        assert!(!is_due(&text, NOW + 2_430 * DAY));
        assert!(is_due(&text, NOW + 2_435 * DAY));
        assert!(!is_due("none", NOW));
    }
}

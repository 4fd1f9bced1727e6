//! `[tls]`: the broker's own papers, and whom it believes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use fleetkey_identity::tls::{OwnCertificate, renewable_client_config, renewable_server_config};
use fleetkey_identity::{FleetRoots, IdentityKey, Role, chain_from_pem};
use fleetkey_wire::FleetId;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{SettingsError, read};
use crate::certificate_file::{CertificateFile, State};
use crate::crl_file::{CrlFile, Crls};

/// Certificates and keys, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// The fleet's roots.
    pub roots: PathBuf,
    /// The broker's certificate, and its issuer's if that is no root.
    pub certificate: PathBuf,
    /// The broker's private key. All three are read again when they change.
    pub key: PathBuf,
    /// Certificates that no longer count. It is read again when it changes.
    pub crl: Option<PathBuf>,
}

/// What TLS is set up from.
#[derive(Debug)]
pub struct TlsSetup {
    /// The fleet of the roots.
    pub fleet: FleetId,
    /// What connections are accepted with.
    pub config: Arc<rustls::ServerConfig>,
    /// What connections to other brokers are opened with.
    pub client: Arc<rustls::ClientConfig>,
    /// The broker's own certificate, and where the next one will be.
    pub certificate: CertificateFile,
    /// The CRLs in force at the start, and where the next ones will be.
    pub crl: Option<(CrlFile, Crls)>,
}

/// The broker's own files, read and checked.
pub(crate) struct OwnFiles {
    pub(crate) roots: FleetRoots,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) key: IdentityKey,
    pub(crate) not_after_unix_seconds: i64,
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self {
            roots: "fleet-roots.pem".into(),
            certificate: "broker.crt".into(),
            key: "broker.key".into(),
            crl: None,
        }
    }
}

impl TlsSettings {
    /// The files, to be made relative to where they are named.
    pub fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let Self { roots, certificate, key, crl } = self;
        [roots, certificate, key].into_iter().chain(crl.as_mut())
    }

    /// Reads every file that is named, and checks that they belong together.
    ///
    /// # Errors
    /// [`SettingsError`], naming what does not.
    pub fn read(&self) -> Result<TlsSetup, SettingsError> {
        // Before they are read: what changes from here on is taken.
        let known = State::of(self);
        let OwnFiles { roots, chain, key, .. } = self.read_own()?;
        let tls = |source| SettingsError::Tls {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            source,
        };
        // Devices that renewed while two roots counted name our CA by the other root's certificate of it.
        roots.hear_of(&chain);
        let own = OwnCertificate::new(&chain, &key).map_err(&tls)?;
        let config = renewable_server_config(&own, &roots).map_err(&tls)?;
        let client = renewable_client_config(&own, &roots).map_err(tls)?;
        let fleet = roots.fleet();
        let mut crl = None;
        if let Some(path) = &self.crl {
            let file = CrlFile::new(path.clone(), roots.clone(), chain);
            let first = file.read()?;
            file.close_retired(&first);
            crl = Some((file, first));
        }
        let certificate = CertificateFile::new(self.clone(), own, roots, known);
        Ok(TlsSetup { fleet, config, client, certificate, crl })
    }

    /// Reads the broker's own files, without its revocation lists.
    pub(crate) fn read_own(&self) -> Result<OwnFiles, SettingsError> {
        let pem = |path: &Path| {
            let path = path.to_owned();
            move |source| SettingsError::Pem { path, source }
        };
        let roots = FleetRoots::from_pem(&read(&self.roots)?).map_err(pem(&self.roots))?;
        let chain = chain_from_pem(&read(&self.certificate)?).map_err(pem(&self.certificate))?;
        let key_text = Zeroizing::new(read(&self.key)?);
        let key = IdentityKey::from_pkcs8_pem(&key_text).map_err(pem(&self.key))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let identity = roots
            .verify(&chain, i64::try_from(now).ok())
            .map_err(|source| SettingsError::Certificate { path: self.certificate.clone(), source })?;
        match identity.role {
            Role::Broker if identity.server_auth => {}
            Role::Broker => return Err(SettingsError::NoHostName { path: self.certificate.clone() }),
            role @ (Role::Coordinator { .. } | Role::Registrar | Role::Operator { .. } | Role::Device(_)) => {
                return Err(SettingsError::NotBroker { path: self.certificate.clone(), role });
            }
        }
        let not_after_unix_seconds = identity.not_after_unix_seconds;
        Ok(OwnFiles { roots, chain, key, not_after_unix_seconds })
    }
}

//! The broker's own certificate, and the roots it pins, as files: read again whenever they change.
//!
//! Connections that stand go on; those from then on see the new certificate. Files that do not fit together, such as a key
//! and a certificate of which one has not been written yet, change nothing, and are looked at again when they change.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use fleetkey_identity::FleetRoots;
use fleetkey_identity::tls::OwnCertificate;
use metrics::{counter, gauge};

use crate::settings::{SettingsError, TlsSettings};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Where the broker's certificate is, and what it is used by.
#[derive(Debug, Clone)]
pub struct CertificateFile {
    settings: TlsSettings,
    own: OwnCertificate,
    roots: FleetRoots,
    known: State,
}

/// When each file was written, and how long it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State([Option<(SystemTime, u64)>; 3]);

impl CertificateFile {
    /// The certificate that `settings` name, as it is put into `own`; `roots` are those that TLS was set up with, and `known`
    /// what the files were before they were read.
    pub(crate) fn new(settings: TlsSettings, own: OwnCertificate, roots: FleetRoots, known: State) -> Self {
        Self { settings, own, roots, known }
    }

    /// Takes each certificate that is put in the place of the one before. Never ends.
    pub async fn follow(mut self) {
        let mut clock = tokio::time::interval(LOOK_EVERY);
        loop {
            clock.tick().await;
            let now = State::of(&self.settings);
            if now == self.known {
                continue;
            }
            self.known = now;
            let read = tokio::task::spawn_blocking({
                let file = self.clone();
                move || file.take()
            });
            match read.await {
                Ok(Ok(not_after)) => {
                    gauge!("fleetkey_broker_certificate_not_after_seconds").set(not_after as f64);
                    tracing::info!(not_after_unix_seconds = not_after, "certificate in use");
                }
                Ok(Err(error)) => {
                    counter!("fleetkey_broker_certificate_failures_total").increment(1);
                    tracing::warn!(%error, "the broker's certificate has changed, and is not used");
                }
                // It panicked, which has been reported, or the process ends.
                Err(_) => {}
            }
        }
    }

    /// Reads the files, and uses what they hold; answers when that ends.
    fn take(&self) -> Result<i64, SettingsError> {
        let read = self.settings.read_own()?;
        self.roots
            .replace(&read.roots.ders())
            .map_err(|source| SettingsError::Certificate { path: self.settings.roots.clone(), source })?;
        self.roots.hear_of(&read.chain);
        self.own.replace(&read.chain, &read.key).map_err(|source| SettingsError::Tls {
            certificate: self.settings.certificate.clone(),
            key: self.settings.key.clone(),
            source,
        })?;
        Ok(read.not_after_unix_seconds)
    }
}

impl State {
    /// What the files are by now.
    pub(crate) fn of(settings: &TlsSettings) -> Self {
        let TlsSettings { roots, certificate, key, .. } = settings;
        Self([roots, certificate, key].map(|path: &PathBuf| {
            let data = std::fs::metadata(path).ok()?;
            Some((data.modified().ok()?, data.len()))
        }))
    }
}

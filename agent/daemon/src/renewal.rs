//! A device's next certificate, long before the one that it has ends: same key, same identity, and no break in its
//! connection, as only the next one shows it.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleetkey_identity::tls::{OwnCertificate, enrolment_client_config};
use fleetkey_identity::{FleetRoots, IdentityKey, chain_to_pem, read_certificate, signing_request};
use fleetkey_vault::files::write_private;
use fleetkey_wire::DeviceId;
use rand_core::{OsRng, RngCore as _};

use crate::enrol::{EnrolError, check};
use crate::est::{Answer, Est, EstUrl};

/// How often a device looks at its certificate and the clock on the wall: one that slept renews when it wakes.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long it waits after an attempt that failed, at first; it doubles up to [`MAX_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(60);
/// The longest wait between two attempts.
const MAX_WAIT: Duration = Duration::from_secs(3_600);

/// What is renewed, and where.
pub struct Renewal {
    /// The EST server.
    pub est: EstUrl,
    /// The fleet's roots.
    pub roots: FleetRoots,
    /// Their file.
    pub roots_file: PathBuf,
    /// The device.
    pub device: DeviceId,
    /// Its key.
    pub key: IdentityKey,
    /// Its certificate chain (DER), leaf first.
    pub chain: Vec<Vec<u8>>,
    /// What connections show.
    pub own: OwnCertificate,
    /// The certificate's file.
    pub file: PathBuf,
}

impl Renewal {
    /// Renews the certificate whenever two thirds of its time are over, for as long as the process runs.
    pub async fn run(mut self) {
        let mut wait = FIRST_WAIT;
        loop {
            if !self.is_due(unix_seconds()) {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            match self.renew().await {
                Ok(None) => {
                    tracing::info!(device = %self.device, "certificate renewed");
                    wait = FIRST_WAIT;
                    // It may be due again, on a clock that is ahead: once an hour is enough.
                    tokio::time::sleep(MAX_WAIT).await;
                }
                Ok(Some(later)) => tokio::time::sleep(later.max(wait) + jitter(later.max(wait))).await,
                Err(error) => {
                    tracing::warn!(device = %self.device, %error, "the certificate was not renewed: trying again");
                    tokio::time::sleep(wait + jitter(wait)).await;
                    wait = (wait * 2).min(MAX_WAIT);
                }
            }
        }
    }

    /// Whether two thirds of the certificate's time are over.
    pub fn is_due(&self, now_unix_seconds: i64) -> bool {
        let Some(Ok(leaf)) = self.chain.first().map(|leaf| read_certificate(leaf)) else { return false };
        leaf.is_due(now_unix_seconds)
    }

    /// Asks for the next certificate. How long to wait, if it is not to be had yet.
    ///
    /// # Errors
    /// [`EnrolError`]; the certificate before stays.
    pub async fn renew(&mut self) -> Result<Option<Duration>, EnrolError> {
        let tls = enrolment_client_config(Some((&self.chain, &self.key)), &self.roots)?;
        let request = signing_request(&self.key, &self.device.to_string());
        let est = Est::new(self.est.clone(), tls);
        // Before anything rests on them; what is not vouched for by a root that is pinned is passed over.
        let learnt = self.roots.learn(&est.ca_certificates().await?);
        let pinned = fs::read_to_string(&self.roots_file).unwrap_or_default();
        // Also where it was learnt before, and could not be written then.
        if learnt > 0 || pinned != self.roots.to_pem() {
            write_private(&self.roots_file, self.roots.to_pem().as_bytes(), true)?;
            tracing::info!(device = %self.device, "a new root of the fleet is pinned");
        }
        let chain = match est.reenrol(&request).await? {
            Answer::Issued(chain) => chain,
            Answer::AskAgain(wait) => return Ok(Some(wait)),
        };
        let device = check(&self.roots, &chain, &self.key)?;
        if device != self.device {
            return Err(EnrolError::OfAnother { got: device.to_string() });
        }
        // On the disk first: what connections show must be there after a crash, too.
        write_private(&self.file, chain_to_pem(&chain).as_bytes(), true)?;
        self.own.replace(&chain, &self.key)?;
        self.chain = chain;
        Ok(None)
    }
}

/// A fleet whose registrar was away does not come back as one.
fn jitter(wait: Duration) -> Duration {
    Duration::from_secs(u64::from(OsRng.next_u32()) % (wait.as_secs() / 2 + 1))
}

fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

//! The CRL as a file: read at the start, and again whenever it changes.
//!
//! A list that cannot be read, that no CA of the fleet made, or that is older than the one in force changes nothing: what
//! is revoked stays revoked. One that is overdue stays in force too, and says so in a metric: revocations also come from
//! the coordinator, by themselves. Leaves to the broker what a list means for its sessions.

use std::fs::Metadata;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fleetkey_identity::{BadCrl, Crl, FleetRoots, MAX_CRL_BYTES};
use metrics::{counter, gauge};

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Where the CRL is, and who may have made it.
#[derive(Debug, Clone)]
pub struct CrlFile {
    path: PathBuf,
    roots: FleetRoots,
    /// Certificates that may be those of intermediates.
    others: Vec<Vec<u8>>,
}

/// Why a CRL is not used.
#[derive(Debug, thiserror::Error)]
pub enum CrlError {
    /// The file cannot be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is no list of a CA of the fleet.
    #[error("{}: {source}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: BadCrl,
    },
    /// A list that was replaced has come back.
    #[error("{} is CRL {got}, and CRL {current} is in force", path.display())]
    Older {
        /// The file.
        path: PathBuf,
        /// Its number.
        got: u64,
        /// The number of the one in force.
        current: u64,
    },
}

/// Tells one state of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
}

impl CrlFile {
    /// The list at `path`, made by one of `roots` or an intermediate among `others` that one of them certified.
    pub fn new(path: PathBuf, roots: FleetRoots, others: Vec<Vec<u8>>) -> Self {
        Self { path, roots, others }
    }

    /// Reads the list, and checks who made it.
    ///
    /// # Errors
    /// [`CrlError`].
    pub fn read(&self) -> Result<Crl, CrlError> {
        let unreadable = |source| CrlError::Read { path: self.path.clone(), source };
        let file = std::fs::File::open(&self.path).map_err(unreadable)?;
        let mut bytes = Vec::new();
        // PEM is a third longer than what it holds.
        file.take(MAX_CRL_BYTES as u64 * 2).read_to_end(&mut bytes).map_err(unreadable)?;
        let bad = |source| CrlError::Bad { path: self.path.clone(), source };
        let crl = Crl::read(&bytes).map_err(bad)?;
        self.roots.check_crl(&crl, &self.others).map_err(bad)?;
        Ok(crl)
    }

    /// Puts the list in force, then each one that takes its place. Never ends.
    pub async fn follow(self, mut current: Crl, obey: impl Fn(&Crl) -> usize) {
        let mut stamp = None;
        let mut clock = tokio::time::interval(LOOK_EVERY);
        in_force(&current, obey(&current));
        loop {
            clock.tick().await;
            let now = std::fs::metadata(&self.path).ok().as_ref().map(Stamp::of);
            if now.is_none() || now == stamp {
                continue;
            }
            stamp = now;
            let read = tokio::task::spawn_blocking({
                let file = self.clone();
                move || file.read()
            });
            let outcome = match read.await {
                Ok(outcome) => outcome.and_then(|crl| newer(&self.path, &current, crl)),
                // It panicked, which has been reported, or the process ends.
                Err(_) => continue,
            };
            match outcome {
                Ok(None) => {}
                Ok(Some(crl)) => {
                    in_force(&crl, obey(&crl));
                    current = crl;
                }
                Err(error) => {
                    counter!("fleetkey_broker_crl_failures_total").increment(1);
                    tracing::warn!(%error, in_force = current.number, "the CRL has changed, and is not used");
                }
            }
        }
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { modified: metadata.modified().ok(), bytes: metadata.len() }
    }
}

/// The list, if it is another than the current one.
fn newer(path: &Path, current: &Crl, crl: Crl) -> Result<Option<Crl>, CrlError> {
    if crl.number < current.number {
        return Err(CrlError::Older { path: path.to_owned(), got: crl.number, current: current.number });
    }
    Ok((crl.number > current.number).then_some(crl))
}

fn in_force(crl: &Crl, ended: usize) {
    let (number, certificates) = (crl.number, crl.revoked.len());
    gauge!("fleetkey_broker_crl_number").set(number as f64);
    gauge!("fleetkey_broker_crl_certificates").set(certificates as f64);
    gauge!("fleetkey_broker_crl_next_update_seconds").set(crl.next_update_unix_seconds.unwrap_or(0) as f64);
    tracing::info!(number, certificates, ended, "CRL in force");
}

//! The CRL as a file: read at the start, and again whenever it changes.
//!
//! A list that cannot be read, that no CA of the fleet made, or that is older than the one in force changes nothing: what
//! is revoked stays revoked. One that is overdue stays in force too, and says so in a metric: revocations also come from
//! the coordinator, by themselves. Leaves to the broker what a list means for its sessions.

use std::fs::Metadata;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fleetkey_identity::{BadCrl, Crl, FleetRoots, MAX_CRL_BYTES, Revocations};
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

    /// Reads the lists, one of each CA, and checks who made them.
    ///
    /// # Errors
    /// [`CrlError`].
    pub fn read(&self) -> Result<Crls, CrlError> {
        let unreadable = |source| CrlError::Read { path: self.path.clone(), source };
        let file = std::fs::File::open(&self.path).map_err(unreadable)?;
        let mut bytes = Vec::new();
        // PEM is a third longer than what it holds.
        file.take(MAX_CRL_BYTES as u64 * 2).read_to_end(&mut bytes).map_err(unreadable)?;
        let bad = |source| CrlError::Bad { path: self.path.clone(), source };
        let lists = Crl::read_all(&bytes).map_err(bad)?;
        // CAs that came later than this broker's certificate stand beside their lists.
        let mut others = fleetkey_identity::certificates_among_crls(&String::from_utf8_lossy(&bytes));
        others.extend(self.others.iter().cloned());
        let mut vouched = Vec::with_capacity(lists.len());
        for list in lists {
            match self.roots.check_crl(&list, &others) {
                Ok(()) => vouched.push(list),
                // Of a CA whose root is pinned no more: nothing that it issued counts anyway.
                Err(_) if list.is_last() => {}
                Err(why) => return Err(bad(why)),
            }
        }
        self.roots.hear_of(&others);
        Ok(Crls(vouched))
    }

    /// Lets nobody in with a certificate of a CA whose list is its last.
    pub fn close_retired(&self, lists: &Crls) {
        for list in &lists.0 {
            self.roots.close(list);
        }
    }

    /// Puts the list in force, then each one that takes its place. Never ends.
    pub async fn follow(self, mut current: Crls, obey: impl Fn(&Revocations) -> usize) {
        let mut stamp = None;
        let mut clock = tokio::time::interval(LOOK_EVERY);
        self.put_in_force(&current, &obey);
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
                Ok(outcome) => outcome.and_then(|lists| current.and_newer(&self.path, lists)),
                // It panicked, which has been reported, or the process ends.
                Err(_) => continue,
            };
            match outcome {
                Ok(None) => {}
                Ok(Some(lists)) => {
                    self.put_in_force(&lists, &obey);
                    current = lists;
                }
                Err(error) => {
                    counter!("fleetkey_broker_crl_failures_total").increment(1);
                    tracing::warn!(%error, in_force = current.number(), "the CRL has changed, and is not used");
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

/// The lists in force, one of each CA.
#[derive(Debug, Clone)]
pub struct Crls(Vec<Crl>);

impl Crls {
    /// What they say together.
    pub fn revocations(&self) -> Revocations {
        Revocations::of(&self.0)
    }

    /// The highest number among them.
    pub fn number(&self) -> u64 {
        self.0.iter().map(|list| list.number).max().unwrap_or(0)
    }

    /// These lists, each in the place of the one before of the same CA; none if nothing is new. A CA of which there is no
    /// list any more keeps the one it had.
    fn and_newer(&self, path: &Path, lists: Self) -> Result<Option<Self>, CrlError> {
        let (mut all, mut is_new) = (self.0.clone(), false);
        for list in lists.0 {
            match all.iter_mut().find(|known| known.is_of_same_ca(&list)) {
                // Nothing follows a CA's last list, and nothing that was drawn beside it counts.
                Some(known) if known.is_last() => {}
                Some(known) if list.is_last() => {
                    is_new = true;
                    *known = list;
                }
                Some(known) if list.number < known.number => {
                    let (got, current) = (list.number, known.number);
                    return Err(CrlError::Older { path: path.to_owned(), got, current });
                }
                Some(known) if list.number == known.number => {}
                Some(known) => {
                    is_new = true;
                    *known = list;
                }
                None => {
                    is_new = true;
                    all.push(list);
                }
            }
        }
        Ok(is_new.then_some(Self(all)))
    }

    /// How many certificates they name, and when the first of them is due to be replaced.
    fn extent(&self) -> (usize, i64) {
        let certificates = self.0.iter().map(|list| list.revoked.len()).sum();
        let next_update = self.0.iter().filter_map(|list| list.next_update_unix_seconds).min();
        (certificates, next_update.unwrap_or(0))
    }
}

impl CrlFile {
    fn put_in_force(&self, lists: &Crls, obey: &impl Fn(&Revocations) -> usize) {
        self.close_retired(lists);
        let ended = obey(&lists.revocations());
        let (number, (certificates, next_update)) = (lists.number(), lists.extent());
        gauge!("fleetkey_broker_crl_number").set(number as f64);
        gauge!("fleetkey_broker_crl_certificates").set(certificates as f64);
        gauge!("fleetkey_broker_crl_next_update_seconds").set(next_update as f64);
        tracing::info!(number, certificates, ended, "CRL in force");
    }
}

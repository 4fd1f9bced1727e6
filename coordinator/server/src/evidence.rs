//! What is known of the time after a backup: exported audit logs, and what is left of former databases.
//!
//! Each covers a stretch of time. What none of them covers is uncertain: a device may have been revoked then that the
//! restored coordinator takes for an honest one.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use fleetkey_coordinator_core::audit;
use fleetkey_coordinator_core::records::{AuditRecord, OldAuditRecord};
use fleetkey_coordinator_core::restore::{Revocation, Window};
use fleetkey_wire::FleetId;
use serde::{Deserialize, Serialize};

use crate::remains::Remains;
use fleetkey_vault::files::FileError;

/// The layout of an exported audit log that this build writes.
pub const AUDIT_VERSION: u8 = 2;
/// The one before, whose entries are not chained: it is read.
const UNCHAINED_AUDIT_VERSION: u8 = 1;
/// No line of an exported audit log is longer.
const MAX_LINE_BYTES: u64 = 64 * 1024;

/// The first line of an exported audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditHeader {
    /// [`AUDIT_VERSION`].
    pub fleetkey_audit: u8,
    /// The fleet.
    pub fleet: FleetId,
    /// From when on it tells everything.
    pub since_unix_seconds: u64,
}

/// The last line of an exported audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditEnd {
    /// Until when it tells everything.
    pub until_unix_seconds: u64,
    /// How many entries it holds.
    pub entries: usize,
}

/// Why an audit log is not taken as evidence.
#[derive(Debug, thiserror::Error)]
pub enum BadAudit {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Something else.
    #[error("{} is not an audit log that `fleetkey audit export` wrote", path.display())]
    NotAnAudit {
        /// The file.
        path: PathBuf,
    },
    /// Written by another build.
    #[error("{} has version {got}, this build knows version {AUDIT_VERSION}", path.display())]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        got: u8,
    },
    /// Of another fleet.
    #[error("{} is the audit log of fleet {got}, not of fleet {expected}", path.display())]
    OtherFleet {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        got: FleetId,
        /// Whose it should be.
        expected: FleetId,
    },
    /// A line is not what it should be.
    #[error("{}, line {line}: {why}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
}

/// Everything that is known besides the backup.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evidence {
    pub(crate) audit: Vec<AuditRecord>,
    pub(crate) revocations: Vec<Revocation>,
    /// One more than the highest incarnation that is known to have been issued in.
    pub(crate) incarnation_floor: u32,
    covered: Vec<Window>,
}

impl Evidence {
    /// Takes in an exported audit log.
    pub(crate) fn add_audit(&mut self, path: &Path, fleet: FleetId) -> Result<(), BadAudit> {
        let exported = read_audit(path)?;
        if exported.fleet != fleet {
            return Err(BadAudit::OtherFleet { path: path.to_owned(), got: exported.fleet, expected: fleet });
        }
        if !exported.is_complete() {
            let why =
                format!("{} entries, and {} are there", exported.told.unwrap_or_default(), exported.held);
            return Err(BadAudit::Line { path: path.to_owned(), line: exported.held + 2, why });
        }
        let ExportedAudit { entries, covers, .. } = exported;
        self.audit.extend(entries);
        self.covered.push(covers);
        Ok(())
    }

    /// Takes in what is left of a former database.
    pub(crate) fn add_remains(&mut self, remains: Remains) {
        let Remains { audit, revocations, incarnation, newest_unix_seconds, is_whole } = remains;
        self.audit.extend(audit);
        self.revocations.extend(revocations);
        self.incarnation_floor = self.incarnation_floor.max(incarnation.saturating_add(1));
        if is_whole {
            self.covered.push(Window { from_unix_seconds: 0, to_unix_seconds: after(newest_unix_seconds) });
        }
    }

    /// What is left of `window` when everything that is known is taken out of it.
    /// What tells of a time that is still to come was written by a clock that was ahead: it covers nothing.
    pub(crate) fn uncertain(&self, window: Window) -> Vec<Window> {
        let mut covered = self.covered.clone();
        covered.retain(|covered| covered.to_unix_seconds <= window.to_unix_seconds);
        covered.sort_unstable();
        let mut left = Vec::new();
        let mut from = window.from_unix_seconds;
        for Window { from_unix_seconds, to_unix_seconds } in covered {
            if from_unix_seconds > from {
                let to = from_unix_seconds.min(window.to_unix_seconds);
                left.push(Window { from_unix_seconds: from, to_unix_seconds: to });
            }
            from = from.max(to_unix_seconds);
        }
        left.push(Window { from_unix_seconds: from, to_unix_seconds: window.to_unix_seconds });
        left.retain(|window| window.from_unix_seconds < window.to_unix_seconds);
        left
    }
}

/// The second that follows: a window ends before its end, and what is told of a second is told of all of it.
pub(crate) const fn after(unix_seconds: u64) -> u64 {
    unix_seconds.saturating_add(1)
}

/// An exported audit log, as it was read.
#[derive(Debug, Clone)]
pub struct ExportedAudit {
    /// Its entries, in the order in which they stand in it.
    pub entries: Vec<AuditRecord>,
    /// Whether they were chained when they were written.
    pub is_chained: bool,
    /// From when on it tells everything.
    pub since_unix_seconds: u64,
    /// How many entries there are, by its last line; without one it was cut off.
    pub told: Option<usize>,
    held: usize,
    fleet: FleetId,
    covers: Window,
}

impl ExportedAudit {
    /// Whether as many entries are there as its last line says.
    pub fn is_complete(&self) -> bool {
        self.told.is_none_or(|told| told == self.held)
    }
}

/// Reads what `fleetkey audit export` wrote. Whether its entries are what was entered is another matter.
///
/// # Errors
/// [`BadAudit`].
pub fn read_audit(path: &Path) -> Result<ExportedAudit, BadAudit> {
    let io = |source| FileError::Io { doing: "read", path: path.to_owned(), source };
    let mut lines = BufReader::new(File::open(path).map_err(io)?);
    let not_an_audit = || BadAudit::NotAnAudit { path: path.to_owned() };
    let first = next_line(&mut lines).map_err(io)?.ok_or_else(not_an_audit)?;
    let AuditHeader { fleetkey_audit, fleet, since_unix_seconds } =
        serde_json::from_str(&first).map_err(|_| not_an_audit())?;
    if !(UNCHAINED_AUDIT_VERSION..=AUDIT_VERSION).contains(&fleetkey_audit) {
        return Err(BadAudit::OtherVersion { path: path.to_owned(), got: fleetkey_audit });
    }
    let is_chained = fleetkey_audit > UNCHAINED_AUDIT_VERSION;
    let (mut entries, mut old): (Vec<AuditRecord>, Vec<OldAuditRecord>) = (Vec::new(), Vec::new());
    let mut end = None;
    let mut number = 1;
    while let Some(line) = next_line(&mut lines).map_err(io)? {
        number += 1;
        let bad = |why: String| BadAudit::Line { path: path.to_owned(), line: number, why };
        if end.is_some() {
            return Err(bad("something follows the last line".into()));
        }
        if let Ok(last) = serde_json::from_str::<AuditEnd>(&line) {
            end = Some(last);
        } else if is_chained {
            entries.push(serde_json::from_str(&line).map_err(|error| bad(error.to_string()))?);
        } else {
            old.push(serde_json::from_str(&line).map_err(|error| bad(error.to_string()))?);
        }
    }
    let held = entries.len() + old.len();
    entries.extend(audit::chained(old));
    // An export that was cut off tells everything up to its last entry.
    let newest = entries.iter().map(|entry| entry.unix_seconds).max().unwrap_or_default();
    let to_unix_seconds = end.map_or(newest, |end| after(end.until_unix_seconds)).max(since_unix_seconds);
    let covers = Window { from_unix_seconds: since_unix_seconds, to_unix_seconds };
    let told = end.map(|end| end.entries);
    Ok(ExportedAudit { entries, is_chained, since_unix_seconds, told, held, fleet, covers })
}

fn next_line(lines: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut line = String::new();
    let read = lines.by_ref().take(MAX_LINE_BYTES).read_line(&mut line)?;
    Ok((read > 0).then_some(line))
}

#[cfg(test)]
mod tests {
    use fleetkey_coordinator_core::audit::AuditHead;
    use fleetkey_coordinator_core::records::Deed;

    use super::*;

    const FLEET: FleetId = FleetId::from_bytes([1; 16]);

    fn window(from_unix_seconds: u64, to_unix_seconds: u64) -> Window {
        Window { from_unix_seconds, to_unix_seconds }
    }

    #[test]
    fn what_nothing_covers_is_uncertain() {
        let uncertain = |covered: &[Window]| {
            let evidence = Evidence { covered: covered.to_vec(), ..Evidence::default() };
            evidence.uncertain(window(100, 200))
        };
        assert_eq!(uncertain(&[]), [window(100, 200)]);
        assert_eq!(uncertain(&[window(0, 150)]), [window(150, 200)]);
        assert_eq!(uncertain(&[window(150, 200)]), [window(100, 150)]);
        assert_eq!(uncertain(&[window(150, 300)]), [window(100, 200)], "written by a clock that was ahead");
        assert_eq!(uncertain(&[window(160, 170), window(110, 120)]).len(), 3);
        assert_eq!(uncertain(&[window(110, 190), window(120, 130)]), [window(100, 110), window(190, 200)]);
        assert_eq!(uncertain(&[window(0, 50), window(300, 400)]), [window(100, 200)]);
        assert_eq!(uncertain(&[window(0, 120), window(110, 200)]), []);
        let evidence = Evidence::default();
        assert_eq!(
            evidence.uncertain(window(200, 100)),
            [],
            "a clock that was set back shows no time at all"
        );
    }

    fn export(lines: &[&str]) -> Result<Evidence, BadAudit> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        std::fs::write(&path, lines.join("\n")).unwrap();
        let mut evidence = Evidence::default();
        evidence.add_audit(&path, FLEET).map(|()| evidence)
    }

    fn header(version: u8, fleet: FleetId) -> String {
        let header = AuditHeader { fleetkey_audit: version, fleet, since_unix_seconds: 10 };
        serde_json::to_string(&header).unwrap()
    }

    fn entry() -> String {
        let deed = Deed {
            unix_seconds: 20,
            who: "ops1".into(),
            action: "revoke".into(),
            subject: "x".into(),
            detail: "stolen".into(),
        };
        serde_json::to_string(&AuditRecord::following(AuditHead::default(), deed)).unwrap()
    }

    /// As it was written before the log was chained.
    const OLD_ENTRY: &str =
        r#"{"unix_seconds":20,"number":1,"action":"revoke","subject":"x","detail":"stolen"}"#;

    #[test]
    fn an_export_covers_the_time_to_its_end_or_to_its_last_entry() {
        let (header, entry) = (header(2, FLEET), entry());
        let whole = export(&[&header, &entry, r#"{"until_unix_seconds":30,"entries":1}"#]).unwrap();
        assert_eq!((whole.audit.len(), whole.covered), (1, vec![window(10, 31)]));
        let cut = export(&[&header, &entry]).unwrap();
        assert_eq!((cut.audit.len(), cut.covered), (1, vec![window(10, 20)]));
        assert_eq!(export(&[&header]).unwrap().covered, [window(10, 10)]);
    }

    #[test]
    fn an_export_of_before_the_chain_is_read() {
        let end = r#"{"until_unix_seconds":30,"entries":1}"#;
        let old = export(&[&header(1, FLEET), OLD_ENTRY, end]).unwrap();
        assert_eq!((old.audit.len(), old.covered), (2, vec![window(10, 31)]), "the first says that it is");
        assert_eq!((old.audit[1].action.as_str(), old.audit[1].subject.as_str()), ("revoke", "x"));
        assert!(matches!(export(&[&header(2, FLEET), OLD_ENTRY]), Err(BadAudit::Line { line: 2, .. })));
    }

    #[test]
    fn what_is_no_export_of_the_fleet_is_refused_by_name() {
        let (ours, entry) = (header(2, FLEET), entry());
        assert!(matches!(export(&["x"]), Err(BadAudit::NotAnAudit { .. })));
        assert!(matches!(export(&[]), Err(BadAudit::NotAnAudit { .. })));
        assert!(matches!(export(&[&header(3, FLEET)]), Err(BadAudit::OtherVersion { got: 3, .. })));
        let other = header(2, FleetId::from_bytes([9; 16]));
        assert!(matches!(export(&[&other]), Err(BadAudit::OtherFleet { .. })));
        assert!(matches!(export(&[&ours, "{}"]), Err(BadAudit::Line { line: 2, .. })));
        let end = r#"{"until_unix_seconds":30,"entries":2}"#;
        assert!(matches!(export(&[&ours, &entry, end]), Err(BadAudit::Line { line: 3, .. })));
        let end = r#"{"until_unix_seconds":30,"entries":0}"#;
        assert!(matches!(export(&[&ours, end, &entry]), Err(BadAudit::Line { line: 3, .. })));
    }
}

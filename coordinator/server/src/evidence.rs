//! What is known of the time after a backup: exported audit logs, and what is left of former databases.
//!
//! Each covers a stretch of time. What none of them covers is uncertain: a device may have been revoked then that the
//! restored coordinator takes for an honest one.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use fleetkey_coordinator_core::records::AuditRecord;
use fleetkey_coordinator_core::restore::{Revocation, Window};
use fleetkey_wire::FleetId;
use serde::{Deserialize, Serialize};

use crate::remains::Remains;
use fleetkey_vault::files::FileError;

/// The layout of an exported audit log that this build writes and reads.
pub const AUDIT_VERSION: u8 = 1;
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
        let Exported { entries, covers } = read_audit(path, fleet)?;
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

struct Exported {
    entries: Vec<AuditRecord>,
    covers: Window,
}

fn read_audit(path: &Path, fleet: FleetId) -> Result<Exported, BadAudit> {
    let io = |source| FileError::Io { doing: "read", path: path.to_owned(), source };
    let mut lines = BufReader::new(File::open(path).map_err(io)?);
    let not_an_audit = || BadAudit::NotAnAudit { path: path.to_owned() };
    let first = next_line(&mut lines).map_err(io)?.ok_or_else(not_an_audit)?;
    let header: AuditHeader = serde_json::from_str(&first).map_err(|_| not_an_audit())?;
    if header.fleetkey_audit != AUDIT_VERSION {
        return Err(BadAudit::OtherVersion { path: path.to_owned(), got: header.fleetkey_audit });
    }
    if header.fleet != fleet {
        return Err(BadAudit::OtherFleet { path: path.to_owned(), got: header.fleet, expected: fleet });
    }
    let mut entries: Vec<AuditRecord> = Vec::new();
    let mut end = None;
    let mut number = 1;
    while let Some(line) = next_line(&mut lines).map_err(io)? {
        number += 1;
        let bad = |why: String| BadAudit::Line { path: path.to_owned(), line: number, why };
        if end.is_some() {
            return Err(bad("something follows the last line".into()));
        }
        if let Ok(last) = serde_json::from_str::<AuditEnd>(&line) {
            if last.entries != entries.len() {
                return Err(bad(format!("{} entries, and {} are there", last.entries, entries.len())));
            }
            end = Some(last.until_unix_seconds);
        } else {
            entries.push(serde_json::from_str(&line).map_err(|error| bad(error.to_string()))?);
        }
    }
    // An export that was cut off tells everything up to its last entry.
    let newest = entries.iter().map(|entry| entry.unix_seconds).max().unwrap_or_default();
    let to_unix_seconds = end.map_or(newest, after).max(header.since_unix_seconds);
    let covers = Window { from_unix_seconds: header.since_unix_seconds, to_unix_seconds };
    Ok(Exported { entries, covers })
}

fn next_line(lines: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut line = String::new();
    let read = lines.by_ref().take(MAX_LINE_BYTES).read_line(&mut line)?;
    Ok((read > 0).then_some(line))
}

#[cfg(test)]
mod tests {
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

    fn export(lines: &[&str]) -> Result<Exported, BadAudit> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        std::fs::write(&path, lines.join("\n")).unwrap();
        read_audit(&path, FLEET)
    }

    fn header(version: u8, fleet: FleetId) -> String {
        let header = AuditHeader { fleetkey_audit: version, fleet, since_unix_seconds: 10 };
        serde_json::to_string(&header).unwrap()
    }

    const ENTRY: &str = r#"{"unix_seconds":20,"number":1,"action":"revoke","subject":"x","detail":"stolen"}"#;

    #[test]
    fn an_export_covers_the_time_to_its_end_or_to_its_last_entry() {
        let header = header(1, FLEET);
        let whole = export(&[&header, ENTRY, r#"{"until_unix_seconds":30,"entries":1}"#]).unwrap();
        assert_eq!((whole.entries.len(), whole.covers), (1, window(10, 31)));
        let cut = export(&[&header, ENTRY]).unwrap();
        assert_eq!((cut.entries.len(), cut.covers), (1, window(10, 20)));
        assert_eq!(export(&[&header]).unwrap().covers, window(10, 10));
    }

    #[test]
    fn what_is_no_export_of_the_fleet_is_refused_by_name() {
        let ours = header(1, FLEET);
        assert!(matches!(export(&["x"]), Err(BadAudit::NotAnAudit { .. })));
        assert!(matches!(export(&[]), Err(BadAudit::NotAnAudit { .. })));
        assert!(matches!(export(&[&header(2, FLEET)]), Err(BadAudit::OtherVersion { got: 2, .. })));
        let other = header(1, FleetId::from_bytes([9; 16]));
        assert!(matches!(export(&[&other]), Err(BadAudit::OtherFleet { .. })));
        assert!(matches!(export(&[&ours, "{}"]), Err(BadAudit::Line { line: 2, .. })));
        let end = r#"{"until_unix_seconds":30,"entries":2}"#;
        assert!(matches!(export(&[&ours, ENTRY, end]), Err(BadAudit::Line { line: 3, .. })));
        let end = r#"{"until_unix_seconds":30,"entries":0}"#;
        assert!(matches!(export(&[&ours, end, ENTRY]), Err(BadAudit::Line { line: 3, .. })));
    }
}

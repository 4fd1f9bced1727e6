//! `fleetkey backup`, `fleetkey restore`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use fleetkey_coordinator::api::{BACKUP_HEADER, BackupSummary};
use fleetkey_coordinator::config::Config;
use fleetkey_coordinator::{RestoreDone, RestoreFrom, RestoreOptions, inspect_backup, when, write_private};

use super::client::{Client, ClientOptions};
use super::show;

/// Devices that are named one by one.
const MAX_NAMED: usize = 20;

/// Take a backup of the running coordinator.
///
/// It holds the registry, groups and policies, who is in which group, the audit log, and which key epochs were issued.
/// It holds no group key and no MLS state: whoever is restored from it makes new ones. It is encrypted under the master
/// key, which is not in it: keep that elsewhere. The coordinator goes on meanwhile.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey backup /var/backups/fleetkey-monday
  fleetkey audit export --out /mnt/elsewhere/audit.jsonl --force    hourly: what a restore wants to know")]
pub(crate) struct Backup {
    /// The file to write. It is complete and on the disk when this ends, or not there.
    file: PathBuf,
    /// Write over a file that exists.
    #[arg(long)]
    force: bool,
}

impl Backup {
    pub(crate) fn run(self, client: &Client, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        let (told, bytes) = client.get_bytes("/v1/backup", &BACKUP_HEADER)?;
        let summary: BackupSummary = serde_json::from_str(&told).context("read the answer")?;
        let header = inspect_backup(&bytes).context("the backup arrived otherwise than it was sent")?;
        if (header.fleet, header.taken_unix_seconds) != (summary.fleet, summary.taken_unix_seconds) {
            bail!("the backup that arrived is another one than was taken");
        }
        write_private(&self.file, &bytes, self.force)?;
        if json {
            let mut value = serde_json::to_value(&summary)?;
            value["file"] = serde_json::to_value(&self.file)?;
            return show::json(out, &value);
        }
        writeln!(out, "{}: fleet {}, {} bytes", self.file.display(), summary.fleet, summary.bytes)?;
        writeln!(
            out,
            "taken {}, incarnation {}",
            when::show(summary.taken_unix_seconds),
            summary.incarnation
        )?;
        writeln!(
            out,
            "{} ({} revoked), {} with {}, {} of the audit log",
            show::count(summary.devices as u64, "device"),
            summary.revoked,
            show::count(summary.groups as u64, "group"),
            show::count(summary.memberships as u64, "membership"),
            show::entries(summary.audit),
        )?;
        writeln!(out, "the master key opens it, and is not in it")?;
        Ok(())
    }
}

/// Make the coordinator's database anew, from a backup or from itself.
///
/// Stop the coordinator first. The restored coordinator issues key epochs beyond every one that was ever issued, makes
/// new cells and new keys, and takes every member in again as soon as it is heard; until then devices keep the key that
/// they have.
///
/// A device that was revoked after the backup must not come back, so restore wants to be shown what was revoked since:
/// by audit logs that were exported, by what is left of the former database, which need not be readable in whole (the
/// one that --replace moves aside is looked at by itself). It names the time of which nothing tells, and refuses, unless
/// that is accepted.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey restore monday --config fleet/fleetkey.toml --audit audit.jsonl
  fleetkey restore monday --config fleet/fleetkey.toml --replace
  fleetkey restore --in-place --config fleet/fleetkey.toml --audit other-copy.jsonl")]
pub(crate) struct Restore {
    /// The backup.
    #[arg(required_unless_present = "in_place")]
    file: Option<PathBuf>,
    /// Move a database that is there aside, to a name that is printed.
    #[arg(long)]
    replace: bool,
    /// Take the database that is there as its own backup: for a coordinator that was copied or rolled back.
    #[arg(long, conflicts_with_all = ["file", "replace"])]
    in_place: bool,
    /// An audit log that `fleetkey audit export` wrote; may be repeated.
    #[arg(long, value_name = "FILE")]
    audit: Vec<PathBuf>,
    /// A former database, or what is left of it; may be repeated.
    #[arg(long, value_name = "PATH")]
    old_database: Vec<PathBuf>,
    /// Restore even though devices may have been revoked of which nothing tells: they come back.
    #[arg(long)]
    accept_unknown_revocations: bool,
}

impl Restore {
    pub(crate) fn run(self, options: &ClientOptions, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        let path = options.config.as_deref().context("restore needs --config FILE (or FLEETKEY_CONFIG)")?;
        let from = self.file.map_or(RestoreFrom::InPlace, RestoreFrom::File);
        let done = fleetkey_coordinator::restore(RestoreOptions {
            config: Config::load(path, Vec::new())?,
            from,
            replace: self.replace,
            audits: self.audit,
            old_databases: self.old_database,
            accept_unknown_revocations: self.accept_unknown_revocations,
        })?;
        if json { show::json(out, &serde_json::to_value(&done)?) } else { print(out, &done) }
    }
}

fn print(out: &mut impl Write, done: &RestoreDone) -> anyhow::Result<()> {
    writeln!(out, "fleet {} is restored to {}", done.fleet, done.database.display())?;
    writeln!(
        out,
        "as of {}; incarnation {} becomes {}",
        when::show(done.backup_unix_seconds),
        done.former_incarnation,
        done.incarnation
    )?;
    if let Some(aside) = &done.set_aside {
        writeln!(out, "the database that was there is now {}", aside.display())?;
    }
    writeln!(
        out,
        "{}, {}, {} to come in anew",
        show::count(done.devices as u64, "device"),
        show::count(done.groups as u64, "group"),
        show::count(done.wanted as u64, "member")
    )?;
    if done.moved > 0 {
        writeln!(
            out,
            "{} put in or taken out as the audit log tells",
            show::count(done.moved as u64, "member")
        )?;
    }
    for device in done.revoked.iter().take(MAX_NAMED) {
        writeln!(out, "revoked again: {device}")?;
    }
    if done.revoked.len() > MAX_NAMED {
        writeln!(out, "and {} more", done.revoked.len() - MAX_NAMED)?;
    }
    for unknown in done.unknown.iter().take(MAX_NAMED) {
        writeln!(
            out,
            "enrolled after the backup: {} ({}): `fleetkey device adopt CERTIFICATE` brings it back",
            unknown.device, unknown.name
        )?;
    }
    if done.unknown.len() > MAX_NAMED {
        writeln!(out, "and {} more", done.unknown.len() - MAX_NAMED)?;
    }
    for window in &done.uncertain {
        writeln!(
            out,
            "UNKNOWN: who was revoked from {} to {}: revoke them again",
            when::show(window.from_unix_seconds),
            when::show(window.to_unix_seconds)
        )?;
    }
    writeln!(out, "make sure that no other copy of this coordinator runs; then: fleetkey serve")?;
    Ok(())
}

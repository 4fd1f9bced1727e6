//! `fleetkey audit`: who did what, and whether the log of it is what was entered.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use fleetkey_coordinator::api::AuditPage;
use fleetkey_coordinator::{
    AUDIT_VERSION, AuditEnd, AuditHeader, ExportedAudit, read_audit, when, write_private,
};
use fleetkey_coordinator_core::audit::{AuditHead, Fault, Verified, Verifier};
use fleetkey_coordinator_core::records::AuditRecord;

use super::client::{Client, ClientOptions};
use super::show;

/// Show who did what, verify the log of it, or keep it outside the backups.
///
/// Each entry has a number, a time, who did it, what was done, to what, and the hash of the entry before. With --json
/// one line an entry, with the hashes.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  fleetkey audit --since 2027-01-15T08:00:00Z
  fleetkey audit verify
  fleetkey audit verify audit.jsonl --expect 1732:9f2c...
  fleetkey audit export --out /mnt/elsewhere/audit.jsonl --force"
)]
pub(crate) struct Audit {
    #[command(subcommand)]
    command: Option<AuditCommand>,
    /// From when on: RFC 3339, or seconds since 1970.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = time)]
    since: u64,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    Export(Export),
    Verify(Verify),
}

/// Write the audit log as lines of JSON, to be kept outside the backups.
///
/// The first line names the fleet and from when on the log is told, the last one until when. `fleetkey restore` reads
/// it with --audit, `fleetkey audit verify` without a service.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey audit export > audit.jsonl
  fleetkey audit export --since 2027-01-15T08:00:00Z --out /mnt/elsewhere/audit.jsonl")]
struct Export {
    /// From when on: RFC 3339, or seconds since 1970.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = time)]
    since: u64,
    /// The file to write, instead of standard output. It is complete when this ends, or not there.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write over a file that exists.
    #[arg(long, requires = "out")]
    force: bool,
}

/// Follow the log from entry to entry: names the first that is missing, was changed, doubled or moved, and fails.
///
/// What it cannot see by itself is that the end was cut off, or that all of it was written anew. So write down the head
/// that it prints, where those cannot write who can write to the database, and show it later with --expect: it proves
/// that the log still has all that it had then.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey audit verify
  fleetkey audit verify /mnt/elsewhere/audit.jsonl
  fleetkey audit verify --expect 1732:9f2c...")]
struct Verify {
    /// An audit log that `fleetkey audit export` wrote, instead of the running coordinator's.
    file: Option<PathBuf>,
    /// A head that was noted earlier.
    #[arg(long, value_name = "SEQUENCE:HASH")]
    expect: Option<AuditHead>,
}

fn time(text: &str) -> Result<u64, String> {
    when::parse(text)
        .ok_or_else(|| "neither RFC 3339, such as 2027-01-15T08:00:00Z, nor seconds since 1970".into())
}

impl Audit {
    pub(crate) fn run(self, options: &ClientOptions, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        match self.command {
            None => each_page(&Client::connect(options)?, self.since, |page| {
                page.entries.iter().try_for_each(|entry| show_entry(out, entry, json))
            }),
            Some(AuditCommand::Export(export)) => export.run(&Client::connect(options)?, out),
            Some(AuditCommand::Verify(verify)) => verify.run(options, json, out),
        }
    }
}

fn show_entry(out: &mut impl Write, entry: &AuditRecord, json: bool) -> anyhow::Result<()> {
    if json {
        writeln!(out, "{}", serde_json::to_string(entry)?)?;
        return Ok(());
    }
    let AuditRecord { sequence, unix_seconds, who, action, subject, detail, .. } = entry;
    let line = format!("{sequence:>6}  {}  {who}  {action}  {subject}  {detail}", when::show(*unix_seconds));
    // A name is whatever somebody chose: nothing in it may look like another entry.
    let plain: String = line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    writeln!(out, "{}", plain.trim_end())?;
    Ok(())
}

/// Asks for page after page.
fn each_page(
    client: &Client,
    since: u64,
    mut each: impl FnMut(&AuditPage) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut path = format!("/v1/audit?since={since}");
    loop {
        let page: AuditPage = serde_json::from_value(client.get(&path)?).context("read the answer")?;
        each(&page)?;
        let Some(next) = page.next else { return Ok(()) };
        path = format!("/v1/audit?after={next}");
    }
}

impl Export {
    fn run(self, client: &Client, out: &mut impl Write) -> anyhow::Result<()> {
        let Self { since, out: file, force } = self;
        let Some(path) = file else { return export(client, since, out).map(drop) };
        let mut lines = Vec::new();
        let entries = export(client, since, &mut lines)?;
        write_private(&path, &lines, force)?;
        writeln!(out, "{}: {}", path.display(), show::entries(entries))?;
        Ok(())
    }
}

/// Writes page after page; how many entries there were.
fn export(client: &Client, since: u64, out: &mut impl Write) -> anyhow::Result<usize> {
    let mut line = |value: serde_json::Value| -> anyhow::Result<()> {
        writeln!(out, "{value}")?;
        Ok(())
    };
    let (mut entries, mut is_begun) = (0, false);
    each_page(client, since, |page| {
        if !std::mem::replace(&mut is_begun, true) {
            let header =
                AuditHeader { fleetkey_audit: AUDIT_VERSION, fleet: page.fleet, since_unix_seconds: since };
            line(serde_json::to_value(header)?)?;
        }
        for entry in &page.entries {
            line(serde_json::to_value(entry)?)?;
        }
        entries += page.entries.len();
        if page.next.is_none() {
            let end = AuditEnd { until_unix_seconds: page.until_unix_seconds, entries };
            line(serde_json::to_value(end)?)?;
        }
        Ok(())
    })?;
    Ok(entries)
}

impl Verify {
    fn run(self, options: &ClientOptions, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        let Self { file, expect } = self;
        let verified = match &file {
            Some(path) => verify_file(&read_audit(path)?, expect)
                .with_context(|| format!("{} is not what was entered", path.display()))?,
            None => verify_service(&Client::connect(options)?, expect)?
                .context("the audit log is not what was entered")?,
        };
        let Verified { entries, first, head } = verified;
        if json {
            let told = serde_json::json!({ "entries": entries, "first": first, "head": head });
            return show::json(out, &told);
        }
        let entries = show::entries(usize::try_from(entries).unwrap_or(usize::MAX));
        let from = if first > 1 {
            format!(" from entry {first} on: what was before was not looked at")
        } else {
            String::new()
        };
        writeln!(out, "{entries}, each following the one before{from}")?;
        writeln!(out, "head {head}")?;
        match expect {
            Some(noted) => writeln!(out, "it holds the head that was noted, {}", noted.sequence)?,
            None => {
                writeln!(out, "note the head elsewhere: only --expect shows that nothing was cut off since")?
            }
        }
        Ok(())
    }
}

fn verify_service(client: &Client, expect: Option<AuditHead>) -> anyhow::Result<Result<Verified, Fault>> {
    let mut verifier = Verifier::from_the_start().expecting(expect);
    let mut head = None;
    each_page(client, 0, |page| {
        page.entries.iter().for_each(|entry| verifier.take(entry));
        head = Some(page.head);
        Ok(())
    })?;
    Ok(verifier.finish(head))
}

fn verify_file(exported: &ExportedAudit, expect: Option<AuditHead>) -> anyhow::Result<Verified> {
    if !exported.is_chained {
        bail!("it was written before the log was chained: nothing in it can be verified");
    }
    let verifier = match exported.since_unix_seconds {
        0 => Verifier::from_the_start(),
        _ => Verifier::from_anywhere(),
    };
    let mut verifier = verifier.expecting(expect);
    exported.entries.iter().for_each(|entry| verifier.take(entry));
    let verified = verifier.finish(None)?;
    match exported.told {
        Some(told) if !exported.is_complete() => {
            bail!(
                "it ends with entry {}, and says that it holds {told}: its end was cut off",
                verified.head.sequence
            )
        }
        Some(_) | None => Ok(verified),
    }
}

//! Where reports come from and go to.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;

use crate::long::write_csv;
use crate::page::page;
use crate::run::{RUN_REPORT_VERSION, RunReport};

/// A file is not a report that this program reads.
#[derive(Debug, thiserror::Error)]
pub enum BadReport {
    /// It is of another version.
    #[error("{}: a report of version {version}; this program reads version {RUN_REPORT_VERSION}", path.display())]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// It is no report, or a broken one.
    #[error("{}: not the report of a run, as `fleetkey-sim run --json` writes it: {source}", path.display())]
    NotAReport {
        /// The file.
        path: PathBuf,
        /// What it stumbles over.
        source: serde_json::Error,
    },
}

/// Reads a report from a file.
///
/// # Errors
/// When the file cannot be read, and [`BadReport`].
pub fn read(path: &Path) -> anyhow::Result<RunReport> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let not_a_report = |source| BadReport::NotAReport { path: path.to_owned(), source };
    let Version { version } = serde_json::from_str(&text).map_err(not_a_report)?;
    if version != RUN_REPORT_VERSION {
        return Err(BadReport::OtherVersion { path: path.to_owned(), version }.into());
    }
    Ok(serde_json::from_str(&text).map_err(not_a_report)?)
}

/// Where to write what a run has shown, beside the terminal.
#[derive(Debug, Clone, Default, Args)]
pub struct Outputs {
    /// Where to write the report as JSON: all of it, for `fleetkey-sim report` and `compare`.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    /// What is made of it.
    pub rendered: Rendered,
}

/// Where to write what is made of reports.
#[derive(Debug, Clone, Default, Args)]
pub struct Rendered {
    /// Where to write the figures as CSV: one long table, a number in each row.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Where to write the report as a page with plots, complete in itself.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Files that are open for what will be written.
#[derive(Debug)]
pub struct Files {
    json: Option<File>,
    csv: Option<File>,
    html: Option<File>,
}

pub(crate) fn create(path: Option<&Path>) -> anyhow::Result<Option<File>> {
    let create = |path: &Path| File::create(path).with_context(|| format!("create {}", path.display()));
    path.map(create).transpose()
}

impl Outputs {
    /// Creates the files: before the work, so that a path that cannot be written is not found out after it.
    ///
    /// # Errors
    /// When one cannot be created.
    pub fn create(&self) -> anyhow::Result<Files> {
        Ok(Files { json: create(self.json.as_deref())?, ..self.rendered.create()? })
    }
}

impl Rendered {
    /// Creates the files.
    ///
    /// # Errors
    /// When one cannot be created.
    pub fn create(&self) -> anyhow::Result<Files> {
        Ok(Files { json: None, csv: create(self.csv.as_deref())?, html: create(self.html.as_deref())? })
    }
}

impl Files {
    /// Writes one run.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(self, report: &RunReport) -> anyhow::Result<()> {
        if let Some(file) = &self.json {
            let mut file = BufWriter::new(file);
            serde_json::to_writer_pretty(&mut file, report).context("write the report")?;
            file.flush().context("write the report")?;
        }
        self.render(std::slice::from_ref(report))
    }

    /// Writes what is made of several runs of one scenario.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn render(self, reports: &[RunReport]) -> anyhow::Result<()> {
        if let Some(file) = self.csv {
            write_csv(reports, BufWriter::new(file)).context("write the table")?;
        }
        if let Some(mut file) = self.html {
            file.write_all(page(reports)?.as_bytes()).context("write the page")?;
        }
        Ok(())
    }
}

//! `fleetkey psk`: files with pre-shared keys. Needs no coordinator.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;
use fleetkey_vault::files;
use fleetkey_wire::Psk;
use rand_core::OsRng;
use serde_json::json;

use super::show;

#[derive(Debug, Subcommand)]
pub(crate) enum PskCommand {
    /// Write a new pre-shared key into a file of its owner's alone; nothing is written over.
    #[command(after_help = "The same with openssl:
  (umask 077; openssl rand -hex 32 > pumps.psk)")]
    Generate {
        /// The file to make.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Say what the key in a file is called: it follows from the key, and is no secret.
    Id {
        /// The file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

impl PskCommand {
    pub(crate) fn run(self, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        let psk = match self {
            Self::Generate { file } => {
                let psk = Psk::random(&mut OsRng);
                files::write_private(&file, psk.to_text().as_bytes(), false)?;
                psk
            }
            Self::Id { file } => read_psk(&file)?,
        };
        if json {
            return show::json(out, &json!({ "id": psk.id() }));
        }
        Ok(writeln!(out, "{}", psk.id())?)
    }
}

/// The key in a file that only its owner may read.
pub(crate) fn read_psk(file: &Path) -> anyhow::Result<Psk> {
    Psk::from_text(&files::read_secret(file)?).with_context(|| format!("read {}", file.display()))
}

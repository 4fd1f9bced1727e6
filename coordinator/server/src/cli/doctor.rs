//! `fleetkey doctor`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use fleetkey_coordinator::api::Examined;
use fleetkey_coordinator::examine;

use super::client::{Client, ClientOptions, read_config};
use super::show;

/// Examine the database against the rules that must always hold.
///
/// A running coordinator is asked; where none answers, the database that the settings name is examined itself. Nothing
/// is changed. It ends with 0 when all is sound, with 1 when something is broken or needs an operator, and with 2 when
/// it could not look.
#[derive(Debug, Args)]
pub(crate) struct Doctor {}

/// It ends with this when it could not look.
pub(crate) const COULD_NOT_LOOK: u8 = 2;
const FOUND: u8 = 1;

impl Doctor {
    pub(crate) fn run(
        self,
        options: &ClientOptions,
        json: bool,
        out: &mut impl Write,
    ) -> anyhow::Result<ExitCode> {
        let Self {} = self;
        let answer = match Client::connect(options)?.get_if_running("/v1/doctor")? {
            Some(answer) => answer,
            None => serde_json::to_value(examine(&read_config(options.config.as_deref())?)?)?,
        };
        let examined: Examined = serde_json::from_value(answer.clone()).context("read the answer")?;
        if json {
            show::json(out, &answer)?;
        } else {
            show::findings(out, &examined)?;
        }
        Ok(if examined.is_sound() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
    }
}

//! The `fleetkey-agent` command: a device's agent, and the way of the device's applications to its keys.

mod cli;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    match cli::run(arguments, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // One line: what was being done, and why it failed. Where standard error is closed, nobody can be told.
            let _ = writeln!(io::stderr(), "fleetkey-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whoever read the output has read enough, as `head` does.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

//! The `fleetkey` command: the coordinator's service, and the operator's way to give it commands.

mod cli;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    let on_failure = arguments.on_failure();
    let mut out = io::stdout().lock();
    match cli::run(arguments, &mut out) {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // One line: what was being done, and why it failed. Where standard error is closed, nobody can be told.
            let _ = writeln!(io::stderr(), "fleetkey: {error:#}");
            on_failure
        }
    }
}

/// Whoever read the output has read enough, as `head` does.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

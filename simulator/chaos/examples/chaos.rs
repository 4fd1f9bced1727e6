//! The same as `fleetkey-sim chaos`, and quick to build: for whoever changes a core and wants to know.

use std::process::ExitCode;

use clap::Parser;
use fleetkey_chaos::command::Chaos;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    chaos: Chaos,
}

fn main() -> ExitCode {
    match Arguments::parse().chaos.run(&mut std::io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

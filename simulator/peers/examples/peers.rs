//! The same as `fleetkey-sim peers`, and quick to build: for whoever changes a core and wants to know.

use std::process::ExitCode;

use clap::Parser;
use fleetkey_peers::Peers;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    peers: Peers,
}

fn main() -> ExitCode {
    match Arguments::parse().peers.run(&mut std::io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

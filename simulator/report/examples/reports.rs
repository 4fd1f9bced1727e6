//! `fleetkey-sim report` and `fleetkey-sim compare` without the rest of the program: quick to build.

use std::process::ExitCode;

use clap::Parser;
use fleetkey_report::{Compare, Report};

#[derive(Debug, Parser)]
enum Program {
    Report(Report),
    Compare(Compare),
}

fn main() -> ExitCode {
    let mut out = std::io::stdout().lock();
    let done = match Program::parse() {
        Program::Report(report) => report.run(&mut out),
        Program::Compare(compare) => compare.run(&mut out),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

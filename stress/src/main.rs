//! `guac-stress`: loads guacd with sessions, and counts those that are really alive.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, error::ErrorKind};
use guac_stress::{cli::Cli, guardian, program, report::console as print};

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(wrong) = cli.check() {
        Cli::command().error(ErrorKind::ArgumentConflict, wrong).exit();
    }
    guardian::run(|scratch| program::run(&cli, scratch)).unwrap_or_else(|error| {
        print::error(&error);
        ExitCode::FAILURE
    })
}

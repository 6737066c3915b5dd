//! `cargo xtask`: fetches, patches, builds, stress-tests and measures guacd. Each command has a file in `commands`.

mod commands;
mod flags;

use std::process::ExitCode;

use clap::Parser;
use toolkit::{failure, host::run, ui};

use flags::Command;

fn main() -> ExitCode {
    let cli = flags::Cli::parse();
    if cli.parse_only {
        return ExitCode::SUCCESS;
    }
    run::watch_for_signals();
    let result = match cli.command {
        Command::Fetch(flags) => commands::fetch::run(&flags),
        Command::Build(flags) => commands::build::run(&flags),
        Command::Stress(flags) => commands::stress::run(*flags),
        Command::Bench(flags) => commands::bench::run(&flags),
        Command::Preload(flags) => commands::preload::run(&flags),
        Command::Image(flags) => commands::image::run(&flags),
        Command::Package(flags) => commands::package::run(&flags),
        Command::Nix(flags) => commands::nix::run(&flags),
        Command::Patch(flags) => commands::patch::run(&flags.command),
        Command::Follow(flags) => commands::follow::run(&flags),
        Command::Matrix(flags) => commands::matrix::run(&flags),
        Command::Reproduce(flags) => commands::reproduce::run(&flags),
        Command::Doctor(flags) => commands::doctor::run(&flags),
        Command::Test(flags) => commands::test::run(&flags),
        Command::Prove(flags) => commands::prove::run(&flags),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ui::error(&error);
            failure::exit_code(&error)
        }
    }
}

//! `cargo xtask`: fetches, patches, builds, stress-tests and measures guacd. One file per command.

mod bench;
mod build;
mod debian;
mod digest;
mod doctor;
mod failure;
mod fetch;
mod flags;
mod image;
mod install;
mod layout;
mod manifest;
mod nix;
mod package;
mod patch;
mod preload;
mod prove;
mod reproduce;
mod run;
mod sbom;
mod steps;
mod stress;
mod test;
mod tls_rs;
mod ui;
mod upstream;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

fn main() -> ExitCode {
    let cli = flags::Cli::parse();
    if let flags::Command::Stress(stress) = &cli.command {
        if let Err(wrong) = stress.load.check() {
            flags::Cli::command().error(ErrorKind::ArgumentConflict, wrong).exit();
        }
    }
    run::watch_for_signals();
    let result = match cli.command {
        flags::Command::Fetch(flags) => fetch::fetch(&flags),
        flags::Command::Build(flags) => build::build(&flags),
        flags::Command::Stress(flags) => stress::stress(&flags),
        flags::Command::Bench(flags) => bench::bench(&flags),
        flags::Command::Preload(flags) => preload::preload(&flags),
        flags::Command::Image(flags) => image::image(&flags),
        flags::Command::Package(flags) => package::package(&flags),
        flags::Command::Nix(flags) => nix::nix(&flags),
        flags::Command::Reproduce(flags) => reproduce::reproduce(&flags),
        flags::Command::Doctor(flags) => doctor::doctor(&flags),
        flags::Command::Test(flags) => test::test(&flags),
        flags::Command::Prove(flags) => prove::prove(&flags),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ui::error(&error);
            failure::exit_code(&error)
        }
    }
}

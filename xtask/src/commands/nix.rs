//! `cargo xtask nix`: builds an output of the flake.

use std::path::Path;

use anyhow::{Result, ensure};
use toolkit::ship::nix::{self, Options};
use toolkit::{stress, ui};

use crate::flags;

/// Builds the output, and prints its store path.
pub fn run(flags: &flags::Nix) -> Result<()> {
    let options = Options { output: flags.output.clone(), check: flags.check, stand_in: flags.stand_in };
    let built = nix::build(&options, &flags.setup.to_toolkit())?;
    ui::result(built.display());
    match flags.stress {
        Some(count) => hold(&built, count, flags),
        None => Ok(()),
    }
}

/// Holds `count` sessions through the guacd that was built.
fn hold(built: &Path, count: u32, flags: &flags::Nix) -> Result<()> {
    ensure!(
        built.join("sbin/guacd").exists(),
        "--stress needs an output with a guacd in it, and {} has none",
        flags.output
    );
    stress::hold("nix", built, count, flags.setup.source.offline)
}

//! `cargo xtask patch`: checks and edits a series of patches.

use std::path::PathBuf;

use anyhow::{Result, bail};
use toolkit::host::layout;
use toolkit::source::release::Release;
use toolkit::source::upkeep::{check, commits};
use toolkit::ui;

use crate::flags::{PatchCheck, PatchCommand, PatchTree};

/// Runs the subcommand.
pub fn run(command: &PatchCommand) -> Result<()> {
    match command {
        PatchCommand::Check(flags) => check(flags),
        PatchCommand::Edit(flags) => edit(flags),
        PatchCommand::Refresh(flags) => refresh(flags),
    }
}

/// Prints what is wrong with the series.
fn check(flags: &PatchCheck) -> Result<()> {
    let wrong = check::series(&flags.release.load()?, &flags.source.to_toolkit())?;
    wrong.iter().for_each(ui::result);
    match wrong.len() {
        0 => Ok(()),
        count => bail!("{count} things are wrong with the series"),
    }
}

/// Writes the series to a work tree, and prints its path.
fn edit(flags: &PatchTree) -> Result<()> {
    let release = flags.release.load()?;
    let dir = dir(flags, &release);
    commits::edit(&release, &flags.source.to_toolkit(), &dir)?;
    ui::result(dir.display());
    Ok(())
}

/// Writes the commits back, and prints the names of the files that have changed.
fn refresh(flags: &PatchTree) -> Result<()> {
    let release = flags.release.load()?;
    let refreshed = commits::refresh(&release, &dir(flags, &release))?;
    refreshed.changed.iter().for_each(ui::result);
    Ok(())
}

fn dir(flags: &PatchTree, release: &Release) -> PathBuf {
    flags
        .dir
        .clone()
        .unwrap_or_else(|| layout::target_dir().join("guacd").join(&release.version).join("series"))
}

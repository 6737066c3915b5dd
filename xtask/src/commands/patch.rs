//! `cargo xtask patch`: checks and edits a series of patches.

use std::path::PathBuf;

use anyhow::{Result, bail};
use toolkit::failure::Failure;
use toolkit::host::layout;
use toolkit::source::release::Release;
use toolkit::source::upkeep::rebase::{self, Outcome};
use toolkit::source::upkeep::{check, commits};
use toolkit::ui;

use crate::flags::{PatchCheck, PatchCommand, PatchRebase, PatchTree};

/// Runs the subcommand.
pub fn run(command: &PatchCommand) -> Result<()> {
    match command {
        PatchCommand::Check(flags) => check(flags),
        PatchCommand::Edit(flags) => edit(flags),
        PatchCommand::Refresh(flags) => refresh(flags),
        PatchCommand::Rebase(flags) => rebase(flags),
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
    let dir = dir(flags.dir.as_ref(), &release);
    commits::edit(&release, &flags.source.to_toolkit(), &dir)?;
    ui::result(dir.display());
    Ok(())
}

/// Writes the commits back, and prints the names of the files that have changed.
fn refresh(flags: &PatchTree) -> Result<()> {
    let release = flags.release.load()?;
    let refreshed = commits::refresh(&release, &dir(flags.dir.as_ref(), &release))?;
    refreshed.changed.iter().for_each(ui::result);
    Ok(())
}

/// Carries the series over, or goes on with that.
fn rebase(flags: &PatchRebase) -> Result<()> {
    let release = flags.release.load()?;
    let dir = dir(flags.dir.as_ref(), &release);
    let outcome = match &flags.to {
        Some(to) => rebase::start(&dir, flags.from.as_deref().unwrap_or(&release.git), to)?,
        None => rebase::proceed(&dir)?,
    };
    match outcome {
        Outcome::Done { dropped } => {
            dropped.iter().for_each(|name| ui::note(format!("upstream has all that {name} does")));
            Ok(())
        }
        Outcome::Stopped(conflict) => bail!(Failure::Patch(format!(
            "{conflict}resolve it in {}, and go on: cargo xtask patch rebase --continue --dir {0}",
            dir.display()
        ))),
    }
}

fn dir(given: Option<&PathBuf>, release: &Release) -> PathBuf {
    let default = || layout::target_dir().join("guacd").join(&release.version).join("series");
    given.cloned().unwrap_or_else(default)
}

//! `cargo xtask patch`: checks and edits a series of patches.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use serde::Serialize;
use toolkit::build::guacd::Options;
use toolkit::build::trial::Trial;
use toolkit::failure::Failure;
use toolkit::host::layout;
use toolkit::source::release::Release;
use toolkit::source::upkeep::rebase::{self, Outcome};
use toolkit::source::upkeep::upstream::Offers;
use toolkit::source::upkeep::{check, commits, export};
use toolkit::ui;

use crate::flags::{PatchCheck, PatchCommand, PatchExport, PatchRebase, PatchRefresh, PatchTree};

/// Runs the subcommand.
pub fn run(command: &PatchCommand) -> Result<()> {
    match command {
        PatchCommand::Check(flags) if flags.upstream => check_upstream(flags),
        PatchCommand::Check(flags) => check(flags),
        PatchCommand::Edit(flags) => edit(flags),
        PatchCommand::Refresh(flags) => refresh(flags),
        PatchCommand::Rebase(flags) => rebase(flags),
        PatchCommand::Export(flags) => export(flags),
    }
}

/// Prints what is wrong with the series.
fn check(flags: &PatchCheck) -> Result<()> {
    let wrong = check::series(&flags.release.load()?, &flags.setup.source.to_toolkit())?;
    wrong.iter().for_each(ui::result);
    match wrong.len() {
        0 => Ok(()),
        count => bail!("{count} things are wrong with the series"),
    }
}

/// What is wrong with a patch for upstream.
#[derive(Serialize)]
struct Checked<'a> {
    name: &'a str,
    subject: &'a str,
    /// The patch of the series that it comes from.
    series: &'a str,
    /// Why it adds no test.
    untested: Option<&'a str>,
    wrong: Vec<String>,
}

/// Prints a line for each patch for upstream, with what is wrong with it below.
fn check_upstream(flags: &PatchCheck) -> Result<()> {
    let offers = Offers::load(&flags.names)?;
    let setup = flags.setup.to_toolkit();
    let wrong = offers.check(&setup.source)?;
    let conflicts = wrong.iter().filter(|wrong| wrong.iter().any(|what| !what.applies)).count();
    let trial = match flags.no_build {
        true => None,
        false => {
            let options = Options { jobs: flags.jobs.map(Into::into), ..Options::default() };
            Some(Trial::prepare(&offers.release, &setup, &options)?)
        }
    };
    let count = offers.list.len();
    let mut all = Vec::new();
    for (index, (offer, wrong)) in offers.list.iter().zip(wrong).enumerate() {
        let applies = wrong.iter().all(|what| what.applies);
        let mut wrong = wrong.into_iter().map(|what| what.text).collect::<Vec<_>>();
        if let Some(trial) = trial.as_ref().filter(|_| applies) {
            let step = ui::Step::start(format!("{} of {count}", index + 1));
            wrong.extend(trial.patch(&step, offer)?);
            step.done(&offer.name);
        }
        if !flags.json {
            let mark = if wrong.is_empty() { "good " } else { "wrong" };
            ui::result(format!("{mark}  {}: {}", offer.name, offer.subject));
            wrong
                .iter()
                .for_each(|what| ui::result(format!("       {}", what.trim().replace('\n', "\n         "))));
        }
        all.push(Checked {
            name: &offer.name,
            subject: &offer.subject,
            series: &offer.series,
            untested: offer.untested.as_deref(),
            wrong,
        });
    }
    if flags.json {
        ui::result(serde_json::to_string_pretty(&all)?);
    }
    let bad = all.iter().filter(|checked| !checked.wrong.is_empty()).count();
    if conflicts > 0 {
        bail!(Failure::Patch(format!("{conflicts} of {count} patches for upstream do not apply")));
    }
    ensure!(bad == 0, "something is wrong with {bad} of {count} patches for upstream");
    ui::note(format!(
        "{count} patches for upstream: {}",
        if flags.no_build {
            "each applies alone"
        } else {
            "each applies, builds and passes upstream's tests alone"
        }
    ));
    Ok(())
}

/// Makes a branch, and prints its name.
fn export(flags: &PatchExport) -> Result<()> {
    let offers = Offers::load(&flags.names)?;
    let from = flags.from.as_deref().unwrap_or(&offers.release.git);
    export::export(&offers, &flags.dir, from, &flags.onto, &flags.branch)?;
    ui::result(&flags.branch);
    Ok(())
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
fn refresh(flags: &PatchRefresh) -> Result<()> {
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
            ui::note(format!(
                "carried over; to write it to the series of its release: cargo xtask patch refresh --release RELEASE --dir {}",
                dir.display()
            ));
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

//! `cargo xtask follow`: tries the series on upstream's newest commit.

use anyhow::{Result, bail};
use toolkit::build::guacd::{self, Options, Setup, Variant};
use toolkit::failure::Failure;
use toolkit::source::fetch::Access;
use toolkit::source::upkeep::follow::{self, Fate};
use toolkit::{stress, ui};

use crate::flags;

/// Prints what becomes of each patch, and goes on to build and to load what came of them.
pub fn run(flags: &flags::Follow) -> Result<()> {
    let release = flags.release.load()?;
    let from = flags.from.clone().unwrap_or_else(|| release.git.clone());
    let access = Access { offline: flags.offline, ..Access::default() };
    let followed = follow::follow(&release, &access, &from, &flags.branch)?;
    if flags.json {
        ui::result(serde_json::to_string_pretty(&followed)?);
    } else {
        for (name, fate) in &followed.patches {
            ui::result(match fate {
                Fate::Applies => format!("applies    {name}"),
                Fate::Upstream => format!("upstream   {name}"),
                Fate::Conflicts(conflict) => {
                    let files = conflict.files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>();
                    format!("conflicts  {name}: {}", files.join(", "))
                }
            });
        }
    }
    if let Some(conflict) = followed.first_conflict() {
        bail!(Failure::Patch(format!(
            "{conflict}the series does not apply to {} ({}): carry it over with `cargo xtask patch rebase`",
            flags.branch, followed.commit
        )));
    }
    if flags.no_build {
        return Ok(());
    }
    let setup =
        Setup { source: Access { from: Some(from), offline: flags.offline, keyring: None }, install: false };
    let prefix = guacd::build(&followed.release, Variant::Patched, &setup, &Options::default())?;
    let load =
        [format!("--prefix=patched={}", prefix.display()), "--count=80".into(), "--key-limit=128".into()];
    stress::run(&load, flags.offline)
}

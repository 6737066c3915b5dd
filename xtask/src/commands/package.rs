//! `cargo xtask package`: makes a tarball that runs from any directory, and a Debian package, or writes the files of one.

use anyhow::Result;
use toolkit::ship::package::{self, Options};
use toolkit::ship::tree;
use toolkit::ui;

use crate::flags;

/// Makes the packages, and prints where they are.
pub fn run(flags: &flags::Package) -> Result<()> {
    let release = flags.release.load()?;
    if let Some(dir) = &flags.tree {
        ui::result(tree::build(&release, &flags.setup.to_toolkit(), dir)?.display());
        return Ok(());
    }
    let options = Options { output: flags.output.clone(), suite: flags.suite.clone(), check: flags.check };
    let made = package::build(&release, &flags.setup.to_toolkit(), &options)?;
    if flags.json {
        ui::result(serde_json::to_string_pretty(&made)?);
    } else {
        made.packages.iter().for_each(|package| ui::result(package.path.display()));
    }
    Ok(())
}

//! `cargo xtask build`: builds one variant of a release.

use anyhow::Result;
use toolkit::build::guacd::{self, Options};
use toolkit::ui;

use crate::flags;

/// Builds, and prints the prefix.
pub fn run(flags: &flags::Build) -> Result<()> {
    let release = flags.release.load()?;
    let options = Options {
        prefix: flags.prefix.as_deref(),
        jobs: flags.jobs.map(std::num::NonZero::get),
        configure_args: &flags.configure_args,
        require: &flags.required.features,
    };
    let prefix = guacd::build(&release, flags.variant.to_toolkit(), &flags.setup.to_toolkit(), &options)?;
    ui::result(prefix.display());
    Ok(())
}

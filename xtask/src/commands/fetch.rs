//! `cargo xtask fetch`: fetches a release's source into the cache.

use anyhow::Result;
use toolkit::source::fetch;
use toolkit::ui;

use crate::flags;

/// Fetches the source, and prints where it is.
pub fn run(flags: &flags::Fetch) -> Result<()> {
    let release = flags.release.load()?;
    let source = fetch::source(&release, &flags.source.to_toolkit())?;
    ui::result(source.archive.display());
    Ok(())
}

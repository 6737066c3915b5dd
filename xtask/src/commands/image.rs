//! `cargo xtask image`: builds the container image, and checks it.

use anyhow::Result;
use toolkit::ship::image::{self, Options};
use toolkit::ui;

use crate::flags;

/// Builds the image, and prints its name.
pub fn run(flags: &flags::Image) -> Result<()> {
    let release = flags.release.load()?;
    let options = Options {
        tag: flags.tag.clone(),
        base: flags.base.clone(),
        network: flags.network.clone(),
        check: flags.check,
        stress: flags.stress,
        key_limit: flags.key_limit,
        rebuild: flags.rebuild,
        own_daemon: flags.own_daemon,
    };
    let image = image::build(&release, &flags.source.to_toolkit(), &options)?;
    if flags.json {
        ui::result(serde_json::to_string_pretty(&image)?);
    } else {
        ui::result(&image.tag);
    }
    Ok(())
}

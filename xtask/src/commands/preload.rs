//! `cargo xtask preload`: builds the library that removes the limit on keys from a guacd that cannot be rebuilt.

use anyhow::Result;
use toolkit::build::preload;
use toolkit::ui;

use crate::flags;

/// Builds the library, prints its path, and says how to use it.
pub fn run(flags: &flags::Preload) -> Result<()> {
    let library = preload::build(flags.out.as_deref(), flags.offline)?;
    if library.as_os_str().as_encoded_bytes().iter().any(|byte| b" :".contains(byte)) {
        ui::warning("a space or a colon ends a path in LD_PRELOAD: copy the library to a path without them");
    }
    let path = library.display();
    ui::result(&path);
    ui::note(format!("to use it, start guacd with LD_PRELOAD={path}"));
    ui::note(format!("    systemd: sudo systemctl edit guacd    [Service] Environment=LD_PRELOAD={path}"));
    ui::note(format!("    Docker:  docker run -v {path}:{path}:ro -e LD_PRELOAD={path} ..."));
    ui::note("to check that it is loaded: grep guacd_uncapped /proc/PID/maps, with the process ID of guacd");
    Ok(())
}

//! The library that lifts the cap on keys for a guacd that cannot be built anew.

use std::env::consts::ARCH;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

use crate::failure::Failure;
use crate::host::layout;
use crate::host::run::{self, WhenInterrupted};
use crate::ui;

/// What the library is called, wherever it lies.
const NAME: &str = "libguacd_uncapped.so";

/// Builds the library into a directory, and returns its path.
pub fn build(out: Option<&Path>, offline: bool) -> Result<PathBuf> {
    if !matches!(ARCH, "x86_64" | "aarch64") {
        bail!(Failure::Preflight(format!(
            "the preload library is for x86_64 and aarch64, and this is {ARCH}: build a patched guacd instead, with \
             `cargo xtask build`"
        )));
    }
    let work = layout::target_dir().join("preload");
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let log = work.join("compile.log");
    fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
    let progress = ui::Step::start("preload");
    let arguments = [
        "rustc",
        "--locked",
        "--package=guacd-uncapped-preload",
        "--profile=staticlib",
        "--crate-type=cdylib",
        "--features=library",
    ];
    let cargo = layout::cargo(&arguments, offline);
    run::logged(&progress, "compiling the preload library", cargo, &log, WhenInterrupted::End)?;
    let library = place(&layout::target_dir().join("staticlib").join(NAME), out.unwrap_or(&work))?;
    progress.done("for glibc and musl");
    Ok(library)
}

/// Copies the library into `dir`, whole or not at all: processes may be running with the one that is there.
fn place(built: &Path, dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let dir = dir.canonicalize().with_context(|| format!("cannot find {}", dir.display()))?;
    let path = dir.join(NAME);
    let copy = || -> Result<()> {
        let mut file = NamedTempFile::new_in(&dir)?;
        std::io::copy(&mut fs::File::open(built)?, &mut file)?;
        // guacd may run as anybody.
        file.as_file().set_permissions(fs::Permissions::from_mode(0o755))?;
        file.persist(&path)?;
        Ok(())
    };
    copy().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

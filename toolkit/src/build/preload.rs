//! How is the preload library compiled? It removes the limit on pthread keys from a guacd that cannot be rebuilt.

use std::env::consts::ARCH;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use fs_err as fs;

use crate::failure::Failure;
use crate::host::run::{self, WhenInterrupted};
use crate::host::{files, layout};
use crate::ui;

/// The name of the library's file.
const NAME: &str = "libguacd_uncapped.so";

/// Builds the library, puts it into the directory `out`, or into target/preload, and returns its path.
///
/// # Errors
///
/// [`Failure::Preflight`] on a processor that the library does not support; any other when it does not compile.
pub fn build(out: Option<&Path>, offline: bool) -> Result<PathBuf> {
    if !matches!(ARCH, "x86_64" | "aarch64") {
        bail!(Failure::Preflight(format!(
            "the preload library is for x86_64 and aarch64, and this is {ARCH}: build a patched guacd instead, with \
             `cargo xtask build`"
        )));
    }
    let work = layout::target_dir().join("preload");
    let log = work.join("compile.log");
    files::begin_log(&log)?;
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

/// Copies the library into `dir`, and returns its path. Processes that use an older one there are not disturbed.
fn place(built: &Path, dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let path = fs::canonicalize(dir)?.join(NAME);
    // Every user may read it, as guacd may run as any.
    files::copy(built, &path, 0o755)?;
    Ok(path)
}

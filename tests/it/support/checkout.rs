//! A copy of the checkout that a test may spoil.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Result;
use tempfile::TempDir;

use super::{Xtask, release, root, xtask};

/// A checkout whose patches can be spoiled: the rest of it is this checkout's own.
pub struct Checkout(TempDir);

impl Checkout {
    pub fn new() -> Result<Checkout> {
        let dir = TempDir::new()?;
        for entry in fs::read_dir(root())? {
            let name = entry?.file_name();
            if ![".git", "patches", "source", "target"].map(OsStr::new).contains(&name.as_os_str()) {
                symlink(root().join(&name), dir.path().join(&name))?;
            }
        }
        for entry in fs::read_dir(root().join("patches"))? {
            let of_release = entry?.path();
            let series = dir.path().join(of_release.strip_prefix(root())?);
            fs::create_dir_all(&series)?;
            for entry in fs::read_dir(&of_release)? {
                let path = entry?.path();
                fs::copy(&path, series.join(path.file_name().unwrap_or_default()))?;
            }
        }
        Ok(Checkout(dir))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The directory of the release's series.
    pub fn series(&self) -> PathBuf {
        let series = release().patches_dir();
        self.0.path().join(series.strip_prefix(root()).unwrap_or(&series))
    }

    /// Prepares a run of xtask that takes this for its checkout, and builds below it.
    pub fn xtask<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Xtask {
        xtask(arguments)
            .env("CARGO_MANIFEST_DIR", self.0.path().join("xtask"))
            .env("CARGO_TARGET_DIR", self.0.path().join("target"))
    }

    /// Where the build of a variant works.
    pub fn work(&self, variant: &str) -> PathBuf {
        self.0.path().join("target/guacd").join(&release().version).join(variant)
    }
}

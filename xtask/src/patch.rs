//! How does the series get into the source? Patch by patch, with no fuzz and no offset.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::digest;
use crate::failure::Failure;

/// A patch of a series.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// Its file name.
    pub name: String,
    /// The SHA-256 of the file.
    pub sha256: String,
}

/// The patches in `dir`, in the order of its `series` file, which lists each of them once.
pub fn series(dir: &Path) -> Result<Vec<Patch>> {
    let path = dir.join("series");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut patches = Vec::new();
    let mut names = BTreeSet::new();
    for name in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if !names.insert(name.to_owned()) {
            bail!("{} lists {name} twice", path.display());
        }
        patches.push(Patch { name: name.to_owned(), sha256: digest::file(&dir.join(name))? });
    }
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".patch") && !names.contains(&name) {
            bail!("{} does not list {name}: list it, or remove the file", path.display());
        }
    }
    Ok(patches)
}

/// Applies `patches` of the directory `dir` to the tree `source`.
pub fn apply(dir: &Path, patches: &[Patch], source: &Path) -> Result<()> {
    for Patch { name, .. } in patches {
        let file: PathBuf = dir.join(name);
        let output = duct::cmd!(
            "patch",
            "-p1",
            "--fuzz=0",
            "--batch",
            "--no-backup-if-mismatch",
            "-d",
            source,
            "-i",
            file
        )
        .env("LC_ALL", "C")
        .stdin_null()
        .stderr_to_stdout()
        .stdout_capture()
        .unchecked()
        .run()
        .context("cannot run `patch`")?;
        let text = String::from_utf8_lossy(&output.stdout);
        // `patch` takes an offset in its stride and only mentions it. Ours are for this very source.
        if !output.status.success() || text.contains("offset") || text.contains("fuzz") {
            bail!(Failure::Patch(format!(
                "{} does not apply exactly:\n{}\nrefresh it against the release it is for: CONTRIBUTING.md says how",
                dir.join(name).display(),
                text.trim_end()
            )));
        }
    }
    Ok(())
}

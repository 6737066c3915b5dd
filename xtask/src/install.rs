//! How does a prefix appear? Whole, from a staging directory, in place of the one before, or not at all.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{CWD, RenameFlags};
use tempfile::TempDir;

use crate::manifest::{self, Manifest};
use crate::{run, ui};

/// What a build and its staged installation take at most, with room to spare: 230 MB were measured.
const BYTES_NEEDED: u64 = 400 << 20;

/// Checks, before anything is built, that `prefix` can be written and holds nothing of somebody else's.
pub fn check(prefix: &Path) -> Result<()> {
    let text = prefix.to_string_lossy();
    ensure!(
        !text.contains(|character: char| character.is_whitespace() || ",:$'\"\\".contains(character)),
        "the prefix {text} has a character that upstream's build system cannot cope with: choose another directory"
    );
    let parent = parent(prefix)?;
    fs::create_dir_all(parent).with_context(|| {
        format!("cannot create {}: choose a prefix that you may write, or become root", parent.display())
    })?;
    // The one sure way to know whether a file can be created here.
    tempfile::tempfile_in(parent).with_context(|| {
        format!("cannot write to {}: choose a prefix that you may write, or become root", parent.display())
    })?;
    let is_empty = match fs::read_dir(prefix) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => {
            return Err(error).with_context(|| format!("cannot use the prefix {}", prefix.display()));
        }
    };
    if !is_empty && Manifest::load(prefix).is_none() {
        bail!(
            "{} is not empty, and was not made by this toolkit ({} is not there): choose a directory of its own for \
             guacd, or remove it",
            prefix.display(),
            manifest::path(prefix).display()
        );
    }
    Ok(())
}

/// Checks that a build in `dir` will not run out of space.
pub fn check_space(dir: &Path) -> Result<()> {
    let stat = rustix::fs::statvfs(dir).with_context(|| format!("cannot examine {}", dir.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    ensure!(
        free >= BYTES_NEEDED,
        "only {} MB are free in {}, and a build takes up to {}: make room, or set CARGO_TARGET_DIR to another disk",
        free >> 20,
        dir.display(),
        BYTES_NEEDED >> 20
    );
    Ok(())
}

/// Puts what was installed below `stage` (as with `make install DESTDIR=stage`) into `prefix`.
pub fn install(progress: &ui::Step, log: &Path, stage: &Path, prefix: &Path) -> Result<()> {
    let staged = stage.join(prefix.strip_prefix("/").unwrap_or(prefix));
    only_below(stage, &staged, prefix)?;
    let parent = parent(prefix)?;
    // Beside the prefix, so that the last move is a rename within one file system.
    let beside = TempDir::with_prefix_in(".guacd-", parent)
        .with_context(|| format!("cannot write to {}", parent.display()))?;
    let new = beside.path().join("prefix");
    if fs::rename(&staged, &new).is_err() {
        // Another file system.
        run::logged(progress, "copying the installation", duct::cmd!("cp", "-a", &staged, &new), log)?;
    }
    let moved = if prefix.exists() {
        // Atomic where the file system can do it; elsewhere there is a moment without the prefix.
        rustix::fs::renameat_with(CWD, &new, CWD, prefix, RenameFlags::EXCHANGE).or_else(|_| {
            fs::rename(prefix, beside.path().join("old"))?;
            fs::rename(&new, prefix)
        })
    } else {
        fs::rename(&new, prefix)
    };
    moved.with_context(|| format!("cannot create {}", prefix.display()))
}

fn parent(prefix: &Path) -> Result<&Path> {
    prefix.parent().with_context(|| format!("{} cannot be a prefix", prefix.display()))
}

/// Refuses an installation that put files outside of its prefix: they would be lost, or land in the system.
fn only_below(dir: &Path, staged: &Path, prefix: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path == staged {
            continue;
        }
        if staged.starts_with(&path) {
            only_below(&path, staged, prefix)?;
        } else {
            bail!(
                "`make install` wants to write outside of the prefix, to {}: give configure a directory below {} for it",
                path.display(),
                prefix.display()
            );
        }
    }
    Ok(())
}

//! How does a prefix appear? Whole or not at all: it is staged, and then renamed.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use fs_err as fs;
use rustix::fs::{CWD, RenameFlags};

use crate::build::manifest;
use crate::build::steps::Running;
use crate::failure::Failure;
use crate::host::{files, lock};

/// The disk space that a build and its staged prefix need, in bytes. 230 MB were measured.
pub const BYTES_NEEDED: u64 = 400 << 20;

/// The absolute path of a prefix that the user named, without links. Creates the directory that the prefix is in.
pub fn resolve(prefix: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(prefix).context("cannot resolve the prefix")?;
    // The file system resolves it: `a/../b` is not `b` if `a` is a link.
    if let Ok(there) = absolute.canonicalize() {
        return Ok(there);
    }
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        bail!("{} cannot be a prefix", prefix.display());
    };
    let refusal =
        || format!("cannot create {}: choose a prefix that you may write, or become root", parent.display());
    fs::create_dir_all(parent).with_context(refusal)?;
    Ok(parent.canonicalize().with_context(refusal)?.join(name))
}

/// Checks that `prefix` can be written, and is empty or was made by this toolkit.
pub fn check(prefix: &Path) -> Result<()> {
    let parent = parent(prefix)?;
    // Only the attempt shows whether a file can be created here.
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
    if !is_empty && !manifest::is_in(prefix) {
        bail!(
            "{} is not empty, and was not made by this toolkit (it holds no manifest): choose a directory of its own for \
             guacd, or remove it",
            prefix.display()
        );
    }
    Ok(())
}

/// Checks that upstream's build system can cope with the characters of a path. `advice` ends the error.
pub fn check_characters(path: &Path, advice: &str) -> Result<()> {
    let text = path.to_string_lossy();
    let is_trouble = |character: &char| character.is_whitespace() || ",:$'\"\\#".contains(*character);
    match text.chars().find(is_trouble) {
        Some(character) => {
            bail!("upstream's build system cannot cope with {character:?} in {text}: {advice}")
        }
        None => Ok(()),
    }
}

/// Checks that the file system of `dir` has room for a build that needs `needed` bytes.
///
/// # Errors
///
/// [`Failure::Preflight`] when there is less.
pub fn check_space(dir: &Path, needed: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(dir)
        .with_context(|| format!("cannot tell how much is free in {}", dir.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    ensure!(
        free >= needed,
        Failure::Preflight(format!(
            "only {} MB are free in {}, and a build takes up to {} MB: make room, or set CARGO_TARGET_DIR to another disk",
            free >> 20,
            dir.display(),
            needed >> 20
        ))
    );
    Ok(())
}

/// The directory where `make install DESTDIR=STAGE` put `prefix`.
///
/// # Errors
///
/// When it put anything elsewhere.
pub fn staged(stage: &Path, prefix: &Path) -> Result<PathBuf> {
    let staged = stage.join(prefix.strip_prefix("/").unwrap_or(prefix));
    only_below(stage, &staged, prefix)?;
    Ok(staged)
}

/// Moves the directory `staged` to `prefix`. The prefix that was there is removed.
pub fn install(step: &Running<'_>, staged: &Path, prefix: &Path) -> Result<()> {
    let parent = parent(prefix)?;
    // Two builds may have the same prefix.
    let _lock = lock::wait_for_dir(parent)?;
    // Next to the prefix, so that the last move is a rename within one file system.
    let name = prefix.file_name().unwrap_or_default().to_string_lossy();
    let new = parent.join(format!(".{name}.guacd-uncapped"));
    let old = parent.join(format!(".{name}.guacd-uncapped-old"));
    // A run that was killed may have left these. If it was killed between two renames, the only prefix is the old one.
    files::remove_tree(&new)?;
    if old.exists() {
        if prefix.exists() { files::remove_tree(&old)? } else { fs::rename(&old, prefix)? }
    }
    if fs::rename(staged, &new).is_err() {
        // The stage is on another file system.
        step.copy_tree(staged, &new).inspect_err(|_| drop(files::remove_tree(&new)))?;
    }
    if prefix.exists() {
        rustix::fs::renameat_with(CWD, &new, CWD, prefix, RenameFlags::EXCHANGE).or_else(|_| {
            // This file system cannot exchange two names: for a moment there is no prefix.
            fs::rename(prefix, &old)?;
            fs::rename(&new, prefix).inspect_err(|_| drop(fs::rename(&old, prefix)))?;
            fs::rename(&old, &new)
        })?;
    } else {
        fs::rename(&new, prefix)?;
    }
    // This is the old prefix now.
    files::remove_tree(&new)
}

fn parent(prefix: &Path) -> Result<&Path> {
    prefix.parent().with_context(|| format!("{} cannot be a prefix", prefix.display()))
}

/// Fails if an installation put files outside of its prefix: they would be lost.
fn only_below(dir: &Path, staged: &Path, prefix: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_prefix_is_one_directory_however_it_is_written() {
        let dir = TempDir::new().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let prefix = dir.join("a/guacd");
        assert_eq!(resolve(&dir.join("a/guacd/")).unwrap(), prefix);
        fs::create_dir(dir.join("b")).unwrap();
        assert_eq!(resolve(&dir.join("b/../a/guacd")).unwrap(), prefix);
        fs::create_dir(&prefix).unwrap();
        symlink(&prefix, dir.join("link")).unwrap();
        assert_eq!(resolve(&dir.join("link")).unwrap(), prefix);
        assert!(resolve(Path::new("/")).is_ok_and(|root| parent(&root).is_err()));
    }

    #[test]
    fn files_outside_of_the_prefix_are_refused() {
        let stage = TempDir::new().unwrap();
        let prefix = Path::new("/opt/guacd");
        fs::create_dir_all(stage.path().join("opt/guacd/lib")).unwrap();
        assert_eq!(staged(stage.path(), prefix).unwrap(), stage.path().join("opt/guacd"));
        fs::create_dir_all(stage.path().join("opt/other")).unwrap();
        assert!(staged(stage.path(), prefix).unwrap_err().to_string().contains("outside of the prefix"));
    }

    #[test]
    fn names_that_upstreams_build_cannot_cope_with_are_refused() {
        assert!(check_characters(Path::new("/opt/guacd-2.0_a+b"), "").is_ok());
        for name in ["/opt/two words", "/opt/a,b", "/opt/$HOME", "/opt/a:b"] {
            assert!(check_characters(Path::new(name), "choose another").is_err(), "{name}");
        }
    }
}

//! Which files belong to this checkout, and how is it copied?

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;

use crate::host::layout;

/// The files and directories at the root of the checkout, sorted, without `.git` and cargo's output directory. A source
/// that was put into `source/` is among them, although git ignores it.
pub fn entries() -> Result<Vec<PathBuf>> {
    entries_of(&layout::root(), &layout::target_dir())
}

/// Copies the checkout into the directory `to`, which is created if it is not there. Where the checkout has a link, the copy
/// has what the link leads to.
pub fn copy(to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let entries = entries()?;
    duct::cmd(
        "cp",
        [Path::new("-rL"), Path::new("-t"), to].into_iter().chain(entries.iter().map(PathBuf::as_path)),
    )
    .run()
    .with_context(|| format!("cannot copy the checkout to {}", to.display()))?;
    Ok(())
}

fn entries_of(root: &Path, target_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        if !path.ends_with(".git") && !path.ends_with("target") && path != target_dir {
            entries.push(path);
        }
    }
    entries.sort();
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn what_was_built_and_gits_directory_do_not_belong_to_the_checkout() {
        let root = TempDir::new().unwrap();
        for name in ["tls-rs", ".cargo", ".git", "target", "elsewhere", "source"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        fs::write(root.path().join("Cargo.toml"), "").unwrap();
        let entries = entries_of(root.path(), &root.path().join("elsewhere")).unwrap();
        let names: Vec<_> =
            entries.iter().map(|entry| entry.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, [".cargo", "Cargo.toml", "source", "tls-rs"]);
    }
}

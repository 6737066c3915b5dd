//! Bugs in `tls-rs`, as patches next to this crate. A check of `tls-rs` is shown to work by planting each bug that it must
//! see in a copy of the code: loom does so in `tls-rs/tests/loom.rs`, all other checks in `cargo xtask prove`.
//!
//! A patch is a unified diff against the root of the checkout, below a header:
//!
//! ```text
//! Description: A bucket may be visible before its cells
//! Seen-by: loom: threads_that_need_a_bucket_share_it
//! Seen-by: thread: ThreadSanitizer: data race
//! ```
//!
//! Each `Seen-by` names a check that must see the bug, and the words that the check must print then. For loom, these are
//! the name of the model that must fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The checks that a patch may name, as `cargo xtask prove` calls them.
pub const CHECKS: [&str; 6] = ["loom", "valgrind", "fuzz", "address", "thread", "miri"];

/// A bug in `tls-rs`.
#[derive(Debug)]
pub struct Bug {
    /// The name of its file, without `.patch`.
    pub name: String,
    /// What is wrong, in one sentence.
    pub description: String,
    /// Each check that must see the bug, and the words that it must print then.
    seen_by: Vec<(String, String)>,
    patch: PathBuf,
}

impl Bug {
    /// The words that `check` must print about this bug, if it must see it.
    pub fn seen_by(&self, check: &str) -> Option<&str> {
        self.seen_by.iter().find(|(name, _)| name == check).map(|(_, words)| words.as_str())
    }

    /// Plants the bug in a copy of the checkout, of which `tls-rs/src` is enough. Fails if the patch does not apply to it.
    pub fn plant(&self, copy: &Path) -> Result<()> {
        let output = Command::new("patch")
            // Without --forward, `patch` would take a bug out that is there already.
            .args(["-p1", "--fuzz=0", "--forward", "--no-backup-if-mismatch", "-d"])
            .arg(copy)
            .arg("-i")
            .arg(&self.patch)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .context("cannot run `patch`: install it")?;
        ensure!(
            output.status.success(),
            "{} does not apply: adapt it to the code\n{}",
            self.patch.display(),
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(())
    }
}

/// All bugs of the checkout at `root`, sorted by name.
pub fn load(root: &Path) -> Result<Vec<Bug>> {
    let dir = root.join("tls-rs/bugs");
    let mut bugs = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "patch") {
            bugs.push(read(path)?);
        }
    }
    ensure!(!bugs.is_empty(), "no bugs in {}", dir.display());
    bugs.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(bugs)
}

fn read(patch: PathBuf) -> Result<Bug> {
    let text = fs::read_to_string(&patch).with_context(|| format!("cannot read {}", patch.display()))?;
    let (description, seen_by) =
        header(&text).with_context(|| format!("wrong header in {}", patch.display()))?;
    let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Bug { name, description, seen_by, patch })
}

/// The description, and the checks with their words.
fn header(text: &str) -> Result<(String, Vec<(String, String)>)> {
    let (mut description, mut seen_by) = (None, Vec::new());
    for line in text.lines().take_while(|line| !line.is_empty()) {
        match line.split_once(": ") {
            Some(("Description", sentence)) => description = Some(sentence.to_owned()),
            Some(("Seen-by", sighting)) => {
                let (check, words) = sighting.split_once(": ").context("write `Seen-by: CHECK: WORDS`")?;
                ensure!(
                    CHECKS.contains(&check),
                    "no check is called `{check}`: take one of {}",
                    CHECKS.join(", ")
                );
                seen_by.push((check.to_owned(), words.to_owned()));
            }
            _ => bail!("unknown line `{line}`: write `Description: SENTENCE` or `Seen-by: CHECK: WORDS`"),
        }
    }
    ensure!(!seen_by.is_empty(), "no check must see this bug: add a line `Seen-by: CHECK: WORDS`");
    Ok((description.context("no line `Description: SENTENCE`")?, seen_by))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    /// A copy of the sources that patches may change.
    fn copy() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("tls-rs/src");
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(root().join("tls-rs/src")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
            }
        }
        dir
    }

    #[test]
    fn each_bug_can_be_planted_once() {
        for bug in load(&root()).unwrap() {
            let copy = copy();
            bug.plant(copy.path()).unwrap();
            let again = bug.plant(copy.path()).unwrap_err().to_string();
            assert!(again.contains(&format!("{}.patch does not apply", bug.name)), "{again}");
        }
    }

    #[test]
    fn each_check_has_a_bug_to_see() {
        let bugs = load(&root()).unwrap();
        for check in CHECKS {
            assert!(bugs.iter().any(|bug| bug.seen_by(check).is_some()), "{check}");
        }
    }

    #[test]
    fn a_patch_that_does_not_apply_is_named() {
        let copy = copy();
        let registry = copy.path().join("tls-rs/src/registry.rs");
        let changed = fs::read_to_string(&registry).unwrap().replace("above", "top");
        fs::write(&registry, changed).unwrap();
        let bugs = load(&root()).unwrap();
        let bug = bugs.iter().find(|bug| bug.name == "free-list-head-without-generation").unwrap();
        let error = bug.plant(copy.path()).unwrap_err().to_string();
        assert!(error.contains("free-list-head-without-generation.patch does not apply"), "{error}");
    }

    #[test]
    fn a_header_that_no_check_would_read_is_refused() {
        let error = |text| format!("{:#}", header(text).unwrap_err());
        assert!(error("Description: A bug\n\n").contains("no check must see"));
        assert!(error("Description: A bug\nSeen-by: lom: words\n").contains("no check is called `lom`"));
        assert!(error("Description: A bug\nSeen-by: loom\n").contains("CHECK: WORDS"));
        assert!(error("Seen-by: loom: words\n").contains("Description"));
        assert!(error("Description: A bug\nseen by loom\n").contains("unknown line"));
    }
}

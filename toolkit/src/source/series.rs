//! Which patches does a release have, and how are they applied? In the order of its series, with no fuzz and no offset.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::host::digest;

/// A patch of a series.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// Its file name.
    pub name: String,
    /// Its group. The variant `keys` has the patches of one group.
    pub group: String,
    /// The SHA-256 of the file.
    pub sha256: String,
}

/// How the series of a release differs from the default release's in one patch. A line of its `series` file says it, such as
/// `# mended: 0042-libguac-do-it.patch: upstream does it since GUACAMOLE-1234`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The name of the patch's file.
    pub name: String,
    /// What the difference is.
    pub kind: Kind,
    /// Why.
    pub reason: String,
}

/// What a series has in place of a patch of the default release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No patch, as the release itself does what the patch does.
    Mended,
    /// A patch that does less, as the release itself does the rest.
    InPart,
    /// No patch, as the release has nothing that the patch could change.
    Without,
}

/// The starts of the lines that say so. To quilt they are comments.
const KINDS: [(&str, Kind); 3] =
    [("# mended:", Kind::Mended), ("# in part:", Kind::InPart), ("# without:", Kind::Without)];

/// How the series in `dir` says that it differs from the default release's.
///
/// # Errors
///
/// When its `series` file cannot be read, or a line of it gives no reason.
pub fn differences(dir: &Path) -> Result<Vec<Difference>> {
    let path = dir.join("series");
    let mut differences = Vec::new();
    for line in fs::read_to_string(&path)?.lines() {
        let said = KINDS.iter().find_map(|(start, kind)| Some((line.strip_prefix(start)?.trim(), *kind)));
        let Some((said, kind)) = said else { continue };
        let (name, reason) = said.split_once(": ").unwrap_or((said, ""));
        if reason.trim().is_empty() {
            bail!("{} gives no reason: make `{line}` end in `NAME: REASON`", path.display());
        }
        differences.push(Difference { name: name.into(), kind, reason: reason.trim().into() });
    }
    Ok(differences)
}

/// The start of a line in a `series` file that names the group of the patches after it. To quilt the line is a comment.
pub(super) const GROUP: &str = "# group:";

/// The patches in `dir`, in the order of its `series` file.
///
/// # Errors
///
/// When the file does not list each patch of the directory once, and in a group.
pub fn series(dir: &Path) -> Result<Vec<Patch>> {
    let path = dir.join("series");
    let text = fs::read_to_string(&path)?;
    let mut patches = Vec::new();
    let mut names = BTreeSet::new();
    let mut group = None;
    for name in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(name) = name.strip_prefix(GROUP) {
            group = Some(name.trim().to_owned());
        }
        if name.starts_with('#') {
            continue;
        }
        if !names.insert(name.to_owned()) {
            bail!("{} lists {name} twice", path.display());
        }
        let Some(group) = group.clone() else {
            bail!("{} has no line `{GROUP} NAME` above {name}", path.display());
        };
        patches.push(Patch { name: name.to_owned(), group, sha256: digest::file(&dir.join(name))? });
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
///
/// # Errors
///
/// [`Failure::Patch`] when one of them does not apply exactly.
pub fn apply(dir: &Path, patches: &[Patch], source: &Path) -> Result<()> {
    for Patch { name, .. } in patches {
        let file: PathBuf = dir.join(name);
        // With --batch alone, `patch` would take a patch out that the source has already, and succeed.
        let output = duct::cmd!(
            "patch",
            "-p1",
            "--fuzz=0",
            "--batch",
            "--forward",
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
        // `patch` succeeds with an offset, and mentions it. But a patch is for one exact source.
        let moved =
            |line: &str| line.starts_with("Hunk ") && (line.contains("offset") || line.contains("fuzz"));
        if !output.status.success() || text.lines().any(moved) {
            bail!(Failure::Patch(format!(
                "{} does not apply exactly:\n{}\nrefresh it for this release: CONTRIBUTING.md says how",
                dir.join(name).display(),
                text.trim_end()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_patch_that_the_source_has_already_is_refused_and_not_taken_out() {
        let dir = TempDir::new().unwrap();
        let (source, file) = (dir.path(), dir.path().join("file"));
        fs::write(&file, "a\nold\n").unwrap();
        fs::write(
            dir.path().join("0001-a.patch"),
            "--- a/file\n+++ b/file\n@@ -1,2 +1,2 @@\n a\n-old\n+new\n",
        )
        .unwrap();
        let patch = Patch { name: "0001-a.patch".into(), group: "one".into(), sha256: String::new() };
        apply(dir.path(), std::slice::from_ref(&patch), source).unwrap();
        let error = apply(dir.path(), &[patch], source).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(Failure::Patch(_))), "{error:#}");
        assert_eq!(fs::read_to_string(file).unwrap(), "a\nnew\n");
    }

    #[test]
    fn a_series_lists_each_of_its_patches_once() {
        let dir = TempDir::new().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("0001-a.patch", "a");
        write("0002-b.patch", "b");
        write("series", "# a comment\n# group: one\n0001-a.patch\n\n# group: two\n0002-b.patch\n");
        let names: Vec<(String, String)> =
            series(dir.path()).unwrap().into_iter().map(|patch| (patch.name, patch.group)).collect();
        assert_eq!(
            names,
            [("0001-a.patch", "one"), ("0002-b.patch", "two")].map(|(a, b)| (a.into(), b.into()))
        );

        let refusal = || format!("{:#}", series(dir.path()).unwrap_err());
        write("series", "0001-a.patch\n0002-b.patch\n");
        assert!(refusal().contains("no line `# group: NAME` above 0001-a.patch"));
        write("series", "# group: one\n0001-a.patch\n");
        assert!(refusal().contains("does not list 0002-b.patch"));
        write("series", "# group: one\n0001-a.patch\n0002-b.patch\n0001-a.patch\n");
        assert!(refusal().contains("lists 0001-a.patch twice"));
        write("series", "# group: one\n0001-a.patch\n0002-b.patch\n0003-c.patch\n");
        assert!(refusal().contains("0003-c.patch"));
    }

    #[test]
    fn a_series_says_how_it_differs_and_why() {
        let dir = TempDir::new().unwrap();
        let said = |text: &str| {
            fs::write(dir.path().join("series"), text).unwrap();
            differences(dir.path())
        };
        let of =
            |name: &str, kind, reason: &str| Difference { name: name.into(), kind, reason: reason.into() };
        assert_eq!(
            said(
                "# A comment.\n# mended: 0001-a.patch: it does: all\n# in part: 0002-b.patch: half\n\
                 # without: 0003-c.patch: no c\n# group: one\n0002-b.patch\n"
            )
            .unwrap(),
            [
                of("0001-a.patch", Kind::Mended, "it does: all"),
                of("0002-b.patch", Kind::InPart, "half"),
                of("0003-c.patch", Kind::Without, "no c")
            ]
        );
        for line in ["# mended: 0001-a.patch", "# in part: 0001-a.patch:", "# without: 0001-a.patch:  "] {
            let error = format!("{:#}", said(line).unwrap_err());
            assert!(error.contains(&format!("gives no reason: make `{line}` end")), "{error}");
        }
    }
}

//! What is pinned? The releases of `upstream.toml`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::host::layout;

/// A pinned release of guacamole-server.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Its version, the key of its table.
    #[serde(skip)]
    pub version: String,
    /// How far this toolkit stands behind it.
    pub state: State,
    /// The commit of the release's tag: pins a git clone.
    pub commit: String,
    /// The tree of that commit: pins an unpacked source tree.
    pub tree: String,
    /// When the commit was made, in seconds since 1970: the time that a build has everything it makes speak of.
    pub epoch: u64,
    /// The same tree's hash as Nix has it.
    pub nar: String,
    /// The URL of the git repository that has the commit.
    pub git: String,
    /// The directory of the patch series, below the root of the checkout.
    patches: PathBuf,
    /// Where the source can be downloaded, best first.
    pub origins: Vec<Origin>,
}

/// How far this toolkit stands behind a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// A release that is built, patched and tested here.
    Supported,
    /// A commit without a tag, of upstream's next release: built, patched and tested, and never the default.
    Preview,
}

/// A place that serves the source as one file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// What to call it.
    pub name: String,
    /// Where the file is.
    pub url: String,
    /// The SHA-256 of the file.
    pub sha256: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Upstream {
    release: BTreeMap<String, Release>,
}

impl Release {
    /// The pinned release that is called `version`, or the newest one that is supported.
    ///
    /// # Errors
    ///
    /// When `upstream.toml` cannot be read, or has no such release.
    pub fn load(version: Option<&str>) -> Result<Release> {
        let mut all = Release::all()?;
        let Some(version) = version else {
            let supported = all.into_values().filter(|release| release.state == State::Supported);
            return supported
                .max_by_key(|release| order(&release.version))
                .context("upstream.toml has no supported release");
        };
        let Some(release) = all.remove(version) else {
            let known: Vec<String> = all.into_keys().collect();
            bail!("release {version} is not pinned in upstream.toml; known releases: {}", known.join(", "));
        };
        Ok(release)
    }

    /// All pinned releases, by version.
    ///
    /// # Errors
    ///
    /// When `upstream.toml` cannot be read.
    pub fn all() -> Result<BTreeMap<String, Release>> {
        let path = layout::root().join("upstream.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut all: Upstream =
            toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))?;
        for (version, release) in &mut all.release {
            release.version.clone_from(version);
        }
        Ok(all.release)
    }

    /// The name of the release's source tree and, with an ending, of its tarballs.
    pub fn source_name(&self) -> String {
        format!("guacamole-server-{}", self.version)
    }

    /// The directory of the patch series.
    pub fn patches_dir(&self) -> PathBuf {
        layout::root().join(&self.patches)
    }
}

/// Where a version stands among others: by its numbers, and before the same numbers with more behind them.
fn order(version: &str) -> (Vec<u32>, std::cmp::Reverse<String>) {
    let end = version.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(version.len());
    let (numbers, suffix) = version.split_at(end);
    let numbers = numbers.split('.').filter_map(|number| number.parse().ok()).collect();
    (numbers, std::cmp::Reverse(suffix.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_their_numbers_and_a_suffix_comes_before_none() {
        let mut versions = ["1.10.0", "1.6.0", "1.6.0-copy", "1.5.5"];
        versions.sort_by_key(|version| order(version));
        assert_eq!(versions, ["1.5.5", "1.6.0-copy", "1.6.0", "1.10.0"]);
    }

    #[test]
    fn a_release_that_is_not_pinned_is_refused_with_those_that_are() {
        let error = Release::load(Some("0.0.0")).unwrap_err().to_string();
        assert!(
            error.contains("0.0.0 is not pinned") && error.contains(&Release::load(None).unwrap().version)
        );
    }
}

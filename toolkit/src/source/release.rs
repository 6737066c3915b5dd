//! Which releases are there, and what are they pinned to? `upstream.toml` says it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use fs_err as fs;
use serde::Deserialize;

use crate::host::layout;

/// A pinned release of guacamole-server.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Its name in this project: the key of its table.
    #[serde(skip)]
    pub version: String,
    /// What this toolkit promises for it.
    pub state: State,
    /// Upstream's tag. `None` for a commit that has none.
    pub tag: Option<String>,
    /// The commit's ID in git. It pins a git clone.
    pub commit: String,
    /// The ID of the commit's tree in git. It pins an unpacked source tree.
    pub tree: String,
    /// The time of the commit, in seconds since 1970: the SOURCE_DATE_EPOCH of builds and packages.
    pub epoch: u64,
    /// The NAR hash of the tree, for Nix, as `sha256-` and Base64.
    pub nar: String,
    /// The URL of the git repository that has the commit.
    pub git: String,
    /// The directory of the patch series, below the root of the checkout.
    patches: PathBuf,
    /// Further arguments of upstream's configure for a guacd without all patches, as some faults keep it from being tested.
    #[serde(default, rename = "configure-unpatched")]
    pub configure_unpatched: Vec<String>,
    /// Where the source can be downloaded, in the order in which they are tried. If there are none, it comes from `git`.
    #[serde(default)]
    pub origins: Vec<Origin>,
}

/// What this toolkit promises for a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is built, patched and tested here.
    Supported,
    /// It is a commit of upstream's next release, and has no tag yet. It is built, patched and tested here, and is never the
    /// default.
    Preview,
}

/// A place that serves the source as one file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Its name in messages.
    pub name: String,
    /// The URL of the file.
    pub url: String,
    /// The SHA-256 of the file, in lower-case hexadecimal.
    pub sha256: String,
    /// The URL of the file's OpenPGP signature, if there is one.
    pub signature: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Upstream {
    release: BTreeMap<String, Release>,
}

impl Release {
    /// The pinned release `version`, or the newest supported one if that is `None`.
    ///
    /// # Errors
    ///
    /// When `upstream.toml` cannot be read, or does not have the release.
    pub fn load(version: Option<&str>) -> Result<Release> {
        let mut all = Release::all()?;
        let Some(version) = version else { return default(all) };
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
        parse(&fs::read_to_string(&path)?).with_context(|| format!("cannot understand {}", path.display()))
    }

    /// A commit that is not pinned, with the series in the directory `patches`. `git` is the repository that has it.
    pub fn of_commit(
        version: String,
        commit: String,
        tree: String,
        epoch: u64,
        git: String,
        patches: PathBuf,
    ) -> Release {
        Release {
            version,
            state: State::Preview,
            tag: None,
            commit,
            tree,
            epoch,
            nar: String::new(),
            git,
            patches,
            configure_unpatched: Vec::new(),
            origins: Vec::new(),
        }
    }

    /// What upstream calls the commit: its tag, or else the commit's id.
    pub fn upstream_name(&self) -> &str {
        self.tag.as_deref().unwrap_or(&self.commit)
    }

    /// The names of its sources in the cache: a tarball's by its digest, and git's by the commit.
    pub fn pins(&self) -> Vec<String> {
        let tarballs = self.origins.iter().map(|origin| format!("sha256-{}", origin.sha256));
        tarballs.chain([self.commit_pin()]).collect()
    }

    /// The name of the source from git in the cache.
    pub fn commit_pin(&self) -> String {
        format!("commit-{}", self.commit)
    }

    /// The directory of the patch series.
    pub fn patches_dir(&self) -> PathBuf {
        layout::root().join(&self.patches)
    }
}

fn parse(text: &str) -> Result<BTreeMap<String, Release>> {
    let mut all: Upstream = toml::from_str(text)?;
    for (version, release) in &mut all.release {
        release.version.clone_from(version);
    }
    Ok(all.release)
}

/// The newest supported release.
fn default(all: BTreeMap<String, Release>) -> Result<Release> {
    let supported = all.into_values().filter(|release| release.state == State::Supported);
    supported.max_by_key(|release| order(&release.version)).context("upstream.toml has no supported release")
}

/// The sort key of a version. Versions are ordered by their numbers, and a suffix comes before no suffix: 2.6.0-rc1 is older
/// than 2.6.0. nix/upstream.nix has the same order.
fn order(version: &str) -> (Vec<u32>, bool, String) {
    let end = version.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(version.len());
    let (numbers, suffix) = version.split_at(end);
    let numbers = numbers.split('.').filter_map(|number| number.parse().ok()).collect();
    (numbers, suffix.is_empty(), suffix.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_their_numbers_and_a_suffix_comes_before_none() {
        let mut versions = ["2.10.0", "2.6.0", "2.6.0-rc2", "2.6.0-rc1", "2.5.5"];
        versions.sort_by_key(|version| order(version));
        assert_eq!(versions, ["2.5.5", "2.6.0-rc1", "2.6.0-rc2", "2.6.0", "2.10.0"]);
    }

    #[test]
    fn a_preview_needs_neither_tag_nor_origins_and_is_never_the_default() {
        let table = |version: &str, state: &str| {
            format!(
                "[release.'{version}']\nstate = '{state}'\ncommit = 'c'\ntree = 't'\nepoch = 1\nnar = 'n'\ngit = 'g'\n\
                 patches = 'patches/{version}'\n"
            )
        };
        let text = [table("2.0.0", "supported"), table("2.0.1-next", "preview")].concat();
        let all = parse(&text).unwrap();
        assert_eq!(all["2.0.1-next"].upstream_name(), "c");
        assert!(all["2.0.1-next"].origins.is_empty());
        assert_eq!(default(all).unwrap().version, "2.0.0");
        assert!(default(parse(&table("2.0.1-next", "preview")).unwrap()).is_err());
    }

    #[test]
    fn a_release_that_is_not_pinned_is_refused_with_those_that_are() {
        let error = Release::load(Some("0.0.0")).unwrap_err().to_string();
        assert!(
            error.contains("0.0.0 is not pinned") && error.contains(&Release::load(None).unwrap().version)
        );
    }
}

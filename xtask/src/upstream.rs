//! What is pinned? The releases of `upstream.toml`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::layout;

/// A pinned release of guacamole-server.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Its version, the key of its table.
    #[serde(skip)]
    pub version: String,
    /// How far this toolkit stands behind it.
    state: State,
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

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Supported,
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
    /// The pinned release that is called `version`.
    pub fn load(version: &str) -> Result<Release> {
        let mut all = Release::all()?;
        let Some(release) = all.remove(version) else {
            let known: Vec<String> = all.into_keys().collect();
            bail!("release {version} is not pinned in upstream.toml; known releases: {}", known.join(", "));
        };
        Ok(release)
    }

    /// The releases that are supported.
    pub fn supported() -> Result<Vec<Release>> {
        let all = Release::all()?;
        Ok(all.into_values().filter(|release| release.state == State::Supported).collect())
    }

    fn all() -> Result<BTreeMap<String, Release>> {
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::flags;

    #[test]
    fn what_is_built_by_default_is_the_newest_release_that_is_supported() {
        // As the flake takes it to be.
        let number =
            |version: &str| -> Vec<u32> { version.split('.').map(|part| part.parse().unwrap()).collect() };
        let supported = Release::supported().unwrap();
        let newest = supported.iter().max_by_key(|release| number(&release.version)).unwrap();
        let flags::Command::Build(flags) = flags::Cli::parse_from(["xtask", "build"]).command else {
            panic!("another command");
        };
        assert_eq!(flags.release.release, newest.version);
    }
}

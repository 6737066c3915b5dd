//! What is in a prefix? Its manifest says: what it was made from, with what, and which protocols came out.
//!
//! It lies within the prefix, so that the two can only come and go together, and a link beside the prefix leads to it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::source::series::Patch;

/// The version of the format.
pub const SCHEMA_VERSION: u32 = 1;

/// What a prefix was made of.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The guacamole-server release.
    pub release: String,
    /// The commit of the release's tag.
    pub commit: String,
    /// The source, as the pin that it was checked against: `sha256-…` or `commit-…`.
    pub source: String,
    /// `patched`, `keys` or `stock`.
    pub variant: String,
    /// Where it is installed.
    pub prefix: PathBuf,
    /// The patches, in order, each with its group.
    pub patches: Vec<Patch>,
    /// The SHA-256 of `libtls_rs.a`, if it is part of the build.
    pub tls_rs: Option<String>,
    /// The C compiler's first line about itself.
    pub compiler: String,
    /// The Rust compiler's first line about itself.
    pub rustc: String,
    /// The arguments of upstream's configure.
    pub configure: Vec<String>,
    /// The variables that configure and the compilers heeded, as `NAME=VALUE`.
    pub environment: Vec<String>,
    /// The protocols that have a plugin.
    pub protocols: Vec<String>,
    /// The digest of all inputs. A prefix whose digest is another one is out of date.
    pub digest: String,
}

/// Where the manifest lies in a prefix.
const PATH: &str = "share/guacd-uncapped/manifest.json";

impl Manifest {
    /// The manifest of what is installed in `prefix`, if it was made by this toolkit.
    pub fn load(prefix: &Path) -> Option<Manifest> {
        serde_json::from_slice(&fs::read(prefix.join(PATH)).ok()?).ok()
    }

    /// Writes the manifest into a prefix that is still being put together.
    pub fn save(&self, staged: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).context("cannot write the manifest as JSON")?;
        text.push('\n');
        write(&staged.join(PATH), &text)
    }
}

/// Writes a file, and the directories that it is in, of a prefix that is still being put together.
pub fn write(path: &Path, text: &str) -> Result<()> {
    path.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(path, text))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The link beside `prefix` that leads to its manifest.
pub fn link(prefix: &Path) -> PathBuf {
    let mut link = prefix.as_os_str().to_owned();
    link.push(".manifest.json");
    link.into()
}

/// Puts the link there, if it is not there yet.
pub fn make_link(prefix: &Path) -> Result<()> {
    let link = link(prefix);
    let target = Path::new(prefix.file_name().unwrap_or_default()).join(PATH);
    if fs::read_link(&link).is_ok_and(|there| there == target) {
        return Ok(());
    }
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(target, &link).with_context(|| format!("cannot create {}", link.display()))
}

/// The protocols that have a plugin in `prefix`, wherever in it the libraries are.
pub fn protocols(prefix: &Path) -> Result<Vec<String>> {
    let mut protocols = Vec::new();
    for entry in fs::read_dir(prefix).with_context(|| format!("cannot list {}", prefix.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && !path.is_symlink() {
            protocols.extend(self::protocols(&path)?);
        } else if let Some(rest) = name.strip_prefix("libguac-client-") {
            protocols.extend(rest.strip_suffix(".so").map(str::to_owned));
        }
    }
    protocols.sort();
    Ok(protocols)
}

//! What is in a prefix? Its manifest says what the prefix was made from, with which tools, and which protocols it has.
//!
//! The manifest is in the prefix, so the two always belong together. A link next to the prefix leads to it.
//!
//! The manifest does not say in which form the source came: every form gives the same prefix.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::host::files;
use crate::source::series::Patch;

/// The version of the format.
pub const SCHEMA_VERSION: u32 = 2;

/// What a prefix was made from.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The guacamole-server release, by its name in upstream.toml.
    pub release: String,
    /// Upstream's commit.
    pub commit: String,
    /// The time of the commit, in seconds since 1970.
    pub epoch: u64,
    /// `patched`, `keys` or `stock`.
    pub variant: String,
    /// The path of the prefix.
    pub prefix: PathBuf,
    /// The patches, in order, each with its group.
    pub patches: Vec<Patch>,
    /// The SHA-256 of `libtls_rs.a`. `None` for the variant `stock`, which has no tls-rs.
    pub tls_rs: Option<String>,
    /// The first line of the C compiler's `--version`.
    pub compiler: String,
    /// The first line of the Rust compiler's `--version`.
    pub rustc: String,
    /// The arguments of upstream's configure.
    pub configure: Vec<String>,
    /// The environment variables that configure and the compilers use, as `NAME=VALUE`.
    pub environment: Vec<String>,
    /// The protocols that have a plugin.
    pub protocols: Vec<String>,
    /// The digest of all inputs. A prefix with another digest is out of date.
    pub digest: String,
}

/// Where the manifest is in a prefix.
const PATH: &str = "share/guacd-uncapped/manifest.json";

impl Manifest {
    /// The manifest in `prefix`. `None` if there is none, or none of this version of the format.
    pub fn load(prefix: &Path) -> Option<Manifest> {
        serde_json::from_slice(&fs::read(prefix.join(PATH)).ok()?).ok()
    }

    /// Writes the manifest into the prefix, which is `staged`.
    pub fn save(&self, staged: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).context("cannot write the manifest as JSON")?;
        text.push('\n');
        write(&staged.join(PATH), &text)
    }
}

/// Whether `prefix` has a manifest, of whichever version: this toolkit made the prefix.
pub fn is_in(prefix: &Path) -> bool {
    prefix.join(PATH).is_file()
}

/// Writes a file into a staged prefix, and creates the directories above it.
pub fn write(path: &Path, text: &str) -> Result<()> {
    files::create_parent(path)?;
    Ok(fs::write(path, text)?)
}

/// The link next to `prefix` that leads to its manifest.
pub fn link(prefix: &Path) -> PathBuf {
    let mut link = prefix.as_os_str().to_owned();
    link.push(".manifest.json");
    link.into()
}

/// Creates the link next to `prefix`, unless it is there.
pub fn make_link(prefix: &Path) -> Result<()> {
    let link = link(prefix);
    let target = Path::new(prefix.file_name().unwrap_or_default()).join(PATH);
    if fs::read_link(&link).is_ok_and(|there| there == target) {
        return Ok(());
    }
    files::remove_file(&link)?;
    Ok(fs_err::os::unix::fs::symlink(target, &link)?)
}

/// The protocols that have a plugin in any directory of `prefix`, sorted.
pub fn protocols(prefix: &Path) -> Result<Vec<String>> {
    let mut protocols = Vec::new();
    for entry in fs::read_dir(prefix)? {
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

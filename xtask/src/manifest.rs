//! What is in a prefix? The manifest beside it says: what it was made from, with what, and which protocols came out.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::patch::Patch;
use crate::steps;

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
    /// `patched` or `stock`.
    pub variant: String,
    /// Where it is installed.
    pub prefix: PathBuf,
    /// The patches, in order.
    pub patches: Vec<Patch>,
    /// The SHA-256 of `libtls_rs.a`, if it is part of the build.
    pub tls_rs: Option<String>,
    /// The C compiler's first line about itself.
    pub compiler: String,
    /// The Rust compiler's first line about itself.
    pub rustc: String,
    /// The arguments of upstream's configure.
    pub configure: Vec<String>,
    /// The protocols that have a plugin.
    pub protocols: Vec<String>,
}

/// Where the manifest of `prefix` is: beside it, so that it is not installed with it.
pub fn path(prefix: &Path) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(".manifest.json");
    path.into()
}

impl Manifest {
    /// The manifest of `prefix`, if there is one that can be read.
    pub fn load(prefix: &Path) -> Option<Manifest> {
        serde_json::from_slice(&fs::read(path(prefix)).ok()?).ok()
    }

    /// Writes the manifest beside its prefix.
    pub fn save(&self) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).context("cannot write the manifest as JSON")?;
        text.push('\n');
        steps::write_atomically(&path(&self.prefix), text.as_bytes())
    }
}

/// The protocols that have a plugin in `prefix`.
pub fn protocols(prefix: &Path) -> Result<Vec<String>> {
    let lib = prefix.join("lib");
    let mut protocols = Vec::new();
    for entry in fs::read_dir(&lib).with_context(|| format!("cannot list {}", lib.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let protocol = name.strip_prefix("libguac-client-").and_then(|rest| rest.strip_suffix(".so"));
        protocols.extend(protocol.map(str::to_owned));
    }
    protocols.sort();
    Ok(protocols)
}

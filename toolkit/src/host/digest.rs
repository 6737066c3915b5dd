//! SHA-256 of files, directories and lists of inputs, in lower-case hexadecimal.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// A digest over several inputs, each with its length, so that no two lists of inputs look alike.
#[derive(Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Adds an input.
    pub fn add(&mut self, input: impl AsRef<[u8]>) -> &mut Self {
        let input = input.as_ref();
        self.0.update((input.len() as u64).to_le_bytes());
        self.0.update(input);
        self
    }

    /// The digest of what was added.
    pub fn finish(&mut self) -> String {
        hex(&self.0.finalize_reset())
    }
}

/// The SHA-256 of a file, as `sha256sum` prints it.
pub fn file(path: &Path) -> Result<String> {
    let mut sha = Sha256::new();
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    io::copy(&mut file, &mut sha).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&sha.finalize()))
}

/// One digest for the files at `paths`, directories taken whole: their names below `root` and their contents.
pub fn files(root: &Path, paths: &[&str]) -> Result<String> {
    let mut all = Vec::new();
    for path in paths {
        collect(&root.join(path), &mut all)?;
    }
    all.sort();
    let mut hasher = Hasher::default();
    for path in all {
        let name = path.strip_prefix(root).unwrap_or(&path);
        hasher.add(name.as_os_str().as_encoded_bytes()).add(file(&path)?);
    }
    Ok(hasher.finish())
}

fn collect(path: &Path, all: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        all.push(path.to_owned());
        return Ok(());
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
    for entry in entries {
        collect(&entry?.path(), all)?;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

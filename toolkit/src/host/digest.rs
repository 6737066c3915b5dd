//! SHA-256 of files, directories and lists of inputs, in lower-case hexadecimal.

use std::io;
use std::path::Path;

use anyhow::Result;
use fs_err::File;
use sha2::{Digest, Sha256};

use crate::host::files;

/// A digest of a list of inputs. The length of each input is hashed before it, so the digest also depends on where one input
/// ends and the next begins.
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

    /// The digest of the inputs that were added.
    pub fn finish(&mut self) -> String {
        hex(&self.0.finalize_reset())
    }
}

/// A SHA-256 of bytes that come in pieces.
#[derive(Default)]
pub struct Stream(Sha256);

impl Stream {
    /// Adds the next piece.
    pub fn add(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The digest of all pieces.
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

/// The SHA-256 of a file, as `sha256sum` prints it.
pub fn file(path: &Path) -> Result<String> {
    let mut sha = Sha256::new();
    io::copy(&mut File::open(path)?, &mut sha)?;
    Ok(hex(&sha.finalize()))
}

/// One digest of the names and contents of all files at `paths`, which are files and directories below `root`.
pub fn files(root: &Path, paths: &[&str]) -> Result<String> {
    let mut all = Vec::new();
    for path in paths {
        all.extend(files::tree(&root.join(path))?.into_iter().filter(|path| !path.is_dir()));
    }
    all.sort();
    let mut hasher = Hasher::default();
    for path in all {
        let name = path.strip_prefix(root).unwrap_or(&path);
        hasher.add(name.as_os_str().as_encoded_bytes()).add(file(&path)?);
    }
    Ok(hasher.finish())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

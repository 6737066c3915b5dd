//! How many pthread keys does guacd take? It is run with `libkey_limit.so` preloaded, which limits them and counts them in a
//! file that we map as well.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

use crate::{program::Preflight, report::Keys};

/// The file has two 32-bit words: the most keys that any process had, and how often one was refused.
const WORDS: usize = 2;

/// A limit on a process and its descendants.
pub struct KeyLimit {
    limit: u32,
    /// The reading end; the name is kept so that the processes can open it.
    counters: File,
    _name: NamedTempFile,
}

impl KeyLimit {
    /// Limits a program that is about to be started.
    ///
    /// # Errors
    ///
    /// When the library is not there, or no temporary file can be had.
    pub fn apply(command: &mut Command, library: &Path, limit: u32) -> Result<Self> {
        if !library.is_file() {
            bail!(Preflight(format!(
                "there is no {}: build it with `cargo build --package key-limit`, or name it with --key-limit-library",
                library.display()
            )));
        }
        let library = library.canonicalize().with_context(|| format!("find {}", library.display()))?;
        let mut name =
            NamedTempFile::with_prefix("guac-stress-keys-").context("create a file to count keys in")?;
        name.write_all(&[0; 4 * WORDS]).context("prepare the file to count keys in")?;
        let counters = name.reopen().context("open the file to count keys in")?;
        command.env("LD_PRELOAD", library);
        command.env("KEY_LIMIT", limit.to_string());
        command.env("KEY_LIMIT_STATS", name.path());
        Ok(Self { limit, counters, _name: name })
    }

    /// What was counted so far.
    pub fn keys(&self) -> Keys {
        let mut bytes = [0; 4 * WORDS];
        let mut counters = &self.counters;
        // A shared mapping and the file behind it are the same pages: reading sees what was written last.
        let read = counters.rewind().and_then(|()| counters.read_exact(&mut bytes));
        let word = |i: usize| bytes[4 * i..][..4].try_into().map_or(0, u32::from_ne_bytes);
        match read {
            Ok(()) => Keys { limit: self.limit, most_in_a_process: word(0), refusals: word(1) },
            Err(_) => Keys { limit: self.limit, most_in_a_process: 0, refusals: 0 },
        }
    }
}

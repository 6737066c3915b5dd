//! How many pthread keys does guacd take? It is run with `libkey_limit.so` preloaded, which limits them and counts them in a
//! file that it maps, and we read.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

use crate::report::Keys;

/// The file has three 32-bit words: the most keys that any process had, how often one was refused, and whether the library
/// was loaded at all.
const WORDS: usize = 3;

/// A limit on a process and its descendants.
pub struct KeyLimit {
    limit: u32,
    /// The reading end; the name is kept so that the processes can open it.
    counters: File,
    _name: NamedTempFile,
}

impl KeyLimit {
    /// Tells the preload library of a program that is about to be started what its limit is. `scratch` is a directory for
    /// temporary files.
    ///
    /// # Errors
    ///
    /// When no temporary file can be had.
    pub fn apply(command: &mut Command, limit: u32, scratch: &Path) -> Result<Self> {
        let mut name =
            NamedTempFile::with_prefix_in("keys-", scratch).context("create a file to count keys in")?;
        name.write_all(&[0; 4 * WORDS]).context("prepare the file to count keys in")?;
        let counters = name.reopen().context("open the file to count keys in")?;
        command.env("KEY_LIMIT", limit.to_string());
        command.env("KEY_LIMIT_STATS", name.path());
        Ok(Self { limit, counters, _name: name })
    }

    /// What was counted so far.
    pub fn keys(&self) -> Keys {
        let [most_in_a_process, refusals, _] = self.read();
        Keys { limit: self.limit, most_in_a_process, refusals }
    }

    /// Whether the library was loaded. ld.so only warns of one that it cannot load, and goes on without it.
    pub fn is_applied(&self) -> bool {
        self.read()[2] != 0
    }

    fn read(&self) -> [u32; WORDS] {
        let mut bytes = [0; 4 * WORDS];
        let mut counters = &self.counters;
        // A shared mapping and the file behind it are the same pages: reading sees what was written last.
        let read = counters.rewind().and_then(|()| counters.read_exact(&mut bytes));
        let word = |i: usize| bytes[4 * i..][..4].try_into().map_or(0, u32::from_ne_bytes);
        match read {
            Ok(()) => std::array::from_fn(word),
            Err(_) => [0; WORDS],
        }
    }
}

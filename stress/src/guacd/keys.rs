//! How many pthread keys does guacd use? It runs with the key-limit library, which limits them and counts them in a file.

use std::{io::Write, path::Path, process::Command};

use anyhow::{Context, Result};
use shared::key_counters::{KeyCounters, SIZE};
use tempfile::NamedTempFile;

use crate::report::Keys;

/// A limit on the pthread keys of a process and its descendants.
pub struct KeyLimit {
    limit: u32,
    counters: NamedTempFile,
}

impl KeyLimit {
    /// Sets the limit for a program that is about to be started with the key-limit library. `scratch` is a directory for
    /// temporary files.
    ///
    /// # Errors
    ///
    /// When the file of counters cannot be created.
    pub fn apply(command: &mut Command, limit: u32, scratch: &Path) -> Result<Self> {
        let mut counters =
            NamedTempFile::with_prefix_in("keys-", scratch).context("create a file to count keys in")?;
        counters.write_all(&[0; SIZE]).context("prepare the file to count keys in")?;
        command.env("KEY_LIMIT", limit.to_string());
        command.env("KEY_LIMIT_STATS", counters.path());
        Ok(Self { limit, counters })
    }

    /// What was counted so far.
    pub fn keys(&self) -> Keys {
        let KeyCounters { most_in_a_process, refusals, .. } = self.read();
        Keys { limit: self.limit, most_in_a_process, refusals }
    }

    /// Whether the library was loaded. The loader only warns about a library that it cannot load.
    pub fn is_applied(&self) -> bool {
        self.read().is_loaded
    }

    fn read(&self) -> KeyCounters {
        KeyCounters::read(self.counters.path()).unwrap_or_default()
    }
}

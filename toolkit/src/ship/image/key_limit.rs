//! How is the number of pthread keys in a container limited? By the key-limit library, with which guacd is started.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Result, ensure};
use fs_err as fs;
use shared::key_counters::{KeyCounters, SIZE};
use tempfile::TempDir;

use crate::host::files;
use crate::ship::image::docker::Container;

/// The key-limit library for a container, and the file in which it counts keys.
pub struct KeyLimit {
    /// The limit for each process of the container.
    limit: u32,
    /// The directory of the library and the file.
    dir: TempDir,
}

impl KeyLimit {
    const LIBRARY: &str = "libkey_limit.so";
    const COUNTERS: &str = "keys";

    /// Puts the library, which was built next to the program `guac_stress`, and a file of counters below `work`.
    pub fn new(limit: u32, guac_stress: &Path, work: &Path) -> Result<KeyLimit> {
        let dir = TempDir::with_prefix_in("key-limit-", work)?;
        let built = guac_stress.with_file_name(Self::LIBRARY);
        let library = dir.path().join(Self::LIBRARY);
        files::copy(&built, &library, 0o755)?;
        let counters = dir.path().join(Self::COUNTERS);
        fs::write(&counters, [0; SIZE])?;
        // In the container another user writes to it.
        fs::set_permissions(&counters, Permissions::from_mode(0o666))?;
        Ok(KeyLimit { limit, dir })
    }

    /// The options of `docker create` that apply the limit.
    pub fn options(&self) -> Vec<String> {
        let mount = |name: &str, more: &str| {
            format!("--mount=type=bind,source={},target=/{name}{more}", self.dir.path().join(name).display())
        };
        vec![
            mount(Self::LIBRARY, ",readonly"),
            mount(Self::COUNTERS, ""),
            format!("--env=LD_PRELOAD=/{}", Self::LIBRARY),
            format!("--env=KEY_LIMIT={}", self.limit),
            format!("--env=KEY_LIMIT_STATS=/{}", Self::COUNTERS),
        ]
    }

    /// What was counted, in words: the most keys of any process, and how many were refused.
    ///
    /// # Errors
    ///
    /// When the limit did not apply.
    pub fn result(&self, container: &Container<'_>) -> Result<String> {
        let KeyCounters { most_in_a_process: most, refusals, is_loaded } =
            KeyCounters::read(&self.dir.path().join(Self::COUNTERS))?;
        // If the loader cannot load the library, as when it needs a newer libc, it only warns, and guacd runs without it.
        ensure!(
            is_loaded && most > 0,
            "the limit of keys did not apply in the container; its log ends in:\n{}",
            container.log()
        );
        Ok(format!("{most} of {} keys in the process that had most, {refusals} refused", self.limit))
    }
}

//! How is a container given fewer pthread keys? By a library that is preloaded in it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Result, ensure};
use fs_err as fs;
use shared::key_counters::{KeyCounters, SIZE};
use tempfile::TempDir;

use crate::host::files;
use crate::ship::image::docker::Container;

/// The preload library that limits a container's pthread keys, and the file in which it counts them.
pub struct KeyLimit {
    limit: u32,
    dir: TempDir,
}

impl KeyLimit {
    const LIBRARY: &str = "libkey_limit.so";
    const COUNTERS: &str = "keys";

    /// Puts the library, which is next to `guac_stress`, and a file of counters below `work`.
    pub fn new(limit: u32, guac_stress: &Path, work: &Path) -> Result<KeyLimit> {
        let dir = TempDir::with_prefix_in("key-limit-", work)?;
        let built = guac_stress.with_file_name(Self::LIBRARY);
        let library = dir.path().join(Self::LIBRARY);
        files::copy(&built, &library, 0o755)?;
        let counters = dir.path().join(Self::COUNTERS);
        fs::write(&counters, [0; SIZE])?;
        // The container's user is another one.
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

    /// The counters: the most keys of any process, and the refusals. An error if the limit did not apply.
    pub fn result(&self, container: &Container<'_>) -> Result<String> {
        let KeyCounters { most_in_a_process: most, refusals, is_loaded } =
            KeyCounters::read(&self.dir.path().join(Self::COUNTERS))?;
        // The loader only warns when it cannot load a library, as one for a newer libc, and guacd then runs without it.
        ensure!(
            is_loaded && most > 0,
            "the limit of keys did not apply in the container; its log ends in:\n{}",
            container.log()
        );
        Ok(format!("{most} of {} keys in the process that had most, {refusals} refused", self.limit))
    }
}

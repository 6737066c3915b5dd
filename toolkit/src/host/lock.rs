//! Who may use a directory? One run at a time: the kernel frees a lock when its holder ends, however it ends.

use std::path::Path;

use anyhow::{Result, bail};
use fs_err::{self as fs, File};
use rustix::fs::FlockOperation;

use crate::host::layout;

/// A lock, which is held until this is dropped.
pub struct Lock(#[expect(dead_code, reason = "the lock is on the open file")] File);

/// Locks the file `path`, which is created if it is not there. An error if another process holds the lock, which `holder`
/// names: `another HOLDER is running`.
pub fn try_lock(path: &Path, holder: &str) -> Result<Lock> {
    let file = File::create(path)?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let dir = path.parent().unwrap_or(path).display();
        bail!("another {holder} is running in {dir}: wait for it to end, and try again");
    }
    Ok(Lock(file))
}

/// Keeps a second run of a command of xtask out: the two would write to the same files.
pub fn command(name: &str) -> Result<Lock> {
    let dir = layout::target_dir().join("guacd");
    fs::create_dir_all(&dir)?;
    try_lock(&dir.join(format!("{name}.lock")), &format!("`cargo xtask {name}`"))
}

/// Locks the directory `dir`, and waits for the process that holds the lock.
pub fn wait_for_dir(dir: &Path) -> Result<Lock> {
    let dir = File::open(dir)?;
    rustix::fs::flock(&dir, FlockOperation::LockExclusive)?;
    Ok(Lock(dir))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_command_runs_once_at_a_time() {
        let first = super::command("test-of-the-lock").unwrap();
        let refusal = super::command("test-of-the-lock").err().unwrap().to_string();
        assert!(refusal.contains("wait for it"), "{refusal}");
        drop(first);
        super::command("test-of-the-lock").unwrap();
    }
}

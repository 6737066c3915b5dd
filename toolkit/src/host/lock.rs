//! How is a directory kept for one run at a time? By a lock on a file, which the kernel frees when its holder ends.

use std::path::Path;

use anyhow::{Context, Result, bail};
use fs_err::{self as fs, File};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::host::layout;

/// A lock, which is held until this is dropped.
pub struct Lock(#[expect(dead_code, reason = "the lock is on the open file")] File);

/// Locks the file `path`, which is created if it is not there.
///
/// # Errors
///
/// When another process holds the lock. The error calls it `another HOLDER`.
pub fn try_lock(path: &Path, holder: &str) -> Result<Lock> {
    let file = File::create(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock(file)),
        Err(Errno::WOULDBLOCK) => {
            let dir = path.parent().unwrap_or(path).display();
            bail!("another {holder} is running in {dir}: wait for it to end, and try again")
        }
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Keeps out a second run of xtask's command `name`: the two would write to the same files.
pub fn command(name: &str) -> Result<Lock> {
    let dir = layout::target_dir().join("guacd");
    fs::create_dir_all(&dir)?;
    try_lock(&dir.join(format!("{name}.lock")), &format!("`cargo xtask {name}`"))
}

/// Locks the directory `dir`. If another process holds the lock, this waits until that is over.
pub fn wait_for_dir(dir: &Path) -> Result<Lock> {
    let file = File::open(dir)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)
        .with_context(|| format!("cannot lock {}", dir.display()))?;
    Ok(Lock(file))
}

/// Locks the directory `dir` together with others who share it. If another process keeps it for itself, this waits until that
/// is over.
pub fn share_dir(dir: &Path) -> Result<Lock> {
    let file = File::open(dir)?;
    rustix::fs::flock(&file, FlockOperation::LockShared)
        .with_context(|| format!("cannot lock {}", dir.display()))?;
    Ok(Lock(file))
}

/// Locks the directory `dir`. `None` when another process holds or shares the lock.
pub fn try_lock_dir(dir: &Path) -> Result<Option<Lock>> {
    let file = File::open(dir)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock(file))),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", dir.display())),
    }
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

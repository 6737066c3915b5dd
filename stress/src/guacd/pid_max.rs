//! How many tasks may this machine have? `kernel.pid_max` is 32,768 where neither systemd nor an administrator has raised it.

use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::{machine, plan::Plan};

/// Where the kernel has it.
const FILE: &str = "/proc/sys/kernel/pid_max";

/// What systemd sets on 64-bit machines, and the most that the kernel takes.
const MOST: u64 = 4_194_304;

/// `kernel.pid_max`, raised until this is dropped.
#[derive(Debug)]
pub struct RaisedPidMax {
    file: PathBuf,
    /// The limit before.
    pub before: u64,
    /// The limit now.
    pub now: u64,
}

impl RaisedPidMax {
    /// Raises it if a guacd is to be started here for more sessions than it allows. Without permission, nothing is changed.
    pub fn for_plan(plan: &Plan) -> Option<Self> {
        let sessions = u64::from(plan.scenario.size().open_at_once);
        let is_short = machine::limits(&plan.load)
            .iter()
            .any(|limit| limit.source == "kernel.pid_max" && limit.sessions < sessions);
        is_short.then(|| Self::raise(Path::new(FILE), MOST)).flatten()
    }

    fn raise(file: &Path, now: u64) -> Option<Self> {
        let before = fs::read_to_string(file).ok()?.trim().parse().ok()?;
        fs::write(file, now.to_string()).ok()?;
        Some(Self { file: file.into(), before, now })
    }
}

impl Drop for RaisedPidMax {
    fn drop(&mut self) {
        let _ = fs::write(&self.file, self.before.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_raised_is_put_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "32768\n").unwrap();
        let raised = RaisedPidMax::raise(file.path(), MOST).unwrap();
        assert_eq!((raised.before, raised.now), (32_768, MOST));
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "4194304");
        drop(raised);
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "32768");
    }

    #[test]
    fn without_permission_nothing_is_raised() {
        assert!(RaisedPidMax::raise(Path::new("/proc/version"), MOST).is_none());
        assert!(RaisedPidMax::raise(Path::new("/nowhere"), MOST).is_none());
    }
}

//! Which processes are the test's own, and what do they do?

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid};

use super::wait_until;

/// Makes this process the parent of those whose own parent ends, so that [`Descendants`] misses none.
pub fn adopt_orphans() -> Result<()> {
    set_child_subreaper(Some(getpid())).context("become the parent of orphans")
}

/// The processes that descend from this one, from some moment on. Those of anybody else on the machine do not count.
pub struct Descendants {
    before: BTreeSet<i32>,
}

impl Descendants {
    /// From now on.
    pub fn since_now() -> Result<Descendants> {
        Ok(Descendants { before: descendants()?.into_iter().map(|(pid, _)| pid).collect() })
    }

    /// Those that have started since and live, with this name or with any. The oldest first.
    pub fn called(&self, name: Option<&str>) -> Result<Vec<i32>> {
        let mut found = descendants()?;
        found.retain(|(pid, comm)| {
            // Orphans are our children now, and have to be reaped.
            let is_dead =
                waitpid(Pid::from_raw(*pid), WaitOptions::NOHANG).is_ok_and(|status| status.is_some());
            !is_dead && !self.before.contains(pid) && !is_server(*pid) && name.is_none_or(|name| comm == name)
        });
        Ok(found.into_iter().map(|(pid, _)| pid).collect())
    }

    /// Checks that none is left.
    pub fn ensure_gone(&self) -> Result<()> {
        let left = self.called(None)?;
        ensure!(left.is_empty(), "still running: {left:?}");
        Ok(())
    }
}

/// The variable that a test sets for the servers that it starts, which are no part of the run that is tested.
pub const SERVER_VARIABLE: &str = "GUACD_TEST_SERVER";

/// Whether a process was started as a server of the test, or by one.
fn is_server(pid: i32) -> bool {
    // xrdp starts its desktops with another environment, but in its own namespace.
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    if namespace(&pid.to_string()).is_some_and(|other| Some(other) != namespace("self")) {
        return true;
    }
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|entry| entry.starts_with(SERVER_VARIABLE.as_bytes()))
}

/// The process ids and names of all descendants, the oldest first.
fn descendants() -> Result<Vec<(i32, String)>> {
    let all = procfs::process::all_processes()?;
    // A process may be gone by the time that it is looked at.
    let stats: Vec<_> = all.filter_map(|process| process.ok()?.stat().ok()).collect();
    let mut family = BTreeSet::from([getpid().as_raw_pid()]);
    loop {
        let before = family.len();
        family.extend(
            stats.iter().filter(|stat| family.contains(&stat.ppid)).map(|stat| stat.pid).collect::<Vec<_>>(),
        );
        if family.len() == before {
            break;
        }
    }
    family.remove(&getpid().as_raw_pid());
    let mut found: Vec<_> = stats.into_iter().filter(|stat| family.contains(&stat.pid)).collect();
    found.sort_by_key(|stat| (stat.starttime, stat.pid));
    Ok(found.into_iter().map(|stat| (stat.pid, stat.comm)).collect())
}

pub fn children(pid: i32) -> Vec<i32> {
    // Of every thread, as each may fork.
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .flat_map(|task| {
            let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
        })
        .collect()
}

/// The children of a process, their children, and so on.
pub fn descendants_of(pid: i32) -> Vec<i32> {
    let mut all = children(pid);
    for i in 0.. {
        let Some(&pid) = all.get(i) else { break };
        all.extend(children(pid));
    }
    all
}

/// What a process has open: `socket:[123]`, or a path.
pub fn descriptors(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let target = |path: PathBuf| Some(fs::read_link(path).ok()?.to_string_lossy().into_owned());
    entries.filter_map(|entry| target(entry.path())).collect()
}

pub fn cpu_time(pid: i32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

pub fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

/// Waits until these processes have ended. Returns those that are left when the time is up.
pub fn left_of(processes: &[i32], timeout: Duration) -> Vec<i32> {
    let mut left = processes.to_vec();
    let _ = wait_until("all of them end", timeout, || {
        left.retain(|pid| is_alive(*pid));
        left.is_empty()
    });
    left
}

pub fn kill(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

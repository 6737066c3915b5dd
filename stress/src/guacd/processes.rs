//! Which processes are ours, what may they use, and how do they end? Whatever is started here ends together with us.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, getpid, getrlimit, kill_process, set_child_subreaper,
    setrlimit, waitpid,
};

/// Makes every process that descends from this one, and whose parent dies, a child of this one.
///
/// # Errors
///
/// On a kernel that cannot.
pub fn adopt_orphans() -> Result<()> {
    set_child_subreaper(Some(getpid())).context("become the parent of orphans")
}

/// Lets this process, and what it starts, open as many files as the system allows.
///
/// # Errors
///
/// When the limit cannot be set.
pub fn raise_descriptor_limit() -> Result<u64> {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })
        .context("raise the limit of open files")?;
    Ok(hard.unwrap_or(u64::MAX))
}

/// Lets this user have as many processes as the system allows: guacd has a dozen tasks for each session.
pub fn raise_process_limit() {
    let hard = getrlimit(Resource::Nproc).maximum;
    // A failure does no harm: guacd reports it when there are too few.
    let _ = setrlimit(Resource::Nproc, Rlimit { current: hard, maximum: hard });
}

/// The environment variables that may have a target's password, and its private key. No process that is started here
/// needs them.
pub const SECRETS: [&str; 2] = ["GUAC_STRESS_PASSWORD", "GUAC_STRESS_PRIVATE_KEY"];

/// Starts a program that gets SIGTERM when the calling thread ends, that the terminal's Ctrl-C does not reach, and that
/// inherits no secrets.
///
/// # Errors
///
/// When it cannot be started.
pub fn spawn_tied(command: &mut Command) -> io::Result<Child> {
    command.process_group(0);
    for secret in SECRETS {
        command.env_remove(secret);
    }
    shared::parent_death::die_with_parent(command);
    command.spawn()
}

/// Ends a child: SIGTERM, a while to comply, SIGKILL.
pub fn terminate(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    if let Ok(Some(status)) = child.try_wait() {
        return Some(status);
    }
    let _ = kill_process(pid_of(child), Signal::TERM);
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    child.wait().ok()
}

/// The process id of a child.
pub fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// This process's children.
pub fn children() -> Vec<Pid> {
    let me = getpid().as_raw_pid();
    let Ok(all) = procfs::process::all_processes() else { return Vec::new() };
    // A process may end before it is read.
    let stats = all.filter_map(|process| process.ok()?.stat().ok());
    stats.filter(|stat| stat.ppid == me).filter_map(|stat| Pid::from_raw(stat.pid)).collect()
}

/// Kills and reaps this process's children, and those that become its children thereby; all but `spared`.
///
/// A child cannot vanish before it is reaped here, so none of these ids can belong to a stranger.
pub fn kill_children(spared: &[Pid]) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        let mut left = false;
        for pid in children().into_iter().filter(|pid| !spared.contains(pid)) {
            left = true;
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
        if !left {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Read, process::Stdio};

    #[test]
    fn what_is_started_inherits_no_secrets() {
        let mut command = Command::new("env");
        command.env(SECRETS[0], "the password").env(SECRETS[1], "the key").env("OTHER", "kept");
        let mut child = spawn_tied(command.stdout(Stdio::piped())).unwrap();
        let mut output = String::new();
        child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        child.wait().unwrap();
        assert!(output.contains("OTHER=kept") && !output.contains("GUAC_STRESS"), "{output}");
    }
}

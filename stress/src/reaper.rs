//! What is left when this program is killed? No process, and no file except the report and guacd's logs. The program runs as
//! two processes: a reaper that only waits, and a worker that does the rest.
//!
//! guacd's children survive guacd, and one that hangs survives the loss of its connection too, so the kernel's parent-death
//! signal is not enough. The reaper is the subreaper of everything below it: when the worker is gone, however it went,
//! whatever it left behind has become the reaper's, and is killed; and the directory with its temporary files is removed.
//! When it is the reaper that is killed, the worker gets SIGTERM from the kernel, and ends as if it had been interrupted.
//!
//! A process can have children that it never started: they stay with it when it executes another program. The reaper
//! spares those. It cannot distinguish their orphans from the worker's, and kills these too.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, kill_process, set_parent_process_death_signal, setpgid,
    waitpid,
};
use signal_hook::{
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::guacd::processes;

/// The exit code of an interrupted run.
pub const INTERRUPTED: u8 = 130;

/// Signals that come closer than this to the first one are the same Ctrl-C: the terminal sends it to all processes of a
/// group, of which one may pass it on.
const SAME_INTERRUPTION: Duration = Duration::from_millis(500);

/// Runs the worker under a reaper, and gives its exit code. The worker is given a directory for its temporary files,
/// which nobody else may read. Call it before there is any other thread.
///
/// # Errors
///
/// When the process cannot be split in two.
pub fn run(worker: impl FnOnce(&Path) -> ExitCode) -> Result<ExitCode> {
    processes::adopt_orphans()?;
    let not_ours = processes::children();
    let scratch = tempfile::Builder::new()
        .prefix("guac-stress-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .with_context(|| format!("create a directory in {}", std::env::temp_dir().display()))?;
    let reaper = getpid();
    // SAFETY: there is only one thread yet, so the child has a whole copy of everything, locks included.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()).context("start a second process"),
        0 => {
            set_parent_process_death_signal(Some(Signal::TERM)).context("tie the worker to its reaper")?;
            if getppid() != Some(reaper) {
                return Ok(ExitCode::from(INTERRUPTED));
            }
            // The terminal's Ctrl-C goes to the reaper alone, which passes it on once.
            let _ = setpgid(None, None);
            let code = worker(scratch.path());
            if getppid() == Some(reaper) {
                // The reaper removes it, once nobody can use it any more.
                let _ = scratch.keep();
            }
            Ok(code)
        }
        pid => guard(Pid::from_raw(pid).context("fork gave no process id")?, &not_ours),
    }
}

/// Passes signals on to the worker until it ends; a second one ends it.
fn guard(worker: Pid, not_ours: &[Pid]) -> Result<ExitCode> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGCHLD]).context("handle signals")?;
    let mut interrupted = None::<Instant>;
    loop {
        if let Some((_, status)) =
            waitpid(Some(worker), WaitOptions::NOHANG).context("wait for the worker")?
        {
            processes::kill_children(not_ours);
            let code = match status.exit_status() {
                // What Rust makes of a panic, which is a failure like any other.
                Some(101) => 1,
                Some(code) => u8::try_from(code).unwrap_or(1),
                None if interrupted.is_some() => INTERRUPTED,
                None => 1,
            };
            return Ok(ExitCode::from(code));
        }
        for signal in signals.wait().filter(|&signal| signal != SIGCHLD) {
            let pass_on = match (interrupted, signal) {
                (Some(first), _) if first.elapsed() < SAME_INTERRUPTION => continue,
                (Some(_), _) => Signal::KILL,
                (None, SIGINT) => Signal::INT,
                (None, _) => Signal::TERM,
            };
            interrupted.get_or_insert_with(Instant::now);
            let _ = kill_process(worker, pass_on);
        }
    }
}

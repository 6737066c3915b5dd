//! What remains when this program is killed? Nothing. It runs as two processes: a guardian that does nothing but wait, and
//! the worker that does all the rest.
//!
//! guacd's children survive guacd, and one that hangs survives the loss of its connection too, so no signal on death of a
//! parent is enough. The guardian is the subreaper of everything below it: when the worker is gone, however it went,
//! whatever it left behind has become the guardian's, and is killed. When it is the guardian that is killed, the worker
//! gets SIGTERM from the kernel, and ends as if it had been interrupted.

use std::process::ExitCode;

use anyhow::{Context, Result};
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, kill_process, set_parent_process_death_signal, setpgid,
    waitpid,
};
use signal_hook::{
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::processes;

/// The exit code of an interrupted run.
pub const INTERRUPTED: u8 = 130;

/// Runs the worker under a guardian, and gives its exit code. Call it before there is any other thread.
///
/// # Errors
///
/// When the process cannot be split in two.
pub fn run(worker: impl FnOnce() -> ExitCode) -> Result<ExitCode> {
    processes::adopt_orphans()?;
    let guardian = getpid();
    // SAFETY: there is only one thread yet, so the child has a whole copy of everything, locks included.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()).context("start a second process"),
        0 => {
            set_parent_process_death_signal(Some(Signal::TERM)).context("tie the worker to its guardian")?;
            if getppid() != Some(guardian) {
                return Ok(ExitCode::from(INTERRUPTED));
            }
            // The terminal's Ctrl-C goes to the guardian alone, which passes it on once.
            let _ = setpgid(None, None);
            Ok(worker())
        }
        pid => guard(Pid::from_raw(pid).context("fork gave no process id")?),
    }
}

/// Passes signals on to the worker until it ends; a second one ends it.
fn guard(worker: Pid) -> Result<ExitCode> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGCHLD]).context("handle signals")?;
    let mut interruptions = 0;
    loop {
        if let Some((_, status)) =
            waitpid(Some(worker), WaitOptions::NOHANG).context("wait for the worker")?
        {
            processes::kill_children(&[]);
            let code = match status.exit_status() {
                // What Rust makes of a panic, which is a failure like any other.
                Some(101) => 1,
                Some(code) => u8::try_from(code).unwrap_or(1),
                None if interruptions > 0 => INTERRUPTED,
                None => 1,
            };
            return Ok(ExitCode::from(code));
        }
        for signal in signals.wait().filter(|&signal| signal != SIGCHLD) {
            interruptions += 1;
            let pass_on = match signal {
                _ if interruptions > 1 => Signal::KILL,
                SIGINT => Signal::INT,
                _ => Signal::TERM,
            };
            let _ = kill_process(worker, pass_on);
        }
    }
}

//! How are other programs run? With their output in a log file. Ctrl-C ends them, and so does the end of xtask.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use duct::Expression;
use fs_err::{self as fs, File};
use rustix::process::{Pid, Signal};
use shared::parent_death;

use crate::failure::Failure;
use crate::ui;

/// How many lines of a log an error shows.
const TAIL_LINES: usize = 20;

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Handles SIGINT, SIGTERM and SIGHUP from now on: they end the program that is being run, and become an error, so that
/// destructors clean up.
pub fn watch_for_signals() {
    let flag = INTERRUPTED.get_or_init(Arc::default);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        // A second signal ends xtask at once. (Both calls fail only for signals that cannot be caught.)
        let _ = signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(flag));
        let _ = signal_hook::flag::register(signal, Arc::clone(flag));
    }
}

/// An error if a signal has asked xtask to stop.
pub fn check_interrupted() -> Result<()> {
    if INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
        bail!(Failure::Interrupted);
    }
    Ok(())
}

/// Whether a signal has asked xtask to stop since the last call. For callers that pass the signal on and do not stop.
pub fn take_interruption() -> bool {
    INTERRUPTED.get().is_some_and(|flag| flag.swap(false, Ordering::Relaxed))
}

/// What happens to a running program when a signal asks xtask to stop.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum WhenInterrupted {
    /// It gets SIGTERM.
    End,
    /// It finishes: it would leave things broken if it stopped half-way, as apt-get does.
    Finish,
}

/// Runs a program, and appends its output to `log`. The error of a program that fails has the last lines of the log and its
/// path. `what` names the program in errors.
pub fn logged(
    step: &ui::Step,
    what: &str,
    command: Expression,
    log: &Path,
    when_interrupted: WhenInterrupted,
) -> Result<()> {
    let end = when_interrupted == WhenInterrupted::End;
    let mut file = File::options().create(true).append(true).open(log)?;
    let output = file.try_clone()?;
    let handle = command
        .stdin_null()
        .stderr_to_stdout()
        .stdout_file(output)
        .unchecked()
        .before_spawn(move |command| {
            // Its own process group: a signal to the group reaches make's children as well as make, and the terminal's
            // Ctrl-C reaches none of them before xtask has seen it.
            command.process_group(0);
            if end {
                parent_death::die_with_parent(command);
            }
            Ok(())
        })
        .start()
        .with_context(|| format!("cannot start {what}"))?;
    loop {
        if let Some(output) = handle.wait_timeout(Duration::from_millis(100))? {
            check_interrupted()?;
            if output.status.success() {
                return Ok(());
            }
            return Err(anyhow!("{}\nthe whole log: {}", tail(log, TAIL_LINES), log.display())
                .context(format!("{what} failed ({})", output.status)));
        }
        if end && check_interrupted().is_err() {
            for group in handle.pids().into_iter().filter_map(|pid| Pid::from_raw(pid.try_into().ok()?)) {
                // The group may be gone already.
                let _ = rustix::process::kill_process_group(group, Signal::TERM);
            }
            handle.wait()?;
            bail!(Failure::Interrupted);
        }
        step.busy_with(last_line(&mut file).unwrap_or_default());
    }
}

/// Adds advice to the error of a program: that of the first pair in `advice` whose words are in the log. The error then exits
/// with 3.
pub fn advise(result: Result<()>, log: &Path, advice: &[(&str, &str)]) -> Result<()> {
    result.or_else(|error| {
        check_interrupted()?;
        let bytes = fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        match advice.iter().find(|(words, _)| text.contains(words)) {
            Some((_, advice)) => bail!(Failure::Preflight(format!("{error:#}\n{advice}"))),
            None => Err(error),
        }
    })
}

/// The first line that a program prints with the argument `argument`, such as `--version`, or `None` if it fails. `program`
/// may contain arguments, as `CC` may.
pub fn version_line(program: &str, argument: &str) -> Option<String> {
    let mut words = program.split_whitespace();
    let command = duct::cmd(words.next()?, words.chain([argument]));
    let output = command.stderr_to_stdout().stdout_capture().unchecked().run().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then(|| text.trim().lines().next().unwrap_or_default().trim_end().to_owned())
}

fn tail(log: &Path, lines: usize) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn last_line(log: &mut File) -> Option<String> {
    let mut log = log.try_clone().ok()?;
    let length = log.seek(SeekFrom::End(0)).ok()?;
    log.seek(SeekFrom::Start(length.saturating_sub(400))).ok()?;
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes).ok()?;
    String::from_utf8_lossy(&bytes).lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
}

//! How are other programs run? With their output in a log file. Ctrl-C ends them, and so does the end of xtask.

use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use duct::{Expression, Handle};
use fs_err::{self as fs, File};
use rustix::process::{Pid, Signal};
use shared::parent_death;

use crate::failure::Failure;
use crate::ui;

/// How many lines of a log an error shows, and in how many bytes at the log's end they are looked for.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: u64 = 64 << 10;

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Handles SIGINT, SIGTERM and SIGHUP from now on. They end the program that [`logged`] runs, and become an error, so that
/// destructors clean up. A second signal ends xtask at once, unless [`take_interruption`] has taken the first.
pub fn watch_for_signals() {
    let flag = INTERRUPTED.get_or_init(Arc::default);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        // Both calls fail only for signals that cannot be caught.
        let _ = signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(flag));
        let _ = signal_hook::flag::register(signal, Arc::clone(flag));
    }
}

/// Fails with [`Failure::Interrupted`] if a signal has asked xtask to stop.
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

/// Runs a program, and appends its output to `log`. While it runs, `step` shows the last line. `what` names the program in
/// errors.
///
/// # Errors
///
/// When the program cannot be started or fails: the error has the last lines of the log and its path.
/// [`Failure::Interrupted`] when a signal has asked xtask to stop.
pub fn logged(
    step: &ui::Step,
    what: &str,
    command: Expression,
    log: &Path,
    when_interrupted: WhenInterrupted,
) -> Result<()> {
    let file = File::options().create(true).append(true).open(log)?;
    let handle = in_its_own_group(command.stderr_to_stdout().stdout_file(file), when_interrupted)
        .start()
        .with_context(|| format!("cannot start {what}"))?;
    let status = wait(&handle, when_interrupted, || step.busy_with(last_line(log)))?;
    if status.success() {
        return Ok(());
    }
    Err(anyhow!("{}\nthe whole log: {}", tail(log), log.display())
        .context(format!("{what} failed ({status})")))
}

/// Runs a program whose output the user sees. Returns whether it succeeded.
///
/// # Errors
///
/// When the program cannot be started. [`Failure::Interrupted`] when a signal has asked xtask to stop: the program and those
/// that it has started get SIGTERM.
pub fn shown(command: Expression) -> Result<bool> {
    let handle = in_its_own_group(command, WhenInterrupted::End).start()?;
    Ok(wait(&handle, WhenInterrupted::End, || ())?.success())
}

/// The same program in its own process group: a signal to the group reaches make's children as well as make, and the terminal's
/// Ctrl-C reaches none of them before xtask has seen it.
fn in_its_own_group(command: Expression, when_interrupted: WhenInterrupted) -> Expression {
    command.stdin_null().unchecked().before_spawn(move |command| {
        command.process_group(0);
        if when_interrupted == WhenInterrupted::End {
            parent_death::die_with_parent(command);
        }
        Ok(())
    })
}

/// Waits for the end of a program that has its own group. Calls `busy` meanwhile.
fn wait(handle: &Handle, when_interrupted: WhenInterrupted, busy: impl Fn()) -> Result<ExitStatus> {
    loop {
        if let Some(output) = handle.wait_timeout(Duration::from_millis(100))? {
            check_interrupted()?;
            return Ok(output.status);
        }
        if when_interrupted == WhenInterrupted::End && check_interrupted().is_err() {
            for group in handle.pids().into_iter().filter_map(|pid| Pid::from_raw(pid.try_into().ok()?)) {
                // The group may be gone already.
                let _ = rustix::process::kill_process_group(group, Signal::TERM);
            }
            handle.wait()?;
            bail!(Failure::Interrupted);
        }
        busy();
    }
}

/// Runs a program, and returns what it prints, without white space around it. `what` names the program in errors.
///
/// # Errors
///
/// When the program cannot be run or fails: the error has what it wrote to standard error.
pub fn read(what: &str, command: Expression) -> Result<String> {
    let output = command
        .stdin_null()
        .stdout_capture()
        .stderr_capture()
        .unchecked()
        .run()
        .with_context(|| format!("cannot run {what}"))?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what} failed: {}", message.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Adds advice to the error of a program whose output is in `log`. Each pair in `advice` has words that a program prints, and
/// what to do about them. The first pair whose words are in the log is taken, and the error becomes [`Failure::Preflight`].
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

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = end_of(log, TAIL_BYTES).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// The last line of a log that is not blank, or nothing.
fn last_line(log: &Path) -> String {
    let text = end_of(log, 400).unwrap_or_default();
    // A progress bar ends its lines with a carriage return.
    text.rsplit(['\n', '\r']).find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
}

/// The last `length` bytes of a log.
fn end_of(log: &Path, length: u64) -> io::Result<String> {
    let mut file = File::open(log)?;
    let size = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(size.saturating_sub(length)))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_last_that_is_not_blank() {
        let dir = tempfile::TempDir::new().unwrap();
        let log = dir.path().join("log");
        assert_eq!(last_line(&log), "");
        for (text, line) in [("", ""), ("one\ntwo\n\n  \n", "two"), ("1 %\r2 %\r", "2 %")] {
            fs::write(&log, text).unwrap();
            assert_eq!(last_line(&log), line);
        }
        fs::write(&log, "x\n".repeat(100_000) + "end\n").unwrap();
        assert_eq!((last_line(&log).as_str(), tail(&log).lines().count()), ("end", TAIL_LINES));
    }
}

//! How is guac-stress compiled and run?

use std::io::Seek;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::failure::Failure;
use crate::host::run::{self, WhenInterrupted};
use crate::host::{files, layout};
use crate::ui;

/// The directory for guacd's logs and the other files of load tests. It is created if it is not there.
pub fn logs() -> Result<PathBuf> {
    let logs = layout::target_dir().join("guacd/stress");
    fs_err::create_dir_all(&logs)?;
    Ok(logs)
}

/// Compiles `guac-stress`, and returns a command that runs it.
pub fn command(offline: bool) -> Result<Command> {
    Ok(Command::new(compile(&logs()?, offline)?))
}

/// Runs `command`, which is guac-stress, with a plan on its standard input.
///
/// # Errors
///
/// As for [`run`].
pub fn run_plan(mut command: Command, plan: &impl Serialize) -> Result<()> {
    let mut file = tempfile::tempfile().context("create a file for the plan of the run")?;
    serde_json::to_writer(&file, plan).context("write the plan of the run")?;
    file.rewind()?;
    command.arg("plan").stdin(file);
    hand_over(command)
}

/// Compiles `guac-stress`, and holds `count` sessions through the guacd in `prefix`, which the report calls `variant`.
///
/// # Errors
///
/// As for [`run`].
pub fn hold(variant: &str, prefix: &Path, count: u32, offline: bool) -> Result<()> {
    let mut command = command(offline)?;
    command.args([format!("--prefix={variant}={}", prefix.display()), format!("--count={count}")]);
    command.arg("--logs").arg(logs()?).stdin(Stdio::null());
    hand_over(command)
}

/// Compiles `guac-stress`, and runs it with `arguments`. The first of them may be a scenario.
///
/// # Errors
///
/// [`Failure::Stress`] with the exit code of guac-stress, if it is not 0.
pub fn run(arguments: &[String], offline: bool) -> Result<()> {
    let mut command = command(offline)?;
    command.args(arguments).arg("--logs").arg(logs()?).stdin(Stdio::null());
    hand_over(command)
}

/// Compiles `guac-stress`, runs it with `arguments`, and returns its report as JSON. The report for people goes to standard error.
/// A missed threshold is no error.
///
/// # Errors
///
/// [`Failure::Stress`] with any other exit code of guac-stress.
pub fn measure(arguments: &[String], offline: bool) -> Result<Vec<u8>> {
    let report = NamedTempFile::new().context("create a file for the report of the run")?;
    let mut command = command(offline)?;
    command.args(arguments).arg("--json").arg(report.path()).arg("--logs").arg(logs()?);
    command.stdin(Stdio::null()).stdout(std::io::stderr());
    match hand_over(command) {
        Err(error) if !matches!(error.downcast_ref(), Some(Failure::Stress(5))) => Err(error),
        _ => Ok(fs_err::read(report.path())?),
    }
}

/// Holds `count` sessions through the guacd at `address` (`HOST:PORT`), with the program `guac_stress`. The report goes to
/// standard error.
///
/// # Errors
///
/// As for [`run`].
pub fn load(guac_stress: &Path, address: &str, count: u32) -> Result<()> {
    let mut command = Command::new(guac_stress);
    command.args([format!("--guacd={address}"), format!("--count={count}")]);
    command.stdin(Stdio::null()).stdout(std::io::stderr());
    hand_over(command)
}

/// The arguments of cargo that choose `guac-stress` and the libraries of --key-limit and --pretend-cores. `nix/guac-stress.nix` repeats them.
pub const PACKAGES: [&str; 3] = ["--package=guac-stress", "--package=key-limit", "--package=pretend-cores"];

/// Compiles `guac-stress` and its libraries, with the compiler's output below `logs`. Returns the path of `guac-stress`. The
/// libraries are in the same directory.
pub fn compile(logs: &Path, offline: bool) -> Result<PathBuf> {
    let progress = ui::Step::start("guac-stress");
    let log = logs.join("compile.log");
    files::begin_log(&log)?;
    let arguments = [&["build", "--locked", "--release"], &PACKAGES[..]].concat();
    let cargo = layout::cargo(&arguments, offline);
    run::logged(&progress, "compiling guac-stress", cargo, &log, WhenInterrupted::End)?;
    progress.done("");
    Ok(layout::target_dir().join("release/guac-stress"))
}

/// Runs `guac-stress` on xtask's terminal, and passes signals on to it. An exit code other than 0 becomes an error.
fn hand_over(mut command: Command) -> Result<()> {
    // In its own process group, so that Ctrl-C reaches it once: a second signal would cut its report short.
    command.process_group(0);
    shared::parent_death::die_with_parent(&mut command);
    let mut child = command.spawn().context("cannot start guac-stress")?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if run::take_interruption() {
            // It ends what it has started, prints its report, and exits.
            let _ = kill_process(Pid::from_child(&child), Signal::INT);
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(130), _) => Err(Failure::Interrupted.into()),
        (Some(code), _) => Err(Failure::Stress(u8::try_from(code).unwrap_or(1)).into()),
        (None, signal) => bail!("guac-stress was ended by signal {}", signal.unwrap_or_default()),
    }
}

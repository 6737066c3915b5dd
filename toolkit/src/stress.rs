//! How is guac-stress compiled and run?

use std::io::Seek;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::failure::Failure;
use crate::host::run::{self, WhenInterrupted};
use crate::host::{files, layout};
use crate::ui;

/// The directory for guacd's logs, and for what else load tests leave. It is created.
pub fn logs() -> Result<PathBuf> {
    let logs = layout::target_dir().join("guacd/stress");
    fs_err::create_dir_all(&logs)?;
    Ok(logs)
}

/// Compiles `guac-stress`, and prepares a run of it.
pub fn command(offline: bool) -> Result<Command> {
    Ok(Command::new(compile(&logs()?, offline)?))
}

/// Runs a plan of guac-stress, which reads it from standard input.
pub fn run_plan(mut command: Command, plan: &impl Serialize) -> Result<()> {
    let mut file = tempfile::tempfile().context("create a file for the plan of the run")?;
    serde_json::to_writer(&file, plan).context("write the plan of the run")?;
    file.rewind()?;
    command.arg("plan").stdin(file);
    hand_over(command)
}

/// Compiles `guac-stress`, and holds `count` sessions through the guacd in a prefix.
pub fn hold(variant: &str, prefix: &Path, count: u32, offline: bool) -> Result<()> {
    let mut command = command(offline)?;
    command.args([format!("--prefix={variant}={}", prefix.display()), format!("--count={count}")]);
    command.arg("--logs").arg(logs()?).stdin(Stdio::null());
    hand_over(command)
}

/// Compiles `guac-stress`, and runs it with `arguments`, of which the first may name a scenario.
pub fn run(arguments: &[String], offline: bool) -> Result<()> {
    let mut command = command(offline)?;
    command.args(arguments).arg("--logs").arg(logs()?).stdin(Stdio::null());
    hand_over(command)
}

/// Holds `count` sessions through the guacd at `address`. The report goes to standard error.
pub fn load(address: &str, count: u32, offline: bool) -> Result<()> {
    let mut command = command(offline)?;
    command.args([format!("--guacd={address}"), format!("--count={count}")]);
    command.stdin(Stdio::null()).stdout(std::io::stderr());
    hand_over(command)
}

/// Arguments of cargo that choose `guac-stress` and its preload library. `nix/guac-stress.nix` has the same.
pub const PACKAGES: [&str; 2] = ["--package=guac-stress", "--package=key-limit"];

/// Compiles `guac-stress` and its preload library. Returns the path of `guac-stress`; the library is in the same directory.
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

/// Runs `guac-stress` on xtask's terminal, passes signals on to it, and returns its exit code as an error if it is not 0.
fn hand_over(mut command: Command) -> Result<()> {
    // Its own process group, so that Ctrl-C reaches it once: a second signal would cut its report short.
    command.process_group(0);
    shared::parent_death::die_with_parent(&mut command);
    let mut child = command.spawn().context("cannot start guac-stress")?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if run::take_interruption() {
            // Before it exits it prints its report, and ends what it has started.
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

//! How is guac-stress compiled and run?

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::failure::Failure;
use crate::host::run::{self, WhenInterrupted};
use crate::host::{files, layout};
use crate::ui;

/// Compiles `guac-stress`, and runs it.
pub fn run(arguments: Vec<OsString>, offline: bool) -> Result<()> {
    hand_over(command(arguments, offline)?)
}

/// Compiles `guac-stress`, and prepares a run of it.
pub fn command(mut arguments: Vec<OsString>, offline: bool) -> Result<Command> {
    let logs = layout::target_dir().join("guacd/stress");
    let guac_stress = compile(&logs, offline)?;
    arguments.push(format!("--logs={}", logs.display()).into());
    let mut command = Command::new(guac_stress);
    command.args(arguments);
    Ok(command)
}

/// Holds `count` sessions through the guacd at `address`. The report goes to standard error.
pub fn load(address: &str, count: u32, offline: bool) -> Result<()> {
    let logs = layout::target_dir().join("guacd/stress");
    let mut command = Command::new(compile(&logs, offline)?);
    command.args([format!("--guacd={address}"), format!("--count={count}")]);
    command.stdout(std::io::stderr());
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
pub fn hand_over(mut command: Command) -> Result<()> {
    // Its own process group, so that Ctrl-C reaches it once: a second signal would cut its report short.
    command.process_group(0);
    shared::tie::to_parent(&mut command);
    let mut child = command.stdin(Stdio::null()).spawn().context("cannot start guac-stress")?;
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

//! `cargo xtask stress`: builds what is missing, and hands the rest to `guac-stress`.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use guac_stress::flags::Target;
use rustix::process::{Pid, Signal, kill_process};

use crate::build::{self, Options};
use crate::doctor::{self, Need};
use crate::failure::Failure;
use crate::run::{self, WhenInterrupted};
use crate::upstream::Release;
use crate::{flags, layout, manifest, preload, ui};

/// Of what AddressSanitizer looks for, not: what is still there when a process ends; that upstream's plugins share a static
/// library; and threads that leave with pthread_exit, whose stacks it misreads when it takes back its alternate one.
const ASAN_OPTIONS: &str = "detect_leaks=0:detect_odr_violation=0:use_sigaltstack=0";

/// Runs the load that the flags describe.
pub fn stress(flags: &flags::Stress) -> Result<()> {
    let mut arguments = flags.load.to_args();
    if flags.preload {
        let library = preload::build(None, flags.setup.source.offline)?;
        arguments.push(format!("--preload={}", library.display()).into());
    }
    if flags.load.guacd.is_none() {
        let mut needs = vec![Need::Build, Need::Ssh];
        if flags.load.target == Target::OpenSsh {
            needs.push(Need::OpenSsh);
        }
        doctor::preflight(&needs, build::PROTOCOLS, &flags.setup)?;
        let release = Release::load(&flags.release.release)?;
        let sanitizers: &[&str] = if flags.sanitize { &build::SANITIZERS } else { &[] };
        let configure_args: Vec<_> = sanitizers.iter().map(|argument| (*argument).to_owned()).collect();
        let options = Options { configure_args: &configure_args, ..Options::default() };
        arguments.push(format!("--release={}", release.version).into());
        for &variant in flags.variant.list() {
            let prefix = build::build_variant(&release, variant, &flags.setup, &options)?;
            let built = manifest::protocols(&prefix)?;
            let mut wanted = flags.load.protocol.each().iter().map(|protocol| protocol.as_str());
            if let Some(missing) = wanted.find(|wanted| !built.iter().any(|protocol| protocol == wanted)) {
                bail!(Failure::Preflight(format!(
                    "{} was built without {missing}, which the sessions speak: `cargo xtask doctor` says what it needs",
                    prefix.display()
                )));
            }
            arguments.push(format!("--prefix={}={}", variant.name(), prefix.display()).into());
        }
    }
    let mut command = command(arguments, flags.setup.source.offline)?;
    if flags.sanitize {
        let users = std::env::var("ASAN_OPTIONS").unwrap_or_default();
        command.env("ASAN_OPTIONS", format!("{ASAN_OPTIONS}:{users}"));
    }
    hand_over(command)
}

/// Compiles `guac-stress`, and runs it.
pub fn run(arguments: Vec<OsString>, offline: bool) -> Result<()> {
    hand_over(command(arguments, offline)?)
}

fn command(mut arguments: Vec<OsString>, offline: bool) -> Result<Command> {
    let logs = layout::target_dir().join("guacd/stress");
    std::fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let guac_stress = compile(&logs, offline)?;
    arguments.push(format!("--logs={}", logs.display()).into());
    let mut command = Command::new(guac_stress);
    command.args(arguments);
    Ok(command)
}

/// Holds `count` sessions through the guacd at `address`. The table goes to standard error.
pub fn load(address: &str, count: u32, offline: bool) -> Result<()> {
    let logs = layout::target_dir().join("guacd/stress");
    std::fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let mut command = Command::new(compile(&logs, offline)?);
    command.args([format!("--guacd={address}"), format!("--count={count}")]);
    command.stdout(std::io::stderr());
    hand_over(command)
}

/// Compiles `guac-stress` and its preload library, and returns the former, beside which the latter lies.
pub fn compile(logs: &Path, offline: bool) -> Result<PathBuf> {
    let progress = ui::Step::start("guac-stress");
    let packages = ["build", "--locked", "--release", "--package=guac-stress", "--package=key-limit"];
    let log = logs.join("compile.log");
    std::fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
    let cargo = layout::cargo(&packages, offline);
    run::logged(&progress, "compiling guac-stress", cargo, &log, WhenInterrupted::End)?;
    progress.done("");
    Ok(layout::target_dir().join("release/guac-stress"))
}

/// Runs `guac-stress` with our terminal, and passes on the signals that reach us and the code that it exits with.
fn hand_over(mut command: Command) -> Result<()> {
    // Its own group, so that Ctrl-C reaches it once: a second signal would cut its report short.
    command.process_group(0);
    run::die_with_parent(&mut command);
    let mut child = command.stdin(Stdio::null()).spawn().context("cannot start guac-stress")?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if run::take_interruption() {
            // It reports what it has measured, and ends what it has started, before it exits.
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

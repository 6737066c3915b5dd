//! What does a whole invocation do? Start a target, then one guacd after another, load each, and report.

use std::{
    fmt,
    net::{SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    flags::{self, Cli, HostPort, Prefix},
    guacd::{Guacd, Start},
    guardian::INTERRUPTED,
    load::{self, Label},
    print::{self, Progress},
    processes,
    report::{Report, Run, SCHEMA_VERSION},
    session::Setup,
    target::Target,
};

/// Something is missing that a run needs: exit code 3. Says what to do about it.
#[derive(Debug)]
pub struct Preflight(pub String);

impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Preflight {}

/// Runs everything that the command line asks for, and gives the exit code.
pub fn run(cli: &Cli) -> ExitCode {
    match start_and_load(cli) {
        Ok(report) if report.interrupted => ExitCode::from(INTERRUPTED),
        Ok(report) if report.passed => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(5),
        Err(error) => {
            print::error(&error);
            ExitCode::from(if error.is::<Preflight>() { 3 } else { 1 })
        }
    }
}

fn start_and_load(cli: &Cli) -> Result<Report> {
    processes::adopt_orphans()?;
    enough_descriptors(cli)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the async runtime")?;
    // On this thread, which is the main one: what it starts dies with it.
    let report = runtime.block_on(async {
        let stop = stop_on_signals()?;
        let target = Target::start(&cli.load).await?;
        load_all(cli, &target, stop).await
    })?;
    runtime.shutdown_background();
    Ok(report)
}

/// Loads one guacd after another. What was measured is written and printed, whatever happens next.
async fn load_all(cli: &Cli, target: &Target, stop: watch::Receiver<bool>) -> Result<Report> {
    let guacds = match &cli.load.guacd {
        Some(address) => vec![Under::External(address)],
        None => cli.prefixes.iter().map(Under::Prefix).collect(),
    };
    let mut report = Report {
        schema_version: SCHEMA_VERSION,
        started_at_unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        interrupted: false,
        passed: false,
        runs: Vec::new(),
    };
    let all = guacds.len();
    let mut error = None;
    for guacd in guacds {
        if *stop.borrow() {
            break;
        }
        match load_one(cli, guacd, target, stop.clone()).await {
            Ok(run) => report.runs.push(run),
            Err(failed) => {
                error = Some(failed);
                break;
            }
        }
        report.interrupted = *stop.borrow();
        report.passed = report.runs.len() == all && Report::judged(&report.runs).all(Run::passed);
        write_json(cli, &report)?;
    }
    report.interrupted = *stop.borrow();
    match error {
        Some(error) if report.runs.is_empty() => return Err(error),
        Some(error) => {
            print::report(&report);
            return Err(error);
        }
        None => {}
    }
    write_json(cli, &report)?;
    print::report(&report);
    Ok(report)
}

/// What is loaded: a guacd that runs already, or one to be started.
enum Under<'a> {
    External(&'a HostPort),
    Prefix(&'a Prefix),
}

async fn load_one(cli: &Cli, under: Under<'_>, target: &Target, stop: watch::Receiver<bool>) -> Result<Run> {
    let (variant, address, mut guacd) = match under {
        Under::External(address) => ("external", reachable(cli, address)?, None),
        Under::Prefix(prefix) => {
            let guacd = start(cli, prefix, target)?;
            (prefix.variant.as_str(), guacd.address(), Some(guacd))
        }
    };
    let setup = Setup {
        guacd: address,
        login: target.login().clone(),
        timeout: cli.load.timeout,
        log: guacd.as_ref().map(Guacd::log),
    };
    let label = Label { release: cli.release.clone(), variant: variant.into() };
    let mut progress = Progress::new(variant, cli.load.count);
    let mut watch = |tally| progress.show(tally);
    let run = load::measure(label, &cli.load, Arc::new(setup), guacd.as_mut(), stop, &mut watch).await;
    progress.finish();
    // Its end can take seconds. Sessions were closed before, so it has little left to do.
    drop(guacd);
    Ok(run)
}

fn start(cli: &Cli, prefix: &Prefix, target: &Target) -> Result<Guacd> {
    let log_file = log_file(cli, &prefix.variant)?;
    let library = match &cli.key_limit_library {
        Some(library) => library.clone(),
        None => std::env::current_exe().context("find this program")?.with_file_name("libkey_limit.so"),
    };
    Guacd::start(&Start {
        prefix: &prefix.dir,
        port: cli.load.port,
        log_file: &log_file,
        key_limit: cli.load.key_limit.map(|limit| (library.as_path(), limit)),
        spared: target.processes(),
    })
    .with_context(|| format!("start the {} guacd", prefix.variant))
}

/// A log file of its own for each run, which stays.
fn log_file(cli: &Cli, variant: &str) -> Result<PathBuf> {
    let dir = cli.logs.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let name = variant.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let file = tempfile::Builder::new().prefix(&format!("guacd-{name}-")).suffix(".log").tempfile_in(&dir);
    let (_, path) = file
        .and_then(|file| Ok(file.keep()?))
        .with_context(|| format!("create a log in {}", dir.display()))?;
    Ok(path)
}

/// The address of a guacd that runs already; which has to be able to reach the target.
fn reachable(cli: &Cli, address: &HostPort) -> Result<SocketAddr> {
    let mut found = (address.host.as_str(), address.port)
        .to_socket_addrs()
        .with_context(|| format!("look up {address}"))?;
    let found = found.next().with_context(|| format!("{address} has no address"))?;
    if !found.ip().is_loopback() && !matches!(cli.load.target, flags::Target::Address(_)) {
        bail!(Preflight(format!(
            "the target '{}' listens on this machine's loopback interface, where the guacd at {address} cannot connect \
             to: give the HOST:PORT of an SSH server as --target",
            cli.load.target
        )));
    }
    Ok(found)
}

/// guacd inherits our limit of open files, and holds three for each session.
fn enough_descriptors(cli: &Cli) -> Result<()> {
    let limit = processes::raise_descriptor_limit()?;
    let need = u64::from(cli.load.count) * 3 + 64;
    if limit < need {
        bail!(Preflight(format!(
            "{} sessions need {need} open files, and the limit is {limit}: raise it with `ulimit -Hn {need}`, or give \
             a lower --count",
            cli.load.count
        )));
    }
    Ok(())
}

/// Becomes true at the first SIGINT, SIGTERM or SIGHUP. The guardian sees to the second.
fn stop_on_signals() -> Result<watch::Receiver<bool>> {
    let (stop, stopped) = watch::channel(false);
    let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
        .into_iter()
        .map(signal)
        .collect::<std::io::Result<Vec<_>>>()
        .context("handle signals")?;
    tokio::spawn(async move {
        let [interrupt, terminate, hangup] = &mut signals[..] else {
            unreachable!("three signals are handled")
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        stop.send_replace(true);
        // Kept, so that nobody takes the end of this task for a signal.
        std::future::pending::<()>().await;
    });
    Ok(stopped)
}

/// Readers see the whole of a report, or the one before.
fn write_json(cli: &Cli, report: &Report) -> Result<()> {
    let Some(file) = &cli.load.json else { return Ok(()) };
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> Result<()> {
        let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
        serde_json::to_writer_pretty(&mut temporary, report)?;
        std::io::Write::write_all(&mut temporary, b"\n")?;
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(temporary.path(), permissions)?;
        temporary.persist(file)?;
        Ok(())
    };
    write().with_context(|| format!("write the report to {}", file.display()))
}

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
    cli::{self, Cli, HostPort, Prefix},
    guacd::processes,
    guacd::start::{Guacd, Start},
    guardian::INTERRUPTED,
    load::session::Setup,
    machine,
    report::console::{self, Progress},
    report::json::Output,
    report::{Report, Run, SCHEMA_VERSION},
    scenario::{self, Label},
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

/// Runs everything that the command line asks for, with `scratch` for temporary files, and gives the exit code.
pub fn run(cli: &Cli, scratch: &Path) -> ExitCode {
    match start_and_load(cli, scratch) {
        Ok(report) if report.interrupted => ExitCode::from(INTERRUPTED),
        Ok(report) if report.passed => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(5),
        Err(error) => {
            console::error(&error);
            ExitCode::from(if error.is::<Preflight>() { 3 } else { 1 })
        }
    }
}

fn start_and_load(cli: &Cli, scratch: &Path) -> Result<Report> {
    let mut output = cli.load.json.as_deref().map(Output::prepare).transpose()?;
    processes::adopt_orphans()?;
    processes::raise_process_limit();
    enough_descriptors(cli)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the async runtime")?;
    // On this thread, which is the main one: what it starts dies with it.
    let report = runtime.block_on(async {
        let stop = stop_on_signals()?;
        let target = Target::start(&cli.load, scratch).await?;
        load_all(cli, scratch, &target, output.as_mut(), stop).await
    })?;
    runtime.shutdown_background();
    Ok(report)
}

/// Loads one guacd after another. What was measured is written and printed, whatever happens next.
async fn load_all(
    cli: &Cli,
    scratch: &Path,
    target: &Target,
    mut output: Option<&mut Output>,
    stop: watch::Receiver<bool>,
) -> Result<Report> {
    let guacds = match &cli.load.guacd {
        Some(address) => vec![Under::External(address)],
        None => cli.prefixes.iter().map(Under::Prefix).collect(),
    };
    let mut report = Report {
        schema_version: SCHEMA_VERSION,
        started_at_unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        interrupted: false,
        passed: false,
        machine: machine::limits(&cli.load),
        runs: Vec::new(),
    };
    console::machine(&report.machine, cli.load.open_at_once());
    let all = guacds.len();
    let mut error = None;
    for guacd in guacds {
        if *stop.borrow() {
            break;
        }
        let guacd = match load_one(cli, scratch, guacd, target, stop.clone()).await {
            Ok((run, guacd)) => {
                report.runs.push(run);
                guacd
            }
            Err(failed) => {
                error = Some(failed);
                break;
            }
        };
        report.interrupted = *stop.borrow();
        report.passed = report.runs.len() == all && Report::judged(&report.runs).all(Run::passed);
        if let Some(output) = &mut output {
            // It is written once more at the end, and a failure told then.
            let _ = output.write_so_far(&report);
        }
        // Its end can take seconds, and somebody who is impatient would cut them short: so after the report.
        drop(guacd);
    }
    report.interrupted = *stop.borrow();
    if report.runs.is_empty() {
        // Nothing was measured, so there is nothing to tell but why. An interruption comes with a report all the same.
        error.take().map_or(Ok(()), Err)?;
    }
    let written = output.map_or(Ok(()), |output| output.write(&report));
    console::report(&report);
    error.map_or(Ok(()), Err)?;
    written?;
    Ok(report)
}

/// What is loaded: a guacd that runs already, or one to be started.
enum Under<'a> {
    External(&'a HostPort),
    Prefix(&'a Prefix),
}

/// Gives back the guacd that was started too: to drop it ends it.
async fn load_one(
    cli: &Cli,
    scratch: &Path,
    under: Under<'_>,
    target: &Target,
    stop: watch::Receiver<bool>,
) -> Result<(Run, Option<Guacd>)> {
    let (variant, addresses, mut guacd) = match under {
        Under::External(address) => ("external", reachable(cli, address)?, None),
        Under::Prefix(prefix) => {
            let guacd = start(cli, scratch, prefix, target)?;
            (prefix.variant.as_str(), vec![guacd.address()], Some(guacd))
        }
    };
    let setup = Setup {
        guacd: addresses,
        logins: target.logins().to_vec(),
        timeout: cli.load.timeout,
        log: guacd.as_ref().map(Guacd::log),
        connections: Some(target.connections()),
    };
    let label = Label { release: cli.release.clone(), variant: variant.into(), logs: logs(cli) };
    let mut progress = Progress::new(variant, cli.load.count);
    let mut watch = |tally| progress.show(tally);
    let run = scenario::measure(label, &cli.load, Arc::new(setup), guacd.as_mut(), stop, &mut watch).await;
    progress.finish();
    Ok((run?, guacd))
}

fn start(cli: &Cli, scratch: &Path, prefix: &Prefix, target: &Target) -> Result<Guacd> {
    let library = match &cli.key_limit_library {
        Some(library) => library.clone(),
        None => std::env::current_exe().context("find this program")?.with_file_name("libkey_limit.so"),
    };
    Guacd::start(&Start {
        prefix: &prefix.dir,
        port: cli.load.port,
        name: &prefix.variant,
        logs: &logs(cli),
        scratch,
        preload: cli.preload.as_deref(),
        key_limit: cli.load.key_limit.map(|limit| (library.as_path(), limit)),
        spared: target.processes(),
    })
    .with_context(|| format!("start the {} guacd", prefix.variant))
}

/// Where logs go, and inputs that did harm.
fn logs(cli: &Cli) -> PathBuf {
    cli.logs.clone().unwrap_or_else(std::env::temp_dir)
}

/// The addresses of a guacd that runs already; which has to be able to reach the target.
fn reachable(cli: &Cli, address: &HostPort) -> Result<Vec<SocketAddr>> {
    let found = (address.host.as_str(), address.port)
        .to_socket_addrs()
        .with_context(|| format!("look up {address}"))?
        .collect::<Vec<_>>();
    if found.is_empty() {
        bail!("{address} has no address");
    }
    let is_here = found.iter().all(|found| found.ip().is_loopback());
    if !is_here && !matches!(cli.load.target, cli::Target::Address(_)) {
        bail!(Preflight(format!(
            "the target '{}' listens on this machine's loopback interface, where the guacd at {address} cannot connect \
             to: give the HOST:PORT of a server for --protocol {} as --target",
            cli.load.target,
            cli.load.protocol.as_str()
        )));
    }
    Ok(found)
}

/// We hold two files for each session, one towards guacd and one in the embedded target. What guacd itself needs of the same
/// limit is for the warning about this machine.
fn enough_descriptors(cli: &Cli) -> Result<()> {
    let limit = processes::raise_descriptor_limit()?;
    let need = u64::from(cli.load.open_at_once()) * 2 + 64;
    if limit < need {
        bail!(Preflight(format!(
            "{} sessions need {need} open files, and the limit is {limit}: have root raise it \
             (`ulimit -n {need}` in a shell of root's, or limits.conf), or give a lower --count",
            cli.load.open_at_once()
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

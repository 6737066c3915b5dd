//! What does a whole invocation do? It starts a target, then one guacd after another, loads each, and reports.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    guacd::{
        cores::Cores,
        processes,
        start::{Guacd, Start},
    },
    load::session::Setup,
    machine,
    plan::Plan,
    preflight::Preflight,
    reaper::INTERRUPTED,
    report::{
        Run, SCHEMA_VERSION, StressReport,
        console::{self, ProgressDisplay},
        file::{self, ReportFile},
    },
    reports::HTML,
    scenario::{self, Scenario, results::Context, run::measure},
    target::Targets,
    values::{HostPort, Prefix, Target},
};

/// Runs a plan, with `scratch` for temporary files, and returns the exit code.
pub fn run(plan: &Plan, scratch: &Path) -> ExitCode {
    match start_and_load(plan, scratch) {
        Ok(report) if report.interrupted => ExitCode::from(INTERRUPTED),
        Ok(report) if report.passed => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(5),
        Err(error) => {
            console::error(&error);
            ExitCode::from(if error.is::<Preflight>() { 3 } else { 1 })
        }
    }
}

fn start_and_load(plan: &Plan, scratch: &Path) -> Result<StressReport> {
    let mut outputs = outputs(plan)?;
    processes::adopt_orphans()?;
    processes::raise_process_limit();
    enough_descriptors(plan)?;
    // Before there are other threads, which inherit this.
    let cores = divide_processors(plan)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // Of those that were left to us.
        .worker_threads(thread::available_parallelism().map_or(2, |cores| cores.get().max(2)))
        .enable_all()
        .build()
        .context("start the async runtime")?;
    // On the main thread: what is started here ends with the thread that started it.
    let report = runtime.block_on(async {
        let stop = stop_on_signals()?;
        let can_be_cut = matches!(plan.scenario, Scenario::Chaos(_));
        let target = Targets::start(&plan.load, can_be_cut, scratch).await?;
        load_all(plan, scratch, (&target, cores.as_ref()), &mut outputs, stop).await
    })?;
    runtime.shutdown_background();
    Ok(report)
}

/// The files that the report goes to. All of them can be written to.
fn outputs(plan: &Plan) -> Result<Vec<ReportFile>> {
    let wanted = [(&plan.load.json, file::JSON), (&plan.load.html, HTML)];
    let wanted = wanted.into_iter().filter_map(|(path, format)| Some((path.as_deref()?, format)));
    wanted.map(|(path, format)| ReportFile::prepare(path, format)).collect()
}

/// Loads one guacd after another. What was measured is written and printed, whatever happens next.
async fn load_all(
    plan: &Plan,
    scratch: &Path,
    surroundings: Surroundings<'_>,
    outputs: &mut [ReportFile],
    stop: watch::Receiver<bool>,
) -> Result<StressReport> {
    let guacds = match &plan.load.guacd {
        Some(address) => vec![Subject::Running(address)],
        None => plan.guacds.prefixes.iter().map(Subject::Prefix).collect(),
    };
    let mut report = StressReport {
        schema_version: SCHEMA_VERSION,
        started_at_unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        interrupted: false,
        passed: false,
        command: plan.command.clone(),
        plan: Some(serde_json::to_value(Plan { command: Vec::new(), ..plan.clone() })?),
        host: Some(machine::host()),
        machine: machine::limits(&plan.load),
        runs: Vec::new(),
    };
    console::machine(&report.machine, plan.scenario.size().open_at_once);
    let all = guacds.len();
    let mut error = None;
    for guacd in guacds {
        if *stop.borrow() {
            break;
        }
        let guacd = match load_one(plan, scratch, guacd, surroundings, stop.clone()).await {
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
        report.passed = report.runs.len() == all && StressReport::judged(&report.runs).all(Run::passed);
        for output in outputs.iter_mut() {
            // It is written once more at the end, and a failure is reported then.
            let _ = output.write_so_far(&report);
        }
        // Ending guacd can take seconds. It comes after the report, because an impatient user may cut it short.
        drop(guacd);
    }
    report.interrupted = *stop.borrow();
    if report.runs.is_empty() {
        // Nothing was measured, so only the error is reported. An interruption still gives a report.
        error.take().map_or(Ok(()), Err)?;
    }
    let written = outputs.iter_mut().try_for_each(|output| output.write(&report));
    console::report(&report, scenario::section);
    error.map_or(Ok(()), Err)?;
    written?;
    Ok(report)
}

/// What guacd connects to, and its processors, unless it may use all.
type Surroundings<'a> = (&'a Targets, Option<&'a Cores>);

/// Divides the processors, where guacd's capacity is measured and they are not needed for both.
fn divide_processors(plan: &Plan) -> Result<Option<Cores>> {
    let Scenario::Capacity(capacity) = &plan.scenario else { return Ok(None) };
    if plan.load.guacd.is_some() {
        return Ok(None);
    }
    let cores = Cores::divide(capacity.cores)?;
    cores.iter().try_for_each(Cores::use_ours)?;
    console::note(cores.as_ref().map_or("guacd and guac-stress share the only processor", Cores::describe));
    Ok(cores)
}

/// The guacd to load: one that runs already, or one to be started.
enum Subject<'a> {
    Running(&'a HostPort),
    Prefix(&'a Prefix),
}

/// Also returns the guacd that was started, which ends when it is dropped.
async fn load_one(
    plan: &Plan,
    scratch: &Path,
    subject: Subject<'_>,
    (target, cores): Surroundings<'_>,
    stop: watch::Receiver<bool>,
) -> Result<(Run, Option<Guacd>)> {
    let (variant, addresses, manifest, mut guacd) = match subject {
        Subject::Running(address) => ("external", reachable(plan, address)?, None, None),
        Subject::Prefix(prefix) => {
            let guacd = start(plan, scratch, prefix, (target, cores))?;
            (prefix.variant.as_str(), vec![guacd.address()], manifest(&prefix.dir), Some(guacd))
        }
    };
    let setup = Setup {
        guacd: addresses,
        logins: target.logins().to_vec(),
        timeout: plan.load.timeout,
        log: guacd.as_ref().map(Guacd::log),
        meter: target.meter(),
    };
    let context = Context {
        release: plan.guacds.release.clone(),
        variant: variant.into(),
        manifest,
        logs: logs(plan),
        connections: Some(target.connections()),
        cores: cores.map(Cores::count),
    };
    let mut display = ProgressDisplay::new(variant, plan.scenario.size().sessions);
    let mut watch = |progress| display.show(progress);
    let (scenario, load) = (&plan.scenario, &plan.load);
    let run = measure(context, scenario, load, Arc::new(setup), guacd.as_mut(), stop, &mut watch).await;
    display.finish();
    Ok((run?, guacd))
}

fn start(plan: &Plan, scratch: &Path, prefix: &Prefix, (target, cores): Surroundings<'_>) -> Result<Guacd> {
    let program = std::env::current_exe().context("find this program")?;
    let library =
        |given: &Option<PathBuf>, name| given.clone().unwrap_or_else(|| program.with_file_name(name));
    let key_limit = library(&plan.guacds.key_limit_library, "libkey_limit.so");
    let pretend_cores = library(&plan.guacds.pretend_cores_library, "libpretend_cores.so");
    Guacd::start(&Start {
        prefix: &prefix.dir,
        port: plan.load.port,
        name: &prefix.variant,
        logs: &logs(plan),
        scratch,
        preload: plan.guacds.preload.as_deref(),
        key_limit: plan.load.key_limit.map(|limit| (key_limit.as_path(), limit)),
        pretend_cores: plan.load.pretend_cores.map(|number| (pretend_cores.as_path(), number)),
        cores,
        spared: target.processes(),
    })
    .with_context(|| format!("start the {} guacd", prefix.variant))
}

/// The manifest of a prefix that the toolkit made.
fn manifest(prefix: &Path) -> Option<Value> {
    serde_json::from_slice(&fs_err::read(prefix.join("share/guacd-uncapped/manifest.json")).ok()?).ok()
}

/// The directory for guacd's logs, and for inputs that did damage.
fn logs(plan: &Plan) -> PathBuf {
    plan.guacds.logs.clone().unwrap_or_else(std::env::temp_dir)
}

/// The addresses of a guacd that runs already. Fails where that cannot reach the target.
fn reachable(plan: &Plan, address: &HostPort) -> Result<Vec<SocketAddr>> {
    let addresses = (address.host.as_str(), address.port)
        .to_socket_addrs()
        .with_context(|| format!("look up {address}"))?
        .collect::<Vec<_>>();
    if addresses.is_empty() {
        bail!("{address} has no address");
    }
    let is_here = addresses.iter().all(|address| address.ip().is_loopback());
    if !is_here && !matches!(plan.load.target, Target::Address(_)) {
        bail!(Preflight(format!(
            "the target '{}' listens on this machine's loopback interface, which the guacd at {address} cannot reach: \
             give the HOST:PORT of a server for --protocol {} as --target",
            plan.load.target,
            plan.load.protocol.as_str()
        )));
    }
    Ok(addresses)
}

/// Checks the limit of open files. This program holds two for each session: one towards guacd, one in the embedded target.
/// guacd's own need is part of the warning about this machine.
fn enough_descriptors(plan: &Plan) -> Result<()> {
    let limit = processes::raise_descriptor_limit()?;
    let need = u64::from(plan.scenario.size().open_at_once) * 2 + 64;
    if limit < need {
        bail!(Preflight(format!(
            "{} sessions need {need} open files, and the limit is {limit}: raise it as root \
             (`ulimit -n {need}`, or limits.conf), or give a lower --count",
            plan.scenario.size().open_at_once
        )));
    }
    Ok(())
}

/// Becomes true at the first SIGINT, SIGTERM or SIGHUP. The reaper sees to the second.
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
        // Kept, because the end of this task would look like a signal.
        std::future::pending::<()>().await;
    });
    Ok(stopped)
}

//! How is one guacd loaded, measured and judged?

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use procfs::process::Process;
use rustix::process::{Signal, kill_process};
use tokio::{sync::watch, task, time::Instant};

use super::{
    Scenario,
    results::{Context, Measurements},
    steps,
};
use crate::{
    guacd::{sample, start::Guacd},
    load::{crowd::Crowd, flags::Load, session::Setup},
    report::{
        self, ByAge, Generator, Histograms, Run, Shutdown,
        progress::{Progress, Step},
    },
};

/// Loads one guacd. `guacd` is one that was started here: it is also watched and measured, and gets SIGTERM at the end.
///
/// # Errors
///
/// When an input of `fuzz` cannot be read or saved.
pub async fn measure(
    context: Context,
    scenario: &Scenario,
    load: &Load,
    setup: Arc<Setup>,
    guacd: Option<&mut Guacd>,
    mut stop: watch::Receiver<bool>,
    watch: &mut dyn FnMut(Progress),
) -> Result<Run> {
    let cpu = steps::cpu_seconds();
    let size = scenario.size();
    let mut crowd = Crowd::new(size.sessions, size.rate, setup, guacd, watch);
    let mut measurements = Measurements::default();
    let interrupted = tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => true,
        played = play(scenario, &mut crowd, &mut measurements, &context) => {
            played?;
            false
        }
    };
    crowd.catch_up();
    let mut run = account(&crowd, context, scenario, load, measurements, interrupted);
    if let (Some(max), false, None) = (load.thresholds.max_shutdown, interrupted, &crowd.died) {
        let shutdown = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => None,
            shutdown = shut_down(&mut crowd, max) => shutdown,
        };
        if let Some(guacd) = &mut run.guacd {
            guacd.shutdown = shutdown;
        }
    }
    run.generator = steps::cpu_seconds()
        .zip(max_rss_bytes())
        .map(|(now, max_rss_bytes)| Generator { cpu_seconds: now - cpu.unwrap_or(0.0), max_rss_bytes });
    run.checks = scenario.verdict(load, &run);
    Ok(run)
}

async fn play(
    scenario: &Scenario,
    crowd: &mut Crowd<'_>,
    measurements: &mut Measurements,
    context: &Context,
) -> Result<()> {
    measurements.usage_before = steps::usage(crowd).await;
    scenario.play(crowd, measurements, context).await?;
    crowd.wait_until_informed().await;
    Ok(())
}

/// Sends SIGTERM to guacd, with its sessions open, and waits for at most some time until all its processes have ended.
async fn shut_down(crowd: &mut Crowd<'_>, max: Duration) -> Option<Shutdown> {
    crowd.set_step(Step::Shutdown);
    let guacd = crowd.guacd.as_mut()?;
    let pid = guacd.pid();
    let family = task::spawn_blocking(move || sample::family(pid.as_raw_pid())).await.ok()?;
    let mut left = family.iter().map(|stat| stat.pid).collect::<Vec<_>>();
    let processes = left.len() as u32;
    kill_process(pid, Signal::TERM).ok()?;
    let began = Instant::now();
    loop {
        // A process that has lost its parent is our child, and stays visible until it is waited for.
        let _ = guacd.ended();
        // To look at thousands of processes again and again would take the processor from those that are to end.
        while left.last().is_some_and(|&pid| !sample::is_there(pid)) {
            left.pop();
        }
        let elapsed = began.elapsed();
        if left.is_empty() || elapsed >= max {
            let left = left.iter().filter(|&&pid| sample::is_there(pid)).count() as u32;
            return Some(Shutdown { processes, seconds: elapsed.as_secs_f64(), left });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Sums up a run, without its checks.
fn account(
    crowd: &Crowd<'_>,
    context: Context,
    scenario: &Scenario,
    load: &Load,
    measurements: Measurements,
    interrupted: bool,
) -> Run {
    let size = scenario.size();
    let total = crowd.begun.elapsed();
    let began = SystemTime::now() - total;
    let first_proofs = crowd.first_proofs();
    let (by_age, first, last) = match crowd.first_proofs_by_age() {
        Some((sessions, first, last)) => {
            let by_age = first.latency().zip(last.latency());
            (by_age.map(|(first, last)| ByAge { sessions, first, last }), first.histogram(), last.histogram())
        }
        None => (None, None, None),
    };
    let last_proofs = crowd.last_proofs();
    let guacd = crowd.guacd.as_ref().map(|guacd| report::Guacd {
        log_file: guacd.log_file().display().to_string(),
        manifest: context.manifest,
        last_lines: if crowd.died.is_some() { guacd.log().last_lines() } else { Vec::new() },
        died: crowd.died.clone(),
        keys: guacd.keys(),
        preload: guacd.preload().map(|library| library.display().to_string()),
        usage: measurements.usage,
        usage_before: measurements.usage_before,
        usage_after: measurements.usage_after,
        keys_after_first_round: measurements.keys_after_first_round,
        processes: measurements.processes,
        idle_cpu_ms_per_second: measurements.idle_cpu_ms_per_second,
        shutdown: None,
        samples: crowd.sampler.as_ref().map(|sampler| sampler.samples()).unwrap_or_default(),
    });
    Run {
        release: context.release,
        variant: context.variant,
        scenario: scenario.name(),
        protocol: load.protocol.as_str().into(),
        target: load.target.to_string(),
        began_at_unix_ms: began.duration_since(UNIX_EPOCH).map_or(0, |began| began.as_millis() as u64),
        activity: load.activity.as_str().into(),
        seed: measurements.seed,
        key_limit: load.key_limit,
        pretend_cores: load.pretend_cores,
        requested: match scenario {
            Scenario::Capacity(_) => crowd.started(),
            _ => size.sessions,
        },
        started: crowd.started(),
        established: crowd.established,
        peak_alive: crowd.peak_alive,
        proven: crowd.proven(),
        silent: crowd.silent(),
        checks: Vec::new(),
        failures: crowd.failures(),
        first_proof: first_proofs.latency(),
        first_proof_by_age: by_age,
        last_proof: last_proofs.latency(),
        histograms: Histograms {
            first_proof: first_proofs.histogram(),
            first_proof_of_first: first,
            first_proof_of_last: last,
            last_proof: last_proofs.histogram(),
            lag: measurements.lags.histogram(),
        },
        timeline: crowd.timeline.values().to_vec(),
        drawing: measurements.drawing,
        capacity: measurements.capacity,
        rounds: measurements.rounds,
        faults: crowd.faults(),
        fuzz: measurements.fuzz,
        generator: None,
        guacd,
        rate_per_second: size.rate.per_second(),
        hold_seconds: size.hold.as_secs_f64(),
        timeout_seconds: load.timeout.as_secs_f64(),
        ramp_seconds: measurements.ramp.unwrap_or(total).as_secs_f64(),
        total_seconds: total.as_secs_f64(),
        interrupted,
    }
}

fn max_rss_bytes() -> Option<u64> {
    Some(Process::myself().ok()?.status().ok()?.vmhwm? * 1024)
}

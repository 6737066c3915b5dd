//! What is done to guacd, and what decides? Each scenario is a short script for a crowd of sessions, and ends in checks.

pub mod chaos;
pub mod fuzz;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Result;
use procfs::process::Process;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{sync::watch, task, time::Instant};

use crate::{
    cli::Load,
    guacd::sample,
    guacd::start::Guacd,
    load::crowd::{Crowd, Step, TICK, Tally},
    load::session::Setup,
    report::{
        self, Bound::AtLeast, Bound::AtMost, Check, Ends, Fuzz, Generator, Keys, Round, Run, Sample,
        Scenario, Shutdown, Usage,
    },
};

/// A hold that is shorter says nothing of what an idle session takes.
const SHORTEST_IDLE: Duration = Duration::from_secs(2);

/// What a run is called in the report, and where it leaves what is to be kept.
pub struct Label {
    /// The guacamole-server release.
    pub release: Option<String>,
    /// The variant.
    pub variant: String,
    /// The directory for inputs that did harm.
    pub logs: PathBuf,
}

/// Loads one guacd. With `guacd`, it is one that was started here, and is watched, measured, and told to end.
///
/// # Errors
///
/// When an input cannot be read or saved.
pub async fn measure(
    label: Label,
    load: &Load,
    setup: Arc<Setup>,
    guacd: Option<&mut Guacd>,
    mut stop: watch::Receiver<bool>,
    watch: &mut dyn FnMut(Tally),
) -> Result<Run> {
    let cpu = cpu_seconds();
    let mut crowd = Crowd::new(load, setup, guacd, watch);
    let mut found = Found { seed: seed(load), ..Found::default() };
    let interrupted = tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => true,
        done = play(&mut crowd, &mut found, &label) => {
            done?;
            false
        }
    };
    crowd.catch_up();
    let mut run = account(&mut crowd, label, found, interrupted);
    if let (Some(most), false, None) = (load.thresholds.max_shutdown, interrupted, &crowd.died) {
        let shutdown = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => None,
            shutdown = shut_down(&mut crowd, most) => shutdown,
        };
        if let Some(guacd) = &mut run.guacd {
            guacd.shutdown = shutdown;
        }
    }
    run.generator = cpu_seconds()
        .zip(max_rss_bytes())
        .map(|(now, max_rss_bytes)| Generator { cpu_seconds: now - cpu.unwrap_or(0.0), max_rss_bytes });
    run.checks = checks(load, &run);
    Ok(run)
}

/// What scenarios find, beyond what the crowd knows.
#[derive(Default)]
struct Found {
    seed: Option<u64>,
    ramp: Option<Duration>,
    before: Option<Usage>,
    full: Option<Usage>,
    after: Option<Usage>,
    ends: Option<Ends>,
    idle_cpu_ms_per_second: Option<f64>,
    rounds: Vec<Round>,
    /// The most keys after the first wave.
    keys: Option<Keys>,
    fuzz: Option<Fuzz>,
}

/// What chance begins with, where it has a part.
fn seed(load: &Load) -> Option<u64> {
    // 32 bits are enough for a random one, and easier to copy.
    let random = || u64::from(fastrand::u32(..));
    matches!(load.scenario, Scenario::Chaos | Scenario::Fuzz)
        .then(|| load.details.seed.unwrap_or_else(random))
}

async fn play(crowd: &mut Crowd<'_>, found: &mut Found, label: &Label) -> Result<()> {
    found.before = usage(crowd).await;
    if crowd.load.scenario == Scenario::Churn {
        churn(crowd, found).await;
        return Ok(());
    }
    crowd.open(0..crowd.load.count as usize, crowd.load.scenario == Scenario::Burst).await;
    found.ramp = Some(crowd.begun.elapsed());
    if crowd.alive() == 0 {
        crowd.hear().await;
        return Ok(());
    }
    match crowd.load.scenario {
        Scenario::Hold | Scenario::Burst | Scenario::Churn => hold(crowd, found).await,
        Scenario::Soak => {
            soak(crowd, found).await;
        }
        Scenario::Chaos => {
            look(crowd, found).await;
            chaos::run(crowd, found.seed.unwrap_or_default()).await;
        }
        Scenario::Fuzz => {
            look(crowd, found).await;
            found.fuzz = Some(fuzz::run(crowd, found.seed.unwrap_or_default(), &label.logs).await?);
            settle(crowd, found.full).await;
            found.after = usage(crowd).await;
        }
    }
    if crowd.load.scenario != Scenario::Soak {
        crowd.prove().await;
    }
    crowd.hear().await;
    Ok(())
}

/// Holds all sessions, and measures what they take meanwhile.
async fn hold(crowd: &mut Crowd<'_>, found: &mut Found) {
    let end = Instant::now() + crowd.load.hold;
    look(crowd, found).await;
    let idle = end.saturating_duration_since(Instant::now());
    let before = cheap_sample(crowd).await;
    crowd.hold(idle).await;
    let after = cheap_sample(crowd).await;
    if idle >= SHORTEST_IDLE && crowd.alive() > 0 {
        found.idle_cpu_ms_per_second = before.zip(after).map(|(before, after)| {
            let cpu = |sample: &Sample| sample.parent_cpu_seconds + sample.children_cpu_seconds;
            let seconds = after.at_seconds - before.at_seconds;
            (cpu(&after) - cpu(&before)).max(0.0) * 1000.0 / seconds / f64::from(crowd.alive())
        });
    }
}

/// Measures guacd with all sessions open.
async fn look(crowd: &mut Crowd<'_>, found: &mut Found) {
    crowd.step(Step::Hold);
    let sessions = crowd.open_sessions();
    let known = sessions.into_iter().filter_map(|(index, process)| Some((process?, index as u32)));
    let known = known.collect::<Vec<_>>();
    let ends = known.first().copied().zip(known.last().copied());
    let (full, ends) = attended(crowd, move |parent| {
        let of = |(process, index)| sample::process(process, index);
        let ends = ends.and_then(|(first, last)| Some(Ends { first: of(first)?, last: of(last)? }));
        (sample::usage(parent), ends)
    })
    .await
    .unwrap_or_default();
    (found.full, found.ends) = (full, ends);
}

/// Looks at guacd on a thread of its own, while sessions are attended to. None, if guacd was not started here.
async fn attended<T: Send + 'static>(
    crowd: &mut Crowd<'_>,
    look: impl FnOnce(Pid) -> T + Send + 'static,
) -> Option<T> {
    let parent = crowd.guacd.as_ref()?.pid();
    let mut looking = task::spawn_blocking(move || look(parent));
    loop {
        tokio::select! {
            biased;
            looked = &mut looking => return looked.ok(),
            () = crowd.attend_until(Some(Instant::now() + TICK), |_| false) => {}
        }
    }
}

async fn usage(crowd: &mut Crowd<'_>) -> Option<Usage> {
    attended(crowd, sample::usage).await.flatten()
}

async fn cheap_sample(crowd: &mut Crowd<'_>) -> Option<Sample> {
    let (begun, alive) = (crowd.begun, crowd.alive());
    attended(crowd, move |parent| sample::sample(parent, begun.elapsed().as_secs_f64(), alive))
        .await
        .flatten()
}

/// Opens, proves and closes one wave after another.
async fn churn(crowd: &mut Crowd<'_>, found: &mut Found) {
    let (count, wave) = (crowd.load.count as usize, crowd.load.details.wave as usize);
    for first in (0..count).step_by(wave) {
        crowd.open(first..count.min(first + wave), false).await;
        if crowd.died.is_some() {
            return;
        }
        if first == 0 {
            look(crowd, found).await;
        }
        crowd.hold(crowd.load.hold).await;
        let (sessions, proven, proof) = crowd.prove().await;
        crowd.hear().await;
        crowd.close().await;
        let settled_seconds = settle(crowd, found.before).await;
        let usage = usage(crowd).await;
        if first == 0 {
            found.keys = crowd.guacd.as_ref().and_then(|guacd| guacd.keys());
        }
        found.rounds.push(Round {
            at_seconds: crowd.begun.elapsed().as_secs_f64(),
            sessions,
            proven,
            proof,
            settled_seconds,
            usage,
        });
        found.after = usage;
    }
    found.ramp = Some(crowd.begun.elapsed());
}

/// Gives guacd time to be as it was before. Tells how long it took, if it was in time.
async fn settle(crowd: &mut Crowd<'_>, before: Option<Usage>) -> Option<f64> {
    let before = before?;
    crowd.step(Step::Settle);
    let began = Instant::now();
    while began.elapsed() <= crowd.load.details.settle && crowd.died.is_none() {
        let now = cheap_sample(crowd).await?;
        let is_settled = now.children <= before.children
            && now.parent_threads <= before.parent_threads
            && now.parent_descriptors <= before.parent_descriptors;
        if is_settled {
            return Some(began.elapsed().as_secs_f64());
        }
        crowd.attend_until(Some(Instant::now() + TICK), |crowd| crowd.died.is_some()).await;
    }
    None
}

/// Has all sessions prove themselves again and again.
async fn soak(crowd: &mut Crowd<'_>, found: &mut Found) {
    let end = Instant::now() + crowd.load.hold;
    look(crowd, found).await;
    let mut turn = Instant::now();
    loop {
        turn += crowd.load.details.prove_every;
        crowd.hold(turn.min(end).saturating_duration_since(Instant::now())).await;
        let (sessions, proven, proof) = crowd.prove().await;
        let usage = usage(crowd).await;
        let at_seconds = crowd.begun.elapsed().as_secs_f64();
        found.rounds.push(Round { at_seconds, sessions, proven, proof, settled_seconds: None, usage });
        if turn >= end || crowd.alive() == 0 || crowd.died.is_some() {
            return;
        }
    }
}

/// Tells guacd to end, with its sessions open, and waits until all its processes are gone, or for as long as `most`.
async fn shut_down(crowd: &mut Crowd<'_>, most: Duration) -> Option<Shutdown> {
    crowd.step(Step::Shutdown);
    let guacd = crowd.guacd.as_mut()?;
    let pid = guacd.pid();
    let family = task::spawn_blocking(move || sample::family(pid.as_raw_pid())).await.ok()?;
    let mut left = family.iter().map(|stat| stat.pid).collect::<Vec<_>>();
    let processes = left.len() as u32;
    kill_process(pid, Signal::TERM).ok()?;
    let told = Instant::now();
    loop {
        // Whoever has lost its parent is our child, and stays in sight until it is waited for.
        let _ = guacd.ended();
        left.retain(|&pid| sample::is_there(pid));
        if left.is_empty() || told.elapsed() >= most {
            let left = left.len() as u32;
            return Some(Shutdown { processes, seconds: told.elapsed().as_secs_f64(), left });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Sums up.
fn account(crowd: &mut Crowd<'_>, label: Label, found: Found, interrupted: bool) -> Run {
    let load = crowd.load;
    let total = crowd.begun.elapsed();
    let guacd = crowd.guacd.as_ref().map(|guacd| report::Guacd {
        log_file: guacd.log_file().display().to_string(),
        last_lines: if crowd.died.is_some() { guacd.log().last_lines() } else { Vec::new() },
        died: crowd.died.clone(),
        keys: guacd.keys(),
        preload: guacd.preload().map(|library| library.display().to_string()),
        usage: found.full,
        usage_before: found.before,
        usage_after: found.after,
        keys_after_first_round: found.keys,
        processes: found.ends,
        idle_cpu_ms_per_second: found.idle_cpu_ms_per_second,
        shutdown: None,
        samples: crowd.sampler.as_ref().map(|sampler| sampler.samples()).unwrap_or_default(),
    });
    Run {
        release: label.release,
        variant: label.variant,
        scenario: load.scenario,
        protocol: load.protocol.as_str().into(),
        target: load.target.to_string(),
        seed: found.seed,
        key_limit: load.key_limit,
        requested: load.count,
        started: crowd.started(),
        established: crowd.established,
        peak_alive: crowd.peak_alive,
        proven: crowd.proven(),
        silent: crowd.silent(),
        checks: Vec::new(),
        failures: crowd.failures(),
        first_proof: crowd.first_proof(),
        first_proof_by_age: crowd.first_proof_by_age(),
        last_proof: crowd.last_proof(),
        rounds: found.rounds,
        strikes: chaos::strikes(crowd),
        fuzz: found.fuzz,
        generator: None,
        guacd,
        rate_per_second: load.rate.per_second(),
        hold_seconds: load.hold.as_secs_f64(),
        timeout_seconds: load.timeout.as_secs_f64(),
        ramp_seconds: found.ramp.unwrap_or(total).as_secs_f64(),
        total_seconds: total.as_secs_f64(),
        interrupted,
    }
}

/// By how much guacd's memory has grown, in percent: from the median of the first rounds, a fifth of all, to that of the
/// last, as malloc and the kernel make it swing by several percent from one round to the next.
fn growth(rounds: &[Round]) -> Option<f64> {
    let some = rounds.len().div_ceil(5);
    let (first, last) = (rounds.get(..some)?, rounds.get(rounds.len().checked_sub(some)?.max(some)..)?);
    let memory = |rounds: &[Round]| {
        let mut bytes = rounds.iter().filter_map(|round| Some(round.usage?.memory_bytes)).collect::<Vec<_>>();
        bytes.sort_unstable();
        bytes.get(bytes.len() / 2).map(|&bytes| bytes as f64)
    };
    Some((memory(last)? / memory(first)? - 1.0) * 100.0)
}

/// What decides.
fn checks(load: &Load, run: &Run) -> Vec<Check> {
    let thresholds = &load.thresholds;
    let asked = run.requested - run.struck();
    let needed = (f64::from(asked) * thresholds.min_proven.value() / 100.0).ceil();
    let mut checks = vec![
        Check::new("proven", AtLeast, needed, Some(run.proven.into()), "sessions"),
        Check::new("silent", AtMost, thresholds.max_silent.into(), Some(run.silent.into()), "sessions"),
    ];
    let guacd = run.guacd.as_ref();
    if matches!(run.scenario, Scenario::Churn | Scenario::Fuzz) {
        // The sessions that are held beside the inputs are there before and after.
        let before = guacd.and_then(|guacd| match run.scenario {
            Scenario::Fuzz => guacd.usage,
            _ => guacd.usage_before,
        });
        checks.extend(
            guacd.into_iter().flat_map(|guacd| leftover(thresholds.max_leftover, before, guacd.usage_after)),
        );
    }
    if let Some(keys) = guacd.and_then(|guacd| guacd.keys.zip(guacd.keys_after_first_round)) {
        let more = keys.0.most_in_a_process.saturating_sub(keys.1.most_in_a_process);
        let most = thresholds.max_leftover.into();
        checks.push(Check::new(
            "pthread keys more than in the first wave",
            AtMost,
            most,
            Some(more.into()),
            "keys",
        ));
    }
    if matches!(run.scenario, Scenario::Churn | Scenario::Soak) && guacd.is_some() {
        let growth = growth(&run.rounds);
        let most = thresholds.max_memory_growth.value();
        checks.push(Check::new("growth of memory", AtMost, most, growth, "%"));
    }
    if run.scenario == Scenario::Chaos {
        checks.extend(chaos::checks(&run.strikes, chaos::planned(load)));
    }
    if let Some(fuzz) = &run.fuzz {
        checks.extend(fuzz::checks(fuzz, thresholds.max_crashes));
    }
    if let Some(most) = thresholds.max_slowdown {
        let ratio = run.first_proof_by_age.map(|ages| ages.last.p50_ms / ages.first.p50_ms);
        checks.push(Check::new("first proof of the last by that of the first", AtMost, most, ratio, "times"));
    }
    if let Some(most) = thresholds.max_shutdown {
        let shutdown = guacd.and_then(|guacd| guacd.shutdown);
        let seconds = shutdown.map(|end| end.seconds);
        let mut check = Check::new("end after SIGTERM", AtMost, most.as_secs_f64(), seconds, "s");
        check.passed &= shutdown.is_some_and(|end| end.left == 0);
        checks.push(check);
    }
    checks
}

/// What there is more of after than before.
fn leftover(most: u32, before: Option<Usage>, after: Option<Usage>) -> [Check; 3] {
    let more = |of: fn(&Usage) -> u32| {
        before.zip(after).map(|(before, after)| f64::from(of(&after).saturating_sub(of(&before))))
    };
    [
        Check::new(
            "leftover descriptors",
            AtMost,
            most.into(),
            more(|usage| usage.parent_descriptors),
            "descriptors",
        ),
        Check::new("leftover threads", AtMost, most.into(), more(|usage| usage.parent_threads), "threads"),
        Check::new("leftover processes", AtMost, most.into(), more(|usage| usage.children), "processes"),
    ]
}

/// Processor time that this process has taken, with all its threads.
fn cpu_seconds() -> Option<f64> {
    let stat = Process::myself().ok()?.stat().ok()?;
    Some((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
}

fn max_rss_bytes() -> Option<u64> {
    Some(Process::myself().ok()?.status().ok()?.vmhwm? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::MemoryKind;

    fn rounds(memory: impl IntoIterator<Item = u64>) -> Vec<Round> {
        let usage = |memory_bytes| Usage {
            parent_descriptors: 10,
            parent_threads: 1,
            children: 1,
            tasks: 2,
            memory_bytes,
            memory_kind: MemoryKind::Pss,
        };
        let round = |bytes| Round {
            at_seconds: 0.0,
            sessions: 1,
            proven: 1,
            proof: None,
            settled_seconds: None,
            usage: Some(usage(bytes)),
        };
        memory.into_iter().map(round).collect()
    }

    #[test]
    fn memory_that_swings_has_not_grown_and_memory_that_leaks_has() {
        let swings = |wave: u64| 1000 + [0, 70, 20, 50, 10][wave as usize % 5];
        assert_eq!(growth(&rounds((0..50).map(swings))), Some(0.0));
        let leaks = growth(&rounds((0..50).map(|wave| swings(wave) + 2 * wave))).unwrap();
        assert!((7.0..9.0).contains(&leaks), "{leaks}");
        assert_eq!(growth(&rounds([1000, 1100])), growth(&rounds([1000, 1200, 1100])));
        assert_eq!(growth(&rounds([1000])), None);
        assert_eq!(growth(&[]), None);
    }
}

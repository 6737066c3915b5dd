//! Which steps do several scenarios share? They open all sessions, hold them, wait until guacd has settled, and measure what it
//! uses.

use std::{sync::Arc, time::Duration};

use procfs::process::Process;
use rustix::process::Pid;
use tokio::{task, time::Instant};

use super::results::Measurements;
use crate::{
    guacd::sample,
    load::{
        crowd::{Crowd, Pace, TICK},
        latency::Times,
    },
    report::{Drawing, FirstAndLast, Sample, Usage, progress::Step},
    values::Activity,
};

/// A shorter hold says nothing about what a session uses.
const MIN_TIME: Duration = Duration::from_secs(2);

/// Opens all sessions. Returns whether any of them is open then.
pub async fn open_all(
    crowd: &mut Crowd<'_>,
    measurements: &mut Measurements,
    count: u32,
    pace: Pace,
) -> bool {
    crowd.open(0..count as usize, pace).await;
    measurements.ramp = Some(crowd.begun.elapsed());
    crowd.alive() > 0
}

/// Holds all sessions, and measures what they use meanwhile and what reaches them.
pub async fn hold(crowd: &mut Crowd<'_>, measurements: &mut Measurements, time: Duration) {
    let end = Instant::now() + time;
    measure_open_sessions(crowd, measurements).await;
    let time = end.saturating_duration_since(Instant::now());
    let Some((drawing, lags)) = watch(crowd, time).await else { return };
    if crowd.setup.meter.activity() == Activity::Idle {
        measurements.idle_cpu_ms_per_second = drawing.cpu_ms_per_second;
    } else {
        measurements.drawing = Some(drawing);
        measurements.lags = lags;
    }
}

/// Holds all sessions, and measures guacd's processor time, and what the targets draw with its lags. None, if that says nothing:
/// no session is left, or the time is too short.
pub async fn watch(crowd: &mut Crowd<'_>, time: Duration) -> Option<(Drawing, Times)> {
    let meter = Arc::clone(&crowd.setup.meter);
    let before = (cheap_sample(crowd).await, cpu_seconds());
    meter.begin();
    crowd.hold(time).await;
    let measurement = meter.end()?;
    let after = (cheap_sample(crowd).await, cpu_seconds());
    let sessions = crowd.alive();
    if time < MIN_TIME || sessions == 0 {
        return None;
    }
    let seconds = measurement.time.as_secs_f64();
    let guacd = before.0.zip(after.0).map(|(before, after)| {
        let cpu = |sample: &Sample| sample.parent_cpu_seconds + sample.children_cpu_seconds;
        (cpu(&after) - cpu(&before)) / (after.at_seconds - before.at_seconds)
    });
    let generator = before.1.zip(after.1).map(|(before, after)| (after - before) / seconds);
    let of_each =
        |load: Option<f64>| load.filter(|load| *load >= 0.0).map(|load| load * 1000.0 / f64::from(sessions));
    let rate = |count: u64| count as f64 / seconds / f64::from(sessions);
    let (cpu_ms_per_second, received_per_second) = (of_each(guacd), rate(measurement.received));
    let drawing = Drawing {
        sessions,
        seconds,
        asked_per_second: meter.activity().frames_per_second().into(),
        drawn_per_second: rate(measurement.drawn),
        received_per_second,
        fewest_per_second: measurement.fewest as f64 / seconds,
        lag: measurement.lags.latency(),
        bytes_per_second: rate(measurement.bytes),
        cpu_ms_per_second,
        cpu_ms_per_frame: cpu_ms_per_second
            .filter(|_| measurement.received > 0)
            .map(|cpu| cpu / received_per_second),
        generator_cpu_ms_per_second: of_each(generator),
    };
    Some((drawing, measurement.lags))
}

/// Processor time that this process has used, with all its threads.
pub fn cpu_seconds() -> Option<f64> {
    let stat = Process::myself().ok()?.stat().ok()?;
    Some((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
}

/// Measures what guacd uses with all sessions open.
pub async fn measure_open_sessions(crowd: &mut Crowd<'_>, measurements: &mut Measurements) {
    crowd.set_step(Step::Hold);
    let sessions = crowd.open_sessions();
    let known = sessions.into_iter().filter_map(|(index, process)| Some((process?, index as u32)));
    let known = known.collect::<Vec<_>>();
    let ends = known.first().copied().zip(known.last().copied());
    let measured = measure_guacd(crowd, move |parent| {
        let process = |(process, session)| sample::process(process, session);
        let processes = ends
            .and_then(|(first, last)| Some(FirstAndLast { first: process(first)?, last: process(last)? }));
        (sample::usage(parent), processes)
    })
    .await;
    (measurements.usage, measurements.processes) = measured.unwrap_or_default();
}

/// What guacd uses now. None, if guacd was not started here.
pub async fn usage(crowd: &mut Crowd<'_>) -> Option<Usage> {
    measure_guacd(crowd, sample::usage).await.flatten()
}

/// Waits until guacd has no more processes, threads and descriptors than before, for at most some time. Returns how long it
/// took, if it was in time.
pub async fn settle(crowd: &mut Crowd<'_>, before: Option<Usage>, max: Duration) -> Option<f64> {
    let before = before?;
    crowd.set_step(Step::Settle);
    let began = Instant::now();
    while began.elapsed() <= max && crowd.died.is_none() {
        let now = cheap_sample(crowd).await?;
        let is_settled = now.children <= before.children
            && now.parent_threads <= before.parent_threads
            && now.parent_descriptors <= before.parent_descriptors;
        if is_settled {
            return Some(began.elapsed().as_secs_f64());
        }
        crowd.run_for_a_tick().await;
    }
    None
}

async fn cheap_sample(crowd: &mut Crowd<'_>) -> Option<Sample> {
    let (begun, alive) = (crowd.begun, crowd.alive());
    measure_guacd(crowd, move |parent| sample::sample(parent, begun.elapsed().as_secs_f64(), alive))
        .await
        .flatten()
}

/// Measures guacd on another thread, while the sessions go on. None, if guacd was not started here.
async fn measure_guacd<T: Send + 'static>(
    crowd: &mut Crowd<'_>,
    measure: impl FnOnce(Pid) -> T + Send + 'static,
) -> Option<T> {
    let parent = crowd.guacd.as_ref()?.pid();
    let mut measuring = task::spawn_blocking(move || measure(parent));
    loop {
        tokio::select! {
            biased;
            measured = &mut measuring => return measured.ok(),
            () = crowd.run_until(Some(Instant::now() + TICK), |_| false) => {}
        }
    }
}

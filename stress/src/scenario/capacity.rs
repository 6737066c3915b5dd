//! `capacity`: how many sessions does a guacd serve well? Sessions are added, step by step, until what the targets draw comes
//! too late, or not all of it comes, or a session does not prove itself.

use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::size::Size;
#[cfg(feature = "engine")]
use super::{results::Measurements, steps};
#[cfg(feature = "engine")]
use crate::{
    load::crowd::{Crowd, Pace},
    report::{
        self, CapacityEnd, Drawing, Round,
        text::{Section, latency},
    },
};
use crate::{
    load::flags::Load,
    report::{Bound, Check, Run},
    values::{self, Activity, Percent, Rate},
};

/// What to type after the name of the program and of the scenario.
pub const EXAMPLES: [&str; 2] =
    ["--protocol rdp --activity scroll", "--protocol vnc --activity video --step 2 --max-lag 100ms"];

/// How long new sessions are left alone before what they cost is measured.
#[cfg(feature = "engine")]
const SETTLE: Duration = Duration::from_secs(1);

/// The flags of `capacity`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Args)]
pub struct Capacity {
    /// Maximum number of sessions to open.
    #[arg(long, value_name = "SESSIONS", default_value_t = 300, value_parser = values::sessions())]
    pub count: u32,

    /// Number of sessions to add in each step.
    #[arg(long, value_name = "SESSIONS", default_value_t = 4, value_parser = values::sessions())]
    pub step: u32,

    /// Maximum number of sessions to open per second. The rate falls while guacd does not keep up.
    #[arg(long, value_name = "PER_SECOND", default_value = "4")]
    pub rate: Rate,

    /// How long to hold the sessions in each step, while they are measured.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::watched)]
    pub hold: Duration,

    /// How many of the machine's processors guacd may use. The generator, with its targets and clients, uses the others
    /// [default: half of them]. As guacd sees so many, use --pretend-cores to have it start as many threads as elsewhere.
    #[arg(long, value_name = "CORES", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub cores: Option<u32>,

    /// Maximum of the 95th percentile of lag: from the drawing of a frame until its client has received all of it.
    #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = values::hold, help_heading = "Thresholds")]
    pub max_lag: Duration,

    /// Minimum share of the frames that a target is to draw which each client must receive.
    #[arg(long, value_name = "PERCENT", default_value = "90%", help_heading = "Thresholds")]
    pub min_frames: Percent,

    /// Minimum number of sessions that are served well.
    #[arg(long, value_name = "SESSIONS", default_value_t = 1, help_heading = "Thresholds")]
    pub min_capacity: u32,
}

impl Capacity {
    /// The size of the load.
    pub fn size(&self) -> Size {
        Size { sessions: self.count, open_at_once: self.count, rate: self.rate, hold: self.hold }
    }

    /// Finds flags that contradict each other.
    ///
    /// # Errors
    ///
    /// What to change, for a usage error.
    pub fn check(&self, load: &Load) -> Result<(), String> {
        if load.activity == Activity::Idle {
            return Err("a capacity is that of an activity: give --activity type, scroll or video".into());
        }
        if self.cores.is_some() && load.guacd.is_some() {
            return Err("--cores needs --prefix: a guacd that runs already keeps its processors".into());
        }
        if self.step > self.count {
            return Err("there would be no step: give a --step that is no larger than --count".into());
        }
        Ok(())
    }

    /// The checks that decide. Sessions that are not proven are no fault: they end the run.
    pub fn verdict(&self, load: &Load, run: &Run) -> Vec<Check> {
        let sessions = run.capacity.as_ref().map(|capacity| capacity.sessions.into());
        let (min, max) = (self.min_capacity.into(), load.thresholds.max_silent.into());
        vec![
            Check::new("capacity", Bound::AtLeast, min, sessions, "sessions"),
            Check::new("silent", Bound::AtMost, max, Some(run.silent.into()), "sessions"),
        ]
    }
}

#[cfg(feature = "engine")]
impl Capacity {
    /// Adds sessions until a threshold is missed. `cores` is how many processors guacd can use, where that is known.
    pub async fn play(&self, crowd: &mut Crowd<'_>, measurements: &mut Measurements, cores: Option<u32>) {
        let (mut sessions, mut end) = (0, None);
        // What was measured in the last step in which every threshold was met.
        let mut good = Measurements::default();
        while end.is_none() && sessions < self.count {
            let all = (sessions + self.step).min(self.count);
            let round = self.step(crowd, measurements, sessions, all).await;
            measurements.rounds.push(round);
            end = self.missed(&round, cores);
            if end.is_none() {
                sessions = all;
                (good.usage, good.processes, good.drawing) =
                    (measurements.usage, measurements.processes, round.drawing);
            }
        }
        measurements.ramp = Some(crowd.begun.elapsed());
        (measurements.usage, measurements.processes, measurements.drawing) =
            (good.usage, good.processes, good.drawing);
        let (ended_by, reason) =
            end.unwrap_or((CapacityEnd::Count, "there were no more sessions to open (--count)".into()));
        let is_of_cores = matches!(ended_by, CapacityEnd::Lag | CapacityEnd::Frames);
        let grown = good.usage.zip(measurements.usage_before).and_then(|(now, before)| {
            now.memory_bytes.checked_sub(before.memory_bytes).filter(|&bytes| bytes > 0)
        });
        let well = f64::from(sessions);
        measurements.capacity = Some(report::Capacity {
            sessions,
            cores,
            sessions_per_core: cores.filter(|_| is_of_cores).map(|cores| well / f64::from(cores)),
            sessions_per_gib: grown.map(|bytes| well * f64::from(1 << 30) / bytes as f64),
            ended_by,
            reason,
        });
    }

    /// Adds sessions to the first `before`, so that there are `all`, and returns what came of all of them.
    async fn step(
        &self,
        crowd: &mut Crowd<'_>,
        measurements: &mut Measurements,
        before: u32,
        all: u32,
    ) -> Round {
        crowd.open(before as usize..all as usize, Pace::Steady).await;
        // The first picture of a session costs more than those after it.
        crowd.hold(SETTLE).await;
        let drawing = steps::watch(crowd, self.hold).await.map(|(drawing, _)| drawing);
        steps::measure_open_sessions(crowd, measurements).await;
        let proofs = crowd.prove().await;
        Round {
            at_seconds: crowd.begun.elapsed().as_secs_f64(),
            sessions: all,
            proven: proofs.proven,
            proof: proofs.latency,
            settled_seconds: None,
            usage: measurements.usage,
            drawing,
        }
    }

    /// Which threshold is missed, and in words.
    fn missed(&self, round: &Round, cores: Option<u32>) -> Option<(CapacityEnd, String)> {
        let Round { sessions, proven, .. } = *round;
        let Some(drawing) = round.drawing.filter(|_| proven == sessions) else {
            return Some((CapacityEnd::Proof, format!("{proven} of {sessions} sessions proved themselves")));
        };
        let busy = busy(&drawing, cores).map(|busy| format!("; {busy}")).unwrap_or_default();
        let Drawing { asked_per_second, fewest_per_second, lag, .. } = drawing;
        if fewest_per_second * 100.0 < asked_per_second * self.min_frames.value() {
            let reason = format!(
                "of {sessions} sessions, one received {fewest_per_second:.1} of {asked_per_second} frames a second; the \
                 minimum is {} (--min-frames){busy}",
                self.min_frames
            );
            return Some((CapacityEnd::Frames, reason));
        }
        let max = self.max_lag.as_secs_f64() * 1000.0;
        let lag = lag.filter(|lag| lag.p95_ms > max)?;
        let reason = format!(
            "with {sessions} sessions, lag p95 was {:.0} ms; the maximum is {max:.0} ms (--max-lag){busy}",
            lag.p95_ms
        );
        Some((CapacityEnd::Lag, reason))
    }

    /// The steps, and how many sessions there are for each processor and each GiB.
    pub fn section(run: &Run) -> Option<Section> {
        let capacity = run.capacity.as_ref()?;
        let line = |round: &Round| {
            let drawn = round.drawing.map(|drawing| {
                let lag = drawing.lag.map_or_else(|| "no frame".into(), latency);
                let busy = busy(&drawing, capacity.cores).map(|busy| format!("; {busy}")).unwrap_or_default();
                format!("  {:>4.1} frames/s, lag {lag}{busy}", drawing.received_per_second)
            });
            format!(
                "  {:>5} sessions  {:>5} proven{}",
                round.sessions,
                round.proven,
                drawn.unwrap_or_default()
            )
        };
        let mut lines = run.rounds.iter().map(line).collect::<Vec<_>>();
        lines.push(format!("  ended: {}", capacity.reason));
        if capacity.sessions == 0 {
            lines.push(
                "  not even the first step was served well: give a smaller --step, or a lighter --activity"
                    .into(),
            );
        }
        Some(Section { heading: "steps".into(), lines })
    }
}

/// How many processors guacd and the load generator used.
#[cfg(feature = "engine")]
fn busy(drawing: &Drawing, cores: Option<u32>) -> Option<String> {
    let used = |ms_per_second: Option<f64>| Some(ms_per_second? * f64::from(drawing.sessions) / 1000.0);
    let (guacd, generator) = (used(drawing.cpu_ms_per_second)?, used(drawing.generator_cpu_ms_per_second)?);
    let of = cores.map(|cores| format!(" of {cores}")).unwrap_or_default();
    Some(format!("CPU: guacd {guacd:.2}{of}, guac-stress {generator:.2}"))
}

#[cfg(all(test, feature = "engine"))]
mod tests {
    use super::*;
    use crate::report::Latency;
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        capacity: Capacity,
    }

    #[test]
    fn late_frames_and_missing_ones_end_a_run() {
        let capacity = Flags::parse_from(["capacity"]).capacity;
        let round = |proven, fewest_per_second, p95_ms| Round {
            at_seconds: 1.0,
            sessions: 12,
            proven,
            proof: None,
            settled_seconds: None,
            usage: None,
            drawing: Some(Drawing {
                sessions: 12,
                seconds: 10.0,
                asked_per_second: 10.0,
                drawn_per_second: 10.0,
                received_per_second: 10.0,
                fewest_per_second,
                lag: Some(Latency { p50_ms: 1.0, p95_ms, p99_ms: p95_ms, max_ms: p95_ms }),
                bytes_per_second: 1.0,
                cpu_ms_per_second: Some(50.0),
                cpu_ms_per_frame: Some(5.0),
                generator_cpu_ms_per_second: Some(10.0),
            }),
        };
        let missed = |round: Round| capacity.missed(&round, Some(1));
        assert_eq!(missed(round(12, 9.0, 200.0)), None);
        for (bad, end, words) in [
            (round(12, 9.0, 201.0), CapacityEnd::Lag, "lag p95 was 201 ms; the maximum is 200 ms"),
            (round(12, 8.9, 1.0), CapacityEnd::Frames, "one received 8.9 of 10 frames"),
            (round(11, 10.0, 1.0), CapacityEnd::Proof, "11 of 12 sessions"),
            (Round { drawing: None, ..round(12, 10.0, 1.0) }, CapacityEnd::Proof, "12 of 12 sessions"),
        ] {
            let (found, reason) = missed(bad).expect(words);
            assert!(found == end && reason.contains(words), "{found:?}: {reason}");
        }
        assert!(missed(round(12, 8.9, 1.0)).unwrap().1.contains("CPU: guacd 0.60 of 1, guac-stress 0.12"));
    }
}

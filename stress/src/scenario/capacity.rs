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
        self, Drawing, Round,
        text::{Section, latency},
    },
};
use crate::{
    report::{Bound, Check, Run},
    values::{self, Percent, Rate},
};

/// What to type after the name of the program and of the scenario.
pub const EXAMPLES: [&str; 2] =
    ["--protocol rdp --activity scroll", "--protocol vnc --activity video --step 2 --max-lag 100ms"];

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
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::timeout)]
    pub hold: Duration,

    /// How many of the machine's processors guacd may use. The generator, with its targets and clients, uses the others
    /// [default: half of them].
    #[arg(long, value_name = "CORES", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub cores: Option<u32>,

    /// Maximum of the 95th percentile of lag: from the drawing of a frame until its client has received all of it.
    #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = values::hold, help_heading = "Thresholds")]
    pub max_lag: Duration,

    /// Minimum share of the frames that the targets are to draw which must reach the clients.
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
    pub fn check(&self) -> Result<(), String> {
        if self.step > self.count {
            return Err("there would be no step: give a --step that is no larger than --count".into());
        }
        Ok(())
    }

    /// The checks that decide. Sessions that fail in the last step are no fault: they end the run.
    pub fn verdict(&self, run: &Run) -> Vec<Check> {
        let sessions = run.capacity.as_ref().map(|capacity| capacity.sessions.into());
        vec![Check::new("capacity", Bound::AtLeast, self.min_capacity.into(), sessions, "sessions")]
    }
}

#[cfg(feature = "engine")]
impl Capacity {
    /// Adds sessions until a threshold is missed. `processors` is how many of them guacd can use, where that is known.
    pub async fn play(
        &self,
        crowd: &mut Crowd<'_>,
        measurements: &mut Measurements,
        processors: Option<u32>,
    ) {
        let (mut sessions, mut memory, mut ended_by) = (0, None, None);
        while ended_by.is_none() && sessions + self.step <= self.count {
            let (round, missed) = self.step(crowd, measurements, sessions).await;
            if missed.is_none() {
                sessions += self.step;
                memory = round.usage.map(|usage| usage.memory_bytes);
                measurements.drawing = round.drawing;
            }
            measurements.rounds.push(round);
            ended_by = missed;
        }
        measurements.ramp = Some(crowd.begun.elapsed());
        let well = f64::from(sessions);
        measurements.capacity = Some(report::Capacity {
            sessions,
            processors,
            sessions_per_core: processors.map(|processors| well / f64::from(processors)),
            sessions_per_gib: memory.map(|bytes| well / (bytes as f64 / f64::from(1 << 30))),
            ended_by: ended_by.unwrap_or_else(|| "there were no more sessions to open (--count)".into()),
        });
    }

    /// Adds sessions to the first `before`, and returns what came of all of them, and which threshold they missed.
    async fn step(
        &self,
        crowd: &mut Crowd<'_>,
        measurements: &mut Measurements,
        before: u32,
    ) -> (Round, Option<String>) {
        let all = before + self.step;
        crowd.open(before as usize..all as usize, Pace::Steady).await;
        steps::measure_open_sessions(crowd, measurements).await;
        let drawing = steps::watch(crowd, self.hold).await.filter(|drawing| drawing.asked_per_second > 0.0);
        let proofs = crowd.prove().await;
        let round = Round {
            at_seconds: crowd.begun.elapsed().as_secs_f64(),
            sessions: all,
            proven: proofs.proven,
            proof: proofs.latency,
            settled_seconds: None,
            usage: measurements.usage,
            drawing,
        };
        let missed = if proofs.proven < all {
            Some(format!("{} of {all} sessions proved themselves", proofs.proven))
        } else {
            drawing.and_then(|drawing| self.missed(&drawing))
        };
        (round, missed)
    }

    /// Which threshold is missed.
    fn missed(&self, drawing: &Drawing) -> Option<String> {
        let Drawing { asked_per_second, reached_per_second, lag, sessions, .. } = *drawing;
        let max = self.max_lag.as_secs_f64() * 1000.0;
        if reached_per_second * 100.0 < asked_per_second * self.min_frames.value() {
            return Some(format!(
                "{reached_per_second:.1} of {asked_per_second} frames a second reached each of {sessions}"
            ));
        }
        let lag = lag.filter(|lag| lag.p95_ms > max)?;
        Some(format!("of {sessions} sessions, the frames were {:.0} ms late (p95)", lag.p95_ms))
    }

    /// The steps, and how many sessions there are for each processor and each GiB.
    pub fn section(run: &Run) -> Option<Section> {
        let capacity = run.capacity.as_ref()?;
        let line = |round: &Round| {
            let drawn = round.drawing.map(|drawing| {
                let lag = drawing.lag.map_or_else(|| "no frame".into(), latency);
                format!("  {:>4.1} frames/s, lag {lag}", drawing.reached_per_second)
            });
            format!(
                "  {:>5} sessions  {:>5} proven{}",
                round.sessions,
                round.proven,
                drawn.unwrap_or_default()
            )
        };
        let mut lines = run.rounds.iter().map(line).collect::<Vec<_>>();
        lines.push(format!("  ended by: {}", capacity.ended_by));
        let each = |value: Option<f64>, what| {
            value.map(|value| format!(", {value:.0} for each {what}")).unwrap_or_default()
        };
        let heading = format!(
            "{} sessions{}{}",
            capacity.sessions,
            each(capacity.sessions_per_core, "processor"),
            each(capacity.sessions_per_gib, "GiB of guacd's memory"),
        );
        Some(Section { heading, lines })
    }
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
        let drawing = |reached_per_second, p95_ms| Drawing {
            sessions: 12,
            seconds: 10.0,
            asked_per_second: 10.0,
            drawn_per_second: 10.0,
            reached_per_second,
            lag: Some(Latency { p50_ms: 1.0, p95_ms, p99_ms: p95_ms, max_ms: p95_ms }),
            bytes_per_second: 1.0,
            cpu_ms_per_second: None,
            cpu_ms_per_frame: None,
        };
        assert_eq!(capacity.missed(&drawing(9.0, 200.0)), None);
        assert!(capacity.missed(&drawing(9.0, 201.0)).unwrap().contains("201 ms late"));
        assert!(capacity.missed(&drawing(8.9, 1.0)).unwrap().contains("8.9 of 10 frames"));
    }
}

//! `soak`: do sessions last? They are held open for long, and prove themselves again and again. guacd's memory must not grow.

use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
#[cfg(feature = "engine")]
use tokio::time::Instant;

use super::{checks, size::Size};
#[cfg(feature = "engine")]
use super::{results::Measurements, steps};
#[cfg(feature = "engine")]
use crate::{
    load::{
        crowd::{Crowd, Pace},
        latency::Times,
    },
    report::{
        Round,
        text::{Section, latency, seconds},
    },
};
use crate::{
    report::{Check, Run},
    values::{self, Percent, Rate},
};

/// What to type after the name of the program and of the scenario.
pub const EXAMPLES: [&str; 2] =
    ["--count 100 --hold 10m --prove-every 30s", "--count 300 --hold 8h --prove-every 5m"];

/// About the maximum number of proofs that are shown.
#[cfg(feature = "engine")]
const SHOWN: usize = 10;

/// The flags of `soak`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Args)]
pub struct Soak {
    /// Number of sessions to hold open at the same time.
    #[arg(long, value_name = "SESSIONS", default_value_t = 100, value_parser = values::sessions())]
    pub count: u32,

    /// Maximum number of sessions to open per second. The rate falls while guacd does not keep up.
    #[arg(long, value_name = "PER_SECOND", default_value = "8")]
    pub rate: Rate,

    /// How long to hold all sessions open together.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = values::hold)]
    pub hold: Duration,

    /// How often all sessions have to prove that they are alive while they are held.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::timeout)]
    pub prove_every: Duration,

    /// Maximum growth of guacd's memory: from the median of the first fifth of the proofs to that of the last fifth.
    #[arg(long, value_name = "PERCENT", default_value = "5%", help_heading = "Thresholds")]
    pub max_memory_growth: Percent,
}

impl Soak {
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
        if self.prove_every > self.hold {
            return Err("the sessions would not prove themselves even once: give a longer --hold or a shorter --prove-every".into());
        }
        Ok(())
    }

    /// The checks that only this scenario has.
    pub fn verdict(&self, run: &Run) -> Vec<Check> {
        let checks = run.guacd.iter().map(|_| checks::memory_growth(self.max_memory_growth, &run.rounds));
        checks.collect()
    }
}

#[cfg(feature = "engine")]
impl Soak {
    /// Opens the sessions, and makes them prove themselves again and again.
    pub async fn play(&self, crowd: &mut Crowd<'_>, measurements: &mut Measurements) {
        if !steps::open_all(crowd, measurements, self.count, Pace::Steady).await {
            return;
        }
        let end = Instant::now() + self.hold;
        steps::measure_open_sessions(crowd, measurements).await;
        let mut turn = Instant::now();
        loop {
            turn += self.prove_every;
            let time = turn.min(end).saturating_duration_since(Instant::now());
            let (drawing, lags) = steps::watch(crowd, time).await.unzip();
            lags.iter().filter_map(Times::histogram).for_each(|lags| measurements.lags.add(&lags));
            let proof = crowd.prove().await;
            let usage = steps::usage(crowd).await;
            measurements.rounds.push(Round {
                at_seconds: crowd.begun.elapsed().as_secs_f64(),
                sessions: proof.sessions,
                proven: proof.proven,
                proof: proof.latency,
                settled_seconds: None,
                usage,
                drawing: drawing.filter(|drawing| drawing.asked_per_second > 0.0),
            });
            if turn >= end || crowd.alive() == 0 || crowd.died.is_some() {
                return;
            }
        }
    }

    /// The proofs, or some of them where there are many.
    pub fn section(run: &Run) -> Option<Section> {
        if run.rounds.is_empty() {
            return None;
        }
        let step = if run.rounds.len() > SHOWN { run.rounds.len() / SHOWN } else { 1 };
        let line = |round: &Round| {
            let proof = round.proof.map(latency).unwrap_or_default();
            let lag =
                round.drawing.and_then(|drawing| drawing.lag).map(|lag| format!("; lag {}", latency(lag)));
            let lag = lag.unwrap_or_default();
            format!(
                "  at {:>9}  {} of {}, {proof}{lag}",
                seconds(round.at_seconds),
                round.proven,
                round.sessions
            )
        };
        let lines = run.rounds.iter().step_by(step).map(line).collect();
        Some(Section { heading: format!("{} proofs", run.rounds.len()), lines })
    }
}

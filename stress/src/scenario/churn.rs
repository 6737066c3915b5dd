//! `churn`: does guacd release what its sessions used? Sessions are opened, proven and closed in waves. Afterwards guacd must
//! have no more descriptors, threads, processes, keys and memory than before.

use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{checks, size::Size};
#[cfg(feature = "engine")]
use super::{results::Measurements, steps};
#[cfg(feature = "engine")]
use crate::{
    load::crowd::{Crowd, Pace},
    report::{
        Round,
        text::{Section, mib},
    },
};
use crate::{
    report::{Check, Run},
    values::{self, Percent, Rate},
};

/// What to type after the name of the program and of the scenario.
pub const EXAMPLES: [&str; 2] = ["--count 1000 --wave 100", "--count 200 --wave 20 --max-memory-growth 10%"];

/// The flags of `churn`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Args)]
pub struct Churn {
    /// Number of sessions in all waves together.
    #[arg(long, value_name = "SESSIONS", default_value_t = 1000, value_parser = values::sessions())]
    pub count: u32,

    /// Number of sessions in each wave, which are open at the same time.
    #[arg(long, value_name = "SESSIONS", default_value_t = 100, value_parser = values::sessions())]
    pub wave: u32,

    /// Maximum number of sessions to open per second. The rate falls while guacd does not keep up.
    #[arg(long, value_name = "PER_SECOND", default_value = "8")]
    pub rate: Rate,

    /// How long to hold each wave open before its sessions have to prove that they are alive.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = values::hold)]
    pub hold: Duration,

    /// Maximum time for guacd to end the processes of a wave.
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = values::hold)]
    pub settle: Duration,

    /// Maximum number of descriptors, threads and processes that guacd has after the last wave and did not have before the
    /// first; and of pthread keys that it did not have after the first.
    #[arg(long, value_name = "NUMBER", default_value_t = 0, help_heading = "Thresholds")]
    pub max_leftover: u32,

    /// Maximum growth of guacd's memory: from the median of the first fifth of the waves to that of the last fifth.
    #[arg(long, value_name = "PERCENT", default_value = "5%", help_heading = "Thresholds")]
    pub max_memory_growth: Percent,
}

impl Churn {
    /// The size of the load.
    pub fn size(&self) -> Size {
        let open_at_once = self.count.min(self.wave);
        Size { sessions: self.count, open_at_once, rate: self.rate, hold: self.hold }
    }

    /// Finds flags that contradict each other.
    ///
    /// # Errors
    ///
    /// What to change, for a usage error.
    pub fn check(&self) -> Result<(), String> {
        if self.wave >= self.count {
            return Err(format!(
                "churn needs at least two waves: give a --wave that is less than the --count of {}",
                self.count
            ));
        }
        Ok(())
    }

    /// The checks that only this scenario has.
    pub fn verdict(&self, run: &Run) -> Vec<Check> {
        let Some(guacd) = &run.guacd else { return Vec::new() };
        let mut checks =
            Vec::from(checks::leftover(self.max_leftover, guacd.usage_before, guacd.usage_after));
        checks.extend(checks::leftover_keys(self.max_leftover, guacd));
        checks.push(checks::memory_growth(self.max_memory_growth, &run.rounds));
        checks
    }
}

#[cfg(feature = "engine")]
impl Churn {
    /// Opens, proves and closes one wave after another.
    pub async fn play(&self, crowd: &mut Crowd<'_>, measurements: &mut Measurements) {
        let (count, wave) = (self.count as usize, self.wave as usize);
        for first in (0..count).step_by(wave) {
            crowd.open(first..count.min(first + wave), Pace::Steady).await;
            if crowd.died.is_some() {
                return;
            }
            if first == 0 {
                steps::measure_open_sessions(crowd, measurements).await;
            }
            crowd.hold(self.hold).await;
            let proof = crowd.prove().await;
            crowd.wait_until_informed().await;
            crowd.close().await;
            let settled_seconds = steps::settle(crowd, measurements.usage_before, self.settle).await;
            let usage = steps::usage(crowd).await;
            if first == 0 {
                measurements.keys_after_first_round = crowd.guacd.as_ref().and_then(|guacd| guacd.keys());
            }
            measurements.rounds.push(Round {
                at_seconds: crowd.begun.elapsed().as_secs_f64(),
                sessions: proof.sessions,
                proven: proof.proven,
                proof: proof.latency,
                settled_seconds,
                usage,
                drawing: None,
            });
            measurements.usage_after = usage;
        }
        measurements.ramp = Some(crowd.begun.elapsed());
    }

    /// What guacd used before the waves, after the first and after the last.
    pub fn section(run: &Run) -> Option<Section> {
        let [first, .., last] = &run.rounds[..] else { return None };
        let before = run.guacd.as_ref().and_then(|guacd| guacd.usage_before);
        let mut lines = Vec::new();
        for (when, usage) in
            [("before", before), ("after the first", first.usage), ("after the last", last.usage)]
        {
            let Some(usage) = usage else { continue };
            lines.push(format!(
                "  {when:>15}  {} files, {} threads, {} children, {:.1} MiB",
                usage.parent_descriptors,
                usage.parent_threads,
                usage.children,
                mib(usage.memory_bytes)
            ));
        }
        let settled = run.rounds.iter().map(|round| round.settled_seconds).collect::<Option<Vec<_>>>();
        match settled.map(|all| all.into_iter().fold(0.0, f64::max)) {
            Some(slowest) => lines.push(format!("  {:>15}  {slowest:.1} s at most", "settled in")),
            None if before.is_some() => lines.push(format!("  {:>15}  not after every wave", "settled")),
            None => {}
        }
        Some(Section { heading: format!("{} waves", run.rounds.len()), lines })
    }
}

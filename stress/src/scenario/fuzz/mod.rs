//! `fuzz`: does guacd survive clients that do not keep to the protocol, and targets that print anything? It sends malformed
//! handshakes, sends odd instructions to sessions that are up, or plays terminal sessions, while other sessions are held open.
//! These have to prove themselves afterwards, and no process of guacd may crash.

#[cfg(feature = "engine")]
use std::path::Path;
use std::{path::PathBuf, time::Duration};

#[cfg(feature = "engine")]
use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};

#[cfg(feature = "engine")]
use self::{
    handshake::{Handshake, Handshakes},
    script::Scripts,
    session::{SessionScript, Sessions},
    terminal::{TerminalScript, Terminals},
};
use super::{checks, size::Size};
#[cfg(feature = "engine")]
use super::{
    results::{Context, Measurements, random_seed},
    steps,
};
#[cfg(feature = "engine")]
use crate::{
    load::crowd::{Crowd, Pace},
    report::text::{BAD, FAINT, Section},
};
use crate::{
    report::{Bound::AtMost, Check, FuzzKind, Run},
    values::{self, Rate},
};

#[cfg(feature = "engine")]
mod handshake;
#[cfg(feature = "engine")]
mod pool;
#[cfg(feature = "engine")]
mod script;
#[cfg(feature = "engine")]
mod session;
#[cfg(feature = "engine")]
mod terminal;

/// What to type after the name of the program and of the scenario.
pub const EXAMPLES: [&str; 2] =
    ["--kind terminal --inputs 1000 --seed 7", "--replay fuzz-handshake-7-1234.json --count 2"];

/// The flags of `fuzz`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Args)]
pub struct Fuzz {
    /// Number of sessions to hold open while the inputs are sent.
    #[arg(long, value_name = "SESSIONS", default_value_t = 20, value_parser = values::sessions())]
    pub count: u32,

    /// Maximum number of sessions to open per second. The rate falls while guacd does not keep up.
    #[arg(long, value_name = "PER_SECOND", default_value = "8")]
    pub rate: Rate,

    /// What the inputs are.
    #[arg(long, value_enum, default_value = "handshake")]
    pub kind: FuzzKind,

    /// Number of inputs to send.
    #[arg(long, value_name = "INPUTS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub inputs: u32,

    /// Send only what an earlier run has saved in this file, of whatever kind it is.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["inputs", "kind"])]
    pub replay: Option<PathBuf>,

    /// The seed of the random numbers, to repeat a run. The report contains it. [default: random]
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,

    /// Maximum time for guacd to end the processes of the last inputs. It gives up a silent handshake after 15 s.
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = values::hold)]
    pub settle: Duration,

    /// Maximum number of descriptors, threads and processes that guacd has after the last input and did not have before the
    /// first.
    #[arg(long, value_name = "NUMBER", default_value_t = 0, help_heading = "Thresholds")]
    pub max_leftover: u32,

    /// Maximum number of guacd's processes that crash: that abort, or whose memory is corrupt.
    #[arg(long, value_name = "NUMBER", default_value_t = 0, help_heading = "Thresholds")]
    pub max_crashes: u32,
}

impl Fuzz {
    /// The size of the load.
    pub fn size(&self) -> Size {
        Size { sessions: self.count, open_at_once: self.count, rate: self.rate, hold: Duration::ZERO }
    }

    /// The checks that only this scenario has. Crashes are checked only where guacd's log is read.
    pub fn verdict(&self, run: &Run) -> Vec<Check> {
        let mut checks = Vec::new();
        // The sessions that are held are there before and after.
        if let Some(guacd) = &run.guacd {
            checks.extend(checks::leftover(self.max_leftover, guacd.usage, guacd.usage_after));
        }
        let at_most = |name, max: u32, measured: u32, unit| {
            Check::new(name, AtMost, max.into(), Some(measured.into()), unit)
        };
        if let Some(fuzz) = &run.fuzz {
            match fuzz.kind {
                FuzzKind::Handshake => {
                    checks.push(at_most("connections not ended in time", 0, fuzz.unanswered, "connections"));
                }
                FuzzKind::Terminal => {
                    checks.push(at_most("sessions ended without a reason", 0, fuzz.closed, "sessions"));
                    checks.push(at_most("silent sessions", 0, fuzz.unanswered, "sessions"));
                }
                FuzzKind::Session => {
                    checks.push(at_most("sessions that did not open", 0, fuzz.abandoned, "sessions"));
                    checks.push(at_most("silent sessions", 0, fuzz.unanswered, "sessions"));
                }
            }
            checks.extend(
                fuzz.crashes.map(|crashes| at_most("crashes", self.max_crashes, crashes, "processes")),
            );
        }
        checks
    }
}

/// The inputs of a run.
#[cfg(feature = "engine")]
enum Inputs {
    Handshakes(Scripts<Handshake>),
    Terminals(Scripts<TerminalScript>),
    Sessions(Scripts<SessionScript>),
}

#[cfg(feature = "engine")]
impl Inputs {
    fn generate(kind: FuzzKind, seed: u64, inputs: u32) -> Self {
        match kind {
            FuzzKind::Handshake => Self::Handshakes(Scripts::Generated { seed, inputs }),
            FuzzKind::Terminal => Self::Terminals(Scripts::Generated { seed, inputs }),
            FuzzKind::Session => Self::Sessions(Scripts::Generated { seed, inputs }),
        }
    }

    /// Reads what an earlier run has saved: the file says of which kind it is.
    fn load(file: &Path) -> Result<Self> {
        let saved = std::fs::read(file).unwrap_or_default();
        Ok(if let Some(script) = TerminalScript::parse(&saved) {
            Self::Terminals(Scripts::Replayed(script))
        } else if let Some(script) = SessionScript::parse(&saved) {
            Self::Sessions(Scripts::Replayed(script))
        } else {
            Self::Handshakes(Scripts::Replayed(Handshake::load(file)?))
        })
    }

    /// Plays them while the crowd's sessions are open.
    async fn play(self, crowd: &mut Crowd<'_>, logs: &Path) -> Result<crate::report::Fuzz> {
        match self {
            Self::Handshakes(scripts) => pool::run::<Handshakes>(crowd, scripts, logs).await,
            Self::Terminals(scripts) => pool::run::<Terminals>(crowd, scripts, logs).await,
            Self::Sessions(scripts) => pool::run::<Sessions>(crowd, scripts, logs).await,
        }
    }
}

#[cfg(feature = "engine")]
impl Fuzz {
    /// Opens the sessions, plays the inputs, and makes the sessions prove themselves.
    ///
    /// # Errors
    ///
    /// When the file to be replayed cannot be read, or one cannot be saved.
    pub async fn play(
        &self,
        crowd: &mut Crowd<'_>,
        measurements: &mut Measurements,
        context: &Context,
    ) -> Result<()> {
        let seed = self.seed.unwrap_or_else(random_seed);
        measurements.seed = Some(seed);
        let inputs = match &self.replay {
            Some(file) => Inputs::load(file)?,
            None => Inputs::generate(self.kind, seed, self.inputs),
        };
        if steps::open_all(crowd, measurements, self.count, Pace::Steady).await {
            steps::measure_open_sessions(crowd, measurements).await;
            measurements.fuzz = Some(inputs.play(crowd, &context.logs).await?);
            steps::settle(crowd, measurements.usage, self.settle).await;
            measurements.usage_after = steps::usage(crowd).await;
            crowd.prove().await;
        }
        Ok(())
    }

    /// How guacd answered, and which inputs were saved.
    pub fn section(run: &Run) -> Option<Section> {
        let fuzz = run.fuzz.as_ref()?;
        let mut lines = vec![match fuzz.kind {
            FuzzKind::Handshake => format!(
                "  {} answered with an error, {} with ready, {} closed, {} abandoned, {} not ended in time",
                fuzz.errors, fuzz.ready, fuzz.closed, fuzz.abandoned, fuzz.unanswered
            ),
            FuzzKind::Terminal => format!(
                "  {} proven, {} ended with an error, {} ended without one, {} silent",
                fuzz.ready, fuzz.errors, fuzz.closed, fuzz.unanswered
            ),
            FuzzKind::Session => format!(
                "  of their sessions, {} answered at their end, {} ended with an error, {} ended without one, {} did not open, {} silent",
                fuzz.ready, fuzz.errors, fuzz.closed, fuzz.abandoned, fuzz.unanswered
            ),
        }];
        match fuzz.crashes {
            None => lines.push("  crashes are not known, because guacd's log is not read".into()),
            Some(0) => {}
            Some(crashes) => lines.push(format!("  {BAD}{crashes} processes crashed{BAD:#}")),
        }
        lines.extend(
            fuzz.saved.iter().map(|file| format!("  {FAINT}to repeat it:{FAINT:#} fuzz --replay {file}")),
        );
        Some(Section { heading: fuzz.kind.describe(fuzz.inputs), lines })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report;
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        fuzz: Fuzz,
    }

    #[test]
    fn crashes_are_judged_where_they_can_be_seen() {
        let judged = |crashes| {
            let fuzz = report::Fuzz {
                kind: FuzzKind::Handshake,
                inputs: 1,
                errors: 0,
                ready: 0,
                closed: 1,
                abandoned: 0,
                unanswered: 0,
                crashes,
                saved: Vec::new(),
            };
            let run = Run { fuzz: Some(fuzz), ..Run::default() };
            let checks = Flags::parse_from(["fuzz"]).fuzz.verdict(&run);
            checks.iter().map(|check| check.passed).collect::<Vec<_>>()
        };
        assert_eq!(judged(None), [true]);
        assert_eq!(judged(Some(0)), [true, true]);
        assert_eq!(judged(Some(1)), [true, false]);
    }
}

//! What is done to guacd, and which checks decide? One file per scenario: its flags and their defaults, what it does, its checks,
//! and what it adds to the report's table.

use serde::{Deserialize, Serialize};

#[cfg(feature = "engine")]
use self::results::{Context, Measurements};
use self::{
    burst::Burst, capacity::Capacity, chaos::Chaos, churn::Churn, fuzz::Fuzz, hold::Hold, size::Size,
    soak::Soak,
};
#[cfg(feature = "engine")]
use crate::{load::crowd::Crowd, report::text::Section};
use crate::{
    load::flags::Load,
    report::{Check, Run, ScenarioName},
};

pub mod burst;
pub mod capacity;
pub mod chaos;
pub mod checks;
pub mod churn;
pub mod fuzz;
pub mod hold;
pub mod size;
pub mod soak;

#[cfg(feature = "engine")]
pub mod results;
#[cfg(feature = "engine")]
pub mod run;
#[cfg(feature = "engine")]
mod steps;

/// A scenario, with its flags.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scenario {
    /// Sessions are opened at a steady rate, held open together, and prove themselves.
    Hold(Hold),
    /// The same, but the rate does not depend on whether guacd keeps up.
    Burst(Burst),
    /// Sessions are opened, proven and closed in waves.
    Churn(Churn),
    /// Sessions are held for long, and prove themselves again and again.
    Soak(Soak),
    /// Some sessions are disrupted on purpose, and all others prove themselves.
    Chaos(Chaos),
    /// Malformed input is sent while sessions are held open.
    Fuzz(Fuzz),
    /// Sessions are added until they are no longer served well.
    Capacity(Capacity),
}

impl Scenario {
    /// Its name.
    pub fn name(&self) -> ScenarioName {
        match self {
            Self::Hold(_) => ScenarioName::Hold,
            Self::Burst(_) => ScenarioName::Burst,
            Self::Churn(_) => ScenarioName::Churn,
            Self::Soak(_) => ScenarioName::Soak,
            Self::Chaos(_) => ScenarioName::Chaos,
            Self::Fuzz(_) => ScenarioName::Fuzz,
            Self::Capacity(_) => ScenarioName::Capacity,
        }
    }

    /// The size of its load.
    pub fn size(&self) -> Size {
        match self {
            Self::Hold(hold) => hold.size(),
            Self::Burst(burst) => burst.size(),
            Self::Churn(churn) => churn.size(),
            Self::Soak(soak) => soak.size(),
            Self::Chaos(chaos) => chaos.size(),
            Self::Fuzz(fuzz) => fuzz.size(),
            Self::Capacity(capacity) => capacity.size(),
        }
    }

    /// Finds flags that contradict each other, beyond what clap refuses.
    ///
    /// # Errors
    ///
    /// What to change, for a usage error.
    pub fn check(&self, load: &Load) -> Result<(), String> {
        match self {
            Self::Hold(_) | Self::Burst(_) | Self::Fuzz(_) => Ok(()),
            Self::Churn(churn) => churn.check(),
            Self::Soak(soak) => soak.check(),
            Self::Chaos(chaos) => chaos.check(load),
            Self::Capacity(capacity) => capacity.check(load),
        }
    }

    /// The checks that decide whether a run passed.
    pub fn verdict(&self, load: &Load, run: &Run) -> Vec<Check> {
        let mut checks = match self {
            Self::Capacity(_) => Vec::new(),
            _ => Vec::from(checks::sessions(&load.thresholds, run)),
        };
        checks.extend(match self {
            Self::Hold(_) | Self::Burst(_) => Vec::new(),
            Self::Churn(churn) => churn.verdict(run),
            Self::Soak(soak) => soak.verdict(run),
            Self::Chaos(chaos) => chaos.verdict(run),
            Self::Fuzz(fuzz) => fuzz.verdict(run),
            Self::Capacity(capacity) => capacity.verdict(load, run),
        });
        checks.extend(checks::optional(&load.thresholds, run));
        checks
    }
}

#[cfg(feature = "engine")]
impl Scenario {
    /// Opens sessions, and does to guacd what the scenario is for.
    ///
    /// # Errors
    ///
    /// When an input of `fuzz` cannot be read or saved.
    pub async fn play(
        &self,
        crowd: &mut Crowd<'_>,
        measurements: &mut Measurements,
        context: &Context,
    ) -> anyhow::Result<()> {
        match self {
            Self::Hold(hold) => hold.play(crowd, measurements).await,
            Self::Burst(burst) => burst.play(crowd, measurements).await,
            Self::Churn(churn) => churn.play(crowd, measurements).await,
            Self::Soak(soak) => soak.play(crowd, measurements).await,
            Self::Chaos(chaos) => chaos.play(crowd, measurements, context).await,
            Self::Fuzz(fuzz) => fuzz.play(crowd, measurements, context).await?,
            Self::Capacity(capacity) => capacity.play(crowd, measurements, context.cores).await,
        }
        Ok(())
    }
}

/// What the scenario of a run adds to the report's table.
#[cfg(feature = "engine")]
pub fn section(run: &Run) -> Option<Section> {
    match run.scenario {
        ScenarioName::Hold | ScenarioName::Burst => None,
        ScenarioName::Churn => Churn::section(run),
        ScenarioName::Soak => Soak::section(run),
        ScenarioName::Chaos => Chaos::section(run),
        ScenarioName::Fuzz => Fuzz::section(run),
        ScenarioName::Capacity => Capacity::section(run),
    }
}

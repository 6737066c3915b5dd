//! What is a run asked to do? All of it in one value, which crosses from `cargo xtask stress` to guac-stress as JSON.

use serde::{Deserialize, Serialize};

use crate::{guacd::flags::Guacds, load::flags::Load, scenario::Scenario};

/// A whole run. It names files with passwords and keys, and never holds their contents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What is done to each guacd.
    pub scenario: Scenario,
    /// What is common to the load of every scenario.
    pub load: Load,
    /// The guacds to start, unless one that runs already is loaded.
    pub guacds: Guacds,
    /// What the user typed, for the report.
    #[serde(default)]
    pub command: Vec<String>,
}

impl Plan {
    /// Finds flags that contradict each other, beyond what clap refuses.
    ///
    /// # Errors
    ///
    /// What to change, for a usage error.
    pub fn check(&self) -> Result<(), String> {
        if self.load.guacd.is_some() != self.guacds.prefixes.is_empty() {
            return Err("give either --guacd or --prefix".into());
        }
        self.guacds.check()?;
        self.scenario.check(&self.load)?;
        self.load.check()
    }
}

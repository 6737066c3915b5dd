//! What does a scenario measure, beyond what the crowd of its sessions knows?

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde_json::Value;

use crate::{
    load::latency::Times,
    report::{Capacity, Drawing, FirstAndLast, Fuzz, Keys, Round, Usage},
    target::connections::Connections,
};

/// What the report says about a run, and what its scenario needs besides the sessions.
pub struct Context {
    /// The guacamole-server release.
    pub release: Option<String>,
    /// The name of the variant.
    pub variant: String,
    /// The manifest of the prefix that guacd is in.
    pub manifest: Option<Value>,
    /// The directory for the files that stay.
    pub logs: PathBuf,
    /// guacd's connections to the embedded servers, if there are any.
    pub connections: Option<Arc<Connections>>,
    /// How many processors guacd can use, where that is known.
    pub cores: Option<u32>,
}

/// What a scenario measures.
#[derive(Default)]
pub struct Measurements {
    /// The seed of the random numbers.
    pub seed: Option<u64>,
    /// From the first session's start until the last had come up or failed.
    pub ramp: Option<Duration>,
    /// What guacd used before the first session.
    pub usage_before: Option<Usage>,
    /// What it used with all sessions open.
    pub usage: Option<Usage>,
    /// What it used in the end.
    pub usage_after: Option<Usage>,
    /// guacd's processes for the first and the last session.
    pub processes: Option<FirstAndLast>,
    /// guacd's processor time per session and second while nothing was typed, in milliseconds.
    pub idle_cpu_ms_per_second: Option<f64>,
    /// What the targets drew while all sessions were held.
    pub drawing: Option<Drawing>,
    /// The lags of what they drew.
    pub lags: Times,
    /// How many sessions were served well.
    pub capacity: Option<Capacity>,
    /// Waves, proofs, or steps.
    pub rounds: Vec<Round>,
    /// The pthread keys after the first wave.
    pub keys_after_first_round: Option<Keys>,
    /// What `fuzz` sent, and how guacd answered.
    pub fuzz: Option<Fuzz>,
}

/// A seed of random numbers, where the user gives none. 32 bits are enough, and easy to copy.
pub fn random_seed() -> u64 {
    u64::from(fastrand::u32(..))
}

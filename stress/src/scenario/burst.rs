//! `burst`: what happens when many sessions come at once? They are opened at the rate whether guacd keeps up or not, held open
//! together, and then each has to prove itself.

use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::size::Size;
#[cfg(feature = "engine")]
use super::{results::Measurements, steps};
#[cfg(feature = "engine")]
use crate::load::crowd::{Crowd, Pace};
use crate::values::{self, Rate};

/// What to type after the name of the program and of the scenario.
pub const EXAMPLES: [&str; 2] = ["--count 300 --rate 200", "--count 50 --rate 100 --min-proven 90%"];

/// The flags of `burst`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Args)]
pub struct Burst {
    /// Number of sessions to open.
    #[arg(long, value_name = "SESSIONS", default_value_t = 300, value_parser = values::sessions())]
    pub count: u32,

    /// Number of sessions to open per second, whether guacd keeps up or not.
    #[arg(long, value_name = "PER_SECOND", default_value = "200")]
    pub rate: Rate,

    /// How long to hold all sessions open together before they have to prove that they are alive.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::hold)]
    pub hold: Duration,
}

impl Burst {
    /// The size of the load.
    pub fn size(&self) -> Size {
        Size { sessions: self.count, open_at_once: self.count, rate: self.rate, hold: self.hold }
    }
}

#[cfg(feature = "engine")]
impl Burst {
    /// Opens, holds and proves the sessions.
    pub async fn play(&self, crowd: &mut Crowd<'_>, measurements: &mut Measurements) {
        if steps::open_all(crowd, measurements, self.count, Pace::Forced).await {
            steps::hold(crowd, measurements, self.hold).await;
            crowd.prove().await;
        }
    }
}

//! `hold`: how many sessions can be open at the same time? They are opened at a steady rate, held open together, and then each
//! has to prove itself.

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
pub const EXAMPLES: [&str; 2] =
    ["--count 300 --key-limit 128", "--count 1000 --rate 50 --hold 1m --max-shutdown 5s"];

/// The flags of `hold`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Args)]
pub struct Hold {
    /// Number of sessions to hold open at the same time.
    #[arg(long, value_name = "SESSIONS", default_value_t = 300, value_parser = values::sessions())]
    pub count: u32,

    /// Maximum number of sessions to open per second. The rate falls while guacd does not keep up.
    ///
    /// The default is what a stock guacd takes reliably, so that it can be compared with a patched one, which takes 200 a
    /// second. Stock forks while its other threads log; a child that is forked while the log's lock is held hangs for ever,
    /// and the higher the rate, the more of them do. Measured with stock 1.6.0 on two cores: of 300 sessions, all lived at 5,
    /// 6, 8 and 10 a second with a syslog to write to, and all at 12 without; at 20, one died; at 25, 11 to 22 of 200 hung.
    #[arg(long, value_name = "PER_SECOND", default_value = "8")]
    pub rate: Rate,

    /// How long to hold all sessions open together before they have to prove that they are alive.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::hold)]
    pub hold: Duration,
}

impl Hold {
    /// The size of the load.
    pub fn size(&self) -> Size {
        Size { sessions: self.count, open_at_once: self.count, rate: self.rate, hold: self.hold }
    }
}

#[cfg(feature = "engine")]
impl Hold {
    /// Opens, holds and proves the sessions.
    pub async fn play(&self, crowd: &mut Crowd<'_>, measurements: &mut Measurements) {
        if steps::open_all(crowd, measurements, self.count, Pace::Steady).await {
            steps::hold(crowd, measurements, self.hold).await;
            crowd.prove().await;
        }
    }
}

//! What state is a session in?

use std::time::{Duration, Instant};

use super::session::Failed;
use crate::report::FaultKind;

/// The state of one session.
pub enum State {
    /// It was not begun yet.
    Waiting,
    /// It was begun then, and its first nonce has not come back yet.
    Coming(Instant),
    /// Its first nonce came back, and it is open.
    Alive,
    /// The nonce of the last proof came back, and it is open.
    Proven,
    /// It was proven, and then closed.
    Closed,
    /// It failed.
    Failed(Failure),
    /// It was disrupted on purpose.
    Disrupted(Disruption),
}

/// The number of the kind [`State::Failed`].
pub const FAILED: usize = 5;

/// How many kinds of states there are.
pub const KINDS: usize = 7;

impl State {
    /// The number of the kind of state, below [`KINDS`].
    pub fn kind(&self) -> usize {
        match self {
            Self::Waiting => 0,
            Self::Coming(_) => 1,
            Self::Alive => 2,
            Self::Proven => 3,
            Self::Closed => 4,
            Self::Failed(_) => FAILED,
            Self::Disrupted(_) => 6,
        }
    }
}

/// The failure of a session.
pub struct Failure {
    /// What the session reported.
    pub failed: Failed,
    /// When the session reported it.
    pub at: Instant,
    /// The most telling line of guacd's log about the session by then.
    pub log_line: Option<String>,
    /// Whether the client was informed. None as long as that is not known.
    pub informed: Option<bool>,
}

/// A disruption of a session.
pub struct Disruption {
    /// How it was disrupted.
    pub kind: FaultKind,
    /// When it was disrupted.
    pub at: Instant,
    /// How long it may take to end as it should.
    pub within: Duration,
    /// How long that took. None as long as it has not ended.
    pub ended: Option<Duration>,
}

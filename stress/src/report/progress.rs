//! How far has a run come?

use super::FuzzKind;

/// The state of a run, for those who watch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What the run is doing.
    pub step: Step,
    /// How many sessions were asked for.
    pub requested: u32,
    /// How many were begun.
    pub started: u32,
    /// How many are open, with a first proof.
    pub alive: u32,
    /// How many have given the last proof that was asked of them.
    pub proven: u32,
    /// How many have failed.
    pub failed: u32,
}

/// What a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Sessions are being opened.
    Ramp,
    /// All are open.
    Hold,
    /// All have to give back a fresh nonce.
    Proof,
    /// All were closed, and guacd gets time to notice.
    Settle,
    /// Some are being disrupted.
    Chaos,
    /// So many inputs of this kind were sent.
    Fuzz(FuzzKind, u32),
    /// guacd was sent SIGTERM, and has not ended yet.
    Shutdown,
}

impl Progress {
    /// One line, for people.
    pub fn line(&self) -> String {
        let step = match self.step {
            Step::Ramp => format!("opening {}/{}", self.started, self.requested),
            Step::Hold => "holding".into(),
            Step::Proof => "proving".into(),
            Step::Settle => format!("settling at {}/{}", self.started, self.requested),
            Step::Chaos => "disrupting".into(),
            Step::Fuzz(kind, sent) => kind.describe(sent),
            Step::Shutdown => "shutting down".into(),
        };
        format!("{step}: {} alive, {} proven, {} failed", self.alive, self.proven, self.failed)
    }
}

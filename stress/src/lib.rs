//! A load generator for any guacd: it opens many sessions at once over the real Guacamole protocol, with real SSH behind
//! them. A session counts as alive only when what was typed into it has come back.
//!
//! Two parts. The light part has the flags and the report, and other tools of the workspace use it alone: [`cli`] (a subcommand
//! per scenario), [`plan`] (what a run is asked to do), [`report`] (the result), and the flags in [`scenario`], [`load`] and
//! [`guacd`]. The rest is the engine, behind the feature `engine`.
//!
//! Reading order: [`wire`] (the protocol, without I/O), [`load`] (one session, and all of them: ramp, hold, proof),
//! [`scenario`] (what is done with the sessions, and which checks decide), [`guacd`] (the daemon under test), [`target`] (what
//! guacd connects to), [`report`] (the result and its printers), [`program`] (a whole invocation).

pub mod cli;
pub mod guacd;
pub mod load;
pub mod plan;
pub mod report;
pub mod scenario;
pub mod values;
pub mod wire;

#[cfg(feature = "engine")]
pub mod machine;
#[cfg(feature = "engine")]
pub mod preflight;
#[cfg(feature = "engine")]
pub mod program;
#[cfg(feature = "engine")]
pub mod reaper;
#[cfg(feature = "engine")]
pub mod reports;
#[cfg(feature = "engine")]
pub mod target;

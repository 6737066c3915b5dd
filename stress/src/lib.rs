//! A load generator for any guacd: it opens many sessions at once over the real Guacamole protocol, with real SSH behind
//! them, and counts a session as alive only when what was typed into it has come back out of it.
//!
//! Two parts. [`flags`] and [`report`] say what can be asked for and what was found; they are light, and other tools of
//! the workspace use them alone. The rest is the engine behind the feature `engine`, and belongs to the program.
//!
//! Reading order: [`codec`] (the wire), [`link`] (what a session makes of what it receives), [`session`] (one session
//! over a socket), [`crowd`] (many of them: ramp, hold, proof), [`scenario`] (what is done with a crowd, and what decides;
//! [`chaos`] and [`fuzz`] are two of them), [`guacd`] (the daemon under test), [`sample`] (what it takes), [`target`] (what
//! guacd connects to), [`machine`] (what can be carried at all), [`program`] (a whole invocation).

pub mod cli;
pub use cli as flags;
pub mod report;

#[cfg(feature = "engine")]
pub mod guacd;
#[cfg(feature = "engine")]
pub mod guardian;
#[cfg(feature = "engine")]
pub mod load;
#[cfg(feature = "engine")]
pub mod machine;
#[cfg(feature = "engine")]
pub mod program;
#[cfg(feature = "engine")]
pub mod scenario;
#[cfg(feature = "engine")]
pub mod target;
#[cfg(feature = "engine")]
pub mod wire;

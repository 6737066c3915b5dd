//! How are sessions opened, held and proven? One session, and all sessions of a run.

pub mod flags;

#[cfg(feature = "engine")]
pub mod crowd;
#[cfg(feature = "engine")]
pub mod latency;
#[cfg(feature = "engine")]
pub mod meter;
#[cfg(feature = "engine")]
pub mod series;
#[cfg(feature = "engine")]
pub mod session;
#[cfg(feature = "engine")]
mod state;

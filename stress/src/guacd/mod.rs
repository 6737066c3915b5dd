//! What is under test? A guacd that is started, read, measured and ended here; and the processes of this machine.

pub mod flags;

#[cfg(feature = "engine")]
pub mod cores;
#[cfg(feature = "engine")]
pub mod keys;
#[cfg(feature = "engine")]
pub mod log;
#[cfg(feature = "engine")]
pub mod pid_max;
#[cfg(feature = "engine")]
pub mod preload;
#[cfg(feature = "engine")]
pub mod processes;
#[cfg(feature = "engine")]
pub mod sample;
#[cfg(feature = "engine")]
pub mod start;

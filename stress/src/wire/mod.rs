//! How does a client speak the Guacamole protocol? Nothing in this folder does any I/O.

pub mod codec;
#[cfg(feature = "engine")]
pub mod link;
#[cfg(feature = "engine")]
pub mod proof;

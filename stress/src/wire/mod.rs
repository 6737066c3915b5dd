//! How does a client speak the Guacamole protocol? Nothing in this folder does any I/O.

pub mod codec;
pub mod link;
pub mod proof;

//! How large is the load of a scenario?

use std::time::Duration;

use crate::values::Rate;

/// The size of a scenario's load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// How many sessions there are in all.
    pub sessions: u32,
    /// How many of them are open at the same time, at most.
    pub open_at_once: u32,
    /// How many sessions are opened per second, at most.
    pub rate: Rate,
    /// How long the sessions are held open together.
    pub hold: Duration,
}

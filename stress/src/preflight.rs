//! What does a run need that is not there? Such an error ends the program with exit code 3.

use std::fmt;

/// Something that a run needs is missing. The text says what, and what to do.
#[derive(Debug)]
pub struct Preflight(pub String);

impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Preflight {}

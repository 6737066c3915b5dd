//! Which exit code does an error have? An error has a type here only if code branches on it.

use std::fmt;
use std::process::ExitCode;

/// An error with its own exit code. Every other error exits with 1, and clap's usage errors with 2.
#[derive(Debug)]
pub enum Failure {
    /// A tool, a library or a resource is missing: exit code 3.
    Preflight(String),
    /// A patch does not apply exactly: exit code 4.
    Patch(String),
    /// A figure of the benchmark misses its limit: exit code 5.
    Benchmark(String),
    /// `guac-stress` exited with this code, and has printed the reason.
    Stress(u8),
    /// Two builds of the same source differ: exit code 5.
    Difference(String),
    /// A signal asked xtask to stop: exit code 130, which a shell gives a program that Ctrl-C ends.
    Interrupted,
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::Preflight(_) => 3,
            Failure::Patch(_) => 4,
            Failure::Benchmark(_) => 5,
            Failure::Stress(code) => *code,
            Failure::Difference(_) => 5,
            Failure::Interrupted => 130,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Preflight(what)
            | Failure::Patch(what)
            | Failure::Benchmark(what)
            | Failure::Difference(what) => f.write_str(what),
            Failure::Stress(5) => f.write_str("a threshold was missed: see `missed` above"),
            Failure::Stress(code) => write!(f, "guac-stress exited with {code}"),
            Failure::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for Failure {}

/// The exit code of `error`.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    let code = error.downcast_ref::<Failure>().map_or(1, Failure::code);
    ExitCode::from(code)
}

//! Which flags does `guac-stress report` have?

use std::path::PathBuf;

use clap::Args;

/// What to type, and what the exit codes mean.
pub const AFTER_HELP: &str = "Examples:\n  guac-stress report report.json\n  guac-stress report report.json --html report.html\n\n\
    Exit codes: 0 done; 2 usage; 1 any other failure, such as a file that is no report.";

/// The flags of `report`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Show {
    /// The report.
    #[arg(value_name = "FILE")]
    pub report: PathBuf,

    /// Write it to this file, as a page to look at, instead of printing it.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

//! Which flags do the commands have that read reports?

use std::path::PathBuf;

use clap::Args;

use crate::values::Percent;

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

/// What to type to compare, and what the exit codes mean.
pub const COMPARE_AFTER_HELP: &str = "Examples:\n  guac-stress compare monday.json tuesday.json\n  guac-stress compare old/ new/ --threshold 5% --json comparison.json\n\n\
    Exit codes: 0 nothing got worse; 5 something did, beyond the threshold; 2 usage; 1 any other failure, such as a file that is \
    no report.";

/// The flags of `compare`.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Compare {
    /// The report of the old build, or a directory with several.
    #[arg(value_name = "OLD")]
    pub old: PathBuf,

    /// The report of the new build, or a directory with several.
    #[arg(value_name = "NEW")]
    pub new: PathBuf,

    /// The smallest change that counts.
    #[arg(long, value_name = "PERCENT", default_value = "10%")]
    pub threshold: Percent,

    /// Write the comparison to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

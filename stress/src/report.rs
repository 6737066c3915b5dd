//! What came of it? The one type that holds the result of a stress run. Text and JSON are printers of it.
//!
//! JSON is a contract: `schema/report.v1.json` describes it, and [`SCHEMA_VERSION`] changes with it. Fields may be added
//! within a version; a reader has to pass over those that it does not know.

use serde::{Deserialize, Serialize};

/// The version of the JSON that this module reads and writes.
pub const SCHEMA_VERSION: u32 = 1;

/// A whole invocation: every guacd that was loaded, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// When the first run began, in seconds since 1970.
    pub started_at_unix_seconds: u64,
    /// Whether it was stopped before its end. The last run is then incomplete, and what it has is what was measured so far.
    pub interrupted: bool,
    /// Whether every session of every judged run was proven.
    pub passed: bool,
    /// One for each guacd.
    pub runs: Vec<Run>,
}

/// One guacd under load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The guacamole-server release, if it was given.
    pub release: Option<String>,
    /// `stock`, `patched`, or whatever the prefix was called; `external` for a guacd that ran already.
    pub variant: String,
    /// `embedded`, `openssh` or HOST:PORT.
    pub target: String,
    /// How many pthread keys each of guacd's processes was allowed, if they were limited.
    pub key_limit: Option<u32>,
    /// How many sessions were asked for.
    pub requested: u32,
    /// How many sessions were begun: fewer than requested only after an interruption, or when guacd died before the last
    /// was. Where the run was not interrupted, each of these is either proven or among the failures.
    pub started: u32,
    /// How many sessions came up: what was typed into each of them came back once.
    pub established: u32,
    /// How many sessions were open at the same time, at most.
    pub peak_alive: u32,
    /// How many sessions gave back, after having been held open together, what was then typed into all of them at once;
    /// and had not ended 0.2 s after the last of them had. To give it back proves that a session was alive when all
    /// were typed into. From then on it had not been seen to end: its connection was open, guacd's log had not told of
    /// its end, and guacd ran, of which only the first is known of a guacd that was not started here. One that fell
    /// silent after it had given its word back still counts.
    pub proven: u32,
    /// Every session that was begun and not proven, grouped by reason, the largest group first. After an interruption,
    /// only those that had failed by then.
    pub failures: Vec<Failure>,
    /// From the TCP connection to guacd, to the first word that came back.
    pub first_proof: Option<Latency>,
    /// From the word that was typed after the hold, until it came back.
    pub last_proof: Option<Latency>,
    /// What guacd took, where it was started here.
    pub guacd: Option<Guacd>,
    /// Sessions opened per second, at most.
    pub rate_per_second: f64,
    /// How long all sessions were to be held open together.
    pub hold_seconds: f64,
    /// How long a session could take to come up, and to prove itself.
    pub timeout_seconds: f64,
    /// From the first session's start until the last had come up or failed.
    pub ramp_seconds: f64,
    /// From the first session's start until everything was known.
    pub total_seconds: f64,
    /// Whether this run was stopped before its end.
    pub interrupted: bool,
}

/// Sessions that failed in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// How far they had come.
    pub phase: Phase,
    /// What the client saw.
    pub reason: String,
    /// The most telling line that guacd wrote in the process of such a session, without the process id. None where it
    /// wrote none, or where its log cannot be read.
    pub log: Option<String>,
    /// How many.
    pub count: u32,
    /// Which: numbers from 0, in the order in which sessions were begun.
    pub sessions: Vec<u32>,
}

/// How far a session had come when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Connecting to guacd.
    Connect,
    /// Up to `ready`.
    Handshake,
    /// From `ready` until the target's program was heard of.
    Login,
    /// Until the first word came back.
    FirstProof,
    /// While all were held open together.
    Hold,
    /// From the last word that was typed, until all had given theirs back.
    LastProof,
}

impl Phase {
    /// In a few words, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connecting to guacd",
            Self::Handshake => "in guacd's handshake",
            Self::Login => "logging in to the target",
            Self::FirstProof => "on the first proof",
            Self::Hold => "while held open",
            Self::LastProof => "on the last proof",
        }
    }
}

/// A distribution of times.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half took at most this long.
    pub p50_ms: f64,
    /// 95 of 100 took at most this long.
    pub p95_ms: f64,
    /// 99 of 100 took at most this long.
    pub p99_ms: f64,
    /// None took longer.
    pub max_ms: f64,
}

/// A guacd that was started here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Guacd {
    /// The file with everything that it wrote.
    pub log_file: String,
    /// How it ended by itself, where it did.
    pub died: Option<String>,
    /// Its last lines, where it ended by itself.
    pub last_lines: Vec<String>,
    /// pthread keys, where they were limited and so counted.
    pub keys: Option<Keys>,
    /// The library that was preloaded into it, if there was one besides that which limits keys. Missing in older reports.
    #[serde(default)]
    pub preload: Option<String>,
    /// What it took at the beginning of the hold, with all sessions open that came up.
    pub usage: Option<Usage>,
}

/// pthread keys, the worst of guacd's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// How many a process may have.
    pub limit: u32,
    /// How many a process had at most.
    pub most_in_a_process: u32,
    /// How often a process was refused one, over all processes.
    pub refusals: u32,
}

/// What guacd's processes took of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// File descriptors of the parent process.
    pub parent_descriptors: u32,
    /// Threads of the parent process.
    pub parent_threads: u32,
    /// Processes below the parent.
    pub children: u32,
    /// Memory of the parent and of its children.
    pub memory_bytes: u64,
    /// How the memory was counted.
    pub memory_kind: MemoryKind,
}

/// A way to count memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryKind {
    /// What processes share is divided among them: the sum is what they really take.
    Pss,
    /// What processes share is counted in each: the sum is too large.
    Rss,
}

impl Report {
    /// Reads a report that was written as JSON.
    ///
    /// # Errors
    ///
    /// Text that is not such a report, or one of another version.
    pub fn parse<'a, T: serde::Deserializer<'a>>(json: T) -> Result<Self, String> {
        let report = Self::deserialize(json).map_err(|error| format!("not a stress report: {error}"))?;
        if report.schema_version != SCHEMA_VERSION {
            return Err(format!(
                "a stress report of version {}, where {SCHEMA_VERSION} is known: use the guac-stress that wrote it",
                report.schema_version
            ));
        }
        Ok(report)
    }

    /// The runs that decide. `stock` beside other variants is there to be compared with, and is expected to fail.
    pub fn judged(runs: &[Run]) -> impl Iterator<Item = &Run> {
        let compared = runs.iter().any(|run| run.variant != "stock");
        runs.iter().filter(move |run| !compared || run.variant != "stock")
    }
}

impl Run {
    /// Whether every session that was asked for was proven.
    pub fn passed(&self) -> bool {
        self.proven == self.requested && !self.interrupted
    }
}

//! What was measured? The one type that holds the result of a stress run. Text and JSON are printers of it.
//!
//! The JSON is a contract: `schema/report.v2.json` describes it, and [`SCHEMA_VERSION`] changes with it. Fields may be added
//! within a version; a reader has to ignore those that it does not know.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;
pub use shared::capacity::Limit;

/// The version of the JSON that this module reads and writes.
pub const SCHEMA_VERSION: u32 = 2;

/// The result of a stress run: every guacd that was loaded, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StressReport {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// When the first run began, in seconds since 1970.
    pub started_at_unix_seconds: u64,
    /// Whether it was stopped before its end. The last run then holds what was measured so far.
    pub interrupted: bool,
    /// Whether every judged run passed all its checks.
    pub passed: bool,
    /// What was typed to make this report. Passwords and keys are never part of it.
    #[serde(default)]
    pub command: Vec<String>,
    /// The plan of the run: what `merge` and `compare` hold against that of another report. Only guac-stress reads it.
    #[serde(default)]
    pub plan: Option<Value>,
    /// The machine of the load generator.
    #[serde(default)]
    pub host: Option<Host>,
    /// How many sessions of a stock guacd this machine can carry: the limit that is reached first comes first. A patched guacd
    /// needs no more.
    #[serde(default)]
    pub machine: Vec<Limit>,
    /// One for each guacd.
    pub runs: Vec<Run>,
}

/// The name of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScenarioName {
    /// Sessions are opened at a steady rate, held open together, and prove themselves.
    #[default]
    Hold,
    /// The same, but the rate does not depend on whether guacd keeps up.
    Burst,
    /// Sessions are opened, proven and closed in waves.
    Churn,
    /// Sessions are held for long, and prove themselves again and again.
    Soak,
    /// Some sessions are disrupted on purpose, and all others prove themselves.
    Chaos,
    /// Malformed input is sent while sessions are held open.
    Fuzz,
    /// Sessions are added until they are no longer served well.
    Capacity,
}

impl ScenarioName {
    /// Its name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Burst => "burst",
            Self::Churn => "churn",
            Self::Soak => "soak",
            Self::Chaos => "chaos",
            Self::Fuzz => "fuzz",
            Self::Capacity => "capacity",
        }
    }
}

/// One guacd under load.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The guacamole-server release, if it was given.
    pub release: Option<String>,
    /// `stock`, `patched`, or whatever the prefix was called; `external` for a guacd that ran already.
    pub variant: String,
    /// What was done to it.
    #[serde(default)]
    pub scenario: ScenarioName,
    /// `ssh`, `telnet`, `vnc`, `rdp`, or `mix` for all of them in turn.
    #[serde(default = "ssh")]
    pub protocol: String,
    /// `embedded`, `openssh` or HOST:PORT.
    pub target: String,
    /// When it began, in milliseconds since 1970.
    #[serde(default)]
    pub began_at_unix_ms: u64,
    /// What the target drew in each session: `idle`, `type`, `scroll` or `video`.
    #[serde(default = "idle")]
    pub activity: String,
    /// The seed of the random numbers, in scenarios that use any.
    #[serde(default)]
    pub seed: Option<u64>,
    /// How many pthread keys each of guacd's processes was allowed, if they were limited.
    pub key_limit: Option<u32>,
    /// How many processors guacd was made to see, if it was.
    #[serde(default)]
    pub pretend_cores: Option<u32>,
    /// How many sessions were asked for; for `capacity`, how many were begun.
    pub requested: u32,
    /// How many sessions were begun: fewer than requested only after an interruption, or when guacd died before the last
    /// was. Where the run was not interrupted, each of these is proven, or among the failures, or was disrupted on purpose.
    pub started: u32,
    /// How many sessions came up: what was typed into each of them came back once.
    pub established: u32,
    /// How many sessions were open at the same time, at most.
    pub peak_alive: u32,
    /// How many sessions are proven. All are held open together, and then a fresh word is typed into each. A session is
    /// proven when its word comes back, and when it still looks alive 0.2 s after the last word has come back: its
    /// connection is open and, if guacd was started here, guacd runs and its log has not reported the session's end. A
    /// session that falls silent after its word still counts.
    ///
    /// Where sessions have to prove themselves several times, those that do so each time. In waves, those that do so before
    /// their wave is closed.
    pub proven: u32,
    /// How many sessions failed without their client being informed: it got neither an error nor the end of its connection,
    /// within 5 s of the end of guacd's process or for as long as it waited.
    #[serde(default)]
    pub silent: u32,
    /// The checks that decide whether the run passed.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// Every session that was begun and not proven, grouped by reason, the largest group first. After an interruption,
    /// only those that had failed by then.
    pub failures: Vec<Failure>,
    /// From the start of a session until its first word came back.
    pub first_proof: Option<Latency>,
    /// The same, of the first and of the last sessions. None where there are too few.
    #[serde(default)]
    pub first_proof_by_age: Option<ByAge>,
    /// From the word that was typed after the hold, until it came back.
    pub last_proof: Option<Latency>,
    /// The same times, and the lag of what was drawn while all sessions were held, as distributions.
    #[serde(default)]
    pub histograms: Histograms,
    /// How many sessions there were over time.
    #[serde(default)]
    pub timeline: Vec<Moment>,
    /// What the targets drew while all sessions were held, and what came of it. None where they drew nothing.
    #[serde(default)]
    pub drawing: Option<Drawing>,
    /// For `capacity`, how many sessions were served well.
    #[serde(default)]
    pub capacity: Option<Capacity>,
    /// The waves of `churn`, the proofs of `soak`, and the steps of `capacity`.
    #[serde(default)]
    pub rounds: Vec<Round>,
    /// How `chaos` disrupted sessions, and what came of it.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// What `fuzz` sent, and how guacd answered.
    #[serde(default)]
    pub fuzz: Option<Fuzz>,
    /// What the load generator itself took, with its embedded targets.
    #[serde(default)]
    pub generator: Option<Generator>,
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
    /// From the first session's start to the end of the run.
    pub total_seconds: f64,
    /// Whether this run was stopped before its end.
    pub interrupted: bool,
}

fn ssh() -> String {
    "ssh".into()
}

fn idle() -> String {
    "idle".into()
}

/// What the targets drew for some time, and what of it reached the clients. Rates are those of one session, on average.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Drawing {
    /// How many sessions were open.
    pub sessions: u32,
    /// For how long.
    pub seconds: f64,
    /// The frames that a target was to draw.
    pub asked_per_second: f64,
    /// The frames that a target drew. Over RDP and telnet, it draws none while guacd does not take the last one.
    pub drawn_per_second: f64,
    /// The frames that a client received, of those that were drawn meanwhile. guacd leaves some out if it does not keep up.
    pub received_per_second: f64,
    /// The same, of the session that received fewest.
    pub fewest_per_second: f64,
    /// From the drawing of a frame until its client had received the whole of it. None where no client received a frame.
    pub lag: Option<Latency>,
    /// What guacd sent to a client.
    pub bytes_per_second: f64,
    /// guacd's processor time. None where it was not started here, or its processes have ended meanwhile.
    pub cpu_ms_per_second: Option<f64>,
    /// The same, for each frame that a client received.
    pub cpu_ms_per_frame: Option<f64>,
    /// The processor time of the load generator, with its embedded targets.
    pub generator_cpu_ms_per_second: Option<f64>,
}

/// How many sessions were served well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    /// How many were open in the last step in which every threshold was met.
    pub sessions: u32,
    /// How many processors guacd could use. None where it was not started here.
    pub cores: Option<u32>,
    /// Sessions for each of them. None where something else ended the run than late or missing frames.
    pub sessions_per_core: Option<f64>,
    /// Sessions for each GiB that guacd's memory grew by.
    pub sessions_per_gib: Option<f64>,
    /// Why there are no more.
    pub ended_by: CapacityEnd,
    /// The same in words, with figures.
    pub reason: String,
}

/// What ended a search for the capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CapacityEnd {
    /// Frames were late.
    Lag,
    /// A client did not receive enough frames.
    Frames,
    /// A session did not prove itself.
    Proof,
    /// There were no more sessions to open. The capacity is at least as large.
    Count,
}

/// A measured value and the threshold that decides about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// Whether the threshold is a minimum or a maximum.
    pub bound: Bound,
    /// The threshold.
    pub threshold: f64,
    /// The measured value. None where it could not be measured; then the check does not pass.
    pub measured: Option<f64>,
    /// What both are counted in: sessions, seconds, percent and so on.
    pub unit: String,
    /// Whether the measured value is within the threshold.
    pub passed: bool,
}

/// Whether a threshold is a minimum or a maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// No less than the threshold.
    AtLeast,
    /// No more than the threshold.
    AtMost,
}

impl Check {
    /// Compares a measured value with a threshold.
    pub fn new(name: &str, bound: Bound, threshold: f64, measured: Option<f64>, unit: &str) -> Self {
        let passed = measured.is_some_and(|measured| match bound {
            Bound::AtLeast => measured >= threshold,
            Bound::AtMost => measured <= threshold,
        });
        Self { name: name.into(), bound, threshold, measured, unit: unit.into(), passed }
    }
}

/// Times of the sessions that were begun first, and of those that were begun last.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ByAge {
    /// How many sessions each of the two is about: 100, or half of all.
    pub sessions: u32,
    /// Those that were begun first.
    pub first: Latency,
    /// Those that were begun last.
    pub last: Latency,
}

/// A wave of `churn`, a proof of `soak`, or a step of `capacity`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// When it was over, from the first session's start.
    pub at_seconds: f64,
    /// The sessions that had to prove themselves.
    pub sessions: u32,
    /// Those that proved themselves.
    pub proven: u32,
    /// How long that took, from the word that was typed.
    pub proof: Option<Latency>,
    /// For a wave, how long after its sessions were closed guacd had no more processes than before the first session, and its
    /// parent no more threads and descriptors. None where it still had more when the time to settle was over, or where guacd
    /// was not started here.
    pub settled_seconds: Option<f64>,
    /// What guacd took then.
    pub usage: Option<Usage>,
    /// What the targets drew before the proof, where they did.
    #[serde(default)]
    pub drawing: Option<Drawing>,
}

/// Sessions that were disrupted in the same way, on purpose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// The kind of disruption.
    pub kind: FaultKind,
    /// How many.
    pub sessions: u32,
    /// How many of them ended as they should, in time: for `kill` and `cut`, the client was informed; for `stall`
    /// and `vanish`, guacd's process for the session ended.
    pub ended: u32,
    /// How long the slowest of those took.
    pub slowest_seconds: Option<f64>,
    /// How long each could take.
    pub within_seconds: f64,
}

/// How a session can be disrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// guacd's process for it is killed.
    Kill,
    /// Its target closes the connection.
    Cut,
    /// Its client types much, and then neither reads nor writes.
    Stall,
    /// Its client closes the connection: without a packet where the kernel allows that (`TCP_REPAIR`, as root), else with a
    /// reset.
    Vanish,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Kill, Self::Cut, Self::Stall, Self::Vanish];

    /// In a few words, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "process killed",
            Self::Cut => "target cut off",
            Self::Stall => "client stalled",
            Self::Vanish => "client vanished",
        }
    }
}

/// What the inputs of `fuzz` are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum FuzzKind {
    /// Malformed handshakes.
    #[default]
    Handshake,
    /// Sessions over telnet whose target prints generated and mutated control sequences, while the client resizes the terminal,
    /// scrolls, selects and types.
    Terminal,
    /// Generated and mutated instructions to sessions that are up: sizes, keys, the mouse, and streams of every kind.
    Session,
}

impl FuzzKind {
    /// Its name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Terminal => "terminal",
            Self::Session => "session",
        }
    }

    /// What so many of them are, for people.
    pub fn describe(self, inputs: u32) -> String {
        match self {
            Self::Handshake => format!("{inputs} malformed handshakes"),
            Self::Terminal => format!("{inputs} terminal sessions"),
            Self::Session => format!("{inputs} inputs to sessions"),
        }
    }
}

/// Malformed handshakes, terminal sessions, or inputs to sessions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fuzz {
    /// What the inputs are.
    #[serde(default)]
    pub kind: FuzzKind,
    /// How many were sent.
    pub inputs: u32,
    /// How many connections guacd ended with an error.
    pub errors: u32,
    /// How many handshakes it answered with `ready`, or how many sessions answered or proved themselves at their end.
    pub ready: u32,
    /// How many connections it closed without either.
    pub closed: u32,
    /// How many handshakes the client itself ended in the middle, or how many sessions did not open.
    pub abandoned: u32,
    /// How many connections it did not answer, close or accept in time.
    pub unanswered: u32,
    /// How many of guacd's processes crashed, according to its log. None where the log is not read.
    pub crashes: Option<u32>,
    /// Files with the inputs after which something was wrong, for `--replay`.
    pub saved: Vec<String>,
}

/// What the load generator took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Generator {
    /// Processor time of the run, of all its threads.
    pub cpu_seconds: f64,
    /// The most memory it ever had.
    pub max_rss_bytes: u64,
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

/// Distributions of times.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Histograms {
    /// From the start of a session until its first word came back.
    #[serde(default)]
    pub first_proof: Option<Histogram>,
    /// The same, of the sessions of [`ByAge::first`].
    #[serde(default)]
    pub first_proof_of_first: Option<Histogram>,
    /// The same, of the sessions of [`ByAge::last`].
    #[serde(default)]
    pub first_proof_of_last: Option<Histogram>,
    /// From the word that was typed after the hold, until it came back.
    #[serde(default)]
    pub last_proof: Option<Histogram>,
    /// From the drawing of a frame until its client had received the whole of it.
    #[serde(default)]
    pub lag: Option<Histogram>,
}

/// A distribution of times, in buckets of three significant digits, as HdrHistogram has them. Two of them are added bucket by
/// bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// The buckets that are not empty, in order: the longest time of each in microseconds, and how many times it has.
    pub buckets: Vec<(u64, u64)>,
}

/// How many sessions there were at some time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// From the first session's start.
    pub at_seconds: f64,
    /// Sessions that were begun so far.
    pub started: u32,
    /// Sessions that were open.
    pub alive: u32,
    /// Sessions that had given the last proof that was asked of them.
    pub proven: u32,
    /// Sessions that had failed.
    pub failed: u32,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its system, such as `Debian GNU/Linux 12 (bookworm)`.
    pub system: String,
    /// The version of its kernel.
    pub kernel: String,
    /// The model of its processors.
    pub processor: String,
    /// How many of them there are.
    pub processors: u32,
    /// Its memory.
    pub memory_bytes: u64,
}

/// A guacd that was started here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Guacd {
    /// The file with everything that it wrote.
    pub log_file: String,
    /// The manifest of its prefix, where it has one: what it was made from.
    #[serde(default)]
    pub manifest: Option<Value>,
    /// How it ended by itself, where it did.
    pub died: Option<String>,
    /// Its last lines, where it ended by itself.
    pub last_lines: Vec<String>,
    /// pthread keys, where they were limited and so counted.
    pub keys: Option<Keys>,
    /// The library that was preloaded into it, if there was one besides the one that limits keys. Missing in older reports.
    #[serde(default)]
    pub preload: Option<String>,
    /// What it took at the beginning of the hold, with all sessions open that came up.
    pub usage: Option<Usage>,
    /// What it took before the first session.
    #[serde(default)]
    pub usage_before: Option<Usage>,
    /// What it took in the end: for `churn`, after the last session was closed; for `fuzz`, after the last input.
    #[serde(default)]
    pub usage_after: Option<Usage>,
    /// For `churn`, the pthread keys after the first wave.
    #[serde(default)]
    pub keys_after_first_round: Option<Keys>,
    /// The processes of the first and of the last session that were open at the beginning of the hold.
    #[serde(default)]
    pub processes: Option<FirstAndLast>,
    /// Processor time that guacd took for each session and second while all were held and nothing was typed.
    #[serde(default)]
    pub idle_cpu_ms_per_second: Option<f64>,
    /// How it ended after SIGTERM, with its sessions open.
    #[serde(default)]
    pub shutdown: Option<Shutdown>,
    /// What it took over time.
    #[serde(default)]
    pub samples: Vec<Sample>,
}

/// guacd's processes for two sessions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FirstAndLast {
    /// Of the session that was begun first.
    pub first: ProcessUse,
    /// Of the session that was begun last.
    pub last: ProcessUse,
}

/// What one of guacd's processes took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ProcessUse {
    /// The session, numbered from 0.
    pub session: u32,
    /// Open file descriptors.
    pub descriptors: u32,
    /// Threads.
    pub threads: u32,
    /// Its share of memory. None where this user may not see it.
    pub pss_bytes: Option<u64>,
}

/// The end of guacd after SIGTERM, with the sessions open that were left.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Shutdown {
    /// The processes that there were, its parent included.
    pub processes: u32,
    /// Until the last of them was gone; or how long the run waited for that in vain.
    pub seconds: f64,
    /// The processes that were left then, and were killed.
    pub left: u32,
}

/// What guacd took at some time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// From the first session's start.
    pub at_seconds: f64,
    /// Sessions that were open.
    pub sessions: u32,
    /// File descriptors of the parent process.
    pub parent_descriptors: u32,
    /// Threads of the parent process.
    pub parent_threads: u32,
    /// Processes below the parent.
    pub children: u32,
    /// Threads of all processes.
    pub tasks: u32,
    /// Memory of all processes; what they share is divided among them. It is read less often than the rest, and is None
    /// where it was not, or where this user may not see it.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Processor time that the parent has taken.
    pub parent_cpu_seconds: f64,
    /// Processor time that its children have taken, those that are gone included.
    pub children_cpu_seconds: f64,
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
    /// Threads of all processes.
    #[serde(default)]
    pub tasks: u32,
    /// Memory of the parent and of its children.
    pub memory_bytes: u64,
    /// How the memory was counted.
    pub memory_kind: MemoryKind,
}

/// How memory is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryKind {
    /// What processes share is divided among them: the sum is what they really take.
    Pss,
    /// What processes share is counted in each: the sum is too large.
    Rss,
}

impl StressReport {
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

    /// The runs that decide. If `stock` is loaded along with other variants, it is only there for comparison.
    pub fn judged(runs: &[Run]) -> impl Iterator<Item = &Run> {
        let compared = runs.iter().any(|run| run.variant != "stock");
        runs.iter().filter(move |run| !compared || run.variant != "stock")
    }
}

impl Run {
    /// Whether all its checks passed.
    pub fn passed(&self) -> bool {
        !self.interrupted && !self.checks.is_empty() && self.checks.iter().all(|check| check.passed)
    }

    /// How many sessions were disrupted on purpose. They need not prove themselves.
    pub fn disrupted(&self) -> u32 {
        self.faults.iter().map(|fault| fault.sessions).sum()
    }
}

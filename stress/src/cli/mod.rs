//! What can a user ask for? The flags of `guac-stress`, which `cargo xtask stress` offers too.

use std::{ffi::OsString, fmt, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, ValueEnum};

use crate::report::Scenario;

/// The most sessions that can be asked for: each takes an ephemeral port towards guacd, of which Linux has 28,232.
pub const MOST_SESSIONS: u32 = 28_000;

/// The command line of `guac-stress`.
#[derive(Debug, Clone, PartialEq, Parser)]
#[command(
    name = "guac-stress",
    version,
    about = "Opens many sessions through guacd at once, and counts those that are really alive",
    long_about = "Opens many sessions through guacd at once, holds them open together, and then types a fresh random \
        word into every one of them. A session counts only when its word comes back out of it: an answer from guacd \
        (`ready`) proves nothing, for it comes before guacd has tried to connect. Other scenarios than this one do worse \
        things to guacd, and end in the same question: --scenario.",
    after_help = "Exit codes: 0 all checks passed; 5 a threshold was missed; 2 usage; 3 something is missing that the run \
        needs; 130 interrupted; 1 anything else. With a variant named `stock` beside others, only the others are judged."
)]
pub struct Cli {
    /// What to load, and how.
    #[command(flatten)]
    pub load: Load,

    /// A guacd to start and to load: its installation prefix, under a name for the report. More than one are run one
    /// after another, and shown beside each other.
    #[arg(
        long = "prefix",
        value_name = "VARIANT=DIR",
        required_unless_present = "guacd",
        conflicts_with = "guacd"
    )]
    pub prefixes: Vec<Prefix>,

    /// The guacamole-server release under test, for the report.
    #[arg(long, value_name = "RELEASE")]
    pub release: Option<String>,

    /// The preload library behind --key-limit [default: libkey_limit.so beside this program].
    #[arg(long, value_name = "FILE", requires = "key_limit", conflicts_with = "guacd")]
    pub key_limit_library: Option<PathBuf>,

    /// A library to start guacd with (LD_PRELOAD), such as that of `cargo xtask preload`. It goes before that of
    /// --key-limit, whose limit is on the keys that libc is asked for.
    #[arg(long, value_name = "FILE", conflicts_with = "guacd")]
    pub preload: Option<PathBuf>,

    /// Where guacd's log files go [default: the directory for temporary files]. Of no effect with --guacd, whose log
    /// cannot be read.
    #[arg(long, value_name = "DIR")]
    pub logs: Option<PathBuf>,
}

impl Cli {
    /// Finds what contradicts itself, beyond what the flags' own declarations rule out.
    ///
    /// # Errors
    ///
    /// What to change, for a usage error.
    pub fn check(&self) -> Result<(), String> {
        for (index, prefix) in self.prefixes.iter().enumerate() {
            if self.prefixes[..index].iter().any(|before| before.variant == prefix.variant) {
                return Err(format!(
                    "two of --prefix are called {}: give each a name of its own",
                    prefix.variant
                ));
            }
        }
        self.load.check()
    }
}

/// How much load, on what, with which target behind it.
///
/// The password and the private key are never arguments, which every user of the machine could read. They come from
/// files, or from the environment variables `GUAC_STRESS_PASSWORD` and `GUAC_STRESS_PRIVATE_KEY`.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Load {
    /// What to do to guacd.
    #[arg(long, value_enum, value_name = "SCENARIO", default_value_t)]
    pub scenario: Scenario,

    /// How many sessions to have open at the same time; for churn, how many in all. [default: 300; churn: 1000;
    /// soak and chaos: 100; fuzz: 20]
    #[arg(
        long,
        value_name = "SESSIONS",
        default_value = "300",
        default_value_ifs = [("scenario", "churn", "1000"), ("scenario", "soak", "100"), ("scenario", "chaos", "100"), ("scenario", "fuzz", "20")],
        hide_default_value = true,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_SESSIONS))
    )]
    pub count: u32,

    /// How many sessions to open per second, at most: a machine that does not keep up is given time, but for burst.
    /// [default: 8; burst: 200]
    ///
    /// The default is what a stock guacd takes reliably, so that it can be compared with a patched one, which takes 200 a
    /// second. Stock forks while its other threads log, and a child that was forked with the log's lock held hangs for ever,
    /// which bursts bring out. Measured with stock 1.6.0 on two cores: of 300 sessions, all lived at 5, 6, 8 and 10 a second
    /// with a syslog to write to, and all at 12 without; at 20, one died; at 25, 11 to 22 of 200 hung.
    #[arg(
        long,
        value_name = "PER_SECOND",
        default_value = "8",
        default_value_if("scenario", "burst", "200"),
        hide_default_value = true
    )]
    pub rate: Rate,

    /// How long to hold all sessions open together before they have to prove that they are alive. [default: 10s; churn,
    /// for each wave: 0s; soak: 10m]
    #[arg(
        long,
        value_name = "TIME",
        default_value = "10s",
        default_value_ifs = [("scenario", "churn", "0s"), ("scenario", "soak", "10m")],
        hide_default_value = true,
        value_parser = hold
    )]
    pub hold: Duration,

    /// How long a session may take to come up, and again to prove that it is alive.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = timeout)]
    pub timeout: Duration,

    /// What the sessions speak, be it with a server within this program or with the --target. VNC gives back what was typed
    /// as the text on its clipboard.
    #[arg(long, value_enum, value_name = "PROTOCOL", default_value_t)]
    pub protocol: Protocol,

    /// What guacd connects to: `embedded`, servers within this program; `openssh`, the machine's sshd with throw-away keys
    /// on a port of its own; or the HOST:PORT of a server for the --protocol.
    ///
    /// Over SSH and telnet, a shell has to be what answers. A VNC server has to give each session a desktop of its own, with
    /// a program that puts each line which is typed onto the clipboard: stress/examples/vnc-desktop.sh is one.
    #[arg(long, value_name = "TARGET", default_value_t = Target::Embedded)]
    pub target: Target,

    /// The user to log in as, on a target given as HOST:PORT. Over telnet and VNC, there may be none.
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,

    /// A file with the password for a target given as HOST:PORT. The environment variable GUAC_STRESS_PASSWORD may hold
    /// it instead.
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,

    /// A file with the private key for a target given as HOST:PORT. The environment variable GUAC_STRESS_PRIVATE_KEY
    /// may hold it instead.
    #[arg(long, value_name = "FILE", conflicts_with = "password_file")]
    pub private_key_file: Option<PathBuf>,

    /// Load a guacd that runs already. It is neither started nor stopped, and its log cannot be read.
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["key_limit", "port"])]
    pub guacd: Option<HostPort>,

    /// Let every process of guacd have at most this many pthread keys, as if libc had no more. 128 is musl's limit, and
    /// so that of guacd's official image; glibc's is 1024.
    #[arg(long, value_name = "KEYS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub key_limit: Option<u32>,

    /// The loopback port for guacd to listen on [default: one that is free].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,

    /// Write the report to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// What else a scenario needs to know.
    #[command(flatten)]
    pub details: Details,

    /// What decides.
    #[command(flatten)]
    pub thresholds: Thresholds,
}

/// What only some scenarios need to know.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "For single scenarios")]
pub struct Details {
    /// churn: how many sessions are open at the same time.
    #[arg(long, value_name = "SESSIONS", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_SESSIONS)))]
    pub wave: u32,

    /// churn, fuzz: how long guacd may take to be rid of the processes of a wave, or of the last inputs: it gives up a
    /// handshake after 15 s.
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = hold)]
    pub settle: Duration,

    /// soak: how often all sessions have to prove themselves while they are held.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = timeout)]
    pub prove_every: Duration,

    /// chaos: of how many sessions to kill guacd's process, at random.
    #[arg(long, value_name = "PERCENT", default_value = "20%")]
    pub kill: Percent,

    /// chaos: of how many sessions to have the target close the connection.
    #[arg(long, value_name = "PERCENT", default_value = "5%")]
    pub cut: Percent,

    /// chaos: of how many sessions to have the client type much, and then neither read nor write.
    #[arg(long, value_name = "PERCENT", default_value = "5%")]
    pub stall: Percent,

    /// chaos: of how many sessions to have the client vanish without a packet, as a machine does that loses its
    /// power; where this is not allowed (it takes root), with a reset.
    #[arg(long, value_name = "PERCENT", default_value = "5%")]
    pub vanish: Percent,

    /// fuzz: how many malformed handshakes to send.
    #[arg(long, value_name = "INPUTS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub inputs: u32,

    /// fuzz: send this input alone, which an earlier run has saved.
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,

    /// chaos, fuzz: what to seed chance with, to have the same again. The report says what it was. [default: a random one]
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
}

/// What a run is measured by. Those without a default are judged only when they are given.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(next_help_heading = "Thresholds")]
pub struct Thresholds {
    /// Of the sessions that were asked for and not struck on purpose, how many have to be proven.
    #[arg(long, value_name = "PERCENT", default_value = "100%")]
    pub min_proven: Percent,

    /// How many sessions may fail without their client being told, be it by an error or by the end of its connection.
    #[arg(long, value_name = "SESSIONS", default_value_t = 0)]
    pub max_silent: u32,

    /// churn, fuzz: how many descriptors and threads more than before its first session guacd's parent may have in the end,
    /// and how many more processes there may be.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub max_leftover: u32,

    /// churn, soak: by how much guacd's memory may grow from the first waves or proofs to the last: the median of a fifth of
    /// them each, as it swings.
    #[arg(long, value_name = "PERCENT", default_value = "5%")]
    pub max_memory_growth: Percent,

    /// fuzz: how many times a process of guacd's may say that it aborts, or that its memory is corrupt.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub max_crashes: u32,

    /// chaos: how long the client of a session may wait to be told that its process or its target is gone. guacd has
    /// 30 s to be rid of a session whose client stalls or vanishes.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = timeout)]
    pub within: Duration,

    /// How many times as long as with the first sessions the first proof may take with the last, at p50: 100 of each, or
    /// half of all.
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    pub max_slowdown: Option<f64>,

    /// How long guacd may take to end after SIGTERM with all its processes, while sessions are open; for churn, after
    /// the last was closed. Without this, that is not measured, and guacd is killed if it takes longer than a moment.
    #[arg(long, value_name = "TIME", value_parser = timeout)]
    pub max_shutdown: Option<Duration>,
}

impl Load {
    /// Finds what contradicts itself, beyond what the flags' own declarations rule out.
    ///
    /// # Errors
    ///
    /// What to change, for a usage error.
    pub fn check(&self) -> Result<(), String> {
        self.check_scenario()?;
        let credentials = [
            ("--user", self.user.is_some()),
            ("--password-file", self.password_file.is_some()),
            ("--private-key-file", self.private_key_file.is_some()),
        ];
        let given = credentials.iter().find(|(_, given)| *given).map(|(flag, _)| flag);
        match (&self.target, given) {
            (Target::Address(address), _) if self.protocol == Protocol::Ssh && self.user.is_none() => {
                Err(format!("the target {address} needs a user to log in as: give --user"))
            }
            (Target::Address(_), _) if self.protocol != Protocol::Ssh && self.private_key_file.is_some() => {
                Err(format!(
                    "{} knows no keys: give --password-file instead of --private-key-file",
                    self.protocol.as_str()
                ))
            }
            (Target::Embedded | Target::OpenSsh, Some(flag)) => Err(format!(
                "{flag} is for a target given as HOST:PORT, and '{}' has a user of its own",
                self.target
            )),
            _ => Ok(()),
        }
    }

    fn check_scenario(&self) -> Result<(), String> {
        let details = &self.details;
        match (self.protocol, &self.target) {
            (Protocol::Telnet | Protocol::Vnc | Protocol::Mix, Target::OpenSsh) => {
                return Err("the target 'openssh' speaks SSH alone: leave --target or --protocol out".into());
            }
            (Protocol::Mix, Target::Address(address)) => {
                return Err(format!(
                    "a mix takes three servers, and {address} is one: leave --target out, or give another --protocol"
                ));
            }
            _ => {}
        }
        match self.scenario {
            Scenario::Chaos if self.guacd.is_some() => {
                Err("chaos kills processes of guacd's, and so only of one that it has started: leave --guacd out".into())
            }
            Scenario::Chaos if self.target != Target::Embedded && details.cut.of(self.count) > 0 => {
                Err(format!("only the embedded target can be cut off, not '{}': give --cut 0%", self.target))
            }
            Scenario::Chaos if details.struck().0 >= 100.0 => {
                Err("chaos leaves nobody to prove anything: --kill, --cut, --stall and --vanish add up to 100% or more".into())
            }
            Scenario::Churn if details.wave >= self.count => Err(format!(
                "churn takes two waves at least: give a --wave that is less than the --count of {}",
                self.count
            )),
            Scenario::Soak if details.prove_every > self.hold => {
                Err("the sessions would not prove themselves even once: give a longer --hold, or a shorter --prove-every".into())
            }
            Scenario::Fuzz => Ok(()),
            _ if details.replay.is_some() => Err("--replay goes with --scenario fuzz".into()),
            _ => Ok(()),
        }
    }

    /// How many sessions are open at the same time, at most.
    pub fn open_at_once(&self) -> u32 {
        match self.scenario {
            Scenario::Churn => self.count.min(self.details.wave),
            _ => self.count,
        }
    }

    /// The command line that gives these flags again, every one of them spelled out.
    pub fn to_args(&self) -> Vec<OsString> {
        let mut args = Vec::<OsString>::new();
        let mut push = |flag: &str, value: OsString| {
            // One word, so that a value that starts with a dash is not taken for a flag.
            let mut word = OsString::from(flag);
            word.push("=");
            word.push(value);
            args.push(word);
        };
        push("--scenario", self.scenario.as_str().into());
        push("--protocol", self.protocol.as_str().into());
        push("--count", self.count.to_string().into());
        push("--rate", self.rate.to_string().into());
        push("--hold", humantime::format_duration(self.hold).to_string().into());
        push("--timeout", humantime::format_duration(self.timeout).to_string().into());
        push("--target", self.target.to_string().into());
        if let Some(user) = &self.user {
            push("--user", user.into());
        }
        if let Some(file) = &self.password_file {
            push("--password-file", file.into());
        }
        if let Some(file) = &self.private_key_file {
            push("--private-key-file", file.into());
        }
        if let Some(guacd) = &self.guacd {
            push("--guacd", guacd.to_string().into());
        }
        if let Some(keys) = self.key_limit {
            push("--key-limit", keys.to_string().into());
        }
        if let Some(port) = self.port {
            push("--port", port.to_string().into());
        }
        if let Some(file) = &self.json {
            push("--json", file.into());
        }
        let time = |time: Duration| OsString::from(humantime::format_duration(time).to_string());
        let details = &self.details;
        push("--wave", details.wave.to_string().into());
        push("--settle", time(details.settle));
        push("--prove-every", time(details.prove_every));
        push("--kill", details.kill.to_string().into());
        push("--cut", details.cut.to_string().into());
        push("--stall", details.stall.to_string().into());
        push("--vanish", details.vanish.to_string().into());
        push("--inputs", details.inputs.to_string().into());
        if let Some(file) = &details.replay {
            push("--replay", file.into());
        }
        if let Some(seed) = details.seed {
            push("--seed", seed.to_string().into());
        }
        let thresholds = &self.thresholds;
        push("--min-proven", thresholds.min_proven.to_string().into());
        push("--max-silent", thresholds.max_silent.to_string().into());
        push("--max-leftover", thresholds.max_leftover.to_string().into());
        push("--max-memory-growth", thresholds.max_memory_growth.to_string().into());
        push("--max-crashes", thresholds.max_crashes.to_string().into());
        push("--within", time(thresholds.within));
        if let Some(ratio) = thresholds.max_slowdown {
            push("--max-slowdown", ratio.to_string().into());
        }
        if let Some(most) = thresholds.max_shutdown {
            push("--max-shutdown", time(most));
        }
        args
    }
}

impl Details {
    /// What part of the sessions chaos strikes.
    fn struck(&self) -> Percent {
        Percent(self.kill.0 + self.cut.0 + self.stall.0 + self.vanish.0)
    }
}

/// What a session speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Protocol {
    /// SSH.
    #[default]
    Ssh,
    /// Telnet.
    Telnet,
    /// VNC.
    Vnc,
    /// One session of each, in turn.
    Mix,
}

impl Protocol {
    /// As it is written on the command line, and as guacd calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ssh => "ssh",
            Self::Telnet => "telnet",
            Self::Vnc => "vnc",
            Self::Mix => "mix",
        }
    }

    /// Those that sessions speak in turn.
    pub fn each(self) -> &'static [Self] {
        match self {
            Self::Ssh => &[Self::Ssh],
            Self::Telnet => &[Self::Telnet],
            Self::Vnc => &[Self::Vnc],
            Self::Mix => &[Self::Ssh, Self::Telnet, Self::Vnc],
        }
    }
}

/// A part of a hundred.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Percent(f64);

impl Percent {
    /// From 0 to 100.
    pub fn value(self) -> f64 {
        self.0
    }

    /// So much of `all`, to the nearest whole number.
    pub fn of(self, all: u32) -> u32 {
        (f64::from(all) * self.0 / 100.0).round() as u32
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_suffix('%').unwrap_or(text).parse::<f64>() {
            Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Self(percent)),
            _ => Err("give a percentage from 0% to 100%, such as 20%".into()),
        }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// A guacd that is installed, under the name that the report gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    /// `stock`, `patched`, or what the user calls it.
    pub variant: String,
    /// The directory that has `sbin/guacd` and `lib`.
    pub dir: PathBuf,
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((variant, dir)) if !variant.is_empty() && !dir.is_empty() => {
                Ok(Self { variant: variant.into(), dir: dir.into() })
            }
            _ => Err("write it as a name and a directory, such as stock=/opt/guacd".into()),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.variant, self.dir.display())
    }
}

/// What guacd connects to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Servers within this program.
    Embedded,
    /// A real sshd that this program starts, with throw-away keys.
    OpenSsh,
    /// A server that is there already.
    Address(HostPort),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "embedded" => Ok(Self::Embedded),
            "openssh" => Ok(Self::OpenSsh),
            _ => text
                .parse()
                .map(Self::Address)
                .map_err(|error| format!("neither embedded, nor openssh: {error}")),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::OpenSsh => f.write_str("openssh"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// A host and a port. The host of `[::1]:22` is `::1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// A name or an address, without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not HOST:PORT, such as 127.0.0.1:22 or [::1]:22");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or_else(wrong)?,
            // A bare IPv6 address: where it ends and the port begins is anybody's guess.
            None if host.contains(':') => {
                return Err(format!("put the address in brackets, as in [{host}]:{port}"));
            }
            None => host,
        };
        let port = port.parse().ok().filter(|&port| port != 0).ok_or_else(wrong)?;
        if host.is_empty() || host.contains(char::is_whitespace) {
            return Err(wrong());
        }
        Ok(Self { host: host.into(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Sessions per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate(f64);

impl Rate {
    /// Sessions per second.
    pub fn per_second(self) -> f64 {
        self.0
    }

    /// The time from one session's start to the next one's.
    pub fn interval(self) -> Duration {
        Duration::from_secs_f64(1.0 / self.0)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            Ok(rate) if (0.01..=1000.0).contains(&rate) => Ok(Self(rate)),
            _ => Err("give sessions per second, from 0.01 to 1000".into()),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.01..=1000.0).contains(&ratio) => Ok(ratio),
        _ => Err("give a ratio, such as 1.5".into()),
    }
}

fn hold(text: &str) -> Result<Duration, String> {
    duration(text, Duration::ZERO)
}

fn timeout(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_millis(100))
}

fn duration(text: &str, least: Duration) -> Result<Duration, String> {
    const MOST: Duration = Duration::from_secs(24 * 60 * 60);
    let time = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number with its unit, such as 10s, 500ms or 2m"))?;
    if time < least || time > MOST {
        return Err(format!("must be from {} to 1day", humantime::format_duration(least)));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["guac-stress"], args].concat())
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_survives_the_way_back_to_a_command_line() {
        let given = parse(&[
            "--count=7",
            "--rate=2.5",
            "--hold=1m 500ms",
            "--timeout=3s",
            "--target=[::1]:2022",
            "--user=-me-",
            "--password-file=/p w",
            "--key-limit=128",
            "--port=4823",
            "--json=out.json",
            "--scenario=chaos",
            "--wave=3",
            "--settle=1s",
            "--prove-every=2s",
            "--kill=12.5%",
            "--cut=0%",
            "--stall=1%",
            "--vanish=2%",
            "--inputs=9",
            "--seed=18446744073709551615",
            "--min-proven=99%",
            "--max-silent=1",
            "--max-leftover=2",
            "--max-memory-growth=3%",
            "--max-crashes=4",
            "--within=4s",
            "--max-slowdown=1.5",
            "--max-shutdown=6s",
            "--prefix=stock=/x",
        ])
        .unwrap();
        let args = given.load.to_args().into_iter().chain(["--prefix=stock=/x".into()]);
        let again = Cli::try_parse_from([OsString::from("guac-stress")].into_iter().chain(args)).unwrap();
        assert_eq!(given, again);

        let given = ["--guacd=localhost:4822", "--private-key-file=-k", "--scenario=fuzz", "--replay=-r"];
        let given = parse(&[&given[..], &["--protocol=mix"]].concat()).unwrap();
        let again =
            Cli::try_parse_from([OsString::from("guac-stress")].into_iter().chain(given.load.to_args()))
                .unwrap();
        assert_eq!(given, again);
    }

    #[test]
    fn refuses_counts_that_make_no_sense() {
        for count in ["0", "-1", "28001", "99999999999", "many", ""] {
            let error = parse(&["--guacd=a:1", &format!("--count={count}")]).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("--count"), "{error}");
        }
        assert_eq!(parse(&["--guacd=a:1", "--count=28000"]).unwrap().load.count, MOST_SESSIONS);
    }

    #[test]
    fn refuses_times_and_rates_that_make_no_sense() {
        for bad in [
            "--hold=10",
            "--hold=-1s",
            "--hold=soon",
            "--timeout=0s",
            "--timeout=2days",
            "--rate=0",
            "--rate=-4",
            "--rate=NaN",
        ] {
            assert_eq!(parse(&["--guacd=a:1", bad]).expect_err(bad).exit_code(), 2);
        }
        assert!(parse(&["--guacd=a:1", "--hold=10"]).unwrap_err().to_string().contains("such as 10s"));
        assert_eq!(parse(&["--guacd=a:1", "--hold=0s"]).unwrap().load.hold, Duration::ZERO);
    }

    #[test]
    fn refuses_what_contradicts_itself() {
        for bad in [
            &["--guacd=a:1", "--key-limit=128"][..],
            &["--guacd=a:1", "--port=4822"],
            &["--guacd=a:1", "--prefix=stock=/x"],
            &["--prefix=stock"],
            &["--prefix==/x"],
            &["--prefix=stock=/x", "--key-limit-library=/x"],
            &["--guacd=a:1", "--key-limit-library=/x"],
            &[],
        ] {
            assert_eq!(parse(bad).expect_err(&format!("{bad:?}")).exit_code(), 2);
        }
    }

    #[test]
    fn defaults_follow_the_scenario() {
        let load = |flags: &[&str]| parse(&[&["--prefix=stock=/x"], flags].concat()).unwrap().load;
        let of = |flags: &[&str]| {
            let load = load(flags);
            (load.count, load.rate.per_second(), load.hold.as_secs())
        };
        assert_eq!(of(&[]), (300, 8.0, 10));
        assert_eq!(of(&["--scenario=burst"]), (300, 200.0, 10));
        assert_eq!(of(&["--scenario=churn"]), (1000, 8.0, 0));
        assert_eq!(of(&["--scenario=soak"]), (100, 8.0, 600));
        assert_eq!(of(&["--scenario=fuzz"]), (20, 8.0, 10));
        assert_eq!(of(&["--scenario=burst", "--count=3", "--rate=1", "--hold=1s"]), (3, 1.0, 1));
        for scenario in Scenario::value_variants() {
            let flag = format!("--scenario={}", scenario.as_str());
            assert_eq!(load(&[&flag]).check(), Ok(()), "{flag}");
            assert_eq!(load(&[&flag]).scenario, *scenario);
        }
    }

    #[test]
    fn refuses_what_a_scenario_cannot_do() {
        let check = |flags: &[&str]| parse(flags).unwrap().load.check().unwrap_err();
        assert!(check(&["--guacd=a:1", "--scenario=chaos"]).contains("--guacd"));
        assert!(check(&["--prefix=a=/x", "--scenario=chaos", "--target=openssh"]).contains("--cut 0%"));
        assert!(check(&["--prefix=a=/x", "--scenario=chaos", "--kill=90%"]).contains("100%"));
        assert!(check(&["--prefix=a=/x", "--scenario=churn", "--count=50"]).contains("--wave"));
        assert!(check(&["--prefix=a=/x", "--scenario=soak", "--hold=1s"]).contains("--prove-every"));
        assert!(check(&["--prefix=a=/x", "--replay=file"]).contains("fuzz"));
        assert!(check(&["--prefix=a=/x", "--protocol=vnc", "--target=openssh"]).contains("--protocol"));
        assert!(check(&["--prefix=a=/x", "--protocol=mix", "--target=box:22"]).contains("three servers"));
        for bad in ["--kill=101%", "--kill=-1", "--kill=some", "--max-slowdown=0", "--scenario=havoc"] {
            assert_eq!(parse(&["--guacd=a:1", bad]).expect_err(bad).exit_code(), 2);
        }
    }

    #[test]
    fn no_two_prefixes_share_a_name() {
        let check = |args: &[&str]| parse(args).unwrap().check();
        assert!(check(&["--prefix=stock=/x", "--prefix=patched=/x"]).is_ok());
        assert!(check(&["--prefix=stock=/x", "--prefix=stock=/y"]).unwrap_err().contains("stock"));
    }

    #[test]
    fn logs_are_accepted_and_of_no_effect_with_a_guacd_that_runs_already() {
        assert!(parse(&["--guacd=a:1", "--logs=/x"]).is_ok());
    }

    #[test]
    fn credentials_go_with_an_address_and_with_nothing_else() {
        let check = |args: &[&str]| parse(&[&["--guacd=a:1"], args].concat()).unwrap().load.check();
        assert!(check(&[]).is_ok());
        assert!(check(&["--target=box:22", "--user=me"]).is_ok());
        assert!(check(&["--target=box:22"]).unwrap_err().contains("--user"));
        assert!(check(&["--target=box:23", "--protocol=telnet"]).is_ok());
        assert!(check(&["--target=box:5900", "--protocol=vnc", "--password-file=x"]).is_ok());
        let key = ["--target=box:5900", "--protocol=vnc", "--private-key-file=x"];
        assert!(check(&key).unwrap_err().contains("--password-file"));
        assert!(check(&["--user=me"]).unwrap_err().contains("embedded"));
        assert!(check(&["--target=openssh", "--password-file=x"]).unwrap_err().contains("--password-file"));
    }

    #[test]
    fn reads_hosts_and_ports() {
        let at = |host: &str, port| HostPort { host: host.into(), port };
        assert_eq!("[::1]:22".parse(), Ok(at("::1", 22)));
        assert_eq!("box.example:2022".parse(), Ok(at("box.example", 2022)));
        assert_eq!(at("::1", 22).to_string(), "[::1]:22");
        for bad in ["", ":22", "box", "box:", "box:0", "box:65536", "::1:22", "[::1:22", "a b:1", "[]:1"] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
    }
}

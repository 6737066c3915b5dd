//! What is common to the load of every scenario? Which guacd, which target, how long a session may take, and which share of
//! the sessions must prove itself.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::values::{Activity, HostPort, Percent, Protocol, Target, ratio, timeout};

/// The flags that every scenario has.
///
/// A password and a private key are never arguments, which every user of the machine could read. They come from files, or
/// from the environment variables `GUAC_STRESS_PASSWORD` and `GUAC_STRESS_PRIVATE_KEY`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Args)]
pub struct Load {
    /// Maximum time for a session to come up, and again for it to prove that it is alive.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = timeout)]
    pub timeout: Duration,

    /// The protocol that the sessions use. A session over VNC or RDP proves itself by the text on its clipboard.
    #[arg(long, value_enum, value_name = "PROTOCOL", default_value_t)]
    pub protocol: Protocol,

    /// What guacd connects to: `embedded`, servers within this program; `openssh`, this machine's sshd with temporary keys
    /// and a free port; or the HOST:PORT of a server for the --protocol.
    ///
    /// An SSH or telnet server must start a shell. A VNC or RDP server must give each session its own desktop, with a program
    /// that puts each line that is typed onto the clipboard: stress/examples/vnc-desktop.sh and stress/examples/rdp-desktop.sh are such servers.
    #[arg(long, value_name = "TARGET", default_value_t = Target::Embedded)]
    pub target: Target,

    /// What the embedded target draws in each session while it is open. All of it is measured: the frames that reach the
    /// client, how late they do, their bytes, and guacd's processor time for each.
    #[arg(long, value_enum, value_name = "ACTIVITY", default_value_t)]
    pub activity: Activity,

    /// The user to log in as, on a target given as HOST:PORT. Only SSH needs one.
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,

    /// A file with the password for a target given as HOST:PORT. The environment variable GUAC_STRESS_PASSWORD can hold
    /// the password instead.
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,

    /// A file with the private key for a target given as HOST:PORT. The environment variable GUAC_STRESS_PRIVATE_KEY
    /// can hold the key instead.
    #[arg(long, value_name = "FILE", conflicts_with = "password_file")]
    pub private_key_file: Option<PathBuf>,

    /// Load a guacd that runs already. It is neither started nor stopped, and its log is not read.
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["key_limit", "pretend_cores", "port"])]
    pub guacd: Option<HostPort>,

    /// Maximum number of pthread keys for every process of guacd, as if libc had no more. musl has 128, and so has guacd's
    /// official image; glibc has 1024.
    #[arg(long, value_name = "KEYS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub key_limit: Option<u32>,

    /// How many processors guacd sees, whatever the machine has. Those that it uses stay the same.
    #[arg(long, value_name = "CORES", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub pretend_cores: Option<u32>,

    /// The loopback port for guacd to listen on [default: a free one].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,

    /// Write the report to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write the report to this file, as a page to look at: one file, which loads nothing.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// The thresholds that every scenario has.
    #[command(flatten)]
    pub thresholds: Thresholds,
}

/// The thresholds that every scenario has. Those without a default are checked only when they are given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Args)]
pub struct Thresholds {
    /// Minimum share of the sessions not disrupted on purpose that must prove themselves.
    #[arg(long, value_name = "PERCENT", default_value = "100%", help_heading = "Thresholds")]
    pub min_proven: Percent,

    /// Maximum number of sessions that fail in silence: whose client gets neither an error nor the end of its connection.
    #[arg(long, value_name = "SESSIONS", default_value_t = 0, help_heading = "Thresholds")]
    pub max_silent: u32,

    /// Maximum ratio of the last sessions' p50 time to first proof to the first sessions': 100 of each, or half of all.
    #[arg(long, value_name = "RATIO", value_parser = ratio, help_heading = "Thresholds")]
    pub max_slowdown: Option<f64>,

    /// Maximum time for guacd and all its processes to end after SIGTERM, while sessions are open; for churn, after the
    /// last was closed. Without this flag that time is not measured, and guacd is killed after 2 s.
    #[arg(long, value_name = "TIME", value_parser = timeout, help_heading = "Thresholds")]
    pub max_shutdown: Option<Duration>,
}

impl Load {
    /// Finds flags that contradict each other, beyond what clap refuses.
    ///
    /// # Errors
    ///
    /// What to change, for a usage error.
    pub fn check(&self) -> Result<(), String> {
        match (self.protocol, &self.target) {
            (protocol, Target::OpenSsh) if protocol != Protocol::Ssh => {
                return Err("the target 'openssh' serves SSH only: leave out --target or --protocol".into());
            }
            (Protocol::Mix, Target::Address(address)) => {
                return Err(format!(
                    "a mix needs four servers, and {address} is one: leave out --target, or give another --protocol"
                ));
            }
            _ => {}
        }
        if self.activity != Activity::Idle && self.target != Target::Embedded {
            return Err(format!(
                "only the embedded target draws, and '{}' shows what its own programs do: leave out --activity or --target",
                self.target
            ));
        }
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
                    "{} has no private keys: give --password-file instead of --private-key-file",
                    self.protocol.as_str()
                ))
            }
            (Target::Embedded | Target::OpenSsh, Some(flag)) => Err(format!(
                "{flag} is for a target given as HOST:PORT, and '{}' has its own user",
                self.target
            )),
            _ => Ok(()),
        }
    }
}

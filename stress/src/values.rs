//! How is the value of a flag written? Counts, times, rates, percentages, addresses, protocols and targets.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use clap::{ValueEnum, builder::TypedValueParser};
use serde::{Deserialize, Serialize};

/// The maximum number of sessions: each takes an ephemeral port towards guacd, of which Linux has 28,232.
pub const MAX_SESSIONS: u32 = 28_000;

/// The protocol that sessions use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// SSH.
    #[default]
    Ssh,
    /// Telnet.
    Telnet,
    /// VNC.
    Vnc,
    /// RDP.
    Rdp,
    /// One session of each, in turn.
    Mix,
}

impl Protocol {
    /// Its name on the command line. Each protocol has guacd's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ssh => "ssh",
            Self::Telnet => "telnet",
            Self::Vnc => "vnc",
            Self::Rdp => "rdp",
            Self::Mix => "mix",
        }
    }

    /// The protocols that sessions use in turn.
    pub fn each(self) -> &'static [Self] {
        match self {
            Self::Ssh => &[Self::Ssh],
            Self::Telnet => &[Self::Telnet],
            Self::Vnc => &[Self::Vnc],
            Self::Rdp => &[Self::Rdp],
            Self::Mix => &[Self::Ssh, Self::Telnet, Self::Vnc, Self::Rdp],
        }
    }
}

/// What the embedded servers draw in each session while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// Nothing, but for what is typed.
    #[default]
    Idle,
    /// A character, 5 times a second.
    Type,
    /// Text that moves up by a line, 10 times a second: a whole line of a terminal, or 640x384 pixels of a desktop.
    Scroll,
    /// A picture that changes everywhere, 20 times a second: 40x15 coloured characters of a terminal, or 320x240 pixels of
    /// a desktop.
    Video,
}

impl Activity {
    /// Its name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Type => "type",
            Self::Scroll => "scroll",
            Self::Video => "video",
        }
    }

    /// How often it draws.
    pub fn frames_per_second(self) -> u32 {
        match self {
            Self::Idle => 0,
            Self::Type => 5,
            Self::Scroll => 10,
            Self::Video => 20,
        }
    }
}

/// A percentage from 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Percent(f64);

impl Percent {
    /// From 0 to 100.
    pub fn value(self) -> f64 {
        self.0
    }

    /// This share of `all`, rounded to the nearest whole number.
    pub fn share_of(self, all: u32) -> u32 {
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

/// The installation prefix of a guacd, and the name that the report gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// `stock`, `patched`, or another name.
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

/// What guacd connects to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// Servers within this program.
    Embedded,
    /// A real sshd that this program starts, with temporary keys.
    OpenSsh,
    /// A server that runs already.
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
                .map_err(|error| format!("not embedded or openssh, and {error}")),
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
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
            // A bare IPv6 address: nothing says where it ends and the port begins.
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
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
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

/// Serde writes these values as they are written on the command line.
macro_rules! as_text {
    ($($value:ty),*) => {$(
        impl TryFrom<String> for $value {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$value> for String {
            fn from(value: $value) -> Self {
                value.to_string()
            }
        }
    )*};
}

as_text!(HostPort, Percent, Rate, Target);

/// Parses a count of sessions: from 1 to [`MAX_SESSIONS`].
pub fn sessions() -> impl TypedValueParser<Value = u32> {
    clap::value_parser!(u32).range(1..=i64::from(MAX_SESSIONS))
}

/// Parses a ratio from 0.01 to 1000.
///
/// # Errors
///
/// What a ratio looks like.
pub fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.01..=1000.0).contains(&ratio) => Ok(ratio),
        _ => Err("give a ratio, such as 1.5".into()),
    }
}

/// Parses a time from 0 s to one day, such as `10s`.
///
/// # Errors
///
/// What a time looks like, or the range.
pub fn hold(text: &str) -> Result<Duration, String> {
    duration(text, Duration::ZERO)
}

/// Parses a time from 100 ms to one day, such as `10s`.
///
/// # Errors
///
/// What a time looks like, or the range.
pub fn timeout(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_millis(100))
}

/// Parses a time from 2 s to one day, in which something is measured.
///
/// # Errors
///
/// What a time looks like, or the range.
pub fn watched(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_secs(2))
}

fn duration(text: &str, min: Duration) -> Result<Duration, String> {
    const MAX: Duration = Duration::from_secs(24 * 60 * 60);
    let time = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number with its unit, such as 10s, 500ms or 2m"))?;
    if time < min || time > MAX {
        return Err(format!("must be from {} to 1day", humantime::format_duration(min)));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_they_are_written() {
        for text in ["12.5%", "0%", "100%"] {
            assert_eq!(text.parse::<Percent>().unwrap().to_string(), text);
        }
        for text in ["embedded", "openssh", "[::1]:2022", "box:22"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert_eq!("2.5".parse::<Rate>().unwrap().interval(), Duration::from_millis(400));
        assert_eq!("12.5".parse::<Percent>().unwrap().share_of(20), 3);
        for bad in ["101%", "-1", "some", "NaN"] {
            assert!(bad.parse::<Percent>().is_err(), "{bad}");
        }
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

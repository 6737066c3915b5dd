//! How are measured values written for people? Styles, numbers, and the sections that scenarios add to the table.

use anstyle::{AnsiColor, Style};

use super::model::{Bound, Check, Latency};

/// What is as it should be.
pub const GOOD: Style = AnsiColor::Green.on_default().bold();

/// What is not.
pub const BAD: Style = AnsiColor::Red.on_default().bold();

/// What matters less.
pub const FAINT: Style = Style::new().dimmed();

/// A heading.
pub const STRONG: Style = Style::new().bold();

/// Lines below the table, about one run. They may have styles.
pub struct Section {
    /// What the lines are about.
    pub heading: String,
    /// The lines.
    pub lines: Vec<String>,
}

/// A time in seconds, with a fraction only where there is one.
pub fn seconds(seconds: f64) -> String {
    if seconds.fract() == 0.0 { format!("{seconds} s") } else { format!("{seconds:.1} s") }
}

/// Percentiles of times.
pub fn latency(latency: Latency) -> String {
    format!("{:.0} / {:.0} / {:.0} ms (p50/p95/p99)", latency.p50_ms, latency.p95_ms, latency.p99_ms)
}

/// A size in MiB.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A check, with its threshold.
pub fn check(check: &Check) -> String {
    let bound = match check.bound {
        Bound::AtLeast => "minimum",
        Bound::AtMost => "maximum",
    };
    let measured = check.measured.map_or_else(|| "not measured".into(), number);
    format!("{}: {measured}, the {bound} is {} {}", check.name, number(check.threshold), check.unit)
}

/// A number, with a fraction only where there is one.
pub fn number(number: f64) -> String {
    if number.fract() == 0.0 { format!("{number}") } else { format!("{number:.2}") }
}

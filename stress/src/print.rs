//! How is it told? The only module that prints: progress and errors to standard error, the result to standard output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use anstream::{eprintln, println};
use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    load::{Step, Tally},
    report::{Latency, MemoryKind, Report, Run},
};

const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const FAINT: Style = Style::new().dimmed();
const STRONG: Style = Style::new().bold();

/// How often progress is told where there is no terminal to draw on.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Tells why nothing came of it.
pub fn error(error: &anyhow::Error) {
    eprintln!("{BAD}error{BAD:#}: {error:#}");
}

/// Progress of one run: a bar on a terminal, else a line now and then.
pub struct Progress {
    variant: String,
    bar: Option<ProgressBar>,
    told: Option<(Instant, Step)>,
}

impl Progress {
    /// Begins to show a run.
    pub fn new(variant: &str, requested: u32) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(requested.into());
            let style =
                ProgressStyle::with_template("{prefix:>10.bold} {bar:32.green/dim} {msg} {elapsed:.dim}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(variant.to_owned());
            bar
        });
        Self { variant: variant.into(), bar, told: None }
    }

    /// Shows where it stands.
    pub fn show(&mut self, tally: Tally) {
        let step = match tally.step {
            Step::Ramp => format!("opening {}/{}", tally.started, tally.requested),
            Step::Hold => "holding".into(),
            Step::Proof => "proving".into(),
        };
        let counts =
            format!("{step}: {} alive, {} proven, {} failed", tally.alive, tally.proven, tally.failed);
        if let Some(bar) = &self.bar {
            let done = if tally.step == Step::Proof { tally.proven } else { tally.alive };
            bar.set_position(done.into());
            bar.set_message(counts);
            return;
        }
        let due = self.told.is_none_or(|(at, step)| at.elapsed() >= LINE_INTERVAL || step != tally.step);
        if due {
            eprintln!("{}: {counts}", self.variant);
            self.told = Some((Instant::now(), tally.step));
        }
    }

    /// Leaves the terminal to others.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Prints a report: the runs beside each other, then what went wrong.
pub fn report(report: &Report) {
    if report.runs.is_empty() {
        println!("{BAD}interrupted{BAD:#} before the first run.");
        return;
    }
    table(&report.runs);
    for run in &report.runs {
        failures(run);
    }
    println!();
    verdict(report);
}

/// A row: what it is about, and how a run's cell of it looks.
type Row = (&'static str, fn(&Run) -> Option<(String, Style)>);

const ROWS: &[Row] = &[
    ("release", |run| run.release.clone().map(plain)),
    ("target", |run| Some(plain(run.target.clone()))),
    ("key limit", |run| run.key_limit.map(|limit| plain(format!("{limit} per process")))),
    ("preload", |run| {
        let preload = run.guacd.as_ref()?.preload.as_deref()?;
        Some(plain(preload.rsplit('/').next().unwrap_or(preload).into()))
    }),
    ("sessions", |run| Some(plain(format!("{} at {}/s", run.requested, run.rate_per_second)))),
    ("held for", |run| Some(plain(seconds(run.hold_seconds)))),
    ("proven", |run| {
        let style = if run.passed() { GOOD } else { BAD };
        Some((format!("{} of {}", run.proven, run.requested), style))
    }),
    ("alive at once", |run| Some(plain(run.peak_alive.to_string()))),
    ("first proof", |run| run.first_proof.map(latency)),
    ("last proof", |run| run.last_proof.map(latency)),
    ("pthread keys", |run| {
        let keys = run.guacd.as_ref()?.keys?;
        let style = if keys.refusals > 0 { BAD } else { Style::new() };
        Some((format!("{} of {}, {} refused", keys.most_in_a_process, keys.limit, keys.refusals), style))
    }),
    ("memory", |run| {
        let usage = run.guacd.as_ref()?.usage?;
        let kind = match usage.memory_kind {
            MemoryKind::Pss => "PSS",
            MemoryKind::Rss => "RSS",
        };
        let mib = usage.memory_bytes as f64 / f64::from(1 << 20);
        Some(plain(format!("{mib:.0} MiB {kind}, {} children", usage.children)))
    }),
    ("guacd's parent", |run| {
        let usage = run.guacd.as_ref()?.usage?;
        Some(plain(format!("{} files, {} threads", usage.parent_descriptors, usage.parent_threads)))
    }),
    ("took", |run| {
        Some(plain(format!("{}, ramp {}", seconds(run.total_seconds), seconds(run.ramp_seconds))))
    }),
    ("log", |run| Some((run.guacd.as_ref()?.log_file.clone(), FAINT))),
];

fn table(runs: &[Run]) {
    // A path is as wide as it is: better below than across.
    let (rows, below) = ROWS.split_at(ROWS.len() - 1);
    let cells = |row: &Row| runs.iter().map(row.1).collect::<Vec<_>>();
    let widths = runs.iter().enumerate().map(|(column, run)| {
        let longest =
            rows.iter().filter_map(|row| (row.1)(&runs[column])).map(|(text, _)| text.chars().count()).max();
        longest.unwrap_or(0).max(run.variant.chars().count())
    });
    let widths = widths.collect::<Vec<_>>();

    println!();
    let heads = runs.iter().map(|run| Some((run.variant.clone(), STRONG))).collect::<Vec<_>>();
    line("", &heads, &widths);
    for row in rows {
        let cells = cells(row);
        if cells.iter().any(Option::is_some) {
            line(row.0, &cells, &widths);
        }
    }
    for (run, cell) in runs.iter().zip(cells(&below[0])) {
        if let Some((text, style)) = cell {
            println!("{FAINT}{:>15}{FAINT:#}  {style}{text}{style:#} ({})", below[0].0, run.variant);
        }
    }
}

fn line(name: &str, cells: &[Option<(String, Style)>], widths: &[usize]) {
    let mut line = format!("{FAINT}{name:>15}{FAINT:#}");
    for (cell, width) in cells.iter().zip(widths) {
        let (text, style) = cell.clone().unwrap_or_else(|| ("-".into(), FAINT));
        let padding = " ".repeat(width.saturating_sub(text.chars().count()));
        line.push_str(&format!("  {style}{text}{style:#}{padding}"));
    }
    println!("{}", line.trim_end());
}

fn failures(run: &Run) {
    let never_begun = run.requested - run.started;
    if run.failures.is_empty()
        && never_begun == 0
        && run.guacd.as_ref().is_none_or(|guacd| guacd.died.is_none())
    {
        return;
    }
    let failed = run.failures.iter().map(|failure| failure.count).sum::<u32>();
    println!("\n{STRONG}{}{STRONG:#}: {} not proven", run.variant, failed + never_begun);
    for failure in &run.failures {
        println!("  {BAD}{:>5}{BAD:#}  {}: {}", failure.count, failure.phase.as_str(), failure.reason);
        if let Some(log) = &failure.log {
            println!("         {FAINT}guacd's log: {}{FAINT:#}", log.replace('\t', " "));
        }
    }
    if never_begun > 0 {
        println!("  {BAD}{never_begun:>5}{BAD:#}  never begun");
    }
    if let Some(guacd) = run.guacd.as_ref().filter(|guacd| guacd.died.is_some()) {
        println!("  guacd {}; its last lines:", guacd.died.as_deref().unwrap_or_default());
        for line in &guacd.last_lines {
            println!("         {FAINT}{}{FAINT:#}", line.replace('\t', " "));
        }
    }
}

fn verdict(report: &Report) {
    let judged = Report::judged(&report.runs).map(|run| run.variant.as_str()).collect::<Vec<_>>().join(", ");
    if report.interrupted {
        println!("{BAD}interrupted{BAD:#}: this is what was measured so far.");
    } else if report.passed {
        println!("{GOOD}passed{GOOD:#}: every session of {judged} gave back what was typed into it.");
    } else {
        println!("{BAD}failed{BAD:#}: not every session of {judged} gave back what was typed into it.");
    }
}

fn plain(text: String) -> (String, Style) {
    (text, Style::new())
}

fn latency(latency: Latency) -> (String, Style) {
    plain(format!("{:.0} / {:.0} / {:.0} ms (p50/p95/p99)", latency.p50_ms, latency.p95_ms, latency.p99_ms))
}

fn seconds(seconds: f64) -> String {
    if seconds.fract() == 0.0 { format!("{seconds} s") } else { format!("{seconds:.1} s") }
}

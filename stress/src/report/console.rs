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
    load::crowd::{Step, Tally},
    report::{Bound, Check, Latency, Limit, MemoryKind, Report, Run, Scenario},
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

/// Says what this machine can carry, and warns where that is less than what is asked for.
pub fn machine(limits: &[Limit], sessions: u32) {
    let Some(first) = limits.first() else { return };
    let (style, word) = match first.sessions < sessions.into() {
        true => (BAD, "warning: "),
        false => (FAINT, ""),
    };
    eprintln!(
        "{style}{word}this machine carries about {} sessions of a stock guacd, as {} ({}) ends first, and no fewer of a \
         patched one; {sessions} are to be open at once{style:#}",
        first.sessions, first.name, first.source,
    );
    for limit in limits.iter().skip(1).filter(|limit| limit.sessions < sessions.into()) {
        eprintln!(
            "{BAD}warning: {} ({}) ends at about {} as well{BAD:#}",
            limit.name, limit.source, limit.sessions
        );
    }
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
            Step::Settle => format!("settling at {}/{}", tally.started, tally.requested),
            Step::Chaos => "striking".into(),
            Step::Fuzz(sent) => format!("{sent} malformed handshakes"),
            Step::Shutdown => "ending".into(),
        };
        let counts =
            format!("{step}: {} alive, {} proven, {} failed", tally.alive, tally.proven, tally.failed);
        if let Some(bar) = &self.bar {
            let done = if tally.step == Step::Proof { tally.proven } else { tally.alive };
            bar.set_position(done.into());
            bar.set_message(counts);
            return;
        }
        let is_other = |step| std::mem::discriminant(&step) != std::mem::discriminant(&tally.step);
        let due = self.told.is_none_or(|(at, step)| at.elapsed() >= LINE_INTERVAL || is_other(step));
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
        findings(run);
        missed(run);
    }
    println!();
    verdict(report);
}

/// A row: what it is about, and how a run's cell of it looks.
type Row = (&'static str, fn(&Run) -> Option<(String, Style)>);

const ROWS: &[Row] = &[
    ("release", |run| run.release.clone().map(plain)),
    ("scenario", |run| {
        let seed = run.seed.map(|seed| format!(", seed {seed}")).unwrap_or_default();
        (run.scenario != Scenario::Hold).then(|| plain(format!("{}{seed}", run.scenario.as_str())))
    }),
    ("protocol", |run| (run.protocol != "ssh").then(|| plain(run.protocol.clone()))),
    ("target", |run| Some(plain(run.target.clone()))),
    ("key limit", |run| run.key_limit.map(|limit| plain(format!("{limit} per process")))),
    ("preload", |run| {
        let preload = run.guacd.as_ref()?.preload.as_deref()?;
        Some(plain(preload.rsplit('/').next().unwrap_or(preload).into()))
    }),
    ("sessions", |run| Some(plain(format!("{} at {}/s", run.requested, run.rate_per_second)))),
    ("held for", |run| Some(plain(seconds(run.hold_seconds)))),
    ("proven", |run| {
        let style =
            if run.checks.iter().all(|check| check.name != "proven" || check.passed) { GOOD } else { BAD };
        let struck = match run.struck() {
            0 => String::new(),
            struck => format!(", {struck} struck"),
        };
        Some((format!("{} of {}{struck}", run.proven, run.requested), style))
    }),
    ("silent", |run| {
        let style = if run.silent > 0 { BAD } else { Style::new() };
        Some((run.silent.to_string(), style))
    }),
    ("alive at once", |run| Some(plain(run.peak_alive.to_string()))),
    ("first proof", |run| run.first_proof.map(latency)),
    ("first and last", |run| {
        let ages = run.first_proof_by_age?;
        let text = format!(
            "{:.0} and {:.0} ms (p50 of the first and of the last {})",
            ages.first.p50_ms, ages.last.p50_ms, ages.sessions
        );
        Some(plain(text))
    }),
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
    ("its children", |run| {
        let ends = run.guacd.as_ref()?.processes?;
        let of = |end: crate::report::ProcessUse| format!("{} (#{})", end.descriptors, end.session + 1);
        Some(plain(format!("{} to {} files, {} threads", of(ends.first), of(ends.last), ends.last.threads)))
    }),
    ("idle CPU", |run| {
        let taken = run.guacd.as_ref()?.idle_cpu_ms_per_second?;
        Some(plain(format!("{taken:.2} ms per session and second")))
    }),
    ("end", |run| {
        let end = run.guacd.as_ref()?.shutdown?;
        Some(match end.left {
            0 => plain(format!("{:.1} s after SIGTERM", end.seconds)),
            left => {
                (format!("{left} of {} processes left after {}", end.processes, seconds(end.seconds)), BAD)
            }
        })
    }),
    ("guac-stress", |run| {
        let took = run.generator?;
        let mib = took.max_rss_bytes as f64 / f64::from(1 << 20);
        Some(plain(format!("{:.1} s CPU, {mib:.0} MiB, targets included", took.cpu_seconds)))
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

/// What a scenario found, where it has more to tell than the table.
fn findings(run: &Run) {
    let heading = |text: &str| println!("\n{STRONG}{}{STRONG:#}: {text}", run.variant);
    if let (Scenario::Churn, [first, .., last]) = (run.scenario, &run.rounds[..]) {
        heading(&format!("{} waves", run.rounds.len()));
        let before = run.guacd.as_ref().and_then(|guacd| guacd.usage_before);
        let rows = [("before", before), ("after the first", first.usage), ("after the last", last.usage)];
        for (when, usage) in rows {
            let Some(usage) = usage else { continue };
            println!(
                "  {when:>15}  {} files, {} threads, {} children, {:.1} MiB",
                usage.parent_descriptors,
                usage.parent_threads,
                usage.children,
                usage.memory_bytes as f64 / f64::from(1 << 20)
            );
        }
        let slowest = run.rounds.iter().map(|round| round.settled_seconds).collect::<Option<Vec<_>>>();
        match slowest.map(|all| all.into_iter().fold(0.0, f64::max)) {
            Some(slowest) => println!("  {:>15}  {slowest:.1} s at most", "settled in"),
            None if before.is_some() => println!("  {:>15}  not each time", "settled"),
            None => {}
        }
    } else if !run.rounds.is_empty() {
        heading(&format!("{} proofs", run.rounds.len()));
        let shown = if run.rounds.len() > 10 { run.rounds.len() / 10 } else { 1 };
        for round in run.rounds.iter().step_by(shown) {
            let proof = round.proof.map(|proof| latency(proof).0).unwrap_or_default();
            println!(
                "  at {:>9}  {} of {}, {proof}",
                seconds(round.at_seconds),
                round.proven,
                round.sessions
            );
        }
    }
    if !run.strikes.is_empty() {
        heading(&format!("{} struck", run.struck()));
        for strike in &run.strikes {
            let style = if strike.ended == strike.sessions { GOOD } else { BAD };
            let slowest = strike.slowest_seconds.map(|slowest| format!(", in {slowest:.1} s at most"));
            println!(
                "  {:>15}  {style}{} of {}{style:#} ended as they should{}",
                strike.kind.as_str(),
                strike.ended,
                strike.sessions,
                slowest.unwrap_or_default()
            );
        }
    }
    if let Some(fuzz) = &run.fuzz {
        heading(&format!("{} malformed handshakes", fuzz.inputs));
        println!(
            "  {} answered with an error, {} with ready, {} closed, {} abandoned, {} not ended in time",
            fuzz.errors, fuzz.ready, fuzz.closed, fuzz.abandoned, fuzz.unanswered
        );
        match fuzz.crashes {
            None => println!("  whether a process crashed is not known, as guacd's log is not read here"),
            Some(0) => {}
            Some(crashes) => println!("  {BAD}{crashes} processes crashed{BAD:#}"),
        }
        for file in &fuzz.saved {
            println!("  {FAINT}again with{FAINT:#} --scenario fuzz --replay {file}");
        }
    }
}

/// The checks that did not pass, but for the one that the table tells.
fn missed(run: &Run) {
    for check in run.checks.iter().filter(|check| !check.passed) {
        println!("  {BAD}missed{BAD:#}  {}", told(check));
    }
}

fn told(check: &Check) -> String {
    let bound = match check.bound {
        Bound::AtLeast => "at least",
        Bound::AtMost => "at most",
    };
    let number =
        |number: f64| if number.fract() == 0.0 { format!("{number}") } else { format!("{number:.2}") };
    let found = match check.found {
        Some(found) => number(found),
        None => "not measured".into(),
    };
    format!("{}: {found}, where {bound} {} {} are asked for", check.name, number(check.threshold), check.unit)
}

fn verdict(report: &Report) {
    let names = |wanted: fn(&Run) -> bool| {
        let runs = Report::judged(&report.runs).filter(|run| wanted(run));
        runs.map(|run| run.variant.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (judged, missed) = (names(|_| true), names(|run| !run.passed()));
    if report.interrupted {
        println!("{BAD}interrupted{BAD:#}: this is what was measured so far.");
    } else if report.passed {
        let is_whole = |run: &Run| run.proven == run.requested - run.struck() && run.checks.len() == 2;
        match Report::judged(&report.runs).all(is_whole) {
            true => {
                println!("{GOOD}passed{GOOD:#}: every session of {judged} gave back what was typed into it.")
            }
            false => println!("{GOOD}passed{GOOD:#}: {judged} met every threshold."),
        }
    } else if missed.is_empty() {
        println!("{BAD}failed{BAD:#}: not every guacd could be loaded.");
    } else {
        println!("{BAD}failed{BAD:#}: {missed} missed a threshold.");
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

//! How does the program speak to people? The only module that prints: progress and errors to standard error, the result to
//! standard output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use anstream::{eprintln, println};
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    compare::{Comparison, Verdict},
    model::{Limit, Run, StressReport},
    progress::{Progress, Step},
    table,
    text::{BAD, FAINT, GOOD, STRONG, Section},
};
use crate::guacd::pid_max::RaisedPidMax;

/// How often progress is shown where there is no terminal to draw on.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Prints an error.
pub fn error(error: &anyhow::Error) {
    eprintln!("{BAD}error{BAD:#}: {error:#}");
}

/// Prints that this machine may have more tasks for the time of a run.
pub fn raised(pid_max: &RaisedPidMax) {
    let RaisedPidMax { before, now, .. } = pid_max;
    eprintln!("{FAINT}kernel.pid_max is {now} until this run has ended, and {before} then{FAINT:#}");
}

/// Prints a note.
pub fn note(text: &str) {
    eprintln!("{FAINT}{text}{FAINT:#}");
}

/// Prints how many sessions this machine can carry, and warns where that is less than what is asked for.
pub fn machine(limits: &[Limit], sessions: u32) {
    let Some(first) = limits.first() else { return };
    let (style, word) = match first.sessions < sessions.into() {
        true => (BAD, "warning: "),
        false => (FAINT, ""),
    };
    eprintln!(
        "{style}{word}this machine carries about {} sessions of a stock guacd, and no fewer of a patched one: {} ({}) is \
         used up first; {sessions} are to be open at once{style:#}",
        first.sessions, first.name, first.source,
    );
    for limit in limits.iter().skip(1).filter(|limit| limit.sessions < sessions.into()) {
        eprintln!(
            "{BAD}warning: {} ({}) is enough for about {} only{BAD:#}",
            limit.name, limit.source, limit.sessions
        );
    }
}

/// Prints a report. `sections` gives what the scenario of a run adds to the table.
pub fn report(report: &StressReport, sections: fn(&Run) -> Option<Section>) {
    for line in table::lines(report, sections) {
        println!("{line}");
    }
}

/// Prints a comparison.
pub fn comparison(comparison: &Comparison) {
    for variant in &comparison.variants {
        println!("\n{STRONG}{}{STRONG:#}, {} and {} runs", variant.name, variant.runs.0, variant.runs.1);
        for figure in &variant.figures {
            let interval =
                figure.interval.map_or_else(String::new, |(least, most)| format!("{least:.2} to {most:.2}"));
            let (style, verdict) = match figure.verdict {
                Verdict::Better => (GOOD, "better"),
                Verdict::Worse => (BAD, "worse"),
                Verdict::Same => (FAINT, "no change"),
                Verdict::Unknown => (FAINT, "too few runs to tell"),
            };
            println!(
                "{FAINT}{:>20}{FAINT:#}  {:>12.4} -> {:<12.4} {:<12} times {:.2}  {interval:14}  {style}{verdict}{style:#}",
                figure.name, figure.old, figure.new, figure.unit, figure.ratio
            );
        }
    }
    println!();
    let percent = comparison.threshold * 100.0;
    match (comparison.has_regression(), comparison.is_sure()) {
        (true, _) => println!(
            "{BAD}worse{BAD:#}: at least one figure, by more than {percent} % and by more than the noise."
        ),
        (false, true) => println!("{GOOD}no regression{GOOD:#} of more than {percent} %."),
        (false, false) => println!(
            "{BAD}unknown{BAD:#}: the noise is known only from several runs of each build. Give directories with several reports."
        ),
    }
}

/// The progress of one run: a bar on a terminal, else a line now and then.
pub struct ProgressDisplay {
    variant: String,
    bar: Option<ProgressBar>,
    last_line: Option<(Instant, Step)>,
}

impl ProgressDisplay {
    /// Begins to show a run of so many sessions.
    pub fn new(variant: &str, requested: u32) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(requested.into());
            let style =
                ProgressStyle::with_template("{prefix:>10.bold} {bar:32.green/dim} {msg} {elapsed:.dim}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(variant.to_owned());
            bar
        });
        Self { variant: variant.into(), bar, last_line: None }
    }

    /// Shows how far the run has come.
    pub fn show(&mut self, progress: Progress) {
        if let Some(bar) = &self.bar {
            let done = if progress.step == Step::Proof { progress.proven } else { progress.alive };
            bar.set_position(done.into());
            bar.set_message(progress.line());
            return;
        }
        let is_other = |step| std::mem::discriminant(&step) != std::mem::discriminant(&progress.step);
        let due = self.last_line.is_none_or(|(at, step)| at.elapsed() >= LINE_INTERVAL || is_other(step));
        if due {
            eprintln!("{}: {}", self.variant, progress.line());
            self.last_line = Some((Instant::now(), progress.step));
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

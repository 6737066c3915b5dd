//! What does the user see? This module alone prints: results to standard output, and everything else to standard error.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fmt::Display;
use std::time::{Duration, Instant};

use anstream::{eprintln, println};
use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GREEN: Style = AnsiColor::Green.on_default().bold();
const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();

/// Prints a result, to standard output.
pub fn result(text: impl Display) {
    println!("{text}");
}

/// Prints a note, to standard error.
pub fn note(text: impl Display) {
    eprintln!("{text}");
}

/// Prints a heading for the lines that follow.
pub fn heading(text: impl Display) {
    eprintln!("{BOLD}{text}{BOLD:#}");
}

/// Prints a warning.
pub fn warning(text: impl Display) {
    eprintln!("{YELLOW}warning:{YELLOW:#} {text}");
}

/// Prints the error that ends the program, and its causes.
pub fn error(error: &anyhow::Error) {
    eprintln!("{RED}error:{RED:#} {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  {DIM}because:{DIM:#} {cause}");
    }
}

/// Prints a line of a check list, to standard output: `what`, whether it is there (`ok`), and a remark. What is missing is an
/// error only if it is `required`.
pub fn check(ok: bool, required: bool, what: impl Display, remark: impl Display) {
    let (style, mark) = match (ok, required) {
        (true, _) => (GREEN, "ok"),
        (false, true) => (RED, "missing"),
        (false, false) => (YELLOW, "absent"),
    };
    println!("  {style}{mark:<8}{style:#}{what:<20} {remark}");
}

/// A running step: a spinner on a terminal, and at the end one line with its duration. If this is dropped before
/// [`Step::done`], the line says that the step failed.
pub struct Step {
    name: String,
    start: Instant,
    spinner: ProgressBar,
}

impl Step {
    /// Starts a step, and its spinner.
    pub fn start(name: impl Into<String>) -> Step {
        let name = name.into();
        let spinner = ProgressBar::new_spinner().with_prefix(format!("{name:<12}"));
        spinner.set_style(template("  {prefix} {elapsed:>6}  {wide_msg:.dim}"));
        spinner.enable_steady_tick(Duration::from_millis(200));
        Step { name, start: Instant::now(), spinner }
    }

    /// Shows `text` next to the spinner.
    pub fn busy_with(&self, text: impl Display) {
        self.spinner.set_message(text.to_string());
    }

    /// Ends the step, and prints its duration and `remark`.
    pub fn done(self, remark: impl Display) {
        self.spinner.finish_and_clear();
        let seconds = self.start.elapsed().as_secs_f64();
        eprintln!("  {:<12} {GREEN}done{GREEN:#} {seconds:>6.1} s  {DIM}{remark}{DIM:#}", self.name);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.spinner.is_finished() {
            self.spinner.finish_and_clear();
            eprintln!("  {:<12} {RED}failed{RED:#}", self.name);
        }
    }
}

/// Prints that a step need not run again.
pub fn unchanged(name: &str) {
    eprintln!("  {name:<12} {DIM}unchanged{DIM:#}");
}

/// A progress bar for a download of `total` bytes, or a spinner if the size is not known.
pub fn download(total: Option<u64>) -> ProgressBar {
    match total {
        Some(total) => ProgressBar::new(total)
            .with_style(template("  {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}")),
        None => ProgressBar::new_spinner().with_style(template("  {spinner} {bytes} {bytes_per_sec}")),
    }
}

fn template(text: &str) -> ProgressStyle {
    ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

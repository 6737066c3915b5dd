//! What is done with reports that were written before?

use std::{ffi::OsStr, path::Path, process::ExitCode};

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::{
    cli::report::{Compare, Show},
    report::{
        Run, StressReport, compare, console,
        file::{Format, ReportFile},
        html,
    },
    scenario,
};

/// A page to look at.
pub const HTML: Format =
    Format { flag: "--html", render: |report| Ok(html::page(report, scenario::section).into_bytes()) };

/// Shows a report.
///
/// # Errors
///
/// When it cannot be read, is none, or cannot be written.
pub fn show(show: &Show) -> Result<ExitCode> {
    let report = read(&show.report)?;
    match &show.html {
        Some(path) => ReportFile::prepare(path, HTML)?.write(&report)?,
        None => console::report(&report, scenario::section),
    }
    Ok(ExitCode::SUCCESS)
}

/// Compares the reports of two builds.
///
/// # Errors
///
/// When one cannot be read or is none, or when they are of different loads.
pub fn compare(flags: &Compare) -> Result<ExitCode> {
    let (old, new) = (read_all(&flags.old)?, read_all(&flags.new)?);
    let loads = old.iter().chain(&new).map(load).collect::<Vec<_>>();
    ensure!(
        loads.windows(2).all(|pair| pair[0] == pair[1]),
        "the reports are of different loads, which cannot be compared: run each build with the same flags"
    );
    let runs = |reports: &[StressReport]| -> Vec<Run> {
        reports.iter().flat_map(|report| report.runs.iter().filter(|run| !run.interrupted).cloned()).collect()
    };
    let comparison = compare::compare(&runs(&old), &runs(&new), flags.threshold.value() / 100.0);
    ensure!(
        !comparison.variants.is_empty(),
        "{} and {} have no variant in common",
        flags.old.display(),
        flags.new.display()
    );
    if let Some(path) = &flags.json {
        fs_err::write(path, serde_json::to_vec_pretty(&comparison)?)?;
    }
    console::comparison(&comparison);
    Ok(if comparison.has_regression() { ExitCode::from(5) } else { ExitCode::SUCCESS })
}

/// What was done to guacd. The same flags may go to another guacd, and to other files.
fn load(report: &StressReport) -> Option<Value> {
    let mut plan = report.plan.clone()?;
    plan.as_object_mut()?.remove("guacds");
    let load = plan.get_mut("load")?.as_object_mut()?;
    for elsewhere in ["guacd", "port", "json", "html"] {
        load.remove(elsewhere);
    }
    Some(plan)
}

/// The report in a file, or all reports in a directory.
fn read_all(path: &Path) -> Result<Vec<StressReport>> {
    if !path.is_dir() {
        return Ok(vec![read(path)?]);
    }
    let mut files = fs_err::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|file| file.extension() == Some(OsStr::new("json")));
    files.sort();
    if files.is_empty() {
        bail!("{} has no file whose name ends in .json", path.display());
    }
    files.iter().map(|file| read(file)).collect()
}

fn read(path: &Path) -> Result<StressReport> {
    let json = fs_err::read(path)?;
    StressReport::parse(&mut serde_json::Deserializer::from_slice(&json))
        .map_err(|wrong| anyhow!("{}: {wrong}", path.display()))
}

//! How is a report shown as text? The runs side by side, then the failures and the missed thresholds of each, and the
//! verdict.

use anstyle::Style;

use super::{
    model::{CapacityEnd, MemoryKind, ProcessUse, Run, ScenarioName, StressReport},
    text::{BAD, FAINT, GOOD, STRONG, Section, check, latency, mib, seconds},
};

/// The lines of a report. `sections` gives what the scenario of a run adds to the table.
pub fn lines(report: &StressReport, sections: fn(&Run) -> Option<Section>) -> Vec<String> {
    let mut out = Vec::new();
    if report.runs.is_empty() {
        out.push(format!("{BAD}interrupted{BAD:#} before the first run."));
        return out;
    }
    rows(&report.runs, &mut out);
    for run in &report.runs {
        failures(run, &mut out);
        if let Some(section) = sections(run) {
            out.push(String::new());
            out.push(format!("{STRONG}{}{STRONG:#}: {}", run.variant, section.heading));
            out.extend(section.lines);
        }
        let missed = run.checks.iter().filter(|check| !check.passed);
        out.extend(missed.map(|missed| format!("  {BAD}missed{BAD:#}  {}", check(missed))));
    }
    out.push(String::new());
    out.push(verdict(report));
    out
}

/// Whether a value is as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grade {
    /// It is.
    Good,
    /// It is not.
    Bad,
    /// Nothing says so.
    Plain,
}

/// A row, with a cell for each run.
pub type Cells = (&'static str, Vec<Option<(String, Grade)>>);

/// The rows of the table that any of the runs has a value for, each with its name and a cell for each run.
pub fn cells(runs: &[Run]) -> Vec<Cells> {
    let grade = |(text, style): (String, Style)| match style {
        GOOD => (text, Grade::Good),
        BAD => (text, Grade::Bad),
        _ => (text, Grade::Plain),
    };
    let row = |row: &Row| (row.0, runs.iter().map(|run| (row.1)(run).map(grade)).collect::<Vec<_>>());
    ROWS.iter().map(row).filter(|(_, cells)| cells.iter().any(Option::is_some)).collect()
}

/// A row: its name, and a run's cell of it.
type Row = (&'static str, fn(&Run) -> Option<(String, Style)>);

const ROWS: &[Row] = &[
    ("release", |run| run.release.clone().map(plain)),
    ("scenario", |run| {
        let seed = run.seed.map(|seed| format!(", seed {seed}")).unwrap_or_default();
        (run.scenario != ScenarioName::Hold).then(|| plain(format!("{}{seed}", run.scenario.as_str())))
    }),
    ("protocol", |run| (run.protocol != "ssh").then(|| plain(run.protocol.clone()))),
    ("target", |run| Some(plain(run.target.clone()))),
    ("activity", |run| (run.activity != "idle").then(|| plain(run.activity.clone()))),
    ("key limit", |run| run.key_limit.map(|limit| plain(format!("{limit} per process")))),
    ("pretend cores", |run| run.pretend_cores.map(|cores| plain(cores.to_string()))),
    ("preload", |run| {
        let preload = run.guacd.as_ref()?.preload.as_deref()?;
        Some(plain(preload.rsplit('/').next().unwrap_or(preload).into()))
    }),
    ("sessions", |run| Some(plain(format!("{} at {}/s", run.requested, run.rate_per_second)))),
    ("held for", |run| Some(plain(seconds(run.hold_seconds)))),
    ("proven", |run| {
        let style =
            if run.checks.iter().all(|check| check.name != "proven" || check.passed) { GOOD } else { BAD };
        let disrupted = match run.disrupted() {
            0 => String::new(),
            disrupted => format!(", {disrupted} disrupted"),
        };
        Some((format!("{} of {}{disrupted}", run.proven, run.requested), style))
    }),
    ("silent", |run| {
        let style = if run.silent > 0 { BAD } else { Style::new() };
        Some((run.silent.to_string(), style))
    }),
    ("alive at once", |run| Some(plain(run.peak_alive.to_string()))),
    ("first proof", |run| run.first_proof.map(|proof| plain(latency(proof)))),
    ("first and last", |run| {
        let ages = run.first_proof_by_age?;
        let text = format!(
            "{:.0} and {:.0} ms (p50 of the first and of the last {})",
            ages.first.p50_ms, ages.last.p50_ms, ages.sessions
        );
        Some(plain(text))
    }),
    ("last proof", |run| run.last_proof.map(|proof| plain(latency(proof)))),
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
        let mib = mib(usage.memory_bytes);
        Some(plain(format!("{mib:.0} MiB {kind}, {} children", usage.children)))
    }),
    ("guacd's parent", |run| {
        let usage = run.guacd.as_ref()?.usage?;
        Some(plain(format!("{} files, {} threads", usage.parent_descriptors, usage.parent_threads)))
    }),
    ("its children", |run| {
        let ends = run.guacd.as_ref()?.processes?;
        let of = |end: ProcessUse| format!("{} (#{})", end.descriptors, end.session + 1);
        Some(plain(format!("{} to {} files, {} threads", of(ends.first), of(ends.last), ends.last.threads)))
    }),
    ("idle CPU", |run| {
        let taken = run.guacd.as_ref()?.idle_cpu_ms_per_second?;
        Some(plain(format!("{taken:.2} ms per session and second")))
    }),
    ("capacity", |run| {
        let capacity = run.capacity.as_ref()?;
        let least = if capacity.ended_by == CapacityEnd::Count { "at least " } else { "" };
        let each = |value: Option<f64>, what| {
            value.map(|value| format!(", {value:.0} per {what}")).unwrap_or_default()
        };
        let style = if capacity.sessions > 0 { GOOD } else { BAD };
        let (core, gib) = (each(capacity.sessions_per_core, "core"), each(capacity.sessions_per_gib, "GiB"));
        Some((format!("{least}{} sessions{core}{gib}", capacity.sessions), style))
    }),
    ("frames", |run| {
        let drawing = run.drawing?;
        Some(plain(format!(
            "{:.1} per session and second, {:.1} at least; {:.1} drawn, {} asked for",
            drawing.received_per_second,
            drawing.fewest_per_second,
            drawing.drawn_per_second,
            drawing.asked_per_second
        )))
    }),
    ("lag", |run| run.drawing?.lag.map(|lag| plain(latency(lag)))),
    ("sent", |run| {
        Some(plain(format!("{:.0} KiB per session and second", run.drawing?.bytes_per_second / 1024.0)))
    }),
    ("CPU", |run| {
        let drawing = run.drawing?;
        let (second, frame) = (drawing.cpu_ms_per_second?, drawing.cpu_ms_per_frame?);
        Some(plain(format!("{second:.1} ms per session and second, {frame:.1} per frame")))
    }),
    ("shutdown", |run| {
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
        let mib = mib(took.max_rss_bytes);
        Some(plain(format!("{:.1} s CPU, {mib:.0} MiB, targets included", took.cpu_seconds)))
    }),
    ("took", |run| {
        Some(plain(format!("{}, ramp {}", seconds(run.total_seconds), seconds(run.ramp_seconds))))
    }),
    ("log", |run| Some((run.guacd.as_ref()?.log_file.clone(), FAINT))),
];

fn rows(runs: &[Run], out: &mut Vec<String>) {
    // A path can be long, so it goes below the table.
    let (rows, below) = ROWS.split_at(ROWS.len() - 1);
    let cells = |row: &Row| runs.iter().map(row.1).collect::<Vec<_>>();
    let widths = runs.iter().enumerate().map(|(column, run)| {
        let longest =
            rows.iter().filter_map(|row| (row.1)(&runs[column])).map(|(text, _)| text.chars().count()).max();
        longest.unwrap_or(0).max(run.variant.chars().count())
    });
    let widths = widths.collect::<Vec<_>>();

    out.push(String::new());
    let heads = runs.iter().map(|run| Some((run.variant.clone(), STRONG))).collect::<Vec<_>>();
    out.push(line("", &heads, &widths));
    for row in rows {
        let cells = cells(row);
        if cells.iter().any(Option::is_some) {
            out.push(line(row.0, &cells, &widths));
        }
    }
    for (run, cell) in runs.iter().zip(cells(&below[0])) {
        if let Some((text, style)) = cell {
            out.push(format!("{FAINT}{:>15}{FAINT:#}  {style}{text}{style:#} ({})", below[0].0, run.variant));
        }
    }
}

fn line(name: &str, cells: &[Option<(String, Style)>], widths: &[usize]) -> String {
    let mut line = format!("{FAINT}{name:>15}{FAINT:#}");
    for (cell, width) in cells.iter().zip(widths) {
        let (text, style) = cell.clone().unwrap_or_else(|| ("-".into(), FAINT));
        let padding = " ".repeat(width.saturating_sub(text.chars().count()));
        line.push_str(&format!("  {style}{text}{style:#}{padding}"));
    }
    line.trim_end().to_owned()
}

fn failures(run: &Run, out: &mut Vec<String>) {
    let never_begun = run.requested - run.started;
    if run.failures.is_empty()
        && never_begun == 0
        && run.guacd.as_ref().is_none_or(|guacd| guacd.died.is_none())
    {
        return;
    }
    let failed = run.failures.iter().map(|failure| failure.count).sum::<u32>();
    out.push(String::new());
    out.push(format!("{STRONG}{}{STRONG:#}: {} not proven", run.variant, failed + never_begun));
    for failure in &run.failures {
        out.push(format!(
            "  {BAD}{:>5}{BAD:#}  {}: {}",
            failure.count,
            failure.phase.as_str(),
            failure.reason
        ));
        if let Some(log) = &failure.log {
            out.push(format!("         {FAINT}guacd's log: {}{FAINT:#}", log.replace('\t', " ")));
        }
    }
    if never_begun > 0 {
        out.push(format!("  {BAD}{never_begun:>5}{BAD:#}  never begun"));
    }
    if let Some(guacd) = run.guacd.as_ref().filter(|guacd| guacd.died.is_some()) {
        out.push(format!("  guacd {}; its last lines:", guacd.died.as_deref().unwrap_or_default()));
        for line in &guacd.last_lines {
            out.push(format!("         {FAINT}{}{FAINT:#}", line.replace('\t', " ")));
        }
    }
}

fn verdict(report: &StressReport) -> String {
    let names = |wanted: fn(&Run) -> bool| {
        let runs = StressReport::judged(&report.runs).filter(|run| wanted(run));
        runs.map(|run| run.variant.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (judged, missed) = (names(|_| true), names(|run| !run.passed()));
    if report.interrupted {
        format!("{BAD}interrupted{BAD:#}: this is what was measured so far.")
    } else if report.passed {
        let is_plain =
            |run: &Run| run.checks.iter().all(|check| ["proven", "silent"].contains(&&*check.name));
        let all_proven = |run: &Run| run.proven == run.requested - run.disrupted() && is_plain(run);
        match StressReport::judged(&report.runs).all(all_proven) {
            true => {
                format!("{GOOD}passed{GOOD:#}: every session of {judged} gave back what was typed into it.")
            }
            false => format!("{GOOD}passed{GOOD:#}: {judged} met every threshold."),
        }
    } else if missed.is_empty() {
        format!("{BAD}failed{BAD:#}: not every guacd could be loaded.")
    } else {
        format!("{BAD}failed{BAD:#}: {missed} missed a threshold.")
    }
}

fn plain(text: String) -> (String, Style) {
    (text, Style::new())
}

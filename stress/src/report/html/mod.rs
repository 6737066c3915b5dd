//! How is a report shown as a page? One HTML file without scripts, which loads nothing: a sentence with the result, the figures of
//! all runs next to each other, charts, failures, and how the report was made.
//!
//! What guacd and its targets wrote is hostile. Everything goes through [`maud`], which escapes it.

mod chart;
mod charts;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    model::{Bound, Host, Run, StressReport},
    table::{self, Grade},
    text::{self, Section, check, seconds},
};

/// The page of a report. `sections` gives what the scenario of a run adds to the figures.
pub fn page(report: &StressReport, sections: fn(&Run) -> Option<Section>) -> String {
    let title = format!("guac-stress: {}", asked(report));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // Whatever a browser would load is refused.
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { (title) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                header {
                    p.kicker { "guac-stress" }
                    h1 { (found(report)) }
                    p.asked { (asked(report)) }
                    (verdict(report))
                }
                main {
                    @if !report.runs.is_empty() {
                        (figures(report))
                        (charts::all(&report.runs))
                    }
                    @for run in &report.runs { (details(run, sections(run))) }
                    (origin(report))
                }
                footer { p { "Written by guac-stress " (env!("CARGO_PKG_VERSION")) ". This page has no scripts and loads nothing." } }
            }
        }
    };
    page.into_string()
}

/// What was asked of each guacd, in one sentence.
fn asked(report: &StressReport) -> String {
    let Some(run) = report.runs.first() else { return "nothing was loaded".into() };
    let names = report.runs.iter().map(|run| run.variant.as_str()).collect::<Vec<_>>().join(" and ");
    let activity =
        if run.activity == "idle" { String::new() } else { format!(" that show {}", run.activity) };
    let keys =
        run.key_limit.map(|keys| format!(", {keys} pthread keys for each process")).unwrap_or_default();
    format!(
        "{}: {} sessions over {}{activity} at {} a second, held for {}{keys}; guacd: {names}",
        run.scenario.as_str(),
        run.requested,
        run.protocol.to_uppercase(),
        run.rate_per_second,
        seconds(run.hold_seconds)
    )
}

/// What came out, in one sentence.
fn found(report: &StressReport) -> String {
    let of = |run: &Run| match &run.capacity {
        Some(capacity) => format!("{} serves {} sessions well", run.variant, capacity.sessions),
        None => format!("{} of {} sessions are proven with {}", run.proven, run.requested, run.variant),
    };
    match report.runs.as_slice() {
        [] => "Interrupted before the first run".into(),
        runs => {
            let text = runs.iter().map(of).collect::<Vec<_>>().join(", ");
            text[..1].to_uppercase() + &text[1..]
        }
    }
}

fn verdict(report: &StressReport) -> Markup {
    let (class, word) = match (report.interrupted, report.passed) {
        (true, _) => ("bad", "interrupted"),
        (false, true) => ("good", "passed"),
        (false, false) => ("bad", "failed"),
    };
    html! {
        p.verdict.(class) { strong { (word) } }
        @for run in StressReport::judged(&report.runs) {
            @for missed in run.checks.iter().filter(|check| !check.passed) {
                p.missed { (run.variant) ": " (check(missed)) }
            }
        }
    }
}

/// The figures of all runs, next to each other.
fn figures(report: &StressReport) -> Markup {
    html! {
        section aria-labelledby="figures" {
            h2 #figures { "Figures" }
            div.scroll tabindex="0" role="region" aria-label="Figures of all runs" {
                table {
                    thead { tr { th scope="col" { "" } @for run in &report.runs { th scope="col" { (run.variant) } } } }
                    tbody {
                        @for (name, cells) in table::cells(&report.runs) {
                            tr {
                                th scope="row" { (name) }
                                @for cell in cells {
                                    @match cell {
                                        Some((text, Grade::Good)) => { td.good { (text) } }
                                        Some((text, Grade::Bad)) => { td.bad { (text) } }
                                        Some((text, Grade::Plain)) => { td { (text) } }
                                        None => { td.faint { "–" } }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What belongs to one run: its failures, its checks, and what its scenario adds.
fn details(run: &Run, section: Option<Section>) -> Markup {
    let died = run.guacd.as_ref().and_then(|guacd| guacd.died.as_deref());
    html! {
        section {
            h2 { (run.variant) }
            @if let Some(died) = died {
                p.missed { "guacd " (died) }
                pre tabindex="0" { @for line in &run.guacd.as_ref().map(|guacd| guacd.last_lines.clone()).unwrap_or_default() { (line) "\n" } }
            }
            @if run.failures.is_empty() {
                p { "No session failed." }
            } @else {
                h3 { "Failures" }
                ul.failures {
                    @for failure in &run.failures {
                        li {
                            strong { (failure.count) } " " (failure.phase.as_str()) ": " (failure.reason)
                            @if let Some(log) = &failure.log { br; code { (log.replace('\t', " ")) } }
                        }
                    }
                }
            }
            @if let Some(section) = section {
                h3 { (section.heading) }
                pre tabindex="0" { @for line in &section.lines { (plain(line)) "\n" } }
            }
            h3 { "Checks" }
            div.scroll tabindex="0" role="region" aria-label=(format!("Checks of {}", run.variant)) {
                table {
                    thead { tr { th scope="col" { "check" } th scope="col" { "measured" } th scope="col" { "threshold" } th scope="col" { "result" } } }
                    tbody { @for check in &run.checks {
                        tr {
                            th scope="row" { (check.name) }
                            td { (check.measured.map_or_else(|| "not measured".into(), |value| format!("{} {}", text::number(value), check.unit))) }
                            td { (match check.bound { Bound::AtLeast => "≥ ", Bound::AtMost => "≤ " }) (text::number(check.threshold)) " " (check.unit) }
                            td.(if check.passed { "good" } else { "bad" }) { (if check.passed { "met" } else { "missed" }) }
                        }
                    } }
                }
            }
        }
    }
}

/// How the report was made.
fn origin(report: &StressReport) -> Markup {
    let began = std::time::UNIX_EPOCH + std::time::Duration::from_secs(report.started_at_unix_seconds);
    html! {
        section {
            h2 { "How it was made" }
            dl {
                dt { "Command" } dd { code { (command(&report.command)) } }
                dt { "Began" } dd { (humantime::format_rfc3339_seconds(began)) }
                @if let Some(host) = &report.host { dt { "Machine" } dd { (machine(host)) } }
                @if let Some(first) = report.machine.first() {
                    dt { "It carries" } dd { "about " (first.sessions) " sessions; " (first.name) " (" (first.source) ") is used up first" }
                }
            }
            @for run in &report.runs {
                @if let Some(manifest) = run.guacd.as_ref().and_then(|guacd| guacd.manifest.as_ref()) {
                    details {
                        summary { "Manifest of " (run.variant) }
                        pre tabindex="0" { (serde_json::to_string_pretty(manifest).unwrap_or_default()) }
                    }
                }
            }
        }
    }
}

fn machine(host: &Host) -> String {
    let Host { system, kernel, processor, processors, memory_bytes } = host;
    let gib = *memory_bytes as f64 / f64::from(1 << 30);
    format!("{system}, Linux {kernel}, {processors} processors ({processor}), {gib:.0} GiB")
}

/// A command as one could type it.
fn command(words: &[String]) -> String {
    let quoted = |word: &String| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%,+".contains(c);
        match !word.is_empty() && word.chars().all(is_plain) {
            true => word.clone(),
            false => format!("'{}'", word.replace('\'', r"'\''")),
        }
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// A line without the styles of a terminal.
fn plain(line: &str) -> String {
    anstream::adapter::strip_str(line).to_string()
}

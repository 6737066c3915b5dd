//! The result of a run, and the limits that it is compared with. Text, JSON and the chart are printers of [`Report`].
//!
//! The JSON is a contract: `bench/schema/report.v2.json` describes it. Within a version, fields may be added.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::budgets::{BUDGETS, Count};
use super::rounds::{self, Figure, Interval, Rounds, Verdict};

/// The version of the JSON.
pub const SCHEMA_VERSION: u32 = 2;

/// The result of a run.
#[derive(Serialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Whether this was a short run, whose figures must not be quoted.
    pub quick: bool,
    pub machine: Machine,
    /// The design whose figures were compared with the limits.
    pub judged: &'static str,
    /// Whether it meets every limit that it must meet and for which there is a figure.
    pub passed: bool,
    pub thresholds: Vec<Threshold>,
    /// Why no instructions and loads were counted. `None` if they were.
    pub not_counted: Option<&'static str>,
    /// What tls-rs adds to libguac.so. `None` if no libguac was measured.
    pub library: Option<Library>,
    pub cases: Vec<Case>,
}

/// The machine on which the figures were measured.
#[derive(Serialize)]
pub struct Machine {
    pub cpu: String,
    /// The processor's vendor and family as in /proc/cpuinfo, or empty.
    pub vendor: String,
    pub family: String,
    pub cores: usize,
    pub kernel: String,
    pub libc: String,
    pub compiler: String,
    pub rustc: String,
}

/// The line that `bench/bench.c` writes for a case. Its fields are those of [`Case`].
#[derive(Deserialize)]
pub struct Samples {
    operation: String,
    live: u32,
    used: u32,
    keys: String,
    threads: u32,
    unit: String,
    /// The samples of each design.
    samples: BTreeMap<String, Vec<f64>>,
}

/// A case: an operation under one set of conditions, measured for each design.
#[derive(Clone, Serialize)]
pub struct Case {
    pub operation: String,
    /// How many keys exist, if the design can have so many.
    pub live: u32,
    /// How many keys have a value in each thread.
    pub used: u32,
    /// Which of the live keys these are.
    pub keys: String,
    pub threads: u32,
    /// The unit of `designs`: ns, or bytes.
    pub unit: String,
    /// The figure of each design.
    pub designs: BTreeMap<String, Rounds>,
    /// The ratios, by names such as `A/B`: the figure of design A divided by that of B, sample by sample.
    pub ratios: BTreeMap<String, Rounds>,
}

/// The designs with which the others are compared.
const BASES: [&str; 4] = ["pthread_low", "pthread_high", "thread", "stock"];

impl Case {
    /// The case as `bench/bench.c` prints it.
    pub fn name(&self) -> String {
        let Case { operation, live, used, keys, threads, .. } = self;
        format!("{operation} {used} of {live} keys, {keys} {threads} thread(s)")
    }

    /// Adds the figures of a round, which are the medians of its samples.
    fn add(&mut self, samples: &BTreeMap<String, Vec<f64>>) {
        let add = |rounds: &mut BTreeMap<String, Rounds>, name: String, values: Vec<f64>| {
            let mut sorted = values;
            sorted.sort_by(f64::total_cmp);
            if let Some(median) = sorted.get(sorted.len() / 2) {
                rounds.entry(name).or_default().add(*median);
            }
        };
        for base in BASES {
            let Some(bases) = samples.get(base) else { continue };
            for (design, values) in samples.iter().filter(|(design, _)| *design != base && self.unit == "ns")
            {
                // For some operations a base is a difference, which may be zero: then there is no ratio.
                let pairs = values.iter().zip(bases).filter(|(_, base)| **base > 0.0);
                let ratios = pairs.map(|(value, base)| value / base).collect();
                add(&mut self.ratios, format!("{design}/{base}"), ratios);
            }
        }
        for (design, values) in samples {
            add(&mut self.designs, design.clone(), values.clone());
        }
    }

    /// The ratio of a design to another, if both were measured.
    pub fn ratio(&self, design: &str, base: &str) -> Option<Figure> {
        self.ratios.get(&format!("{design}/{base}"))?.figure()
    }

    /// The case in a threshold's line.
    fn title(&self) -> String {
        if self.operation.starts_with("rwlock") || self.operation.starts_with("thread") {
            self.operation.replace('_', " ")
        } else {
            format!("{} of {} keys, {}", self.used, thousands(self.live), self.keys)
        }
    }
}

/// What tls-rs adds to libguac.so.
#[derive(Clone, Serialize)]
pub struct Library {
    /// How many bytes the patched library has more than the stock one, both stripped.
    pub growth_bytes: i64,
    /// The symbols that the patched library exports, and that are neither in stock's nor begin as libguac's own do.
    pub foreign_symbols: Vec<String>,
}

impl Library {
    /// Compares two libraries. `dir` is for a stripped copy of each.
    pub fn compare(stock: &Path, patched: &Path, dir: &Path) -> Result<Library> {
        let size = |library: &Path| {
            let stripped = dir.join("stripped.so");
            duct::cmd!("strip", "-o", &stripped, library)
                .run()
                .with_context(|| format!("cannot strip {}", library.display()))?;
            Ok::<_, anyhow::Error>(i64::try_from(std::fs::metadata(&stripped)?.len())?)
        };
        let symbols = |library: &Path| {
            duct::cmd!("nm", "-D", "--defined-only", "--format=just-symbols", library)
                .read()
                .with_context(|| format!("cannot list the symbols of {}", library.display()))
        };
        let (before, after) = (symbols(stock)?, symbols(patched)?);
        let is_foreign =
            |symbol: &&str| !before.lines().any(|line| line == *symbol) && !symbol.starts_with("guac_");
        Ok(Library {
            growth_bytes: size(patched)? - size(stock)?,
            foreign_symbols: after.lines().filter(is_foreign).map(str::to_owned).collect(),
        })
    }
}

/// Adds the samples of a round to `cases`. New cases are appended.
pub fn add_round(cases: &mut Vec<Case>, round: Vec<Samples>) {
    for Samples { operation, live, used, keys, threads, unit, samples } in round {
        let (designs, ratios) = Default::default();
        let mut new = Case { operation, live, used, keys, threads, unit, designs, ratios };
        match cases.iter_mut().find(|case| case.name() == new.name()) {
            Some(case) => case.add(&samples),
            None => {
                new.add(&samples);
                cases.push(new);
            }
        }
    }
}

/// Runs rounds until each case is decided, or until there have been as many as the last of `checkpoints`. `round` gets the
/// names of the cases to measure, of which there are none if it is to measure all.
pub fn decide(
    judged: &str,
    checkpoints: &[usize],
    mut round: impl FnMut(&[String]) -> Result<Vec<Samples>>,
) -> Result<Vec<Case>> {
    let (mut cases, mut open, mut made) = (Vec::new(), Vec::new(), 0);
    for checkpoint in checkpoints {
        while made < *checkpoint {
            add_round(&mut cases, round(&open)?);
            made += 1;
        }
        let undecided = judge_ratios(&cases, judged, checkpoints.len());
        let undecided = undecided.into_iter().filter(|judgement| judgement.verdict == Verdict::Undecided);
        open = undecided.map(|judgement| judgement.case.name()).collect();
        if open.is_empty() {
            break;
        }
    }
    Ok(cases)
}

/// A limit, and the figure of the worst case.
#[derive(Serialize)]
pub struct Threshold {
    /// What is limited.
    pub what: String,
    /// The design that the figure is a ratio to, or the figure's unit.
    pub of: String,
    /// The highest figure that meets the limit.
    pub limit: f64,
    /// The figure of the worst case. That is a case that misses the limit; if there is none, one that is undecided; if there is
    /// none, one that meets the limit. Of several, it is the one with the highest median.
    pub worst: f64,
    /// The confidence interval of the figure. `None` if the figure has no noise.
    pub interval: Option<Interval>,
    /// How many rounds the figure is from. `None` if it has no noise.
    pub rounds: Option<usize>,
    /// The worst case.
    pub case: String,
    pub verdict: Verdict,
    /// Whether the limit must be met. Limits on times need not be met on processors other than [`MEASURED_ON`].
    pub required: bool,
}

/// The processors on which the limits on times were measured: vendors and families as in /proc/cpuinfo.
const MEASURED_ON: [(&str, &str); 1] = [("AuthenticAMD", "25")];

/// A limit on the ratio of the judged design to another.
struct Limit {
    /// What is limited.
    what: &'static str,
    /// The other design.
    base: &'static str,
    /// The highest ratio that meets the limit.
    limit: f64,
    /// Whether the limit is for a case.
    applies: fn(&Case) -> bool,
}

/// All limits on ratios. Two kinds of ratios have no limit: those to `__thread`, as it needs no keys, and those of thread exit
/// with a destructor, which adds the cost of a native key.
const LIMITS: [Limit; 12] = [
    limit("get", "pthread_low", 0.96, |case| is(case, "get", 1)),
    limit("get, two threads", "pthread_low", 1.10, |case| is(case, "get", 2)),
    limit("get, during creation", "pthread_low", 1.10, |case| is(case, "get_during_churn", 2)),
    // An adversary can choose keys of which one is not where the search for it begins.
    limit("get of a key just got", "pthread_low", 1.10, |case| {
        is(case, "dependent_get", 1) && case.keys != "worst"
    }),
    limit("set", "pthread_low", 0.80, |case| is(case, "set", 1)),
    limit("rwlock's four calls", "pthread_low", 0.90, |case| is(case, "pair", 1)),
    limit("create + delete", "pthread_low", 0.95, |case| is(case, "create_delete", 1)),
    limit("create + delete, two threads", "pthread_low", 1.00, |case| is(case, "create_delete", 2)),
    limit("first value + thread exit", "pthread_high", 0.90, |case| is(case, "thread", 1)),
    limit("guac_rwlock, read", "stock", 0.95, |case| is(case, "rwlock_read", 1)),
    limit("guac_rwlock, write", "stock", 0.95, |case| is(case, "rwlock_write", 1)),
    limit("guac_error", "stock", 0.60, |case| is(case, "guac_error", 1)),
];

/// How many bytes libguac.so may grow by. Less than half of it is tls-rs; the rest are other patches, most of them for displays.
const MAX_GROWTH: i64 = 40 * 1024;

/// How many bytes of heap a thread may need in any case: none, as cases have up to 16 keys, and so many fit into the inline table.
const MAX_MEMORY: f64 = 0.0;

const fn limit(what: &'static str, base: &'static str, limit: f64, applies: fn(&Case) -> bool) -> Limit {
    Limit { what, base, limit, applies }
}

/// Whether a case is of an operation, with so many threads.
fn is(case: &Case, operation: &str, threads: u32) -> bool {
    case.operation == operation && case.threads == threads
}

impl Report {
    /// Compares the cases with the limits. `checkpoints` is how many times the cases were judged.
    pub fn new(
        machine: Machine,
        quick: bool,
        judged: &'static str,
        cases: Vec<Case>,
        library: Option<Library>,
        counts: Result<HashMap<String, Count>, &'static str>,
        checkpoints: usize,
    ) -> Report {
        let mut thresholds = judge_times(&cases, judged, checkpoints, &machine);
        thresholds.extend(judge_exactly(&cases, library.as_ref(), counts.as_ref().ok(), judged));
        let met = |threshold: &Threshold| threshold.verdict == Verdict::Met || !threshold.required;
        Report {
            schema_version: SCHEMA_VERSION,
            quick,
            machine,
            judged,
            passed: thresholds.iter().all(met),
            thresholds,
            not_counted: counts.err(),
            library,
            cases,
        }
    }

    /// The thresholds with that verdict that must be met, each with its worst case.
    pub fn thresholds_that_are(&self, verdict: Verdict) -> Vec<String> {
        let thresholds = self.thresholds.iter().filter(|one| one.required && one.verdict == verdict);
        thresholds.map(|threshold| format!("{} ({})", threshold.what, threshold.case)).collect()
    }
}

/// The verdict on a case under a limit.
struct Judgement<'a> {
    limit: &'static Limit,
    case: &'a Case,
    figure: Figure,
    interval: Interval,
    verdict: Verdict,
}

/// Whether a figure meets a limit. Figures are compared as they are printed, with two decimals.
fn meets(figure: f64, limit: f64) -> bool {
    (figure * 100.0).round() / 100.0 <= limit
}

/// Compares each case with each limit that applies to it.
fn judge_ratios<'a>(cases: &'a [Case], judged: &str, checkpoints: usize) -> Vec<Judgement<'a>> {
    let all = || LIMITS.iter().flat_map(|limit| cases.iter().map(move |case| (limit, case)));
    let ratios = all().filter(|(limit, case)| (limit.applies)(case)).filter_map(|(limit, case)| {
        let design = design_in(limit.base, judged);
        Some((limit, case, case.ratios.get(&format!("{design}/{}", limit.base))?))
    });
    let chance = rounds::chance_of_one(ratios.clone().count(), checkpoints);
    let judgements = ratios.filter_map(|(limit, case, ratio)| {
        let (figure, interval) = (ratio.figure()?, ratio.interval(chance));
        let verdict = interval.verdict(|figure| meets(figure, limit.limit));
        Some(Judgement { limit, case, figure, interval, verdict })
    });
    judgements.collect()
}

/// Compares each limit on times with its worst case. Leaves out limits for which nothing was measured.
fn judge_times(cases: &[Case], judged: &str, checkpoints: usize, machine: &Machine) -> Vec<Threshold> {
    let required = MEASURED_ON.contains(&(&*machine.vendor, &*machine.family));
    let mut thresholds = Vec::new();
    let ratios = judge_ratios(cases, judged, checkpoints);
    for Limit { what, base, limit, .. } in &LIMITS {
        let judgements = ratios.iter().filter(|judgement| judgement.limit.what == *what);
        let worst = judgements.max_by(|one, other| {
            let by_verdict = one.verdict.cmp(&other.verdict);
            by_verdict.then(one.figure.median.total_cmp(&other.figure.median))
        });
        let Some(worst) = worst else { continue };
        thresholds.push(Threshold {
            what: (*what).into(),
            of: (*base).into(),
            limit: *limit,
            worst: worst.figure.median,
            interval: Some(worst.interval),
            rounds: Some(worst.figure.rounds),
            case: worst.case.title(),
            verdict: worst.verdict,
            required,
        });
    }
    thresholds
}

/// Compares the limits whose figures have no noise, and are the same on each processor, with their worst cases.
fn judge_exactly(
    cases: &[Case],
    library: Option<&Library>,
    counts: Option<&HashMap<String, Count>>,
    judged: &str,
) -> Vec<Threshold> {
    let mut thresholds = Vec::new();
    let mut add = |what: &str, of: &str, limit: f64, mut figures: Vec<(f64, String)>| {
        figures.sort_by(|one, other| one.0.total_cmp(&other.0));
        if let Some((worst, case)) = figures.pop() {
            let verdict = if worst <= limit { Verdict::Met } else { Verdict::Missed };
            let (what, of) = (what.into(), of.into());
            thresholds.push(Threshold {
                what,
                of,
                limit,
                worst,
                interval: None,
                rounds: None,
                case,
                verdict,
                required: true,
            });
        }
    };
    for (call, budget) in BUDGETS {
        let Some(count) = counts.and_then(|counts| counts.get(call)) else { continue };
        let call = call.replace('_', " ");
        for (of, limit, figure) in
            [("instructions", budget.instructions, count.instructions), ("loads", budget.loads, count.loads)]
        {
            add(&format!("{call}, {of}"), of, limit as f64, vec![(figure as f64, "counted".into())]);
        }
    }
    let figures = cases.iter().filter(|case| case.operation == "memory");
    let figures = figures.filter_map(|case| Some((case.designs.get(judged)?.figure()?.median, case.title())));
    add("heap per thread", "bytes", MAX_MEMORY, figures.collect());
    if let Some(library) = library {
        let growth = library.growth_bytes as f64;
        add("libguac.so grows by", "bytes", MAX_GROWTH as f64, vec![(growth, "stripped".into())]);
        let foreign = library.foreign_symbols.len() as f64;
        add(
            "symbols other than libguac's",
            "symbols",
            0.0,
            vec![(foreign, library.foreign_symbols.join(" "))],
        );
    }
    thresholds
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cpu, cores, kernel, libc, .. } = &self.machine;
        writeln!(f, "{cpu}, {cores} cores; Linux {kernel}; {libc}")?;
        if self.quick {
            writeln!(f, "A short run: do not quote its figures.")?;
        }
        writeln!(
            f,
            "\nRatios to pthread keys below 32, of guac_rwlock to stock's: median of all cases [quartiles of the worst]\n"
        )?;
        write!(f, "{:<26}", "")?;
        for (_, title) in COLUMNS {
            write!(f, " {title:>19}")?;
        }
        writeln!(f)?;
        for row in &ROWS {
            write!(f, "{:<26}", row.title)?;
            for (design, _) in COLUMNS {
                write!(f, " {:>19}", self.cell(row, design))?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "\n{:<29} {:<12} {:>6} {:>7} {:<11} {:>6}  worst case",
            "limits", "ratio to", "limit", self.judged, "[interval]", "rounds"
        )?;
        for Threshold { what, of, limit, worst, interval, rounds, case, verdict, required } in
            &self.thresholds
        {
            let decimals = if BASES.contains(&of.as_str()) { 2 } else { 0 };
            let interval = interval.map_or(String::new(), |Interval { lower, upper }| {
                let end = |end: Option<f64>| end.map_or("?".into(), |end| format!("{end:.2}"));
                format!("[{} {}]", end(lower), end(upper))
            });
            let rounds = rounds.map_or(String::new(), |rounds| rounds.to_string());
            let verdict = match verdict {
                Verdict::Met => "",
                _ if !required => "  not judged: not measured on this processor",
                Verdict::Undecided => "  UNDECIDED",
                Verdict::Missed => "  MISSED",
            };
            writeln!(
                f,
                "{what:<29} {of:<12} {limit:>6.decimals$} {worst:>7.decimals$} {interval:<11} {rounds:>6}  {case}{verdict}"
            )?;
        }
        if let Some(why) = self.not_counted {
            writeln!(f, "\nThe budgets of instructions and loads were not judged: {why}.")?;
        }
        Ok(())
    }
}

/// A row of the table and of the chart.
pub struct Row {
    /// What is measured, in words.
    pub title: &'static str,
    operation: &'static str,
    /// How many threads do it at once.
    threads: u32,
    /// The design that the figures are ratios to.
    base: &'static str,
}

/// The rows of the table.
pub const ROWS: [Row; 12] = [
    row("get", "get", 1),
    row("get, two threads", "get", 2),
    row("get, during creation", "get_during_churn", 2),
    row("get of a key just got", "dependent_get", 1),
    row("set", "set", 1),
    row("get, set, get, set", "pair", 1),
    row("create + delete", "create_delete", 1),
    row("the same, two threads", "create_delete", 2),
    row("first value + thread exit", "thread", 1),
    row("the same, with destructor", "thread_with_destructor", 1),
    Row { base: "stock", ..row("guac_rwlock, read", "rwlock_read", 1) },
    Row { base: "stock", ..row("guac_rwlock, write", "rwlock_write", 1) },
];

const fn row(title: &'static str, operation: &'static str, threads: u32) -> Row {
    Row { title, operation, threads, base: "pthread_low" }
}

/// The columns of the table: a design, and its title.
const COLUMNS: [(&str, &str); 5] = [
    ("tls_rs", "tls-rs"),
    ("pthread_high", "pthread from 32 on"),
    ("thread", "__thread"),
    ("mutex_array", "mutex array"),
    ("slots16", "16 lock slots"),
];

impl Report {
    /// The median and the highest of a design's ratios in all cases of a row. `None` if the design was not measured.
    pub fn range(&self, row: &Row, design: &str) -> Option<(Figure, Figure)> {
        let design = design_in(row.base, design);
        let cases = self.cases.iter().filter(|case| is(case, row.operation, row.threads));
        let mut figures: Vec<_> = cases.filter_map(|case| case.ratio(design, row.base)).collect();
        figures.sort_by(|one, other| one.median.total_cmp(&other.median));
        Some((*figures.get(figures.len() / 2)?, *figures.last()?))
    }

    fn cell(&self, row: &Row, design: &str) -> String {
        self.range(row, design).map_or("-".into(), |(middle, worst)| {
            format!("{:.2} [{:.2} {:.2}]", middle.median, worst.lower_quartile, worst.upper_quartile)
        })
    }
}

/// The name of a design in the cases with this base. In those of libguac, whose base is stock's, tls-rs is called `patched`.
fn design_in<'a>(base: &str, design: &'a str) -> &'a str {
    if base == "stock" && design == "tls_rs" { "patched" } else { design }
}

/// A number, shorter if it is one of the benchmark's large ones.
fn thousands(number: u32) -> String {
    match number {
        1_000_000 => "1M".into(),
        10_000 => "10k".into(),
        number => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::bench::rounds::tests::Noise;
    use crate::commands::bench::rounds::{CHECKPOINTS, QUICK_CHECKPOINTS};

    fn samples(operation: &str, figures: &[(&str, f64)]) -> Samples {
        let samples = figures.iter().map(|(design, value)| ((*design).to_owned(), vec![*value; 3])).collect();
        let unit = if operation == "memory" { "bytes" } else { "ns" }.into();
        let (operation, keys) = (operation.into(), "worst".into());
        Samples { operation, live: 100, used: 4, keys, threads: 1, unit, samples }
    }

    /// Without noise.
    fn case(operation: &str, figures: &[(&str, f64)]) -> Case {
        let round = |_: &[String]| Ok(vec![samples(operation, figures)]);
        decide("tls_rs", &QUICK_CHECKPOINTS, round).unwrap().remove(0)
    }

    fn machine(vendor: &str, family: &str) -> Machine {
        Machine {
            cpu: String::new(),
            vendor: vendor.into(),
            family: family.into(),
            cores: 1,
            kernel: String::new(),
            libc: String::new(),
            compiler: String::new(),
            rustc: String::new(),
        }
    }

    /// A report of a run on a processor that limits were measured on.
    fn report(cases: &[Case], library: Option<Library>) -> Report {
        let [(vendor, family)] = MEASURED_ON;
        let machine = machine(vendor, family);
        Report::new(machine, true, "tls_rs", cases.to_vec(), library, Err("this is a test"), 1)
    }

    fn thresholds_that_are(verdict: Verdict, cases: &[Case], library: Option<&Library>) -> Vec<String> {
        let thresholds = report(cases, library.cloned()).thresholds.into_iter();
        thresholds.filter(|threshold| threshold.verdict == verdict).map(|threshold| threshold.what).collect()
    }

    fn missed(cases: &[Case], library: Option<&Library>) -> Vec<String> {
        thresholds_that_are(Verdict::Missed, cases, library)
    }

    #[test]
    fn ratios_are_of_samples_that_were_taken_together() {
        let measured = BTreeMap::from([
            ("pthread_low".to_owned(), vec![1.0, 10.0, 100.0]),
            ("tls_rs".to_owned(), vec![2.0, 20.0, 200.0]),
        ]);
        let mut cases = Vec::new();
        add_round(&mut cases, vec![Samples { samples: measured, ..samples("get", &[]) }]);
        let two = Figure { median: 2.0, lower_quartile: 2.0, upper_quartile: 2.0, rounds: 1 };
        assert_eq!(cases[0].ratio("tls_rs", "pthread_low"), Some(two));
    }

    #[test]
    fn the_worst_case_is_judged() {
        let good = case("get", &[("tls_rs", 0.96), ("pthread_low", 1.0)]);
        let bad = case("get", &[("tls_rs", 0.97), ("pthread_low", 1.0)]);
        assert!(missed(std::slice::from_ref(&good), None).is_empty());
        assert_eq!(missed(&[good.clone(), bad, good], None), ["get"]);
    }

    #[test]
    fn each_limit_is_missed_by_what_is_twice_as_slow() {
        for Limit { what, base, .. } in LIMITS {
            let design = if base == "stock" { "patched" } else { "tls_rs" };
            let found =
                ["get", "get_during_churn", "dependent_get", "set", "pair", "create_delete", "thread"]
                    .into_iter()
                    .chain(["rwlock_read", "rwlock_write", "guac_error"])
                    .flat_map(|operation| {
                        [1, 2].map(|threads| {
                            let slow = case(operation, &[(design, 2.0), (base, 1.0)]);
                            missed(&[Case { threads, used: 1, keys: "strided".into(), ..slow }], None)
                        })
                    })
                    .any(|missed| missed.iter().any(|missed| missed == what));
            assert!(found, "{what} is missed by nothing");
        }
    }

    #[test]
    fn a_chain_of_gets_is_not_judged_if_an_adversary_has_chosen_the_keys() {
        let slow = case("dependent_get", &[("tls_rs", 2.0), ("pthread_low", 1.0)]);
        assert_eq!(slow.keys, "worst");
        assert!(missed(std::slice::from_ref(&slow), None).is_empty());
        assert_eq!(missed(&[Case { keys: "unlucky".into(), ..slow }], None), ["get of a key just got"]);
    }

    #[test]
    fn locks_are_compared_with_stocks_and_all_else_with_pthread_keys() {
        let get = case("get", &[("tls_rs", 0.9), ("pthread_low", 1.0)]);
        let lock = case("rwlock_read", &[("patched", 0.8), ("slots16", 1.2), ("stock", 1.0)]);
        let report = report(&[get, lock], None);
        let cells = |title: &str| {
            let row = ROWS.iter().find(|row| row.title == title).unwrap();
            COLUMNS.map(|(design, _)| report.cell(row, design))
        };
        assert_eq!(cells("get"), ["0.90 [0.90 0.90]", "-", "-", "-", "-"]);
        assert_eq!(cells("guac_rwlock, read"), ["0.80 [0.80 0.80]", "-", "-", "-", "1.20 [1.20 1.20]"]);
        assert_eq!(cells("set"), ["-"; 5]);
    }

    #[test]
    fn memory_growth_and_symbols_are_judged() {
        assert_eq!(missed(&[case("memory", &[("tls_rs", 16.0)])], None), ["heap per thread"]);
        let large = Library { growth_bytes: MAX_GROWTH + 1, foreign_symbols: vec!["rust_panic".into()] };
        assert_eq!(missed(&[], Some(&large)), ["libguac.so grows by", "symbols other than libguac's"]);
        let small = Library { growth_bytes: MAX_GROWTH, foreign_symbols: Vec::new() };
        assert!(missed(&[], Some(&small)).is_empty());
    }

    #[test]
    fn a_call_that_is_over_its_counted_budget_fails_on_any_processor() {
        let counts: HashMap<_, _> = BUDGETS.map(|(call, budget)| (call.to_owned(), budget)).into();
        let judge = |counts: &HashMap<_, _>| {
            let counts = Ok(counts.clone());
            Report::new(machine("", ""), true, "tls_rs", Vec::new(), None, counts, 1)
        };
        let within = judge(&counts);
        assert!(within.passed && within.not_counted.is_none());
        assert_eq!(within.thresholds.len(), 2 * BUDGETS.len());
        for (call, Count { instructions, loads }) in BUDGETS {
            for (of, over) in [
                ("instructions", Count { instructions: instructions + 1, loads }),
                ("loads", Count { instructions, loads: loads + 1 }),
            ] {
                let mut counts = counts.clone();
                counts.insert(call.to_owned(), over);
                let report = judge(&counts);
                assert!(!report.passed, "{call}: {over:?}");
                let missed = format!("{}, {of} (counted)", call.replace('_', " "));
                assert_eq!(report.thresholds_that_are(Verdict::Missed), [missed]);
            }
        }
    }

    #[test]
    fn a_time_over_its_limit_fails_on_those_processors_only_that_it_was_measured_on() {
        let slow = [case("get", &[("tls_rs", 2.0), ("pthread_low", 1.0)])];
        for (vendor, family, fails) in
            [("AuthenticAMD", "25", true), ("AuthenticAMD", "26", false), ("", "", false)]
        {
            let machine = machine(vendor, family);
            let report = Report::new(machine, true, "tls_rs", slow.to_vec(), None, Err("this is a test"), 1);
            assert_eq!(report.passed, !fails, "{vendor} {family}");
            assert_eq!(report.thresholds_that_are(Verdict::Missed).is_empty(), !fails);
            let text = report.to_string();
            assert_eq!(text.contains("MISSED"), fails, "{text}");
            assert_eq!(text.contains("not judged: not measured on this processor"), !fails, "{text}");
            assert!(text.contains("not judged: this is a test"), "{text}");
        }
        // What does not depend on the processor fails on each.
        let memory = vec![case("memory", &[("tls_rs", 16.0)])];
        assert!(!Report::new(machine("", ""), true, "tls_rs", memory, None, Err("this is a test"), 1).passed);
    }

    /// As many cases of `get` as a run has altogether, each with the median that it is given, measured with noise. Returns how
    /// they are judged, and how many cases were measured in all rounds together.
    fn run(medians: &[f64], seed: u64) -> (Vec<Case>, usize) {
        let (mut noise, mut measured) = (Noise::new(seed), 0);
        let cases = decide("tls_rs", &CHECKPOINTS, |open| {
            let all = medians.iter().zip(1..).map(|(median, live)| {
                let samples = samples("get", &[("tls_rs", noise.around(*median)), ("pthread_low", 1.0)]);
                Samples { live, ..samples }
            });
            let name = |samples: &Samples| format!("get 4 of {} keys, worst 1 thread(s)", samples.live);
            let round: Vec<_> = all.filter(|one| open.is_empty() || open.contains(&name(one))).collect();
            measured += round.len();
            Ok(round)
        });
        (cases.unwrap(), measured)
    }

    fn verdicts(cases: &[Case]) -> Vec<Verdict> {
        judge_ratios(cases, "tls_rs", CHECKPOINTS.len())
            .into_iter()
            .map(|judgement| judgement.verdict)
            .collect()
    }

    #[test]
    fn of_many_noisy_cases_the_slow_one_is_missed_and_no_other() {
        for seed in 0..6 {
            let mut medians = vec![0.93; 180];
            medians[seed as usize] = 1.00;
            let (cases, measured) = run(&medians, seed);
            let verdicts = verdicts(&cases);
            for (index, verdict) in verdicts.into_iter().enumerate() {
                let expected = if index == seed as usize { Verdict::Missed } else { Verdict::Met };
                assert_eq!(verdict, expected, "case {index}, seed {seed}");
            }
            // What is clear is not measured on and on.
            assert!(measured < 180 * CHECKPOINTS[1], "{measured}");
        }
    }

    #[test]
    fn a_case_that_rounds_cannot_decide_is_not_called_met() {
        let (cases, _) = run(&[0.965], 1); // the highest figure that is printed as 0.96, the limit
        assert_eq!(verdicts(&cases), [Verdict::Undecided]);
        assert_eq!(cases[0].ratio("tls_rs", "pthread_low").unwrap().rounds, CHECKPOINTS[3]);
        assert_eq!(thresholds_that_are(Verdict::Undecided, &cases, None), ["get"]);
        assert!(thresholds_that_are(Verdict::Met, &cases, None).is_empty());
    }

    #[test]
    fn of_runs_in_which_every_case_is_just_at_its_limit_few_miss_any() {
        let wrong = (0..40).filter(|seed| {
            let (cases, _) = run(&[0.9649; 20], *seed);
            verdicts(&cases).contains(&Verdict::Missed)
        });
        assert!(wrong.count() <= 5);
    }
}

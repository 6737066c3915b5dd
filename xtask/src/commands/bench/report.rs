//! What came of it, and what it has to reach. Text, JSON and the chart are printers of [`Report`].
//!
//! JSON is a contract: `bench/schema/report.v2.json` describes it. Fields may be added within a version.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::rounds::{self, Figure, Interval, Rounds, Verdict};

/// The version of the JSON.
pub const SCHEMA_VERSION: u32 = 2;

/// A whole run.
#[derive(Serialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Whether the run was a short one, whose figures are not to be quoted.
    pub quick: bool,
    pub machine: Machine,
    /// The design that was judged.
    pub judged: &'static str,
    /// Whether it has reached everything that was measured.
    pub passed: bool,
    pub thresholds: Vec<Threshold>,
    /// What tls-rs does to libguac.so, unless guacd was left out.
    pub library: Option<Library>,
    pub cases: Vec<Case>,
}

#[derive(Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    pub libc: String,
    pub compiler: String,
    pub rustc: String,
}

/// What `bench/bench.c` writes of a case.
#[derive(Deserialize)]
pub struct Samples {
    operation: String,
    live: u32,
    used: u32,
    keys: String,
    threads: u32,
    unit: String,
    samples: BTreeMap<String, Vec<f64>>,
}

/// Something that was measured of each design.
#[derive(Clone, Serialize)]
pub struct Case {
    pub operation: String,
    /// Keys that exist, as far as the design can have so many.
    pub live: u32,
    /// Keys that each thread has values for.
    pub used: u32,
    /// Which of the live keys those are.
    pub keys: String,
    pub threads: u32,
    /// Of `designs`: ns, or bytes.
    pub unit: String,
    /// Each design's own figure.
    pub designs: BTreeMap<String, Rounds>,
    /// `A/B`: the figure of A as a share of that of B, sample by sample.
    pub ratios: BTreeMap<String, Rounds>,
}

/// What others are held against.
const BASES: [&str; 4] = ["pthread_low", "pthread_high", "thread", "stock"];

impl Case {
    /// The case in the words of `bench/bench.c`.
    pub fn name(&self) -> String {
        let Case { operation, live, used, keys, threads, .. } = self;
        format!("{operation} {used} of {live} keys, {keys} {threads} thread(s)")
    }

    /// Adds a round, which counts with the medians of its samples.
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
                // Of a difference that vanishes there is no share.
                let pairs = values.iter().zip(bases).filter(|(_, base)| **base > 0.0);
                let ratios = pairs.map(|(value, base)| value / base).collect();
                add(&mut self.ratios, format!("{design}/{base}"), ratios);
            }
        }
        for (design, values) in samples {
            add(&mut self.designs, design.clone(), values.clone());
        }
    }

    /// The ratio of a design to another.
    pub fn ratio(&self, design: &str, base: &str) -> Option<Figure> {
        self.ratios.get(&format!("{design}/{base}"))?.figure()
    }

    fn title(&self) -> String {
        match self.unit.as_str() {
            _ if self.operation.starts_with("rwlock") || self.operation.starts_with("thread") => {
                self.operation.replace('_', " ")
            }
            _ => format!("{} of {} keys, {}", self.used, thousands(self.live), self.keys),
        }
    }
}

/// libguac.so with tls-rs against libguac.so without.
#[derive(Clone, Serialize)]
pub struct Library {
    /// Bytes that it has grown by, stripped.
    pub growth_bytes: i64,
    /// Symbols that it exports besides those of stock, other than the API.
    pub foreign_symbols: Vec<String>,
}

impl Library {
    /// Compares two libraries; `dir` is for copies of them.
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
        let is_foreign = |symbol: &&str| {
            !before.lines().any(|line| line == *symbol) && !symbol.starts_with("guac_thread_local_")
        };
        Ok(Library {
            growth_bytes: size(patched)? - size(stock)?,
            foreign_symbols: after.lines().filter(is_foreign).map(str::to_owned).collect(),
        })
    }
}

/// Adds what a round has measured.
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

/// Has rounds made, by a function that is given the names of cases to measure (none means all), until they have decided
/// about each case or there have been as many as the last of `looks`.
pub fn decide(
    judged: &str,
    looks: &[usize],
    mut round: impl FnMut(&[String]) -> Result<Vec<Samples>>,
) -> Result<Vec<Case>> {
    let (mut cases, mut open, mut made) = (Vec::new(), Vec::new(), 0);
    for look in looks {
        while made < *look {
            add_round(&mut cases, round(&open)?);
            made += 1;
        }
        let undecided = judge_ratios(&cases, judged, looks.len());
        let undecided = undecided.into_iter().filter(|judgement| judgement.verdict == Verdict::Undecided);
        open = undecided.map(|judgement| judgement.case.name()).collect();
        if open.is_empty() {
            break;
        }
    }
    Ok(cases)
}

/// A figure, and what it has to reach.
#[derive(Serialize)]
pub struct Threshold {
    pub what: String,
    /// What the figure is a share of, or its unit.
    pub of: String,
    pub limit: f64,
    /// The worst of all cases: the first that is missed, or else undecided, or else the median closest to the limit.
    pub worst: f64,
    /// What holds the true median, unless there is no noise.
    pub interval: Option<Interval>,
    /// How many rounds that is from.
    pub rounds: Option<usize>,
    /// Which case that is.
    pub case: String,
    pub verdict: Verdict,
}

/// A limit on the ratio of the judged design to another.
struct Limit {
    what: &'static str,
    base: &'static str,
    limit: f64,
    applies: fn(&Case) -> bool,
}

/// Everything that has to be reached, each number once. (`__thread` needs no keys, and a destructor needs a native one, whose
/// price comes on top: those are measured, and not judged.)
const LIMITS: [Limit; 12] = [
    limit("get", "pthread_low", 1.00, |case| is(case, "get", 1)),
    limit("get, one key", "thread", 1.05, |case| is(case, "get", 1) && case.used == 1),
    limit("get, two threads", "pthread_low", 1.10, |case| is(case, "get", 2)),
    limit("get, beside creation", "pthread_low", 1.10, |case| is(case, "get_beside_churn", 2)),
    limit("set", "pthread_low", 0.90, |case| is(case, "set", 1)),
    limit("rwlock's four calls", "pthread_low", 0.97, |case| is(case, "pair", 1)),
    limit("create + delete", "pthread_low", 1.00, |case| is(case, "create_delete", 1)),
    limit("create + delete, two threads", "pthread_low", 1.00, |case| is(case, "create_delete", 2)),
    limit("first value + thread exit", "pthread_high", 1.00, |case| is(case, "thread", 1)),
    limit("guac_rwlock, read", "stock", 0.97, |case| is(case, "rwlock_read", 1)),
    limit("guac_rwlock, write", "stock", 0.97, |case| is(case, "rwlock_write", 1)),
    limit("guac_error", "stock", 0.60, |case| is(case, "guac_error", 1)),
];

const MAX_GROWTH: i64 = 24 * 1024;
/// Bytes of heap with up to 12 keys, and with 16 of a million.
const MAX_MEMORY: [(u32, f64); 2] = [(12, 0.0), (16, 2048.0)];

const fn limit(what: &'static str, base: &'static str, limit: f64, applies: fn(&Case) -> bool) -> Limit {
    Limit { what, base, limit, applies }
}

fn is(case: &Case, operation: &str, threads: u32) -> bool {
    case.operation == operation && case.threads == threads
}

impl Report {
    pub fn new(
        machine: Machine,
        quick: bool,
        judged: &'static str,
        cases: Vec<Case>,
        library: Option<Library>,
        looks: usize,
    ) -> Report {
        let thresholds = judge(&cases, library.as_ref(), judged, looks);
        let passed = thresholds.iter().all(|threshold| threshold.verdict == Verdict::Met);
        Report { schema_version: SCHEMA_VERSION, quick, machine, judged, passed, thresholds, library, cases }
    }

    /// What has that verdict, each with a case.
    pub fn thresholds_that_are(&self, verdict: Verdict) -> Vec<String> {
        let of_it = self.thresholds.iter().filter(|threshold| threshold.verdict == verdict);
        of_it.map(|threshold| format!("{} ({})", threshold.what, threshold.case)).collect()
    }
}

/// What is to be said of a case under a limit.
struct Judgement<'a> {
    limit: &'static Limit,
    case: &'a Case,
    figure: Figure,
    interval: Interval,
    verdict: Verdict,
}

/// Whether a figure reaches a limit. Two decimals are printed, and judged.
fn meets(figure: f64, limit: f64) -> bool {
    (figure * 100.0).round() / 100.0 <= limit
}

/// Holds each case against each limit that applies to it.
fn judge_ratios<'a>(cases: &'a [Case], judged: &str, looks: usize) -> Vec<Judgement<'a>> {
    let all = || LIMITS.iter().flat_map(|limit| cases.iter().map(move |case| (limit, case)));
    let ratios = all().filter(|(limit, case)| (limit.applies)(case)).filter_map(|(limit, case)| {
        let design = if limit.base == "stock" { "patched" } else { judged };
        Some((limit, case, case.ratios.get(&format!("{design}/{}", limit.base))?))
    });
    let chance = rounds::chance_of_one(ratios.clone().count(), looks);
    let judgements = ratios.filter_map(|(limit, case, ratio)| {
        let (figure, interval) = (ratio.figure()?, ratio.interval(chance));
        let verdict = interval.verdict(|figure| meets(figure, limit.limit));
        Some(Judgement { limit, case, figure, interval, verdict })
    });
    judgements.collect()
}

/// Holds the worst case of each kind against its limit. What was not measured is not judged.
fn judge(cases: &[Case], library: Option<&Library>, judged: &str, looks: usize) -> Vec<Threshold> {
    let mut thresholds = Vec::new();
    let ratios = judge_ratios(cases, judged, looks);
    for Limit { what, base, limit, .. } in &LIMITS {
        let of_it = ratios.iter().filter(|judgement| judgement.limit.what == *what);
        let worst = of_it.max_by(|one, other| {
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
        });
    }
    // These have no noise.
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
            });
        }
    };
    for (used, limit) in MAX_MEMORY {
        let of_size = |case: &&Case| case.operation == "memory" && (used > 12 || case.used <= used);
        let figures = cases.iter().filter(of_size);
        let figures =
            figures.filter_map(|case| Some((case.designs.get(judged)?.figure()?.median, case.title())));
        add(&format!("heap per thread, {used} keys"), "bytes", limit, figures.collect());
    }
    if let Some(library) = library {
        let growth = library.growth_bytes as f64;
        add("libguac.so grows by", "bytes", MAX_GROWTH as f64, vec![(growth, "stripped".into())]);
        let foreign = library.foreign_symbols.len() as f64;
        add("symbols besides the API", "symbols", 0.0, vec![(foreign, library.foreign_symbols.join(" "))]);
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
        writeln!(f, "\nRatios to pthread keys below 32: median of all cases [quartiles of the worst]\n")?;
        writeln!(
            f,
            "{:<26} {:>24} {:>20} {:>20} {:>20}",
            "", "tls-rs", "pthread from 32 on", "__thread", "mutex_array"
        )?;
        for (title, operation, threads) in ROWS {
            write!(f, "{title:<26}")?;
            for (design, width) in [("tls_rs", 24), ("pthread_high", 20), ("thread", 20), ("mutex_array", 20)]
            {
                write!(f, " {:>width$}", self.cell(operation, threads, design))?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "\n{:<29} {:<12} {:>6} {:>7} {:<11} {:>6}  worst case",
            "what must be reached", "of", "limit", self.judged, "[interval]", "rounds"
        )?;
        for Threshold { what, of, limit, worst, interval, rounds, case, verdict } in &self.thresholds {
            let decimals = if BASES.contains(&of.as_str()) { 2 } else { 0 };
            let interval = interval.map_or(String::new(), |Interval { lower, upper }| {
                let end = |end: Option<f64>| end.map_or("?".into(), |end| format!("{end:.2}"));
                format!("[{} {}]", end(lower), end(upper))
            });
            let rounds = rounds.map_or(String::new(), |rounds| rounds.to_string());
            let verdict = match verdict {
                Verdict::Met => "",
                Verdict::Undecided => "  UNDECIDED",
                Verdict::Missed => "  MISSED",
            };
            writeln!(
                f,
                "{what:<29} {of:<12} {limit:>6.decimals$} {worst:>7.decimals$} {interval:<11} {rounds:>6}  {case}{verdict}"
            )?;
        }
        Ok(())
    }
}

/// The rows of the table: a title, an operation, and how many threads do it at once.
pub const ROWS: [(&str, &str, u32); 10] = [
    ("get", "get", 1),
    ("get, two threads", "get", 2),
    ("get, beside creation", "get_beside_churn", 2),
    ("get of a key just got", "dependent_get", 1),
    ("set", "set", 1),
    ("get, set, get, set", "pair", 1),
    ("create + delete", "create_delete", 1),
    ("the same, two threads", "create_delete", 2),
    ("first value + thread exit", "thread", 1),
    ("the same, with destructor", "thread_with_destructor", 1),
];

impl Report {
    /// The ratios to `pthread_low` of a design, over all cases of an operation: the median one, and the worst.
    pub fn range(&self, operation: &str, threads: u32, design: &str) -> Option<(Figure, Figure)> {
        let cases = self.cases.iter().filter(|case| is(case, operation, threads));
        let mut figures: Vec<_> = cases.filter_map(|case| case.ratio(design, "pthread_low")).collect();
        figures.sort_by(|one, other| one.median.total_cmp(&other.median));
        Some((*figures.get(figures.len() / 2)?, *figures.last()?))
    }

    fn cell(&self, operation: &str, threads: u32, design: &str) -> String {
        self.range(operation, threads, design).map_or("-".into(), |(middle, worst)| {
            format!("{:.2} [{:.2} {:.2}]", middle.median, worst.lower_quartile, worst.upper_quartile)
        })
    }
}

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
    use crate::commands::bench::rounds::{LOOKS, QUICK_LOOKS};

    fn samples(operation: &str, figures: &[(&str, f64)]) -> Samples {
        let samples = figures.iter().map(|(design, value)| ((*design).to_owned(), vec![*value; 3])).collect();
        let unit = if operation == "memory" { "bytes" } else { "ns" }.into();
        let (operation, keys) = (operation.into(), "worst".into());
        Samples { operation, live: 100, used: 4, keys, threads: 1, unit, samples }
    }

    /// Without noise.
    fn case(operation: &str, figures: &[(&str, f64)]) -> Case {
        let round = |_: &[String]| Ok(vec![samples(operation, figures)]);
        decide("tls_rs", &QUICK_LOOKS, round).unwrap().remove(0)
    }

    fn thresholds_that_are(verdict: Verdict, cases: &[Case], library: Option<&Library>) -> Vec<String> {
        let thresholds = judge(cases, library, "tls_rs", 1).into_iter();
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
        let good = case("get", &[("tls_rs", 1.0), ("pthread_low", 1.0)]);
        let bad = case("get", &[("tls_rs", 1.01), ("pthread_low", 1.0)]);
        assert!(missed(std::slice::from_ref(&good), None).is_empty());
        assert_eq!(missed(&[good.clone(), bad, good], None), ["get"]);
    }

    #[test]
    fn each_limit_is_missed_by_what_is_twice_as_slow() {
        for Limit { what, base, .. } in LIMITS {
            let design = if base == "stock" { "patched" } else { "tls_rs" };
            let found = ["get", "get_beside_churn", "set", "pair", "create_delete", "thread"]
                .into_iter()
                .chain(["rwlock_read", "rwlock_write", "guac_error"])
                .flat_map(|operation| {
                    [1, 2].map(|threads| {
                        let slow = case(operation, &[(design, 2.0), (base, 1.0)]);
                        missed(&[Case { threads, used: 1, ..slow }], None)
                    })
                })
                .any(|missed| missed.iter().any(|missed| missed == what));
            assert!(found, "{what} is missed by nothing");
        }
    }

    #[test]
    fn memory_growth_and_symbols_are_judged() {
        assert_eq!(missed(&[case("memory", &[("tls_rs", 16.0)])], None), ["heap per thread, 12 keys"]);
        let large = Library { growth_bytes: MAX_GROWTH + 1, foreign_symbols: vec!["rust_panic".into()] };
        assert_eq!(missed(&[], Some(&large)), ["libguac.so grows by", "symbols besides the API"]);
        let small = Library { growth_bytes: MAX_GROWTH, foreign_symbols: Vec::new() };
        assert!(missed(&[], Some(&small)).is_empty());
    }

    /// As many cases of `get` as a run has altogether, each with the median that it is given, measured with noise. Returns how
    /// they are judged, and how many cases were measured in all rounds together.
    fn run(medians: &[f64], seed: u64) -> (Vec<Case>, usize) {
        let (mut noise, mut measured) = (Noise::new(seed), 0);
        let cases = decide("tls_rs", &LOOKS, |open| {
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
        judge_ratios(cases, "tls_rs", LOOKS.len()).into_iter().map(|judgement| judgement.verdict).collect()
    }

    #[test]
    fn of_many_noisy_cases_the_slow_one_is_missed_and_no_other() {
        for seed in 0..6 {
            let mut medians = vec![0.97; 180];
            medians[seed as usize] = 1.04;
            let (cases, measured) = run(&medians, seed);
            let verdicts = verdicts(&cases);
            for (index, verdict) in verdicts.into_iter().enumerate() {
                let expected = if index == seed as usize { Verdict::Missed } else { Verdict::Met };
                assert_eq!(verdict, expected, "case {index}, seed {seed}");
            }
            // What is clear is not measured on and on.
            assert!(measured < 180 * LOOKS[1], "{measured}");
        }
    }

    #[test]
    fn a_case_that_rounds_cannot_decide_is_not_called_met() {
        let (cases, _) = run(&[1.005], 1); // up to which the limit goes, as it is printed
        assert_eq!(verdicts(&cases), [Verdict::Undecided]);
        assert_eq!(cases[0].ratio("tls_rs", "pthread_low").unwrap().rounds, LOOKS[3]);
        assert_eq!(thresholds_that_are(Verdict::Undecided, &cases, None), ["get"]);
        assert!(thresholds_that_are(Verdict::Met, &cases, None).is_empty());
    }

    #[test]
    fn of_runs_in_which_every_case_is_just_at_its_limit_few_miss_any() {
        let wrong = (0..40).filter(|seed| {
            let (cases, _) = run(&[1.0049; 20], *seed);
            verdicts(&cases).contains(&Verdict::Missed)
        });
        assert!(wrong.count() <= 5);
    }
}

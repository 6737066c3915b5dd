//! What got better or worse between two builds of guacd, beyond what two runs of the same build differ by?
//!
//! Each build was loaded several times. For each figure, the ratio of the new to the old is estimated from the runs' values, with
//! an interval that Welch's test gives for their logarithms. A figure has changed if the interval excludes a ratio of 1 and the
//! change is larger than a threshold.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::model::Run;

/// How sure a verdict has to be. A comparison has about ten figures, so that with 0.95 every second one would have a verdict by
/// chance.
const CONFIDENCE: f64 = 0.999;

/// The version of the JSON.
const SCHEMA_VERSION: u32 = 1;

/// The comparison of two builds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The version of this JSON.
    pub schema_version: u32,
    /// The smallest change that counts, as a share: 0.1 for 10 %.
    pub threshold: f64,
    /// One for each variant.
    pub variants: Vec<Variant>,
}

/// The comparison of one variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// Its name.
    pub name: String,
    /// How many runs there are of the old build and of the new one.
    pub runs: (u32, u32),
    /// The figures that both have.
    pub figures: Vec<Figure>,
}

/// The comparison of one figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// What it is counted in.
    pub unit: String,
    /// Its geometric mean with the old build.
    pub old: f64,
    /// Its geometric mean with the new one.
    pub new: f64,
    /// The ratio of the new to the old.
    pub ratio: f64,
    /// The interval in which the ratio is. None if one of the builds was loaded only once.
    pub interval: Option<(f64, f64)>,
    /// What that means.
    pub verdict: Verdict,
}

/// What became of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It got better.
    Better,
    /// It got worse.
    Worse,
    /// The runs do not show a change beyond the threshold.
    Same,
    /// There are too few runs to tell.
    Unknown,
}

/// A figure of a run: its name and unit, whether more is better, and how it is read.
type Row = (&'static str, &'static str, bool, fn(&Run) -> Option<f64>);

const ROWS: &[Row] = &[
    ("proven", "sessions", true, |run| Some(run.proven.into())),
    ("first proof, p50", "ms", false, |run| Some(run.first_proof?.p50_ms)),
    ("first proof, p95", "ms", false, |run| Some(run.first_proof?.p95_ms)),
    ("last proof, p50", "ms", false, |run| Some(run.last_proof?.p50_ms)),
    ("memory per session", "bytes", false, |run| {
        let usage = run.guacd.as_ref()?.usage?;
        (run.established > 0).then(|| usage.memory_bytes as f64 / f64::from(run.established))
    }),
    ("tasks per session", "tasks", false, |run| {
        let usage = run.guacd.as_ref()?.usage?;
        (run.established > 0).then(|| f64::from(usage.tasks) / f64::from(run.established))
    }),
    ("idle CPU", "ms/s", false, |run| run.guacd.as_ref()?.idle_cpu_ms_per_second),
    ("frames received", "per second", true, |run| Some(run.drawing?.received_per_second)),
    ("lag, p95", "ms", false, |run| Some(run.drawing?.lag?.p95_ms)),
    ("bytes per frame", "bytes", false, |run| {
        let drawing = run.drawing?;
        Some(drawing.bytes_per_second / drawing.received_per_second)
    }),
    ("CPU per frame", "ms", false, |run| run.drawing?.cpu_ms_per_frame),
    ("capacity", "sessions", true, |run| Some(run.capacity.as_ref()?.sessions.into())),
    ("shutdown", "s", false, |run| Some(run.guacd.as_ref()?.shutdown?.seconds)),
];

/// Compares runs of two builds. Variants are compared by name; a single variant of each is compared whatever its name.
pub fn compare(old: &[Run], new: &[Run], threshold: f64) -> Comparison {
    let names = |runs: &[Run]| {
        let mut names = Vec::<String>::new();
        for run in runs {
            if !names.contains(&run.variant) {
                names.push(run.variant.clone());
            }
        }
        names
    };
    let pairs = match (names(old).as_slice(), names(new).as_slice()) {
        ([old], [new]) if old != new => vec![(old.clone(), new.clone())],
        (old, new) => {
            old.iter().filter(|name| new.contains(name)).map(|name| (name.clone(), name.clone())).collect()
        }
    };
    let of =
        |runs: &[Run], name: &str| runs.iter().filter(|run| run.variant == name).cloned().collect::<Vec<_>>();
    let variant = |(first, second): (String, String)| {
        let (old, new) = (of(old, &first), of(new, &second));
        let figures = ROWS.iter().filter_map(|row| figure(row, &old, &new, threshold)).collect();
        let name = if first == second { first } else { format!("{first} and {second}") };
        Variant { name, runs: (old.len() as u32, new.len() as u32), figures }
    };
    let variants = pairs.into_iter().map(variant).collect();
    Comparison { schema_version: SCHEMA_VERSION, threshold, variants }
}

fn figure(
    &(name, unit, more_is_better, value): &Row,
    old: &[Run],
    new: &[Run],
    threshold: f64,
) -> Option<Figure> {
    // Logarithms: a change is a ratio. None is 0 but for counts, of which the least that differs from it stands for it.
    let logs = |runs: &[Run]| {
        let logs = runs.iter().filter_map(value).filter(|value| value.is_finite());
        logs.map(|value| value.max(1e-3).ln()).collect::<Vec<_>>()
    };
    let (old, new) = (Sample::of(&logs(old))?, Sample::of(&logs(new))?);
    let difference = new.mean - old.mean;
    let interval = old.interval(&new).map(|half| ((difference - half).exp(), (difference + half).exp()));
    let ratio = difference.exp();
    let verdict = match interval {
        None => Verdict::Unknown,
        Some((least, most)) if least <= 1.0 && most >= 1.0 => Verdict::Same,
        Some(_) if difference.abs() < threshold.ln_1p() => Verdict::Same,
        Some(_) if (ratio > 1.0) == more_is_better => Verdict::Better,
        Some(_) => Verdict::Worse,
    };
    Some(Figure {
        name: name.into(),
        unit: unit.into(),
        old: old.mean.exp(),
        new: new.mean.exp(),
        ratio,
        interval,
        verdict,
    })
}

/// Values of one build.
struct Sample {
    count: f64,
    mean: f64,
    /// The variance of the mean. None for a single value.
    variance: Option<f64>,
}

impl Sample {
    fn of(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        let variance = (values.len() > 1).then(|| squares / (count - 1.0) / count);
        (!values.is_empty()).then_some(Self { count, mean, variance })
    }

    /// Half of the interval of the difference of two means, by Welch's test.
    fn interval(&self, other: &Self) -> Option<f64> {
        let (a, b) = (self.variance?, other.variance?);
        if a + b == 0.0 {
            return Some(0.0);
        }
        let freedom = (a + b).powi(2) / (a.powi(2) / (self.count - 1.0) + b.powi(2) / (other.count - 1.0));
        let student = StudentsT::new(0.0, 1.0, freedom).ok()?;
        Some(student.inverse_cdf(0.5 + CONFIDENCE / 2.0) * (a + b).sqrt())
    }
}

impl Comparison {
    /// Whether any figure got worse.
    pub fn has_regression(&self) -> bool {
        self.figures().any(|figure| figure.verdict == Verdict::Worse)
    }

    /// Whether any figure had enough runs for a verdict.
    pub fn is_sure(&self) -> bool {
        self.figures().any(|figure| figure.verdict != Verdict::Unknown)
    }

    fn figures(&self) -> impl Iterator<Item = &Figure> {
        self.variants.iter().flat_map(|variant| &variant.figures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Latency;

    fn runs(variant: &str, p50s: &[f64]) -> Vec<Run> {
        let run = |&p50_ms: &f64| Run {
            variant: variant.into(),
            proven: 10,
            first_proof: Some(Latency { p50_ms, p95_ms: p50_ms * 2.0, p99_ms: 0.0, max_ms: 0.0 }),
            ..Run::default()
        };
        p50s.iter().map(run).collect()
    }

    fn verdict(old: &[f64], new: &[f64]) -> Verdict {
        let comparison = compare(&runs("a", old), &runs("a", new), 0.1);
        comparison.variants[0]
            .figures
            .iter()
            .find(|figure| figure.name == "first proof, p50")
            .unwrap()
            .verdict
    }

    #[test]
    fn a_change_counts_if_it_is_beyond_the_noise_and_the_threshold() {
        let base = [30.0, 30.5, 29.6, 30.2, 29.9];
        assert_eq!(verdict(&base, &base.map(|value| value * 1.2)), Verdict::Worse);
        assert_eq!(verdict(&base, &base.map(|value| value / 1.2)), Verdict::Better);
        assert_eq!(verdict(&base, &base.map(|value| value * 1.05)), Verdict::Same, "below the threshold");
        assert_eq!(verdict(&base, &[30.4, 29.7, 30.1, 30.3, 29.8]), Verdict::Same);
        assert_eq!(verdict(&[20.0, 45.0, 30.0], &[40.0, 25.0, 60.0]), Verdict::Same, "noise");
        assert_eq!(verdict(&[30.0], &[60.0]), Verdict::Unknown);
        assert_eq!(verdict(&[30.0, 30.0], &[60.0, 60.0]), Verdict::Worse, "no noise at all");
    }

    #[test]
    fn variants_are_compared_by_name() {
        let both = [runs("stock", &[1.0, 2.0]), runs("patched", &[1.0])].concat();
        let comparison = compare(&both, &both, 0.1);
        let names = comparison
            .variants
            .iter()
            .map(|variant| (variant.name.as_str(), variant.runs))
            .collect::<Vec<_>>();
        assert_eq!(names, [("stock", (2, 2)), ("patched", (1, 1))]);
        let comparison = compare(&runs("old", &[1.0, 1.0]), &runs("new", &[1.0, 1.0]), 0.1);
        assert_eq!(comparison.variants[0].name, "old and new");
        assert!(!comparison.has_regression() && comparison.is_sure());
        assert!(compare(&runs("stock", &[1.0]), &both, 0.1).variants.len() == 1);
    }

    /// As many runs of the same build as of a day's work: whatever the noise, hardly any verdict is wrong.
    #[test]
    fn a_build_does_not_differ_from_itself() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut noisy =
            |spread: f64| 30.0 * (spread * (0..12).map(|_| random.f64() - 0.5).sum::<f64>()).exp();
        let mut wrong = 0;
        for _ in 0..1000 {
            let old = std::array::from_fn::<_, 5, _>(|_| noisy(0.2));
            let new = std::array::from_fn::<_, 5, _>(|_| noisy(0.2));
            wrong += u32::from(verdict(&old, &new) != Verdict::Same);
        }
        assert!(wrong <= 5, "{wrong} of 1000");
    }
}

//! When have noisy rounds shown whether a ratio meets its limit?
//!
//! A round is a process with its own memory layout, which measures every case once. It contributes one figure to each case:
//! the median of its samples. The limit applies to the median over rounds. The confidence interval of that median lies
//! between two order statistics, and is valid for any kind of noise, as a round's figure is below the true median with a
//! chance of one half. Cases whose interval contains the limit get more rounds, up to the last checkpoint.

use serde::Serialize;

/// The numbers of rounds after which the cases are judged. Undecided cases get more rounds, until the last checkpoint.
pub const CHECKPOINTS: [usize; 4] = [16, 32, 64, 128];

/// The only checkpoint of a short run.
pub const QUICK_CHECKPOINTS: [usize; 1] = [13];

/// The highest chance that a run has a wrong verdict. It is divided among all cases and checkpoints (Bonferroni).
const CHANCE_OF_ERROR: f64 = 0.05;

/// The figures of a case, one for each round.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(into = "Figure")]
pub struct Rounds(Vec<f64>);

/// A median, with the quartiles around it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    pub median: f64,
    pub lower_quartile: f64,
    pub upper_quartile: f64,
    pub rounds: usize,
}

/// A confidence interval of a median. An end is `None` if there are too few rounds for it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    pub lower: Option<f64>,
    pub upper: Option<f64>,
}

/// Whether a limit is met. Later ones are worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Met,
    /// The interval contains the limit, so the rounds do not show which.
    Undecided,
    Missed,
}

impl Rounds {
    /// Adds the figure of a round.
    pub fn add(&mut self, round: f64) {
        self.0.push(round);
    }

    /// The median with its quartiles. `None` without a round.
    pub fn figure(&self) -> Option<Figure> {
        let sorted = self.sorted();
        let at = |share: f64| Some(*sorted.get(((sorted.len().max(1) - 1) as f64 * share).round() as usize)?);
        let (median, lower_quartile, upper_quartile) = (at(0.5)?, at(0.25)?, at(0.75)?);
        Some(Figure { median, lower_quartile, upper_quartile, rounds: sorted.len() })
    }

    /// The confidence interval of the median. The chance that the median lies below it, or above it, is `chance` each.
    pub fn interval(&self, chance: f64) -> Interval {
        let sorted = self.sorted();
        let outside = figures_outside(sorted.len(), chance);
        let lower = outside.checked_sub(1).and_then(|index| sorted.get(index)).copied();
        let upper = sorted.len().checked_sub(outside).and_then(|index| sorted.get(index)).copied();
        Interval { lower, upper }
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl From<Rounds> for Figure {
    fn from(rounds: Rounds) -> Figure {
        let nothing =
            Figure { median: f64::NAN, lower_quartile: f64::NAN, upper_quartile: f64::NAN, rounds: 0 };
        rounds.figure().unwrap_or(nothing)
    }
}

impl Interval {
    /// The verdict on a limit that the figures for which `meets` is true meet.
    pub fn verdict(&self, meets: impl Fn(f64) -> bool) -> Verdict {
        match (self.lower, self.upper) {
            (Some(lower), _) if !meets(lower) => Verdict::Missed,
            (_, Some(upper)) if meets(upper) => Verdict::Met,
            _ => Verdict::Undecided,
        }
    }
}

/// The share of [`CHANCE_OF_ERROR`] for a single interval.
pub fn chance_of_one(cases: usize, checkpoints: usize) -> f64 {
    CHANCE_OF_ERROR / (cases * checkpoints).max(1) as f64
}

/// The highest n for which the n-th lowest figure lies above the true median with a chance of at most `chance`. The binomial
/// distribution gives that chance: it is the chance that fewer than n figures fall below the median.
fn figures_outside(rounds: usize, chance: f64) -> usize {
    let mut exactly = 0.5_f64.powi(i32::try_from(rounds).unwrap_or(i32::MAX)); // none of them falls below
    let mut at_most = exactly;
    let mut count = 0;
    while count < rounds && at_most <= chance {
        exactly *= (rounds - count) as f64 / (count + 1) as f64;
        at_most += exactly;
        count += 1;
    }
    count
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Noise as on a shared machine: a few percent, sometimes several times as much. A seed always gives the same noise.
    pub struct Noise(u64);

    impl Noise {
        pub fn new(seed: u64) -> Noise {
            Noise(seed)
        }

        fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 11) as f64 / (1_u64 << 53) as f64
        }

        /// A figure whose median over many rounds is `median`.
        pub fn around(&mut self, median: f64) -> f64 {
            let spread = if self.uniform() < 0.2 { 0.5 } else { 0.05 };
            median * (1.0 + spread * (self.uniform() - 0.5))
        }
    }

    #[test]
    fn a_figure_is_the_median_with_its_quartiles() {
        let figure = Rounds(vec![5.0, 1.0, 4.0, 2.0, 3.0]).figure().unwrap();
        assert_eq!(figure, Figure { median: 3.0, lower_quartile: 2.0, upper_quartile: 4.0, rounds: 5 });
        assert!(Rounds::default().figure().is_none());
    }

    #[test]
    fn an_interval_ends_where_the_tables_of_the_sign_test_say() {
        // Two-sided, at 5 % and 1 %: the critical values for n = 20 are 5 and 3, for n = 10 they are 1 and 0.
        assert_eq!([0.025, 0.005].map(|chance| figures_outside(20, chance)), [6, 4]);
        assert_eq!([0.025, 0.005].map(|chance| figures_outside(10, chance)), [2, 1]);
        assert_eq!(figures_outside(4, 0.05), 0);
        let rounds = Rounds((1..=10).map(f64::from).collect());
        assert_eq!(rounds.interval(0.025), Interval { lower: Some(2.0), upper: Some(9.0) });
        assert_eq!(rounds.interval(0.0001), Interval { lower: None, upper: None });
    }

    #[test]
    fn a_verdict_takes_all_of_an_interval() {
        let verdict = |lower, upper| Interval { lower, upper }.verdict(|figure| figure <= 1.0);
        assert_eq!(verdict(Some(0.9), Some(1.0)), Verdict::Met);
        assert_eq!(verdict(Some(1.1), Some(1.2)), Verdict::Missed);
        assert_eq!(verdict(Some(0.9), Some(1.1)), Verdict::Undecided);
        assert_eq!(verdict(None, None), Verdict::Undecided);
    }

    #[test]
    fn the_first_checkpoint_can_decide_as_many_cases_as_there_are() {
        for checkpoints in [&CHECKPOINTS[..], &QUICK_CHECKPOINTS] {
            assert!(
                figures_outside(checkpoints[0], chance_of_one(200, checkpoints.len())) > 0,
                "{checkpoints:?}"
            );
        }
    }

    #[test]
    fn of_medians_that_are_just_the_limit_few_get_a_wrong_verdict() {
        let (mut missed, mut met) = (0, 0);
        for seed in 0..2000 {
            let mut noise = Noise::new(seed);
            let rounds = Rounds((0..64).map(|_| noise.around(1.0)).collect());
            match rounds.interval(0.05).verdict(|figure| figure <= 1.0) {
                Verdict::Missed => missed += 1,
                Verdict::Met => met += 1,
                Verdict::Undecided => {}
            }
        }
        // At most 5 % on either side: less, as an interval ends at a figure.
        assert!((40..=100).contains(&missed) && (40..=100).contains(&met), "{missed} missed, {met} met");
    }
}

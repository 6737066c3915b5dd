//! When have noisy rounds shown whether a ratio reaches its limit?
//!
//! A round is a process of its own, with its own layout of memory, and measures every case once. Of each case it counts with
//! one figure, the median of its samples. What is judged is the median over rounds, by the interval between order
//! statistics that holds it with a certain chance whatever the noise is like: below the true median, a figure falls in
//! half of all rounds. Cases that an interval leaves open get more rounds, up to a budget.

use serde::Serialize;

/// After how many rounds it is looked at what is still open. The last is the budget.
pub const LOOKS: [usize; 4] = [16, 32, 64, 128];

/// Of a short run, which has to see that everything works.
pub const QUICK_LOOKS: [usize; 1] = [13];

/// The chance that a run has a verdict that is wrong. Each case has its share of it at each look (Bonferroni), so it stays
/// this small however many cases there are.
const CHANCE_OF_ERROR: f64 = 0.05;

/// One figure for each round.
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

/// What is sure to hold a median. Without an end where there are too few rounds to say so.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    pub lower: Option<f64>,
    pub upper: Option<f64>,
}

/// Ordered by what a reader has to see first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Met,
    /// The interval holds the limit: the rounds have not shown either.
    Undecided,
    Missed,
}

impl Rounds {
    pub fn add(&mut self, round: f64) {
        self.0.push(round);
    }

    pub fn figure(&self) -> Option<Figure> {
        let sorted = self.sorted();
        let at = |share: f64| Some(*sorted.get(((sorted.len().max(1) - 1) as f64 * share).round() as usize)?);
        let (median, lower_quartile, upper_quartile) = (at(0.5)?, at(0.25)?, at(0.75)?);
        Some(Figure { median, lower_quartile, upper_quartile, rounds: sorted.len() })
    }

    /// Where the true median is, on either side with this chance to be wrong.
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
    /// Holds all of it against a limit.
    pub fn verdict(&self, meets: impl Fn(f64) -> bool) -> Verdict {
        match (self.lower, self.upper) {
            (Some(lower), _) if !meets(lower) => Verdict::Missed,
            (_, Some(upper)) if meets(upper) => Verdict::Met,
            _ => Verdict::Undecided,
        }
    }
}

/// What a single interval may have of [`CHANCE_OF_ERROR`].
pub fn chance_of_one(cases: usize, looks: usize) -> f64 {
    CHANCE_OF_ERROR / (cases * looks).max(1) as f64
}

/// The highest n for which the chance that the n-th lowest figure lies above the true median is no more than `chance`; it is
/// the chance that fewer than n of all fall below it, which the binomial distribution gives.
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

    /// Noise as of a machine that others share: a few percent, now and then several times as much, always the same.
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
    fn the_first_look_can_decide_as_many_cases_as_there_are() {
        for looks in [&LOOKS[..], &QUICK_LOOKS] {
            assert!(figures_outside(looks[0], chance_of_one(200, looks.len())) > 0, "{looks:?}");
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
        // 5 % on either side, less as only whole figures can be left out.
        assert!((40..=100).contains(&missed) && (40..=100).contains(&met), "{missed} missed, {met} met");
    }
}

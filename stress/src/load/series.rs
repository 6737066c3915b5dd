//! How is something recorded over time, however long that takes? At most so many values are kept, at even distances.

/// The shortest distance between two values, in seconds.
const INTERVAL: f64 = 1.0;

/// How many values there may be. Beyond it, every other one is dropped, and the distance doubles.
const MAX_VALUES: usize = 240;

/// Values over time.
#[derive(Debug, Clone)]
pub struct Series<T> {
    values: Vec<T>,
    interval: f64,
    next: f64,
}

impl<T> Default for Series<T> {
    fn default() -> Self {
        Self { values: Vec::new(), interval: INTERVAL, next: 0.0 }
    }
}

impl<T> Series<T> {
    /// Records a value at a time, in seconds, if it is time for one.
    pub fn offer(&mut self, at_seconds: f64, value: impl FnOnce() -> T) {
        if at_seconds < self.next {
            return;
        }
        self.next = at_seconds + self.interval;
        self.values.push(value());
        if self.values.len() > MAX_VALUES {
            let mut odd = false;
            self.values.retain(|_| {
                odd = !odd;
                odd
            });
            self.interval *= 2.0;
        }
    }

    /// Seconds between two values, at least.
    pub fn interval(&self) -> f64 {
        self.interval
    }

    /// The values so far.
    pub fn values(&self) -> &[T] {
        &self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_time_takes_no_more_values_than_a_short_one() {
        let mut series = Series::default();
        for tenth in 0..36_000 {
            let at = f64::from(tenth) / 10.0;
            series.offer(at, || at);
        }
        let values = series.values();
        assert!((MAX_VALUES / 2..=MAX_VALUES).contains(&values.len()), "{}", values.len());
        assert!(values[0] == 0.0 && *values.last().unwrap() > 3600.0 - 2.0 * series.interval());
        let distances = values.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>();
        let (least, most) = distances.iter().fold((f64::MAX, 0.0_f64), |(a, b), &d| (a.min(d), b.max(d)));
        assert!(most <= 2.0 * least, "{least} to {most}");
    }
}

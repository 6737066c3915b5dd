//! How are times summed up? As percentiles.

use std::time::Duration;

use crate::report::{Histogram, Latency};

/// Times, in microseconds to three significant digits.
#[derive(Clone)]
pub struct Times(hdrhistogram::Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        // 3 is one of the numbers of digits that there may be.
        Self(hdrhistogram::Histogram::new(3).unwrap_or_else(|error| unreachable!("{error}")))
    }
}

impl Times {
    /// Adds a time.
    pub fn record(&mut self, time: Duration) {
        let _ = self.0.record(time.as_micros().try_into().unwrap_or(u64::MAX).max(1));
    }

    /// Adds the times of a distribution.
    pub fn add(&mut self, histogram: &Histogram) {
        for &(micros, count) in &histogram.buckets {
            let _ = self.0.record_n(micros, count);
        }
    }

    /// Their distribution. None where there are no times.
    pub fn histogram(&self) -> Option<Histogram> {
        let buckets = self.0.iter_recorded();
        let buckets = buckets.map(|bucket| (bucket.value_iterated_to(), bucket.count_since_last_iteration()));
        (!self.0.is_empty()).then(|| Histogram { buckets: buckets.collect() })
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Their percentiles. None where there are no times.
    pub fn latency(&self) -> Option<Latency> {
        let ms = |micros: u64| micros as f64 / 1000.0;
        (!self.0.is_empty()).then(|| Latency {
            p50_ms: ms(self.0.value_at_quantile(0.50)),
            p95_ms: ms(self.0.value_at_quantile(0.95)),
            p99_ms: ms(self.0.value_at_quantile(0.99)),
            max_ms: ms(self.0.max()),
        })
    }
}

impl<'t> FromIterator<&'t Duration> for Times {
    fn from_iter<I: IntoIterator<Item = &'t Duration>>(times: I) -> Self {
        let mut all = Self::default();
        times.into_iter().for_each(|&time| all.record(time));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_to_the_same_distribution_as_the_whole() {
        let times = (1..=3000_u64).map(|n| Duration::from_micros(n * n)).collect::<Vec<_>>();
        let whole = times.iter().collect::<Times>();
        let mut sum = Times::default();
        for part in 0..3 {
            let part = times.iter().skip(part).step_by(3).collect::<Times>();
            sum.add(&part.histogram().unwrap());
        }
        assert_eq!((sum.histogram(), sum.latency()), (whole.histogram(), whole.latency()));
        assert_eq!(whole.histogram().unwrap().buckets.iter().map(|bucket| bucket.1).sum::<u64>(), 3000);
        assert_eq!(Times::default().histogram(), None);
    }
}

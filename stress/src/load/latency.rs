//! How are times summed up? As percentiles.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::report::Latency;

/// Times, in microseconds to three significant digits.
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        // 3 is one of the numbers of digits that there may be.
        Self(Histogram::new(3).unwrap_or_else(|error| unreachable!("{error}")))
    }
}

impl Times {
    /// Adds a time.
    pub fn record(&mut self, time: Duration) {
        let _ = self.0.record(time.as_micros().try_into().unwrap_or(u64::MAX).max(1));
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

/// The percentiles of some times. None where there are no times.
pub fn latency<'t>(times: impl IntoIterator<Item = &'t Duration>) -> Option<Latency> {
    let mut all = Times::default();
    times.into_iter().for_each(|&time| all.record(time));
    all.latency()
}

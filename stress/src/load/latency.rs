//! How are times summed up? As percentiles.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::report::Latency;

/// The percentiles of some times. None where there are no times.
pub fn latency<'t>(times: impl IntoIterator<Item = &'t Duration>) -> Option<Latency> {
    // Microseconds, to three significant digits.
    let mut histogram = Histogram::<u64>::new(3).ok()?;
    for time in times {
        let _ = histogram.record(time.as_micros().try_into().unwrap_or(u64::MAX).max(1));
    }
    let ms = |micros: u64| micros as f64 / 1000.0;
    (!histogram.is_empty()).then(|| Latency {
        p50_ms: ms(histogram.value_at_quantile(0.50)),
        p95_ms: ms(histogram.value_at_quantile(0.95)),
        p99_ms: ms(histogram.value_at_quantile(0.99)),
        max_ms: ms(histogram.max()),
    })
}

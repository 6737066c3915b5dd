//! How much of what the targets draw reaches the clients, and how late?
//!
//! Each frame that an embedded target draws has a mark: an area of one colour, which says when the frame was drawn. guacd sends
//! an area of one colour as such, and never as an image, so that a client reads the mark without decoding anything.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::latency::Times;
use crate::values::Activity;

/// The bits of the colour that say when the frame was drawn, in milliseconds. They begin anew after 17 minutes.
const TIME: u32 = 0x000f_ffff;

/// The other bits of it, which tell a mark from other areas of one colour.
const TAG: u32 = 0x00a0_0000;

/// With a larger difference, a colour is not a mark.
const MAX_LAG: Duration = Duration::from_secs(120);

/// What is measured of all sessions together, from [`Self::begin`] to [`Self::end`].
pub struct Meter {
    activity: Activity,
    started: Instant,
    drawn: AtomicU64,
    bytes: AtomicU64,
    counters: Mutex<Vec<Weak<Counter>>>,
    measured: Mutex<Option<Measured>>,
}

/// How many frames one session has received since the measurement began.
#[derive(Default)]
pub struct Counter(AtomicU64);

struct Measured {
    since: Instant,
    drawn_before: u64,
    bytes_before: u64,
    lags: Times,
}

/// What was measured.
pub struct Measurement {
    /// For how long.
    pub time: Duration,
    /// The frames that the targets drew.
    pub drawn: u64,
    /// The frames that clients received, of those that were drawn meanwhile.
    pub received: u64,
    /// The same, of the session that received fewest.
    pub fewest: u64,
    /// From the drawing of a frame until its client had received the whole of it.
    pub lags: Times,
    /// The bytes that clients received.
    pub bytes: u64,
}

impl Default for Meter {
    fn default() -> Self {
        Self::new(Activity::Idle)
    }
}

impl Meter {
    /// A meter of this activity of the targets.
    pub fn new(activity: Activity) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            activity,
            started: Instant::now(),
            drawn: zero(),
            bytes: zero(),
            counters: Mutex::default(),
            measured: Mutex::default(),
        }
    }

    /// What the targets draw.
    pub fn activity(&self) -> Activity {
        self.activity
    }

    /// Counts a frame that a target draws now, and returns the colour of its mark, 0xRRGGBB.
    pub fn draw(&self) -> u32 {
        self.drawn.fetch_add(1, Relaxed);
        TAG | (self.started.elapsed().as_millis() as u32 & TIME)
    }

    /// A counter for a session. It counts as long as the session keeps it.
    pub fn counter(&self) -> Arc<Counter> {
        let counter = Arc::default();
        lock(&self.counters).push(Arc::downgrade(&counter));
        counter
    }

    /// Counts a frame that a session's client has received the whole of, by the colour of its mark.
    pub fn receive_frame(&self, mark: u32, counter: &Counter) {
        let mut measured = lock(&self.measured);
        let Some((measured, lag)) = measured.as_mut().zip(self.lag(mark)) else { return };
        // What was drawn before counts neither as drawn nor as received. A lag is up to a millisecond too long.
        if lag <= measured.since.elapsed() + Duration::from_millis(1) {
            measured.lags.record(lag);
            counter.0.fetch_add(1, Relaxed);
        }
    }

    /// Counts bytes that a client has received.
    pub fn receive_bytes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// How long ago a frame was drawn. None, if the colour is no mark.
    fn lag(&self, mark: u32) -> Option<Duration> {
        let now = self.started.elapsed();
        let millis = (now.as_millis() as u32).wrapping_sub(mark) & TIME;
        // A mark has whole milliseconds.
        let micros = u64::from(now.subsec_micros()) % 1000;
        let lag = Duration::from_millis(millis.into()) + Duration::from_micros(micros);
        (mark & !TIME == TAG && lag < MAX_LAG).then_some(lag)
    }

    /// Begins to measure.
    pub fn begin(&self) {
        let mut measured = lock(&self.measured);
        lock(&self.counters).retain(|counter| match counter.upgrade() {
            Some(counter) => {
                counter.0.store(0, Relaxed);
                true
            }
            None => false,
        });
        *measured = Some(Measured {
            since: Instant::now(),
            drawn_before: self.drawn.load(Relaxed),
            bytes_before: self.bytes.load(Relaxed),
            lags: Times::default(),
        });
    }

    /// Ends it, and returns what was measured. None, if it was not begun.
    pub fn end(&self) -> Option<Measurement> {
        let measured = lock(&self.measured).take()?;
        let counters = lock(&self.counters);
        let counts = counters.iter().filter_map(Weak::upgrade).map(|counter| counter.0.load(Relaxed));
        Some(Measurement {
            time: measured.since.elapsed(),
            drawn: self.drawn.load(Relaxed) - measured.drawn_before,
            received: measured.lags.count(),
            fewest: counts.min().unwrap_or(0),
            lags: measured.lags,
            bytes: self.bytes.load(Relaxed) - measured.bytes_before,
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_are_drawn_and_received_meanwhile_count() {
        let meter = Meter::default();
        let (some, none) = (meter.counter(), meter.counter());
        drop(meter.counter());
        let before = meter.draw();
        meter.receive_frame(before, &some);
        meter.receive_bytes(5);
        assert!(meter.end().is_none());
        // A mark has whole milliseconds.
        std::thread::sleep(Duration::from_millis(2));
        meter.begin();
        let marks = [meter.draw(), meter.draw(), meter.draw()];
        std::thread::sleep(Duration::from_millis(20));
        meter.receive_frame(before, &some);
        meter.receive_frame(marks[0], &some);
        meter.receive_frame(marks[2], &some);
        meter.receive_bytes(7);
        let measured = meter.end().unwrap();
        assert_eq!((measured.drawn, measured.received, measured.fewest, measured.bytes), (3, 2, 0, 7));
        let lag = measured.lags.latency().unwrap();
        assert!(lag.p50_ms >= 19.0 && lag.max_ms < 20_000.0, "{lag:?}");
        drop(none);
        meter.begin();
        assert_eq!(meter.end().unwrap().fewest, 0, "counters begin anew");
        assert!(meter.end().is_none());
    }

    #[test]
    fn no_other_colour_is_a_mark() {
        let meter = Meter { started: Instant::now() - Duration::from_secs(600), ..Meter::default() };
        for colour in [0, 0x00ff_ffff, 0x0080_8080, TAG, meter.draw() ^ 0x0010_0000] {
            assert_eq!(meter.lag(colour), None, "{colour:06x}");
        }
        assert!(meter.lag(meter.draw()).unwrap() < MAX_LAG);
    }

    #[test]
    fn time_may_begin_anew() {
        let started = Instant::now() - Duration::from_millis(u64::from(TIME) + 1000);
        let meter = Meter { started, ..Meter::default() };
        let before = TAG | (TIME - 500);
        let lag = meter.lag(before).unwrap();
        assert!((1400..20_000).contains(&lag.as_millis()), "{lag:?}");
    }
}

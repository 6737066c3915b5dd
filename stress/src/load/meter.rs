//! How much of what the targets draw reaches the clients, and how late?
//!
//! Each frame that an embedded target draws has a mark: an area of one colour, which says when the frame was drawn. guacd sends
//! an area of one colour as such, and never as an image, so that a client reads the mark without decoding anything.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::latency;
use crate::{report::Latency, values::Activity};

/// The bits of the colour that say when the frame was drawn, in milliseconds. They begin anew after 17 minutes.
const TIME: u32 = 0x000f_ffff;

/// The other bits of it, which tell a mark from other areas of one colour.
const TAG: u32 = 0x00a0_0000;

/// A frame that is later than this is none of ours.
const MAX_LAG: Duration = Duration::from_secs(120);

/// What is measured of all sessions together, from [`Self::begin`] to [`Self::end`].
pub struct Meter {
    activity: Activity,
    started: Instant,
    drawn: AtomicU64,
    bytes: AtomicU64,
    measured: Mutex<Option<Measured>>,
}

struct Measured {
    since: Instant,
    drawn_before: u64,
    bytes_before: u64,
    lags: Vec<Duration>,
}

/// What was measured.
pub struct Shown {
    /// For how long.
    pub time: Duration,
    /// The frames that the targets drew.
    pub drawn: u64,
    /// The frames that clients received.
    pub reached: u64,
    /// From the drawing of a frame until its client had received the whole of it.
    pub lag: Option<Latency>,
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
        Self { activity, started: Instant::now(), drawn: zero(), bytes: zero(), measured: Mutex::new(None) }
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

    /// Counts a frame that a client has received the whole of, by the colour of its mark.
    pub fn show(&self, mark: u32) {
        if let (Some(measured), Some(lag)) = (&mut *self.measured(), self.lag(mark)) {
            measured.lags.push(lag);
        }
    }

    /// Counts bytes that a client has received.
    pub fn receive(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// How long ago a frame was drawn. None, if the colour is no mark.
    fn lag(&self, mark: u32) -> Option<Duration> {
        let now = self.started.elapsed();
        let millis = (now.as_millis() as u32).wrapping_sub(mark) & TIME;
        // A mark has whole milliseconds.
        let lag = Duration::from_millis(millis.into())
            + Duration::from_micros(u64::from(now.subsec_micros()) % 1000);
        (mark & !TIME == TAG && lag < MAX_LAG).then_some(lag)
    }

    /// Begins to measure.
    pub fn begin(&self) {
        *self.measured() = Some(Measured {
            since: Instant::now(),
            drawn_before: self.drawn.load(Relaxed),
            bytes_before: self.bytes.load(Relaxed),
            lags: Vec::new(),
        });
    }

    /// Ends it, and returns what was measured. None, if it was not begun.
    pub fn end(&self) -> Option<Shown> {
        let measured = self.measured().take()?;
        Some(Shown {
            time: measured.since.elapsed(),
            drawn: self.drawn.load(Relaxed) - measured.drawn_before,
            reached: measured.lags.len() as u64,
            lag: latency::latency(&measured.lags),
            bytes: self.bytes.load(Relaxed) - measured.bytes_before,
        })
    }

    fn measured(&self) -> MutexGuard<'_, Option<Measured>> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_count_once_each_while_they_are_measured() {
        let meter = Meter::default();
        meter.show(meter.draw());
        meter.receive(5);
        assert!(meter.end().is_none());
        meter.begin();
        let marks = [meter.draw(), meter.draw(), meter.draw()];
        std::thread::sleep(Duration::from_millis(20));
        meter.show(marks[0]);
        meter.show(marks[2]);
        meter.receive(7);
        let shown = meter.end().unwrap();
        assert_eq!((shown.drawn, shown.reached, shown.bytes), (3, 2, 7));
        let lag = shown.lag.unwrap();
        assert!(lag.p50_ms >= 20.0 && lag.max_ms < 20_000.0, "{lag:?}");
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
        let meter = Meter {
            started: Instant::now() - Duration::from_millis(u64::from(TIME) + 1000),
            ..Meter::default()
        };
        let before = TAG | (TIME - 500);
        let lag = meter.lag(before).unwrap();
        assert!((1400..20_000).contains(&lag.as_millis()), "{lag:?}");
    }
}

//! What do the embedded servers draw while a session is open? Frames that are made once and shown in turn in all sessions, each
//! with a mark of its time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::{load::meter::Meter, values::Activity};

/// Where a desktop draws, and how large that is for [`Activity::Scroll`].
const DESKTOP: [u16; 2] = [128, 192];
const TEXT: [u16; 2] = [640, 384];

/// The size of a video on a desktop, and how many frames there are before it begins again.
const VIDEO: [u16; 2] = [320, 240];
const VIDEO_FRAMES: u16 = 20;

/// The size of a character on a desktop.
const CHARACTER: [u16; 2] = [8, 16];

/// How many lines there are before the text begins again: more than are visible, so that each line that comes is new.
const LINES: u16 = 40;

/// A part of a desktop that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Its left and its upper edge.
    pub at: [u16; 2],
    /// Its width and its height.
    pub size: [u16; 2],
    /// Its pixels from the upper left corner: blue, green, red and an unused byte of each.
    pub pixels: Vec<u8>,
}

/// What is drawn, in the protocol of one server.
pub struct Film {
    frames: Vec<Arc<[u8]>>,
    /// Makes the mark of a colour, 0xRRGGBB.
    mark: fn(u32) -> Vec<u8>,
    interval: Duration,
    meter: Arc<Meter>,
    players: AtomicU64,
}

/// A frame in the protocol of a server.
pub struct Frame {
    /// What changes.
    pub content: Arc<[u8]>,
    /// The mark, to be drawn after it.
    pub mark: Vec<u8>,
}

impl Film {
    /// The film of a desktop. `encode` writes a picture in the server's protocol, and `mark` a mark of the colour 0xRRGGBB.
    /// None, if nothing is drawn.
    pub fn of_desktop(
        meter: &Arc<Meter>,
        encode: impl Fn(&Picture) -> Vec<u8>,
        mark: fn(u32) -> Vec<u8>,
    ) -> Option<Arc<Self>> {
        Self::new(meter, pictures(meter.activity()).iter().map(encode).collect(), mark)
    }

    /// The film of a terminal of at least 24 rows with 78 columns. None, if nothing is drawn.
    pub fn of_terminal(meter: &Arc<Meter>) -> Option<Arc<Self>> {
        // In the first row, from the tenth column on, and in the colour as background.
        let mark = |colour: u32| {
            let [_, red, green, blue] = colour.to_be_bytes();
            format!("\x1b[1;10H\x1b[48;2;{red};{green};{blue}m{:8}\x1b[0m", "").into_bytes()
        };
        Self::new(meter, texts(meter.activity()), mark)
    }

    fn new(meter: &Arc<Meter>, frames: Vec<Vec<u8>>, mark: fn(u32) -> Vec<u8>) -> Option<Arc<Self>> {
        let interval = Duration::from_secs(1).checked_div(meter.activity().frames_per_second())?;
        let frames = frames.into_iter().map(Arc::from).collect();
        Some(Arc::new(Self { frames, mark, interval, meter: Arc::clone(meter), players: AtomicU64::new(0) }))
    }
}

/// The film of one session.
pub struct Player {
    film: Arc<Film>,
    turns: Interval,
    next: usize,
}

impl Player {
    /// Begins to show a film.
    pub fn new(film: &Arc<Film>) -> Self {
        // Sessions that begin at once need not draw at once; but each run is like the last.
        let seed = film.players.fetch_add(1, Relaxed);
        let wait = film.interval.mul_f64(fastrand::Rng::with_seed(seed).f64());
        let mut turns = interval_at(Instant::now() + wait, film.interval);
        // A session that could not be drawn in time has missed its turn, as a screen misses frames.
        turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Self { film: Arc::clone(film), turns, next: 0 }
    }

    /// Waits for the turn of the next frame, and returns it. It may be dropped at any time.
    pub async fn frame(&mut self) -> Frame {
        self.turns.tick().await;
        let content = Arc::clone(&self.film.frames[self.next]);
        self.next = (self.next + 1) % self.film.frames.len();
        Frame { content, mark: (self.film.mark)(self.film.meter.draw()) }
    }
}

/// The next frame of a session's film. Waits for ever, if there is none.
pub async fn next_frame(player: &mut Option<Player>) -> Frame {
    match player {
        Some(player) => player.frame().await,
        None => std::future::pending().await,
    }
}

/// The frames of a desktop.
fn pictures(activity: Activity) -> Vec<Picture> {
    match activity {
        Activity::Idle => Vec::new(),
        Activity::Type => {
            let text = Text::new();
            let [width, height] = CHARACTER;
            let columns = TEXT[0] / width;
            let character = |column| {
                let left = column * width;
                let at = [DESKTOP[0] + left, DESKTOP[1]];
                Picture { at, size: CHARACTER, pixels: text.part(left, 0, [width, height]) }
            };
            (0..columns).map(character).collect()
        }
        Activity::Scroll => {
            let text = Text::new();
            let page =
                |line| Picture { at: DESKTOP, size: TEXT, pixels: text.part(0, line * CHARACTER[1], TEXT) };
            (0..LINES).map(page).collect()
        }
        Activity::Video => {
            let mut random = fastrand::Rng::with_seed(1);
            (0..VIDEO_FRAMES).map(|frame| video(frame, &mut random)).collect()
        }
    }
}

/// Lines of characters that nobody can read, dark on white, each as often on a line as letters are in a text.
struct Text {
    pixels: Vec<u8>,
}

impl Text {
    const ROWS: usize = (LINES * CHARACTER[1]) as usize;
    const COLUMNS: usize = TEXT[0] as usize;

    fn new() -> Self {
        let mut random = fastrand::Rng::with_seed(1);
        let [width, height] = CHARACTER.map(usize::from);
        // The shades of a character's pixels, as far as it has ink: fonts are smoothed.
        let mut glyph = || {
            let shade = |random: &mut fastrand::Rng| {
                [0x20, 0x20, 0x70, 0xb0, 0xff, 0xff, 0xff, 0xff][random.usize(..8)]
            };
            (0..(width - 1) * (height - 5)).map(|_| shade(&mut random)).collect::<Vec<u8>>()
        };
        let glyphs = (0..64).map(|_| glyph()).collect::<Vec<_>>();
        let mut pixels = vec![0xff; Self::ROWS * Self::COLUMNS * 4];
        for line in 0..usize::from(LINES) {
            for column in 0..random.usize(20..=Self::COLUMNS / width) {
                // One in six is a space.
                let Some(glyph) = glyphs.get(random.usize(..76)) else { continue };
                for (row, shades) in glyph.chunks(width - 1).enumerate() {
                    let start = ((line * height + row + 2) * Self::COLUMNS + column * width) * 4;
                    let ink = &mut pixels[start..start + shades.len() * 4];
                    ink.chunks_mut(4).zip(shades).for_each(|(pixel, shade)| pixel[..3].fill(*shade));
                }
            }
        }
        Self { pixels }
    }

    /// A part of it. Below its end, it begins anew.
    fn part(&self, left: u16, top: u16, [width, height]: [u16; 2]) -> Vec<u8> {
        let rows = (top..top + height).map(|row| usize::from(row) % Self::ROWS);
        let row = |row: usize| {
            let start = (row * Self::COLUMNS + usize::from(left)) * 4;
            &self.pixels[start..start + usize::from(width) * 4]
        };
        rows.map(row).collect::<Vec<_>>().concat()
    }
}

/// A picture like one of a camera: large shapes that move, with some noise.
fn video(frame: u16, random: &mut fastrand::Rng) -> Picture {
    let turn = f32::from(frame) / f32::from(VIDEO_FRAMES) * std::f32::consts::TAU;
    let mut pixels = Vec::with_capacity(usize::from(VIDEO[0]) * usize::from(VIDEO[1]) * 4);
    for y in 0..VIDEO[1] {
        for x in 0..VIDEO[0] {
            let (x, y) = (f32::from(x) / 40.0, f32::from(y) / 40.0);
            let shapes =
                [(x + turn).sin() * y.cos(), (x * 0.7 - turn).cos() * (y + turn).sin(), (x + y + turn).sin()];
            let channel = |shape: f32| (127.0 + shape * 100.0 + random.f32() * 16.0) as u8;
            let [blue, green, red] = shapes.map(channel);
            pixels.extend([blue, green, red, 0]);
        }
    }
    Picture { at: DESKTOP, size: VIDEO, pixels }
}

/// The frames of a terminal: control sequences and text, in rows 6 to 24.
fn texts(activity: Activity) -> Vec<Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut letter = move || char::from(random.u8(b'a'..=b'z'));
    match activity {
        Activity::Idle => Vec::new(),
        Activity::Type => {
            (1..=78).map(|column| format!("\x1b[6;{column}H{}", letter()).into_bytes()).collect()
        }
        Activity::Scroll => {
            let mut line = || (0..78).map(|_| letter()).collect::<String>();
            (0..LINES).map(|_| format!("\x1b[6;24r\x1b[24;1H\n{}", line()).into_bytes()).collect()
        }
        Activity::Video => {
            let row = |frame: u16, row: u16| {
                let cells = (0..40).map(|column| {
                    format!("\x1b[38;5;{}m{}", 16 + (frame * 7 + row * 3 + column) % 216, letter())
                });
                format!("\x1b[{};1H{}\x1b[0m", 6 + row, cells.collect::<String>())
            };
            let mut row = row;
            (0..VIDEO_FRAMES)
                .map(|frame| (0..15).map(|at| row(frame, at)).collect::<String>().into_bytes())
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const ALL: [Activity; 3] = [Activity::Type, Activity::Scroll, Activity::Video];

    #[test]
    fn no_frame_of_a_desktop_is_like_the_one_before() {
        for activity in ALL {
            let pictures = pictures(activity);
            for pair in pictures.windows(2) {
                assert_ne!(pair[0], pair[1], "{activity:?}");
            }
            for Picture { size, pixels, .. } in pictures {
                assert_eq!(pixels.len(), usize::from(size[0]) * usize::from(size[1]) * 4);
            }
        }
        assert!(pictures(Activity::Idle).is_empty() && texts(Activity::Idle).is_empty());
    }

    #[test]
    fn text_scrolls_by_a_line_and_each_line_that_comes_is_new() {
        let pictures = pictures(Activity::Scroll);
        let line = usize::from(TEXT[0]) * usize::from(CHARACTER[1]) * 4;
        for pair in pictures.windows(2) {
            assert!(pair[0].pixels[line..] == pair[1].pixels[..pair[1].pixels.len() - line]);
            let lines = pair[0].pixels.chunks(line).collect::<HashSet<_>>();
            assert!(!lines.contains(&pair[1].pixels[pair[1].pixels.len() - line..]));
        }
    }

    #[test]
    fn each_frame_of_a_terminal_is_another() {
        for activity in ALL {
            let texts = texts(activity);
            assert_eq!(texts.iter().collect::<HashSet<_>>().len(), texts.len(), "{activity:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn frames_have_their_turns_and_marks() {
        let meter = Arc::new(Meter::new(Activity::Video));
        let film = Film::of_desktop(&meter, |_| vec![7], |mark| mark.to_be_bytes().into()).unwrap();
        let mut player = Player::new(&film);
        let counter = meter.counter();
        meter.begin();
        player.frame().await;
        let begun = Instant::now();
        for _ in 0..40 {
            let Frame { content, mark } = player.frame().await;
            assert_eq!(&content[..], [7]);
            meter.receive_frame(u32::from_be_bytes(mark.try_into().unwrap()), &counter);
        }
        assert_eq!(begun.elapsed().as_millis(), 2000);
        assert_eq!(meter.end().unwrap().drawn, 41);
    }
}

//! What do odd instructions do to a session that is up? Each session logs in to its target, is sent a hundred inputs, and has to
//! answer at its end; then the next one is opened. The inputs follow from a seed and their number alone.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant as StdInstant},
};

use anyhow::Result;
use base64::{Engine, prelude::BASE64_STANDARD};
use fastrand::Rng;
use serde::{Deserialize, Serialize};
use tokio::{
    io::Interest,
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    load::{
        crowd::{Crowd, TICK},
        session::{self, Setup},
    },
    report::{Fuzz, FuzzKind, progress::Step},
    wire::codec::{self, Decoder},
};

/// How many sessions are sent inputs at the same time.
const PARALLEL: u32 = 6;

/// How many inputs a session gets.
const INPUTS_PER_SESSION: u32 = 100;

/// How long guacd may take to read an input, and to answer at the end of a session.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait after the last input for what it does.
const LINGER: Duration = Duration::from_millis(50);

/// A session is suspected if it was used at most this long before the damage.
const SUSPECT: Duration = Duration::from_secs(2);

/// Maximum number of sessions that are saved.
const MAX_SAVED: usize = 8;

/// A stream that does not exist: guacd answers to its end.
const NO_STREAM: &str = "4711";

/// The inputs of one session, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    inputs: Vec<Vec<u8>>,
}

/// A script as it is saved.
#[derive(Serialize, Deserialize)]
struct Saved {
    /// The inputs in base64.
    session: Vec<String>,
    /// For people.
    #[serde(default)]
    text: Vec<String>,
}

impl Script {
    /// The inputs with these numbers.
    fn generate(seed: u64, numbers: std::ops::Range<u32>) -> Self {
        Self { inputs: numbers.map(|number| input(seed, number)).collect() }
    }

    /// Reads a script that was saved. None if this is none.
    pub fn parse(json: &[u8]) -> Option<Self> {
        let saved: Saved = serde_json::from_slice(json).ok()?;
        let inputs = saved.session.iter().map(|input| BASE64_STANDARD.decode(input));
        Some(Self { inputs: inputs.collect::<Result<_, _>>().ok()? })
    }

    fn save(&self, dir: &Path, name: &str) -> Result<PathBuf> {
        let saved = Saved {
            session: self.inputs.iter().map(|input| BASE64_STANDARD.encode(input)).collect(),
            text: self.inputs.iter().map(|input| String::from_utf8_lossy(input).into_owned()).collect(),
        };
        let file = dir.join(name);
        fs_err::write(&file, serde_json::to_vec_pretty(&saved)?)?;
        Ok(file)
    }
}

/// Which inputs are sent.
pub enum Scripts {
    /// So many inputs, generated from a seed.
    Generated {
        /// The seed.
        seed: u64,
        /// How many.
        count: u32,
    },
    /// Those of one session, which an earlier run has saved.
    Replayed(Script),
}

impl Scripts {
    fn sessions(&self) -> u32 {
        match self {
            Self::Generated { count, .. } => count.div_ceil(INPUTS_PER_SESSION),
            Self::Replayed(_) => 1,
        }
    }

    fn script(&self, session: u32) -> Script {
        match self {
            Self::Generated { seed, count } => {
                let first = session * INPUTS_PER_SESSION;
                Script::generate(*seed, first..(first + INPUTS_PER_SESSION).min(*count))
            }
            Self::Replayed(script) => script.clone(),
        }
    }

    fn name(&self, session: u32) -> String {
        match self {
            Self::Generated { seed, .. } => format!("fuzz-session-{seed}-{session}.json"),
            Self::Replayed(_) => "fuzz-session-replayed.json".into(),
        }
    }
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It answered after its last input.
    Proven,
    /// guacd ended it with an error or `disconnect`.
    Told,
    /// Its connection ended without a word.
    Closed,
    /// It did not come up.
    NotOpened,
    /// guacd neither reads nor answers.
    Silent,
}

/// All sessions of a run, and what came of them so far.
struct Campaign {
    setup: Arc<Setup>,
    scripts: Scripts,
    next: AtomicU32,
    sent: AtomicU32,
    ends: [AtomicU32; 5],
    /// The latest sessions, and when they were last used. None while they are in use.
    recent: Mutex<VecDeque<(u32, Option<StdInstant>)>>,
    silent: Mutex<Vec<u32>>,
}

impl Campaign {
    async fn work(self: Arc<Self>) {
        loop {
            let session = self.next.fetch_add(1, Ordering::Relaxed);
            if session >= self.scripts.sessions() {
                return;
            }
            {
                let mut recent = self.recent();
                recent.retain(|(_, used)| used.is_none_or(|used| used.elapsed() < SUSPECT));
                recent.push_back((session, None));
            }
            let inputs = self.scripts.script(session).inputs;
            let mut left = &inputs[..];
            // An input may rightly end its session. What follows it is sent to another one.
            while !left.is_empty() {
                let (sent, end) = self.play(session, left).await;
                self.sent.fetch_add(sent, Ordering::Relaxed);
                self.ends[end as usize].fetch_add(1, Ordering::Relaxed);
                if end == End::Silent {
                    self.silent.lock().unwrap_or_else(PoisonError::into_inner).push(session);
                }
                if end == End::NotOpened {
                    break;
                }
                left = &left[sent as usize..];
            }
            for entry in self.recent().iter_mut().filter(|(recent, _)| *recent == session) {
                entry.1 = Some(StdInstant::now());
            }
        }
    }

    /// Opens a session and sends it inputs, until it ends. Returns how many were sent.
    async fn play(&self, index: u32, inputs: &[Vec<u8>]) -> (u32, End) {
        let Ok((stream, decoder, out)) = session::open(&self.setup, index as usize).await else {
            return (0, End::NotOpened);
        };
        let mut live = Live { stream, decoder, out, is_answered: false };
        for (sent, input) in (1..).zip(inputs) {
            live.out.extend_from_slice(input);
            if let Err(end) = live.send().await {
                return (sent, end);
            }
        }
        let sent = inputs.len() as u32;
        codec::encode(&mut live.out, &["end", NO_STREAM]);
        let end = match live.prove().await {
            Ok(()) => End::Proven,
            Err(end) => end,
        };
        (sent, end)
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, VecDeque<(u32, Option<StdInstant>)>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, end: End) -> u32 {
        self.ends[end as usize].load(Ordering::Relaxed)
    }
}

/// A session that is up.
struct Live {
    stream: TcpStream,
    decoder: Decoder,
    /// What is still to be sent.
    out: Vec<u8>,
    /// Whether guacd has answered to the end of a stream that does not exist.
    is_answered: bool,
}

impl Live {
    /// Sends what is there, and takes in what comes meanwhile.
    async fn send(&mut self) -> Result<(), End> {
        let deadline = Instant::now() + PATIENCE;
        while !self.out.is_empty() {
            self.step(deadline).await?;
            if Instant::now() >= deadline {
                return Err(End::Silent);
            }
        }
        Ok(())
    }

    /// Waits for the answer, and a moment longer.
    async fn prove(&mut self) -> Result<(), End> {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_answered {
            self.step(deadline).await?;
            if Instant::now() >= deadline {
                return Err(End::Silent);
            }
        }
        let until = Instant::now() + LINGER;
        while Instant::now() < until {
            self.step(until).await?;
        }
        Ok(())
    }

    /// Sends and receives once, or waits until then.
    async fn step(&mut self, until: Instant) -> Result<(), End> {
        while let Some(instruction) = self.decoder.instruction().map_err(|_| End::Closed)? {
            match instruction.opcode() {
                "sync" => codec::encode(&mut self.out, &["sync", instruction.arg(0)]),
                "ack" => self.is_answered |= instruction.arg(0) == NO_STREAM,
                "error" | "disconnect" => return Err(End::Told),
                _ => {}
            }
        }
        let interest =
            if self.out.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        let ready = tokio::select! {
            () = sleep_until(until) => return Ok(()),
            ready = self.stream.ready(interest) => ready.map_err(|_| End::Closed)?,
        };
        if ready.is_readable() {
            let mut buffer = [0; 16 * 1024];
            match self.stream.try_read(&mut buffer) {
                Ok(0) => return Err(End::Closed),
                Ok(length) => self.decoder.push(&buffer[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(End::Closed),
            }
        }
        if ready.is_writable() {
            match self.stream.try_write(&self.out) {
                Ok(sent) => drop(self.out.drain(..sent)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(End::Closed),
            }
        }
        Ok(())
    }
}

/// Sends all inputs while sessions are open, and saves in `logs` those of the sessions that did damage.
///
/// # Errors
///
/// When they cannot be saved.
pub async fn run(crowd: &mut Crowd<'_>, scripts: Scripts, logs: &Path) -> Result<Fuzz> {
    let campaign = Arc::new(Campaign {
        setup: Arc::clone(&crowd.setup),
        scripts,
        next: AtomicU32::new(0),
        sent: AtomicU32::new(0),
        ends: Default::default(),
        recent: Mutex::default(),
        silent: Mutex::default(),
    });
    let log = crowd.setup.log.clone();
    let crashes = || log.as_ref().map_or(0, |log| log.crashes());
    let before = crashes();

    let mut workers = JoinSet::new();
    for _ in 0..PARALLEL {
        workers.spawn(Arc::clone(&campaign).work());
    }
    let mut suspects = Vec::new();
    let mut crashes_before = before;
    let mut alive_before = crowd.alive();
    while !workers.is_empty() && crowd.died.is_none() {
        crowd.run_until(Some(Instant::now() + TICK), |crowd| crowd.died.is_some()).await;
        while workers.try_join_next().is_some() {}
        crowd.set_step(Step::Fuzz(FuzzKind::Session, campaign.sent.load(Ordering::Relaxed)));
        if crashes() > crashes_before || crowd.alive() < alive_before || crowd.died.is_some() {
            suspects.extend(campaign.recent().iter().map(|(session, _)| *session));
            (crashes_before, alive_before) = (crashes(), crowd.alive());
        }
    }
    workers.shutdown().await;
    // guacd may not have logged yet what the last inputs did.
    crowd.run_until(Some(Instant::now() + TICK), |crowd| crowd.died.is_some()).await;
    if crashes() > crashes_before {
        suspects.extend(campaign.recent().iter().map(|(session, _)| *session));
    }
    let crashed = log.as_ref().map(|_| crashes() - before);

    // Those that do damage again when they are played alone, or all if none does.
    suspects.sort_unstable();
    suspects.dedup();
    let mut guilty = Vec::new();
    for &session in suspects.iter().take(4 * MAX_SAVED) {
        if log.is_none() || crowd.died.is_some() || guilty.len() == MAX_SAVED {
            break;
        }
        let before = crashes();
        let script = campaign.scripts.script(session);
        let _ = timeout(2 * PATIENCE, campaign.play(session, &script.inputs)).await;
        crowd.run_until(Some(Instant::now() + TICK), |crowd| crowd.died.is_some()).await;
        if crashes() > before {
            guilty.push(session);
        }
    }
    if guilty.is_empty() {
        guilty = suspects;
    }
    let silent = campaign.silent.lock().unwrap_or_else(PoisonError::into_inner).clone();
    guilty.extend(silent.into_iter().filter(|session| !guilty.contains(session)).collect::<Vec<_>>());
    guilty.truncate(MAX_SAVED);
    let save = |session: &u32| {
        let script = campaign.scripts.script(*session);
        Ok(script.save(logs, &campaign.scripts.name(*session))?.display().to_string())
    };
    Ok(Fuzz {
        kind: FuzzKind::Session,
        inputs: campaign.sent.load(Ordering::Relaxed),
        errors: campaign.count(End::Told),
        ready: campaign.count(End::Proven),
        closed: campaign.count(End::Closed),
        abandoned: campaign.count(End::NotOpened),
        unanswered: campaign.count(End::Silent),
        crashes: crashed,
        saved: guilty.iter().map(save).collect::<Result<_>>()?,
    })
}

/// The input of a seed and a number: one instruction, or a few that belong together.
fn input(seed: u64, number: u32) -> Vec<u8> {
    // Neighbouring seeds and numbers must not give similar inputs.
    let mut rng = Rng::with_seed(seed ^ u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut instructions = match rng.u32(0..100) {
        0..14 => vec![size(&mut rng)],
        14..32 => keys(&mut rng),
        32..52 => mouse(&mut rng),
        52..82 => stream(&mut rng),
        82..96 => vec![loose(&mut rng)],
        _ => vec![sync(&mut rng)],
    };
    if rng.u32(0..8) == 0 {
        mutate(&mut rng, &mut instructions);
    }
    let mut bytes = Vec::new();
    for instruction in &instructions {
        codec::encode(&mut bytes, &instruction.iter().map(String::as_str).collect::<Vec<_>>());
    }
    // Bytes that are no instruction rightly end a session.
    if rng.u32(0..500) == 0 {
        let at = rng.usize(0..bytes.len());
        bytes[at] = rng.u8(..);
    }
    bytes
}

fn size(rng: &mut Rng) -> Vec<String> {
    let length = |rng: &mut Rng| {
        if rng.u32(0..24) == 0 { number(rng) } else { rng.u32(1..2000).to_string() }
    };
    vec!["size".into(), length(rng), length(rng)]
}

fn keys(rng: &mut Rng) -> Vec<Vec<String>> {
    let keysym = match rng.u32(0..5) {
        0 => number(rng),
        1 => rng.u32(0xFF08..=0xFFFF).to_string(),
        2 => (0x0100_0000 + rng.u32(0..0x11_0000)).to_string(),
        _ => rng.u32(0x20..0x100).to_string(),
    };
    let key = |pressed: &str| vec!["key".into(), keysym.clone(), pressed.into()];
    match rng.u32(0..6) {
        0 => vec![key("1")],
        1 => vec![key("0")],
        2 => vec![key(&number(rng))],
        _ => vec![key("1"), key("0")],
    }
}

fn mouse(rng: &mut Rng) -> Vec<Vec<String>> {
    if rng.u32(0..8) == 0 {
        let touch = std::iter::once("touch".into()).chain((0..7).map(|_| number(rng)));
        return vec![touch.collect()];
    }
    // Clicks, drags and turns of the wheel, within the screen and without.
    let mask = if rng.u32(0..8) == 0 { number(rng) } else { (1 << rng.u32(0..5)).to_string() };
    (0..rng.usize(1..5))
        .map(|_| {
            let at = |rng: &mut Rng| {
                if rng.u32(0..6) == 0 { number(rng) } else { rng.u32(0..1200).to_string() }
            };
            let mask = if rng.bool() { mask.clone() } else { "0".into() };
            vec!["mouse".into(), at(rng), at(rng), mask]
        })
        .collect()
}

/// A stream from its beginning, and mostly to its end.
fn stream(rng: &mut Rng) -> Vec<Vec<String>> {
    let index = index(rng);
    let mimetype = pick(rng, &["text/plain", "application/octet-stream", "audio/L16;rate=44100", "x/y", ""]);
    let (open, text) = match rng.u32(0..16) {
        0..5 => (vec!["clipboard".into(), index.clone(), mimetype], text(rng)),
        5..10 => {
            let name = pick(rng, &["font-size", "font-size", "font-name", "color-scheme", "username", "x"]);
            let value = match name.as_str() {
                // Of tiny characters there are so many that to draw them takes seconds.
                "font-size" if rng.u32(0..4) > 0 => rng.u32(8..40).to_string(),
                "font-size" => number(rng),
                "font-name" => pick(rng, &["monospace", "Sans", "", "%s", "No Such Font"]),
                _ => pick(
                    rng,
                    &[
                        "gray-black",
                        "black-white",
                        "foreground: rgb:1/2/3; background: color300;",
                        ";:;:",
                        ":",
                    ],
                ),
            };
            (vec!["argv".into(), index.clone(), mimetype, name], value)
        }
        10..12 => {
            let name = pick(rng, &["STDIN", "STDIN", "stdin", ""]);
            (vec!["pipe".into(), index.clone(), mimetype, name], text(rng))
        }
        12 | 13 => (vec!["file".into(), index.clone(), mimetype, "a/../b".into()], text(rng)),
        14 => (vec!["put".into(), number(rng), index.clone(), mimetype, "/a".into()], text(rng)),
        _ => (vec!["audio".into(), index.clone(), mimetype], text(rng)),
    };
    let mut all = vec![open];
    // Cut anywhere, within characters too.
    let pieces = rng.usize(1..4);
    let size = text.len().div_ceil(pieces).max(1);
    for piece in text.as_bytes().chunks(size) {
        all.push(vec!["blob".into(), index.clone(), BASE64_STANDARD.encode(piece)]);
    }
    if rng.u32(0..5) > 0 {
        all.push(vec!["end".into(), index]);
    }
    all
}

/// An instruction about streams and objects which may not exist.
fn loose(rng: &mut Rng) -> Vec<String> {
    let index = index(rng);
    match rng.u32(0..6) {
        0 | 1 => vec!["ack".into(), index, "OK".into(), number(rng)],
        2 => vec!["blob".into(), index, pick(rng, &["", "YQ==", "====", "a", "é", "%%%%", "YWJj\u{1}"])],
        3 => vec!["end".into(), index],
        4 => vec!["get".into(), number(rng), "/".into()],
        _ => vec!["nop".into(), index],
    }
}

/// A timestamp that is not of the future, for which guacd rightly ends a session.
fn sync(rng: &mut Rng) -> Vec<String> {
    vec!["sync".into(), pick(rng, &["0", "-1", "", "x", "1", "-9223372036854775809", "1000"])]
}

fn mutate(rng: &mut Rng, all: &mut Vec<Vec<String>>) {
    let at = rng.usize(0..all.len());
    match rng.u32(0..6) {
        // Fewer arguments than there should be.
        0 | 1 => {
            let length = rng.usize(1..=all[at].len());
            all[at].truncate(length);
        }
        2 => {
            let value = number(rng);
            all[at].push(value);
        }
        3 => {
            let element = rng.usize(0..all[at].len());
            all[at][element] = number(rng);
        }
        4 => all.insert(at, all[at].clone()),
        _ => all.truncate(at + 1),
    }
}

/// Numbers at the limits of what there is, and what is none.
fn number(rng: &mut Rng) -> String {
    const NUMBERS: &[&str] = &[
        "0",
        "1",
        "-1",
        "2",
        "63",
        "64",
        "127",
        "128",
        "255",
        "256",
        "1023",
        "1024",
        "1025",
        "4096",
        "8191",
        "8192",
        "32767",
        "32768",
        "65535",
        "65536",
        "16777216",
        "2147483647",
        "2147483648",
        "-2147483648",
        "4294967295",
        "4294967296",
        "9223372036854775807",
        "-9223372036854775808",
        "99999999999999999999",
        "1e9",
        "NaN",
        "inf",
        "0.5",
        "",
        " 7",
        "+7",
        "0x10",
        "-",
        "é",
    ];
    match rng.u32(0..4) {
        0 => rng.i32(-100..10_000).to_string(),
        _ => pick(rng, NUMBERS),
    }
}

/// The index of a stream, mostly of one that can be.
fn index(rng: &mut Rng) -> String {
    match rng.u32(0..10) {
        0 => number(rng),
        1 => rng.u32(0..70).to_string(),
        _ => rng.u32(0..4).to_string(),
    }
}

/// Text of up to what a blob can have, with characters of every length.
fn text(rng: &mut Rng) -> String {
    let length = if rng.u32(0..10) == 0 { rng.usize(0..1500) } else { rng.usize(0..20) };
    let character = |_| match rng.u32(0..10) {
        0 => rng.char(..),
        1 => pick(rng, &["\r", "\n", "\t", "\u{1b}", "\0"]).chars().next().unwrap_or(' '),
        _ => rng.char(' '..='~'),
    };
    (0..length).map(character).collect()
}

fn pick(rng: &mut Rng, values: &[&str]) -> String {
    values[rng.usize(0..values.len())].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn an_input_follows_from_its_seed_and_number() {
        assert_eq!(input(7, 3), input(7, 3));
        let inputs = (0..1000).map(|number| input(7, number)).collect::<BTreeSet<_>>();
        assert!(inputs.len() > 900, "only {} differ", inputs.len());
    }

    #[test]
    fn a_script_is_read_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let script = Script::generate(1, 0..200);
        let file = script.save(dir.path(), "script.json").unwrap();
        assert_eq!(Script::parse(&std::fs::read(file).unwrap()), Some(script));
        assert_eq!(Script::parse(br#"{"pieces": [], "ending": "close"}"#), None);
    }

    #[test]
    fn inputs_have_every_instruction_and_few_are_malformed() {
        let mut opcodes = BTreeSet::new();
        let mut malformed = 0;
        for number in 0..20_000 {
            let mut decoder = Decoder::default();
            decoder.push(&input(2, number));
            loop {
                match decoder.instruction() {
                    Ok(Some(instruction)) => drop(opcodes.insert(instruction.opcode().to_owned())),
                    Ok(None) => break,
                    Err(_) => {
                        malformed += 1;
                        break;
                    }
                }
            }
        }
        for opcode in [
            "size",
            "key",
            "mouse",
            "touch",
            "clipboard",
            "argv",
            "put",
            "get",
            "ack",
            "blob",
            "end",
            "pipe",
            "file",
            "audio",
            "sync",
            "nop",
        ] {
            assert!(opcodes.contains(opcode), "no {opcode}");
        }
        assert!((1..200).contains(&malformed), "{malformed} of 20000 are malformed");
    }
}

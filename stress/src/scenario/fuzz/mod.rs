//! What does guacd make of handshakes that are not as they should be? Each input follows from a seed and its number alone, so
//! that it can be had again; and those after which something was wrong are saved.
//!
//! No input has as many arguments to `connect` as any protocol wants (28 at least), however it is mutated: so guacd never
//! connects to anything because of one.

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant as StdInstant},
};

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use fastrand::Rng;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    guacd::log::LogBook,
    guacd::sample,
    load::crowd::{Crowd, Step, TICK},
    program::Preflight,
    report::{self, Fuzz},
    wire::codec::{MOST_CHARS, MOST_ELEMENTS},
};

/// How many inputs are sent at the same time.
const PARALLEL: usize = 64;

/// guacd may have as many threads more than before, of connections whose clients have left already. What waits behind them
/// would not be ended in time, be it in order or not.
const MOST_WAITING: u32 = 256;

/// How often a worker looks whether it may go on.
const PAUSE: Duration = Duration::from_millis(20);

/// How long guacd may take to accept a connection, and to read from it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long it may take to end one. It gives up a handshake after 15 s without a word, and stock 1.6.0 waits that long for
/// a client too that has said that there is no more.
const END: Duration = Duration::from_secs(20);

/// An input may have begun so long ago and be the cause of what is seen now: what does harm does it at once.
const SUSPECT: Duration = Duration::from_secs(2);

/// A suspect that is sent again, alone, gets so long to do it again.
const AGAIN: Duration = Duration::from_millis(300);

/// No more inputs are suspected than this, and no more saved.
const MOST_SUSPECTS: usize = 128;
const MOST_SAVED: usize = 8;

/// What is sent over one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// What each is sent by itself, with a moment between one and the next.
    pub pieces: Vec<Vec<u8>>,
    /// What comes after.
    pub ending: Ending,
}

/// What the client does when it has sent all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It says that there is no more, and waits for guacd to close.
    HalfClose,
    /// It closes the connection.
    Close,
    /// It resets the connection.
    Reset,
    /// It waits for guacd to give up.
    Wait,
}

/// What guacd made of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Error,
    Ready,
    Closed,
    Abandoned,
    Unanswered,
}

impl Input {
    /// The input of a seed and a number.
    pub fn generate(seed: u64, number: u32) -> Self {
        // Seeds and numbers that are close to each other must not give inputs that are.
        let mut rng = Rng::with_seed(seed ^ u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let bytes = bytes(&mut rng);
        let ending = match rng.u32(0..1000) {
            0..200 => Ending::HalfClose,
            200..700 => Ending::Close,
            700..999 => Ending::Reset,
            _ => Ending::Wait,
        };
        Self { pieces: cut(&mut rng, bytes), ending }
    }

    /// Reads an input that was saved.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn load(file: &Path) -> Result<Self> {
        let wrong = |why: String| {
            Preflight(format!(
                "{} has no input to replay: {why}; give a file that fuzz has saved",
                file.display()
            ))
        };
        let json = fs::read(file).map_err(|error| wrong(error.to_string()))?;
        let saved: Saved = serde_json::from_slice(&json).map_err(|error| wrong(error.to_string()))?;
        let pieces = saved.pieces.iter().map(|piece| BASE64_STANDARD.decode(piece));
        let pieces = pieces.collect::<Result<_, _>>().map_err(|error| wrong(error.to_string()))?;
        Ok(Self { pieces, ending: saved.ending })
    }

    fn save(&self, dir: &Path, name: &str) -> Result<PathBuf> {
        let text = self.pieces.iter().map(|piece| String::from_utf8_lossy(piece).into_owned());
        let saved = Saved {
            pieces: self.pieces.iter().map(|piece| BASE64_STANDARD.encode(piece)).collect(),
            ending: self.ending,
            text: text.collect(),
        };
        let file = dir.join(name);
        let json = serde_json::to_vec_pretty(&saved)?;
        fs::write(&file, json).with_context(|| format!("write {}", file.display()))?;
        Ok(file)
    }
}

/// An input as it is saved.
#[derive(Serialize, Deserialize)]
struct Saved {
    /// In base64.
    pieces: Vec<String>,
    ending: Ending,
    /// For people.
    #[serde(default)]
    text: Vec<String>,
}

/// Bytes that begin as a handshake does, more or less.
fn bytes(rng: &mut Rng) -> Vec<u8> {
    match rng.u32(0..100) {
        0..4 => return random_bytes(rng, 512),
        4..6 => return b"GET / HTTP/1.1\r\nHost: guacd\r\n\r\n".to_vec(),
        // The beginning of TLS.
        6..8 => return [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3][..], &random_bytes(rng, 300)].concat(),
        _ => {}
    }
    let mut instructions = handshake(rng);
    for _ in 0..rng.u32(0..3) {
        mutate_instructions(rng, &mut instructions);
    }
    let mut bytes = Vec::new();
    for instruction in &instructions {
        write(rng, &mut bytes, instruction);
    }
    for _ in 0..rng.u32(0..3) {
        mutate_bytes(rng, &mut bytes);
    }
    // As many as can be, and one more. Nothing is cut off from them, so that no other number comes of it.
    if rng.u32(0..20) == 0 {
        let connect = vec![String::new(); MOST_ELEMENTS - rng.usize(1..3)];
        write(rng, &mut bytes, &[vec!["connect".into()], connect, vec![String::new()]].concat());
    }
    bytes
}

/// A handshake in order, but for what it connects to.
fn handshake(rng: &mut Rng) -> Vec<Vec<String>> {
    let instruction =
        |elements: &[&str]| elements.iter().map(|&element| element.to_owned()).collect::<Vec<_>>();
    let protocol = ["ssh", "ssh", "telnet", "vnc", "rdp", "kubernetes"][rng.usize(0..6)];
    let connect = [&["connect", "VERSION_1_5_0"][..], &[""; 5][..rng.usize(0..6)]].concat();
    vec![
        instruction(&["select", protocol]),
        instruction(&["size", "800", "600", "96"]),
        instruction(&["audio", "audio/L16"]),
        instruction(&["video"]),
        instruction(&["image", "image/png", "image/webp"]),
        instruction(&["timezone", "Europe/Zürich"]),
        instruction(&["name", "żółw 🐢"]),
        instruction(&connect),
    ]
}

fn mutate_instructions(rng: &mut Rng, all: &mut Vec<Vec<String>>) {
    if all.is_empty() {
        return;
    }
    let at = rng.usize(0..all.len());
    match rng.u32(0..10) {
        0 => {
            all.remove(at);
        }
        1 => all.insert(at, all[at].clone()),
        2 => {
            let other = rng.usize(0..all.len());
            all.swap(at, other);
        }
        // Fewer arguments than there should be.
        3 | 4 => {
            let length = rng.usize(1..=all[at].len());
            all[at].truncate(length);
        }
        // More of them, but not so many that `connect` could be in order.
        5 => {
            for _ in 0..rng.usize(1..5) {
                let value = odd_value(rng);
                all[at].push(value);
            }
        }
        6 | 7 => {
            let element = rng.usize(0..all[at].len());
            all[at][element] = odd_value(rng);
        }
        8 => all.truncate(at),
        _ => {
            let opcode = ["nop", "sync", "key", "ack", "blob", "disconnect", "connect", "select", "size"];
            let opcode = opcode[rng.usize(0..opcode.len())].to_owned();
            let value = odd_value(rng);
            all.insert(at, vec![opcode, value]);
        }
    }
}

/// Something that somebody may not have thought of.
fn odd_value(rng: &mut Rng) -> String {
    let values = [
        "",
        "-1",
        "0",
        "2147483648",
        "-2147483649",
        "99999999999999999999",
        "1e9",
        "NaN",
        "../../../etc/passwd",
        "$00000000-0000-0000-0000-000000000000",
        "$",
        "VERSION_9_9_9",
        "VERSION_",
        "%s%n%s%n",
        "a.b,c;d",
        "\\u{0}",
        "\\0",
        "🐢🐢🐢",
        "image/png",
    ];
    match rng.usize(0..values.len() + 2) {
        long if long == values.len() => "x".repeat(rng.usize(1..MOST_CHARS)),
        text if text > values.len() => (0..rng.usize(0..40)).map(|_| rng.char(..)).collect(),
        index => values[index].to_owned(),
    }
}

/// Writes an instruction as the protocol has it, mostly.
fn write(rng: &mut Rng, out: &mut Vec<u8>, elements: &[String]) {
    let odd = rng.u32(0..30) == 0;
    for (index, element) in elements.iter().enumerate() {
        let right = element.chars().count();
        let length = match rng.u32(0..8) {
            0 if odd => "-1".into(),
            1 if odd => String::new(),
            2 if odd => format!("{}", right + 1),
            3 if odd => format!("{}", right.saturating_sub(1)),
            4 if odd => format!("000{right}"),
            5 if odd => "99999999999".into(),
            6 if odd => format!("{}", MOST_CHARS + 1),
            // Bytes in place of code points.
            7 if odd => element.len().to_string(),
            _ => right.to_string(),
        };
        out.extend_from_slice(format!("{}{length}.{element}", if index == 0 { "" } else { "," }).as_bytes());
    }
    out.push(b';');
}

fn mutate_bytes(rng: &mut Rng, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    let at = rng.usize(0..bytes.len());
    match rng.u32(0..6) {
        0 => bytes[at] = rng.u8(..),
        1 => {
            bytes.remove(at);
        }
        2 => bytes.insert(at, rng.u8(..)),
        3 => bytes.truncate(at),
        4 => bytes.extend(random_bytes(rng, 64)),
        // Not UTF-8, and zeros.
        _ => {
            let value = [0x00, 0x80, 0xC0, 0xFF, b';', b',', b'.'][rng.usize(0..7)];
            bytes[at] = value;
        }
    }
}

fn random_bytes(rng: &mut Rng, most: usize) -> Vec<u8> {
    (0..rng.usize(0..most)).map(|_| rng.u8(..)).collect()
}

/// Most inputs leave at once.
fn cut(rng: &mut Rng, bytes: Vec<u8>) -> Vec<Vec<u8>> {
    let pieces = if rng.u32(0..5) == 0 { rng.usize(2..6) } else { 1 };
    let size = bytes.len().div_ceil(pieces).max(1);
    bytes.chunks(size).map(<[u8]>::to_vec).collect()
}

/// What is tried, and what was seen so far.
struct Campaign {
    guacd: Vec<SocketAddr>,
    seed: u64,
    /// The one input of a replay.
    only: Option<Input>,
    inputs: u32,
    next: AtomicU32,
    /// How many inputs may have been begun by now: guacd has to catch up first with what came before.
    limit: AtomicU32,
    answers: [AtomicU32; 5],
    /// The numbers of the inputs that came last, and when they began.
    recent: Mutex<VecDeque<(u32, StdInstant)>>,
    /// The inputs whose connection guacd did not end.
    unanswered: Mutex<BTreeSet<u32>>,
}

impl Campaign {
    fn input(&self, number: u32) -> Input {
        self.only.clone().unwrap_or_else(|| Input::generate(self.seed, number))
    }

    /// Sends one input after another, until there is none left.
    async fn work(self: Arc<Self>) {
        loop {
            let is_next_allowed = || {
                let next = self.next.load(Ordering::Relaxed);
                next >= self.inputs || next < self.limit.load(Ordering::Relaxed)
            };
            while !is_next_allowed() {
                sleep(PAUSE).await;
            }
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.inputs {
                return;
            }
            let now = StdInstant::now();
            {
                let mut recent = self.recent();
                recent.retain(|&(_, began)| now - began < SUSPECT);
                recent.push_back((number, now));
            }
            let answer = send(&self.guacd, &self.input(number)).await;
            self.answers[answer as usize].fetch_add(1, Ordering::Relaxed);
            if answer == Answer::Unanswered {
                self.unanswered.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
            }
        }
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, VecDeque<(u32, StdInstant)>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, answer: Answer) -> u32 {
        self.answers[answer as usize].load(Ordering::Relaxed)
    }

    fn sent(&self) -> u32 {
        self.answers.iter().map(|answer| answer.load(Ordering::Relaxed)).sum()
    }
}

/// Sends all inputs beside the sessions that are open, and saves those that did harm to `logs`.
///
/// # Errors
///
/// When the input to be replayed cannot be read, or one cannot be saved.
pub async fn run(crowd: &mut Crowd<'_>, seed: u64, logs: &Path) -> Result<Fuzz> {
    let details = &crowd.load.details;
    let only = details.replay.as_deref().map(Input::load).transpose()?;
    let campaign = Arc::new(Campaign {
        guacd: crowd.setup.guacd.clone(),
        seed,
        inputs: if only.is_some() { 1 } else { details.inputs },
        only,
        next: AtomicU32::new(0),
        limit: AtomicU32::new(if crowd.guacd.is_some() { MOST_WAITING } else { u32::MAX }),
        answers: Default::default(),
        recent: Mutex::default(),
        unanswered: Mutex::default(),
    });
    let log = crowd.setup.log.clone();
    let crashes = || log.as_ref().map_or(0, |log| log.crashes());
    let before = crashes();

    let pid = crowd.guacd.as_ref().map(|guacd| guacd.pid());
    let threads = || pid.and_then(sample::threads).unwrap_or_default();
    let threads_before = threads();
    let mut had_room = Instant::now();

    let mut workers = JoinSet::new();
    for _ in 0..PARALLEL {
        workers.spawn(Arc::clone(&campaign).work());
    }
    let mut suspects = BTreeSet::new();
    let mut seen = before;
    let mut harmed = crowd.alive();
    while !workers.is_empty() && crowd.died.is_none() {
        crowd.attend_until(Some(Instant::now() + TICK), |crowd| crowd.died.is_some()).await;
        while workers.try_join_next().is_some() {}
        if pid.is_some() {
            let mut room = (threads_before + MOST_WAITING).saturating_sub(threads());
            if room > 0 {
                had_room = Instant::now();
            } else if had_room.elapsed() > END {
                // It does not catch up: what comes now shows that it does not serve anybody.
                room = MOST_WAITING;
            }
            campaign.limit.store(campaign.next.load(Ordering::Relaxed) + room, Ordering::Relaxed);
        }
        crowd.step(Step::Fuzz(campaign.sent()));
        if crashes() > seen || crowd.alive() < harmed || crowd.died.is_some() {
            suspects.extend(campaign.recent().iter().map(|(number, _)| *number));
            (seen, harmed) = (crashes(), crowd.alive());
        }
    }
    workers.shutdown().await;
    // The last ones may have done what guacd has yet to say.
    crowd.attend_until(Some(Instant::now() + TICK), |crowd| crowd.died.is_some()).await;
    if crashes() > seen {
        suspects.extend(campaign.recent().iter().map(|(number, _)| *number));
    }
    let crashes = log.as_ref().map(|_| crashes() - before);
    let saved = save(crowd, &campaign, suspects, log.as_deref(), logs).await?;
    Ok(Fuzz {
        inputs: campaign.sent(),
        errors: campaign.count(Answer::Error),
        ready: campaign.count(Answer::Ready),
        closed: campaign.count(Answer::Closed),
        abandoned: campaign.count(Answer::Abandoned),
        unanswered: campaign.count(Answer::Unanswered),
        crashes,
        saved,
    })
}

/// Saves those of the suspects that do it again when they are alone, or all of them, if none does; and the inputs whose
/// connection guacd did not end.
async fn save(
    crowd: &mut Crowd<'_>,
    campaign: &Campaign,
    suspects: BTreeSet<u32>,
    log: Option<&LogBook>,
    logs: &Path,
) -> Result<Vec<String>> {
    let suspects = suspects.into_iter().take(MOST_SUSPECTS).collect::<Vec<_>>();
    let mut guilty = Vec::new();
    if let Some(log) = log {
        for &number in &suspects {
            if crowd.died.is_some() || guilty.len() == MOST_SAVED {
                break;
            }
            let before = log.crashes();
            let _ = timeout(AGAIN, send(&campaign.guacd, &campaign.input(number))).await;
            crowd.attend_until(Some(Instant::now() + TICK), |crowd| crowd.died.is_some()).await;
            if log.crashes() > before || crowd.died.is_some() {
                guilty.push(number);
            }
        }
    }
    if guilty.is_empty() {
        guilty = suspects;
    }
    let unanswered = campaign.unanswered.lock().unwrap_or_else(PoisonError::into_inner).clone();
    guilty.extend(
        unanswered.into_iter().filter(|number| !guilty.contains(number)).take(MOST_SAVED).collect::<Vec<_>>(),
    );
    let save = |number: &u32| {
        let name = format!("fuzz-{}-{number}.json", campaign.seed);
        Ok(campaign.input(*number).save(logs, &name)?.display().to_string())
    };
    guilty.iter().map(save).collect()
}

async fn send(guacd: &[SocketAddr], input: &Input) -> Answer {
    let Ok(Ok(mut stream)) = timeout(PATIENCE, TcpStream::connect(guacd)).await else {
        return Answer::Unanswered;
    };
    let _ = stream.set_nodelay(true);
    for (index, piece) in input.pieces.iter().enumerate() {
        if index > 0 {
            sleep(Duration::from_millis(5)).await;
        }
        // guacd may have closed the connection already, as is its right.
        if !matches!(timeout(PATIENCE, stream.write_all(piece)).await, Ok(Ok(()))) {
            break;
        }
    }
    match input.ending {
        Ending::Close => return Answer::Abandoned,
        Ending::Reset => {
            let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
            return Answer::Abandoned;
        }
        Ending::HalfClose => {
            let _ = stream.shutdown().await;
        }
        Ending::Wait => {}
    }
    let mut answer = Vec::new();
    let until_closed = async {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            answer.extend_from_slice(&buffer[..length]);
        }
    };
    if timeout(END, until_closed).await.is_err() {
        return Answer::Unanswered;
    }
    let says = |word: &[u8]| answer.windows(word.len()).any(|said| said == word);
    match () {
        () if says(b"5.ready,") => Answer::Ready,
        () if says(b"5.error,") => Answer::Error,
        () => Answer::Closed,
    }
}

/// What decides: crashes only where they can be seen.
pub fn checks(fuzz: &Fuzz, max_crashes: u32) -> impl Iterator<Item = report::Check> {
    use report::{Bound::AtMost, Check};
    let at_most =
        |name, most: u32, found: u32, unit| Check::new(name, AtMost, most.into(), Some(found.into()), unit);
    let unanswered = at_most("connections not ended in time", 0, fuzz.unanswered, "connections");
    let crashes = fuzz.crashes.map(|crashes| at_most("crashes", max_crashes, crashes, "processes"));
    [unanswered].into_iter().chain(crashes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec::Decoder;

    #[test]
    fn an_input_follows_from_its_seed_and_number() {
        assert_eq!(Input::generate(7, 3), Input::generate(7, 3));
        let inputs = (0..100).map(|number| Input::generate(7, number).pieces).collect::<BTreeSet<_>>();
        assert!(inputs.len() > 90, "only {} differ", inputs.len());
        assert_ne!(Input::generate(7, 3), Input::generate(8, 3));
    }

    #[test]
    fn crashes_are_judged_where_they_can_be_seen() {
        let fuzz = |crashes| Fuzz {
            inputs: 1,
            errors: 0,
            ready: 0,
            closed: 1,
            abandoned: 0,
            unanswered: 0,
            crashes,
            saved: Vec::new(),
        };
        let judged = |crashes| checks(&fuzz(crashes), 0).map(|check| check.passed).collect::<Vec<_>>();
        assert_eq!(judged(None), [true]);
        assert_eq!(judged(Some(0)), [true, true]);
        assert_eq!(judged(Some(1)), [true, false]);
    }

    #[test]
    fn an_input_is_read_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..200 {
            let input = Input::generate(1, number);
            let file = input.save(dir.path(), "input.json").unwrap();
            assert_eq!(Input::load(&file).unwrap(), input);
        }
        fs::write(dir.path().join("other"), "{}").unwrap();
        assert!(Input::load(&dir.path().join("other")).unwrap_err().is::<Preflight>());
    }

    #[test]
    fn inputs_are_of_every_kind_and_none_connects_to_anything() {
        let mut endings = Vec::new();
        let (mut well_formed, mut malformed, mut starved) = (0, 0, 0);
        for number in 0..50_000 {
            let input = Input::generate(2, number);
            if !endings.contains(&input.ending) {
                endings.push(input.ending);
            }
            let mut decoder = Decoder::default();
            decoder.push(&input.pieces.concat());
            loop {
                match decoder.instruction() {
                    Ok(Some(instruction)) => {
                        well_formed += 1;
                        let args = instruction.args().len();
                        starved += u32::from(instruction.opcode() == "size" && args < 2);
                        let few_or_many = !(28..=100).contains(&args);
                        assert!(instruction.opcode() != "connect" || few_or_many, "number {number}: {args}");
                    }
                    Ok(None) => break,
                    Err(_) => {
                        malformed += 1;
                        break;
                    }
                }
            }
        }
        assert_eq!(endings.len(), 4);
        assert!(
            well_formed > 100_000 && malformed > 1000 && starved > 100,
            "{well_formed} {malformed} {starved}"
        );
    }
}

//! What does guacd make of what programs print in a terminal? Each session is over telnet, with a target of its own that plays
//! a script, while its client resizes the terminal, scrolls, selects and types. Then the session has to prove itself on the
//! same connection, or guacd has to say why it ends. Scripts after which it did neither are saved.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
    time::{Instant, timeout},
};

pub use self::script::Script;
use self::script::Step as ScriptStep;
use crate::{
    load::{
        crowd::{Crowd, TICK},
        session::INFORMED_WITHIN,
    },
    report::{Fuzz, FuzzKind, progress::Step},
    wire::{
        codec::{self, Decoder, Instruction},
        link::{Echo, Event, Link, Login},
        proof::fresh_nonce,
    },
};

mod script;

/// How many sessions are played at the same time.
const PARALLEL: usize = 8;

/// How long a session may take. With sanitizers, guacd takes up to some seconds to draw a large terminal.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long guacd gets to draw a frame. It waits 10 ms for more output before it draws one, and at most 40 ms.
const FRAME: Duration = Duration::from_millis(60);

/// Maximum number of scripts that are saved.
const MAX_SAVED: usize = 8;

/// The pipe into which the target's program writes what is typed.
const PIPE: &str = "fuzz";

/// What the target prints when the script has ended: it cancels whatever is open, resets the terminal, and redirects its output
/// into the pipe, to be sent with each frame.
const PROVE: &[u8] = b"\x18\x1bc\x1b]482203;\x07\x1b]482202;2;fuzz\x07";

/// The keys that change what other keys mean: shift, control, caps lock, meta, alt, super and hyper.
const MODIFIERS: std::ops::RangeInclusive<u32> = 0xFFE1..=0xFFEE;

/// The target echoes what is typed, or not: guacd would print it otherwise, and with it its own answers to queries, in the middle
/// of whatever the script prints.
const WILL_ECHO: [u8; 3] = [255, 251, 1];

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It proved itself.
    Proven,
    /// guacd ended it with an error.
    Error,
    /// It ended without an error, or guacd sent what is not the protocol.
    Broken,
    /// It did neither in time.
    Silent,
}

/// Which scripts are played.
pub enum Scripts {
    /// So many, generated from a seed.
    Generated {
        /// The seed.
        seed: u64,
        /// How many.
        count: u32,
    },
    /// One that an earlier run has saved.
    Replayed(Script),
}

impl Scripts {
    fn count(&self) -> u32 {
        match self {
            Self::Generated { count, .. } => *count,
            Self::Replayed(_) => 1,
        }
    }

    fn script(&self, number: u32) -> Script {
        match self {
            Self::Generated { seed, .. } => Script::generate(*seed, number),
            Self::Replayed(script) => script.clone(),
        }
    }

    fn name(&self, number: u32) -> String {
        match self {
            Self::Generated { seed, .. } => format!("fuzz-terminal-{seed}-{number}.json"),
            Self::Replayed(_) => "fuzz-terminal-replayed.json".into(),
        }
    }
}

/// All scripts of a run, and what came of them so far.
struct Campaign {
    guacd: Vec<SocketAddr>,
    scripts: Scripts,
    next: AtomicU32,
    outcomes: [AtomicU32; 4],
    /// The scripts whose sessions were broken or silent.
    failed: Mutex<BTreeSet<u32>>,
}

impl Campaign {
    /// Plays one script after another, until there is none left.
    async fn work(self: Arc<Self>) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.scripts.count() {
                return;
            }
            let script = self.scripts.script(number);
            let outcome = timeout(PATIENCE, play(&self.guacd, &script)).await.unwrap_or(Outcome::Silent);
            self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
            if matches!(outcome, Outcome::Broken | Outcome::Silent) {
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
            }
        }
    }

    fn count(&self, outcome: Outcome) -> u32 {
        self.outcomes[outcome as usize].load(Ordering::Relaxed)
    }

    fn played(&self) -> u32 {
        self.outcomes.iter().map(|outcome| outcome.load(Ordering::Relaxed)).sum()
    }
}

/// Plays all scripts while the crowd's sessions are open, and saves those that did damage in `logs`.
///
/// # Errors
///
/// When a script cannot be saved.
pub async fn run(crowd: &mut Crowd<'_>, scripts: Scripts, logs: &Path) -> Result<Fuzz> {
    let campaign = Arc::new(Campaign {
        guacd: crowd.setup.guacd.clone(),
        scripts,
        next: AtomicU32::new(0),
        outcomes: Default::default(),
        failed: Mutex::default(),
    });
    let log = crowd.setup.log.clone();
    let crashes = || log.as_ref().map_or(0, |log| log.crashes());
    let before = crashes();
    let mut workers = JoinSet::new();
    for _ in 0..PARALLEL {
        workers.spawn(Arc::clone(&campaign).work());
    }
    while !workers.is_empty() && crowd.died.is_none() {
        crowd.run_until(Some(Instant::now() + TICK), |crowd| crowd.died.is_some()).await;
        while workers.try_join_next().is_some() {}
        crowd.set_step(Step::Fuzz(FuzzKind::Terminal, campaign.played()));
    }
    workers.shutdown().await;
    // guacd may not have logged yet what the last scripts did.
    crowd.run_until(Some(Instant::now() + TICK), |crowd| crowd.died.is_some()).await;
    let failed = campaign.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let save = |number: u32| {
        let file = campaign.scripts.script(number).save(logs, &campaign.scripts.name(number))?;
        Ok(file.display().to_string())
    };
    Ok(Fuzz {
        kind: FuzzKind::Terminal,
        inputs: campaign.played(),
        errors: campaign.count(Outcome::Error),
        ready: campaign.count(Outcome::Proven),
        closed: campaign.count(Outcome::Broken),
        abandoned: 0,
        unanswered: campaign.count(Outcome::Silent),
        crashes: log.as_ref().map(|_| crashes() - before),
        saved: failed.into_iter().take(MAX_SAVED).map(save).collect::<Result<_>>()?,
    })
}

/// Plays a script in a session of its own, and has that prove itself.
async fn play(guacd: &[SocketAddr], script: &Script) -> Outcome {
    match Session::open(guacd).await {
        Ok(mut session) => match session.play(script).await {
            Ok(()) => Outcome::Proven,
            Err(outcome) => outcome,
        },
        Err(outcome) => outcome,
    }
}

/// A session, seen from both ends.
struct Session {
    link: Link,
    decoder: Decoder,
    client: TcpStream,
    /// What the client is still to send.
    unsent: Vec<u8>,
    target: Target,
}

/// The program in the terminal.
struct Target {
    from_guacd: OwnedReadHalf,
    to_guacd: OwnedWriteHalf,
    /// What it is still to print.
    unsent: Vec<u8>,
    /// Whether it prints what it reads.
    echoes: bool,
}

impl Session {
    async fn open(guacd: &[SocketAddr]) -> Result<Self, Outcome> {
        let broken = |_| Outcome::Broken;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(broken)?;
        let port = listener.local_addr().map_err(broken)?.port();
        let mut client = TcpStream::connect(guacd).await.map_err(broken)?;
        let _ = client.set_nodelay(true);
        let login = Login {
            protocol: "telnet",
            arguments: vec![("hostname", "127.0.0.1".into()), ("port", port.to_string())],
            echo: Echo::Pipe(PIPE.into()),
            call: None,
        };
        let mut unsent = Vec::new();
        let mut link = Link::new(login, &mut unsent);
        let mut decoder = Decoder::default();
        // guacd connects to the target once it is ready.
        let is_ready = |event: Option<Event>| matches!(event, Some(Event::Ready(_)));
        'handshake: loop {
            client.write_all(&std::mem::take(&mut unsent)).await.map_err(broken)?;
            receive(&mut client, &mut decoder).await?;
            while let Some(instruction) = decoder.instruction().map_err(|_| Outcome::Broken)? {
                if is_ready(answer(&mut link, &instruction, &mut unsent)?) {
                    break 'handshake;
                }
            }
        }
        let (target, _) = tokio::select! {
            accepted = listener.accept() => accepted.map_err(broken)?,
            // It may also say why it does not.
            outcome = until_ended(&mut client, &mut decoder, &mut link, &mut unsent) => return Err(outcome),
        };
        let (from_guacd, to_guacd) = target.into_split();
        let target = Target { from_guacd, to_guacd, unsent: WILL_ECHO.into(), echoes: false };
        Ok(Self { link, decoder, client, unsent, target })
    }

    async fn play(&mut self, script: &Script) -> Result<(), Outcome> {
        for step in &script.steps {
            match step {
                ScriptStep::Print(output) => self.print(output),
                ScriptStep::Send(instructions) => {
                    for instruction in instructions {
                        let elements = instruction.iter().map(String::as_str).collect::<Vec<_>>();
                        codec::encode(&mut self.unsent, &elements);
                    }
                }
                ScriptStep::Frame => {
                    if let Ok(ended) = timeout(FRAME, self.exchange(|_, _| false)).await {
                        ended?;
                    }
                }
            }
            self.exchange(|session, _| session.unsent.is_empty() && session.target.unsent.is_empty()).await?;
        }
        // Keys mean themselves again, and what was typed has been read.
        for modifier in MODIFIERS {
            codec::encode(&mut self.unsent, &["key", &modifier.to_string(), "0"]);
        }
        self.target.echoes = true;
        self.print(PROVE);
        self.exchange(|_, event| event == Some(&Event::TargetReady)).await?;
        self.link.type_nonce(&fresh_nonce(), &mut self.unsent);
        self.exchange(|_, event| event == Some(&Event::Echoed)).await
    }

    /// Has the target's program print something. Bytes of 255 are doubled, as they begin a command of telnet otherwise.
    fn print(&mut self, output: &[u8]) {
        for &byte in output {
            let copies = if byte == 0xFF { 2 } else { 1 };
            self.target.unsent.extend([byte; 2].iter().take(copies));
        }
    }

    /// Sends and receives at both ends until a condition holds, which is asked after each event and each transfer.
    async fn exchange(&mut self, is_done: impl Fn(&Self, Option<&Event>) -> bool) -> Result<(), Outcome> {
        let (mut from_client, mut typed) = ([0; 16 * 1024], [0; 4096]);
        loop {
            while let Some(instruction) = self.decoder.instruction().map_err(|_| Outcome::Broken)? {
                let event = answer(&mut self.link, &instruction, &mut self.unsent)?;
                if is_done(self, event.as_ref()) {
                    return Ok(());
                }
            }
            if is_done(self, None) {
                return Ok(());
            }
            let (mut read, mut write) = self.client.split();
            tokio::select! {
                length = read.read(&mut from_client) => match length {
                    Ok(length @ 1..) => self.decoder.push(&from_client[..length]),
                    _ => return Err(Outcome::Broken),
                },
                sent = write.write(&self.unsent), if !self.unsent.is_empty() => match sent {
                    Ok(length) => drop(self.unsent.drain(..length)),
                    Err(_) => return Err(Outcome::Broken),
                },
                length = self.target.from_guacd.read(&mut typed) => match length {
                    Ok(length @ 1..) if self.target.echoes => {
                        // guacd's telnet commands are not text, but the nonce is found among them.
                        self.target.unsent.extend(typed[..length].iter().filter(|byte| byte.is_ascii_alphanumeric()));
                    }
                    Ok(1..) => {}
                    // guacd has left the target, and has yet to say why.
                    _ => {
                        let ended = until_ended(
                            &mut self.client,
                            &mut self.decoder,
                            &mut self.link,
                            &mut self.unsent,
                        );
                        return Err(timeout(INFORMED_WITHIN, ended).await.unwrap_or(Outcome::Silent));
                    }
                },
                sent = self.target.to_guacd.write(&self.target.unsent), if !self.target.unsent.is_empty() => {
                    match sent {
                        Ok(length) => drop(self.target.unsent.drain(..length)),
                        // The end of reading says more.
                        Err(_) => self.target.unsent.clear(),
                    }
                }
            }
        }
    }
}

/// Reads from guacd once.
async fn receive(client: &mut TcpStream, decoder: &mut Decoder) -> Result<(), Outcome> {
    let mut buffer = [0; 16 * 1024];
    match client.read(&mut buffer).await {
        Ok(length @ 1..) => {
            decoder.push(&buffer[..length]);
            Ok(())
        }
        _ => Err(Outcome::Broken),
    }
}

/// Has the link answer an instruction.
fn answer(
    link: &mut Link,
    instruction: &Instruction,
    unsent: &mut Vec<u8>,
) -> Result<Option<Event>, Outcome> {
    link.receive(instruction, unsent)
        .map_err(|_| if instruction.opcode() == "error" { Outcome::Error } else { Outcome::Broken })
}

/// Waits until guacd ends the session. Returns how it does.
async fn until_ended(
    client: &mut TcpStream,
    decoder: &mut Decoder,
    link: &mut Link,
    unsent: &mut Vec<u8>,
) -> Outcome {
    loop {
        match decoder.instruction() {
            Ok(Some(instruction)) => {
                if let Err(outcome) = answer(link, &instruction, unsent) {
                    return outcome;
                }
            }
            Ok(None) => {
                if let Err(outcome) = receive(client, decoder).await {
                    return outcome;
                }
            }
            Err(_) => return Outcome::Broken,
        }
    }
}

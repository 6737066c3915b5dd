//! What does guacd make of what programs print in a terminal? Each session is over telnet. Its own target prints what the script
//! says, while its client resizes the terminal, scrolls, selects and types. Then the session has to prove itself on the same
//! connection, or guacd has to say why it ends. Scripts after which it did neither are saved.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use self::script::Step;
pub use self::script::TerminalScript;
use super::pool::{Outcome, Played, Player};
use crate::{
    load::{crowd::Crowd, session::INFORMED_WITHIN},
    wire::{
        codec::{self, Decoder, Instruction},
        link::{Echo, Event, Link, Login},
        proof::fresh_nonce,
    },
};

mod script;

/// How long a session may take. With sanitizers, guacd takes up to some seconds to draw a large terminal.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long guacd gets to draw a frame. It waits 10 ms for more output before it draws one, and at most 40 ms.
const FRAME: Duration = Duration::from_millis(60);

/// The pipe into which the target's program writes what is typed.
const PIPE: &str = "fuzz";

/// What the target prints when the script has ended: it cancels whatever is open, resets the terminal, and redirects its output
/// into the pipe, to be sent with each frame.
const PROVE: &[u8] = b"\x18\x1bc\x1b]482203;\x07\x1b]482202;2;fuzz\x07";

/// The keysyms of keys that change what other keys mean: shift, control, caps lock, meta, alt, super and hyper.
const MODIFIERS: std::ops::RangeInclusive<u32> = 0xFFE1..=0xFFEE;

/// IAC WILL ECHO: the target announces that it echoes what is typed, though it may not. Otherwise guacd would print what is typed
/// itself, its own answers to queries included, in the middle of whatever the script prints.
const WILL_ECHO: [u8; 3] = [255, 251, 1];

/// Plays scripts.
pub struct Terminals {
    guacd: Vec<SocketAddr>,
}

/// There are no suspects: a script that does damage ends its own session, which is a failure.
impl Player for Terminals {
    type Script = TerminalScript;

    const PARALLEL: u32 = 8;
    const FAILURES: &[Outcome] = &[Outcome::Closed, Outcome::Unanswered];

    fn new(crowd: &Crowd<'_>) -> Self {
        Self { guacd: crowd.setup.guacd.clone() }
    }

    async fn play(&self, _number: u32, script: &TerminalScript) -> Played {
        timeout(PATIENCE, play(&self.guacd, script)).await.unwrap_or(Outcome::Unanswered).into()
    }
}

/// Plays a script in a new session, which then has to prove itself.
async fn play(guacd: &[SocketAddr], script: &TerminalScript) -> Outcome {
    match Session::open(guacd).await {
        Ok(mut session) => session.play(script).await.err().unwrap_or(Outcome::Ready),
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
        let closed = |_| Outcome::Closed;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(closed)?;
        let port = listener.local_addr().map_err(closed)?.port();
        let mut client = TcpStream::connect(guacd).await.map_err(closed)?;
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
            client.write_all(&std::mem::take(&mut unsent)).await.map_err(closed)?;
            receive(&mut client, &mut decoder).await?;
            while let Some(instruction) = decoder.instruction().map_err(|_| Outcome::Closed)? {
                if is_ready(answer(&mut link, &instruction, &mut unsent)?) {
                    break 'handshake;
                }
            }
        }
        let (target, _) = tokio::select! {
            accepted = listener.accept() => accepted.map_err(closed)?,
            // guacd may end the session instead.
            outcome = until_ended(&mut client, &mut decoder, &mut link, &mut unsent) => return Err(outcome),
        };
        let (from_guacd, to_guacd) = target.into_split();
        let target = Target { from_guacd, to_guacd, unsent: WILL_ECHO.into(), echoes: false };
        Ok(Self { link, decoder, client, unsent, target })
    }

    async fn play(&mut self, script: &TerminalScript) -> Result<(), Outcome> {
        for step in &script.steps {
            match step {
                Step::Print(output) => self.print(output),
                Step::Send(instructions) => {
                    for instruction in instructions {
                        let elements = instruction.iter().map(String::as_str).collect::<Vec<_>>();
                        codec::encode(&mut self.unsent, &elements);
                    }
                }
                Step::Frame => {
                    if let Ok(ended) = timeout(FRAME, self.exchange(|_, _| false)).await {
                        ended?;
                    }
                }
            }
            self.exchange(|session, _| session.unsent.is_empty() && session.target.unsent.is_empty()).await?;
        }
        // A key that the script has left pressed would change the nonce.
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

    /// Sends and receives at both ends until a condition holds. It is checked after each event and each transfer.
    async fn exchange(&mut self, is_done: impl Fn(&Self, Option<&Event>) -> bool) -> Result<(), Outcome> {
        let (mut from_client, mut typed) = ([0; 16 * 1024], [0; 4096]);
        loop {
            while let Some(instruction) = self.decoder.instruction().map_err(|_| Outcome::Closed)? {
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
                    _ => return Err(Outcome::Closed),
                },
                sent = write.write(&self.unsent), if !self.unsent.is_empty() => match sent {
                    Ok(length) => drop(self.unsent.drain(..length)),
                    Err(_) => return Err(Outcome::Closed),
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
                        return Err(timeout(INFORMED_WITHIN, ended).await.unwrap_or(Outcome::Unanswered));
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
        _ => Err(Outcome::Closed),
    }
}

/// Has the link answer an instruction.
fn answer(
    link: &mut Link,
    instruction: &Instruction,
    unsent: &mut Vec<u8>,
) -> Result<Option<Event>, Outcome> {
    link.receive(instruction, unsent)
        .map_err(|_| if instruction.opcode() == "error" { Outcome::Error } else { Outcome::Closed })
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
            Err(_) => return Outcome::Closed,
        }
    }
}

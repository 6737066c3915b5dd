//! What do odd instructions do to a session that is up? Each session logs in to its target, is sent a hundred inputs, and has to
//! answer at its end; then the next one is opened.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep_until},
};

pub use self::script::SessionScript;
use super::pool::{Outcome, Played, Player};
use crate::{
    load::{
        crowd::Crowd,
        session::{self, Setup},
    },
    wire::codec::{self, Decoder},
};

mod script;

/// How long guacd may take to read an input, and to answer at the end of a session.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait after the last input for what it does.
const LINGER: Duration = Duration::from_millis(50);

/// A stream that does not exist: guacd answers to its end.
const NO_STREAM: &str = "4711";

/// Sends inputs to sessions.
pub struct Sessions {
    setup: Arc<Setup>,
}

impl Player for Sessions {
    type Script = SessionScript;

    const PARALLEL: u32 = 6;
    const FAILURES: &[Outcome] = &[Outcome::Unanswered];
    const MAX_SUSPECTS: usize = 32;
    const AGAIN: Duration = PATIENCE.saturating_mul(2);

    fn new(crowd: &Crowd<'_>) -> Self {
        Self { setup: Arc::clone(&crowd.setup) }
    }

    async fn play(&self, number: u32, script: &SessionScript) -> Played {
        let mut played = Played::default();
        let mut left = &script.inputs[..];
        // An input may rightly end its session. What follows it is sent to another one.
        while !left.is_empty() {
            let (sent, outcome) = self.send(number, left).await;
            played.inputs += sent;
            played.outcomes.push(outcome);
            if outcome == Outcome::Abandoned {
                break;
            }
            left = &left[sent as usize..];
        }
        played
    }
}

impl Sessions {
    /// Opens a session and sends it inputs, until it ends. Returns how many were sent.
    async fn send(&self, number: u32, inputs: &[Vec<u8>]) -> (u32, Outcome) {
        let Ok((stream, decoder, out)) = session::open(&self.setup, number as usize).await else {
            return (0, Outcome::Abandoned);
        };
        let mut session = OpenSession { stream, decoder, out, is_answered: false };
        for (sent, input) in (1..).zip(inputs) {
            session.out.extend_from_slice(input);
            if let Err(outcome) = session.send().await {
                return (sent, outcome);
            }
        }
        codec::encode(&mut session.out, &["end", NO_STREAM]);
        let outcome = session.prove().await.err().unwrap_or(Outcome::Ready);
        (inputs.len() as u32, outcome)
    }
}

/// A session that is up.
struct OpenSession {
    stream: TcpStream,
    decoder: Decoder,
    /// What is still to be sent.
    out: Vec<u8>,
    /// Whether guacd has answered to the end of a stream that does not exist.
    is_answered: bool,
}

impl OpenSession {
    /// Sends all of `out`, and takes in what comes meanwhile.
    async fn send(&mut self) -> Result<(), Outcome> {
        let deadline = Instant::now() + PATIENCE;
        while !self.out.is_empty() {
            self.step(deadline).await?;
            if Instant::now() >= deadline {
                return Err(Outcome::Unanswered);
            }
        }
        Ok(())
    }

    /// Waits until guacd has answered, and a moment longer.
    async fn prove(&mut self) -> Result<(), Outcome> {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_answered {
            self.step(deadline).await?;
            if Instant::now() >= deadline {
                return Err(Outcome::Unanswered);
            }
        }
        let until = Instant::now() + LINGER;
        while Instant::now() < until {
            self.step(until).await?;
        }
        Ok(())
    }

    /// Sends and receives once, or waits until some time.
    async fn step(&mut self, until: Instant) -> Result<(), Outcome> {
        while let Some(instruction) = self.decoder.instruction().map_err(|_| Outcome::Closed)? {
            match instruction.opcode() {
                "sync" => codec::encode(&mut self.out, &["sync", instruction.arg(0)]),
                "ack" => self.is_answered |= instruction.arg(0) == NO_STREAM,
                "error" | "disconnect" => return Err(Outcome::Error),
                _ => {}
            }
        }
        let interest =
            if self.out.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        let ready = tokio::select! {
            () = sleep_until(until) => return Ok(()),
            ready = self.stream.ready(interest) => ready.map_err(|_| Outcome::Closed)?,
        };
        if ready.is_readable() {
            let mut buffer = [0; 16 * 1024];
            match self.stream.try_read(&mut buffer) {
                Ok(0) => return Err(Outcome::Closed),
                Ok(length) => self.decoder.push(&buffer[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(Outcome::Closed),
            }
        }
        if ready.is_writable() {
            match self.stream.try_write(&self.out) {
                Ok(sent) => drop(self.out.drain(..sent)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(Outcome::Closed),
            }
        }
        Ok(())
    }
}

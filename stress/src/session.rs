//! How does one session live? Connect, log in, give back a first nonce, be held open, give back a second one, stay open
//! until all others have given back theirs.

use std::{future::pending, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::Interest,
    net::TcpStream,
    sync::watch,
    task::coop::consume_budget,
    time::{Instant, MissedTickBehavior, interval_at, timeout_at},
};

use crate::{
    codec::{self, Decoder},
    link::{Event, Link, Login},
    log::LogBook,
    report::Phase,
};

/// guacd drops a user that it has not heard of for 15 seconds.
const NOP_INTERVAL: Duration = Duration::from_secs(5);

/// Nothing more is read while this much could not be sent: every instruction that is read may want an answer.
const MOST_UNSENT: usize = 64 * 1024;

/// What all sessions of a run share.
pub struct Setup {
    /// Where guacd listens. Of several addresses, the first that answers is taken.
    pub guacd: Vec<SocketAddr>,
    /// What it is to connect to.
    pub login: Login,
    /// How long a session may take to come up, and again to prove itself.
    pub timeout: Duration,
    /// guacd's log, if it can be read.
    pub log: Option<Arc<LogBook>>,
}

/// What the run wants of all sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// To come up, and to stay open.
    Hold,
    /// To give back a fresh nonce, and to stay open still.
    Prove,
}

/// What a session tells the run.
#[derive(Debug)]
pub enum Told {
    /// guacd gave it this id.
    Ready(String),
    /// Its first nonce came back, so long after it began.
    Established(Duration),
    /// Its last nonce came back, so long after it was typed.
    Proven(Duration),
    /// It is dead.
    Failed(Failed),
}

/// Why a session is dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// How far it had come.
    pub phase: Phase,
    /// What was seen.
    pub reason: String,
    /// In which way that came about.
    pub how: How,
}

/// In which way a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It heard of it.
    Told,
    /// It heard nothing in time, and gave up itself.
    Silence,
    /// It lost its connection, which may be because guacd died.
    CutOff,
}

/// Lives a session from its beginning until it fails. Drop it to close it.
pub async fn live(setup: Arc<Setup>, mut stage: watch::Receiver<Stage>, tell: impl Fn(Told)) {
    let begun = Instant::now();
    let deadline = begun + setup.timeout;

    let mut session = match connect(&setup, deadline).await {
        Ok(session) => session,
        Err(failed) => return tell(Told::Failed(failed)),
    };
    let lived: Result<(), Failed> = async {
        if let Event::Ready(id) = session.expect(deadline, setup.timeout).await? {
            session.id = Some(id.clone());
            tell(Told::Ready(id));
        }
        session.expect(deadline, setup.timeout).await?;
        session.enter(Phase::FirstProof);
        session.type_nonce();
        session.expect(deadline, setup.timeout).await?;
        session.enter(Phase::Hold);
        tell(Told::Established(begun.elapsed()));

        session.hold_until(Stage::Prove, &mut stage).await?;
        session.enter(Phase::LastProof);
        let typed = Instant::now();
        session.type_nonce();
        session.expect(typed + setup.timeout, setup.timeout).await?;
        tell(Told::Proven(typed.elapsed()));

        // Nothing that happens now counts, except the end of the session.
        loop {
            session.pump().await?;
        }
    }
    .await;
    if let Err(failed) = lived {
        tell(Told::Failed(failed));
    }
}

async fn connect(setup: &Setup, deadline: Instant) -> Result<Session, Failed> {
    let failed = |reason| Failed { phase: Phase::Connect, reason, how: How::CutOff };
    let stream = match timeout_at(deadline, TcpStream::connect(&setup.guacd[..])).await {
        Err(_) => return Err(failed("guacd did not accept the connection in time".into())),
        Ok(Err(error)) => return Err(failed(format!("cannot connect to guacd: {error}"))),
        Ok(Ok(stream)) => stream,
    };
    // Key presses are small and have to leave at once.
    let _ = stream.set_nodelay(true);

    let mut nop = interval_at(Instant::now() + NOP_INTERVAL, NOP_INTERVAL);
    nop.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut out = Vec::new();
    let link = Link::new(setup.login.clone(), &mut out);
    Ok(Session { stream, decoder: Decoder::default(), link, out, nop, id: None, log: setup.log.clone() })
}

struct Session {
    stream: TcpStream,
    decoder: Decoder,
    link: Link,
    /// What is still to be sent.
    out: Vec<u8>,
    nop: tokio::time::Interval,
    /// The id that guacd gave it.
    id: Option<String>,
    log: Option<Arc<LogBook>>,
}

impl Session {
    fn enter(&mut self, phase: Phase) {
        self.link.enter(phase);
    }

    fn type_nonce(&mut self) {
        self.link.type_nonce(&fresh_nonce(), &mut self.out);
    }

    fn failed(&self, reason: impl Into<String>) -> Failed {
        Failed { phase: self.link.phase(), reason: reason.into(), how: How::Told }
    }

    fn cut_off(&self, reason: impl Into<String>) -> Failed {
        Failed { how: How::CutOff, ..self.failed(reason) }
    }

    /// The next event. Silence until the deadline is failure.
    async fn expect(&mut self, deadline: Instant, timeout: Duration) -> Result<Event, Failed> {
        match timeout_at(deadline, self.pump()).await {
            Ok(event) => event,
            Err(_) => {
                let missing = match self.link.phase() {
                    Phase::Login => "the target's program was not heard of",
                    Phase::FirstProof | Phase::LastProof => "what was typed did not come back",
                    _ => "guacd did not answer",
                };
                let reason = format!("silence: {missing} within {}", humantime::format_duration(timeout));
                Err(Failed { how: How::Silence, ..self.failed(reason) })
            }
        }
    }

    /// Keeps the session open until the run has come to a stage.
    async fn hold_until(&mut self, stage: Stage, stages: &mut watch::Receiver<Stage>) -> Result<(), Failed> {
        loop {
            tokio::select! {
                biased;
                // A run that is gone closes its sessions.
                _ = stages.wait_for(|now| *now >= stage) => return Ok(()),
                // Nothing that happens now counts, except the end of the session.
                event = self.pump() => { event?; }
            }
        }
    }

    /// Sends and receives until something happens. May be dropped at any time: nothing is lost.
    ///
    /// However much guacd sends, deadlines are kept, others get their turn, and memory is bounded.
    async fn pump(&mut self) -> Result<Event, Failed> {
        let ended = ended(self.log.clone(), self.id.clone());
        tokio::pin!(ended);
        loop {
            // A socket that always has more to read would never let go of the thread otherwise.
            consume_budget().await;
            while let Some(instruction) =
                self.decoder.instruction().map_err(|error| self.failed(error.to_string()))?
            {
                let event =
                    self.link.receive(&instruction, &mut self.out).map_err(|reason| self.failed(reason))?;
                if let Some(event) = event {
                    return Ok(event);
                }
            }
            let interest = match self.out.len() {
                0 => Interest::READABLE,
                MOST_UNSENT.. => Interest::WRITABLE,
                _ => Interest::READABLE | Interest::WRITABLE,
            };
            tokio::select! {
                biased;
                _ = self.nop.tick() => codec::encode(&mut self.out, &["nop"]),
                // Before the end of the process: what it said last tells more than that it ended.
                ready = self.stream.ready(interest) => {
                    let ready = ready.map_err(|error| self.cut_off(error.to_string()))?;
                    if ready.is_writable() && !self.out.is_empty() {
                        self.send()?;
                    }
                    if ready.is_readable() && self.out.len() < MOST_UNSENT {
                        self.receive()?;
                    }
                }
                () = &mut ended => return Err(self.cut_off("guacd's process for the session ended")),
            }
        }
    }

    fn send(&mut self) -> Result<(), Failed> {
        match self.stream.try_write(&self.out) {
            Ok(sent) => {
                self.out.drain(..sent);
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(self.cut_off(format!("cannot send to guacd: {error}"))),
        }
    }

    fn receive(&mut self) -> Result<(), Failed> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.try_read(&mut buffer) {
            Ok(0) => Err(self.cut_off("guacd closed the connection")),
            Ok(length) => {
                self.decoder.push(&buffer[..length]);
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(self.cut_off(format!("cannot receive from guacd: {error}"))),
        }
    }
}

/// Waits for guacd's log to say that the session's process is gone. The connection alone does not tell: other processes
/// of guacd's hold copies of it.
async fn ended(log: Option<Arc<LogBook>>, id: Option<String>) {
    match (log, id) {
        (Some(log), Some(id)) => log.ended(&id).await,
        _ => pending().await,
    }
}

/// 128 random bits, in hexadecimal digits: every one of them is a key of its own name.
pub fn fresh_nonce() -> String {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    assert_eq!(filled, Ok(bytes.len()), "the kernel has no random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::{io::AsyncWriteExt, net::TcpSocket};

    /// On a thread of its own for guacd, which could not send faster than the session reads otherwise.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_more_is_read_than_can_be_answered() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let guacd = vec![listener.local_addr().unwrap()];
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let frames = "4.sync,6.123456,1.1;".repeat(10_000);
            while stream.write_all(frames.as_bytes()).await.is_ok() {}
        });
        let timeout = Duration::from_secs(2);
        let login = Login { arguments: Vec::new(), pipe: String::new() };
        let setup = Setup { guacd, login, timeout, log: None };
        let deadline = Instant::now() + timeout;
        let mut session = connect(&setup, deadline).await.unwrap();
        let failed = session.expect(deadline, timeout).await.unwrap_err();
        assert_eq!(failed.how, How::Silence);
        assert!(session.out.len() < 2 * MOST_UNSENT, "{} bytes are unsent", session.out.len());
    }
}

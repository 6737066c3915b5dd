//! How does one session live? Connect, log in, give back a first nonce, be held open, give back another one each time that
//! all have to, and stay open until it is closed. Or misbehave, where it is ordered to.

use std::{future::pending, net::SocketAddr, os::fd::AsFd, sync::Arc, time::Duration};

use tokio::{
    io::Interest,
    net::TcpStream,
    sync::{mpsc, watch},
    task::coop::consume_budget,
    time::{Instant, MissedTickBehavior, interval_at, timeout_at},
};

use crate::{
    guacd::log::LogBook,
    report::Phase,
    target::Connections,
    wire::codec::{self, Decoder},
    wire::link::{Event, Link, Login},
};

/// guacd drops a user that it has not heard of for 15 seconds.
const NOP_INTERVAL: Duration = Duration::from_secs(5);

/// How long a target has to answer before it is called again.
const CALL_INTERVAL: Duration = Duration::from_millis(250);

/// Nothing more is read while this much could not be sent: every instruction that is read may want an answer.
const MOST_UNSENT: usize = 64 * 1024;

/// How long a client may wait to be told that its session has ended. Whoever is told nothing then is in silence.
pub const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// What all sessions of a run share.
pub struct Setup {
    /// Where guacd listens. Of several addresses, the first that answers is taken.
    pub guacd: Vec<SocketAddr>,
    /// What it is to connect to. Sessions take these in turn.
    pub logins: Vec<Login>,
    /// How long a session may take to come up, and again to prove itself.
    pub timeout: Duration,
    /// guacd's log, if it can be read.
    pub log: Option<Arc<LogBook>>,
    /// The connections to the embedded targets, if there are any.
    pub connections: Option<Arc<Connections>>,
}

/// What a session is ordered to do, apart from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// To type much, and then neither to read nor to write.
    Stall,
    /// To be gone, without telling guacd.
    Vanish,
}

/// How a run speaks to one session.
pub struct Orders {
    /// How many times all sessions had to prove themselves so far.
    pub proofs: watch::Receiver<u32>,
    /// How many times before this session began.
    pub before: u32,
    /// What it alone is to do.
    pub order: mpsc::UnboundedReceiver<Order>,
}

/// What a session tells the run.
#[derive(Debug)]
pub enum Told {
    /// guacd gave it this id.
    Ready(String),
    /// Its first nonce came back, so long after it began.
    Established(Duration),
    /// The nonce of this proof came back, so long after it was typed.
    Proven(u32, Duration),
    /// It is dead.
    Failed(Failed),
    /// After a failure of which guacd's log had told: whether the client itself was told within [`TOLD_WITHIN`].
    Heard(bool),
    /// It has done as it was ordered to.
    Done(Order),
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
    /// guacd's log told that the process is gone. The client may yet hear of it.
    Ended,
}

/// Lives a session from its beginning until it fails. Drop it to close it.
pub async fn live(setup: Arc<Setup>, index: usize, mut orders: Orders, tell: impl Fn(Told)) {
    let begun = Instant::now();
    let deadline = begun + setup.timeout;

    let mut session = match connect(&setup, index, deadline).await {
        Ok(session) => session,
        Err(failed) => return tell(Told::Failed(failed)),
    };
    let lived: Result<Order, Failed> = async {
        if let Event::Ready(id) = session.expect(deadline, setup.timeout).await? {
            session.id = Some(id.clone());
            tell(Told::Ready(id));
        }
        session.hear_of_target(deadline, setup.timeout).await?;
        session.enter(Phase::FirstProof);
        session.type_nonce();
        session.expect(deadline, setup.timeout).await?;
        session.enter(Phase::Hold);
        tell(Told::Established(begun.elapsed()));

        let mut proof = orders.before;
        loop {
            if let Some(order) = session.hold(&mut orders, proof).await? {
                return Ok(order);
            }
            proof += 1;
            session.enter(Phase::LastProof);
            let typed = Instant::now();
            session.type_nonce();
            session.expect(typed + setup.timeout, setup.timeout).await?;
            tell(Told::Proven(proof, typed.elapsed()));
        }
    }
    .await;
    match lived {
        Err(failed) => {
            let how = failed.how;
            tell(Told::Failed(failed));
            if how == How::Ended {
                tell(Told::Heard(session.is_told().await));
            }
        }
        Ok(Order::Stall) => {
            session.type_much();
            tell(Told::Done(Order::Stall));
            pending::<()>().await;
        }
        Ok(Order::Vanish) => {
            session.vanish();
            tell(Told::Done(Order::Vanish));
        }
    }
}

async fn connect(setup: &Setup, index: usize, deadline: Instant) -> Result<Session, Failed> {
    let failed = |reason, how| Failed { phase: Phase::Connect, reason, how };
    let stream = match timeout_at(deadline, TcpStream::connect(&setup.guacd[..])).await {
        Err(_) => {
            return Err(failed("silence: guacd did not accept the connection in time".into(), How::Silence));
        }
        Ok(Err(error)) => return Err(failed(format!("cannot connect to guacd: {error}"), How::CutOff)),
        Ok(Ok(stream)) => stream,
    };
    // Key presses are small and have to leave at once.
    let _ = stream.set_nodelay(true);

    let mut nop = interval_at(Instant::now() + NOP_INTERVAL, NOP_INTERVAL);
    nop.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut out = Vec::new();
    let link = Link::new(setup.logins[index % setup.logins.len()].clone(), &mut out);
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

    /// Waits until the target is heard of. Where it has to be called, that is done until it answers: nobody says when the
    /// program of a desktop that is drawn can be typed to.
    async fn hear_of_target(&mut self, deadline: Instant, timeout: Duration) -> Result<Event, Failed> {
        while self.link.has_call() && Instant::now() < deadline {
            self.link.type_call(&mut self.out);
            let again = deadline.min(Instant::now() + CALL_INTERVAL);
            if let Ok(event) = timeout_at(again, self.pump()).await {
                return event;
            }
        }
        self.expect(deadline, timeout).await
    }

    /// Keeps the session open until another proof than the last one is wanted, or until there is an order.
    async fn hold(&mut self, orders: &mut Orders, last: u32) -> Result<Option<Order>, Failed> {
        loop {
            tokio::select! {
                biased;
                Some(order) = orders.order.recv() => return Ok(Some(order)),
                // A run that is gone closes its sessions.
                _ = orders.proofs.wait_for(|&wanted| wanted > last) => return Ok(None),
                // Nothing that happens now counts, except the end of the session.
                event = self.pump() => { event?; }
            }
        }
    }

    /// Whether the client is told of the end of its session in time, by guacd and not by its log.
    async fn is_told(&mut self) -> bool {
        self.log = None;
        let told = async { while self.pump().await.is_ok() {} };
        timeout_at(Instant::now() + TOLD_WITHIN, told).await.is_ok()
    }

    /// Types so much that what comes back does not fit into the buffers between guacd and here.
    fn type_much(&mut self) {
        for _ in 0..1000 {
            self.type_nonce();
        }
        // What does not fit is not typed: from now on, nobody writes.
        let _ = self.stream.try_write(&self.out);
    }

    /// Closes the connection without a packet; or with a reset, where that is not allowed.
    fn vanish(self) {
        if !close_silently(&self.stream) {
            let _ = rustix::net::sockopt::set_socket_linger(self.stream.as_fd(), Some(Duration::ZERO));
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
                () = &mut ended => {
                    let failed = self.failed("guacd's process for the session ended");
                    return Err(Failed { how: How::Ended, ..failed });
                }
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

/// Has a connection's end of it forgotten when it is closed, as if the machine had lost its power: there is neither a FIN
/// nor a reset. guacd learns of it when it sends. Tells whether this is allowed.
fn close_silently(stream: &TcpStream) -> bool {
    use std::os::fd::AsRawFd;
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the option is an int that lives for the call.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            std::ptr::from_ref(&on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    set == 0
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
    use crate::{cli::Protocol, wire::link::Echo};
    use std::net::Ipv4Addr;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpSocket},
    };

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
        let echo = Echo::Pipe(String::new());
        let login = Login { protocol: Protocol::Ssh, arguments: Vec::new(), echo, call: None };
        let setup = Setup { guacd, logins: vec![login], timeout, log: None, connections: None };
        let deadline = Instant::now() + timeout;
        let mut session = connect(&setup, 0, deadline).await.unwrap();
        let failed = session.expect(deadline, timeout).await.unwrap_err();
        assert_eq!(failed.how, How::Silence);
        assert!(session.out.len() < 2 * MOST_UNSENT, "{} bytes are unsent", session.out.len());
    }

    #[tokio::test]
    async fn a_target_is_called_until_it_answers() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let guacd = vec![listener.local_addr().unwrap()];
        let called = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"4.args,13.VERSION_1_5_0;5.ready,3.$id;4.sync,1.1,1.1;").await.unwrap();
            let (mut heard, mut calls) = (Vec::new(), 0);
            while calls < 3 {
                stream.read_buf(&mut heard).await.unwrap();
                calls = String::from_utf8_lossy(&heard).matches("3.key,5.65293,1.1;").count();
            }
            stream.write_all(b"4.pipe,1.7,10.text/plain,5.proof;").await.unwrap();
            // Kept open.
            (stream, calls)
        });
        let timeout = Duration::from_secs(5);
        let echo = Echo::Pipe("proof".into());
        let login =
            Login { protocol: Protocol::Telnet, arguments: Vec::new(), echo, call: Some("go".into()) };
        let setup = Setup { guacd, logins: vec![login], timeout, log: None, connections: None };
        let deadline = Instant::now() + timeout;
        let mut session = connect(&setup, 0, deadline).await.unwrap();
        assert_eq!(session.expect(deadline, timeout).await, Ok(Event::Ready("$id".into())));
        assert_eq!(session.hear_of_target(deadline, timeout).await, Ok(Event::TargetHeard));
        assert_eq!(called.await.unwrap().1, 3);
    }
}

//! How does one session live? It connects, logs in, gives back a first nonce, is held open, gives back another nonce at each
//! proof, and stays open until it is closed. Chaos orders some sessions to misbehave.

use std::{future::pending, net::SocketAddr, os::fd::AsFd, sync::Arc, time::Duration};

use tokio::{
    io::Interest,
    net::TcpStream,
    sync::{mpsc, watch},
    task::coop::consume_budget,
    time::{Instant, MissedTickBehavior, interval_at, timeout_at},
};

use super::meter::{Counter, Meter};
use crate::{
    guacd::log::LogBook,
    report::Phase,
    wire::{
        codec::{self, Decoder},
        link::{Event, Link, Login},
        proof::fresh_nonce,
    },
};

/// guacd drops a user that has sent nothing for 15 seconds.
const NOP_INTERVAL: Duration = Duration::from_secs(5);

/// How long a target has to answer a call before it is called again.
const CALL_INTERVAL: Duration = Duration::from_millis(250);

/// Nothing more is read while this much is unsent: every instruction that is read may need an answer.
const MAX_UNSENT: usize = 64 * 1024;

/// How long after the end of its session a client may learn of it. A client that has heard nothing by then counts as silent.
pub const INFORMED_WITHIN: Duration = Duration::from_secs(5);

/// What all sessions of a run share.
pub struct Setup {
    /// Where guacd listens. Of several addresses, the first that answers is used.
    pub guacd: Vec<SocketAddr>,
    /// What guacd is to connect to. Sessions use these in turn.
    pub logins: Vec<Login>,
    /// How long a session may take to come up, and again to prove itself.
    pub timeout: Duration,
    /// guacd's log, if it can be read.
    pub log: Option<Arc<LogBook>>,
    /// What counts the frames that reach the clients, and their bytes.
    pub meter: Arc<Meter>,
}

/// An order to one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Type much, and then neither read nor write.
    Stall,
    /// Close the connection without informing guacd.
    Vanish,
}

/// What a run tells one session.
pub struct Orders {
    /// How many proofs were asked of all sessions so far.
    pub proofs: watch::Receiver<u32>,
    /// How many of these before this session began.
    pub before: u32,
    /// Orders to this session alone.
    pub order: mpsc::UnboundedReceiver<Order>,
}

/// What a session reports to the run.
#[derive(Debug)]
pub enum Notice {
    /// guacd gave it this id.
    Ready(String),
    /// Its first nonce came back, this long after it began.
    Established(Duration),
    /// The nonce of the proof with this number came back, this long after it was typed.
    Proven(u32, Duration),
    /// It has failed.
    Failed(Failed),
    /// It failed because guacd's log reported the end of its process. This says whether guacd informed the client itself
    /// within [`INFORMED_WITHIN`].
    Informed(bool),
}

/// The failure of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// How far it had come.
    pub phase: Phase,
    /// What the client saw.
    pub reason: String,
    /// How it learnt of its end.
    pub cause: Cause,
}

/// How a session learnt of its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// guacd informed it, or it found an error itself.
    Informed,
    /// It heard nothing in time, and gave up.
    Silence,
    /// It lost its connection. guacd may have died.
    CutOff,
    /// guacd's log reported the end of its process. guacd may yet inform the client.
    ProcessEnded,
}

/// Runs a session from its beginning until it fails. Drop it to close it.
pub async fn run(setup: Arc<Setup>, index: usize, mut orders: Orders, notify: impl Fn(Notice)) {
    let begun = Instant::now();
    let deadline = begun + setup.timeout;

    let mut session = match connect(&setup, index, deadline).await {
        Ok(session) => session,
        Err(failed) => return notify(Notice::Failed(failed)),
    };
    let end: Result<Order, Failed> = async {
        if let Event::Ready(id) = session.expect(deadline, setup.timeout).await? {
            session.id = Some(id.clone());
            notify(Notice::Ready(id));
        }
        session.wait_for_target(deadline, setup.timeout).await?;
        session.enter(Phase::FirstProof);
        session.type_nonce();
        session.expect(deadline, setup.timeout).await?;
        session.enter(Phase::Hold);
        notify(Notice::Established(begun.elapsed()));

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
            notify(Notice::Proven(proof, typed.elapsed()));
        }
    }
    .await;
    match end {
        Err(failed) => {
            let cause = failed.cause;
            notify(Notice::Failed(failed));
            if cause == Cause::ProcessEnded {
                notify(Notice::Informed(session.is_informed().await));
            }
        }
        Ok(Order::Stall) => {
            session.type_much();
            pending::<()>().await;
        }
        Ok(Order::Vanish) => {
            session.vanish();
        }
    }
}

/// Opens a session, and waits until its target has answered. Returns its connection, what was received and not read yet, and what
/// is still to be sent.
///
/// # Errors
///
/// Why it did not come up.
pub async fn open(setup: &Setup, index: usize) -> Result<(TcpStream, Decoder, Vec<u8>), Failed> {
    let deadline = Instant::now() + setup.timeout;
    let mut session = connect(setup, index, deadline).await?;
    session.expect(deadline, setup.timeout).await?;
    session.wait_for_target(deadline, setup.timeout).await?;
    Ok((session.stream, session.decoder, session.out))
}

async fn connect(setup: &Setup, index: usize, deadline: Instant) -> Result<Session, Failed> {
    let failed = |reason, cause| Failed { phase: Phase::Connect, reason, cause };
    let stream = match timeout_at(deadline, TcpStream::connect(&setup.guacd[..])).await {
        Err(_) => {
            return Err(failed(
                "silence: guacd did not accept the connection in time".into(),
                Cause::Silence,
            ));
        }
        Ok(Err(error)) => return Err(failed(format!("cannot connect to guacd: {error}"), Cause::CutOff)),
        Ok(Ok(stream)) => stream,
    };
    // Key presses are small and have to leave at once.
    let _ = stream.set_nodelay(true);

    let mut nop = interval_at(Instant::now() + NOP_INTERVAL, NOP_INTERVAL);
    nop.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut out = Vec::new();
    let link = Link::new(setup.logins[index % setup.logins.len()].clone(), &mut out);
    let (log, meter) = (setup.log.clone(), Arc::clone(&setup.meter));
    let counter = meter.counter();
    Ok(Session { stream, decoder: Decoder::default(), link, out, nop, id: None, log, meter, counter })
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
    meter: Arc<Meter>,
    /// The frames of this session.
    counter: Arc<Counter>,
}

impl Session {
    fn enter(&mut self, phase: Phase) {
        self.link.enter(phase);
    }

    fn type_nonce(&mut self) {
        self.link.type_nonce(&fresh_nonce(), &mut self.out);
    }

    fn failed(&self, reason: impl Into<String>) -> Failed {
        Failed { phase: self.link.phase(), reason: reason.into(), cause: Cause::Informed }
    }

    fn cut_off(&self, reason: impl Into<String>) -> Failed {
        Failed { cause: Cause::CutOff, ..self.failed(reason) }
    }

    /// Waits for the next event. Silence until the deadline is failure.
    async fn expect(&mut self, deadline: Instant, timeout: Duration) -> Result<Event, Failed> {
        match timeout_at(deadline, self.pump()).await {
            Ok(event) => event,
            Err(_) => {
                let missing = match self.link.phase() {
                    Phase::Login => "the target's program did not answer",
                    Phase::FirstProof | Phase::LastProof => "what was typed did not come back",
                    _ => "guacd did not answer",
                };
                let reason = format!("silence: {missing} within {}", humantime::format_duration(timeout));
                Err(Failed { cause: Cause::Silence, ..self.failed(reason) })
            }
        }
    }

    /// Waits until the target's program answers. Where it has to be called, it is called again and again: nothing announces
    /// when the program of a desktop takes input.
    async fn wait_for_target(&mut self, deadline: Instant, timeout: Duration) -> Result<Event, Failed> {
        while self.link.has_call() && Instant::now() < deadline {
            self.link.type_call(&mut self.out);
            let again = deadline.min(Instant::now() + CALL_INTERVAL);
            if let Ok(event) = timeout_at(again, self.pump()).await {
                return event;
            }
        }
        self.expect(deadline, timeout).await
    }

    /// Keeps the session open until the next proof is asked for, or until there is an order.
    async fn hold(&mut self, orders: &mut Orders, last: u32) -> Result<Option<Order>, Failed> {
        loop {
            tokio::select! {
                biased;
                Some(order) = orders.order.recv() => return Ok(Some(order)),
                // A run that has ended closes its sessions.
                _ = orders.proofs.wait_for(|&wanted| wanted > last) => return Ok(None),
                // Nothing that happens now counts, except the end of the session.
                event = self.pump() => { event?; }
            }
        }
    }

    /// Whether guacd itself, and not its log, informs the client of the end of its session in time.
    async fn is_informed(&mut self) -> bool {
        self.log = None;
        let informed = async { while self.pump().await.is_ok() {} };
        timeout_at(Instant::now() + INFORMED_WITHIN, informed).await.is_ok()
    }

    /// Types so much that the echo does not fit into the buffers between guacd and this client.
    fn type_much(&mut self) {
        for _ in 0..1000 {
            self.type_nonce();
        }
        // What does not fit is dropped: nothing is written from now on.
        let _ = self.stream.try_write(&self.out);
    }

    /// Closes the connection without a packet; or with a reset, where that is not allowed.
    fn vanish(self) {
        if !close_silently(&self.stream) {
            let _ = rustix::net::sockopt::set_socket_linger(self.stream.as_fd(), Some(Duration::ZERO));
        }
    }

    /// Sends and receives until something happens. It may be dropped at any time; nothing is lost.
    ///
    /// However much guacd sends, deadlines are kept, other sessions get their turn, and memory is bounded.
    async fn pump(&mut self) -> Result<Event, Failed> {
        let ended = ended(self.log.clone(), self.id.clone());
        tokio::pin!(ended);
        loop {
            // Without this, a socket that always has more to read would never yield the thread.
            consume_budget().await;
            while let Some(instruction) =
                self.decoder.instruction().map_err(|error| self.failed(error.to_string()))?
            {
                let event =
                    self.link.receive(&instruction, &mut self.out).map_err(|reason| self.failed(reason))?;
                if let Some(mark) = self.link.take_mark() {
                    self.meter.receive_frame(mark, &self.counter);
                }
                if let Some(event) = event {
                    return Ok(event);
                }
            }
            let interest = match self.out.len() {
                0 => Interest::READABLE,
                MAX_UNSENT.. => Interest::WRITABLE,
                _ => Interest::READABLE | Interest::WRITABLE,
            };
            tokio::select! {
                biased;
                _ = self.nop.tick() => codec::encode(&mut self.out, &["nop"]),
                // Before the end of the process: its last message says more than its end.
                ready = self.stream.ready(interest) => {
                    let ready = ready.map_err(|error| self.cut_off(error.to_string()))?;
                    if ready.is_writable() && !self.out.is_empty() {
                        self.send()?;
                    }
                    if ready.is_readable() && self.out.len() < MAX_UNSENT {
                        self.receive()?;
                    }
                }
                () = &mut ended => {
                    let failed = self.failed("guacd's process for the session ended");
                    return Err(Failed { cause: Cause::ProcessEnded, ..failed });
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
                self.meter.receive_bytes(length);
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(self.cut_off(format!("cannot receive from guacd: {error}"))),
        }
    }
}

/// Waits until guacd's log reports the end of the session's process. The connection does not show it, because other
/// processes of guacd hold copies of it.
async fn ended(log: Option<Arc<LogBook>>, id: Option<String>) {
    match (log, id) {
        (Some(log), Some(id)) => log.ended(&id).await,
        _ => pending().await,
    }
}

/// Makes the kernel close this end of the connection without a FIN or a reset, as if the machine had lost its power. guacd
/// learns of it when it sends. Returns whether the kernel allows this.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::link::Echo;
    use std::net::Ipv4Addr;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpSocket},
    };

    /// guacd runs on another thread here. On the same one, it could not send faster than the session reads.
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
        let login = Login { protocol: "ssh", arguments: Vec::new(), echo, call: None };
        let setup = Setup { guacd, logins: vec![login], timeout, log: None, meter: Arc::default() };
        let deadline = Instant::now() + timeout;
        let mut session = connect(&setup, 0, deadline).await.unwrap();
        let failed = session.expect(deadline, timeout).await.unwrap_err();
        assert_eq!(failed.cause, Cause::Silence);
        assert!(session.out.len() < 2 * MAX_UNSENT, "{} bytes are unsent", session.out.len());
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
        let login = Login { protocol: "telnet", arguments: Vec::new(), echo, call: Some("go".into()) };
        let setup = Setup { guacd, logins: vec![login], timeout, log: None, meter: Arc::default() };
        let deadline = Instant::now() + timeout;
        let mut session = connect(&setup, 0, deadline).await.unwrap();
        assert_eq!(session.expect(deadline, timeout).await, Ok(Event::Ready("$id".into())));
        assert_eq!(session.wait_for_target(deadline, timeout).await, Ok(Event::TargetReady));
        assert_eq!(called.await.unwrap().1, 3);
    }
}

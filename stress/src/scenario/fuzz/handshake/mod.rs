//! What do malformed handshakes do to guacd? Each is sent over its own connection, which guacd has to end in time.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::process::Pid;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use self::script::Ending;
pub use self::script::Handshake;
use super::pool::{Outcome, Played, Player, SUSPECT};
use crate::{guacd::sample, load::crowd::Crowd};

mod script;

/// Maximum number of guacd's threads for connections whose clients have left already. What waits behind more of them would
/// not be answered in time.
const MAX_WAITING: u32 = 256;

/// How long guacd may take to accept a connection, and to read from it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long it may take to end a connection. It gives up a silent handshake after 15 s; stock 1.6.0 also waits that long for
/// a client that has closed its sending side.
const END: Duration = Duration::from_secs(20);

/// Sends handshakes.
pub struct Handshakes {
    guacd: Vec<SocketAddr>,
    /// guacd's parent process, where it was started here.
    process: Option<Pid>,
    /// The threads that it had before the first handshake.
    threads_before: u32,
    /// When guacd had room for more handshakes last.
    had_room: Mutex<Instant>,
}

impl Player for Handshakes {
    type Script = Handshake;

    const PARALLEL: u32 = 64;
    const FAILURES: &[Outcome] = &[Outcome::Unanswered];
    const MAX_SUSPECTS: usize = 128;
    const AGAIN: Duration = Duration::from_millis(300);

    fn new(crowd: &Crowd<'_>) -> Self {
        let process = crowd.guacd.as_ref().map(|guacd| guacd.pid());
        Self {
            guacd: crowd.setup.guacd.clone(),
            process,
            threads_before: process.and_then(sample::threads).unwrap_or_default(),
            had_room: Mutex::new(Instant::now()),
        }
    }

    async fn play(&self, _number: u32, handshake: &Handshake) -> Played {
        send(&self.guacd, handshake).await.into()
    }

    /// The next handshakes wait until guacd has caught up.
    fn room(&self) -> u32 {
        let Some(process) = self.process else { return u32::MAX };
        let threads = sample::threads(process).unwrap_or_default();
        let room = (self.threads_before + MAX_WAITING).saturating_sub(threads);
        let mut had_room = self.had_room.lock().unwrap_or_else(PoisonError::into_inner);
        if room > 0 {
            *had_room = Instant::now();
        } else if had_room.elapsed() > END {
            // It does not catch up. The next handshakes will show that it serves nobody.
            return MAX_WAITING;
        }
        room
    }

    /// The damage of a handshake shows at once, however long guacd takes to end its connection.
    fn is_suspect(began: Instant, _ended: Option<Instant>) -> bool {
        began.elapsed() < SUSPECT
    }
}

async fn send(guacd: &[SocketAddr], handshake: &Handshake) -> Outcome {
    let Ok(Ok(mut stream)) = timeout(PATIENCE, TcpStream::connect(guacd)).await else {
        return Outcome::Unanswered;
    };
    let _ = stream.set_nodelay(true);
    for (index, piece) in handshake.pieces.iter().enumerate() {
        if index > 0 {
            sleep(Duration::from_millis(5)).await;
        }
        // guacd may close the connection before it has everything.
        if !matches!(timeout(PATIENCE, stream.write_all(piece)).await, Ok(Ok(()))) {
            break;
        }
    }
    match handshake.ending {
        Ending::Close => return Outcome::Abandoned,
        Ending::Reset => {
            let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
            return Outcome::Abandoned;
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
        return Outcome::Unanswered;
    }
    let contains = |word: &[u8]| answer.windows(word.len()).any(|part| part == word);
    match () {
        () if contains(b"5.ready,") => Outcome::Ready,
        () if contains(b"5.error,") => Outcome::Error,
        () => Outcome::Closed,
    }
}

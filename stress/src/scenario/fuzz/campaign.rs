//! What do malformed handshakes do to guacd? They are sent while sessions are open. Those after which something was wrong are
//! sent again, alone, and saved.

use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant as StdInstant},
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::input::{Ending, Input};
use crate::{
    guacd::{log::LogBook, sample},
    load::crowd::{Crowd, TICK},
    report::{Fuzz, FuzzKind, progress::Step},
};

/// How many inputs are sent at the same time.
const PARALLEL: usize = 64;

/// Maximum number of guacd's threads for connections whose clients have left already. What waits behind more of them would
/// not be answered in time.
const MAX_WAITING: u32 = 256;

/// How often a worker checks whether it may go on.
const PAUSE: Duration = Duration::from_millis(20);

/// How long guacd may take to accept a connection, and to read from it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long it may take to end a connection. It gives up a silent handshake after 15 s; stock 1.6.0 also waits that long for
/// a client that has closed its sending side.
const END: Duration = Duration::from_secs(20);

/// An input is suspected if it was begun at most this long before the damage: damage shows at once.
const SUSPECT: Duration = Duration::from_secs(2);

/// How long a suspect that is sent again, alone, has to do its damage again.
const AGAIN: Duration = Duration::from_millis(300);

/// Maximum number of inputs that are suspected, and that are saved.
const MAX_SUSPECTS: usize = 128;
const MAX_SAVED: usize = 8;

/// How guacd answered an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Error,
    Ready,
    Closed,
    Abandoned,
    Unanswered,
}

/// Which inputs are sent.
pub enum Inputs {
    /// So many, generated from a seed.
    Generated {
        /// The seed.
        seed: u64,
        /// How many.
        count: u32,
    },
    /// One that an earlier run has saved.
    Replayed {
        /// The input.
        input: Input,
        /// The seed that the report contains.
        seed: u64,
    },
}

impl Inputs {
    fn count(&self) -> u32 {
        match self {
            Self::Generated { count, .. } => *count,
            Self::Replayed { .. } => 1,
        }
    }

    fn seed(&self) -> u64 {
        match self {
            Self::Generated { seed, .. } | Self::Replayed { seed, .. } => *seed,
        }
    }
}

/// All inputs of a run, and what came of them so far.
struct Campaign {
    guacd: Vec<SocketAddr>,
    inputs: Inputs,
    /// How many inputs there are.
    count: u32,
    next: AtomicU32,
    /// How many inputs may have been begun by now. The next ones wait until guacd has caught up.
    limit: AtomicU32,
    answers: [AtomicU32; 5],
    /// The numbers of the latest inputs, and when they began.
    recent: Mutex<VecDeque<(u32, StdInstant)>>,
    /// The inputs whose connection guacd did not end.
    unanswered: Mutex<BTreeSet<u32>>,
}

impl Campaign {
    fn input(&self, number: u32) -> Input {
        match &self.inputs {
            Inputs::Generated { seed, .. } => Input::generate(*seed, number),
            Inputs::Replayed { input, .. } => input.clone(),
        }
    }

    /// Sends one input after another, until there is none left.
    async fn work(self: Arc<Self>) {
        loop {
            let is_next_allowed = || {
                let next = self.next.load(Ordering::Relaxed);
                next >= self.count || next < self.limit.load(Ordering::Relaxed)
            };
            while !is_next_allowed() {
                sleep(PAUSE).await;
            }
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.count {
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

/// Sends all inputs while sessions are open, and saves those that did damage in `logs`.
///
/// # Errors
///
/// When an input cannot be saved.
pub async fn run(crowd: &mut Crowd<'_>, inputs: Inputs, logs: &Path) -> Result<Fuzz> {
    let campaign = Arc::new(Campaign {
        guacd: crowd.setup.guacd.clone(),
        count: inputs.count(),
        inputs,
        next: AtomicU32::new(0),
        limit: AtomicU32::new(if crowd.guacd.is_some() { MAX_WAITING } else { u32::MAX }),
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
    let mut crashes_before = before;
    let mut alive_before = crowd.alive();
    while !workers.is_empty() && crowd.died.is_none() {
        crowd.run_until(Some(Instant::now() + TICK), |crowd| crowd.died.is_some()).await;
        while workers.try_join_next().is_some() {}
        if pid.is_some() {
            let mut room = (threads_before + MAX_WAITING).saturating_sub(threads());
            if room > 0 {
                had_room = Instant::now();
            } else if had_room.elapsed() > END {
                // It does not catch up. The next inputs will show that it serves nobody.
                room = MAX_WAITING;
            }
            campaign.limit.store(campaign.next.load(Ordering::Relaxed) + room, Ordering::Relaxed);
        }
        crowd.set_step(Step::Fuzz(FuzzKind::Handshake, campaign.sent()));
        if crashes() > crashes_before || crowd.alive() < alive_before || crowd.died.is_some() {
            suspects.extend(campaign.recent().iter().map(|(number, _)| *number));
            (crashes_before, alive_before) = (crashes(), crowd.alive());
        }
    }
    workers.shutdown().await;
    // guacd may not have logged yet what the last inputs did.
    crowd.run_until(Some(Instant::now() + TICK), |crowd| crowd.died.is_some()).await;
    if crashes() > crashes_before {
        suspects.extend(campaign.recent().iter().map(|(number, _)| *number));
    }
    let crashes = log.as_ref().map(|_| crashes() - before);
    let saved = save(crowd, &campaign, suspects, log.as_deref(), logs).await?;
    Ok(Fuzz {
        kind: FuzzKind::Handshake,
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

/// Saves the suspects that do damage again when they are sent alone, or all of them if none does; and the inputs whose
/// connection guacd did not end.
async fn save(
    crowd: &mut Crowd<'_>,
    campaign: &Campaign,
    suspects: BTreeSet<u32>,
    log: Option<&LogBook>,
    logs: &Path,
) -> Result<Vec<String>> {
    let suspects = suspects.into_iter().take(MAX_SUSPECTS).collect::<Vec<_>>();
    let mut guilty = Vec::new();
    if let Some(log) = log {
        for &number in &suspects {
            if crowd.died.is_some() || guilty.len() == MAX_SAVED {
                break;
            }
            let before = log.crashes();
            let _ = timeout(AGAIN, send(&campaign.guacd, &campaign.input(number))).await;
            crowd.run_until(Some(Instant::now() + TICK), |crowd| crowd.died.is_some()).await;
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
        unanswered.into_iter().filter(|number| !guilty.contains(number)).take(MAX_SAVED).collect::<Vec<_>>(),
    );
    let save = |number: &u32| {
        let name = format!("fuzz-{}-{number}.json", campaign.inputs.seed());
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
        // guacd may have closed the connection already, as it may.
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
    let contains = |word: &[u8]| answer.windows(word.len()).any(|part| part == word);
    match () {
        () if contains(b"5.ready,") => Answer::Ready,
        () if contains(b"5.error,") => Answer::Error,
        () => Answer::Closed,
    }
}

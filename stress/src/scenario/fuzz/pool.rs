//! How are scripts played while sessions are open? Workers play some at the same time. Scripts that may have done damage are
//! played again, alone, and saved.

use std::{
    collections::{BTreeSet, VecDeque},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::script::{Script, Scripts};
use crate::{
    guacd::log::LogBook,
    load::crowd::Crowd,
    report::{Fuzz, progress::Step},
};

/// Damage shows within this time.
pub const SUSPECT: Duration = Duration::from_secs(2);

/// Maximum number of scripts that are saved because they did damage again, and of those that are saved because they failed.
const MAX_SAVED: usize = 8;

/// How often a worker checks whether it may go on.
const PAUSE: Duration = Duration::from_millis(20);

/// How a connection to guacd ended. The report has the number of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// guacd answered a handshake with `ready`, or a session answered or proved itself at its end.
    Ready,
    /// guacd ended it with an error or `disconnect`.
    Error,
    /// guacd closed it without either, or sent what is not the protocol.
    Closed,
    /// The client ended a handshake in the middle, or a session did not open.
    Abandoned,
    /// guacd did not answer, read or close it in time.
    Unanswered,
}

/// What came of a script.
#[derive(Debug, Default)]
pub struct Played {
    /// How many of its inputs were sent.
    pub inputs: u32,
    /// How the connections ended over which they were sent.
    pub outcomes: Vec<Outcome>,
}

impl From<Outcome> for Played {
    /// What came of a script that is one input.
    fn from(outcome: Outcome) -> Self {
        Self { inputs: 1, outcomes: vec![outcome] }
    }
}

/// How the scripts of one kind are played.
pub trait Player: Send + Sync + 'static {
    /// What is played.
    type Script: Script;

    /// How many scripts are played at the same time.
    const PARALLEL: u32;

    /// The outcomes after which a script is saved.
    const FAILURES: &[Outcome];

    /// Maximum number of suspects. They are played again, alone, to find those that did the damage.
    const MAX_SUSPECTS: usize = 0;

    /// How long a suspect that is played again has to do its damage again.
    const AGAIN: Duration = Duration::ZERO;

    /// A player that uses the guacd of these sessions.
    fn new(crowd: &Crowd<'_>) -> Self;

    /// Plays a script.
    fn play(&self, number: u32, script: &Self::Script) -> impl Future<Output = Played> + Send;

    /// How many more scripts may be begun now.
    fn room(&self) -> u32 {
        u32::MAX
    }

    /// Whether a script may have done the damage that shows now. `ended` is None while it is played.
    fn is_suspect(_began: Instant, ended: Option<Instant>) -> bool {
        ended.is_none_or(|ended| ended.elapsed() < SUSPECT)
    }
}

/// A script that is played, or was a moment ago.
struct Recent {
    number: u32,
    began: Instant,
    ended: Option<Instant>,
}

/// All scripts of a run, and what came of them so far.
struct Pool<P: Player> {
    player: P,
    scripts: Scripts<P::Script>,
    /// The number of the next script.
    next: AtomicU32,
    /// How many scripts may have been begun by now.
    limit: AtomicU32,
    /// How many inputs were sent.
    sent: AtomicU32,
    /// How many connections had each outcome.
    outcomes: [AtomicU32; 5],
    recent: Mutex<VecDeque<Recent>>,
    /// The scripts with an outcome of [`Player::FAILURES`].
    failed: Mutex<BTreeSet<u32>>,
}

impl<P: Player> Pool<P> {
    /// Plays one script after another, until there is none left.
    async fn work(self: Arc<Self>) {
        let count = self.scripts.count();
        loop {
            let is_next_allowed = || {
                let next = self.next.load(Ordering::Relaxed);
                next >= count || next < self.limit.load(Ordering::Relaxed)
            };
            while !is_next_allowed() {
                sleep(PAUSE).await;
            }
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            {
                let mut recent = self.recent();
                recent.retain(|recent| P::is_suspect(recent.began, recent.ended));
                recent.push_back(Recent { number, began: Instant::now(), ended: None });
            }
            let script = self.scripts.script(number);
            let played = self.player.play(number, &script).await;
            self.note(number, &played);
        }
    }

    fn note(&self, number: u32, played: &Played) {
        self.sent.fetch_add(played.inputs, Ordering::Relaxed);
        for &outcome in &played.outcomes {
            self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
        }
        if played.outcomes.iter().any(|outcome| P::FAILURES.contains(outcome)) {
            self.failed().insert(number);
        }
        for recent in self.recent().iter_mut().filter(|recent| recent.number == number) {
            recent.ended = Some(Instant::now());
        }
    }

    fn recent(&self) -> MutexGuard<'_, VecDeque<Recent>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn suspects(&self) -> Vec<u32> {
        self.recent().iter().map(|recent| recent.number).collect()
    }

    fn sent(&self) -> u32 {
        self.sent.load(Ordering::Relaxed)
    }

    fn count(&self, outcome: Outcome) -> u32 {
        self.outcomes[outcome as usize].load(Ordering::Relaxed)
    }

    /// Saves the suspects that do damage again when they are played alone, or all of them if none does; and the scripts that
    /// failed. Returns the files.
    async fn save(
        &self,
        crowd: &mut Crowd<'_>,
        suspects: BTreeSet<u32>,
        log: Option<&LogBook>,
        logs: &Path,
    ) -> Result<Vec<String>> {
        let suspects = suspects.into_iter().take(P::MAX_SUSPECTS).collect::<Vec<_>>();
        let mut guilty = Vec::new();
        if let Some(log) = log {
            for &number in &suspects {
                if crowd.died.is_some() || guilty.len() == MAX_SAVED {
                    break;
                }
                let before = log.crashes();
                let script = self.scripts.script(number);
                let _ = timeout(P::AGAIN, self.player.play(number, &script)).await;
                crowd.run_for_a_tick().await;
                if log.crashes() > before || crowd.died.is_some() {
                    guilty.push(number);
                }
            }
        }
        if guilty.is_empty() {
            guilty = suspects;
        }
        let failed = self.failed().clone();
        guilty.extend(
            failed.into_iter().filter(|number| !guilty.contains(number)).take(MAX_SAVED).collect::<Vec<_>>(),
        );
        let save = |&number: &u32| {
            let file = self.scripts.script(number).save(logs, &self.scripts.file_name(number))?;
            Ok(file.display().to_string())
        };
        guilty.iter().map(save).collect()
    }
}

/// Plays all scripts while the crowd's sessions are open, and saves in `logs` those that did damage.
///
/// # Errors
///
/// When a script cannot be saved.
pub async fn run<P: Player>(crowd: &mut Crowd<'_>, scripts: Scripts<P::Script>, logs: &Path) -> Result<Fuzz> {
    let player = P::new(crowd);
    let pool = Arc::new(Pool {
        limit: AtomicU32::new(player.room()),
        player,
        scripts,
        next: AtomicU32::new(0),
        sent: AtomicU32::new(0),
        outcomes: Default::default(),
        recent: Mutex::default(),
        failed: Mutex::default(),
    });
    let log = crowd.setup.log.clone();
    let crashes = || log.as_ref().map_or(0, |log| log.crashes());
    let before = crashes();
    let mut workers = JoinSet::new();
    for _ in 0..P::PARALLEL {
        workers.spawn(Arc::clone(&pool).work());
    }
    let mut suspects = BTreeSet::new();
    let mut crashes_before = before;
    let mut alive_before = crowd.alive();
    while !workers.is_empty() && crowd.died.is_none() {
        crowd.run_for_a_tick().await;
        while workers.try_join_next().is_some() {}
        let begun = pool.next.load(Ordering::Relaxed);
        pool.limit.store(begun.saturating_add(pool.player.room()), Ordering::Relaxed);
        crowd.set_step(Step::Fuzz(P::Script::KIND, pool.sent()));
        if crashes() > crashes_before || crowd.alive() < alive_before || crowd.died.is_some() {
            suspects.extend(pool.suspects());
            (crashes_before, alive_before) = (crashes(), crowd.alive());
        }
    }
    workers.shutdown().await;
    // guacd may not have logged yet what the last scripts did.
    crowd.run_for_a_tick().await;
    if crashes() > crashes_before {
        suspects.extend(pool.suspects());
    }
    let crashes = log.as_ref().map(|_| crashes() - before);
    let saved = pool.save(crowd, suspects, log.as_deref(), logs).await?;
    Ok(Fuzz {
        kind: P::Script::KIND,
        inputs: pool.sent(),
        errors: pool.count(Outcome::Error),
        ready: pool.count(Outcome::Ready),
        closed: pool.count(Outcome::Closed),
        abandoned: pool.count(Outcome::Abandoned),
        unanswered: pool.count(Outcome::Unanswered),
        crashes,
        saved,
    })
}

//! Many sessions at once: they are opened, held, made to prove themselves, closed; and each is accounted for.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use hdrhistogram::Histogram;
use tokio::{
    sync::{mpsc, watch},
    task::{self, JoinSet},
    time::{Instant, interval, sleep_until},
};

use crate::{
    cli::Load,
    guacd::sample::Sampler,
    guacd::start::Guacd,
    load::session::{self, Failed, How, Order, Orders, Setup, Told},
    report::{ByAge, Failure, Latency, Phase, Strike, StrikeKind},
};

/// Sessions that lost their connection this shortly before guacd was seen to be dead have died of that.
const SAME_DEATH: Duration = Duration::from_secs(3);

/// Sessions of this long a time, at the given rate, may be coming up at once; and each is waited for so long.
const BACKLOG: Duration = Duration::from_secs(2);
const PROMISING: Duration = Duration::from_secs(5);

/// How often guacd is looked at, and progress is told.
pub const TICK: Duration = Duration::from_millis(200);

/// So many sessions at each end of a run are compared with each other.
const AGE_GROUP: usize = 100;

/// Where a run stands, for those who watch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// What is being done.
    pub step: Step,
    /// How many sessions were asked for.
    pub requested: u32,
    /// How many were begun.
    pub started: u32,
    /// How many are open, with a first proof.
    pub alive: u32,
    /// How many have given the last proof that was asked of them.
    pub proven: u32,
    /// How many are dead.
    pub failed: u32,
}

/// What a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Sessions are being opened.
    Ramp,
    /// All are open.
    Hold,
    /// All have to give back a fresh nonce.
    Proof,
    /// All were closed, and guacd gets time to notice.
    Settle,
    /// Some are struck.
    Chaos,
    /// So many malformed handshakes were sent.
    Fuzz(u32),
    /// guacd was told to end.
    Shutdown,
}

/// Where one session stands.
enum State {
    Waiting,
    Coming(StdInstant),
    Alive,
    Proven,
    /// It was proven, and then closed.
    Closed,
    Failed(Dead),
    Struck(Struck),
}

/// How many kinds of states there are.
const KINDS: usize = 7;

impl State {
    fn kind(&self) -> usize {
        match self {
            Self::Waiting => 0,
            Self::Coming(_) => 1,
            Self::Alive => 2,
            Self::Proven => 3,
            Self::Closed => 4,
            Self::Failed(_) => 5,
            Self::Struck(_) => 6,
        }
    }
}

/// How a session died.
struct Dead {
    failed: Failed,
    at: StdInstant,
    /// What guacd had said about it by then.
    said: Option<String>,
    /// Whether the client was told. None as long as it may yet be.
    heard: Option<bool>,
}

/// What was done to a session on purpose.
struct Struck {
    kind: StrikeKind,
    at: StdInstant,
    /// How long it took to end as it should.
    ended: Option<Duration>,
}

/// All sessions of a run, and the guacd that they go through.
pub struct Crowd<'a> {
    /// What was asked for.
    pub load: &'a Load,
    /// What sessions share.
    pub setup: Arc<Setup>,
    /// The guacd, where it was started here.
    pub guacd: Option<&'a mut Guacd>,
    /// When the run began.
    pub begun: StdInstant,
    /// What looks at guacd over time.
    pub sampler: Option<Sampler>,
    /// How guacd ended by itself.
    pub died: Option<String>,
    /// How many sessions came up.
    pub established: u32,
    /// How many were open at the same time, at most.
    pub peak_alive: u32,
    watch: &'a mut dyn FnMut(Tally),

    /// One for each session that was begun. To drop them closes the sessions.
    tasks: JoinSet<()>,
    /// The session of each task.
    session_of: HashMap<task::Id, usize>,
    orders: HashMap<usize, mpsc::UnboundedSender<Order>>,
    proofs: watch::Sender<u32>,
    tell: mpsc::UnboundedSender<(usize, Told)>,
    told: mpsc::UnboundedReceiver<(usize, Told)>,

    step: Step,
    states: Vec<State>,
    /// How many sessions there are in each kind of state.
    counts: [u32; KINDS],
    ids: Vec<Option<String>>,
    /// How many sessions it is not known of yet whether their clients are told of their end.
    unheard: u32,
    first_proofs: Vec<Option<Duration>>,
    last_proofs: Vec<Duration>,
}

impl<'a> Crowd<'a> {
    /// Sessions that are all still to be opened.
    pub fn new(
        load: &'a Load,
        setup: Arc<Setup>,
        guacd: Option<&'a mut Guacd>,
        watch: &'a mut dyn FnMut(Tally),
    ) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        let count = load.count as usize;
        let mut counts = [0; KINDS];
        counts[State::Waiting.kind()] = load.count;
        let begun = StdInstant::now();
        let sampler = guacd.as_ref().and_then(|guacd| Sampler::start(guacd.pid(), begun));
        Self {
            load,
            setup,
            guacd,
            begun,
            sampler,
            died: None,
            established: 0,
            peak_alive: 0,
            watch,
            tasks: JoinSet::new(),
            session_of: HashMap::new(),
            orders: HashMap::new(),
            proofs: watch::Sender::new(0),
            tell,
            told,
            step: Step::Ramp,
            states: (0..count).map(|_| State::Waiting).collect(),
            counts,
            ids: vec![None; count],
            unheard: 0,
            first_proofs: vec![None; count],
            last_proofs: Vec::new(),
        }
    }

    /// Begins one session after another, and waits until each has come up or failed.
    ///
    /// A machine that does not keep up is given time, unless it is to be pressed: to pile logins on each other would
    /// measure its processors, and bring out the faults of bursts. Those that take too long hold nobody up, for they
    /// may be dead.
    pub async fn open(&mut self, sessions: Range<usize>, press: bool) {
        self.step = Step::Ramp;
        let most_coming = (self.load.rate.per_second() * BACKLOG.as_secs_f64()).ceil().max(2.0) as u32;
        let mut turn = Instant::now();
        for index in sessions {
            self.attend_until(Some(turn), |crowd| crowd.died.is_some()).await;
            if !press {
                let enough =
                    |crowd: &Self| crowd.died.is_some() || crowd.promising(index, most_coming) < most_coming;
                self.attend_until(None, enough).await;
            }
            if self.died.is_some() {
                return;
            }
            turn = turn.max(Instant::now() - TICK) + self.load.rate.interval();
            let tell = self.tell.clone();
            let (order, orders) = mpsc::unbounded_channel();
            self.orders.insert(index, order);
            let before = *self.proofs.borrow();
            let orders = Orders { proofs: self.proofs.subscribe(), before, order: orders };
            let session = session::live(Arc::clone(&self.setup), index, orders, move |told| {
                let _ = tell.send((index, told));
            });
            self.begin(index, session);
        }
        self.attend_until(None, |crowd| crowd.coming() == 0).await;
    }

    /// How many of the sessions before this one are coming up, and not too slowly; or any number that is enough.
    fn promising(&self, before: usize, enough: u32) -> u32 {
        if self.coming() < enough {
            return self.coming();
        }
        let since = |state: &State| match state {
            State::Coming(since) => Some(since.elapsed()),
            _ => None,
        };
        // They were begun in this order.
        let coming = self.states[..before].iter().rev().filter_map(since);
        coming.take_while(|&since| since < PROMISING).take(enough as usize).count() as u32
    }

    fn begin(&mut self, index: usize, session: impl Future<Output = ()> + Send + 'static) {
        self.set(index, State::Coming(StdInstant::now()));
        let task = self.tasks.spawn(session);
        self.session_of.insert(task.id(), index);
    }

    /// Holds all sessions open, for as long as any is.
    pub async fn hold(&mut self, time: Duration) {
        self.step = Step::Hold;
        self.attend_until(Some(Instant::now() + time), |crowd| crowd.alive() == 0).await;
    }

    /// Has all sessions prove themselves that are open, and waits until each has or has failed. Tells how many had to,
    /// how many did, and how long it took them.
    pub async fn prove(&mut self) -> (u32, u32, Option<Latency>) {
        self.step = Step::Proof;
        for index in 0..self.states.len() {
            if matches!(self.states[index], State::Proven) {
                self.set(index, State::Alive);
            }
        }
        let asked = self.alive();
        let before = self.last_proofs.len();
        self.proofs.send_modify(|proofs| *proofs += 1);
        self.attend_until(None, |crowd| crowd.coming() + crowd.counts[State::Alive.kind()] == 0).await;
        // What ends with the last proof, as of something that the proof itself brought out, has not outlived it.
        self.attend_until(Some(Instant::now() + TICK), |crowd| crowd.died.is_some()).await;
        self.look_after_guacd();
        (asked, self.counts[State::Proven.kind()], latency(&self.last_proofs[before..]))
    }

    /// Waits until it is known of each session that failed whether its client was told.
    pub async fn hear(&mut self) {
        self.attend_until(None, |crowd| crowd.unheard == 0).await;
    }

    /// Closes all sessions: those that are proven count as such from then on.
    pub async fn close(&mut self) {
        self.step = Step::Settle;
        self.tasks.abort_all();
        self.session_of.clear();
        self.orders.clear();
        while self.tasks.join_next().await.is_some() {}
        while let Ok((index, told)) = self.told.try_recv() {
            self.note(index, told);
        }
        for index in 0..self.states.len() {
            if matches!(self.states[index], State::Proven) {
                self.set(index, State::Closed);
            }
        }
        self.show();
    }

    /// Takes note of what sessions tell and of guacd's death, until a time has come or something is so.
    pub async fn attend_until(&mut self, end: Option<Instant>, enough: impl Fn(&Self) -> bool) {
        let mut tick = interval(TICK);
        let forever = Instant::now() + Duration::from_secs(365 * 24 * 60 * 60);
        while !enough(self) {
            tokio::select! {
                biased;
                Some((index, told)) = self.told.recv() => self.note(index, told),
                Some(Err(broken)) = self.tasks.join_next() => self.note_broken(&broken),
                () = sleep_until(end.unwrap_or(forever)) => return,
                _ = tick.tick() => {
                    self.look_after_guacd();
                    self.show();
                }
            }
        }
        self.show();
    }

    /// Says what is being done, for those who watch.
    pub fn step(&mut self, step: Step) {
        self.step = step;
        self.show();
    }

    fn set(&mut self, index: usize, state: State) {
        self.counts[self.states[index].kind()] -= 1;
        self.counts[state.kind()] += 1;
        self.states[index] = state;
    }

    fn note(&mut self, index: usize, told: Told) {
        match (&mut self.states[index], told) {
            (State::Failed(dead), Told::Heard(heard)) => {
                dead.heard = Some(heard);
                self.unheard -= 1;
            }
            (
                State::Struck(struck),
                Told::Failed(Failed { how: How::Told | How::CutOff, .. }) | Told::Heard(true),
            ) => {
                struck.ended.get_or_insert(struck.at.elapsed());
            }
            // The dead stay dead.
            (State::Failed(_) | State::Struck(_) | State::Closed, _) => {}
            (_, Told::Ready(id)) => self.ids[index] = Some(id),
            (_, Told::Established(took)) => {
                self.set(index, State::Alive);
                self.established += 1;
                self.first_proofs[index] = Some(took);
                self.peak_alive = self.peak_alive.max(self.alive());
            }
            (_, Told::Proven(proof, took)) => {
                if proof == *self.proofs.borrow() {
                    self.set(index, State::Proven);
                }
                self.last_proofs.push(took);
            }
            (_, Told::Failed(failed)) => {
                let heard = match failed.how {
                    How::Told | How::CutOff => Some(true),
                    How::Silence => Some(false),
                    How::Ended => None,
                };
                self.unheard += u32::from(heard.is_none());
                let said = self.said(index);
                self.set(index, State::Failed(Dead { failed, at: StdInstant::now(), said, heard }));
            }
            (_, Told::Heard(_) | Told::Done(_)) => {}
        }
    }

    /// A session that will never tell anything again, by a fault of this program's.
    fn note_broken(&mut self, broken: &task::JoinError) {
        let Some(&index) = self.session_of.get(&broken.id()) else { return };
        if let Some(phase) = self.phase(&self.states[index]) {
            let reason = format!("guac-stress itself failed: {broken}");
            self.note(index, Told::Failed(Failed { phase, reason, how: How::Told }));
        }
    }

    /// How far a session is that has not failed. One that was not begun is nowhere, as is one that was closed.
    fn phase(&self, state: &State) -> Option<Phase> {
        match state {
            State::Waiting | State::Failed(_) | State::Closed | State::Struck(_) => None,
            State::Coming(_) => Some(Phase::Login),
            State::Alive if self.step == Step::Proof => Some(Phase::LastProof),
            State::Alive => Some(Phase::Hold),
            State::Proven => Some(Phase::LastProof),
        }
    }

    /// The most telling line of guacd's about a session.
    fn said(&self, index: usize) -> Option<String> {
        self.setup.log.as_ref()?.telling(self.ids[index].as_deref())
    }

    /// Sees whether guacd is dead, in which case every session is that was begun.
    pub fn look_after_guacd(&mut self) {
        if self.died.is_some() {
            return;
        }
        let Some(end) = self.guacd.as_mut().and_then(|guacd| guacd.ended()) else { return };
        let reason = format!("guacd {end}");
        for index in 0..self.states.len() {
            let phase = match &self.states[index] {
                State::Failed(dead)
                    if matches!(dead.failed.how, How::CutOff | How::Ended)
                        && dead.at.elapsed() < SAME_DEATH =>
                {
                    Some(dead.failed.phase)
                }
                state => self.phase(state),
            };
            let Some(phase) = phase else { continue };
            let failed = Failed { phase, reason: reason.clone(), how: How::CutOff };
            let dead = Dead { failed, at: StdInstant::now(), said: None, heard: Some(true) };
            self.set(index, State::Failed(dead));
        }
        let unheard = |state: &&State| matches!(state, State::Failed(Dead { heard: None, .. }));
        self.unheard = self.states.iter().filter(unheard).count() as u32;
        self.died = Some(end);
    }

    fn coming(&self) -> u32 {
        self.counts[State::Coming(self.begun).kind()]
    }

    /// How many sessions were begun.
    pub fn started(&self) -> u32 {
        self.load.count - self.counts[State::Waiting.kind()]
    }

    /// How many sessions are open.
    pub fn alive(&self) -> u32 {
        self.counts[State::Alive.kind()] + self.counts[State::Proven.kind()]
    }

    /// How many sessions gave the last proof that was asked of them.
    pub fn proven(&self) -> u32 {
        self.counts[State::Proven.kind()] + self.counts[State::Closed.kind()]
    }

    /// Whether a session is open.
    pub fn is_alive(&self, index: usize) -> bool {
        matches!(self.states[index], State::Alive | State::Proven)
    }

    /// The sessions that are open, and guacd's process for each where its log has named it.
    pub fn open_sessions(&self) -> Vec<(usize, Option<i32>)> {
        let open = (0..self.states.len()).filter(|&index| self.is_alive(index));
        open.map(|index| (index, self.process(index))).collect()
    }

    /// guacd's process for a session, where its log has named it.
    pub fn process(&self, index: usize) -> Option<i32> {
        self.setup.log.as_ref()?.process(self.ids[index].as_deref()?)
    }

    /// Takes note that a session is struck, and gives it an order if it takes one for that.
    pub fn strike(&mut self, index: usize, kind: StrikeKind) {
        self.set(index, State::Struck(Struck { kind, at: StdInstant::now(), ended: None }));
        let order = match kind {
            StrikeKind::Kill | StrikeKind::Cut => return,
            StrikeKind::Stall => Order::Stall,
            StrikeKind::Vanish => Order::Vanish,
        };
        if let Some(orders) = self.orders.get(&index) {
            let _ = orders.send(order);
        }
    }

    /// Takes note that a session that was struck has ended as it should.
    pub fn strike_ended(&mut self, index: usize) {
        if let State::Struck(struck) = &mut self.states[index] {
            struck.ended.get_or_insert(struck.at.elapsed());
        }
    }

    /// The sessions that were struck and have not ended as they should yet, with how long ago that was.
    pub fn struck(&self) -> Vec<(usize, StrikeKind, Duration)> {
        let struck = |(index, state): (usize, &State)| match state {
            State::Struck(Struck { kind, at, ended: None }) => Some((index, *kind, at.elapsed())),
            _ => None,
        };
        self.states.iter().enumerate().filter_map(struck).collect()
    }

    /// What came of the strikes of one kind; none where there were none.
    pub fn strike_result(&self, kind: StrikeKind, within: Duration) -> Option<Strike> {
        let of_kind = |state: &State| match state {
            State::Struck(struck) if struck.kind == kind => Some(struck.ended),
            _ => None,
        };
        let all = self.states.iter().filter_map(of_kind).collect::<Vec<_>>();
        let ended = all.iter().flatten().filter(|&&took| took <= within).collect::<Vec<_>>();
        (!all.is_empty()).then(|| Strike {
            kind,
            sessions: all.len() as u32,
            ended: ended.len() as u32,
            slowest_seconds: ended.into_iter().max().map(Duration::as_secs_f64),
            within_seconds: within.as_secs_f64(),
        })
    }

    /// How many failed without their client being told.
    pub fn silent(&self) -> u32 {
        let silent = |state: &&State| matches!(state, State::Failed(Dead { heard: Some(false), .. }));
        self.states.iter().filter(silent).count() as u32
    }

    fn show(&mut self) {
        if let Some(sampler) = &self.sampler {
            sampler.set_sessions(self.alive());
        }
        let tally = Tally {
            step: self.step,
            requested: self.load.count,
            started: self.started(),
            alive: self.alive(),
            proven: self.proven(),
            failed: self.counts[5],
        };
        (self.watch)(tally);
    }

    /// Takes note of what sessions have told and was not attended to yet: an interruption comes at any time.
    pub fn catch_up(&mut self) {
        while let Ok((index, told)) = self.told.try_recv() {
            self.note(index, told);
        }
    }

    /// From the connection to the first word that came back.
    pub fn first_proof(&self) -> Option<Latency> {
        latency(self.first_proofs.iter().flatten())
    }

    /// The same, of those that were begun first and of those that were begun last.
    pub fn first_proof_by_age(&self) -> Option<ByAge> {
        let started = &self.first_proofs[..self.started() as usize];
        let size = AGE_GROUP.min(started.len() / 2);
        let first = latency(started[..size].iter().flatten())?;
        let last = latency(started[started.len() - size..].iter().flatten())?;
        Some(ByAge { sessions: size as u32, first, last })
    }

    /// From a later word that was typed until it came back.
    pub fn last_proof(&self) -> Option<Latency> {
        latency(&self.last_proofs)
    }

    /// Those that failed, with what guacd said about it, grouped.
    pub fn failures(&self) -> Vec<Failure> {
        let mut groups = BTreeMap::<(Phase, &str, Option<String>), Vec<u32>>::new();
        for (index, state) in self.states.iter().enumerate() {
            let State::Failed(dead) = state else { continue };
            // A session that gave up in silence has closed its connection, and what guacd said after that is about that.
            let line = match dead.failed.how {
                How::Silence => dead.said.clone(),
                How::Told | How::CutOff | How::Ended => self.said(index),
            };
            groups.entry((dead.failed.phase, &dead.failed.reason, line)).or_default().push(index as u32);
        }
        let mut failures = groups
            .into_iter()
            .map(|((phase, reason, log), sessions)| Failure {
                phase,
                reason: reason.into(),
                log,
                count: sessions.len() as u32,
                sessions,
            })
            .collect::<Vec<_>>();
        failures.sort_by_key(|failure| std::cmp::Reverse(failure.count));
        failures
    }
}

/// A distribution, of whatever there is.
pub fn latency<'t>(times: impl IntoIterator<Item = &'t Duration>) -> Option<Latency> {
    // Microseconds, to three digits.
    let mut histogram = Histogram::<u64>::new(3).ok()?;
    for time in times {
        let _ = histogram.record(time.as_micros().try_into().unwrap_or(u64::MAX).max(1));
    }
    let ms = |micros: u64| micros as f64 / 1000.0;
    (!histogram.is_empty()).then(|| Latency {
        p50_ms: ms(histogram.value_at_quantile(0.50)),
        p95_ms: ms(histogram.value_at_quantile(0.95)),
        p99_ms: ms(histogram.value_at_quantile(0.99)),
        max_ms: ms(histogram.max()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::{Cli, Protocol},
        wire::link::{Echo, Login},
    };
    use clap::Parser;

    #[tokio::test]
    async fn a_session_that_panics_has_failed_and_holds_nobody_up() {
        let load = Cli::parse_from(["guac-stress", "--guacd=a:1", "--count=2"]).load;
        let echo = Echo::Pipe(String::new());
        let login = Login { protocol: Protocol::Ssh, arguments: Vec::new(), echo, call: None };
        let setup = Setup {
            guacd: Vec::new(),
            logins: vec![login],
            timeout: load.timeout,
            log: None,
            connections: None,
        };
        let mut watch = |_| {};
        let mut run = Crowd::new(&load, Arc::new(setup), None, &mut watch);
        let tell = run.tell.clone();
        run.begin(0, async { panic!("as it should not") });
        run.begin(1, async move {
            let _ = tell.send((1, Told::Established(Duration::from_millis(1))));
        });
        let resolved = run.attend_until(None, |run| run.coming() == 0);
        tokio::time::timeout(Duration::from_secs(5), resolved).await.expect("one of them hangs");
        let failures = run.failures();
        assert_eq!((run.alive(), failures.len(), failures[0].sessions.as_slice()), (1, 1, &[0][..]));
        assert!(failures[0].reason.contains("guac-stress itself failed"), "{}", failures[0].reason);
    }

    #[tokio::test]
    async fn who_is_told_of_an_end_too_late_or_never_is_in_silence() {
        let load = Cli::parse_from(["guac-stress", "--guacd=a:1", "--count=4"]).load;
        let setup = Setup {
            guacd: Vec::new(),
            logins: Vec::new(),
            timeout: load.timeout,
            log: None,
            connections: None,
        };
        let mut watch = |_| {};
        let mut crowd = Crowd::new(&load, Arc::new(setup), None, &mut watch);
        for (index, how) in [How::Told, How::Silence, How::Ended, How::Ended].into_iter().enumerate() {
            let failed = Failed { phase: Phase::Hold, reason: String::new(), how };
            crowd.note(index, Told::Failed(failed));
        }
        assert_eq!((crowd.silent(), crowd.unheard), (1, 2));
        crowd.note(2, Told::Heard(true));
        crowd.note(3, Told::Heard(false));
        crowd.hear().await;
        assert_eq!((crowd.silent(), crowd.unheard, crowd.alive()), (2, 0, 0));
    }
}

//! Many sessions at once: they are opened, held, made to prove themselves, and closed; and each is accounted for.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use tokio::{
    sync::{mpsc, watch},
    task::{self, JoinSet},
    time::{Instant, interval, sleep_until},
};

use super::{
    latency::Times,
    series::Series,
    session::{self, Cause, Failed, Notice, Order, Orders, Setup},
    state::{self, Disruption, Failure, KINDS, State},
};
use crate::{
    guacd::{sample::Sampler, start::Guacd},
    report::{
        self, Fault, FaultKind, Latency, Moment, Phase,
        progress::{Progress, Step},
    },
    values::Rate,
};

/// Sessions that lost their connection at most this long before guacd was seen to be dead have died of that.
const SAME_DEATH: Duration = Duration::from_secs(3);

/// At most 2 s' worth of sessions may be connecting at once; after 5 s a session no longer counts against that.
const BACKLOG: Duration = Duration::from_secs(2);
const SLOW: Duration = Duration::from_secs(5);

/// How often guacd is checked, and progress is shown.
pub const TICK: Duration = Duration::from_millis(200);

/// How many of the first and of the last sessions are compared with each other.
const AGE_GROUP: usize = 100;

/// How fast sessions are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// At the rate, but no faster than guacd keeps up.
    Steady,
    /// At the rate, whether guacd keeps up or not.
    Forced,
}

/// What came of the proofs that all open sessions had to give.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Proofs {
    /// How many sessions had to prove themselves.
    pub sessions: u32,
    /// How many did.
    pub proven: u32,
    /// How long that took, from the word that was typed.
    pub latency: Option<Latency>,
}

/// All sessions of a run, and the guacd that they go through.
pub struct Crowd<'a> {
    /// What sessions share.
    pub setup: Arc<Setup>,
    /// The guacd, where it was started here.
    pub guacd: Option<&'a mut Guacd>,
    /// When the run began.
    pub begun: StdInstant,
    /// What samples guacd over time.
    pub sampler: Option<Sampler>,
    /// How many sessions there were over time.
    pub timeline: Series<Moment>,
    /// How guacd ended by itself.
    pub died: Option<String>,
    /// How many sessions came up.
    pub established: u32,
    /// How many were open at the same time, at most.
    pub peak_alive: u32,
    requested: u32,
    rate: Rate,
    watch: &'a mut dyn FnMut(Progress),

    /// One for each session that was begun. To drop them closes the sessions.
    tasks: JoinSet<()>,
    /// The session of each task.
    session_of: HashMap<task::Id, usize>,
    orders: HashMap<usize, mpsc::UnboundedSender<Order>>,
    proofs: watch::Sender<u32>,
    notify: mpsc::UnboundedSender<(usize, Notice)>,
    notices: mpsc::UnboundedReceiver<(usize, Notice)>,

    step: Step,
    states: Vec<State>,
    /// How many sessions there are in each kind of state.
    counts: [u32; KINDS],
    ids: Vec<Option<String>>,
    /// How many failed sessions there are whose client may yet be informed.
    undecided: u32,
    first_proofs: Vec<Option<Duration>>,
    last_proofs: Vec<Duration>,
}

impl<'a> Crowd<'a> {
    /// Sessions that are all still to be opened.
    pub fn new(
        count: u32,
        rate: Rate,
        setup: Arc<Setup>,
        guacd: Option<&'a mut Guacd>,
        watch: &'a mut dyn FnMut(Progress),
    ) -> Self {
        let (notify, notices) = mpsc::unbounded_channel();
        let size = count as usize;
        let mut counts = [0; KINDS];
        counts[State::Waiting.kind()] = count;
        let begun = StdInstant::now();
        let sampler = guacd.as_ref().and_then(|guacd| Sampler::start(guacd.pid(), begun));
        Self {
            setup,
            guacd,
            begun,
            sampler,
            timeline: Series::default(),
            died: None,
            established: 0,
            peak_alive: 0,
            requested: count,
            rate,
            watch,
            tasks: JoinSet::new(),
            session_of: HashMap::new(),
            orders: HashMap::new(),
            proofs: watch::Sender::new(0),
            notify,
            notices,
            step: Step::Ramp,
            states: (0..size).map(|_| State::Waiting).collect(),
            counts,
            ids: vec![None; size],
            undecided: 0,
            first_proofs: vec![None; size],
            last_proofs: Vec::new(),
        }
    }

    /// Begins one session after another, and waits until each has come up or failed.
    ///
    /// At a steady pace, guacd gets time to keep up: too many logins at once would measure the machine's processors, and
    /// bring out the faults of bursts. Sessions that take too long do not delay others, as they may be dead.
    pub async fn open(&mut self, sessions: Range<usize>, pace: Pace) {
        self.step = Step::Ramp;
        let max_coming = (self.rate.per_second() * BACKLOG.as_secs_f64()).ceil().max(2.0) as u32;
        let mut turn = Instant::now();
        for index in sessions {
            self.run_until(Some(turn), |crowd| crowd.died.is_some()).await;
            if pace == Pace::Steady {
                let enough =
                    |crowd: &Self| crowd.died.is_some() || crowd.connecting(index, max_coming) < max_coming;
                self.run_until(None, enough).await;
            }
            if self.died.is_some() {
                return;
            }
            turn = turn.max(Instant::now() - TICK) + self.rate.interval();
            let notify = self.notify.clone();
            let (order, orders) = mpsc::unbounded_channel();
            self.orders.insert(index, order);
            let before = *self.proofs.borrow();
            let orders = Orders { proofs: self.proofs.subscribe(), before, order: orders };
            let session = session::run(Arc::clone(&self.setup), index, orders, move |notice| {
                let _ = notify.send((index, notice));
            });
            self.begin(index, session);
        }
        self.run_until(None, |crowd| crowd.coming() == 0).await;
    }

    /// How many of the sessions before this one are connecting, slow ones left out. Counts no further than `max`.
    fn connecting(&self, before: usize, max: u32) -> u32 {
        if self.coming() < max {
            return self.coming();
        }
        let since = |state: &State| match state {
            State::Coming(since) => Some(since.elapsed()),
            _ => None,
        };
        // Sessions are begun in the order of their numbers.
        let coming = self.states[..before].iter().rev().filter_map(since);
        coming.take_while(|&since| since < SLOW).take(max as usize).count() as u32
    }

    fn begin(&mut self, index: usize, session: impl Future<Output = ()> + Send + 'static) {
        self.set(index, State::Coming(StdInstant::now()));
        let task = self.tasks.spawn(session);
        self.session_of.insert(task.id(), index);
    }

    /// Holds all sessions open, for as long as any is.
    pub async fn hold(&mut self, time: Duration) {
        self.step = Step::Hold;
        self.run_until(Some(Instant::now() + time), |crowd| crowd.alive() == 0).await;
    }

    /// Makes all open sessions prove themselves, and waits until each has done so or failed.
    pub async fn prove(&mut self) -> Proofs {
        self.step = Step::Proof;
        for index in 0..self.states.len() {
            if matches!(self.states[index], State::Proven) {
                self.set(index, State::Alive);
            }
        }
        let sessions = self.alive();
        let before = self.last_proofs.len();
        self.proofs.send_modify(|proofs| *proofs += 1);
        self.run_until(None, |crowd| crowd.coming() + crowd.counts[State::Alive.kind()] == 0).await;
        // A session that the proof itself ends has not outlived it.
        self.run_for_a_tick().await;
        self.check_guacd();
        Proofs {
            sessions,
            proven: self.counts[State::Proven.kind()],
            latency: self.last_proofs[before..].iter().collect::<Times>().latency(),
        }
    }

    /// Waits until it is known of each failed session whether its client was informed.
    pub async fn wait_until_informed(&mut self) {
        self.run_until(None, |crowd| crowd.undecided == 0).await;
    }

    /// Closes all sessions: those that are proven count as such from then on.
    pub async fn close(&mut self) {
        self.step = Step::Settle;
        self.tasks.abort_all();
        self.session_of.clear();
        self.orders.clear();
        while self.tasks.join_next().await.is_some() {}
        while let Ok((index, notice)) = self.notices.try_recv() {
            self.note(index, notice);
        }
        for index in 0..self.states.len() {
            if matches!(self.states[index], State::Proven) {
                self.set(index, State::Closed);
            }
        }
        self.show();
    }

    /// Handles notices of sessions and the death of guacd, until the time has come or the condition holds.
    pub async fn run_until(&mut self, end: Option<Instant>, enough: impl Fn(&Self) -> bool) {
        let mut tick = interval(TICK);
        let forever = Instant::now() + Duration::from_secs(365 * 24 * 60 * 60);
        while !enough(self) {
            tokio::select! {
                biased;
                Some((index, notice)) = self.notices.recv() => self.note(index, notice),
                Some(Err(broken)) = self.tasks.join_next() => self.note_broken(&broken),
                () = sleep_until(end.unwrap_or(forever)) => return,
                _ = tick.tick() => {
                    self.check_guacd();
                    self.show();
                }
            }
        }
        self.show();
    }

    /// Handles notices of sessions for one tick, or until guacd is dead.
    pub async fn run_for_a_tick(&mut self) {
        self.run_until(Some(Instant::now() + TICK), |crowd| crowd.died.is_some()).await;
    }

    /// Sets what the run is doing, for those who watch.
    pub fn set_step(&mut self, step: Step) {
        self.step = step;
        self.show();
    }

    fn set(&mut self, index: usize, state: State) {
        self.counts[self.states[index].kind()] -= 1;
        self.counts[state.kind()] += 1;
        self.states[index] = state;
    }

    fn note(&mut self, index: usize, notice: Notice) {
        match (&mut self.states[index], notice) {
            (State::Failed(failure), Notice::Informed(informed)) => {
                failure.informed = Some(informed);
                self.undecided -= 1;
            }
            (
                State::Disrupted(disruption),
                Notice::Failed(Failed { cause: Cause::Informed | Cause::CutOff, .. })
                | Notice::Informed(true),
            ) => {
                disruption.ended.get_or_insert(disruption.at.elapsed());
            }
            // A session that has ended stays so.
            (State::Failed(_) | State::Disrupted(_) | State::Closed, _) => {}
            (_, Notice::Ready(id)) => self.ids[index] = Some(id),
            (_, Notice::Established(took)) => {
                self.set(index, State::Alive);
                self.established += 1;
                self.first_proofs[index] = Some(took);
                self.peak_alive = self.peak_alive.max(self.alive());
            }
            (_, Notice::Proven(proof, took)) => {
                if proof == *self.proofs.borrow() {
                    self.set(index, State::Proven);
                }
                self.last_proofs.push(took);
            }
            (_, Notice::Failed(failed)) => {
                let informed = match failed.cause {
                    Cause::Informed | Cause::CutOff => Some(true),
                    Cause::Silence => Some(false),
                    Cause::ProcessEnded => None,
                };
                self.undecided += u32::from(informed.is_none());
                let log_line = self.log_line(index);
                self.set(index, State::Failed(Failure { failed, at: StdInstant::now(), log_line, informed }));
            }
            (_, Notice::Informed(_)) => {}
        }
    }

    /// A session whose task has panicked.
    fn note_broken(&mut self, broken: &task::JoinError) {
        let Some(&index) = self.session_of.get(&broken.id()) else { return };
        if let Some(phase) = self.phase(&self.states[index]) {
            let reason = format!("guac-stress itself failed: {broken}");
            self.note(index, Notice::Failed(Failed { phase, reason, cause: Cause::Informed }));
        }
    }

    /// The phase of a session that was begun and has neither ended nor been closed.
    fn phase(&self, state: &State) -> Option<Phase> {
        match state {
            State::Waiting | State::Failed(_) | State::Closed | State::Disrupted(_) => None,
            State::Coming(_) => Some(Phase::Login),
            State::Alive if self.step == Step::Proof => Some(Phase::LastProof),
            State::Alive => Some(Phase::Hold),
            State::Proven => Some(Phase::LastProof),
        }
    }

    /// The most telling line of guacd's log about a session.
    fn log_line(&self, index: usize) -> Option<String> {
        self.setup.log.as_ref()?.telling(self.ids[index].as_deref())
    }

    /// Checks whether guacd is dead. If it is, so is every session that was begun.
    pub fn check_guacd(&mut self) {
        if self.died.is_some() {
            return;
        }
        let Some(end) = self.guacd.as_mut().and_then(|guacd| guacd.ended()) else { return };
        let reason = format!("guacd {end}");
        for index in 0..self.states.len() {
            let phase = match &self.states[index] {
                State::Failed(failure)
                    if matches!(failure.failed.cause, Cause::CutOff | Cause::ProcessEnded)
                        && failure.at.elapsed() < SAME_DEATH =>
                {
                    Some(failure.failed.phase)
                }
                state => self.phase(state),
            };
            let Some(phase) = phase else { continue };
            let failed = Failed { phase, reason: reason.clone(), cause: Cause::CutOff };
            let failure = Failure { failed, at: StdInstant::now(), log_line: None, informed: Some(true) };
            self.set(index, State::Failed(failure));
        }
        let undecided = |state: &&State| matches!(state, State::Failed(Failure { informed: None, .. }));
        self.undecided = self.states.iter().filter(undecided).count() as u32;
        self.died = Some(end);
    }

    fn coming(&self) -> u32 {
        self.counts[State::Coming(self.begun).kind()]
    }

    /// How many sessions were begun.
    pub fn started(&self) -> u32 {
        self.requested - self.counts[State::Waiting.kind()]
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

    /// Marks a session as disrupted, and gives it an order if the kind of disruption takes one. It has to end as it should
    /// within some time.
    pub fn disrupt(&mut self, index: usize, kind: FaultKind, within: Duration) {
        self.set(index, State::Disrupted(Disruption { kind, at: StdInstant::now(), within, ended: None }));
        let order = match kind {
            FaultKind::Kill | FaultKind::Cut => return,
            FaultKind::Stall => Order::Stall,
            FaultKind::Vanish => Order::Vanish,
        };
        if let Some(orders) = self.orders.get(&index) {
            let _ = orders.send(order);
        }
    }

    /// Marks a disrupted session as one that has ended as it should.
    pub fn end_disrupted(&mut self, index: usize) {
        if let State::Disrupted(disruption) = &mut self.states[index] {
            disruption.ended.get_or_insert(disruption.at.elapsed());
        }
    }

    /// The disrupted sessions that have not ended as they should, and the time that each has left.
    pub fn disrupted(&self) -> Vec<(usize, FaultKind, Duration)> {
        let waiting = |(index, state): (usize, &State)| match state {
            State::Disrupted(Disruption { kind, at, within, ended: None }) => {
                Some((index, *kind, within.saturating_sub(at.elapsed())))
            }
            _ => None,
        };
        self.states.iter().enumerate().filter_map(waiting).collect()
    }

    /// What came of the disruptions, by kind.
    pub fn faults(&self) -> Vec<Fault> {
        FaultKind::ALL.into_iter().filter_map(|kind| self.faults_of(kind)).collect()
    }

    fn faults_of(&self, kind: FaultKind) -> Option<Fault> {
        let disruptions = self.states.iter().filter_map(|state| match state {
            State::Disrupted(disruption) if disruption.kind == kind => Some(disruption),
            _ => None,
        });
        let all = disruptions.collect::<Vec<_>>();
        let within = all.first()?.within;
        let ended = all.iter().filter_map(|disruption| disruption.ended).filter(|&took| took <= within);
        let ended = ended.collect::<Vec<_>>();
        Some(Fault {
            kind,
            sessions: all.len() as u32,
            ended: ended.len() as u32,
            slowest_seconds: ended.into_iter().max().map(|slowest| slowest.as_secs_f64()),
            within_seconds: within.as_secs_f64(),
        })
    }

    /// How many failed without their client being informed.
    pub fn silent(&self) -> u32 {
        let silent = |state: &&State| matches!(state, State::Failed(Failure { informed: Some(false), .. }));
        self.states.iter().filter(silent).count() as u32
    }

    fn show(&mut self) {
        if let Some(sampler) = &self.sampler {
            sampler.set_sessions(self.alive());
        }
        let progress = Progress {
            step: self.step,
            requested: self.requested,
            started: self.started(),
            alive: self.alive(),
            proven: self.proven(),
            failed: self.counts[state::FAILED],
        };
        let at_seconds = self.begun.elapsed().as_secs_f64();
        let Progress { started, alive, proven, failed, .. } = progress;
        self.timeline.offer(at_seconds, || Moment { at_seconds, started, alive, proven, failed });
        (self.watch)(progress);
    }

    /// Handles the notices that are still waiting: an interruption can come at any time.
    pub fn catch_up(&mut self) {
        while let Ok((index, notice)) = self.notices.try_recv() {
            self.note(index, notice);
        }
    }

    /// From the connection to the first word that came back.
    pub fn first_proofs(&self) -> Times {
        self.first_proofs.iter().flatten().collect()
    }

    /// The same, of those that were begun first and of those that were begun last, as many of each. None where there are too
    /// few.
    pub fn first_proofs_by_age(&self) -> Option<(u32, Times, Times)> {
        let started = &self.first_proofs[..self.started() as usize];
        let size = AGE_GROUP.min(started.len() / 2);
        let first = started[..size].iter().flatten().collect::<Times>();
        let last = started[started.len() - size..].iter().flatten().collect::<Times>();
        (first.count() > 0 && last.count() > 0).then_some((size as u32, first, last))
    }

    /// From a later word that was typed until it came back.
    pub fn last_proofs(&self) -> Times {
        self.last_proofs.iter().collect()
    }

    /// The failed sessions, grouped, with what guacd's log says about them.
    pub fn failures(&self) -> Vec<report::Failure> {
        let mut groups = BTreeMap::<(Phase, &str, Option<String>), Vec<u32>>::new();
        for (index, state) in self.states.iter().enumerate() {
            let State::Failed(failure) = state else { continue };
            // A session that gave up in silence has closed its connection, and guacd's later lines are about that.
            let line = match failure.failed.cause {
                Cause::Silence => failure.log_line.clone(),
                Cause::Informed | Cause::CutOff | Cause::ProcessEnded => self.log_line(index),
            };
            groups
                .entry((failure.failed.phase, &failure.failed.reason, line))
                .or_default()
                .push(index as u32);
        }
        let mut failures = groups
            .into_iter()
            .map(|((phase, reason, log), sessions)| report::Failure {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::link::{Echo, Login};

    fn setup(logins: Vec<Login>) -> Arc<Setup> {
        let timeout = Duration::from_secs(30);
        Arc::new(Setup { guacd: Vec::new(), logins, timeout, log: None, meter: Arc::default() })
    }

    fn rate() -> Rate {
        "8".parse().unwrap()
    }

    #[tokio::test]
    async fn a_session_that_panics_has_failed_and_delays_no_other() {
        let echo = Echo::Pipe(String::new());
        let login = Login { protocol: "ssh", arguments: Vec::new(), echo, call: None };
        let mut watch = |_| {};
        let mut run = Crowd::new(2, rate(), setup(vec![login]), None, &mut watch);
        let notify = run.notify.clone();
        run.begin(0, async { panic!("planted") });
        run.begin(1, async move {
            let _ = notify.send((1, Notice::Established(Duration::from_millis(1))));
        });
        let resolved = run.run_until(None, |run| run.coming() == 0);
        tokio::time::timeout(Duration::from_secs(5), resolved).await.expect("one of them hangs");
        let failures = run.failures();
        assert_eq!((run.alive(), failures.len(), failures[0].sessions.as_slice()), (1, 1, &[0][..]));
        assert!(failures[0].reason.contains("guac-stress itself failed"), "{}", failures[0].reason);
    }

    #[tokio::test]
    async fn a_client_that_is_informed_too_late_or_never_is_silent() {
        let mut watch = |_| {};
        let mut crowd = Crowd::new(4, rate(), setup(Vec::new()), None, &mut watch);
        let causes = [Cause::Informed, Cause::Silence, Cause::ProcessEnded, Cause::ProcessEnded];
        for (index, cause) in causes.into_iter().enumerate() {
            let failed = Failed { phase: Phase::Hold, reason: String::new(), cause };
            crowd.note(index, Notice::Failed(failed));
        }
        assert_eq!((crowd.silent(), crowd.undecided), (1, 2));
        crowd.note(2, Notice::Informed(true));
        crowd.note(3, Notice::Informed(false));
        crowd.wait_until_informed().await;
        assert_eq!((crowd.silent(), crowd.undecided, crowd.alive()), (2, 0, 0));
    }
}

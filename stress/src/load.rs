//! How many sessions does a guacd really keep alive at once? The ramp, the hold, the proof, and the account of them.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
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
    flags::Load,
    guacd::Guacd,
    processes,
    report::{self, Failure, Latency, Phase, Run, Usage},
    session::{self, Failed, How, Setup, Stage, Told},
};

/// Sessions that lost their connection this shortly before guacd was seen to be dead have died of that.
const SAME_DEATH: Duration = Duration::from_secs(3);

/// Sessions of this long a time, at the given rate, may be coming up at once; and each is waited for so long.
const BACKLOG: Duration = Duration::from_secs(2);
const PROMISING: Duration = Duration::from_secs(5);

/// How often guacd is looked at, and progress is told.
const TICK: Duration = Duration::from_millis(200);

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
    /// How many of those have given their last proof.
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
}

/// What a run is called in the report.
pub struct Label {
    /// The guacamole-server release.
    pub release: Option<String>,
    /// The variant.
    pub variant: String,
}

/// Loads one guacd. With `guacd`, it is one that was started here, and is watched and measured.
pub async fn measure(
    label: Label,
    load: &Load,
    setup: Arc<Setup>,
    guacd: Option<&mut Guacd>,
    stop: watch::Receiver<bool>,
    watch: &mut dyn FnMut(Tally),
) -> Run {
    let mut run = Running::new(load, setup, guacd, watch);
    let interrupted = run.go(stop).await;
    run.account(label, interrupted)
}

/// Where one session stands.
enum State {
    Waiting,
    Coming(StdInstant),
    Alive,
    Proven,
    Failed(Dead),
}

/// How a session died.
struct Dead {
    failed: Failed,
    at: StdInstant,
    /// What guacd had said about it by then.
    said: Option<String>,
}

struct Running<'a> {
    load: &'a Load,
    setup: Arc<Setup>,
    guacd: Option<&'a mut Guacd>,
    watch: &'a mut dyn FnMut(Tally),

    /// One for each session that was begun. To drop them closes the sessions.
    tasks: JoinSet<()>,
    /// The session of each task.
    session_of: HashMap<task::Id, usize>,
    stage: watch::Sender<Stage>,
    tell: mpsc::UnboundedSender<(usize, Told)>,
    told: mpsc::UnboundedReceiver<(usize, Told)>,

    step: Step,
    begun: StdInstant,
    ramp: Duration,
    states: Vec<State>,
    ids: Vec<Option<String>>,
    established: u32,
    peak_alive: u32,
    first_proofs: Vec<Duration>,
    last_proofs: Vec<Duration>,
    usage: Option<Usage>,
    died: Option<String>,
}

impl<'a> Running<'a> {
    fn new(
        load: &'a Load,
        setup: Arc<Setup>,
        guacd: Option<&'a mut Guacd>,
        watch: &'a mut dyn FnMut(Tally),
    ) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        let count = load.count as usize;
        Self {
            load,
            setup,
            guacd,
            watch,
            tasks: JoinSet::new(),
            session_of: HashMap::new(),
            stage: watch::Sender::new(Stage::Hold),
            tell,
            told,
            step: Step::Ramp,
            begun: StdInstant::now(),
            ramp: Duration::ZERO,
            states: (0..count).map(|_| State::Waiting).collect(),
            ids: vec![None; count],
            established: 0,
            peak_alive: 0,
            first_proofs: Vec::new(),
            last_proofs: Vec::new(),
            usage: None,
            died: None,
        }
    }

    /// The whole run. Tells whether it was interrupted.
    async fn go(&mut self, mut stop: watch::Receiver<bool>) -> bool {
        let interrupted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => true,
            () = self.ramp_hold_prove() => false,
        };
        if self.ramp.is_zero() {
            self.ramp = self.begun.elapsed();
        }
        interrupted
    }

    async fn ramp_hold_prove(&mut self) {
        self.ramp_up().await;
        self.ramp = self.begun.elapsed();
        if self.alive() == 0 {
            return;
        }

        self.step = Step::Hold;
        let sample = self.guacd.as_ref().map(|guacd| {
            let pid = guacd.pid();
            task::spawn_blocking(move || processes::usage(pid))
        });
        let end = Instant::now() + self.load.hold;
        self.attend_until(Some(end), |run| run.alive() == 0).await;
        if let Some(sample) = sample {
            self.usage = sample.await.ok().flatten();
        }

        self.step = Step::Proof;
        self.stage.send_replace(Stage::Prove);
        self.attend_until(None, |run| {
            run.count(|state| matches!(state, State::Coming(_) | State::Alive)) == 0
        })
        .await;
        // What ends with the last proof, as of something that the proof itself brought out, has not outlived it.
        self.attend_until(Some(Instant::now() + TICK), |run| run.died.is_some()).await;
        self.look_after_guacd();
    }

    /// Begins one session after another, and waits until each has come up or failed.
    ///
    /// A machine that does not keep up is given time: to pile logins on each other would measure its processors, and bring
    /// out the faults of bursts. Those that take too long hold nobody up, for they may be dead.
    async fn ramp_up(&mut self) {
        let most_coming = (self.load.rate.per_second() * BACKLOG.as_secs_f64()).ceil().max(2.0) as u32;
        let mut turn = Instant::now();
        for index in 0..self.states.len() {
            self.attend_until(Some(turn), |run| run.died.is_some()).await;
            let promising =
                |state: &State| matches!(state, State::Coming(since) if since.elapsed() < PROMISING);
            self.attend_until(None, |run| run.died.is_some() || run.count(promising) < most_coming).await;
            if self.died.is_some() {
                return;
            }
            turn = turn.max(Instant::now() - TICK) + self.load.rate.interval();
            let tell = self.tell.clone();
            let session = session::live(Arc::clone(&self.setup), self.stage.subscribe(), move |told| {
                let _ = tell.send((index, told));
            });
            self.begin(index, session);
        }
        self.attend_until(None, |run| run.count(|state| matches!(state, State::Coming(_))) == 0).await;
    }

    fn begin(&mut self, index: usize, session: impl Future<Output = ()> + Send + 'static) {
        self.states[index] = State::Coming(StdInstant::now());
        let task = self.tasks.spawn(session);
        self.session_of.insert(task.id(), index);
    }

    /// Takes note of what sessions tell and of guacd's death, until a time has come or something is so.
    async fn attend_until(&mut self, end: Option<Instant>, enough: impl Fn(&Self) -> bool) {
        let mut tick = interval(TICK);
        let forever = Instant::now() + Duration::from_secs(365 * 24 * 60 * 60);
        while !enough(self) {
            tokio::select! {
                biased;
                Some((index, told)) = self.told.recv() => {
                    self.note(index, told);
                    self.show();
                }
                Some(Err(broken)) = self.tasks.join_next() => self.note_broken(&broken),
                () = sleep_until(end.unwrap_or(forever)) => return,
                _ = tick.tick() => {
                    self.look_after_guacd();
                    self.show();
                }
            }
        }
    }

    fn note(&mut self, index: usize, told: Told) {
        // The dead stay dead.
        if matches!(self.states[index], State::Failed(..)) {
            return;
        }
        match told {
            Told::Ready(id) => self.ids[index] = Some(id),
            Told::Established(took) => {
                self.states[index] = State::Alive;
                self.established += 1;
                self.first_proofs.push(took);
                self.peak_alive = self.peak_alive.max(self.alive());
            }
            Told::Proven(took) => {
                self.states[index] = State::Proven;
                self.last_proofs.push(took);
            }
            Told::Failed(failed) => {
                self.states[index] =
                    State::Failed(Dead { failed, at: StdInstant::now(), said: self.said(index) });
            }
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

    /// How far a session is that has not failed. One that was not begun is nowhere.
    fn phase(&self, state: &State) -> Option<Phase> {
        match state {
            State::Waiting | State::Failed(_) => None,
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
    fn look_after_guacd(&mut self) {
        if self.died.is_some() {
            return;
        }
        let Some(end) = self.guacd.as_mut().and_then(|guacd| guacd.ended()) else { return };
        let reason = format!("guacd {end}");
        for index in 0..self.states.len() {
            let phase = match &self.states[index] {
                State::Failed(dead) if dead.failed.how == How::CutOff && dead.at.elapsed() < SAME_DEATH => {
                    Some(dead.failed.phase)
                }
                state => self.phase(state),
            };
            let Some(phase) = phase else { continue };
            let failed = Failed { phase, reason: reason.clone(), how: How::CutOff };
            self.states[index] = State::Failed(Dead { failed, at: StdInstant::now(), said: None });
        }
        self.died = Some(end);
    }

    fn count(&self, which: impl Fn(&State) -> bool) -> u32 {
        self.states.iter().filter(|state| which(state)).count() as u32
    }

    fn started(&self) -> u32 {
        self.load.count - self.count(|state| matches!(state, State::Waiting))
    }

    fn alive(&self) -> u32 {
        self.count(|state| matches!(state, State::Alive | State::Proven))
    }

    fn show(&mut self) {
        let tally = Tally {
            step: self.step,
            requested: self.load.count,
            started: self.started(),
            alive: self.alive(),
            proven: self.count(|state| matches!(state, State::Proven)),
            failed: self.count(|state| matches!(state, State::Failed(..))),
        };
        (self.watch)(tally);
    }

    /// Sums up, and ends all sessions.
    fn account(mut self, label: Label, interrupted: bool) -> Run {
        // What sessions have told and was not attended to yet: an interruption comes at any time.
        while let Ok((index, told)) = self.told.try_recv() {
            self.note(index, told);
        }
        let total = self.begun.elapsed();
        let failures = self.failures();
        let proven = self.count(|state| matches!(state, State::Proven));
        let started = self.started();
        let guacd = self.guacd.as_ref().map(|guacd| report::Guacd {
            log_file: guacd.log_file().display().to_string(),
            last_lines: if self.died.is_some() { guacd.log().last_lines() } else { Vec::new() },
            died: self.died,
            keys: guacd.keys(),
            preload: guacd.preload().map(|library| library.display().to_string()),
            usage: self.usage,
        });
        Run {
            release: label.release,
            variant: label.variant,
            target: self.load.target.to_string(),
            key_limit: self.load.key_limit,
            requested: self.load.count,
            started,
            established: self.established,
            peak_alive: self.peak_alive,
            proven,
            failures,
            first_proof: latency(&self.first_proofs),
            last_proof: latency(&self.last_proofs),
            guacd,
            rate_per_second: self.load.rate.per_second(),
            hold_seconds: self.load.hold.as_secs_f64(),
            timeout_seconds: self.load.timeout.as_secs_f64(),
            ramp_seconds: self.ramp.as_secs_f64(),
            total_seconds: total.as_secs_f64(),
            interrupted,
        }
    }

    /// Those that failed, with what guacd said about it, grouped.
    fn failures(&self) -> Vec<Failure> {
        let mut groups = BTreeMap::<(Phase, &str, Option<String>), Vec<u32>>::new();
        for (index, state) in self.states.iter().enumerate() {
            let State::Failed(dead) = state else { continue };
            // A session that gave up in silence has closed its connection, and what guacd said after that is about that.
            let line = match dead.failed.how {
                How::Silence => dead.said.clone(),
                How::Told | How::CutOff => self.said(index),
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

fn latency(times: &[Duration]) -> Option<Latency> {
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
    use crate::{flags::Cli, link::Login};
    use clap::Parser;

    #[tokio::test]
    async fn a_session_that_panics_has_failed_and_holds_nobody_up() {
        let load = Cli::parse_from(["guac-stress", "--guacd=a:1", "--count=2"]).load;
        let login = Login { arguments: Vec::new(), pipe: String::new() };
        let setup = Setup { guacd: Vec::new(), login, timeout: load.timeout, log: None };
        let mut watch = |_| {};
        let mut run = Running::new(&load, Arc::new(setup), None, &mut watch);
        let tell = run.tell.clone();
        run.begin(0, async { panic!("as it should not") });
        run.begin(1, async move {
            let _ = tell.send((1, Told::Established(Duration::from_millis(1))));
        });
        let resolved =
            run.attend_until(None, |run| run.count(|state| matches!(state, State::Coming(_))) == 0);
        tokio::time::timeout(Duration::from_secs(5), resolved).await.expect("one of them hangs");
        let failures = run.failures();
        assert_eq!((run.alive(), failures.len(), failures[0].sessions.as_slice()), (1, 1, &[0][..]));
        assert!(failures[0].reason.contains("guac-stress itself failed"), "{}", failures[0].reason);
    }
}

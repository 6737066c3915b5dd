//! `chaos`: do sessions survive what happens to others? Some sessions are disrupted on purpose, in four ways. Each of these has
//! to end as it should, and all others have to prove themselves.

use std::time::Duration;

use clap::Args;
#[cfg(feature = "engine")]
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
#[cfg(feature = "engine")]
use tokio::time::Instant;

use super::size::Size;
#[cfg(feature = "engine")]
use super::{
    results::{Context, Measurements, random_seed},
    steps,
};
#[cfg(feature = "engine")]
use crate::{
    guacd::sample,
    load::crowd::{Crowd, Pace, TICK},
    report::{
        progress::Step,
        text::{BAD, GOOD, Section},
    },
};
use crate::{
    load::flags::Load,
    report::{Bound, Check, FaultKind, Run},
    values::{self, Percent, Rate, Target},
};

/// What to type after the name of the program and of the scenario.
pub const EXAMPLES: [&str; 2] = ["--count 100", "--count 50 --kill 40% --cut 0% --seed 7"];

/// How long guacd may take to end a session whose client is gone or does nothing. It drops a user after 15 s.
#[cfg(feature = "engine")]
const ABANDONED: Duration = Duration::from_secs(30);

/// The flags of `chaos`. It kills processes of guacd, so it needs one that is started for the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Args)]
pub struct Chaos {
    /// Number of sessions to hold open at the same time.
    #[arg(long, value_name = "SESSIONS", default_value_t = 100, value_parser = values::sessions())]
    pub count: u32,

    /// Maximum number of sessions to open per second. The rate falls while guacd does not keep up.
    #[arg(long, value_name = "PER_SECOND", default_value = "8")]
    pub rate: Rate,

    /// Over how long a time to spread the disruptions.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::hold)]
    pub hold: Duration,

    /// Share of the sessions whose process in guacd is killed.
    #[arg(long, value_name = "PERCENT", default_value = "20%")]
    pub kill: Percent,

    /// Share of the sessions whose target closes the connection.
    #[arg(long, value_name = "PERCENT", default_value = "5%")]
    pub cut: Percent,

    /// Share of the sessions whose client types much, and then neither reads nor writes.
    #[arg(long, value_name = "PERCENT", default_value = "5%")]
    pub stall: Percent,

    /// Share of the sessions whose client vanishes without a packet, like a machine that loses its power. That needs root;
    /// other users' clients vanish with a reset.
    #[arg(long, value_name = "PERCENT", default_value = "5%")]
    pub vanish: Percent,

    /// The seed of the random numbers, to repeat a run. The report contains it. [default: random]
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,

    /// Maximum time until a client learns that its process was killed or that its target is gone. guacd has 30 s, or this
    /// time if it is longer, to end a session whose client stalls or vanishes.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = values::timeout, help_heading = "Thresholds")]
    pub within: Duration,
}

impl Chaos {
    /// The size of the load.
    pub fn size(&self) -> Size {
        Size { sessions: self.count, open_at_once: self.count, rate: self.rate, hold: self.hold }
    }

    /// Finds flags that contradict each other.
    ///
    /// # Errors
    ///
    /// What to change, for a usage error.
    pub fn check(&self, load: &Load) -> Result<(), String> {
        if load.guacd.is_some() {
            return Err(
                "chaos kills processes of guacd, so it has to start guacd itself: leave out --guacd".into()
            );
        }
        if load.target != Target::Embedded && self.cut.share_of(self.count) > 0 {
            return Err(format!(
                "only the embedded target can be cut off, not '{}': give --cut 0%",
                load.target
            ));
        }
        if FaultKind::ALL.map(|kind| self.share(kind).value()).iter().sum::<f64>() >= 100.0 {
            return Err("no session is left to prove itself: give --kill, --cut, --stall and --vanish that add up to less \
                than 100%"
                .into());
        }
        Ok(())
    }

    /// The checks that only this scenario has: that as many sessions were disrupted as planned, and that each ended as it
    /// should.
    pub fn verdict(&self, run: &Run) -> Vec<Check> {
        let planned = FaultKind::ALL.map(|kind| self.sessions(kind)).iter().sum::<u32>();
        let disrupted = run.disrupted();
        let mut checks =
            vec![Check::new("disrupted", Bound::AtLeast, planned.into(), Some(disrupted.into()), "sessions")];
        checks.extend(run.faults.iter().map(|fault| {
            let name = match fault.kind {
                FaultKind::Kill => "informed that their process was killed",
                FaultKind::Cut => "informed that their target was gone",
                FaultKind::Stall => "ended after their client stalled",
                FaultKind::Vanish => "ended after their client vanished",
            };
            Check::new(name, Bound::AtLeast, fault.sessions.into(), Some(fault.ended.into()), "sessions")
        }));
        checks
    }

    fn share(&self, kind: FaultKind) -> Percent {
        match kind {
            FaultKind::Kill => self.kill,
            FaultKind::Cut => self.cut,
            FaultKind::Stall => self.stall,
            FaultKind::Vanish => self.vanish,
        }
    }

    fn sessions(&self, kind: FaultKind) -> u32 {
        self.share(kind).share_of(self.count)
    }
}

#[cfg(feature = "engine")]
impl Chaos {
    /// Opens the sessions, disrupts some at random, waits until these have ended, and makes the others prove themselves.
    pub async fn play(&self, crowd: &mut Crowd<'_>, measurements: &mut Measurements, context: &Context) {
        let seed = self.seed.unwrap_or_else(random_seed);
        measurements.seed = Some(seed);
        if steps::open_all(crowd, measurements, self.count, Pace::Steady).await {
            steps::measure_open_sessions(crowd, measurements).await;
            self.disrupt_some(crowd, context, seed).await;
            crowd.prove().await;
        }
    }

    /// Disrupts sessions, spread over the time for which all are held, and waits until each has ended or had its time.
    async fn disrupt_some(&self, crowd: &mut Crowd<'_>, context: &Context, seed: u64) {
        crowd.set_step(Step::Chaos);
        let plan = self.plan(crowd, seed);
        let pause = self.hold / u32::try_from(plan.len()).unwrap_or(u32::MAX).max(1);
        let mut turn = Instant::now();
        for (kind, (index, process)) in plan {
            watch_disrupted(crowd, turn).await;
            turn += pause;
            if crowd.died.is_some() {
                return;
            }
            // It may have died of what was done to others, which the proof will find.
            if crowd.is_alive(index) {
                self.disrupt(crowd, context, kind, index, process).await;
            }
        }
        while crowd.died.is_none() && crowd.disrupted().iter().any(|(_, _, left)| !left.is_zero()) {
            watch_disrupted(crowd, Instant::now() + TICK).await;
        }
    }

    /// Which sessions to disrupt, in which way, and in which order. Skips sessions whose process ID is unknown.
    fn plan(&self, crowd: &Crowd<'_>, seed: u64) -> Vec<(FaultKind, (usize, i32))> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let sessions = crowd.open_sessions().into_iter();
        let mut sessions =
            sessions.filter_map(|(index, process)| Some((index, process?))).collect::<Vec<_>>();
        rng.shuffle(&mut sessions);
        let mut plan = Vec::new();
        for kind in FaultKind::ALL {
            let count = (self.sessions(kind) as usize).min(sessions.len());
            plan.extend(sessions.drain(..count).map(|session| (kind, session)));
        }
        rng.shuffle(&mut plan);
        plan
    }

    async fn disrupt(
        &self,
        crowd: &mut Crowd<'_>,
        context: &Context,
        kind: FaultKind,
        index: usize,
        process: i32,
    ) {
        match kind {
            FaultKind::Kill => {
                // The process may have ended, and another program may have its ID now.
                let guacd = crowd.guacd.as_ref().map(|guacd| guacd.pid().as_raw_pid());
                if !guacd.is_some_and(|guacd| sample::descends_from(process, guacd)) {
                    return;
                }
                crowd.disrupt(index, kind, self.within);
                if let Some(pid) = Pid::from_raw(process) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            FaultKind::Cut => {
                let Some(connections) = context.connections.clone() else { return };
                let ports = connections.ports();
                let port = tokio::task::spawn_blocking(move || sample::port_towards(process, &ports)).await;
                let Ok(Some(port)) = port else { return };
                crowd.disrupt(index, kind, self.within);
                connections.cut(port);
            }
            FaultKind::Stall | FaultKind::Vanish => crowd.disrupt(index, kind, ABANDONED.max(self.within)),
        }
    }

    /// How many sessions were disrupted, and how they ended.
    pub fn section(run: &Run) -> Option<Section> {
        if run.faults.is_empty() {
            return None;
        }
        let lines = run.faults.iter().map(|fault| {
            let style = if fault.ended == fault.sessions { GOOD } else { BAD };
            let slowest = fault.slowest_seconds.map(|slowest| format!(", in {slowest:.1} s at most"));
            format!(
                "  {:>15}  {style}{} of {}{style:#} ended as they should{}",
                fault.kind.as_str(),
                fault.ended,
                fault.sessions,
                slowest.unwrap_or_default()
            )
        });
        Some(Section { heading: format!("{} disrupted", run.disrupted()), lines: lines.collect() })
    }
}

/// Waits until some time, and notes which of the abandoned sessions have no process any more.
#[cfg(feature = "engine")]
async fn watch_disrupted(crowd: &mut Crowd<'_>, until: Instant) {
    crowd.run_until(Some(until), |crowd| crowd.died.is_some()).await;
    for (index, kind, _) in crowd.disrupted() {
        let is_abandoned = matches!(kind, FaultKind::Stall | FaultKind::Vanish);
        if is_abandoned && crowd.process(index).is_some_and(|process| !sample::is_there(process)) {
            crowd.end_disrupted(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Fault;
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        chaos: Chaos,
    }

    #[test]
    fn a_run_that_disrupts_nobody_does_not_pass() {
        let passes = |flags: &[&str]| {
            let chaos = Flags::parse_from([&["chaos"], flags].concat()).chaos;
            chaos.verdict(&Run::default()).iter().all(|check| check.passed)
        };
        assert!(passes(&["--kill=0%", "--cut=0%", "--stall=0%", "--vanish=0%"]));
        assert!(!passes(&["--count=20"]));
    }

    #[test]
    fn a_disrupted_session_that_does_not_end_is_a_miss() {
        let chaos = Flags::parse_from(["chaos", "--count=20", "--cut=0%", "--stall=0%", "--vanish=0%"]).chaos;
        let passes = |ended| {
            let fault = Fault {
                kind: FaultKind::Kill,
                sessions: 4,
                ended,
                slowest_seconds: None,
                within_seconds: 5.0,
            };
            let run = Run { faults: vec![fault], ..Run::default() };
            chaos.verdict(&run).iter().all(|check| check.passed)
        };
        assert!(passes(4));
        assert!(!passes(3));
    }
}

//! What do sessions do to each other when some of them come to a bad end? Some are struck, each in one of four ways; each has to
//! end as it should, and all others have to live on.

use std::{iter, time::Duration};

use fastrand::Rng;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use crate::{
    cli::Load,
    guacd::sample,
    load::crowd::{Crowd, Step, TICK},
    report::{Bound, Check, Strike, StrikeKind},
};

/// How long guacd may take to be rid of a session whose client is gone or does nothing. It drops a user after 15 s.
const FORSAKEN: Duration = Duration::from_secs(30);

/// Strikes sessions at random, over the time for which all are held, and waits until each has ended or had its time.
pub async fn run(crowd: &mut Crowd<'_>, seed: u64) {
    crowd.step(Step::Chaos);
    let mut rng = Rng::with_seed(seed);
    // Who is unknown to us by its process can be neither killed nor looked after.
    let mut sessions = crowd
        .open_sessions()
        .into_iter()
        .filter_map(|(index, process)| Some((index, process?)))
        .collect::<Vec<_>>();
    rng.shuffle(&mut sessions);
    let mut plan = Vec::new();
    for kind in StrikeKind::ALL {
        let many = share(crowd.load, kind) as usize;
        plan.extend(sessions.drain(..many.min(sessions.len())).map(|session| (kind, session)));
    }
    rng.shuffle(&mut plan);

    let pause = crowd.load.hold / u32::try_from(plan.len()).unwrap_or(u32::MAX).max(1);
    let mut turn = Instant::now();
    for (kind, (index, process)) in plan {
        look_after_the_struck(crowd, turn).await;
        turn += pause;
        if crowd.died.is_some() {
            return;
        }
        // It may have died of what was done to others, which is for the proof to find.
        if crowd.is_alive(index) {
            strike(crowd, kind, index, process).await;
        }
    }
    let within = crowd.load.thresholds.within;
    loop {
        let struck = crowd.struck();
        let may_end = |(_, kind, since): &(usize, StrikeKind, Duration)| *since < time(*kind, within);
        if crowd.died.is_some() || !struck.iter().any(may_end) {
            return;
        }
        look_after_the_struck(crowd, Instant::now() + TICK).await;
    }
}

fn share(load: &Load, kind: StrikeKind) -> u32 {
    let details = &load.details;
    let share = match kind {
        StrikeKind::Kill => details.kill,
        StrikeKind::Cut => details.cut,
        StrikeKind::Stall => details.stall,
        StrikeKind::Vanish => details.vanish,
    };
    share.of(load.count)
}

async fn strike(crowd: &mut Crowd<'_>, kind: StrikeKind, index: usize, process: i32) {
    match kind {
        StrikeKind::Kill => {
            // A stranger with the number of a process that has ended is not guacd's.
            let guacd = crowd.guacd.as_ref().map(|guacd| guacd.pid().as_raw_pid());
            if !guacd.is_some_and(|guacd| sample::descends_from(process, guacd)) {
                return;
            }
            crowd.strike(index, kind);
            if let Some(pid) = Pid::from_raw(process) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        StrikeKind::Cut => {
            let Some(connections) = crowd.setup.connections.clone() else { return };
            let ports = connections.ports();
            let port = tokio::task::spawn_blocking(move || sample::port_towards(process, &ports)).await;
            let Ok(Some(port)) = port else { return };
            crowd.strike(index, kind);
            connections.cut(port);
        }
        StrikeKind::Stall | StrikeKind::Vanish => crowd.strike(index, kind),
    }
}

/// Takes note of those whose process is gone, until some time.
async fn look_after_the_struck(crowd: &mut Crowd<'_>, until: Instant) {
    crowd.attend_until(Some(until), |crowd| crowd.died.is_some()).await;
    for (index, kind, _) in crowd.struck() {
        let is_forsaken = matches!(kind, StrikeKind::Stall | StrikeKind::Vanish);
        if is_forsaken && crowd.process(index).is_some_and(|process| !sample::is_there(process)) {
            crowd.strike_ended(index);
        }
    }
}

fn time(kind: StrikeKind, within: Duration) -> Duration {
    match kind {
        StrikeKind::Kill | StrikeKind::Cut => within,
        StrikeKind::Stall | StrikeKind::Vanish => FORSAKEN.max(within),
    }
}

/// What came of it.
pub fn strikes(crowd: &Crowd<'_>) -> Vec<Strike> {
    let within = crowd.load.thresholds.within;
    StrikeKind::ALL.into_iter().filter_map(|kind| crowd.strike_result(kind, time(kind, within))).collect()
}

/// How many sessions are to be struck.
pub fn planned(load: &Load) -> u32 {
    StrikeKind::ALL.into_iter().map(|kind| share(load, kind)).sum()
}

/// What decides: that as many were struck as planned, and what came of it.
pub fn checks(strikes: &[Strike], planned: u32) -> impl Iterator<Item = Check> {
    let struck: u32 = strikes.iter().map(|strike| strike.sessions).sum();
    let all = Check::new("struck", Bound::AtLeast, planned.into(), Some(struck.into()), "sessions");
    iter::once(all).chain(strikes.iter().map(|strike| {
        let name = match strike.kind {
            StrikeKind::Kill => "told that their process was killed",
            StrikeKind::Cut => "told that their target was gone",
            StrikeKind::Stall => "rid of clients that stalled",
            StrikeKind::Vanish => "rid of clients that vanished",
        };
        Check::new(name, Bound::AtLeast, strike.sessions.into(), Some(strike.ended.into()), "sessions")
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_strikes_nobody_does_not_pass() {
        assert!(checks(&[], 0).all(|check| check.passed));
        assert!(!checks(&[], 3).all(|check| check.passed));
    }
}

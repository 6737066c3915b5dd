//! Which sessions count? Each kind of failure is put among good sessions, and only these may count.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use guac_stress::{
    load::session::Setup,
    plan::Plan,
    report::{Check, Phase, Run},
    scenario::{results::Context, run::measure},
    wire::link::{Echo, Login},
};
use tokio::sync::watch;

use crate::{
    fake::{Behaviour, Fake},
    plan, with_defaults,
};

fn login() -> Login {
    let command = r"stty -echo && printf '\033]482202;2;proof\007' && exec cat".to_owned();
    let arguments = vec![("hostname", "box".into()), ("command", command), ("timeout", "30".into())];
    Login { protocol: "ssh", arguments, echo: Echo::Pipe("proof".into()), call: None }
}

fn setup(guacd: SocketAddr, plan: &Plan) -> Arc<Setup> {
    let timeout = plan.load.timeout;
    Arc::new(Setup { guacd: vec![guacd], logins: vec![login()], timeout, log: None, meter: Arc::default() })
}

fn context() -> Context {
    Context {
        release: None,
        variant: "fake".into(),
        manifest: None,
        logs: std::env::temp_dir(),
        connections: None,
        cores: None,
    }
}

/// A command line: the scenario (`hold`, unless the first of the flags names another), and the flags, after those defaults that
/// they do not override.
fn words(flags: &[&str], defaults: &[&str]) -> Vec<String> {
    let (scenario, flags) = match flags.split_first() {
        Some((scenario, flags)) if !scenario.starts_with('-') => (*scenario, flags),
        _ => ("hold", flags),
    };
    let mut words = vec!["guac-stress".to_owned(), scenario.to_owned()];
    // `fuzz` has no --hold.
    let defaults = defaults.iter().filter(|flag| scenario != "fuzz" || !flag.starts_with("--hold")).copied();
    words.extend(with_defaults(flags, &defaults.collect::<Vec<_>>()));
    words
}

async fn load(fake: &Fake, flags: &[&str]) -> Run {
    let guacd = format!("--guacd={}", fake.address);
    let quick = [guacd.as_str(), "--rate=200", "--hold=200ms", "--timeout=1500ms"];
    let plan = plan(words(flags, &quick));
    // An address where nobody listens comes first, as it does where `localhost` is an IPv6 address too.
    let guacd = vec![([127, 0, 0, 1], 1).into(), fake.address];
    let setup =
        Setup { guacd, logins: vec![login()], timeout: plan.load.timeout, log: None, meter: Arc::default() };
    let (_sender, stop) = watch::channel(false);
    measure(context(), &plan.scenario, &plan.load, Arc::new(setup), None, stop, &mut |_| {}).await.unwrap()
}

/// Waits until something is so.
async fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Loads three sessions, of which the second behaves in its own way.
async fn second_of_three(behaviour: Behaviour) -> Run {
    load(&Fake::start(&[Behaviour::Slow, behaviour, Behaviour::Normal]).await, &["--count=3"]).await
}

async fn fails(behaviour: Behaviour, phase: Phase, reason: &str) {
    let run = second_of_three(behaviour).await;
    assert_eq!(run.proven, 2, "{behaviour:?}: {:?}", run.failures);
    assert_eq!(
        (run.failures.len(), run.failures[0].count, run.failures[0].phase),
        (1, 1, phase),
        "{:?}",
        run.failures
    );
    assert!(run.failures[0].reason.contains(reason), "{behaviour:?}: {}", run.failures[0].reason);
    assert!(!run.passed());
}

#[tokio::test]
async fn sessions_that_give_back_what_was_typed_count() {
    for behaviour in [
        Behaviour::Normal,
        Behaviour::CutAtEveryByte,
        Behaviour::NonAscii,
        Behaviour::Flood,
        Behaviour::NoTimeout,
        Behaviour::Slow,
    ] {
        let run = second_of_three(behaviour).await;
        assert_eq!(
            (run.proven, run.established, run.peak_alive),
            (3, 3, 3),
            "{behaviour:?}: {:?}",
            run.failures
        );
        assert!(run.passed() && run.failures.is_empty());
        assert!(run.first_proof.unwrap().p50_ms > 0.0);
        assert!(run.last_proof.unwrap().max_ms >= 500.0, "one of them is slow");
    }
}

#[tokio::test]
async fn silence_is_failure() {
    let silence = "silence: ";
    tokio::join!(
        fails(Behaviour::Silent, Phase::Handshake, silence),
        fails(Behaviour::SilentAfterReady, Phase::Login, silence),
        fails(Behaviour::SilentAfterPipe, Phase::FirstProof, silence),
        fails(Behaviour::SilentAfterFirstProof, Phase::LastProof, silence),
    );
}

/// guacd runs on other threads. On the session's thread, it could not send faster than the session reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_flood_without_end_is_silence_and_stops_nobody_else() {
    for behaviour in [Behaviour::FloodForEver, Behaviour::FloodAndNeverRead] {
        let limit = Duration::from_secs(10);
        let failed = fails(behaviour, Phase::Login, "silence: the target's program did not answer");
        tokio::time::timeout(limit, failed)
            .await
            .unwrap_or_else(|_| panic!("{behaviour:?}: no deadline was kept"));
    }
}

#[tokio::test]
async fn ends_and_errors_are_failures() {
    tokio::join!(
        fails(Behaviour::ErrorAfterReady, Phase::Login, "error 515, upstream error"),
        fails(Behaviour::ErrorInHold, Phase::Hold, "error 512, server error"),
        fails(Behaviour::DisconnectInHold, Phase::Hold, "guacd disconnected"),
        fails(Behaviour::CloseInHold, Phase::Hold, "guacd closed the connection"),
    );
}

#[tokio::test]
async fn an_echo_that_is_not_the_word_on_its_own_pipe_is_failure() {
    let silence = "silence: what was typed did not come back";
    tokio::join!(
        fails(Behaviour::EchoOnAnotherStream, Phase::LastProof, silence),
        fails(Behaviour::EchoOnAnotherPipe, Phase::LastProof, silence),
        fails(Behaviour::ReplayFirstWord, Phase::LastProof, silence),
        fails(Behaviour::HalfOfTheWord, Phase::LastProof, silence),
        fails(Behaviour::WordInCapitals, Phase::LastProof, silence),
    );
}

#[tokio::test]
async fn a_session_that_does_not_outlive_the_proof_of_all_others_does_not_count() {
    fails(Behaviour::CloseAfterLastProof, Phase::LastProof, "guacd closed the connection").await;
}

#[tokio::test]
async fn a_session_that_ends_right_after_the_last_proof_does_not_count() {
    let fake = Fake::start(&[Behaviour::CloseSoonAfterLastProof]).await;
    let run = load(&fake, &["--count=3"]).await;
    assert_eq!((run.proven, run.failures[0].phase), (2, Phase::LastProof), "{:?}", run.failures);
}

#[tokio::test]
async fn a_hold_without_anybody_left_is_cut_short() {
    let run = load(&Fake::start(&[Behaviour::CloseInHold; 2]).await, &["--count=2", "--hold=30s"]).await;
    assert_eq!((run.established, run.proven, run.failures[0].phase), (2, 0, Phase::Hold));
    assert!(run.total_seconds < 10.0, "{} s", run.total_seconds);
}

#[tokio::test]
async fn what_is_not_a_guacd_is_a_failure() {
    tokio::join!(
        fails(Behaviour::Garbage, Phase::Handshake, "malformed instruction"),
        fails(Behaviour::Http, Phase::Handshake, "malformed instruction"),
        fails(Behaviour::NoHostname, Phase::Handshake, "no argument named hostname"),
    );
}

#[tokio::test]
async fn no_session_counts_of_a_guacd_that_dies_in_the_middle() {
    let fake = Fake::start(&[]).await;
    let dies = async {
        wait_for("three sessions", || fake.established.load(Ordering::SeqCst) >= 3).await;
        fake.die();
    };
    let (run, ()) = tokio::join!(load(&fake, &["--count=6"]), dies);
    assert_eq!(run.proven, 0, "{:?}", run.failures);
    assert_eq!(run.failures.iter().map(|failure| failure.count).sum::<u32>(), 6);
    assert!(run.peak_alive >= 3);
}

#[tokio::test]
async fn a_guacd_that_does_not_listen_is_a_failure() {
    let fake = Fake::start(&[]).await;
    fake.die();
    let is_refused = || std::net::TcpStream::connect(fake.address).is_err();
    wait_for("the end of the listener", is_refused).await;
    let run = load(&fake, &["--count=2"]).await;
    assert_eq!((run.proven, run.failures[0].count, run.failures[0].phase), (0, 2, Phase::Connect));
    assert!(run.failures[0].reason.contains("refused"), "{}", run.failures[0].reason);
}

#[tokio::test]
async fn an_interruption_keeps_what_was_measured() {
    let fake = Fake::start(&[Behaviour::ErrorAfterReady]).await;
    let guacd = format!("--guacd={}", fake.address);
    let plan = plan(["guac-stress", &guacd, "--count=100", "--rate=20", "--hold=1m"]);
    let setup = setup(fake.address, &plan);
    let (interrupt, stop) = watch::channel(false);
    let mut show = |_| {};
    let run = measure(context(), &plan.scenario, &plan.load, setup, None, stop, &mut show);
    let interruption = async {
        wait_for("some sessions", || fake.established.load(Ordering::SeqCst) >= 5).await;
        interrupt.send_replace(true);
    };
    let (run, ()) = tokio::join!(run, interruption);
    let run = run.unwrap();
    assert!(run.interrupted && !run.passed());
    assert_eq!((run.requested, run.proven), (100, 0));
    assert!(run.started < 100 && run.established > 0, "{} begun", run.started);
    assert_eq!(run.failures.len(), 1, "a session that was not waited for has not failed: {:?}", run.failures);
}

/// A check of a run.
fn check<'r>(run: &'r Run, name: &str) -> &'r Check {
    run.checks
        .iter()
        .find(|check| check.name == name)
        .unwrap_or_else(|| panic!("no check of {name}: {run:#?}"))
}

#[tokio::test]
async fn silence_is_counted_apart_from_failures_that_the_client_learns_of() {
    let behaviours = [
        Behaviour::SilentAfterReady,
        Behaviour::ErrorAfterReady,
        Behaviour::CloseInHold,
        Behaviour::SilentAfterFirstProof,
    ];
    let run = load(&Fake::start(&behaviours).await, &["--count=5"]).await;
    assert_eq!((run.proven, run.silent), (1, 2), "{:?}", run.failures);
    assert!(!check(&run, "silent").passed);
    let run =
        load(&Fake::start(&behaviours).await, &["--count=5", "--min-proven=20%", "--max-silent=2"]).await;
    assert!(run.passed(), "{:?}", run.checks);
}

#[tokio::test]
async fn a_burst_does_not_wait_for_guacd_to_keep_up() {
    // A ramp waits after the first four sessions that hang. At 2 a second, a burst begins eight in 4 s.
    let behaviours = [Behaviour::SilentAfterReady; 20];
    let flags = ["--count=20", "--rate=2", "--timeout=20s"];
    let fake = Fake::start(&behaviours).await;
    let begun = |fake: &Fake, flags: Vec<&'static str>| {
        let plan = plan(words(&flags, &["--guacd=a:1"]));
        let setup = setup(fake.address, &plan);
        async move {
            let (interrupt, stop) = watch::channel(false);
            let mut show = |_| {};
            let run = measure(context(), &plan.scenario, &plan.load, setup, None, stop, &mut show);
            let interruption = async {
                tokio::time::sleep(Duration::from_secs(4)).await;
                interrupt.send_replace(true);
            };
            tokio::join!(run, interruption).0.unwrap().started
        }
    };
    let (ramp, burst) = tokio::join!(
        begun(&fake, [&["hold"], &flags[..]].concat()),
        begun(&fake, [&["burst"], &flags[..]].concat()),
    );
    assert!(ramp <= 5 && burst >= 7, "{ramp} and {burst}");
}

#[tokio::test]
async fn churn_proves_and_closes_each_wave() {
    let fake = Fake::start(&[
        Behaviour::Normal,
        Behaviour::Normal,
        Behaviour::Normal,
        Behaviour::Normal,
        Behaviour::CloseInHold,
    ])
    .await;
    let run = load(&fake, &["churn", "--count=10", "--wave=4"]).await;
    let rounds = run.rounds.iter().map(|round| (round.sessions, round.proven)).collect::<Vec<_>>();
    assert_eq!(rounds, [(4, 4), (3, 3), (2, 2)]);
    assert_eq!((run.proven, run.established, run.peak_alive), (9, 10, 4), "{:?}", run.failures);
    assert!(!run.passed());
    wait_for("the end of each wave's connections", || fake.open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn soak_demands_a_proof_each_time() {
    let fake = Fake::start(&[Behaviour::Normal, Behaviour::SilentAfterSecondProof]).await;
    let flags = ["soak", "--count=3", "--hold=1s", "--prove-every=250ms"];
    let run = load(&fake, &flags).await;
    let rounds = run.rounds.iter().map(|round| (round.sessions, round.proven)).collect::<Vec<_>>();
    assert_eq!(rounds[..2], [(3, 3), (3, 2)], "{rounds:?}");
    assert!(rounds.len() >= 3 && rounds[2..].iter().all(|&round| round == (2, 2)), "{rounds:?}");
    assert_eq!((run.proven, run.silent), (2, 1), "{:?}", run.failures);
}

#[tokio::test(flavor = "multi_thread")]
async fn fuzz_sends_all_its_inputs_and_replays_one() {
    let fake = Fake::start(&[]).await;
    let run = load(&fake, &["fuzz", "--count=2", "--inputs=300", "--seed=5"]).await;
    let fuzz = run.fuzz.clone().unwrap();
    assert_eq!((fuzz.inputs, run.proven, run.seed), (300, 2, Some(5)), "{fuzz:?}");
    assert_eq!(fuzz.errors + fuzz.ready + fuzz.closed + fuzz.abandoned + fuzz.unanswered, 300);
    assert!(fuzz.abandoned > 150 && fuzz.closed > 30, "{fuzz:?}");
    assert_eq!(fuzz.unanswered, 0, "{fuzz:?}");

    let fake = Fake::start(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("input.json");
    std::fs::write(&file, r#"{ "pieces": ["Ni5zZWxlY3Q="], "ending": "half_close" }"#).unwrap();
    let replay = format!("--replay={}", file.display());
    let plan = plan(["guac-stress", "fuzz", "--count=1", &replay, "--guacd=a:1"]);
    let (_sender, stop) = watch::channel(false);
    let run =
        measure(context(), &plan.scenario, &plan.load, setup(fake.address, &plan), None, stop, &mut |_| {})
            .await
            .unwrap();
    assert_eq!(run.fuzz.unwrap().inputs, 1, "a replay is of one input");
}

//! Does the whole program do what it promises: exit codes, a report, and nothing left behind?

use std::{
    fs,
    io::Read,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use guac_stress::report::{Failure, Phase, StressReport};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    fake::{Behaviour, Fake},
    plan, schema, with_defaults,
};

fn guac_stress() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_guac-stress"));
    command.env_remove("GUAC_STRESS_PASSWORD").env_remove("GUAC_STRESS_PRIVATE_KEY").stdin(Stdio::null());
    command
}

/// Loads a fake guacd with a few sessions, and gives the report too.
async fn load(behaviours: &[Behaviour], flags: &[&str]) -> (Output, StressReport) {
    let fake = Fake::start(behaviours).await;
    let dir = TempDir::new().unwrap();
    let json = dir.path().join("report.json");
    let mut command = guac_stress();
    command.args([
        "--guacd",
        &fake.address.to_string(),
        "--count=3",
        "--rate=100",
        "--hold=100ms",
        "--timeout=2s",
    ]);
    command.args(flags).arg("--json").arg(&json);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    (output, read(&json))
}

fn read(json: &Path) -> StressReport {
    let value: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    schema::check(&value);
    StressReport::parse(value).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_proven_is_exit_code_0() {
    let (output, report) = load(&[], &["--release=9.9.9"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let run = &report.runs[0];
    assert!(report.passed && run.guacd.is_none() && run.failures.is_empty());
    assert_eq!((run.variant.as_str(), run.release.as_deref(), run.proven), ("external", Some("9.9.9"), 3));
    let out = text(&output.stdout);
    assert!(out.contains("3 of 3") && out.contains("passed"), "{out}");
    assert!(!out.contains('\x1b'), "no colours where there is no terminal");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_not_proven_is_exit_code_5() {
    let (output, report) = load(&[Behaviour::EchoOnAnotherStream], &[]).await;
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(
        (report.passed, report.runs[0].proven, report.runs[0].failures[0].sessions.as_slice()),
        (false, 2, &[0][..])
    );
    let out = text(&output.stdout);
    assert!(out.contains("2 of 3") && out.contains("silence: what was typed did not come back"), "{out}");
}

#[test]
fn usage_is_exit_code_2() {
    for wrong in [
        &["--guacd=127.0.0.1:4822", "--count=0"][..],
        &["--guacd=127.0.0.1:4822", "--count=-5"],
        &["--guacd=127.0.0.1:4822", "--count=100000"],
        &["--guacd=127.0.0.1:4822", "--hold=ten"],
        &["--guacd=127.0.0.1:4822", "--key-limit=128"],
        &["--guacd=127.0.0.1:4822", "--preload=libx.so"],
        &["--guacd=127.0.0.1:4822", "--target=127.0.0.1:22"],
        &["--guacd=nonsense"],
        &["--prefix=nonsense"],
        &["--guacd=127.0.0.1:4822", "--password=secret"],
        &["hold", "--guacd=127.0.0.1:4822", "--wave=3"],
        &["hold", "--guacd=127.0.0.1:4822", "--key-limit=128"],
        &["chaos", "--guacd=127.0.0.1:4822"],
        &["--guacd=127.0.0.1:4822", "--scenario=churn"],
        &[],
    ] {
        let output = guac_stress().args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", text(&output.stderr));
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn what_is_missing_is_exit_code_3_and_named() {
    let empty = TempDir::new().unwrap();
    let logs = format!("--logs={}", empty.path().display());
    let prefix = format!("--prefix=stock={}", empty.path().display());
    for (flags, word) in [
        (vec![prefix.as_str(), logs.as_str()], "sbin/guacd"),
        (vec!["--guacd=127.0.0.1:4822", "--json=/nonexistent/report.json"], "--json"),
        (vec!["--guacd=127.0.0.1:4822", "--json=/"], "--json"),
        (vec!["--guacd=192.0.2.1:4822"], "--target"),
        (vec!["--guacd=127.0.0.1:4822", "--target=127.0.0.1:22", "--user=me"], "GUAC_STRESS_PASSWORD"),
    ] {
        let output = guac_stress().args(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains(word), "{}", text(&output.stderr));
    }
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0, "there is a log, though no guacd was started");
}

/// Not a test: what the daemon of [`prefix`] runs.
#[tokio::test(flavor = "multi_thread")]
async fn plays_guacd() {
    let Some(args) = std::env::var_os("PLAYS_GUACD") else { return };
    let args = args.into_string().unwrap();
    let args = args.split(' ').collect::<Vec<_>>();
    let port = args[args.iter().position(|&arg| arg == "-l").unwrap() + 1];
    let me = std::process::id();
    let Ok(listener) = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await else {
        write_error(&format!("guacd[{me}]: ERROR:\tUnable to bind socket to any addresses.\n"));
        std::process::exit(1);
    };
    // Like a child of guacd that hangs: in another process group, and it ignores SIGTERM.
    let script =
        "trap '' TERM HUP; printf '%s\\n' \"$$\" >> \"$PLAYS_GUACD_CHILDREN\"; sleep 60 & wait; wait";
    let mut child = Command::new("setsid").args(["sh", "-c", script]).stdin(Stdio::null()).spawn().unwrap();
    thread::spawn(move || child.wait());
    let fake = Fake::on(listener, &[]);
    write_error(&format!("guacd[{me}]: INFO:\tListening on host 127.0.0.1, port {port}\n"));
    let dies = [("PLAYS_GUACD_DIES_AFTER", &fake.established), ("PLAYS_GUACD_DIES_AFTER_LAST", &fake.proven)];
    for (count, proofs) in dies {
        let Ok(after) = std::env::var(count) else { continue };
        let after = after.parse().unwrap();
        while proofs.load(std::sync::atomic::Ordering::SeqCst) < after {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        write_error("guacd: out of cheese, aborting\n");
        std::process::abort();
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
}

/// Writes a line to standard error itself: the test harness would capture what Rust's macros write.
fn write_error(line: &str) {
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
}

/// An installation prefix whose guacd is [`plays_guacd`].
struct Prefix {
    dir: TempDir,
}

impl Prefix {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("sbin")).unwrap();
        let guacd = dir.path().join("sbin/guacd");
        let me = std::env::current_exe().unwrap();
        let script = format!(
            "#!/bin/sh\n[ -z \"$PLAYS_GUACD_STUBBORN\" ] || trap '' TERM\nPLAYS_GUACD=\"$*\" exec {} --exact program::plays_guacd --nocapture --test-threads=1 --quiet\n",
            me.display()
        );
        fs::write(&guacd, script).unwrap();
        fs::set_permissions(&guacd, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    fn load(&self, flags: &[&str]) -> Command {
        let mut command = guac_stress();
        command.env("PLAYS_GUACD_CHILDREN", self.dir.path().join("children"));
        command
            .arg(format!("--prefix=patched={}", self.dir.path().display()))
            .arg("--logs")
            .arg(self.dir.path());
        let json = format!("--json={}", self.json().display());
        command.args(with_defaults(flags, &[&json, "--count=4", "--rate=50", "--timeout=5s"]));
        command
    }

    fn json(&self) -> PathBuf {
        self.dir.path().join("report.json")
    }

    /// The children of the daemon, once there are any.
    fn children(&self) -> Vec<Pid> {
        let children = || fs::read_to_string(self.dir.path().join("children")).unwrap_or_default();
        wait_for("the daemon's child", || !children().is_empty());
        children().lines().map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap()).collect()
    }
}

fn wait_for(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !so() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn is_gone(pid: Pid) -> bool {
    test_kill_process(pid).is_err()
}

/// A run that holds its sessions for a minute, from the beginning of the hold on.
fn holding(prefix: &Prefix) -> (Child, impl Read + use<>) {
    held(prefix.load(&["--hold=1m"]))
}

fn held(mut command: Command) -> (Child, impl Read + use<>) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut errors = child.stderr.take().unwrap();
    let mut output = String::new();
    wait_for("the hold", || {
        let mut bytes = [0; 256];
        let length = errors.read(&mut bytes).unwrap();
        output.push_str(&String::from_utf8_lossy(&bytes[..length]));
        assert!(length > 0, "{output}");
        output.contains("holding: 4 alive")
    });
    (child, errors)
}

/// The worker of a run: the only child of the process that was started.
fn worker(child: &Child) -> Pid {
    let pid = child.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    Pid::from_raw(children.split_whitespace().next().unwrap().parse().unwrap()).unwrap()
}

#[test]
fn a_guacd_that_was_started_is_ended_with_all_its_children() {
    let prefix = Prefix::new();
    let output = prefix.load(&["--hold=100ms"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(prefix.children().into_iter().all(is_gone));
    let guacd = read(&prefix.json()).runs.remove(0).guacd.unwrap();
    assert!(guacd.died.is_none() && guacd.usage.unwrap().children >= 1);
    assert!(fs::read_to_string(guacd.log_file).unwrap().contains("Listening on host"));
}

#[test]
fn an_interruption_ends_everything_and_still_reports() {
    for signal in [Signal::INT, Signal::TERM] {
        let prefix = Prefix::new();
        let (child, _errors) = holding(&prefix);
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        assert!(prefix.children().into_iter().all(is_gone));
        let report = read(&prefix.json());
        assert!(report.interrupted && !report.passed && report.runs[0].interrupted);
        assert_eq!((report.runs[0].established, report.runs[0].proven), (4, 0));
        assert!(text(&output.stdout).contains("measured so far"), "{}", text(&output.stdout));
    }
}

#[test]
fn a_second_interruption_does_not_wait() {
    let prefix = Prefix::new();
    let (mut child, _errors) = held(stubborn(&prefix));
    let began = Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    thread::sleep(Duration::from_millis(700));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(began.elapsed() < Duration::from_millis(1900), "{:?}", began.elapsed());
    assert!(prefix.children().into_iter().all(is_gone));
    assert!(read(&prefix.json()).interrupted, "the report comes before the end of guacd");
}

/// A run whose guacd ignores SIGTERM.
fn stubborn(prefix: &Prefix) -> Command {
    let mut command = prefix.load(&["--hold=1m"]);
    command.env("PLAYS_GUACD_STUBBORN", "1");
    command
}

#[test]
fn one_interruption_that_comes_twice_is_one() {
    let prefix = Prefix::new();
    let (child, _errors) = held(stubborn(&prefix));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    thread::sleep(Duration::from_millis(30));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(text(&output.stdout).contains("measured so far"), "{}", text(&output.stdout));
    assert!(read(&prefix.json()).interrupted);
}

#[test]
fn children_that_guac_stress_never_started_are_spared() {
    let prefix = Prefix::new();
    let script = "sleep 60 & echo $!; exec \"$@\"";
    let load = prefix.load(&["--hold=100ms"]);
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(load.get_program()).args(load.get_args());
    command.envs(load.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // The child that is spared would keep a pipe open.
    let out = prefix.dir.path().join("out");
    let status = command.stdout(fs::File::create(&out).unwrap()).stderr(Stdio::null()).status().unwrap();
    let out = fs::read_to_string(out).unwrap();
    let stranger = Pid::from_raw(out.lines().next().unwrap().parse().unwrap()).unwrap();
    let is_there = !is_gone(stranger);
    let _ = kill_process(stranger, Signal::KILL);
    assert!(is_there, "{out}");
    assert_eq!(status.code(), Some(0), "{out}");
    assert!(prefix.children().into_iter().all(is_gone));
}

#[test]
fn a_key_limit_that_does_not_hold_is_exit_code_3() {
    let prefix = Prefix::new();
    let library = prefix.dir.path().join("libkey_limit.so");
    fs::write(&library, "not a library").unwrap();
    let flag = format!("--key-limit-library={}", library.display());
    let output = prefix.load(&["--key-limit=128", &flag]).output().unwrap();
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{errors}");
    let log = errors.split_whitespace().find(|word| word.ends_with(".log")).expect("no log is named");
    assert!(fs::read_to_string(log).unwrap().contains("cannot be preloaded"));
    assert!(prefix.children().into_iter().all(is_gone));

    for name in ["lib key_limit.so", "lib:key_limit.so"] {
        let library = prefix.dir.path().join(name);
        fs::write(&library, "").unwrap();
        let flag = format!("--key-limit-library={}", library.display());
        let output = prefix.load(&["--key-limit=128", &flag]).output().unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert!(text(&output.stderr).contains("a space or a colon"), "{}", text(&output.stderr));
    }
}

#[test]
fn a_library_that_is_not_loaded_is_exit_code_3() {
    let prefix = Prefix::new();
    let library = prefix.dir.path().join("libpreload.so");
    let flag = format!("--preload={}", library.display());
    let output = prefix.load(&[&flag]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("cargo xtask preload"), "{}", text(&output.stderr));

    fs::write(&library, "not a library").unwrap();
    let output = prefix.load(&[&flag]).output().unwrap();
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{errors}");
    assert!(errors.contains("the library of --preload"), "{errors}");
}

#[test]
fn an_old_report_does_not_stay_for_a_new_one() {
    let prefix = Prefix::new();
    fs::write(prefix.json(), "of yesterday").unwrap();
    fs::remove_dir_all(prefix.dir.path().join("sbin")).unwrap();
    assert_eq!(prefix.load(&[]).output().unwrap().status.code(), Some(3));
    assert!(!prefix.json().exists());
}

/// The page says what the JSON says, escapes what guacd wrote, and loads nothing.
#[test]
fn a_report_becomes_a_page() {
    let prefix = Prefix::new();
    let html = prefix.dir.path().join("report.html");
    let output = prefix.load(&["--hold=100ms", &format!("--html={}", html.display())]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let page = fs::read_to_string(&html).unwrap();
    assert!(page.contains("4 of 4 sessions are proven with patched") && page.contains("passed"), "{page}");
    assert!(!page.contains("<script") && !page.contains("src=") && !page.contains("href="), "{page}");

    let mut report = read(&prefix.json());
    report.runs[0].proven = 3;
    report.runs[0].failures.push(Failure {
        phase: Phase::Login,
        reason: "<img src=x onerror=alert(1)>".into(),
        log: Some("ERROR:\t\"&<b>".into()),
        count: 1,
        sessions: vec![3],
    });
    fs::write(prefix.json(), serde_json::to_vec(&report).unwrap()).unwrap();
    let show = |flags: &[&str]| guac_stress().arg("report").arg(prefix.json()).args(flags).output().unwrap();
    assert!(text(&show(&[]).stdout).contains("3 of 4"));
    assert!(show(&["--html", html.to_str().unwrap()]).status.success());
    let page = fs::read_to_string(&html).unwrap();
    assert!(
        page.contains("&lt;img src=x onerror=alert(1)&gt;") && page.contains("ERROR: &quot;&amp;&lt;b&gt;"),
        "{page}"
    );
    assert!(!page.contains("<img"), "{page}");

    fs::write(prefix.json(), "{}").unwrap();
    let refused = show(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("not a stress report"), "{}", text(&refused.stderr));
}

#[test]
fn a_pipe_or_a_link_is_written_to_and_not_replaced() {
    let prefix = Prefix::new();
    let pipe = prefix.dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = pipe.clone();
    let reader = thread::spawn(move || fs::read(reader).unwrap());
    let flag = format!("--json={}", pipe.display());
    let output = prefix.load(&["--hold=100ms", &flag]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report =
        StressReport::parse(&mut serde_json::Deserializer::from_slice(&reader.join().unwrap())).unwrap();
    assert!(report.passed && fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());

    let (link, file) = (prefix.dir.path().join("link"), prefix.dir.path().join("file"));
    fs::write(&file, "of yesterday, and longer than any report ".repeat(1000)).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let flag = format!("--json={}", link.display());
    assert_eq!(prefix.load(&["--hold=100ms", &flag]).output().unwrap().status.code(), Some(0));
    assert!(link.is_symlink() && read(&file).passed);
}

#[test]
fn a_report_that_cannot_be_written_is_printed_all_the_same() {
    let prefix = Prefix::new();
    let output = prefix.load(&["--hold=100ms", "--json=/dev/full"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("4 of 4"), "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("/dev/full"), "{}", text(&output.stderr));
}

/// A run with another directory for temporary files, whose name needs quoting.
fn with_temporary(prefix: &Prefix, flags: &[&str]) -> (Command, PathBuf) {
    let dir = prefix.dir.path().join("temporary 100% files");
    fs::create_dir(&dir).unwrap();
    let mut command = prefix.load(flags);
    command.env("TMPDIR", &dir);
    (command, dir)
}

#[test]
fn temporary_files_are_private_and_gone_after_whatever_happens() {
    let has_sshd = ["/usr/sbin/sshd", "/usr/local/sbin/sshd"].iter().any(|sshd| Path::new(sshd).is_file());
    let target = if has_sshd { "--target=openssh" } else { "--target=embedded" };
    let prefix = Prefix::new();
    let (command, dir) = with_temporary(&prefix, &["--hold=1m", target]);
    let (mut child, _errors) = held(command);
    let scratch = fs::read_dir(&dir).unwrap().next().expect("no directory").unwrap();
    assert_eq!(scratch.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(scratch.path().join("sshd/host_key").is_file(), has_sshd);
    kill_process(worker(&child), Signal::KILL).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);

    let prefix = Prefix::new();
    let (command, dir) = with_temporary(&prefix, &["--hold=1m"]);
    let (mut child, mut errors) = held(command);
    child.kill().unwrap();
    child.wait().unwrap();
    // The worker keeps them until it ends.
    errors.read_to_end(&mut Vec::new()).unwrap();
    wait_for("the end of temporary files", || fs::read_dir(&dir).unwrap().count() == 0);
}

#[test]
fn a_worker_that_is_killed_leaves_nothing_behind() {
    let prefix = Prefix::new();
    let (mut child, _errors) = holding(&prefix);
    kill_process(worker(&child), Signal::KILL).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(prefix.children().into_iter().all(is_gone));
}

#[test]
fn a_reaper_that_is_killed_leaves_nothing_behind() {
    let prefix = Prefix::new();
    let (mut child, _errors) = holding(&prefix);
    let worker = worker(&child);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("the worker to end", || {
        is_gone(worker)
            || fs::read_to_string(format!("/proc/{}/stat", worker.as_raw_pid()))
                .is_ok_and(|stat| stat.contains(") Z "))
    });
    assert!(prefix.children().into_iter().all(is_gone));
    assert!(read(&prefix.json()).interrupted);
}

#[test]
fn a_guacd_that_dies_fails_every_session_and_is_quoted() {
    let prefix = Prefix::new();
    let output = prefix.load(&["--hold=5s"]).env("PLAYS_GUACD_DIES_AFTER", "4").output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    let run = read(&prefix.json()).runs.remove(0);
    assert_eq!(run.proven, 0);
    assert_eq!(run.failures.iter().map(|failure| failure.count).sum::<u32>(), 4);
    assert!(
        run.failures.iter().all(|failure| failure.reason == "guacd was killed by signal 6"),
        "{:?}",
        run.failures
    );
    assert!(run.guacd.unwrap().last_lines.iter().any(|line| line.contains("out of cheese")));
    assert!(text(&output.stdout).contains("out of cheese"));
}

#[test]
fn a_guacd_that_dies_of_the_last_proof_fails_every_session() {
    let prefix = Prefix::new();
    let output = prefix.load(&["--hold=100ms"]).env("PLAYS_GUACD_DIES_AFTER_LAST", "4").output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stdout));
    let run = read(&prefix.json()).runs.remove(0);
    assert_eq!((run.established, run.proven), (4, 0));
    assert!(run.guacd.unwrap().died.is_some());
}

#[test]
fn a_session_that_was_never_begun_has_neither_started_nor_failed() {
    let prefix = Prefix::new();
    let flags = ["--count=20", "--rate=5", "--hold=30s"];
    let output = prefix.load(&flags).env("PLAYS_GUACD_DIES_AFTER", "2").output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    let run = read(&prefix.json()).runs.remove(0);
    let failed = run.failures.iter().map(|failure| failure.count).sum::<u32>();
    assert!(run.started >= 2 && run.started < 10, "{} begun", run.started);
    assert_eq!((run.proven, failed), (0, run.started));
    assert!(text(&output.stdout).contains("never begun"), "{}", text(&output.stdout));
    assert!(run.total_seconds < 20.0);
}

#[test]
fn what_one_guacd_gave_is_kept_when_the_next_does_not_start() {
    let prefix = Prefix::new();
    let output = prefix.load(&["--hold=100ms", "--prefix=stock=/nonexistent"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("/nonexistent/sbin/guacd"));
    assert!(text(&output.stdout).contains("4 of 4"), "{}", text(&output.stdout));
    let report = read(&prefix.json());
    assert_eq!((report.passed, report.runs.len()), (false, 1));
}

#[test]
fn a_port_that_is_taken_is_an_error_that_says_what_to_do() {
    let prefix = Prefix::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let output = prefix.load(&[&format!("--port={port}")]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("ss -ltnp"), "{}", text(&output.stderr));
}

/// Runs a plan that guac-stress reads from standard input, in some directory.
fn run_plan(plan: &Value, dir: &Path) -> Output {
    let mut command = guac_stress();
    command.arg("plan").current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    serde_json::to_writer(child.stdin.take().unwrap(), plan).unwrap();
    child.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_read_from_standard_input_and_its_paths_are_relative_to_the_directory() {
    let fake = Fake::start(&[]).await;
    let dir = TempDir::new().unwrap();
    let flags =
        ["guac-stress", "--count=2", "--hold=100ms", "--rate=50", "--json=report.json", "--release=9.9.9"];
    let words = flags.into_iter().map(str::to_owned).chain([format!("--guacd={}", fake.address)]);
    let plan = serde_json::to_value(plan(words)).unwrap();
    let (from, run) = (dir.path().to_owned(), plan.clone());
    let output = tokio::task::spawn_blocking(move || run_plan(&run, &from)).await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let run = read(&dir.path().join("report.json")).runs.remove(0);
    assert_eq!((run.proven, run.release.as_deref()), (2, Some("9.9.9")));

    let mut wrong = plan;
    wrong["load"]["guacd"] = Value::Null;
    let output = run_plan(&wrong, dir.path());
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    let output = run_plan(&Value::Null, dir.path());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("read a plan"), "{}", text(&output.stderr));
}

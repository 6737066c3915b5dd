//! `cargo xtask stress`: real guacds under real load, and what goes wrong around them.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guac_stress::report::{CapacityEnd, Failure, Run, StressReport};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::desktop::{PASSWORD, Xrdp};
use crate::support::differences::stock_lacks;
use crate::support::processes::{Descendants, SERVER_VARIABLE, descriptors, kill};
use crate::support::tcp::{Connection, connections};
use crate::support::{self, Output, Running, release, xtask};

crate::tests! {
    Nothing:
        a_count_of_nothing_or_of_too_much_is_refused,
        a_flag_of_another_scenario_is_refused;
    Source:
        stock_carries_58_sessions_of_128_keys_and_patched_all_300,
        the_same_holds_with_openssh_behind_it,
        patched_carries_300_sessions,
        sessions_over_all_protocols_live_next_to_one_another,
        twenty_desktops_over_rdp_prove_themselves,
        what_targets_draw_reaches_the_clients of "0143",
        guacd_sees_as_many_processors_as_it_is_told,
        capacity_is_measured_step_by_step of "0143",
        desktops_whose_server_falls_silent_are_not_proven,
        waves_come_and_go,
        sessions_survive_the_disruption_of_others,
        malformed_handshakes_harm_no_session,
        odd_instructions_to_sessions_harm_none,
        what_crashes_a_process_of_stock_does_so_again,
        what_programs_print_harms_no_session,
        what_fuzz_finds_in_the_terminal_of_stock_is_saved_and_played_again,
        plugins_of_stock_work_with_the_patched_libguac,
        a_port_that_is_taken_is_refused,
        a_guacd_that_dies_fails_every_session,
        a_target_that_refuses_fails_every_session,
        a_target_that_never_answers_fails_every_session,
        an_interruption_leaves_no_process_and_a_report;
    Minutes:
        stock_and_patched_are_compared_with_few_keys_and_with_many,
        no_connection_leaves_keys_behind_except_where_stock_does;
    SourceAndServers:
        sessions_live_on_a_real_telnetd,
        sessions_live_on_a_real_vnc_server;
    SourceAndXrdp: sessions_live_on_a_real_xrdp;
}

/// A run of `cargo xtask stress` with a report.
pub struct Stress {
    dir: TempDir,
    started: Descendants,
}

impl Stress {
    pub fn new() -> Result<Stress> {
        Ok(Stress { dir: TempDir::new()?, started: Descendants::since_now()? })
    }

    fn json(&self) -> PathBuf {
        self.dir.path().join("report.json")
    }

    fn start(&self, arguments: &[&str]) -> Result<Running> {
        let json = self.json();
        let json = json.to_string_lossy();
        // The name of a scenario comes before all flags.
        let has_scenario = arguments.first().is_some_and(|first| !first.starts_with('-'));
        let (scenario, flags) = arguments.split_at(usize::from(has_scenario));
        xtask([&["stress"][..], scenario, &["--json", &json], flags].concat()).start()
    }

    /// The report, once the run is over: nothing of it may be left.
    fn report(&self, output: &Output) -> Result<StressReport> {
        self.started.ensure_gone().with_context(|| output.stderr.clone())?;
        let json = fs::read(self.json()).with_context(|| format!("no report\n{}", output.stderr))?;
        StressReport::parse(&mut serde_json::Deserializer::from_slice(&json)).map_err(anyhow::Error::msg)
    }

    /// The guacds that this run has started, the parent first.
    fn guacds(&self) -> Vec<i32> {
        // Some releases give the process of a connection another name.
        let is_program = |pid: i32| {
            fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program.ends_with("sbin/guacd"))
        };
        let named = self.started.called(Some("guacd")).unwrap_or_default();
        let mut guacds = self.started.called(None).unwrap_or_default();
        guacds.retain(|pid| named.contains(pid) || is_program(*pid));
        guacds
    }

    pub fn run(&self, code: i32, arguments: &[&str]) -> Result<StressReport> {
        let output = self.start(arguments)?.wait()?;
        let report = self.report(&output)?;
        output.expect(code, &[])?;
        Ok(report)
    }
}

fn stock_carries_58_sessions_of_128_keys_and_patched_all_300() -> Result<()> {
    let arguments = ["--count", "300", "--rate", "20", "--key-limit", "128", "--variant", "both"];
    let report = Stress::new()?.run(0, &arguments)?;
    let [stock, patched] = &report.runs[..] else {
        anyhow::bail!("{} runs", report.runs.len());
    };
    // Without a key for each lock, it does not use more of them with more sessions. Some of these are silent for other reasons.
    match stock_lacks("0002")? {
        true => stops_at_its_last_key(stock)?,
        false => ensure!(stock.proven > 64, "stock proved {}", stock.proven),
    }
    ensure!(patched.variant == "patched", "the second is {}", patched.variant);
    all_proved(patched, 300)
}

fn the_same_holds_with_openssh_behind_it() -> Result<()> {
    let load = ["--key-limit", "128", "--target", "openssh", "--hold", "2s"];
    let lacks = stock_lacks("0002")?;
    let (code, load_of_stock) = (if lacks { 5 } else { 0 }, ["--variant", "stock", "--count", "64"]);
    let stock = Stress::new()?.run(code, &[&load[..], &load_of_stock].concat())?;
    match lacks {
        true => stops_at_its_last_key(&stock.runs[0])?,
        false => all_proved(&stock.runs[0], 64)?,
    }
    let patched = Stress::new()?.run(0, &[&load[..], &["--count", "300"]].concat())?;
    all_proved(&patched.runs[0], 300)
}

fn stops_at_its_last_key(stock: &Run) -> Result<()> {
    // SSH takes eleven.
    let expected = (128 - 11) / stock_keys_of_a_connection()?;
    ensure!(
        stock.variant == "stock" && stock.proven.abs_diff(expected) <= 2,
        "stock proved {} and not {expected}",
        stock.proven
    );
    let says_why =
        |failure: &Failure| failure.log.as_ref().is_some_and(|log| log.contains("'pthread_key_create'"));
    ensure!(stock.failures.iter().any(says_why), "GLib's line is missing: {:#?}", stock.failures);
    Ok(())
}

fn patched_carries_300_sessions() -> Result<()> {
    let report = Stress::new()?.run(0, &["--count", "300", "--rate", "20"])?;
    all_proved(&report.runs[0], 300)
}

fn sessions_over_all_protocols_live_next_to_one_another() -> Result<()> {
    let report = Stress::new()?.run(0, &["--count", "12", "--hold", "2s", "--protocol", "mix"])?;
    let run = &report.runs[0];
    all_proved(run, 12)?;
    let guacd = run.guacd.as_ref().context("no guacd")?;
    let processes = guacd.processes.context("the processes of the first and the last session are missing")?;
    let (first, last) = (processes.first, processes.last);
    ensure!((first.session, last.session) == (0, 11) && last.descriptors > 5, "{processes:?}");
    ensure!(guacd.samples.iter().any(|sample| sample.children >= 12 && sample.tasks > 50), "{guacd:#?}");
    ensure!(guacd.idle_cpu_ms_per_second.is_none_or(|taken| taken < 100.0), "{guacd:#?}");
    Ok(())
}

fn twenty_desktops_over_rdp_prove_themselves() -> Result<()> {
    let load = ["--count", "20", "--rate", "4", "--hold", "2s", "--protocol", "rdp"];
    all_proved(&Stress::new()?.run(0, &load)?.runs[0], 20)
}

fn what_targets_draw_reaches_the_clients() -> Result<()> {
    // One that draws in all protocols, and one of each other activity.
    for (protocol, activity) in [("mix", "scroll"), ("vnc", "type"), ("telnet", "video")] {
        let load = ["--count", "4", "--hold", "4s", "--protocol", protocol, "--activity", activity];
        let report = Stress::new()?.run(0, &load)?;
        let run = &report.runs[0];
        all_proved(run, 4)?;
        let drawing = run.drawing.with_context(|| format!("{activity}: nothing was drawn"))?;
        // Beside other work, some frames may be left out.
        let (asked, received) = (drawing.asked_per_second, drawing.received_per_second);
        let lag = drawing.lag.context("no client has received a frame")?;
        let is_plausible = run.activity == activity
            && asked >= 5.0
            && received > asked / 5.0
            // Each frame counts once: no more are received than are drawn, but for one at the beginning.
            && received <= drawing.drawn_per_second + 1.0 / drawing.seconds
            && drawing.fewest_per_second <= received
            && (0.1..10_000.0).contains(&lag.p50_ms)
            && drawing.bytes_per_second > 100.0
            && drawing.cpu_ms_per_frame.is_some_and(|cpu| cpu > 0.0);
        ensure!(is_plausible, "{activity}: {drawing:#?}");
    }
    let report = Stress::new()?.run(0, &["--count", "1", "--hold", "2s"])?;
    ensure!(report.runs[0].drawing.is_none(), "{:#?}", report.runs[0].drawing);
    Ok(())
}

fn guacd_sees_as_many_processors_as_it_is_told() -> Result<()> {
    let threads = |cores| -> Result<u32> {
        let load =
            ["--count", "1", "--hold", "1s", "--protocol", "rdp", "--variant", "stock", "--pretend-cores"];
        let report = Stress::new()?.run(0, &[&load[..], &[cores]].concat())?;
        let run = &report.runs[0];
        ensure!(run.pretend_cores == cores.parse().ok(), "{:?}", run.pretend_cores);
        Ok(run.guacd.as_ref().and_then(|guacd| guacd.processes).context("no process")?.first.threads)
    };
    // Each has a thread that encodes, at least.
    let (few, many) = (threads("2")?, threads("40")?);
    ensure!(many >= few + 38, "{few} and {many} threads");
    Ok(())
}

fn capacity_is_measured_step_by_step() -> Result<()> {
    let load = [
        "capacity",
        "--protocol",
        "vnc",
        "--activity",
        "type",
        "--count",
        "3",
        "--step",
        "2",
        "--hold",
        "2s",
    ];
    let lenient = ["--max-lag", "1m", "--min-frames", "10%"];
    let report = Stress::new()?.run(0, &[&load[..], &lenient].concat())?;
    let capacity = report.runs[0].capacity.as_ref().context("no capacity")?;
    ensure!(capacity.sessions == 3 && capacity.ended_by == CapacityEnd::Count, "{capacity:#?}");
    ensure!(capacity.sessions_per_gib.is_some_and(|sessions| sessions > 1.0), "{capacity:#?}");
    ensure!(report.runs[0].rounds.len() == 2, "{:#?}", report.runs[0].rounds);

    let report = Stress::new()?.run(5, &[&load[..], &["--max-lag", "0s"]].concat())?;
    let capacity = report.runs[0].capacity.as_ref().context("no capacity")?;
    ensure!(capacity.sessions == 0 && capacity.ended_by == CapacityEnd::Lag, "{capacity:#?}");
    Ok(())
}

fn stock_and_patched_are_compared_with_few_keys_and_with_many() -> Result<()> {
    let matrix = |more: &[&str]| {
        let release = &release().version;
        xtask([&["matrix", "--release", release, "--hold", "1s"], more].concat()).run()
    };
    let output = matrix(&["--count", "64", "--json"])?;
    output.expect(0, &[])?;
    let rows = serde_json::from_str::<serde_json::Value>(&output.stdout)?;
    let of = |row: &serde_json::Value| {
        let proven = row["proven"].as_u64().unwrap_or(0);
        format!("{} {} {}", row["variant"].as_str().unwrap_or_default(), row["key_limit"], proven == 64)
    };
    let found = rows.as_array().into_iter().flatten().map(of).collect::<Vec<_>>();
    let with_128 = if stock_lacks("0002")? { "stock 128 false" } else { "stock 128 true" };
    let expected = [with_128, "stock null true", "patched 128 true", "patched null true"];
    ensure!(found == expected, "{rows:#}");

    let output = matrix(&["--count", "2"])?;
    output.expect(0, &[])?;
    let row = output.stdout.lines().last().unwrap_or_default();
    ensure!(row.starts_with(&format!("| {} | patched | libc's | 2 of 2 | 0 |", release().version)), "{row}");
    Ok(())
}

fn desktops_whose_server_falls_silent_are_not_proven() -> Result<()> {
    // The server of one run is the target of the other.
    let serving = Stress::new()?;
    let guacd = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let port = guacd.to_string();
    let load = ["--protocol", "rdp", "--count", "1", "--hold", "5m", "--port", &port];
    let mut server = serving.start(&load)?;
    server.wait_for_words("holding: 1 alive")?;
    let connections = connections()?;
    let found = serving.started.called(Some("guac-stress"))?.into_iter().find_map(|pid| {
        let open = descriptors(pid);
        let is_its = |connection: &&Connection| open.contains(&format!("socket:[{}]", connection.inode));
        // Its other connection is the one to guacd.
        let desktop = connections.iter().filter(is_its).find(|connection| connection.remote != guacd)?;
        Some((pid, desktop.local))
    });
    let (pid, port) = found.context("the server has no connection")?;
    let stress = Stress::new()?;
    let target = format!("127.0.0.1:{port}");
    let load = ["--protocol", "rdp", "--count", "2", "--hold", "5s", "--timeout", "20s", "--target", &target];
    let mut running = stress.start(&load)?;
    running.wait_for_words("holding: 2 alive")?;
    kill(pid, Signal::STOP);
    let output = running.wait();
    kill(pid, Signal::CONT);
    let output = output?;
    let run = stress.report(&output)?.runs.remove(0);
    output.expect(5, &[])?;
    ensure!(run.established == 2 && run.proven == 0, "{run:#?}");
    ensure!(run.failures[0].reason.contains("what was typed did not come back"), "{run:#?}");
    server.interrupt()?.expect(130, &[])
}

/// Whether real servers for telnet and VNC are installed.
pub fn has_servers() -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &str| std::env::split_paths(&paths).any(|path| path.join(name).is_file());
    Path::new(TELNETD).is_file() && is_there("Xvnc") && is_there("xterm")
}

const TELNETD: &str = "/usr/sbin/telnetd";

fn sessions_live_on_a_real_telnetd() -> Result<()> {
    let dir = TempDir::new()?;
    let login = dir.path().join("login");
    fs::write(
        &login,
        "#!/bin/sh\nprintf 'login: '; read -r user; stty -echo; printf 'Password: '; read -r password; stty echo; echo\n\
         [ \"$user $password\" = 'me secret' ] || { echo 'Login incorrect'; sleep 1; exit 1; }\n\
         echo 'Last login: yesterday'; PS1='me@here:~$ ' exec sh -i\n",
    )?;
    fs::set_permissions(&login, fs::Permissions::from_mode(0o700))?;
    let (right, wrong) = (dir.path().join("right"), dir.path().join("wrong"));
    fs::write(&right, "secret\n")?;
    fs::write(&wrong, "guess\n")?;
    let mut telnetd = Command::new(TELNETD);
    telnetd.arg("-h").arg("-E").arg(&login);
    let inetd = Inetd::start(telnetd)?;
    let load = |password: &Path| {
        let password = password.display().to_string();
        ["--protocol", "telnet", "--target", &inetd.address(), "--user", "me", "--password-file", &password]
            .map(str::to_owned)
    };
    let run = |code, count: &str, password: &Path| {
        let load = load(password);
        let load = load.iter().map(String::as_str);
        let all: Vec<&str> = ["--count", count, "--hold", "1s"].into_iter().chain(load).collect();
        Ok::<Run, anyhow::Error>(Stress::new()?.run(code, &all)?.runs.remove(0))
    };
    all_proved(&run(0, "4", &right)?, 4)?;
    let refused = run(5, "1", &wrong)?;
    ensure!(refused.proven == 0 && refused.failures[0].reason.contains("769"), "{refused:#?}");
    Ok(())
}

fn sessions_live_on_a_real_vnc_server() -> Result<()> {
    let desktop = support::root().join("stress/examples/vnc-desktop.sh");
    let inetd = Inetd::start(Command::new(desktop))?;
    let load = ["--count", "3", "--hold", "1s", "--protocol", "vnc", "--target", &inetd.address()];
    all_proved(&Stress::new()?.run(0, &load)?.runs[0], 3)
}

fn sessions_live_on_a_real_xrdp() -> Result<()> {
    let xrdp = Xrdp::start("cat")?;
    let dir = TempDir::new()?;
    let password = dir.path().join("password");
    fs::write(&password, PASSWORD)?;
    let (address, password) = (format!("127.0.0.1:{}", xrdp.port), password.display().to_string());
    let load = ["--count", "3", "--rate", "1", "--hold", "1s", "--protocol", "rdp", "--target", &address];
    let login = ["--user", &xrdp.user, "--password-file", &password];
    all_proved(&Stress::new()?.run(0, &[&load[..], &login].concat())?.runs[0], 3)
}

/// Starts a program for each connection, as inetd does. All of them end with this.
struct Inetd {
    port: u16,
    stop: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

impl Inetd {
    fn start(mut program: Command) -> Result<Inetd> {
        program.env(SERVER_VARIABLE, "1");
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let serving = std::thread::spawn(move || {
            let mut children = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let stream = OwnedFd::from(stream);
                let Ok(copy) = stream.try_clone() else { break };
                children.extend(program.stdin(copy).stdout(stream).stderr(Stdio::null()).spawn());
            }
            for mut child in children {
                // It ends with its connection, and Xvnc with its terminal.
                for _ in 0..100 {
                    if !matches!(child.try_wait(), Ok(None)) {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                let _ = child.kill();
                let _ = child.wait();
            }
        });
        Ok(Inetd { port, stop, serving: Some(serving) })
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Inetd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address());
        let _ = self.serving.take().map(JoinHandle::join);
    }
}

fn no_connection_leaves_keys_behind_except_where_stock_does() -> Result<()> {
    // Nothing may be left of the last two waves.
    const WAVES: [&str; 5] = ["churn", "--count", "30", "--wave", "10"];
    let left_over = |variant: &str, code| -> Result<f64> {
        let load = ["--key-limit", "1024", "--max-memory-growth", "100%", "--variant", variant];
        let report = Stress::new()?.run(code, &[&WAVES[..], &load].concat())?;
        let run = &report.runs[0];
        ensure!(run.proven == 30 && run.rounds.len() == 3, "{run:#?}");
        let check = run.checks.iter().find(|check| check.name == "leftover pthread keys");
        check.and_then(|check| check.measured).with_context(|| format!("{:#?}", run.checks))
    };
    ensure!(left_over("patched", 0)? == 0.0, "patched leaves keys behind");
    // Of four keys of a connection, stock forgets two.
    let forgets = stock_keys_of_a_connection()? == 4;
    let keys = left_over("stock", if forgets { 5 } else { 0 })?;
    ensure!(keys == if forgets { 40.0 } else { 0.0 }, "stock leaves {keys} keys behind");
    Ok(())
}

/// How many keys a connection takes in the parent of a stock guacd. Some releases create the key of each of its locks twice.
pub fn stock_keys_of_a_connection() -> Result<u32> {
    let client = support::built("stock")?.with_file_name("build").join("src/libguac/client.c");
    let twice = fs::read_to_string(client)?.contains("pthread_key_create(&(client->__users_lock.key)");
    Ok(if twice { 4 } else { 2 })
}

fn waves_come_and_go() -> Result<()> {
    // Two small waves say little about memory. But nothing else may be left.
    let load = ["churn", "--count", "16", "--wave", "8", "--settle", "3s", "--key-limit", "1024"];
    let report = Stress::new()?.run(0, &[&load[..], &["--max-memory-growth", "100%"]].concat())?;
    let run = &report.runs[0];
    ensure!(run.proven == 16 && run.peak_alive == 8 && run.rounds.len() == 2, "{run:#?}");
    let measured = run.checks.iter().filter(|check| check.measured.is_some()).count();
    ensure!(measured == run.checks.len() && measured == 7, "{:#?}", run.checks);
    Ok(())
}

fn sessions_survive_the_disruption_of_others() -> Result<()> {
    let load = ["chaos", "--count", "20", "--hold", "2s", "--seed", "1", "--min-proven", "100%"];
    let report = Stress::new()?.run(0, &load)?;
    let run = &report.runs[0];
    ensure!(run.disrupted() == 7 && run.proven == 13 && run.failures.is_empty(), "{run:#?}");
    ensure!(run.faults.len() == 4, "{:#?}", run.faults);
    ensure!(run.faults.iter().all(|fault| fault.sessions == fault.ended), "{:#?}", run.faults);
    Ok(())
}

fn malformed_handshakes_harm_no_session() -> Result<()> {
    let load = ["fuzz", "--count", "4", "--inputs", "100", "--seed", "1", "--settle", "3s"];
    let report = Stress::new()?.run(0, &load)?;
    let run = &report.runs[0];
    all_proved(run, 4)?;
    let fuzz = run.fuzz.as_ref().context("nothing was sent")?;
    ensure!(fuzz.inputs == 100 && fuzz.abandoned > 50 && fuzz.crashes == Some(0), "{fuzz:#?}");
    Ok(())
}

fn odd_instructions_to_sessions_harm_none() -> Result<()> {
    let stress = Stress::new()?;
    for protocol in ["ssh", "telnet", "vnc", "rdp"] {
        let inputs = ["fuzz", "--kind", "session", "--count", "2", "--inputs", "300", "--seed", "1"];
        let report = stress.run(0, &[&inputs[..], &["--protocol", protocol, "--settle", "5s"]].concat())?;
        let run = &report.runs[0];
        all_proved(run, 2)?;
        let fuzz = run.fuzz.as_ref().context("nothing was sent")?;
        ensure!(fuzz.inputs == 300 && fuzz.ready > 0 && fuzz.crashes == Some(0), "{protocol}: {fuzz:#?}");
    }
    Ok(())
}

fn what_crashes_a_process_of_stock_does_so_again() -> Result<()> {
    // `6.select,3.ssh;` and `4.size,3.800;`, in base64. The `size` lacks an argument, and its parser is freed twice.
    let input = tempfile::NamedTempFile::new()?;
    fs::write(&input, r#"{"pieces": ["Ni5zZWxlY3QsMy5zc2g7", "NC5zaXplLDMuODAwOw=="], "ending": "wait"}"#)?;
    let path = input.path().to_string_lossy();
    let replay = ["fuzz", "--count", "2", "--settle", "1s", "--replay", &path];
    let stress = Stress::new()?;
    let output = stress.start(&[&replay[..], &["--variant", "stock"]].concat())?.wait()?;
    let run = stress.report(&output)?.runs.remove(0);
    ensure!(run.proven == 2 && run.fuzz.is_some_and(|fuzz| fuzz.crashes == Some(1)), "stock does not crash");
    output.expect(5, &[])?;
    let report = Stress::new()?.run(0, &replay)?;
    ensure!(
        report.runs[0].fuzz.as_ref().is_some_and(|fuzz| fuzz.crashes == Some(0)),
        "{:#?}",
        report.runs[0]
    );
    Ok(())
}

/// The flags with which `fuzz` plays terminal sessions. The number of them follows.
const FUZZ_TERMINAL: &[&str] =
    &["fuzz", "--kind", "terminal", "--protocol", "telnet", "--count", "2", "--seed", "1", "--inputs"];

fn what_programs_print_harms_no_session() -> Result<()> {
    let report = Stress::new()?.run(0, &[FUZZ_TERMINAL, &["40"]].concat())?;
    let run = &report.runs[0];
    all_proved(run, 2)?;
    let fuzz = run.fuzz.as_ref().context("nothing was played")?;
    ensure!(fuzz.inputs == 40 && fuzz.ready == 40 && fuzz.crashes == Some(0), "{fuzz:#?}");
    Ok(())
}

fn what_fuzz_finds_in_the_terminal_of_stock_is_saved_and_played_again() -> Result<()> {
    let stress = Stress::new()?;
    let output = stress.start(&[FUZZ_TERMINAL, &["8", "--variant", "stock"]].concat())?.wait()?;
    let fuzz = stress.report(&output)?.runs.remove(0).fuzz.context("nothing was played")?;
    // Stock does not log that a session's process has died, and may not tell its user.
    ensure!(fuzz.closed + fuzz.unanswered > 0, "stock's sessions live: {fuzz:#?}");
    let saved = fuzz.saved.first().context("nothing was saved")?;
    output.expect(5, &[])?;
    ensure!(output.stdout.contains("fuzz --replay"), "{}", output.stdout);
    let replay = ["fuzz", "--protocol", "telnet", "--count", "2", "--replay", saved];
    let output = stress.start(&[&replay[..], &["--variant", "stock"]].concat())?.wait()?;
    let fuzz = stress.report(&output)?.runs.remove(0).fuzz.context("nothing was played")?;
    ensure!(fuzz.inputs == 1 && fuzz.ready == 0, "stock's session lives now: {fuzz:#?}");
    let report = Stress::new()?.run(0, &replay)?;
    let fuzz = report.runs[0].fuzz.as_ref().context("nothing was played")?;
    ensure!(fuzz.ready == 1 && fuzz.crashes == Some(0), "{fuzz:#?}");
    Ok(())
}

fn all_proved(run: &Run, count: u32) -> Result<()> {
    ensure!(run.requested == count && run.proven == count && run.failures.is_empty(), "{run:#?}");
    Ok(())
}

fn plugins_of_stock_work_with_the_patched_libguac() -> Result<()> {
    let dir = TempDir::new()?;
    let mixed = dir.path().join("mixed");
    for sub in ["sbin", "lib"] {
        fs::create_dir_all(mixed.join(sub))?;
    }
    let (stock, patched) = (support::built("stock")?, support::built("patched")?);
    let link = |prefix: &Path, name: &str| symlink(prefix.join(name), mixed.join(name));
    // guacd and libguac are those of patched. Everything else was compiled and linked against stock.
    link(&patched, "sbin/guacd")?;
    for entry in fs::read_dir(stock.join("lib"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let prefix = if name.starts_with("libguac.so") { &patched } else { &stock };
        link(prefix, &format!("lib/{name}"))?;
    }
    let guac_stress = support::target_dir().join("release/guac-stress");
    let output = Command::new(guac_stress)
        .args(["--count", "5", "--hold", "1s", "--prefix", &format!("mixed={}", mixed.display())])
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

fn a_count_of_nothing_or_of_too_much_is_refused() -> Result<()> {
    for count in ["0", "-1", "1000000", "many"] {
        let output = xtask(["stress", &format!("--count={count}")]).run()?;
        output.expect(2, &["--count", count])?;
    }
    Ok(())
}

fn a_flag_of_another_scenario_is_refused() -> Result<()> {
    for (flags, named) in [
        (&["--wave", "3"][..], "--wave"),
        (&["hold", "--wave", "3"], "--wave"),
        (&["fuzz", "--hold", "1s"], "--hold"),
        (&["--count", "3", "churn"], "churn"),
        (&["chaos", "--guacd", "127.0.0.1:4822"], "--guacd"),
        (&["churn", "--count", "50"], "--wave"),
        (&["--scenario", "churn"], "--scenario"),
    ] {
        xtask([&["stress"][..], flags].concat()).run()?.expect(2, &[named])?;
    }
    Ok(())
}

fn a_port_that_is_taken_is_refused() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port().to_string();
    let output = xtask(["stress", "--count", "2", "--port", &port]).run()?;
    output.expect(1, &[&port])
}

fn a_guacd_that_dies_fails_every_session() -> Result<()> {
    let stress = Stress::new()?;
    let mut running = stress.start(&["--count", "10", "--hold", "30s"])?;
    running.wait_until("guacd and some of its children", || stress.guacds().len() > 4)?;
    let guacd = stress.guacds().first().copied().and_then(Pid::from_raw).context("no guacd")?;
    kill_process(guacd, Signal::KILL)?;
    let output = running.wait()?;
    let report = stress.report(&output)?;
    output.expect(5, &[])?;
    let run = &report.runs[0];
    ensure!(run.proven == 0 && !run.failures.is_empty(), "{run:#?}");
    ensure!(run.guacd.as_ref().is_some_and(|guacd| guacd.died.is_some()), "{run:#?}");
    Ok(())
}

fn a_target_that_refuses_fails_every_session() -> Result<()> {
    // Bound and closed again: a connection is refused.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let target = format!("127.0.0.1:{port}");
    fails_every_session("ssh", &target)?;
    fails_every_session("rdp", &target)
}

fn a_target_that_never_answers_fails_every_session() -> Result<()> {
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let target = silent.local_addr()?.to_string();
    fails_every_session("ssh", &target)?;
    fails_every_session("rdp", &target)
}

fn fails_every_session(protocol: &str, target: &str) -> Result<()> {
    let dir = TempDir::new()?;
    let password = dir.path().join("password");
    fs::write(&password, "secret\n")?;
    let password = password.to_string_lossy();
    let credentials = ["--user", "nobody", "--password-file", &password];
    let load =
        ["--count", "3", "--hold", "1s", "--timeout", "8s", "--protocol", protocol, "--target", target];
    let report = Stress::new()?.run(5, &[&load[..], &credentials[..]].concat())?;
    let run = &report.runs[0];
    let failed: u32 = run.failures.iter().map(|failure| failure.count).sum();
    ensure!(run.proven == 0 && failed == 3, "{run:#?}");
    Ok(())
}

fn an_interruption_leaves_no_process_and_a_report() -> Result<()> {
    let load = ["--count", "20", "--hold", "3s", "--rate", "5"];
    for phase in ["ramp", "hold"] {
        let stress = Stress::new()?;
        let mut running = stress.start(&load)?;
        match phase {
            // guacd, its fork server, and the processes of two sessions.
            "ramp" => running.wait_until("two sessions", || stress.guacds().len() >= 4)?,
            _ => running.wait_for_words("holding: 20 alive")?,
        }
        let output = running.interrupt()?;
        let report = stress.report(&output)?;
        output.expect(130, &[])?;
        ensure!(report.interrupted && report.runs[0].started > 0, "in the {phase}: {report:#?}");
    }
    let report = Stress::new()?.run(0, &load)?;
    all_proved(&report.runs[0], 20)?;
    ensure!(Path::new(&report.runs[0].guacd.as_ref().context("no guacd")?.log_file).is_file(), "no log");
    Ok(())
}

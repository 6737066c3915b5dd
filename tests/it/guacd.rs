//! Does a patched guacd do what its patches are for? Each is shown beside stock, which does not.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::abi::run_c;
use crate::support;

crate::tests! {
    Source:
        a_connection_is_tried_at_every_address_and_with_any_descriptor,
        a_process_has_nothing_of_another_users_connection,
        a_killed_process_ends_its_own_connection_and_no_other,
        an_encrypted_connection_ends_with_its_process,
        a_killed_guacd_leaves_nothing_behind,
        a_stopped_guacd_ends_all_connections_together,
        a_guacd_that_is_stopped_in_a_burst_leaves_nothing_behind,
        a_daemon_lets_go_of_its_starter_and_is_stopped_by_its_pid_file,
        a_short_size_does_not_free_the_parser_twice,
        a_connection_that_nobody_joined_ends_without_a_crash,
        who_joins_within_an_instruction_receives_none_of_it,
        users_who_come_and_go_disturb_nobody,
        a_user_without_types_of_images_ends_nobodys_session,
        nothing_that_follows_select_is_lost,
        others_can_join,
        a_user_who_keeps_sending_is_told_the_reason,
        without_descriptors_users_are_told_and_then_served,
        without_threads_users_are_told_and_then_served,
        without_processes_users_are_told_and_then_served,
        without_its_fork_server_users_are_told;
}

/// How long it may take until something happens that has to.
const SOON: Duration = Duration::from_secs(5);

fn a_connection_is_tried_at_every_address_and_with_any_descriptor() -> Result<()> {
    let told = run_c("connect", "patched")?;
    ensure!(
        told == "listening: connected\nrefusing: failed\nsecond address: connected\nsilent: failed after 1 s\n\
                 beyond FD_SETSIZE: connected\n",
        "patched: {told}"
    );
    let stock = run_c("connect", "stock").unwrap_or_else(|error| error.to_string());
    ensure!(!stock.contains("refusing: failed"), "stock: {stock}");
    Ok(())
}

fn a_process_has_nothing_of_another_users_connection() -> Result<()> {
    let holders = |variant| -> Result<Vec<usize>> {
        let guacd = Guacd::start(variant)?;
        let users: Vec<User> = (0..6).map(|_| guacd.user("ssh")).collect::<Result<_>>()?;
        let processes = guacd.connections();
        ensure!(processes.len() == users.len(), "{} processes", processes.len());
        if variant == "patched" {
            let counts: BTreeSet<usize> = processes.iter().map(|pid| descriptors(*pid).len()).collect();
            ensure!(counts.len() == 1, "numbers of descriptors: {counts:?}");
        }
        users
            .iter()
            .map(|user| {
                let socket = format!("socket:[{}]", guacd.inode(user)?);
                Ok(processes.iter().filter(|pid| descriptors(**pid).contains(&socket)).count())
            })
            .collect()
    };
    let patched = holders("patched")?;
    ensure!(patched == [1; 6], "numbers of processes that hold each user's connection: {patched:?}");
    // The thread that forked a process was the first to have its user's connection.
    let stock = holders("stock")?;
    ensure!(stock == [6, 5, 4, 3, 2, 1], "stock: {stock:?}");
    Ok(())
}

fn a_killed_process_ends_its_own_connection_and_no_other() -> Result<()> {
    let kill_first = |variant| -> Result<bool> {
        let guacd = Guacd::start(variant)?;
        let mut first = guacd.user("ssh")?;
        let victim = guacd.connections();
        let mut others = [guacd.user("ssh")?, guacd.user("ssh")?];
        for pid in victim {
            kill(pid, Signal::KILL);
        }
        let ended = first.read_to_end(SOON).is_ok();
        for other in &mut others {
            other.finish_handshake()?;
        }
        Ok(ended)
    };
    ensure!(kill_first("patched")?, "its user was not told");
    ensure!(!kill_first("stock")?, "stock's user was told");
    Ok(())
}

fn an_encrypted_connection_ends_with_its_process() -> Result<()> {
    let dir = TempDir::new()?;
    let (key, certificate) = (dir.path().join("key"), dir.path().join("certificate"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=localhost",
            "-keyout",
        ])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let options = ["-K", &key.display().to_string(), "-C", &certificate.display().to_string()].join(" ");
    let guacd = Guacd::start_with("patched", ":", &options)?;

    let mut user = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &format!("127.0.0.1:{}", guacd.port)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let (mut to, mut from) =
        (user.stdin.take().context("no input")?, user.stdout.take().context("no output")?);
    to.write_all(instruction(&["select", "ssh"]).as_bytes())?;
    let mut heard = [0; 7];
    from.read_exact(&mut heard)?;
    ensure!(&heard == b"4.args,", "{}", String::from_utf8_lossy(&heard));
    let mut processes = guacd.connections();
    for pid in &processes {
        kill(*pid, Signal::KILL);
    }
    // It says nothing more, and is told all the same.
    processes.push(user.id() as i32);
    wait_for_the_end_of(&processes, SOON);
    let told = user.try_wait()?.is_some();
    let _ = user.kill();
    let _ = user.wait();
    ensure!(processes.len() == 2 && told, "the user was not told");
    Ok(())
}

fn a_killed_guacd_leaves_nothing_behind() -> Result<()> {
    let mut guacd = Guacd::start("patched")?;
    let _users: Vec<User> = (0..4).map(|_| guacd.user("ssh")).collect::<Result<_>>()?;
    let processes = guacd.processes();
    ensure!(processes.len() == 5, "{} processes of a fork server and four connections", processes.len());
    guacd.child.kill()?;
    guacd.child.wait()?;
    wait_for_the_end_of(&processes, SOON);
    let left: Vec<i32> = processes.into_iter().filter(|pid| is_alive(*pid)).collect();
    for pid in &left {
        kill(*pid, Signal::KILL);
    }
    ensure!(left.is_empty(), "{} processes are left", left.len());
    Ok(())
}

fn a_stopped_guacd_ends_all_connections_together() -> Result<()> {
    let stopped = |variant, hangs: bool| -> Result<(Duration, usize)> {
        let mut guacd = Guacd::start(variant)?;
        let _users: Vec<User> = (0..8).map(|_| guacd.user("ssh")).collect::<Result<_>>()?;
        let processes = guacd.processes();
        if hangs {
            kill(guacd.connections()[3], Signal::STOP);
        }
        let since = Instant::now();
        kill(guacd.pid(), Signal::TERM);
        let _ = guacd.wait(2 * SOON);
        wait_for_the_end_of(&processes, Duration::from_secs(1));
        let left: Vec<i32> = processes.into_iter().filter(|pid| is_alive(*pid)).collect();
        for pid in &left {
            kill(*pid, Signal::KILL);
        }
        Ok((since.elapsed(), left.len()))
    };
    let (took, left) = stopped("patched", false)?;
    ensure!(left == 0 && took < Duration::from_secs(3), "{left} left after {took:?}");
    let (took, left) = stopped("patched", true)?;
    ensure!(left == 0 && took < SOON + Duration::from_secs(1), "one hangs: {left} left after {took:?}");
    let (_, left) = stopped("stock", true)?;
    ensure!(left > 0, "stock waits for one after the other, but none was left");
    Ok(())
}

fn a_guacd_that_is_stopped_in_a_burst_leaves_nothing_behind() -> Result<()> {
    for after in [10, 50, 150] {
        let mut guacd = Guacd::start("patched")?;
        let port = guacd.port;
        let burst = thread::spawn(move || {
            let mut users = Vec::new();
            // Until it no longer listens, or is slower than it has to be.
            let until = Instant::now() + SOON;
            while let (Ok(mut user), true) = (User::connect(port), Instant::now() < until) {
                if user.send(&["select", "ssh"]).is_err() {
                    break;
                }
                users.push(user);
            }
            users
        });
        sleep(Duration::from_millis(after));
        kill(guacd.pid(), Signal::TERM);
        let ended = guacd.wait(SOON);
        let left = left_on(port, SOON);
        let told = guacd.log()?;
        for pid in &left {
            kill(*pid, Signal::KILL);
        }
        ended.with_context(|| format!("stopped after {after} ms"))?;
        let status = guacd.child.wait()?;
        ensure!(
            left.is_empty() && status.code() == Some(0),
            "{left:?} left after {after} ms, {status}: {told}"
        );
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("its port is taken")?;
        let mut users = burst.join().ok().context("the burst failed")?;
        ensure!(!users.is_empty(), "there was no burst");
        for user in &mut users {
            user.read_to_end(SOON)?;
        }
    }
    Ok(())
}

fn a_daemon_lets_go_of_its_starter_and_is_stopped_by_its_pid_file() -> Result<()> {
    let dir = TempDir::new()?;
    let pid_file = dir.path().join("pid");
    let guacd = Daemon { port: free_port()? };
    let prefix = support::built("patched")?;
    let mut starter = Command::new(prefix.join("sbin/guacd"))
        .env("LD_LIBRARY_PATH", prefix.join("lib"))
        .args(["-L", "info", "-b", "127.0.0.1", "-l", &guacd.port.to_string(), "-p"])
        .arg(&pid_file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut said = starter.stdout.take().context("no output")?;
    let mut warned = starter.stderr.take().context("no errors")?;
    let (end, ended) = mpsc::channel();
    thread::spawn(move || {
        let mut text = String::new();
        let read = said.read_to_string(&mut text).and_then(|_| warned.read_to_string(&mut text));
        let _ = end.send(read.map(|_| text));
    });
    let text = ended.recv_timeout(SOON).context("some process keeps its starter's output open")??;
    ensure!(starter.wait()?.success(), "{text}");

    wait_until_it_listens(guacd.port)?;
    let mut user = User::select(guacd.port, "ssh")?;
    user.finish_handshake()?;
    ensure!(processes_on(guacd.port).len() == 3, "{:?}", processes_on(guacd.port));
    let pid: i32 = fs::read_to_string(&pid_file)?.trim().parse()?;
    kill(pid, Signal::TERM);
    let left = left_on(guacd.port, SOON);
    ensure!(left.is_empty(), "{} processes are left", left.len());
    user.read_to_end(SOON)?;
    TcpListener::bind((Ipv4Addr::LOCALHOST, guacd.port)).context("its port is taken")?;
    Ok(())
}

fn a_short_size_does_not_free_the_parser_twice() -> Result<()> {
    let send_short_size = |variant| -> Result<(bool, String)> {
        let guacd = Guacd::start(variant)?;
        let mut user = guacd.user("ssh")?;
        user.send(&["size", "800"])?;
        let closed = user.read_to_end(Duration::from_secs(2)).is_ok();
        Ok((closed, guacd.log()?))
    };
    let (closed, log) = send_short_size("patched")?;
    ensure!(closed && log.contains("lacked required arguments") && !log.contains("double free"), "{log}");
    let (_, log) = send_short_size("stock")?;
    ensure!(log.contains("double free"), "stock: {log}");
    Ok(())
}

fn a_connection_that_nobody_joined_ends_without_a_crash() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    let manifest = support::built("patched")?.join("share/guacd-uncapped/manifest.json");
    let manifest: Value = serde_json::from_str(&fs::read_to_string(manifest)?)?;
    for protocol in manifest["protocols"].as_array().context("no protocols")? {
        let protocol = protocol.as_str().context("not a name")?;
        let user = guacd.user(protocol)?;
        let processes = guacd.connections();
        ensure!(processes.len() == 1, "{protocol}: {processes:?}");
        drop(user);
        wait_for_the_end_of(&processes, SOON);
        ensure!(guacd.connections().is_empty(), "{protocol}: its process is still there");
    }
    ensure!(!guacd.log()?.contains("was ended by signal"), "{}", guacd.log()?);

    // A crash would have been seen.
    let _user = guacd.user("ssh")?;
    let crashing = guacd.connections();
    for pid in &crashing {
        kill(*pid, Signal::SEGV);
    }
    let words = format!("Connection process {} was ended by signal 11", crashing[0]);
    let deadline = Instant::now() + SOON;
    while !guacd.log()?.contains(&words) {
        ensure!(Instant::now() < deadline, "{words:?} is not in {}", guacd.log()?);
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn who_joins_within_an_instruction_receives_none_of_it() -> Result<()> {
    let received = run_c("promotion", "patched")?;
    ensure!(received == "3.nop;\n", "patched: {received}");
    let received = run_c("promotion", "stock")?;
    ensure!(received == "1.5;3.nop;\n", "stock: {received}");
    Ok(())
}

fn users_who_come_and_go_disturb_nobody() -> Result<()> {
    ensure!(
        Whole::default().take(b"4.sync,1.5,1.1;3.nop;").is_ok(),
        "whole instructions are taken for torn ones"
    );
    for torn in [&b"1.5;"[..], b".nop;", b"4.sync,5;", b"4.sync1.5;"] {
        ensure!(Whole::default().take(torn).is_err(), "{} is torn", String::from_utf8_lossy(torn));
    }

    let guacd = Guacd::start("patched")?;
    let target = a_target_that_never_rests()?;
    let mut owner = guacd.user("telnet")?;
    owner.handshake(&["127.0.0.1", &target.to_string()])?;
    let id = owner.expect_id()?;
    let owner = Watcher::start(owner);
    for _ in 0..5 {
        let mut guests = Vec::new();
        for _ in 0..2 {
            let mut guest = guacd.user(&id)?;
            guest.handshake(&[])?;
            guest.expect_id()?;
            guests.push(Watcher::start(guest));
        }
        for guest in &guests {
            guest.sees(5).context("a guest who has come")?;
        }
        guests.remove(0).leave().context("the guest who goes")?;
        guests[0].sees(5).context("the guest who stays")?;
        owner.sees(5).context("the owner")?;
        guests.remove(0).leave().context("the guest who stayed")?;
    }
    owner.leave().context("the owner")
}

fn a_user_without_types_of_images_ends_nobodys_session() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    let target = a_target_that_never_rests()?;
    let mut owner = guacd.user("telnet")?;
    owner.handshake(&["127.0.0.1", &target.to_string()])?;
    let id = owner.expect_id()?;
    let owner = Watcher::start(owner);
    let mut guest = guacd.user(&id)?;
    let mut connect = vec!["connect", "VERSION_1_5_0"];
    connect.resize(guest.arguments + 1, "");
    guest.send(&["size", "800", "600", "96"])?;
    guest.send(&connect)?;
    guest.expect_id()?;
    let guest = Watcher::start(guest);
    guest.sees(20).context("the guest")?;
    owner.sees(20).context("the owner")?;
    guest.leave()?;
    owner.leave()
}

/// A telnet server that fills the screen of all who connect, over and over. Returns its port.
fn a_target_that_never_rests() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        for number in 0_u64.. {
            // Each line in another colour, so that no two frames are alike.
            write!(stream, "\x1b[3{}m{number} {}\r\n", number % 8, "guacd ".repeat(10))?;
            sleep(Duration::from_micros(500));
        }
        std::io::Result::Ok(())
    });
    Ok(port)
}

/// Reads what a user receives, all the time, and answers each frame.
struct Watcher {
    frames: Arc<AtomicUsize>,
    leave: Arc<AtomicBool>,
    reading: JoinHandle<Result<()>>,
}

impl Watcher {
    fn start(mut user: User) -> Watcher {
        let (frames, leave) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (seen, left) = (Arc::clone(&frames), Arc::clone(&leave));
        let reading = thread::spawn(move || {
            let mut whole = Whole::default();
            while !left.load(Ordering::Relaxed) {
                for instruction in whole.take(std::mem::take(&mut user.heard).as_bytes())? {
                    if instruction[0] == "sync" {
                        user.send(&["sync", &instruction[1]])?;
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                    ensure!(instruction[0] != "error", "{instruction:?}");
                }
                ensure!(user.hear()?, "the connection ended");
            }
            Ok(())
        });
        Watcher { frames, leave, reading }
    }

    /// Waits until so many more frames have come.
    fn sees(&self, more: usize) -> Result<()> {
        let enough = self.frames.load(Ordering::Relaxed) + more;
        let deadline = Instant::now() + SOON;
        while self.frames.load(Ordering::Relaxed) < enough {
            ensure!(!self.reading.is_finished(), "received something else");
            ensure!(Instant::now() < deadline, "receives no frames");
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Hangs up, in the middle of whatever is being sent.
    fn leave(self) -> Result<()> {
        self.leave.store(true, Ordering::Relaxed);
        self.reading.join().ok().context("panicked")?
    }
}

/// Takes a stream apart into instructions, and finds those that are torn.
#[derive(Default)]
struct Whole(Vec<u8>);

impl Whole {
    fn take(&mut self, bytes: &[u8]) -> Result<Vec<Vec<String>>> {
        self.0.extend_from_slice(bytes);
        let mut instructions = Vec::new();
        let (mut parts, mut at, mut done) = (Vec::new(), 0, 0);
        while let Some(dot) = self.0[at..].iter().position(|byte| !byte.is_ascii_digit()) {
            let torn = || format!("torn: {}", String::from_utf8_lossy(&self.0[done..]));
            ensure!(self.0[at + dot] == b'.', torn());
            let length: usize = std::str::from_utf8(&self.0[at..at + dot])?.parse().with_context(torn)?;
            let (start, end) = (at + dot + 1, at + dot + 1 + length);
            let Some(last) = self.0.get(end) else { break };
            parts.push(String::from_utf8(self.0[start..end].to_vec())?);
            ensure!(matches!(last, b',' | b';'), torn());
            ensure!(parts[0].bytes().all(|byte| byte.is_ascii_lowercase()), torn());
            at = end + 1;
            if *last == b';' {
                instructions.push(std::mem::take(&mut parts));
                done = at;
            }
        }
        self.0.drain(..done);
        Ok(instructions)
    }
}

fn nothing_that_follows_select_is_lost() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    let arguments = guacd.user("ssh")?.arguments;
    let mut connect = vec!["connect", "VERSION_1_5_0"];
    connect.resize(arguments + 1, "");
    let handshake: String =
        [&["select", "ssh"][..], &["size", "800", "600", "96"], &["name", "a;b 12.;"], &connect]
            .iter()
            .map(|parts| instruction(parts))
            .collect();
    for chunk in [handshake.len(), 1, 7, 14] {
        let mut user = User::connect(guacd.port)?;
        for bytes in handshake.as_bytes().chunks(chunk) {
            user.stream.write_all(bytes)?;
            if chunk < 10 {
                sleep(Duration::from_millis(1));
            }
        }
        user.expect("5.ready,").with_context(|| format!("in pieces of {chunk}"))?;
    }
    Ok(())
}

fn others_can_join() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    let mut owner = guacd.user("ssh")?;
    let id = owner.finish_handshake()?;
    let mut guest = guacd.user(&id)?;
    ensure!(guest.finish_handshake()? == id, "the guest is elsewhere");
    let mut stranger = User::connect(guacd.port)?;
    stranger.send(&["select", "$00000000-0000-0000-0000-000000000000"])?;
    stranger.expect("3.516;")?;
    Ok(())
}

fn a_user_who_keeps_sending_is_told_the_reason() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    // Bound, but not listening: a connection is refused.
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port().to_string();
    for _ in 0..5 {
        let mut user = guacd.user("ssh")?;
        user.connect_ssh("127.0.0.1", &closed)?;
        let mut stream = user.stream.try_clone()?;
        let sending = thread::spawn(move || {
            let nops = "3.nop;".repeat(1000);
            while stream.write_all(nops.as_bytes()).is_ok() {
                sleep(Duration::from_millis(1));
            }
        });
        user.expect("5.error,")?;
        user.stream.shutdown(std::net::Shutdown::Both)?;
        let _ = sending.join();
    }
    Ok(())
}

fn without_descriptors_users_are_told_and_then_served() -> Result<()> {
    let guacd = Guacd::start_with("patched", "ulimit -n 24", "")?;
    let mut served = Vec::new();
    let mut told = 0;
    for _ in 0..30 {
        let mut user = User::connect(guacd.port)?;
        user.send(&["select", "ssh"])?;
        match user.expect_one_of(&["4.args,", "3.512;"])? {
            0 => served.push(user),
            _ => told += 1,
        }
        if told == 3 {
            break;
        }
    }
    ensure!(served.len() >= 10 && told == 3, "{} served, {told} told", served.len());

    let before = cpu_time(guacd.pid())?;
    sleep(Duration::from_secs(1));
    let used = cpu_time(guacd.pid())? - before;
    ensure!(used < Duration::from_millis(300), "it spins: {used:?} in a second");

    served.truncate(served.len() - 4);
    sleep(Duration::from_secs(2));
    guacd.user("ssh")?;
    Ok(())
}

/// Users who cannot be served hear of it, and have their connection closed.
fn users_are_told(guacd: &Guacd) -> Result<()> {
    for _ in 0..3 {
        let mut user = User::connect(guacd.port)?;
        user.send(&["select", "ssh"])?;
        user.expect("3.512;")?;
        user.read_to_end(SOON)?;
    }
    Ok(())
}

fn without_threads_users_are_told_and_then_served() -> Result<()> {
    let shortage = Shortage::new()?;
    let guacd = shortage.start("patched")?;
    let fork_server = *children(guacd.pid()).first().context("no fork server")?;
    let mut before = guacd.user("ssh")?;
    for short in [format!("threads-{}", guacd.pid()), format!("threads-below-{fork_server}")] {
        let file = shortage.dir.path().join(&short);
        fs::write(&file, "")?;
        users_are_told(&guacd).context(short.clone())?;
        fs::remove_file(file)?;
        guacd.user("ssh")?.finish_handshake().context(short)?;
    }
    before.finish_handshake()?;

    let guacd = shortage.start("stock")?;
    fs::write(shortage.dir.path().join(format!("threads-{}", guacd.pid())), "")?;
    let mut user = User::connect(guacd.port)?;
    user.send(&["select", "ssh"])?;
    // It takes the thread for started, and goes on to what the thread's ID would be.
    let _ = user.read_to_end(Duration::from_secs(2));
    ensure!(user.heard.is_empty(), "stock: {}", user.heard);
    Ok(())
}

fn without_processes_users_are_told_and_then_served() -> Result<()> {
    let shortage = Shortage::new()?;
    let guacd = shortage.start("patched")?;
    let fork_server = *children(guacd.pid()).first().context("no fork server")?;
    let mut before = guacd.user("ssh")?;
    let file = shortage.dir.path().join(format!("forks-{fork_server}"));
    fs::write(&file, "")?;
    users_are_told(&guacd)?;
    ensure!(guacd.log()?.contains("Cannot fork child process"), "{}", guacd.log()?);
    fs::remove_file(file)?;
    guacd.user("ssh")?.finish_handshake()?;
    before.finish_handshake()?;
    Ok(())
}

fn without_its_fork_server_users_are_told() -> Result<()> {
    let mut guacd = Guacd::start("patched")?;
    let mut before = guacd.user("ssh")?;
    for pid in children(guacd.pid()) {
        kill(pid, Signal::KILL);
    }
    for _ in 0..2 {
        let mut user = User::connect(guacd.port)?;
        user.send(&["select", "ssh"])?;
        user.expect("3.512;")?;
        user.read_to_end(SOON)?;
    }
    ensure!(guacd.log()?.contains("Restart guacd"), "{}", guacd.log()?);
    // Who was there before is served, and stopped with guacd.
    let id = before.finish_handshake()?;
    guacd.user(&id)?.finish_handshake()?;
    kill(guacd.pid(), Signal::TERM);
    guacd.wait(SOON)?;
    let left = left_on(guacd.port, SOON);
    for pid in &left {
        kill(*pid, Signal::KILL);
    }
    ensure!(left.is_empty(), "{} processes are left", left.len());
    Ok(())
}

/// What makes threads and processes scarce for a guacd: files in its directory.
struct Shortage {
    dir: TempDir,
}

impl Shortage {
    fn new() -> Result<Shortage> {
        let dir = TempDir::new()?;
        let mut cc = Command::new("cc");
        cc.args(["-Wall", "-Werror", "-shared", "-fPIC", "-o"]).arg(dir.path().join("shortage.so"));
        let compiled = cc.arg(support::root().join("tests/it/c/shortage.c")).output()?;
        ensure!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        Ok(Shortage { dir })
    }

    fn start(&self, variant: &str) -> Result<Guacd> {
        let dir = self.dir.path().display();
        Guacd::start_with(variant, &format!("export SHORTAGE={dir} LD_PRELOAD={dir}/shortage.so"), "")
    }
}

/// A guacd that runs, and ends with this.
struct Guacd {
    child: Child,
    port: u16,
    dir: TempDir,
}

impl Guacd {
    fn start(variant: &str) -> Result<Guacd> {
        Guacd::start_with(variant, ":", "")
    }

    /// Starts it after a shell command, such as one that sets limits, and with more options.
    fn start_with(variant: &str, shell: &str, options: &str) -> Result<Guacd> {
        let prefix = support::built(variant)?;
        let dir = TempDir::new()?;
        let port = free_port()?;
        let log = File::create(dir.path().join("log"))?;
        let child = Command::new("sh")
            .args(["-c", &format!("{shell} && exec \"$0\" -f -L info -b 127.0.0.1 -l {port} {options}")])
            .arg(prefix.join("sbin/guacd"))
            .env("LD_LIBRARY_PATH", prefix.join("lib"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let guacd = Guacd { child, port, dir };
        wait_until_it_listens(port).with_context(|| guacd.log().unwrap_or_default())?;
        Ok(guacd)
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.path().join("log"))?)
    }

    /// A user who has selected a protocol or a connection, and got its arguments.
    fn user(&self, selected: &str) -> Result<User> {
        User::select(self.port, selected)
    }

    /// All processes that it started, and those that they started.
    fn processes(&self) -> Vec<i32> {
        let mut all = children(self.pid());
        for i in 0.. {
            let Some(&pid) = all.get(i) else { break };
            all.extend(children(pid));
        }
        all
    }

    /// The processes of connections.
    fn connections(&self) -> Vec<i32> {
        let has_plugin = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.contains("libguac-client-"))
        };
        self.processes().into_iter().filter(has_plugin).collect()
    }

    /// The number of the socket at guacd's end of a user's connection.
    fn inode(&self, user: &User) -> Result<String> {
        let (ours, theirs) =
            (format!(":{:04X}", self.port), format!(":{:04X}", user.stream.local_addr()?.port()));
        for line in fs::read_to_string("/proc/net/tcp")?.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.len() > 9 && fields[1].ends_with(&ours) && fields[2].ends_with(&theirs) {
                return Ok(fields[9].to_owned());
            }
        }
        bail!("no such connection")
    }

    fn wait(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "guacd does not end");
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Guacd {
    fn drop(&mut self) {
        let processes = self.processes();
        kill(self.pid(), Signal::TERM);
        if self.wait(SOON).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        for pid in processes {
            kill(pid, Signal::KILL);
        }
    }
}

/// A guacd that went to the background. What is left of it ends with this.
struct Daemon {
    port: u16,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for pid in processes_on(self.port) {
            kill(pid, Signal::KILL);
        }
    }
}

/// A user's end of a connection to guacd.
struct User {
    stream: TcpStream,
    heard: String,
    /// How many arguments the protocol has, its version included.
    arguments: usize,
}

impl User {
    fn connect(port: u16) -> Result<User> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(User { stream, heard: String::new(), arguments: 0 })
    }

    /// A user who has selected a protocol or a connection, and got its arguments.
    fn select(port: u16, selected: &str) -> Result<User> {
        let mut user = User::connect(port)?;
        user.send(&["select", selected])?;
        user.arguments = user.expect("4.args,")?.split(',').count() - 1;
        Ok(user)
    }

    fn send(&mut self, parts: &[&str]) -> Result<()> {
        Ok(self.stream.write_all(instruction(parts).as_bytes())?)
    }

    /// Sends the rest of the handshake, and returns the ID of the connection.
    fn finish_handshake(&mut self) -> Result<String> {
        self.connect_ssh("127.0.0.1", "1")?;
        self.expect_id()
    }

    /// The ID of the connection, once guacd tells it.
    fn expect_id(&mut self) -> Result<String> {
        let ready = self.expect("5.ready,")?;
        let id = ready.split_once('$').and_then(|(_, id)| id.split_once(';')).context("no ID")?.0;
        Ok(format!("${id}"))
    }

    /// Sends the rest of the handshake of a connection with SSH, whose first arguments are a host and a port.
    fn connect_ssh(&mut self, host: &str, port: &str) -> Result<()> {
        self.handshake(&[host, "", port, "user", "password"])
    }

    /// Sends the rest of the handshake, with the first of the arguments.
    fn handshake(&mut self, arguments: &[&str]) -> Result<()> {
        let mut connect = [&["connect", "VERSION_1_5_0"], arguments].concat();
        connect.resize(self.arguments + 1, "");
        self.send(&["size", "800", "600", "96"])?;
        self.send(&["audio"])?;
        self.send(&["video"])?;
        self.send(&["image", "image/png"])?;
        self.send(&connect)
    }

    /// Waits for an instruction with these words, and returns all that was heard since the last one.
    fn expect(&mut self, words: &str) -> Result<String> {
        self.expect_one_of(&[words])?;
        Ok(std::mem::take(&mut self.heard))
    }

    /// Waits for an instruction with any of these words, and returns which it was.
    fn expect_one_of(&mut self, words: &[&str]) -> Result<usize> {
        let deadline = Instant::now() + SOON;
        loop {
            let is_whole = self.heard.ends_with(';');
            if let Some(found) = words.iter().position(|words| is_whole && self.heard.contains(words)) {
                return Ok(found);
            }
            ensure!(Instant::now() < deadline, "{words:?} was not heard, but {:?}", self.heard);
            ensure!(self.hear()?, "the connection ended before {words:?}, after {:?}", self.heard);
        }
    }

    /// Reads until the end of the connection.
    fn read_to_end(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while self.hear().unwrap_or_default() {
            ensure!(Instant::now() < deadline, "the connection is still open");
        }
        Ok(())
    }

    /// Reads what is there, and returns whether there can be more.
    fn hear(&mut self) -> Result<bool> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(length) => {
                self.heard.push_str(&String::from_utf8_lossy(&buffer[..length]));
                Ok(true)
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

fn instruction(parts: &[&str]) -> String {
    let parts: Vec<String> = parts.iter().map(|part| format!("{}.{part}", part.chars().count())).collect();
    format!("{};", parts.join(","))
}

fn wait_until_it_listens(port: u16) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        ensure!(Instant::now() < deadline, "guacd does not listen");
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The living processes of the guacd that was told to listen on a port: all of them have its command line.
fn processes_on(port: u16) -> Vec<i32> {
    let words = format!("\0-l\0{port}\0");
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            fs::read_to_string(entry.path().join("cmdline")).is_ok_and(|line| line.contains(&words))
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Those of them that do not end in time, with those that are only forked meanwhile.
fn left_on(port: u16, timeout: Duration) -> Vec<i32> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = processes_on(port);
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        sleep(Duration::from_millis(20));
    }
}

fn children(pid: i32) -> Vec<i32> {
    // Of every thread, as each may fork.
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .flat_map(|task| {
            let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
        })
        .collect()
}

/// What a process has open: `socket:[123]`, or a path.
fn descriptors(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let target = |path: PathBuf| Some(fs::read_link(path).ok()?.to_string_lossy().into_owned());
    entries.filter_map(|entry| target(entry.path())).collect()
}

fn cpu_time(pid: i32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

fn wait_for_the_end_of(processes: &[i32], timeout: Duration) {
    let deadline = Instant::now() + timeout;
    while Instant::now() < deadline && processes.iter().any(|pid| is_alive(*pid)) {
        sleep(Duration::from_millis(20));
    }
}

fn kill(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

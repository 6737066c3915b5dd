//! Does a patched guacd do what its patches are for? Most tests also show that stock does not.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::c::{Preloaded, run_c};
use crate::support::differences::stock_lacks;
use crate::support::guacd::{Daemon, Guacd, free_port, wait_until_it_listens};
use crate::support::processes::{cpu_time, descendants_of, descriptors, kill, left_of};
use crate::support::target::{a_target_that_never_rests, a_target_that_says_nothing};
use crate::support::tls::{Encrypted, start_encrypted};
use crate::support::user::{Instructions, User, instruction};
use crate::support::{self, SOON, wait_until};

crate::tests! {
    Source:
        a_connection_is_tried_at_every_address_and_with_any_descriptor of "0007",
        a_process_has_nothing_of_another_users_connection,
        a_killed_process_ends_its_own_connection_and_no_other,
        an_encrypted_connection_ends_with_its_process,
        a_killed_guacd_leaves_nothing_behind,
        a_stopped_guacd_ends_all_connections_together,
        terminals_end_at_once_and_a_few_at_a_time,
        a_guacd_that_is_stopped_in_a_burst_leaves_nothing_behind,
        a_daemon_lets_go_of_its_starter_and_is_stopped_by_its_pid_file,
        a_short_size_does_not_free_the_parser_twice,
        a_connection_that_nobody_joined_ends_without_a_crash,
        users_who_join_within_an_instruction_receive_none_of_it,
        users_who_come_and_go_disturb_nobody,
        a_user_without_types_of_images_ends_nobodys_session,
        nothing_that_follows_select_is_lost,
        others_can_join,
        a_user_who_keeps_sending_is_told_the_reason,
        without_descriptors_users_are_told_and_then_served,
        without_threads_users_are_told_and_then_served,
        without_processes_users_are_told_and_then_served,
        sessions_that_the_kernel_does_not_watch_end_as_well;
}

fn a_connection_is_tried_at_every_address_and_with_any_descriptor() -> Result<()> {
    let patched = run_c("connect", "patched")?;
    ensure!(
        patched
            == "listening: connected\nrefusing: failed\nsecond address: connected\nsilent: failed after 1 s\n\
                beyond FD_SETSIZE: connected\n",
        "patched: {patched}"
    );
    // Stock may abort at the last of these. The error has what was printed before.
    let stock = run_c("connect", "stock").unwrap_or_else(|error| error.to_string());
    let fault = match stock_lacks("0007")? {
        true => "refusing: not connected",
        false => {
            "refusing: failed\nsecond address: connected\nsilent: failed after 1 s\nbeyond FD_SETSIZE: failed"
        }
    };
    ensure!(stock.contains(fault), "stock: {stock}");
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
        let has_ended = first.read_to_end(SOON).is_ok();
        for other in &mut others {
            other.finish_handshake()?;
        }
        Ok(has_ended)
    };
    ensure!(kill_first("patched")?, "the connection of its user is still open");
    ensure!(!kill_first("stock")?, "stock: the connection of its user has ended");
    Ok(())
}

fn an_encrypted_connection_ends_with_its_process() -> Result<()> {
    let (guacd, _certificate) = start_encrypted()?;
    let mut user = Encrypted::connect(&guacd)?;
    user.select("ssh")?;
    let mut processes = guacd.connections();
    ensure!(processes.len() == 1, "{processes:?}");
    for pid in &processes {
        kill(*pid, Signal::KILL);
    }
    // The user sends nothing more, but sees the end of the connection.
    processes.push(user.client.id() as i32);
    ensure!(left_of(&processes, SOON).is_empty(), "the connection of its user is still open");
    Ok(())
}

fn a_killed_guacd_leaves_nothing_behind() -> Result<()> {
    let mut guacd = Guacd::start("patched")?;
    let _users: Vec<User> = (0..4).map(|_| guacd.user("ssh")).collect::<Result<_>>()?;
    let processes = guacd.processes();
    ensure!(processes.len() == 5, "{} processes of a fork server and four connections", processes.len());
    guacd.child.kill()?;
    guacd.child.wait()?;
    let left = left_of(&processes, SOON);
    for pid in &left {
        kill(*pid, Signal::KILL);
    }
    ensure!(left.is_empty(), "{} processes are left", left.len());
    Ok(())
}

fn a_stopped_guacd_ends_all_connections_together() -> Result<()> {
    let stopped = |variant, hangs: bool| -> Result<(Duration, usize, usize)> {
        let mut guacd = Guacd::start(variant)?;
        let _users: Vec<User> = (0..8).map(|_| guacd.user("ssh")).collect::<Result<_>>()?;
        let processes = guacd.processes();
        if hangs {
            kill(guacd.connections()[3], Signal::STOP);
        }
        let since = Instant::now();
        kill(guacd.pid(), Signal::TERM);
        let _ = guacd.wait(2 * SOON);
        let left = left_of(&processes, Duration::from_secs(1));
        for pid in &left {
            kill(*pid, Signal::KILL);
        }
        Ok((since.elapsed(), left.len(), guacd.log()?.matches("removed.").count()))
    };
    let (took, left, removed) = stopped("patched", false)?;
    ensure!(left == 0 && took < Duration::from_secs(3), "{left} left after {took:?}");
    ensure!(removed == 8, "the end of {removed} of 8 is logged");
    let (took, left, _) = stopped("patched", true)?;
    ensure!(left == 0 && took < SOON + Duration::from_secs(1), "one hangs: {left} left after {took:?}");
    let (_, left, _) = stopped("stock", true)?;
    ensure!(left > 0, "stock waits for one after the other, but none was left");
    Ok(())
}

fn terminals_end_at_once_and_a_few_at_a_time() -> Result<()> {
    // Beside other work, each of these may take long. Without the patches for it, both take long each time.
    const ATTEMPTS: usize = 5;
    let mut ends = Vec::new();
    let mut starts = Vec::new();
    for _ in 0..ATTEMPTS {
        let mut guacd = Guacd::start_with("patched", ":", "-L debug")?;
        let target = a_target_that_says_nothing()?;
        // The last of them is told to end when others have ended.
        const COUNT: usize = 80;
        let users: Vec<_> = (0..COUNT).map(|_| guacd.telnet(&target)).collect::<Result<_>>()?;
        let since = Instant::now();
        kill(guacd.pid(), Signal::TERM);
        guacd.wait(2 * SOON)?;
        ends.push(since.elapsed());
        let log = guacd.log()?;
        let told: Vec<_> = log.match_indices("Stopping connection").map(|(at, _)| at).collect();
        ensure!(told.len() == users.len(), "{} of {COUNT} were told to end", told.len());
        starts.push(log[..told[COUNT - 1]].matches("Client terminated successfully").count());
        // Each waits up to a second for output, so of so many some would take most of it.
        if ends.iter().any(|end| *end < Duration::from_millis(500)) && starts.iter().any(|ended| *ended >= 8)
        {
            return Ok(());
        }
    }
    anyhow::bail!("it took {ends:?}, and before the last was told to end, so many had ended: {starts:?}")
}

fn a_guacd_that_is_stopped_in_a_burst_leaves_nothing_behind() -> Result<()> {
    for after in [10, 50, 150] {
        let mut guacd = Guacd::start("patched")?;
        let port = guacd.port;
        let burst = thread::spawn(move || {
            let mut users = Vec::new();
            // Until guacd no longer listens, or takes longer to end than it may.
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
        let left = guacd.left(SOON);
        let log = guacd.log()?;
        for pid in &left {
            kill(*pid, Signal::KILL);
        }
        ended.with_context(|| format!("stopped after {after} ms"))?;
        let status = guacd.child.wait()?;
        ensure!(
            left.is_empty() && status.code() == Some(0),
            "{left:?} left after {after} ms, {status}: {log}"
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
    let mut user = User::select(guacd.port, "telnet")?;
    user.handshake(&["127.0.0.1", &a_target_that_says_nothing()?])?;
    user.expect_id()?;
    let pid: i32 = fs::read_to_string(&pid_file)?.trim().parse()?;
    let processes = [vec![pid], descendants_of(pid)].concat();
    ensure!(processes.len() == 3, "{processes:?}");
    kill(pid, Signal::TERM);
    let left = left_of(&processes, SOON);
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
        ensure!(left_of(&processes, SOON).is_empty(), "{protocol}: its process is still there");
    }
    guacd.wait_until_all_are_reaped()?;
    ensure!(!guacd.log()?.contains("was ended by signal"), "{}", guacd.log()?);

    // A crash would have been logged.
    let _user = guacd.user("ssh")?;
    let crashing = guacd.connections();
    for pid in &crashing {
        kill(*pid, Signal::SEGV);
    }
    guacd.expect_in_log(&format!("Connection process {} was ended by signal 11", crashing[0]))
}

fn users_who_join_within_an_instruction_receive_none_of_it() -> Result<()> {
    let received = run_c("promotion", "patched")?;
    ensure!(received == "3.nop;\n", "patched: {received}");
    let received = run_c("promotion", "stock")?;
    ensure!(received == "1.5;3.nop;\n", "stock: {received}");
    Ok(())
}

fn users_who_come_and_go_disturb_nobody() -> Result<()> {
    ensure!(
        Instructions::default().take(b"4.sync,1.5,1.1;3.nop;").is_ok(),
        "whole instructions are taken for torn ones"
    );
    for torn in [&b"1.5;"[..], b".nop;", b"4.sync,5;", b"4.sync1.5;"] {
        ensure!(Instructions::default().take(torn).is_err(), "{} is torn", String::from_utf8_lossy(torn));
    }

    let guacd = Guacd::start("patched")?;
    let (owner, id) = guacd.telnet(&a_target_that_never_rests()?)?;
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
    let (owner, id) = guacd.telnet(&a_target_that_never_rests()?)?;
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

/// Reads what a user receives, all the time, and answers each frame.
pub struct Watcher {
    frames: Arc<AtomicUsize>,
    leave: Arc<AtomicBool>,
    reading: JoinHandle<Result<()>>,
}

impl Watcher {
    pub fn start(mut user: User) -> Watcher {
        let (frames, leave) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (seen, left) = (Arc::clone(&frames), Arc::clone(&leave));
        let reading = thread::spawn(move || {
            let mut whole = Instructions::default();
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
    pub fn sees(&self, more: usize) -> Result<()> {
        let enough = self.frames.load(Ordering::Relaxed) + more;
        let deadline = Instant::now() + SOON;
        while self.frames.load(Ordering::Relaxed) < enough {
            ensure!(!self.reading.is_finished(), "the user has received something else");
            ensure!(Instant::now() < deadline, "the user receives no frames");
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Hangs up, in the middle of whatever is being sent.
    pub fn leave(self) -> Result<()> {
        self.leave.store(true, Ordering::Relaxed);
        self.reading.join().ok().context("panicked")?
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
    let (_owner, id) = guacd.telnet(&a_target_that_says_nothing()?)?;
    let mut guest = guacd.user(&id)?;
    guest.handshake(&[])?;
    ensure!(guest.expect_id()? == id, "the guest is elsewhere");
    let mut stranger = User::connect(guacd.port)?;
    stranger.send(&["select", "$00000000-0000-0000-0000-000000000000"])?;
    stranger.expect("3.516;")?;
    Ok(())
}

fn a_user_who_keeps_sending_is_told_the_reason() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    // Bound and closed again: a connection is refused.
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
    wait_until("a user is served again", SOON, || guacd.user("ssh").is_ok())
}

/// Checks that users who cannot be served receive an error, and that their connection is closed.
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
    let shortage = Preloaded::compile("shortage")?;
    let guacd = shortage.start("patched")?;
    let fork_server = guacd.fork_server().context("no fork server")?;
    let mut before = guacd.user("ssh")?;
    for short in [format!("threads-{}", guacd.pid()), format!("threads-below-{fork_server}")] {
        let file = shortage.file(&short);
        fs::write(&file, "")?;
        users_are_told(&guacd).context(short.clone())?;
        fs::remove_file(file)?;
        guacd.user("ssh")?.finish_handshake().context(short)?;
    }
    before.finish_handshake()?;

    let guacd = shortage.start("stock")?;
    fs::write(shortage.file(&format!("threads-{}", guacd.pid())), "")?;
    let mut user = User::connect(guacd.port)?;
    user.send(&["select", "ssh"])?;
    // Stock believes that the thread was started, and uses its ID, which was never set.
    let _ = user.read_to_end(Duration::from_secs(2));
    ensure!(user.heard.is_empty(), "stock: {}", user.heard);
    Ok(())
}

fn without_processes_users_are_told_and_then_served() -> Result<()> {
    let shortage = Preloaded::compile("shortage")?;
    let guacd = shortage.start("patched")?;
    let fork_server = guacd.fork_server().context("no fork server")?;
    let mut before = guacd.user("ssh")?;
    let file = shortage.file(&format!("forks-{fork_server}"));
    fs::write(&file, "")?;
    users_are_told(&guacd)?;
    ensure!(guacd.log()?.contains("Cannot fork child process"), "{}", guacd.log()?);
    fs::remove_file(file)?;
    guacd.user("ssh")?.finish_handshake()?;
    before.finish_handshake()?;
    Ok(())
}

fn sessions_that_the_kernel_does_not_watch_end_as_well() -> Result<()> {
    let shortage = Preloaded::compile("shortage")?;
    let mut guacd = shortage.start("patched")?;
    fs::write(shortage.file(&format!("watches-{}", guacd.pid())), "")?;
    let threads = || fs::read_dir(format!("/proc/{}/task", guacd.pid())).into_iter().flatten().count();
    let before = threads();
    let user = guacd.user("ssh")?;
    wait_until("a thread waits for its end", SOON, || threads() == before + 1)?;
    drop(user);
    guacd.expect_in_log("removed.")?;
    wait_until("the thread ends", SOON, || threads() == before)?;
    let _user = guacd.user("ssh")?;
    kill(guacd.pid(), Signal::TERM);
    guacd.wait(SOON)
}

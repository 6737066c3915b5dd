//! Do sessions end as they should? With their last user, without a crash, and with nothing left.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write, copy, sink};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::guacd::Watcher;
use crate::support::c::{Preloaded, compile_plugin, run_c};
use crate::support::guacd::Guacd;
use crate::support::processes::{descriptors, is_alive, kill, left_of};
use crate::support::target::{
    a_target_that_fills_the_screen_every, a_target_that_floods, a_target_that_never_rests,
    a_target_that_says_nothing, target,
};
use crate::support::tls::start_encrypted;
use crate::support::user::{Instructions, User, instruction};
use crate::support::{SOON, wait_until};
use crate::vnc::{PIXEL, greet};

crate::tests! {
    Source:
        a_session_ends_with_its_last_user_though_somebody_is_about_to_join,
        a_session_ends_if_its_owner_cannot_be_added,
        an_owner_who_leaves_at_once_crashes_nothing,
        users_may_outstay_a_session_that_fails,
        joins_that_race_with_the_end_crash_nothing,
        a_stopped_guacd_ends_users_at_every_stage,
        a_hundred_users_who_come_and_go_receive_whole_instructions,
        a_hundred_encrypted_users_who_come_and_go_receive_whole_instructions,
        one_thread_keeps_a_socket_alive_in_time,
        a_guest_who_does_not_read_is_disconnected,
        an_encrypted_guest_who_does_not_read_is_disconnected,
        guests_who_do_not_read_hold_up_nobody,
        a_guest_who_reads_slowly_stays_and_catches_up,
        guests_who_ask_but_do_not_read_have_to_wait,
        a_guest_for_whom_too_much_is_queued_is_disconnected_and_the_log_says_why,
        a_guest_who_does_not_read_is_not_sent_every_clipboard,
        a_guest_takes_up_two_descriptors,
        a_guest_who_answers_late_slows_down_nobody,
        a_guest_who_has_not_read_everything_is_told_why_the_session_ends,
        an_owner_who_reads_slowly_stays,
        a_session_whose_owner_does_not_read_ends,
        a_session_ends_even_if_the_threads_of_its_users_do_not;
}

/// Makes glibc overwrite memory that is freed, so that a process that still uses it crashes.
const SPOIL: &str = "export MALLOC_PERTURB_=165";

fn a_session_ends_with_its_last_user_though_somebody_is_about_to_join() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    let (owner, id) = guacd.telnet(&a_target_that_says_nothing()?)?;
    let processes = guacd.connections();
    ensure!(processes.len() == 1, "{processes:?}");

    // A guest whose handshake fails does not end the session.
    let mut failing = guacd.user(&id)?;
    failing.send(&["size", "800"])?;
    failing.read_to_end(SOON)?;

    let mut guest = guacd.user(&id)?;
    let mut stream = guest.stream.try_clone()?;
    let sending = thread::spawn(move || {
        while stream.write_all(b"3.nop;").is_ok() {
            sleep(Duration::from_millis(50));
        }
    });
    sleep(Duration::from_millis(200));
    ensure!(processes.iter().all(|pid| is_alive(*pid)), "a guest has ended the session");
    drop(owner);
    ensure!(left_of(&processes, SOON).is_empty(), "a guest who sends `nop` keeps the session alive");
    guest.expect("3.516;").context("the guest")?;
    let _ = guest.stream.shutdown(Shutdown::Both);
    let _ = sending.join();
    Ok(())
}

fn a_session_ends_if_its_owner_cannot_be_added() -> Result<()> {
    let shortage = Preloaded::compile("shortage")?;
    let guacd = shortage.start("patched")?;
    let fork_server = guacd.fork_server().context("no fork server")?;
    fs::write(shortage.file(&format!("sockets-below-{fork_server}")), "")?;
    let mut user = User::connect(guacd.port)?;
    user.send(&["select", "ssh"])?;
    user.read_to_end(SOON)?;
    ensure!(user.heard.is_empty(), "{}", user.heard);
    has_nothing_left(&guacd)
}

fn an_owner_who_leaves_at_once_crashes_nothing() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    leave_at_once(&guacd, "ssh", &[("hostname", "127.0.0.1"), ("port", "1")])?;
    leave_at_once(&guacd, "telnet", &[("hostname", "127.0.0.1"), ("port", "1")])?;
    leave_at_once(&guacd, "vnc", &[("hostname", "127.0.0.1"), ("port", "1")])?;
    leave_at_once(&guacd, "rdp", &[("hostname", "127.0.0.1"), ("port", "1")])?;
    leave_at_once(&guacd, "kubernetes", &[("hostname", "127.0.0.1"), ("port", "1"), ("pod", "none")])?;
    crashed_nothing(&guacd)?;

    let stock = Guacd::start_with("stock", ":", "-L debug")?;
    leave_at_once(&stock, "ssh", &[("hostname", "127.0.0.1"), ("port", "1")])?;
    let log = stock.log()?;
    let (started, ended) =
        (log.matches("Creating new client").count(), log.matches("Client terminated successfully").count());
    ensure!(started == 20 && ended < started, "stock: {ended} of {started} processes ended by themselves");
    Ok(())
}

/// Twenty owners connect, and leave before the session can have begun.
fn leave_at_once(guacd: &Guacd, protocol: &str, arguments: &[(&str, &str)]) -> Result<()> {
    for number in 0..20 {
        let mut owner = guacd.user(protocol)?;
        owner.handshake_with(arguments)?;
        if number % 2 == 1 {
            owner.expect_id()?;
        }
        sleep(Duration::from_millis(number % 3));
        owner.send(&["disconnect"])?;
    }
    has_nothing_left(guacd).with_context(|| protocol.to_owned())
}

fn users_may_outstay_a_session_that_fails() -> Result<()> {
    let guacd = Guacd::start_with("patched", SPOIL, "")?;
    for (protocol, more) in [
        ("ssh", Some(("username", "nobody"))),
        ("telnet", None),
        ("kubernetes", Some(("pod", "none"))),
        ("vnc", None),
    ] {
        let mut user = guacd.user(protocol)?;
        let arguments: Vec<_> = [("hostname", "127.0.0.1"), ("port", "1")].into_iter().chain(more).collect();
        user.handshake_with(&arguments)?;
        user.expect("5.error,")?;
        // The session's own threads end now, and free what they used. Only the user is left.
        match protocol {
            "kubernetes" => guacd.expect_in_log("Kubernetes connection ended.")?,
            _ => sleep(Duration::from_millis(200)),
        }
        user.send(&["size", "900", "700"])?;
        user.send(&["key", "97", "1"])?;
        drop(user);
        has_nothing_left(&guacd).with_context(|| protocol.to_owned())?;
        crashed_nothing(&guacd).with_context(|| protocol.to_owned())?;
    }
    Ok(())
}

fn joins_that_race_with_the_end_crash_nothing() -> Result<()> {
    const ROUNDS: usize = 50;
    const GUESTS: usize = 10;
    let guacd = Guacd::start("patched")?;
    let target = a_target_that_says_nothing()?;
    let (mut joined, mut late) = (0, 0);
    for round in 0..ROUNDS {
        let (owner, id) = guacd.telnet(&target)?;
        let start = Arc::new(Barrier::new(GUESTS + 1));
        let guests: Vec<_> = (0..GUESTS)
            .map(|number| {
                let (id, port, start) = (id.clone(), guacd.port, Arc::clone(&start));
                thread::spawn(move || {
                    start.wait();
                    sleep(Duration::from_micros(500 * number as u64));
                    join_and_leave(port, &id)
                })
            })
            .collect();
        start.wait();
        sleep(Duration::from_millis(round as u64 % 10));
        drop(owner);
        for guest in guests {
            match guest.join().ok().context("a guest panicked")?? {
                true => joined += 1,
                false => late += 1,
            }
        }
    }
    ensure!(joined > 0 && late > 0, "there was no race: {joined} joined, {late} came too late");
    has_nothing_left(&guacd)?;
    crashed_nothing(&guacd)
}

/// Joins a connection, and leaves it at once. Returns whether it could be joined. Otherwise, the user receives the error that it
/// does not exist.
fn join_and_leave(port: u16, id: &str) -> Result<bool> {
    let mut user = User::connect(port)?;
    user.send(&["select", id])?;
    if user.expect_one_of(&["4.args,", "3.516;"])? == 1 {
        return Ok(false);
    }
    user.arguments = user.heard.split(',').count() - 1;
    // It may end before all of this is sent. What it says counts.
    let _ = user.handshake(&[]);
    Ok(user.expect_one_of(&["5.ready,", "3.516;"])? == 0)
}

fn a_stopped_guacd_ends_users_at_every_stage() -> Result<()> {
    let mut guacd = Guacd::start_with("patched", SPOIL, "")?;
    let (_owner, id) = guacd.telnet(&a_target_that_never_rests()?)?;
    let _connecting = User::connect(guacd.port)?;
    let _selecting = guacd.user("ssh")?;
    let _joining = guacd.user(&id)?;
    // Reads nothing: the session waits for room to write.
    let mut idle = guacd.user(&id)?;
    idle.handshake(&[])?;
    sleep(Duration::from_millis(500));
    let processes = guacd.processes();
    let since = Instant::now();
    kill(guacd.pid(), Signal::TERM);
    guacd.wait(SOON)?;
    let left = left_of(&processes, SOON);
    ensure!(left.is_empty(), "{left:?} are left after {:?}", since.elapsed());
    crashed_nothing(&guacd)
}

fn a_hundred_users_who_come_and_go_receive_whole_instructions() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    come_and_go(&guacd, guacd.port)
}

fn a_hundred_encrypted_users_who_come_and_go_receive_whole_instructions() -> Result<()> {
    let (guacd, _certificate) = start_encrypted()?;
    let port = tls_tunnel_to(guacd.port)?;
    come_and_go(&guacd, port)
}

/// A hundred guests join a session whose screen changes all the time, ten at a time, and leave at any moment. Each checks
/// every instruction that it receives.
fn come_and_go(guacd: &Guacd, port: u16) -> Result<()> {
    let idle = open_sockets(guacd);
    let target = a_target_that_never_rests()?;
    let mut owner = User::select(port, "telnet")?;
    owner.handshake(&["127.0.0.1", &target])?;
    let id = owner.expect_id()?;
    let owner = Watcher::start(owner);
    for _ in 0..10 {
        let mut guests = Vec::new();
        for _ in 0..10 {
            let mut guest = User::select(port, &id)?;
            guest.handshake(&[])?;
            guest.expect_id()?;
            guests.push(Watcher::start(guest));
        }
        guests[0].sees(2).context("a guest who has come")?;
        for guest in guests {
            guest.sees(1).context("a guest who stays")?;
            guest.leave().context("a guest who goes")?;
        }
        owner.sees(1).context("the owner")?;
    }
    owner.leave().context("the owner")?;
    has_nothing_left(guacd)?;
    wait_until("guacd has closed the sockets", SOON, || open_sockets(guacd) <= idle)
        .with_context(|| format!("{} sockets, {idle} before", open_sockets(guacd)))?;
    crashed_nothing(guacd)
}

/// How many sockets guacd itself has open.
fn open_sockets(guacd: &Guacd) -> usize {
    descriptors(guacd.pid()).iter().filter(|target| target.starts_with("socket:")).count()
}

/// Listens on a port, and connects each client to guacd over TLS. Returns the port.
fn tls_tunnel_to(guacd: u16) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || -> Result<()> {
        for stream in listener.incoming() {
            let stream = stream?;
            let mut client = Command::new("openssl")
                .args(["s_client", "-quiet", "-no_ign_eof", "-connect", &format!("127.0.0.1:{guacd}")])
                .stdin(Stdio::from(std::os::fd::OwnedFd::from(stream.try_clone()?)))
                .stdout(Stdio::from(std::os::fd::OwnedFd::from(stream)))
                .stderr(Stdio::null())
                .spawn()?;
            thread::spawn(move || client.wait());
        }
        Ok(())
    });
    Ok(port)
}

fn one_thread_keeps_a_socket_alive_in_time() -> Result<()> {
    let stock = thread::spawn(|| run_c("keep_alive", "stock"));
    let patched = run_c("keep_alive", "patched")?;
    let stock = stock.join().ok().context("panicked")??;
    ensure!(patched == "threads: 1\nsilent for 5 s\nthreads left: 0\n", "patched: {patched}");
    ensure!(stock == "threads: 2\nsilent for 10 s\nthreads left: 1\n", "stock: {stock}");
    Ok(())
}

/// Sends `nop` once a second for a user who reads nothing, until that fails.
fn only_send_nop(user: &User) -> Result<()> {
    let mut stream = user.stream.try_clone()?;
    thread::spawn(move || {
        while stream.write_all(b"3.nop;").is_ok() {
            sleep(Duration::from_secs(1));
        }
    });
    Ok(())
}

/// A target that fills the buffers of the kernel within seconds, but leaves the processor to others.
fn a_busy_target() -> Result<String> {
    a_target_that_fills_the_screen_every(Duration::from_millis(50))
}

/// Whether the owner of a session still receives frames in time, although a guest reads nothing.
fn outlives_a_guest_who_does_not_read(guacd: &Guacd, port: u16) -> Result<bool> {
    let mut owner = User::select(port, "telnet")?;
    owner.handshake(&["127.0.0.1", &a_busy_target()?])?;
    let id = owner.expect_id()?;
    let owner = Watcher::start(owner);
    let mut guest = User::select(port, &id)?;
    guest.handshake(&[])?;
    only_send_nop(&guest)?;
    let (mut last, begun) = (Instant::now(), Instant::now());
    // Clients disconnect after 15 s in which they receive nothing.
    while last.elapsed() < Duration::from_secs(15) {
        ensure!(begun.elapsed() < 20 * SOON, "the guest neither freezes the session nor is disconnected");
        if owner.sees(1).is_ok() {
            last = Instant::now();
            if guacd.log()?.contains("disconnected (1 users remain)") {
                // Each wait has its own time, as the frames are large.
                for _ in 0..4 {
                    owner.sees(5).context("the owner, once the guest is disconnected")?;
                }
                guest.read_to_end(2 * SOON).context("the guest")?;
                owner.leave()?;
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn a_guest_who_does_not_read_is_disconnected() -> Result<()> {
    let stock = Guacd::start("stock")?;
    let stock = thread::spawn(move || outlives_a_guest_who_does_not_read(&stock, stock.port));
    let patched = Guacd::start("patched")?;
    ensure!(outlives_a_guest_who_does_not_read(&patched, patched.port)?, "the owner is frozen");
    has_nothing_left(&patched)?;
    let stock = stock.join().ok().context("panicked")??;
    ensure!(!stock, "stock: the owner is served");
    Ok(())
}

fn an_encrypted_guest_who_does_not_read_is_disconnected() -> Result<()> {
    let (guacd, _certificate) = start_encrypted()?;
    let port = tls_tunnel_to(guacd.port)?;
    ensure!(outlives_a_guest_who_does_not_read(&guacd, port)?, "the owner is frozen");
    has_nothing_left(&guacd)
}

/// Starts guacd with a protocol that sends two megabytes a second to all users, and an owner of such a connection.
fn start_busy() -> Result<(Guacd, TempDir, User, String)> {
    let plugin = compile_plugin("busy", "patched")?;
    let path = format!("export LD_LIBRARY_PATH={}:$LD_LIBRARY_PATH", plugin.path().display());
    let guacd = Guacd::start_with("patched", &path, "-L debug")?;
    let mut owner = guacd.user("busy")?;
    owner.handshake(&[])?;
    let id = owner.expect_id()?;
    Ok((guacd, plugin, owner, id))
}

fn guests_who_do_not_read_hold_up_nobody() -> Result<()> {
    let (guacd, _plugin, owner, id) = start_busy()?;
    let owner = Watcher::start(owner);
    let join = || -> Result<User> {
        let mut guest = guacd.user(&id)?;
        guest.handshake(&[])?;
        guest.expect_id()?;
        Ok(guest)
    };
    // Three stop at once, and two read slowly.
    let mut unread = Vec::new();
    for rate in [0, 0, 0, 2_000, 200_000] {
        let mut guest = join()?;
        rustix::net::sockopt::set_socket_recv_buffer_size(&guest.stream, 65_536)?;
        only_send_nop(&guest)?;
        unread.push(guest.stream.try_clone()?);
        if rate > 0 {
            thread::spawn(move || read_slowly(&mut guest, rate, 10 * SOON));
        }
    }
    let guest = Watcher::start(join()?);
    let (begun, mut longest) = (Instant::now(), Duration::ZERO);
    while begun.elapsed() < 4 * SOON {
        let since = Instant::now();
        owner.sees(1).with_context(|| format!("the owner, after {:?}", begun.elapsed()))?;
        guest.sees(1).with_context(|| format!("the guest, after {:?}", begun.elapsed()))?;
        longest = longest.max(since.elapsed());
    }
    ensure!(longest < Duration::from_secs(4), "there was no frame for {longest:?}");
    let behind = guacd.log()?.matches("too slow to receive everything").count();
    ensure!(behind >= 5, "{behind} of 5 guests are known to be slow");
    guest.leave().context("the guest")?;
    owner.leave().context("the owner")?;
    for stream in unread {
        let _ = stream.shutdown(Shutdown::Both);
    }
    has_nothing_left(&guacd)?;
    crashed_nothing(&guacd)
}

/// Reads so many bytes a second for so long, and answers nothing. Returns an error if the connection ends.
fn read_slowly(user: &mut User, rate: usize, time: Duration) -> Result<()> {
    let (begun, before) = (Instant::now(), user.heard.len());
    while begun.elapsed() < time {
        ensure!(user.hear()?, "the connection ended after {:?}", begun.elapsed());
        let due = Duration::from_secs_f64((user.heard.len() - before) as f64 / rate as f64);
        sleep(due.saturating_sub(begun.elapsed()));
    }
    Ok(())
}

/// Reads fast, so that the kernel makes its buffer large, then slowly, then fast again until the frames are those of the
/// present. Checks that all instructions and images are whole, and that no frame is missing unless the user was told of a later
/// one as if they had joined then. Returns how often that was.
fn reads_slowly_and_catches_up(mut user: User, rate: usize, time: Duration) -> Result<usize> {
    only_send_nop(&user)?;
    let begun = Instant::now();
    read_slowly(&mut user, 100_000_000, Duration::from_secs(2))?;
    read_slowly(&mut user, rate, time)?;
    let (mut whole, mut first, mut frame, mut resumed) = (Instructions::default(), None, 0, 0);
    let mut incomplete = BTreeSet::new();
    let deadline = Instant::now() + 6 * SOON;
    loop {
        for instruction in whole.take(std::mem::take(&mut user.heard).as_bytes())? {
            match instruction[0].as_str() {
                "error" => bail!("{instruction:?}"),
                "img" => {
                    let stream = &instruction[1];
                    ensure!(incomplete.insert(stream.clone()), "an image on stream {stream} has no end");
                }
                // The first image may have begun before the user joined.
                "end" => {
                    incomplete.remove(&instruction[1]);
                }
                "name" => {
                    ensure!(incomplete.is_empty(), "the images on streams {incomplete:?} have no end");
                    frame = instruction[1].parse()?;
                    resumed += 1;
                }
                "log" => {
                    let number: usize = instruction[1].split(' ').next().unwrap_or_default().parse()?;
                    // A frame in whose middle the user fell behind is followed by the number of a later one.
                    ensure!(frame == 0 || number <= frame + 1, "frame {number} follows {frame}");
                    frame = number;
                }
                "sync" => {
                    let time = Duration::from_millis(instruction[1].parse()?);
                    let first = *first.get_or_insert(time);
                    ensure!(incomplete.is_empty(), "the images on streams {incomplete:?} have no end");
                    if time.saturating_sub(first) + Duration::from_secs(3) > begun.elapsed() {
                        return Ok(resumed);
                    }
                }
                _ => {}
            }
        }
        ensure!(Instant::now() < deadline, "the user does not catch up");
        ensure!(user.hear()?, "the connection ended");
    }
}

fn a_guest_who_reads_slowly_stays_and_catches_up() -> Result<()> {
    let (guacd, _plugin, owner, id) = start_busy()?;
    let owner = Watcher::start(owner);
    let mut guest = guacd.user(&id)?;
    guest.handshake(&[])?;
    let resumed = reads_slowly_and_catches_up(guest, 50_000, 6 * SOON)?;
    ensure!(resumed >= 2, "the guest has not fallen behind");
    owner.sees(1)?;
    owner.leave()?;
    crashed_nothing(&guacd)
}

/// Sends instructions that guacd answers, and reads nothing, until guacd takes no more of them. Returns how many it was.
fn ask_until_blocked(user: &mut User) -> Result<usize> {
    const MOST: usize = 1_000_000;
    let request = instruction(&["file", "1", "text/plain", "x"]);
    let requests = request.repeat(1000);
    user.stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    let mut sent = 0;
    while sent < MOST * request.len() {
        match user.stream.write(&requests.as_bytes()[sent % requests.len()..]) {
            Ok(length) => sent += length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock) => return Ok(sent / request.len()),
            Err(error) => return Err(error).with_context(|| format!("after {sent} bytes")),
        }
    }
    bail!("guacd takes {MOST} instructions of a user who does not read the answers")
}

fn guests_who_ask_but_do_not_read_have_to_wait() -> Result<()> {
    let (guacd, _plugin, owner, id) = start_busy()?;
    let owner = Watcher::start(owner);
    let join = || -> Result<User> {
        let mut guest = guacd.user(&id)?;
        rustix::net::sockopt::set_socket_recv_buffer_size(&guest.stream, 65_536)?;
        guest.handshake(&[])?;
        guest.expect_id()?;
        Ok(guest)
    };
    let (mut asking, mut other) = ([join()?, join()?, join()?], join()?);
    let other = thread::spawn(move || {
        only_send_nop(&other)?;
        read_slowly(&mut other, 200_000, 6 * SOON)
    });
    let asked = thread::scope(|scope| {
        let asking: Vec<_> = asking.iter_mut().map(|user| scope.spawn(|| ask_until_blocked(user))).collect();
        asking.into_iter().map(|asked| asked.join().ok().context("panicked")?).collect::<Result<Vec<_>>>()
    })?;
    // They have to wait for longer than a user may be silent.
    sleep(4 * SOON);
    owner.sees(1)?;
    for (user, asked) in asking.iter_mut().zip(asked) {
        let (mut whole, mut answered, deadline) = (Instructions::default(), 0, Instant::now() + 4 * SOON);
        while answered < asked {
            ensure!(user.hear()?, "a user who waited is disconnected");
            let instructions = whole.take(std::mem::take(&mut user.heard).as_bytes())?;
            answered += instructions.iter().filter(|instruction| instruction[0] == "ack").count();
            ensure!(Instant::now() < deadline, "{answered} of {asked} instructions are answered");
        }
    }
    other.join().ok().context("panicked")?.context("another guest")?;
    owner.sees(1)?;
    owner.leave()?;
    crashed_nothing(&guacd)
}

fn a_guest_for_whom_too_much_is_queued_is_disconnected_and_the_log_says_why() -> Result<()> {
    let (guacd, _plugin, owner, id) = start_busy()?;
    let owner = Watcher::start(owner);
    let mut guest = guacd.user(&id)?;
    guest.handshake(&[])?;
    guest.expect_id()?;
    guest.send(&["key", "102", "1"])?;
    guacd.expect_in_log("too much is waiting to be read")?;
    guest.read_to_end(2 * SOON).context("the guest")?;
    owner.sees(1)?;
    owner.leave()?;
    crashed_nothing(&guacd)
}

fn a_guest_who_does_not_read_is_not_sent_every_clipboard() -> Result<()> {
    const TEXTS: usize = 500;
    const LENGTH: usize = 200_000;
    let guacd = Guacd::start("patched")?;
    let (signal, signals) = channel();
    let signals = Mutex::new(signals);
    let port = target(move |mut stream| {
        greet(&mut stream, [800, 600])?;
        stream.write_all(&PIXEL)?;
        let mut reading = stream.try_clone()?;
        thread::spawn(move || copy(&mut reading, &mut sink()));
        let signals = signals.lock().map_err(|_| std::io::Error::other("panicked"))?;
        for texts in signals.iter() {
            // ServerCutText.
            let head = [3, 0, 0, 0].into_iter().chain((LENGTH as u32).to_be_bytes());
            let text: Vec<u8> = head.chain([b'x'; LENGTH]).collect();
            (0..texts).try_for_each(|_| stream.write_all(&text))?;
        }
        Ok(())
    })?;
    let mut owner = guacd.user("vnc")?;
    owner.handshake_with(&[("hostname", "127.0.0.1"), ("port", &port)])?;
    let id = owner.expect_id()?;
    owner.expect("4.size,1.0,3.800,3.600;")?;
    only_send_nop(&owner)?;
    let mut guest = guacd.user(&id)?;
    rustix::net::sockopt::set_socket_recv_buffer_size(&guest.stream, 65_536)?;
    guest.handshake_with(&[])?;
    guest.expect("4.size,1.0,3.800,3.600;")?;
    only_send_nop(&guest)?;
    // The next instruction for all users comes only in five seconds.
    owner.heard.clear();
    let deadline = Instant::now() + 4 * SOON;
    while !owner.heard.contains("3.nop;") {
        ensure!(owner.hear()? && Instant::now() < deadline, "the owner receives no nop");
    }
    signal.send(TEXTS)?;
    let received = Arc::new(AtomicUsize::new(0));
    let (count, mut stream) = (Arc::clone(&received), owner.stream.try_clone()?);
    stream.set_read_timeout(None)?;
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            count.fetch_add(length, Ordering::Relaxed);
        }
    });
    let is_all = || received.load(Ordering::Relaxed) > TEXTS * LENGTH / 3 * 4;
    wait_until("the owner receives all texts", 12 * SOON, is_all)?;
    // Once the guest has read what is queued, the next text arrives.
    let (mut whole, mut texts) = (Instructions::default(), 0);
    let mut quiet = Instant::now();
    while quiet.elapsed() < Duration::from_secs(2) {
        ensure!(guest.hear().context("the guest")?, "the guest is disconnected: {}", guacd.log()?);
        for instruction in whole.take(std::mem::take(&mut guest.heard).as_bytes())? {
            if instruction[0] == "clipboard" {
                texts += 1;
                quiet = Instant::now();
            }
        }
    }
    ensure!(texts < TEXTS / 5, "{texts} texts were queued for a guest who did not read");
    signal.send(1)?;
    guest.expect("9.clipboard,")?;
    drop((owner, guest));
    crashed_nothing(&guacd)
}

fn a_guest_takes_up_two_descriptors() -> Result<()> {
    let (guacd, _plugin, owner, id) = start_busy()?;
    let owner = Watcher::start(owner);
    let process = *guacd.connections().first().context("no session")?;
    let join = || -> Result<User> {
        let mut guest = guacd.user(&id)?;
        guest.handshake(&[])?;
        guest.expect("3.log,")?;
        Ok(guest)
    };
    let guests = [join()?, join()?];
    let before = descriptors(process).len();
    let more = [join()?, join()?, join()?];
    let count = descriptors(process).len() - before;
    ensure!(count == 2 * more.len(), "{} guests take up {count} descriptors", more.len());
    drop((guests, more));
    owner.leave()?;
    crashed_nothing(&guacd)
}

fn a_guest_who_answers_late_slows_down_nobody() -> Result<()> {
    let (guacd, _plugin, mut owner, id) = start_busy()?;
    let mut guest = guacd.user(&id)?;
    guest.handshake(&[])?;
    guest.expect_id()?;
    let guest = thread::spawn(move || -> Result<()> {
        let (mut whole, mut answered) = (Instructions::default(), 0);
        let deadline = Instant::now() + 4 * SOON;
        while answered < 2 {
            for instruction in whole.take(std::mem::take(&mut guest.heard).as_bytes())? {
                // The lag is that to the first answer, which must not come at once.
                if instruction[0] == "sync" && answered < 2 {
                    sleep(Duration::from_millis([100, 3000][answered]));
                    guest.send(&["sync", &instruction[1]])?;
                    answered += 1;
                }
            }
            ensure!(guest.hear()?, "the connection ended");
            ensure!(Instant::now() < deadline, "there are no frames");
        }
        guest.listen(SOON)
    });
    let (mut whole, mut longest) = (Instructions::default(), 0);
    while !guest.is_finished() {
        for instruction in whole.take(std::mem::take(&mut owner.heard).as_bytes())? {
            match instruction[0].as_str() {
                "sync" => owner.send(&["sync", &instruction[1]])?,
                "log" => {
                    let lag = instruction[1].split(' ').nth(1).context("no lag")?;
                    longest = longest.max(lag.parse()?);
                }
                _ => {}
            }
        }
        ensure!(owner.hear()?, "the owner's connection ended");
    }
    guest.join().ok().context("panicked")?.context("the guest")?;
    ensure!(longest < 2000, "guacd reckons with a lag of {longest} ms");
    Ok(())
}

fn a_guest_who_has_not_read_everything_is_told_why_the_session_ends() -> Result<()> {
    let (guacd, _plugin, mut owner, id) = start_busy()?;
    let mut keys = owner.stream.try_clone()?;
    // Guests join and keys are handled between two frames, for which the owner has to make room.
    let owner = thread::spawn(move || owner.read_to_end(6 * SOON));
    let mut guest = guacd.user(&id)?;
    guest.handshake(&[])?;
    guest.expect("3.log,").context("the guest")?;
    only_send_nop(&guest)?;
    keys.write_all(instruction(&["key", "97", "1"]).as_bytes())?;
    guacd.expect_in_log("Aborted on request.")?;
    guest.read_to_end(2 * SOON)?;
    let instructions = guest.instructions()?;
    let errors = instructions.iter().filter(|instruction| instruction[0] == "error").count();
    ensure!(errors == 1, "the guest is told {errors} times why the session ends");
    owner.join().ok().context("panicked")??;
    has_nothing_left(&guacd)?;
    crashed_nothing(&guacd)
}

fn an_owner_who_reads_slowly_stays() -> Result<()> {
    let (guacd, _plugin, owner, _) = start_busy()?;
    // The kernel of such a reader makes no room for half a minute.
    reads_slowly_and_catches_up(owner, 10_000, 9 * SOON)?;
    crashed_nothing(&guacd)
}

fn a_session_whose_owner_does_not_read_ends() -> Result<()> {
    let (patched, stock) = (Guacd::start("patched")?, Guacd::start("stock")?);
    let mut owners = Vec::new();
    for guacd in [&stock, &patched] {
        let (owner, _) = guacd.telnet(&a_target_that_floods()?)?;
        only_send_nop(&owner)?;
        owners.push(owner);
    }
    // The kernel gives up whoever reads nothing for a minute.
    patched.wait_for_the_end_of_connections(20 * SOON)?;
    ensure!(!stock.connections().is_empty(), "stock: the session ends");
    // Stock's session does not end either once its owner sends nothing more.
    owners[0].stream.shutdown(Shutdown::Write)?;
    let ends = stock.wait_for_the_end_of_connections(SOON).is_ok();
    ensure!(!ends, "stock: the session ends with its owner");
    Ok(())
}

fn a_session_ends_even_if_the_threads_of_its_users_do_not() -> Result<()> {
    let start = |variant: &str| -> Result<Guacd> {
        let plugin = compile_plugin("stuck", variant)?;
        let path = format!("export LD_LIBRARY_PATH={}:$LD_LIBRARY_PATH", plugin.path().display());
        let guacd = Guacd::start_with(variant, &path, "")?;
        let mut user = guacd.user("stuck")?;
        user.handshake(&[])?;
        user.expect_id()?;
        guacd.expect_in_log("(1 users now present)")?;
        user.send(&["key", "97", "1"])?;
        Ok(guacd)
    };
    let (stock, patched) = (start("stock")?, start("patched")?);
    patched.wait_for_the_end_of_connections(8 * SOON)?;
    ensure!(patched.log()?.contains("but it does not end by itself"), "{}", patched.log()?);
    ensure!(!stock.connections().is_empty(), "stock: the session ends");
    Ok(())
}

/// Waits until all processes of connections have ended.
fn has_nothing_left(guacd: &Guacd) -> Result<()> {
    // The fork server of a patched guacd stays, and reaps the others.
    let has_ended = || guacd.processes().len() <= 1 && guacd.connections().is_empty();
    wait_until("all processes of connections end", 2 * SOON, has_ended)
        .with_context(|| format!("{:?} are left: {}", guacd.processes(), guacd.log().unwrap_or_default()))
}

/// Checks that no process of a connection was ended by a signal.
fn crashed_nothing(guacd: &Guacd) -> Result<()> {
    guacd.wait_until_all_are_reaped()?;
    let log = guacd.log()?;
    let crashes: Vec<&str> = log.lines().filter(|line| line.contains("was ended by signal")).collect();
    ensure!(crashes.is_empty(), "{} crashes: {}", crashes.len(), crashes.join("\n"));
    Ok(())
}

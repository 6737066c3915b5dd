//! Does guacd keep running, and keep its secrets, whatever its processes and clients do?

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal, geteuid, getrlimit, prlimit, setrlimit};

use crate::support::c::Preloaded;
use crate::support::differences::stock_lacks;
use crate::support::guacd::Guacd;
use crate::support::processes::{children, is_alive, kill};
use crate::support::target::{a_target_that_floods, target};
use crate::support::tcp::connections;
use crate::support::tls::{Certificate, Encrypted};
use crate::support::user::User;
use crate::support::{SOON, wait_until};

crate::tests! {
    Source:
        a_killed_fork_server_is_started_again_and_no_session_is_lost,
        a_fork_server_that_hangs_is_killed_and_what_it_was_asked_is_done,
        a_fork_server_that_cannot_be_started_is_started_later,
        only_guacd_itself_has_the_private_key,
        a_process_can_neither_read_nor_signal_another,
        the_kernel_ends_a_session_before_guacd,
        orphans_of_a_session_are_reaped,
        handshakes_that_are_not_completed_delay_nobody_and_end,
        an_encrypted_user_who_does_not_read_keeps_nothing_of_a_killed_process;
}

/// Within this time a user is served, or told why not.
const ANSWER: Duration = Duration::from_secs(2);

/// The time within which the fork server has to answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// The time that guacd gives a client for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// A telnet server that counts what all of its clients type.
fn a_target_that_counts() -> Result<(String, Arc<AtomicUsize>)> {
    let typed = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&typed);
    let port = target(move |mut stream| {
        let mut buffer = [0; 256];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            let letters = buffer[..length].iter().filter(|byte| **byte == b'x').count();
            count.fetch_add(letters, Ordering::Relaxed);
        }
        Ok(())
    })?;
    Ok((port, typed))
}

fn a_killed_fork_server_is_started_again_and_no_session_is_lost() -> Result<()> {
    const SESSIONS: usize = 100;
    const KILLS: usize = 10;
    let mut guacd = Guacd::start("patched")?;
    let (port, typed) = a_target_that_counts()?;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(guacd.telnet(&port)?.0);
    }
    let sessions_before = guacd.connections();
    ensure!(sessions_before.len() == SESSIONS, "{} processes", sessions_before.len());

    let mut served = 0;
    for round in 1..=KILLS {
        let mut victim = None;
        wait_until("a fork server is started again", Duration::from_secs(1), || {
            victim = guacd.fork_server();
            victim.is_some()
        })?;
        kill(victim.context("no fork server")?, Signal::KILL);
        let since = Instant::now();
        let mut user = User::connect(guacd.port)?;
        user.send(&["select", "telnet"])?;
        if user.expect_one_of(&["4.args,", "3.512;"])? == 0 {
            served += 1;
        }
        ensure!(since.elapsed() < ANSWER, "round {round}: answered after {:?}", since.elapsed());
        // The users of the sessions type meanwhile. guacd would also drop them if they sent nothing.
        for user in &mut sessions {
            user.send(&["key", "120", "1"])?;
            user.send(&["key", "120", "0"])?;
        }
    }
    ensure!(served > 0, "nobody was served");
    wait_until("all that was typed arrives", SOON, || typed.load(Ordering::Relaxed) == SESSIONS * KILLS)
        .with_context(|| format!("{} letters", typed.load(Ordering::Relaxed)))?;
    ensure!(sessions_before.iter().all(|pid| is_alive(*pid)), "a session has ended");
    let log = guacd.log()?;
    let killed = log.matches("was ended by signal 9 (Killed). Starting another.").count();
    let started = log.matches("The fork server was started again").count();
    ensure!(killed == KILLS && started >= KILLS - 1, "{killed} killed, {started} started: {log}");

    // guacd has adopted the processes of the sessions, and reaps them.
    drop(sessions);
    wait_until("no process is left but the fork server", 2 * SOON, || guacd.processes().len() == 1)
        .with_context(|| format!("{:?}", guacd.processes()))?;
    guacd.user("ssh")?.finish_handshake()?;
    kill(guacd.pid(), Signal::TERM);
    guacd.wait(SOON)?;
    ensure!(guacd.left(SOON).is_empty(), "processes are left");
    Ok(())
}

fn a_fork_server_that_hangs_is_killed_and_what_it_was_asked_is_done() -> Result<()> {
    // In a session of its own: the kernel continues all stopped processes of a group that becomes orphaned, and sends SIGHUP to
    // the others.
    let guacd = Guacd::start_by("patched", ":", "setsid", "")?;
    let server = guacd.fork_server().context("no fork server")?;
    kill(server, Signal::STOP);
    let mut first = User::connect(guacd.port)?;
    first.send(&["select", "ssh"])?;
    // The second has waited for less time than that after which guacd gives up the fork server.
    sleep(Duration::from_secs(2));
    let mut second = User::connect(guacd.port)?;
    second.send(&["select", "ssh"])?;
    for (user, expected) in [(&mut first, "3.512;"), (&mut second, "4.args,")] {
        wait_until("the user is answered", PATIENCE + SOON, || {
            let _ = user.hear();
            user.heard.contains(expected)
        })
        .with_context(|| {
            format!("{expected} is not in {:?}: {}", user.heard, guacd.log().unwrap_or_default())
        })?;
    }
    ensure!(!is_alive(server), "the fork server goes on");
    guacd.expect_in_log(&format!("The fork server (process {server}) does not answer. Killing it."))?;
    guacd.expect_in_log("was ended by signal 9 (Killed). Starting another.")?;
    second.finish_handshake()?;
    guacd.user("ssh")?.finish_handshake()?;
    Ok(())
}

fn a_fork_server_that_cannot_be_started_is_started_later() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    // Its process becomes a child of guacd, which then has other children than a fork server.
    let _session = guacd.user("ssh")?;
    let pid = Pid::from_raw(guacd.pid());
    let short = Rlimit { current: Some(3), ..getrlimit(Resource::Nofile) };
    let limit = prlimit(pid, Resource::Nofile, short)?;
    kill(guacd.fork_server().context("no fork server")?, Signal::KILL);
    guacd.expect_in_log("Unable to start fork server: Error opening socket pair")?;
    prlimit(pid, Resource::Nofile, limit)?;
    guacd.expect_in_log("The fork server was started again")?;
    guacd.user("ssh")?.finish_handshake()?;
    Ok(())
}

/// Pieces of a key in each form that it can have in memory: the text of its file, the bytes that the text encodes, and the numbers
/// that OpenSSL computes with, which are the same bytes in the processor's order.
fn pieces_of_the_key(certificate: &Certificate) -> Result<Vec<Vec<u8>>> {
    let mut openssl = Command::new("openssl");
    let bytes = openssl.args(["pkey", "-outform", "DER", "-in"]).arg(certificate.key()).output()?.stdout;
    ensure!(bytes.len() > 1000, "{} bytes of a key", bytes.len());
    let text = fs::read_to_string(certificate.key())?;
    let lines = text.lines().filter(|line| line.len() == 64).map(|line| line.as_bytes().to_vec());
    let encoded = bytes.chunks_exact(32).map(<[u8]>::to_vec);
    let reversed = bytes.chunks_exact(32).map(|chunk| chunk.iter().rev().copied().collect());

    // Bytes that are also in the certificate, in either order, and zeros are no secret.
    let mut openssl = Command::new("openssl");
    let mut public =
        openssl.args(["x509", "-outform", "DER", "-in"]).arg(certificate.file()).output()?.stdout;
    public.extend(public.clone().iter().rev());
    public.extend([0; 16]);
    let is_secret =
        |piece: &Vec<u8>| !public.windows(8).any(|part| piece.windows(8).any(|other| other == part));
    Ok(lines.chain(encoded).chain(reversed).filter(is_secret).collect())
}

/// How many of these pieces are in a process's memory.
fn found_in_memory(pid: i32, pieces: &[Vec<u8>]) -> Result<usize> {
    let mut begins = vec![Vec::new(); 1 << 16];
    for (number, piece) in pieces.iter().enumerate() {
        begins[usize::from(piece[0]) << 8 | usize::from(piece[1])].push(number);
    }
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = fs::File::open(format!("/proc/{pid}/mem"))?;
    let mut found = vec![false; pieces.len()];
    for map in maps.lines().filter(|map| map.contains(" rw")) {
        let range = map.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        let (start, end) = range.context("no range")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        let mut bytes = vec![0; usize::try_from(end - start)?];
        // The kernel's own mappings cannot be read.
        if memory.read_exact_at(&mut bytes, start).is_err() {
            continue;
        }
        for at in 1..bytes.len() {
            for &number in &begins[usize::from(bytes[at - 1]) << 8 | usize::from(bytes[at])] {
                found[number] |= bytes[at - 1..].starts_with(&pieces[number]);
            }
        }
    }
    Ok(found.into_iter().filter(|found| *found).count())
}

fn only_guacd_itself_has_the_private_key() -> Result<()> {
    let certificate = Certificate::new()?;
    let pieces = pieces_of_the_key(&certificate)?;
    ensure!(pieces.len() > 50, "{} pieces of a key", pieces.len());
    let found = |variant| -> Result<(usize, Vec<usize>)> {
        let guacd = Guacd::start_with(variant, ":", &certificate.options())?;
        let mut user = Encrypted::connect(&guacd)?;
        user.select("ssh")?;
        let others = guacd.processes();
        let found = others.into_iter().map(|pid| found_in_memory(pid, &pieces)).collect::<Result<_>>()?;
        Ok((found_in_memory(guacd.pid(), &pieces)?, found))
    };
    let (own, others) = found("patched")?;
    ensure!(own > 0, "guacd has no key");
    ensure!(others == [0, 0], "pieces in the memory of the fork server and of a connection: {others:?}");
    // Stock's guacd forks the connection itself, after it has read the key.
    let (_, others) = found("stock")?;
    ensure!(others.len() == 1 && others[0] > 0, "stock: {others:?}");
    Ok(())
}

/// A program that gives up root's privileges, and then executes another program. For other users, none is needed.
fn without_privileges() -> &'static str {
    if geteuid().is_root() { "setpriv --bounding-set=-all --inh-caps=-all" } else { "" }
}

/// Whether a process of the same user can read a process's memory.
fn can_be_read(pid: i32) -> Result<bool> {
    let command = format!("exec {} head -c 1 /proc/{pid}/environ", without_privileges());
    let output = Command::new("sh").args(["-c", &command]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() || said.contains("Permission denied"), "{said}");
    Ok(output.status.success())
}

fn a_process_can_neither_read_nor_signal_another() -> Result<()> {
    // A connection process that was taken over: see `c/session.c`.
    let hostile = Preloaded::compile("session")?;
    let start = |variant, variable: &str| -> Result<(Guacd, User)> {
        let shell = format!("{variable} && {}", hostile.shell());
        let guacd = Guacd::start_by(variant, &shell, without_privileges(), "")?;
        let user = guacd.user("ssh")?;
        Ok((guacd, user))
    };
    let readable = |guacd: &Guacd| -> Result<Vec<bool>> {
        guacd.processes().into_iter().chain([guacd.pid()]).map(can_be_read).collect()
    };

    let (guacd, _user) = start("patched", "unset GUACD_DUMPABLE")?;
    let read = readable(&guacd)?;
    ensure!(read == [false; 3], "the fork server, a connection and guacd can be read: {read:?}");
    let processes = guacd.processes();
    let connection = *processes.last().context("no connection")?;
    let status = fs::read_to_string(format!("/proc/{connection}/status"))?;
    ensure!(status.contains("NoNewPrivs:\t1"), "{status}");
    let signal = fs::read_to_string(hostile.file(&format!("signal-{connection}")))?;
    // Landlock has scopes as of the sixth version of its interface.
    let landlock = fs::read_to_string(hostile.file(&format!("landlock-{connection}")))?;
    let expected = if landlock.parse::<i32>()? >= 6 { "EPERM" } else { "sent" };
    ensure!(signal == expected, "a signal to the parent: {signal}");
    drop(guacd);

    let (guacd, _user) = start("patched", "export GUACD_DUMPABLE=1")?;
    let read = readable(&guacd)?;
    ensure!(read == [true; 3], "with GUACD_DUMPABLE, these can be read: {read:?}");
    drop(guacd);

    let (guacd, _user) = start("stock", "unset GUACD_DUMPABLE")?;
    let read = readable(&guacd)?;
    ensure!(read == [true; 2], "stock: {read:?}");
    let connection = guacd.processes()[0];
    let signal = fs::read_to_string(hostile.file(&format!("signal-{connection}")))?;
    ensure!(signal == "sent", "stock: {signal}");
    Ok(())
}

fn the_kernel_ends_a_session_before_guacd() -> Result<()> {
    let score = |pid: i32| -> Result<i32> {
        Ok(fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim().parse()?)
    };
    let difference = |variant| -> Result<Vec<i32>> {
        let guacd = Guacd::start(variant)?;
        let _users = [guacd.user("ssh")?, guacd.user("ssh")?];
        let own = score(guacd.pid())?;
        guacd.connections().into_iter().map(|pid| Ok(score(pid)? - own)).collect()
    };
    let own = score(std::process::id() as i32)?;
    let raised = 200.min(1000 - own);
    ensure!(raised > 0, "this process has the highest score already");
    let patched = difference("patched")?;
    ensure!(patched == [raised; 2], "patched: {patched:?}");
    let stock = difference("stock")?;
    ensure!(stock == [0; 2], "stock: {stock:?}");
    Ok(())
}

fn orphans_of_a_session_are_reaped() -> Result<()> {
    let is_adopted = |variant| -> Result<bool> {
        let hostile = Preloaded::compile("session")?;
        fs::write(hostile.file("orphan"), "")?;
        let guacd = hostile.start(variant)?;
        let _user = guacd.user("ssh")?;
        let mut orphan = None;
        wait_until("the session starts a process", SOON, || {
            let entries = fs::read_dir(hostile.dir()).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            orphan = names.filter_map(|name| name.strip_prefix("orphan-")?.parse::<i32>().ok()).next();
            orphan.is_some()
        })?;
        let orphan = orphan.context("no orphan")?;
        for pid in guacd.connections().into_iter().filter(|pid| *pid != orphan) {
            kill(pid, Signal::KILL);
        }
        let is_guacds = || children(guacd.pid()).contains(&orphan);
        let adopted = wait_until("guacd adopts it", Duration::from_secs(2), is_guacds).is_ok();
        fs::remove_file(hostile.file(&format!("orphan-{orphan}")))?;
        if adopted {
            // A zombie would still be there.
            wait_until("it is reaped", SOON, || !PathBuf::from(format!("/proc/{orphan}")).exists())?;
        }
        Ok(adopted)
    };
    ensure!(is_adopted("patched")?, "guacd did not adopt it");
    let adopted = is_adopted("stock")?;
    ensure!(adopted != stock_lacks("0052")?, "stock: whether it adopted it is {adopted}");
    Ok(())
}

/// The number of a process's threads, and of its descriptors.
fn threads_and_descriptors(pid: i32) -> (usize, usize) {
    let count = |what| fs::read_dir(format!("/proc/{pid}/{what}")).into_iter().flatten().count();
    (count("task"), count("fd"))
}

/// Waits until guacd has no more threads and descriptors than it had before.
fn has_released_all(guacd: &Guacd, before: (usize, usize)) -> Result<()> {
    let is_as_before = || {
        let (threads, descriptors) = threads_and_descriptors(guacd.pid());
        threads <= before.0 && descriptors <= before.1
    };
    wait_until("guacd releases all threads and descriptors", SOON, is_as_before)
        .with_context(|| format!("{:?} instead of {before:?}", threads_and_descriptors(guacd.pid())))
}

/// What a session takes at least until it can be used, after what is measured here.
const REST_OF_A_SESSION: Duration = Duration::from_millis(20);

/// Checks that with the rest of a session, `act` takes no more than twice as long as `usual`. Both are done in turn, and the
/// shortest times are compared, as other programs use the machine, too.
fn ensure_not_twice_as_long(act: impl Fn() -> Result<()>, usual: impl Fn() -> Result<()>) -> Result<()> {
    let (mut shortest, mut usually) = (Duration::MAX, Duration::MAX);
    for round in 1..=50 {
        let since = Instant::now();
        usual()?;
        usually = usually.min(since.elapsed());
        let since = Instant::now();
        act()?;
        shortest = shortest.min(since.elapsed());
        if round >= 5 && shortest <= 2 * usually + REST_OF_A_SESSION {
            return Ok(());
        }
    }
    bail!("it takes {shortest:?} instead of {usually:?}")
}

fn handshakes_that_are_not_completed_delay_nobody_and_end() -> Result<()> {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?;
    let certificate = Certificate::new()?;
    let plain = Guacd::start("patched")?;
    let encrypted = Guacd::start_with("patched", ":", &certificate.options())?;
    // These have no silent clients, for comparison.
    let usual = [Guacd::start("patched")?, Guacd::start_with("patched", ":", &certificate.options())?];
    let answer_plain = |guacd: &Guacd| guacd.user("ssh").map(drop);
    let answer_encrypted = |guacd: &Guacd| Encrypted::connect(guacd)?.select("ssh").map(drop);
    let before = [&plain, &encrypted].map(|guacd| threads_and_descriptors(guacd.pid()));

    // Half of them are silent, and half have begun to say something.
    let mut connections = Vec::new();
    for (guacd, byte) in [(&plain, b"6"), (&encrypted, b"\x16")] {
        for number in 0..2000 {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, guacd.port))?;
            if number % 2 == 1 {
                stream.write_all(byte)?;
            }
            connections.push(stream);
        }
    }
    for (guacd, before) in [&plain, &encrypted].into_iter().zip(before) {
        // A connection that only tried whether it listens may have been open before.
        let accepted = || threads_and_descriptors(guacd.pid()).1 >= before.1 + 1990;
        wait_until("all are accepted", SOON, accepted)?;
        let threads = threads_and_descriptors(guacd.pid()).0;
        ensure!(threads <= before.0 + 2, "{threads} threads instead of {}", before.0);
    }
    ensure_not_twice_as_long(|| answer_plain(&plain), || answer_plain(&usual[0])).context("plain")?;
    ensure_not_twice_as_long(|| answer_encrypted(&encrypted), || answer_encrypted(&usual[1]))
        .context("TLS")?;

    // These never finish: one within "select", and one after it. Their time begins now.
    let since = Instant::now();
    let mut slow = User::connect(plain.port)?;
    let mut never_connects = plain.user("ssh")?;
    let selecting = "6.select,".to_owned() + &format!("{}.", 100) + &"x".repeat(100);
    let mut letters = selecting.bytes();
    let (mut slow_ended, mut other_ended) = (None, None);
    while since.elapsed() < HANDSHAKE + SOON && (slow_ended.is_none() || other_ended.is_none()) {
        if slow_ended.is_none() {
            let byte = [letters.next().context("no letters are left")?];
            if slow.stream.write_all(&byte).is_err() || !slow.hear().unwrap_or(false) {
                slow_ended = Some(since.elapsed());
            }
        }
        if other_ended.is_none()
            && (never_connects.send(&["nop"]).is_err() || !never_connects.hear().unwrap_or(false))
        {
            other_ended = Some(since.elapsed());
        }
        sleep(Duration::from_millis(250));
    }
    ensure!(
        slow_ended.is_some() && other_ended.is_some(),
        "slow: {slow_ended:?}, no connect: {other_ended:?}"
    );
    for (guacd, before) in [&plain, &encrypted].into_iter().zip(before) {
        has_released_all(guacd, before)?;
        ensure!(guacd.connections().is_empty(), "a process is left");
    }
    ensure!(since.elapsed() < HANDSHAKE + 2 * SOON, "after {:?}", since.elapsed());
    Ok(())
}

/// How many bytes guacd has sent to its clients that they have not taken in.
fn unread_bytes(port: u16) -> Result<usize> {
    Ok(connections()?.iter().filter(|end| end.local == port).map(|end| end.unsent).sum())
}

fn an_encrypted_user_who_does_not_read_keeps_nothing_of_a_killed_process() -> Result<()> {
    let certificate = Certificate::new()?;
    // It also makes guacd's socket buffers small.
    let hostile = Preloaded::compile("session")?;
    let guacd = Guacd::start_with("patched", &hostile.shell(), &certificate.options())?;
    let before = threads_and_descriptors(guacd.pid());
    let target = a_target_that_floods()?;
    let mut user = Encrypted::connect(&guacd)?;
    let arguments = user.select("telnet")?;
    let mut connect = vec!["connect", "VERSION_1_5_0", "127.0.0.1", &target];
    connect.resize(arguments + 1, "");
    user.send(&["size", "1920", "1080", "96"])?;
    user.send(&["image", "image/png"])?;
    user.send(&connect)?;

    // Its pipe fills, and then whatever lies between it and guacd.
    let (mut seen, mut since) = (0, Instant::now());
    wait_until("guacd cannot send any more", HANDSHAKE, || {
        let unread = unread_bytes(guacd.port).unwrap_or_default();
        if unread != seen || unread == 0 {
            (seen, since) = (unread, Instant::now());
        }
        since.elapsed() > Duration::from_secs(1)
    })?;
    let held = threads_and_descriptors(guacd.pid());
    ensure!(held.0 > before.0 && held.1 >= before.1 + 2, "{held:?} after {before:?}");
    for pid in guacd.connections() {
        kill(pid, Signal::KILL);
    }
    has_released_all(&guacd, before)
}

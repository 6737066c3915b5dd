//! Does guacd live on, and keep its secrets, whatever its processes and clients do?

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Resource, Rlimit, Signal, geteuid, getrlimit, setrlimit};
use tempfile::TempDir;

use crate::support::guacd::{Guacd, left_on};
use crate::support::processes::{children, is_alive, kill, wait_for_the_end_of};
use crate::support::user::{User, instruction};
use crate::support::{self, SOON};

crate::tests! {
    Source:
        a_killed_fork_server_is_started_again_and_no_session_is_lost,
        only_guacd_itself_has_the_private_key,
        a_process_can_neither_read_nor_signal_another,
        the_kernel_ends_a_session_before_guacd,
        orphans_of_a_session_are_reaped,
        handshakes_that_are_not_completed_delay_nobody_and_end,
        an_encrypted_user_who_does_not_read_keeps_nothing_of_a_killed_process;
}

/// Within this time a user is served, or told why not.
const ANSWER: Duration = Duration::from_secs(2);

/// The time that guacd gives a client for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// Waits until something is true.
fn wait_until(what: &str, timeout: Duration, mut is_true: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while !is_true() {
        ensure!(Instant::now() < deadline, "{what}: not within {timeout:?}");
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The process that forks the connection processes.
fn fork_server(guacd: &Guacd) -> Option<i32> {
    // A connection process whose own parent has ended is a child of guacd, too.
    let connections = guacd.connections();
    children(guacd.pid()).into_iter().find(|pid| is_alive(*pid) && !connections.contains(pid))
}

/// A telnet server that counts what all of its clients type.
fn a_target_that_counts() -> Result<(u16, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let typed = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&typed);
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let count = Arc::clone(&count);
            thread::spawn(move || {
                let mut buffer = [0; 256];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    let letters = buffer[..length].iter().filter(|byte| **byte == b'x').count();
                    count.fetch_add(letters, Ordering::Relaxed);
                }
            });
        }
    });
    Ok((port, typed))
}

fn a_killed_fork_server_is_started_again_and_no_session_is_lost() -> Result<()> {
    const SESSIONS: usize = 100;
    const KILLS: usize = 10;
    let mut guacd = Guacd::start("patched")?;
    let (port, typed) = a_target_that_counts()?;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        let mut user = guacd.user("telnet")?;
        user.handshake(&["127.0.0.1", &port.to_string()])?;
        user.expect_id()?;
        sessions.push(user);
    }
    let sessions_before = guacd.connections();
    ensure!(sessions_before.len() == SESSIONS, "{} processes", sessions_before.len());

    let mut served = 0;
    for round in 1..=KILLS {
        let mut victim = None;
        wait_until("a fork server is started again", Duration::from_secs(1), || {
            victim = fork_server(&guacd);
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
        // Those who are there type meanwhile, which is also how guacd knows that they are.
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

    // Who has adopted them also buries them.
    drop(sessions);
    wait_for_the_end_of(&sessions_before, SOON);
    wait_until("no process is left but the fork server", SOON, || guacd.processes().len() == 1)
        .with_context(|| format!("{:?}", guacd.processes()))?;
    guacd.user("ssh")?.finish_handshake()?;
    kill(guacd.pid(), Signal::TERM);
    guacd.wait(SOON)?;
    ensure!(left_on(guacd.port, SOON).is_empty(), "processes are left");
    Ok(())
}

/// A private key and a certificate.
struct Certificate {
    dir: TempDir,
}

impl Certificate {
    fn new() -> Result<Certificate> {
        let dir = TempDir::new()?;
        let mut openssl = Command::new("openssl");
        openssl.args("req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost".split(' '));
        openssl.arg("-keyout").arg(dir.path().join("key")).arg("-out").arg(dir.path().join("certificate"));
        let made = openssl.output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Ok(Certificate { dir })
    }

    /// The options that make guacd use it.
    fn options(&self) -> String {
        let dir = self.dir.path().display();
        format!("-K {dir}/key -C {dir}/certificate")
    }

    /// Pieces of the key in each form that it can have in memory: as the text of its file, as what that encodes, and as
    /// what OpenSSL computes with, which are the same bytes in the processor's order.
    fn pieces(&self) -> Result<Vec<Vec<u8>>> {
        let mut openssl = Command::new("openssl");
        openssl.args(["pkey", "-outform", "DER", "-in"]).arg(self.dir.path().join("key"));
        let bytes = openssl.output()?.stdout;
        ensure!(bytes.len() > 1000, "{} bytes of a key", bytes.len());
        let text = fs::read_to_string(self.dir.path().join("key"))?;
        let lines = text.lines().filter(|line| line.len() == 64).map(|line| line.as_bytes().to_vec());
        let encoded = bytes.chunks_exact(32).map(<[u8]>::to_vec);
        let reversed = bytes.chunks_exact(32).map(|chunk| chunk.iter().rev().copied().collect());
        let public = self.public()?;
        let is_secret =
            |piece: &Vec<u8>| !public.windows(8).any(|part| piece.windows(8).any(|other| other == part));
        Ok(lines.chain(encoded).chain(reversed).filter(is_secret).collect())
    }

    /// What is in the certificate, too, in both orders, and zeros.
    fn public(&self) -> Result<Vec<u8>> {
        let mut openssl = Command::new("openssl");
        openssl.args(["x509", "-outform", "DER", "-in"]).arg(self.dir.path().join("certificate"));
        let mut bytes = openssl.output()?.stdout;
        bytes.extend(bytes.clone().iter().rev());
        bytes.extend([0; 16]);
        Ok(bytes)
    }
}

/// A client that uses TLS, and ends with this.
struct Encrypted {
    client: Child,
}

impl Encrypted {
    fn connect(guacd: &Guacd) -> Result<Encrypted> {
        let client = Command::new("openssl")
            .args(["s_client", "-quiet", "-connect", &format!("127.0.0.1:{}", guacd.port)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Encrypted { client })
    }

    fn send(&mut self, parts: &[&str]) -> Result<()> {
        let input = self.client.stdin.as_mut().context("no input")?;
        Ok(input.write_all(instruction(parts).as_bytes())?)
    }

    /// Selects a protocol, and returns the number of its arguments.
    fn select(&mut self, protocol: &str) -> Result<usize> {
        self.send(&["select", protocol])?;
        let output = self.client.stdout.as_mut().context("no output")?;
        let mut heard = Vec::new();
        while !heard.ends_with(b";") {
            let mut byte = [0];
            output.read_exact(&mut byte).context("the connection ended")?;
            heard.push(byte[0]);
        }
        ensure!(heard.starts_with(b"4.args,"), "{}", String::from_utf8_lossy(&heard));
        Ok(heard.iter().filter(|byte| **byte == b',').count())
    }
}

impl Drop for Encrypted {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
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
    let pieces = certificate.pieces()?;
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
    // It has forked the connection itself, after it had read the key.
    let (_, others) = found("stock")?;
    ensure!(others.len() == 1 && others[0] > 0, "stock: {others:?}");
    Ok(())
}

/// What makes connection processes do as one would that was taken over: see `c/session.c`.
struct Hostile {
    dir: TempDir,
}

impl Hostile {
    fn new() -> Result<Hostile> {
        let dir = TempDir::new()?;
        let mut cc = Command::new("cc");
        cc.args(["-Wall", "-Werror", "-shared", "-fPIC", "-o"]).arg(dir.path().join("session.so"));
        let compiled = cc.arg(support::root().join("tests/it/c/session.c")).output()?;
        ensure!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        Ok(Hostile { dir })
    }

    /// The shell command that comes before guacd.
    fn shell(&self) -> String {
        let dir = self.dir.path().display();
        format!("export SESSION={dir} LD_PRELOAD={dir}/session.so")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// The program that gives up what root may do beyond other users, before it becomes another program.
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
    let hostile = Hostile::new()?;
    let start = |variant, variable: &str| -> Result<(Guacd, User)> {
        let shell = format!("{variable} && {}", hostile.shell());
        let guacd = Guacd::start_under(variant, &shell, without_privileges(), "")?;
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
    let parent_of_orphan = |variant| -> Result<bool> {
        let hostile = Hostile::new()?;
        fs::write(hostile.file("orphan"), "")?;
        let guacd = Guacd::start_with(variant, &hostile.shell(), "")?;
        let _user = guacd.user("ssh")?;
        let mut orphan = None;
        wait_until("the session starts a process", SOON, || {
            let entries = fs::read_dir(hostile.dir.path()).into_iter().flatten().flatten();
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
    ensure!(parent_of_orphan("patched")?, "guacd did not adopt it");
    ensure!(!parent_of_orphan("stock")?, "stock adopted it");
    Ok(())
}

/// The number of a process's threads, and of its descriptors.
fn threads_and_descriptors(pid: i32) -> (usize, usize) {
    let count = |what| fs::read_dir(format!("/proc/{pid}/{what}")).into_iter().flatten().count();
    (count("task"), count("fd"))
}

/// Checks that something takes no more than twice as long as something else. Both are done in turn, and the shortest times
/// are compared, as others use the machine, too.
fn ensure_not_twice_as_long(act: impl Fn() -> Result<()>, usual: impl Fn() -> Result<()>) -> Result<()> {
    let (mut shortest, mut usually) = (Duration::MAX, Duration::MAX);
    for round in 1..=50 {
        let since = Instant::now();
        usual()?;
        usually = usually.min(since.elapsed());
        let since = Instant::now();
        act()?;
        shortest = shortest.min(since.elapsed());
        if round >= 5 && shortest <= 2 * usually {
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
    // Nobody is silent here.
    let usual = [Guacd::start("patched")?, Guacd::start_with("patched", ":", &certificate.options())?];
    let answer_plain = |guacd: &Guacd| guacd.user("ssh").map(drop);
    let answer_encrypted = |guacd: &Guacd| Encrypted::connect(guacd)?.select("ssh").map(drop);
    let before = [&plain, &encrypted].map(|guacd| threads_and_descriptors(guacd.pid()));

    // Half of them are silent, and half have begun to say something.
    let since = Instant::now();
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

    // These never end what they say: one within "select", and one after it.
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
        let is_rid_of_them = || {
            let (threads, descriptors) = threads_and_descriptors(guacd.pid());
            threads <= before.0 && descriptors <= before.1
        };
        wait_until("guacd is rid of them", SOON, is_rid_of_them)
            .with_context(|| format!("{:?} instead of {before:?}", threads_and_descriptors(guacd.pid())))?;
        ensure!(guacd.connections().is_empty(), "a process is left");
    }
    ensure!(since.elapsed() < HANDSHAKE + 2 * SOON, "after {:?}", since.elapsed());
    Ok(())
}

/// A telnet server that sends as much as it can to the first who connects. Returns its port.
fn a_target_that_floods() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        for number in 0_u64.. {
            // Each letter has a colour of its own, which makes for large pictures.
            for column in 0..40 {
                write!(stream, "\x1b[3{};4{}mguacd {number}", (number + column) % 8, (number * column) % 7)?;
            }
        }
        std::io::Result::Ok(())
    });
    Ok(port)
}

/// How many bytes guacd has sent to its clients that they have not taken in.
fn unread_bytes(port: u16) -> Result<usize> {
    let ours = format!(":{port:04X}");
    let mut unread = 0;
    for line in fs::read_to_string("/proc/net/tcp")?.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_connected = fields[3] == "01";
        if fields[1].ends_with(&ours) && is_connected {
            let (sending, _) = fields[4].split_once(':').context("no queue")?;
            unread += usize::from_str_radix(sending, 16)?;
        }
    }
    Ok(unread)
}

fn an_encrypted_user_who_does_not_read_keeps_nothing_of_a_killed_process() -> Result<()> {
    let certificate = Certificate::new()?;
    let hostile = Hostile::new()?;
    let guacd = Guacd::start_with("patched", &hostile.shell(), &certificate.options())?;
    let before = threads_and_descriptors(guacd.pid());
    let target = a_target_that_floods()?.to_string();
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
    ensure!(held.0 >= before.0 + 2 && held.1 >= before.1 + 2, "{held:?} after {before:?}");
    for pid in guacd.connections() {
        kill(pid, Signal::KILL);
    }
    let is_rid_of_it = || {
        let (threads, descriptors) = threads_and_descriptors(guacd.pid());
        threads <= before.0 && descriptors <= before.1
    };
    wait_until("guacd is rid of it", SOON, is_rid_of_it)
        .with_context(|| format!("{:?} instead of {before:?}", threads_and_descriptors(guacd.pid())))?;
    Ok(())
}

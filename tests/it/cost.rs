//! What does an idle session cost, and what does it wait for?

use std::fs;
use std::io::{Read, Write};
use std::sync::mpsc::channel;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use rustix::process::Signal;

use crate::support::c::Preloaded;
use crate::support::guacd::Guacd;
use crate::support::processes::{children, descriptors, kill};
use crate::support::target::{a_target_that_says_nothing, target};
use crate::support::tls::{Encrypted, start_encrypted};
use crate::support::user::User;
use crate::support::{SOON, wait_until};

crate::tests! {
    Source:
        an_idle_session_takes_five_threads_and_rarely_wakes,
        what_is_typed_is_sent_at_once,
        a_session_takes_no_thread_and_little_memory_of_guacd_itself,
        an_encrypted_session_takes_one_thread_of_guacd_itself,
        guacd_is_small_before_there_is_any_session,
        the_fork_server_looks_for_ended_sessions_only_if_there_are_any;
}

/// The threads of a process, and how often they have gone to sleep.
fn threads(pid: i32) -> Result<(usize, u64)> {
    let mut sleeps = 0;
    let mut count = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sleeps += line.context("no count of switches")?.trim().parse::<u64>()?;
        count += 1;
    }
    Ok((count, sleeps))
}

/// How many threads an idle session over telnet has, and how often it wakes in a second.
fn idle_session(variant: &str) -> Result<(usize, f64)> {
    let guacd = Guacd::start(variant)?;
    let (_user, _) = guacd.telnet(&a_target_that_says_nothing()?)?;
    let process = *guacd.connections().first().context("no session")?;
    // The session is complete once its threads sleep for the most part.
    let mut before = (0, 0);
    wait_until("the session is idle", 2 * SOON, || {
        let last = std::mem::replace(&mut before, threads(process).unwrap_or_default());
        sleep(Duration::from_secs(1));
        threads(process).is_ok_and(|now| now.0 == before.0 && last.0 == before.0 && now.1 - before.1 < 15)
    })?;
    let since = Instant::now();
    let (_, sleeps) = threads(process)?;
    sleep(SOON);
    let (count, now) = threads(process)?;
    Ok((count, (now - sleeps) as f64 / since.elapsed().as_secs_f64()))
}

fn an_idle_session_takes_five_threads_and_rarely_wakes() -> Result<()> {
    let (threads, wakes) = idle_session("patched")?;
    ensure!(threads == 5 && wakes < 4.0, "{threads} threads, which wake {wakes} times a second");
    let (threads, wakes) = idle_session("stock")?;
    ensure!(threads > 5 && wakes > 4.0, "stock: {threads} threads, which wake {wakes} times a second");
    Ok(())
}

/// The median time between two keys that are typed 5 ms apart, when they arrive at a target that answers the
/// second. Such a target's kernel acknowledges the first 40 ms later.
fn time_between_keys(variant: &str) -> Result<Duration> {
    let (to, arrived) = channel();
    let port = target(move |mut stream| {
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 {
            let _ = to.send((byte[0], Instant::now()));
            if byte[0] == b'b' {
                stream.write_all(b".")?;
            }
        }
        Ok(())
    })?;
    let guacd = Guacd::start(variant)?;
    let (mut user, _) = guacd.telnet(&port)?;
    wait_until("the session takes input", SOON, || {
        let _ = user.send(&["key", "99", "1"]);
        arrived.recv_timeout(Duration::from_millis(50)).is_ok()
    })?;
    let mut times = Vec::new();
    let deadline = Instant::now() + 4 * SOON;
    while times.len() < 45 {
        ensure!(Instant::now() < deadline, "{variant}: {} of 45 pairs of keys arrived", times.len());
        user.send(&["key", "97", "1"])?;
        sleep(Duration::from_millis(5));
        user.send(&["key", "98", "1"])?;
        let next = |wanted| loop {
            let (byte, at) = arrived.recv_timeout(SOON).ok()?;
            if byte == wanted {
                return Some(at);
            }
        };
        if let (Some(first), Some(second)) = (next(b'a'), next(b'b')) {
            times.push(second - first);
        }
        user.hear()?;
    }
    // At the beginning of a connection, the kernel acknowledges all packets at once.
    let mut times = times.split_off(30);
    times.sort();
    Ok(times[times.len() / 2])
}

fn what_is_typed_is_sent_at_once() -> Result<()> {
    let (patched, stock) = (time_between_keys("patched")?, time_between_keys("stock")?);
    ensure!(patched < Duration::from_millis(20), "{patched:?}");
    ensure!(stock > Duration::from_millis(30), "stock: {stock:?}");
    Ok(())
}

/// The memory in KiB that a process shares with no other, and has written to.
fn private_memory(pid: i32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line =
        rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).context("no private memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// How many threads and how much memory guacd itself takes for each session over telnet, beyond the first.
fn cost_for_guacd(guacd: &Guacd, users: &mut Vec<User>, sessions: usize) -> Result<(f64, f64)> {
    let target = a_target_that_says_nothing()?;
    users.push(guacd.telnet(&target)?.0);
    settle(guacd)?;
    let before = (threads(guacd.pid())?.0, private_memory(guacd.pid())?);
    for _ in 1..sessions {
        users.push(guacd.telnet(&target)?.0);
    }
    settle(guacd)?;
    let more = (sessions - 1) as f64;
    Ok((
        (threads(guacd.pid())?.0 - before.0) as f64 / more,
        private_memory(guacd.pid())?.saturating_sub(before.1) as f64 / more,
    ))
}

/// Waits until the number of guacd's own threads stays the same for a moment.
fn settle(guacd: &Guacd) -> Result<()> {
    wait_until("guacd has as many threads as before", SOON, || {
        let before = threads(guacd.pid()).map(|threads| threads.0).unwrap_or_default();
        sleep(Duration::from_millis(200));
        threads(guacd.pid()).is_ok_and(|now| now.0 == before)
    })
}

fn a_session_takes_no_thread_and_little_memory_of_guacd_itself() -> Result<()> {
    const SESSIONS: usize = 50;
    let guacd = Guacd::start("patched")?;
    let before = descriptors(guacd.pid()).len();
    let mut users = Vec::new();
    let (threads, memory) = cost_for_guacd(&guacd, &mut users, SESSIONS)?;
    ensure!(threads == 0.0 && memory < 8.0, "{threads} threads and {memory} KiB for each session");
    // That there is no thread for each does not keep guacd from noticing that all of them end at once.
    for pid in guacd.connections() {
        kill(pid, Signal::KILL);
    }
    let are_removed = || guacd.log().is_ok_and(|log| log.matches("removed.").count() == SESSIONS);
    wait_until("all sessions are removed", SOON, are_removed)
        .with_context(|| guacd.log().unwrap_or_default())?;
    wait_until("their descriptors are closed", SOON, || descriptors(guacd.pid()).len() <= before)?;
    ensure!(guacd.user("ssh")?.finish_handshake().is_ok(), "nobody else is served");

    let stock = Guacd::start("stock")?;
    let (threads, memory) = cost_for_guacd(&stock, &mut Vec::new(), 10)?;
    ensure!(threads >= 3.0 && memory > 8.0, "stock: {threads} threads and {memory} KiB for each session");
    Ok(())
}

fn an_encrypted_session_takes_one_thread_of_guacd_itself() -> Result<()> {
    let (guacd, _certificate) = start_encrypted()?;
    let before = threads(guacd.pid())?.0;
    // guacd ends those that say nothing more for 15 s.
    let mut users = (0..4).map(|_| Encrypted::connect(&guacd)).collect::<Result<Vec<_>>>()?;
    for user in &mut users {
        user.select("ssh")?;
    }
    settle(&guacd)?;
    let more = threads(guacd.pid())?.0 - before;
    ensure!(more == users.len(), "{more} threads for {} sessions", users.len());
    drop(users);
    wait_until("their threads end", SOON, || threads(guacd.pid()).is_ok_and(|now| now.0 == before))
}

fn guacd_is_small_before_there_is_any_session() -> Result<()> {
    let memory = |variant| private_memory(Guacd::start(variant)?.pid());
    let (patched, stock) = (memory("patched")?, memory("stock")?);
    ensure!(patched < 4096, "{patched} KiB");
    ensure!(stock > 8192, "stock: {stock} KiB");
    Ok(())
}

fn the_fork_server_looks_for_ended_sessions_only_if_there_are_any() -> Result<()> {
    let waits = Preloaded::compile("waits")?;
    let guacd = waits.start("patched")?;
    let fork_server = guacd.fork_server().context("no fork server")?;
    let looks = || fs::read(waits.file(&fork_server.to_string())).map_or(0, |bytes| bytes.len());
    let mut users = (0..10).map(|_| guacd.user("ssh")).collect::<Result<Vec<_>>>()?;
    ensure!(looks() == 0, "it has looked {} times", looks());
    // A process that has ended stays its child until it has looked.
    for left in (0..10).rev() {
        users.pop();
        wait_until("the session is reaped", SOON, || children(fork_server).len() == left)?;
    }
    ensure!(looks() <= 40, "it has looked {} times for 10 sessions", looks());
    Ok(())
}

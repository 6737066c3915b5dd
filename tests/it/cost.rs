//! What does an idle session cost, and what does it wait for?

use std::fs;
use std::io::{Read, Write};
use std::sync::mpsc::channel;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::support::guacd::Guacd;
use crate::support::target::{a_target_that_says_nothing, target};
use crate::support::{SOON, wait_until};

crate::tests! {
    Source:
        an_idle_session_takes_five_threads_and_rarely_wakes,
        what_is_typed_is_sent_at_once;
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

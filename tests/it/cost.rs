//! What does an idle session cost, and what does it wait for?

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::channel;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::display::stock_crashes;
use crate::support::c::{Preloaded, compile_plugin};
use crate::support::guacd::Guacd;
use crate::support::processes::{children, descriptors, kill};
use crate::support::target::{a_target_that_says_nothing, target};
use crate::support::tls::{Encrypted, start_encrypted};
use crate::support::user::User;
use crate::support::{SOON, wait_until};

crate::tests! {
    Source:
        a_terminal_is_drawn_on_properly_after_it_was_idle,
        an_idle_session_takes_five_threads_and_rarely_wakes,
        an_idle_terminal_gives_back_its_memory,
        scrollback_is_kept_as_it_was_printed,
        what_is_typed_is_sent_at_once,
        a_session_takes_no_thread_and_little_memory_of_guacd_itself,
        an_encrypted_session_takes_one_thread_of_guacd_itself,
        the_end_of_a_session_is_not_spent_on_its_libraries,
        failed_handshakes_leave_nothing_in_memory,
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

/// How many threads an idle session over telnet has whose user answers, and how often it wakes in a second.
fn idle_session(variant: &str) -> Result<(usize, f64)> {
    let guacd = Guacd::start(variant)?;
    let (mut user, _) = guacd.telnet(&a_target_that_says_nothing()?)?;
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
    while since.elapsed() < SOON {
        user.heard.clear();
        user.hear()?;
        for frame in user.instructions()?.iter().filter(|words| words[0] == "sync") {
            user.send(&["sync", &frame[1]])?;
        }
    }
    let (count, now) = threads(process)?;
    Ok((count, (now - sleeps) as f64 / since.elapsed().as_secs_f64()))
}

fn an_idle_session_takes_five_threads_and_rarely_wakes() -> Result<()> {
    let (threads, wakes) = idle_session("patched")?;
    ensure!(threads == 5 && wakes < 2.0, "{threads} threads, which wake {wakes} times a second");
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
    // A child of it loads the plugin first.
    let mut users = vec![guacd.user("ssh")?];
    wait_until("the child has ended", SOON, || children(fork_server).len() == 1)?;
    let mut before = 0;
    // It looks until there is nothing more to see.
    wait_until("it has looked", SOON, || {
        let last = std::mem::replace(&mut before, looks());
        sleep(Duration::from_millis(200));
        last == before
    })?;
    for _ in 1..10 {
        users.push(guacd.user("ssh")?);
    }
    ensure!(looks() == before, "it has looked {} times", looks() - before);
    // A process that has ended stays its child until it has looked.
    for left in (0..10).rev() {
        users.pop();
        wait_until("the session is reaped", SOON, || children(fork_server).len() == left)?;
    }
    ensure!(looks() <= before + 40, "it has looked {} times for 10 sessions", looks() - before);
    Ok(())
}

/// How many KiB the memory of a session grows by with 200 users whose handshakes fail, each after 40 kB.
fn grown_by_failed_handshakes(variant: &str) -> Result<u64> {
    let guacd = Guacd::start(variant)?;
    let (mut owner, id) = guacd.telnet(&a_target_that_says_nothing()?)?;
    let process = *guacd.connections().first().context("no session")?;
    let long = "x".repeat(8000);
    let mut fail = |times: usize| -> Result<u64> {
        for number in 0..times {
            let mut guest = guacd.user(&id)?;
            for name in ["audio", "video", "image", "name", "timezone"] {
                guest.send(&[name, &long])?;
            }
            // Some give arguments which there are not. Stock keeps the others until their time is up.
            if number % 2 == 0 || variant == "stock" {
                guest.send(&["connect", "1", "2", "3", "4"])?;
            }
            guest.stream.shutdown(Shutdown::Write)?;
            guest.read_to_end(SOON).context(variant.to_owned())?;
            owner.send(&["nop"])?;
            owner.hear()?;
        }
        private_memory(process)
    };
    let before = fail(30)?;
    Ok(fail(200)?.saturating_sub(before))
}

fn failed_handshakes_leave_nothing_in_memory() -> Result<()> {
    let patched = grown_by_failed_handshakes("patched")?;
    ensure!(patched < 2000, "the session has grown by {patched} KiB");
    let stock = grown_by_failed_handshakes("stock")?;
    ensure!(stock > 5000, "stock: the session has grown by {stock} KiB");
    Ok(())
}

fn the_end_of_a_session_is_not_spent_on_its_libraries() -> Result<()> {
    // Whether a session ends with exit(), and whether its end loads the library that unwinds the stacks of cancelled threads.
    let what_happens = |variant: &str| -> Result<(bool, bool)> {
        let (plugin, log) = (compile_plugin("last_words", variant)?, TempDir::new()?);
        let shell = format!(
            "export LD_LIBRARY_PATH={}:$LD_LIBRARY_PATH LD_DEBUG=files LD_DEBUG_OUTPUT={}/loader",
            plugin.path().display(),
            log.path().display()
        );
        let guacd = Guacd::start_with(variant, &shell, "")?;
        let mut user = guacd.user("last_words")?;
        user.handshake(&[])?;
        user.expect_id()?;
        guacd.expect_in_log("(1 users now present)")?;
        drop(user);
        // Stock needs ten seconds until it notices.
        guacd.wait_for_the_end_of_connections(4 * SOON)?;
        let mut loaded = String::new();
        for file in fs::read_dir(log.path())? {
            loaded += &fs::read_to_string(file?.path())?;
        }
        ensure!(loaded.contains("libguac-client-last_words.so"), "the loader says {loaded:?}");
        let unwinds = |line: &str| line.contains("file=libgcc_s.so") && line.contains("dynamically loaded");
        Ok((guacd.log()?.contains("exit() has been called"), loaded.lines().any(unwinds)))
    };
    let (patched, stock) = (what_happens("patched")?, what_happens("stock")?);
    ensure!(patched == (false, false), "{patched:?}");
    ensure!(stock == (true, true), "stock: {stock:?}");
    Ok(())
}

/// Lines of text of different lengths and colors.
fn lines(count: usize) -> String {
    let text = "the quick brown fox jumps over the lazy dog ".repeat(2);
    (0..count).map(|i| format!("\x1b[3{}m{i:5}\x1b[m {}\r\n", i % 8, &text[..10 + i * 7 % 70])).collect()
}

/// A session over telnet in which a program has printed something, and prints more when a `d` is typed.
struct Terminal {
    guacd: Guacd,
    user: User,
    id: String,
}

impl Terminal {
    fn start(variant: &str, size: [&'static str; 2], output: &str, more: &str) -> Result<Terminal> {
        let (output, more) = (output.to_owned(), more.to_owned());
        let port = target(move |mut stream: TcpStream| {
            // IAC WILL ECHO: guacd does not print what is typed.
            stream.write_all(&[255, 251, 1])?;
            stream.write_all(output.as_bytes())?;
            let mut byte = [0];
            while stream.read(&mut byte)? == 1 {
                if byte[0] == b'd' {
                    stream.write_all(more.as_bytes())?;
                }
            }
            Ok(())
        })?;
        let guacd = Guacd::start_with(variant, "export LC_ALL=C.UTF-8", "")?;
        let mut user = guacd.user("telnet")?;
        user.size = size;
        user.handshake(&["127.0.0.1", &port])?;
        let id = user.expect_id()?;
        user.expect("3.img,")?;
        let mut terminal = Terminal { guacd, user, id };
        terminal.settle()?;
        Ok(terminal)
    }

    /// The memory that only the session's process has, in KiB, and that of its page tables.
    fn memory(&self) -> Result<u64> {
        let process = *self.guacd.connections().first().context("no session")?;
        let sum = |file: &str, name: &str| -> Result<u64> {
            let text = fs::read_to_string(format!("/proc/{process}/{file}"))?;
            let line = text.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
            Ok(line.trim().trim_end_matches(" kB").parse()?)
        };
        Ok(sum("smaps_rollup", "Private_Dirty:")? + sum("status", "VmPTE:")?)
    }

    /// Waits until the session takes no more than so many KiB.
    fn wait_until_idle(&mut self, most: u64) -> Result<()> {
        let deadline = Instant::now() + 8 * SOON;
        while self.memory()? > most {
            ensure!(Instant::now() < deadline, "{} KiB", self.memory()?);
            self.user.listen(Duration::from_millis(500))?;
        }
        Ok(())
    }

    /// Waits until nothing is drawn any more.
    fn settle(&mut self) -> Result<()> {
        let mut images = usize::MAX;
        while images != self.user.heard.matches("3.img,").count() {
            images = self.user.heard.matches("3.img,").count();
            self.user.listen(Duration::from_secs(1))?;
        }
        Ok(())
    }

    fn type_key(&mut self, keysym: &str) -> Result<()> {
        self.user.send(&["key", keysym, "1"])?;
        self.user.send(&["key", keysym, "0"])
    }

    /// The images that a user who joins is sent: the cursor and all of the screen.
    fn picture(&self) -> Result<Vec<String>> {
        let mut guest = self.guacd.user(&self.id)?;
        guest.handshake(&[])?;
        guest.expect_id()?;
        let (mut last, deadline) = (0, Instant::now() + 4 * SOON);
        loop {
            guest.listen(Duration::from_secs(1)).context("the guest")?;
            // All images are complete, and there are no others since the last time.
            let mut incomplete = BTreeSet::new();
            let mut images = 0;
            for mut words in guest.instructions()? {
                match words[0].as_str() {
                    "img" => {
                        images += 1;
                        incomplete.insert(words.remove(1));
                    }
                    "end" => {
                        incomplete.remove(&words[1]);
                    }
                    _ => {}
                }
            }
            if images > 0 && images == last && incomplete.is_empty() {
                break;
            }
            ensure!(Instant::now() < deadline, "the guest is sent {images} images: {}", guest.heard);
            last = images;
        }
        let instructions = guest.instructions()?.into_iter();
        let blobs =
            instructions.filter(|words| words[0] == "blob").map(|mut words| words.remove(2)).collect();
        Ok(blobs)
    }

    /// Selects the text from the left upper corner of the screen to the right lower one, and returns it.
    fn copy(&mut self, size: [u32; 2]) -> Result<String> {
        self.user.heard.clear();
        let [x, y] = size.map(|pixels| (pixels - 30).to_string());
        for (x, y, mask) in [("12", "12", "0"), ("12", "12", "1"), (&*x, &*y, "1"), (&*x, &*y, "0")] {
            self.user.send(&["mouse", x, y, mask])?;
        }
        let mut text = Vec::new();
        wait_until("the text is sent", SOON, || {
            let _ = self.user.hear();
            let instructions = self.user.instructions().unwrap_or_default();
            let mut words = instructions.iter().skip_while(|words| words[0] != "clipboard");
            let Some(stream) = words.next().map(|words| &words[1]) else { return false };
            let mut of_stream = words.filter(|words| words.get(1) == Some(stream));
            let blobs: Vec<_> = of_stream.by_ref().take_while(|words| words[0] == "blob").collect();
            text = blobs.iter().flat_map(|words| STANDARD.decode(&words[2]).unwrap_or_default()).collect();
            !blobs.is_empty() && instructions.iter().any(|words| words[0] == "end" && &words[1] == stream)
        })?;
        Ok(String::from_utf8(text)?)
    }
}

/// What an idle session of 800x600 takes at most, in KiB.
const IDLE: u64 = 2_800;

fn an_idle_terminal_gives_back_its_memory() -> Result<()> {
    for (size, output, most) in
        [(["800", "600"], "$ ".to_owned(), IDLE), (["1920", "1080"], lines(1_500), 5_000)]
    {
        let mut patched = Terminal::start("patched", size, &output, "")?;
        patched.wait_until_idle(most).with_context(|| format!("{size:?}"))?;
        let stock = Terminal::start("stock", size, &output, "")?.memory()?;
        ensure!(stock > 2 * most, "{size:?}, stock: {stock} KiB");
    }
    Ok(())
}

fn a_terminal_is_drawn_on_properly_after_it_was_idle() -> Result<()> {
    // The cursor is shown at the end only: it may stay where it is when a frame ends in the middle of the output.
    let output = "\x1b[?25l".to_owned() + &lines(50);
    let more = "\x1b[5;10H\x1b[44mmore\x1b[m\x1b[20;1H\x1b[3M\x1b[36;1H\r\nlast\x1b[?25h";
    let draw = |terminal: &mut Terminal| -> Result<Vec<String>> {
        terminal.user.heard.clear();
        terminal.type_key("100")?;
        terminal.user.expect("3.img,").context("the owner")?;
        terminal.settle()?;
        terminal.picture()
    };
    let resize = |terminal: &mut Terminal| -> Result<Vec<String>> {
        for size in [["700", "500"], ["900", "700"]] {
            terminal.user.send(&["size", size[0], size[1]])?;
            terminal.user.listen(Duration::from_secs(1))?;
        }
        terminal.settle()?;
        terminal.picture()
    };
    // One that is never idle for long.
    let mut busy = Terminal::start("patched", ["800", "600"], &output, more)?;
    let (before, after, resized) = (busy.picture()?, draw(&mut busy)?, resize(&mut busy)?);
    ensure!(before != after && after != resized, "nothing was drawn");

    let mut idle = Terminal::start("patched", ["800", "600"], &output, more)?;
    ensure!(idle.memory()? > IDLE, "a session that is not idle takes only {} KiB", idle.memory()?);
    idle.wait_until_idle(IDLE)?;
    ensure!(idle.picture()? == before, "a user who joins an idle session is sent another picture");
    idle.wait_until_idle(IDLE)?;
    ensure!(draw(&mut idle)? == after, "what is drawn on an idle session gives another picture");
    idle.wait_until_idle(IDLE)?;
    ensure!(resize(&mut idle)? == resized, "an idle session that is resized gives another picture");
    Ok(())
}

fn scrollback_is_kept_as_it_was_printed() -> Result<()> {
    // Text with spaces, colors and wide characters at its end, lines that wrap, and lines with nothing.
    // No cursor is shown, as it may stay where it is when a frame ends in the middle of the output.
    let rows = (0..300).map(|i| match i % 7 {
        0 => format!("{i} spaces   \r\n"),
        1 => format!("{i} \x1b[4{}mto the end\x1b[K\x1b[m\r\n", i % 8),
        2 => format!("\x1b[38;5;{i}m{i} \x1b[7m in reverse  \r\n\x1b[m"),
        3 => format!("{i} \u{6f22}\u{5b57}\r\n"),
        4 => format!("{i} {}\r\n", "wrapped ".repeat(2 + i % 20)),
        5 => "\r\n".to_owned(),
        _ => format!("{i}\ttab\x1b[{}Gbehind a gap\r\n", 20 + i % 60),
    });
    let output = "\x1b[?25l".to_owned() + &rows.collect::<String>();
    let look = |variant: &str| -> Result<Vec<(String, Vec<String>)>> {
        let mut terminal = Terminal::start(variant, ["800", "600"], &output, "")?;
        let mut seen = Vec::new();
        for page in 0..4 {
            if page > 0 {
                // Shift and Page Up.
                terminal.user.send(&["key", "65505", "1"])?;
                terminal.type_key("65365")?;
                terminal.user.send(&["key", "65505", "0"])?;
                terminal.settle()?;
            }
            let picture = terminal.picture()?;
            seen.push((terminal.copy([800, 600])?, picture));
        }
        // Rows come back when the terminal grows.
        terminal.user.send(&["size", "1000", "900"])?;
        terminal.settle()?;
        let picture = terminal.picture()?;
        seen.push((terminal.copy([1000, 900])?, picture));
        Ok(seen)
    };
    let patched = look("patched")?;
    // A stock that crashes once the terminal has another size has nothing to compare with.
    let stock = if stock_crashes()? { patched.clone() } else { look("stock")? };
    for (page, (patched, stock)) in patched.iter().zip(&stock).enumerate() {
        ensure!(patched.0.lines().count() > 20, "page {page}: {:?}", patched.0);
        ensure!(patched.0 == stock.0, "page {page}: {:?}\nstock: {:?}", patched.0, stock.0);
        ensure!(patched.1 == stock.1, "page {page} looks different, with {:?}", patched.0);
    }
    Ok(())
}

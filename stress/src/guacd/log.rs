//! Which process of guacd wrote which line? guacd's standard error is one end of a pair of sockets; at the other end, the
//! kernel names the process that wrote each line. This works for lines without guacd's prefix too, such as GLib's.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::File,
    io::{IoSliceMut, Write},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair, sockopt::set_socket_passcred,
};
use tokio::sync::Notify;

/// How many of guacd's last lines are kept for a report.
const LAST_LINES: usize = 12;

/// Longer lines are split.
const MAX_LINE: usize = 64 * 1024;

/// guacd's log so far.
#[derive(Default)]
pub struct LogBook {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    /// The parent process, which no session belongs to.
    parent: i32,
    /// The most telling line of each process.
    telling: HashMap<i32, Line>,
    /// How many processes crashed.
    crashes: u32,
    /// Processes whose end was reported. If one of them writes a line, it is another process with the same id.
    dead: HashSet<i32>,
    /// Processes with a telling line and without a session, in the order of those lines.
    unclaimed: VecDeque<i32>,
    /// The process of each session, by the session's id.
    process: HashMap<String, i32>,
    /// Sessions whose process is gone.
    ended: HashSet<String>,
    last: VecDeque<String>,
    listening: bool,
}

#[derive(Clone)]
struct Line {
    weight: Weight,
    text: String,
}

/// How much a line says about why a process failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    Nothing,
    Unknown,
    Warning,
    Error,
    /// The last line of a process that kills itself. guacd did not write it, so it lacks guacd's prefix.
    LastWords,
}

impl LogBook {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Waits until the process of a session is gone.
    pub async fn ended(&self, id: &str) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.lock().ended.contains(id) {
                return;
            }
            changed.await;
        }
    }

    /// The most telling line of a session's process. For a session without an id, that of guacd's parent process, which then
    /// did not start one.
    pub fn telling(&self, id: Option<&str>) -> Option<String> {
        let inner = self.lock();
        let process = match id {
            Some(id) => inner.process.get(id)?,
            None => &inner.parent,
        };
        inner.telling.get(process).map(|line| line.text.clone())
    }

    /// The process of a session, if it has named itself.
    pub fn process(&self, id: &str) -> Option<i32> {
        self.lock().process.get(id).copied()
    }

    /// How many processes crashed: their last line says that they abort or that their memory is corrupt, or the signal that
    /// ended them does.
    pub fn crashes(&self) -> u32 {
        self.lock().crashes
    }

    /// guacd's last lines.
    pub fn last_lines(&self) -> Vec<String> {
        self.lock().last.iter().cloned().collect()
    }

    /// Whether guacd has logged that it listens.
    pub fn is_listening(&self) -> bool {
        self.lock().listening
    }

    /// Names guacd's parent process.
    pub fn set_parent(&self, pid: i32) {
        self.lock().parent = pid;
    }

    fn line(&self, pid: i32, line: &str) {
        let mut inner = self.lock();
        let (weight, text) = weigh(line);
        if inner.dead.remove(&pid) {
            inner.telling.remove(&pid);
        }
        let obituary = obituary(text);
        let (pid, weight, text) = obituary.unwrap_or((pid, weight, text));
        if obituary.is_some() {
            inner.dead.insert(pid);
        }
        if inner.last.len() == LAST_LINES {
            inner.last.pop_front();
        }
        inner.last.push_back(line.into());
        if line.contains("Listening on host") {
            inner.listening = true;
        }
        let before = inner.telling.get(&pid).map_or(Weight::Nothing, |line| line.weight);
        if weight > before {
            inner.crashes += u32::from(weight == Weight::LastWords);
            let first = inner.telling.insert(pid, Line { weight, text: without_ids(text) }).is_none();
            if first && pid != inner.parent && !inner.process.values().any(|&process| process == pid) {
                inner.unclaimed.push_back(pid);
            }
        }
        if let Some(id) = quoted_after(line, "joined connection ") {
            inner.unclaimed.retain(|&unclaimed| unclaimed != pid);
            inner.process.insert(id.into(), pid);
        } else if let Some(id) = quoted_after(line, "\tConnection ").filter(|_| line.ends_with("removed.")) {
            // A process can die before it has named its session. The parent process notices deaths in order.
            if !inner.process.contains_key(id) {
                if let Some(pid) = inner.unclaimed.pop_front() {
                    inner.process.insert(id.into(), pid);
                }
            }
            inner.ended.insert(id.into());
            drop(inner);
            self.changed.notify_waiters();
        }
    }
}

/// How telling a line is, and the line without the process id, which no other line shares.
fn weigh(line: &str) -> (Weight, &str) {
    let after = |start: &str, end: &str| Some(line.strip_prefix(start)?.split_once(end)?.1);
    let Some(message) = after("guacd[", "]: ") else {
        let dying = [
            "bort",
            "***",
            "ssertion",
            "GUAC_ASSERT",
            "pthread_",
            "atal",
            "error while loading",
            // glibc's words for a heap that is corrupt, and those of the sanitizers.
            "free(): ",
            "malloc(): ",
            "corrupt",
            "Sanitizer",
            "runtime error:",
        ];
        let weight =
            if dying.iter().any(|word| line.contains(word)) { Weight::LastWords } else { Weight::Unknown };
        // GLib names the process at times.
        return (weight, after("(process:", "): ").unwrap_or(line).trim());
    };
    let weight = match message.split_once(':').map(|(level, _)| level) {
        Some("ERROR") => Weight::Error,
        // Every session gets this warning, because guacd is given no host key.
        Some("WARNING") if message.contains("host identity will not be verified") => Weight::Nothing,
        Some("WARNING") => Weight::Warning,
        _ => Weight::Nothing,
    };
    (weight, message)
}

/// The process whose end a line reports, and the weight of that line: most signals mean a crash, but not those that are sent
/// on purpose.
fn obituary(message: &str) -> Option<(i32, Weight, &str)> {
    let (process, end) = message.strip_prefix("ERROR:\tConnection process ")?.split_once(" was ")?;
    let signal = end.strip_prefix("ended by signal ")?;
    let on_purpose = ["9 ", "15 "].iter().any(|number| signal.starts_with(number));
    Some((process.parse().ok()?, if on_purpose { Weight::Error } else { Weight::LastWords }, end))
}

/// A line without the ids of users and connections, so that sessions that fail alike read alike.
fn without_ids(line: &str) -> String {
    let mut parts = line.split('"').map(|part| match part.as_bytes() {
        [sigil @ (b'$' | b'@'), rest @ ..] if rest.len() == 36 => format!("{}...", char::from(*sigil)),
        _ => part.to_owned(),
    });
    let first = parts.next().unwrap_or_default();
    parts.fold(first, |line, part| line + "\"" + &part)
}

fn quoted_after<'a>(line: &'a str, words: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(words)?;
    rest.strip_prefix('"')?.split('"').next()
}

/// A log that is being read.
pub struct Reader {
    /// What was read.
    pub book: Arc<LogBook>,
    done: mpsc::Receiver<()>,
}

impl Reader {
    /// Begins to read a log, and gives the file descriptor to write it to.
    ///
    /// # Errors
    ///
    /// When no pair of sockets can be had.
    pub fn start(mut copy: File) -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .context("open a pair of sockets for guacd's log")?;
        set_socket_passcred(&ours, true).context("ask for the writers of guacd's log")?;
        let book = Arc::new(LogBook::default());
        let (finished, done) = mpsc::channel();
        let into = Arc::clone(&book);
        thread::Builder::new()
            .name("guacd-log".into())
            .spawn(move || {
                read(&ours, |pid, line| {
                    // A full disk must not stop the run, which reads the lines here.
                    let _ = writeln!(copy, "{pid}\t{line}");
                    into.line(pid, line);
                });
                drop(finished);
            })
            .context("start the thread that reads guacd's log")?;
        Ok((Self { book, done }, theirs))
    }

    /// Waits until the log's last writer has ended and everything was read, for at most 2 s.
    pub fn finish(&self) {
        let _ = self.done.recv_timeout(Duration::from_secs(2));
    }
}

/// Reads lines until nobody is left to write any. Each comes with the process that wrote it.
fn read(socket: &OwnedFd, mut line: impl FnMut(i32, &str)) {
    let mut begun = HashMap::<i32, Vec<u8>>::new();
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        let length = match received {
            Ok(message) if message.bytes > 0 => message.bytes,
            Err(rustix::io::Errno::INTR) => continue,
            _ => break,
        };
        let writer = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmCredentials(writer) => Some(writer.pid.as_raw_nonzero().get()),
            _ => None,
        });
        let pid = writer.unwrap_or(0);
        let text = begun.entry(pid).or_default();
        text.extend_from_slice(&bytes[..length]);
        loop {
            let head = &text[..text.len().min(MAX_LINE)];
            match head.iter().position(|&byte| byte == b'\n') {
                Some(end) => {
                    line(pid, String::from_utf8_lossy(&head[..end]).trim_end_matches('\r'));
                    text.drain(..=end);
                }
                None if head.len() == MAX_LINE => {
                    line(pid, &String::from_utf8_lossy(head));
                    text.drain(..MAX_LINE);
                }
                None => break,
            }
        }
        if text.is_empty() {
            begun.remove(&pid);
        }
    }
    for (pid, text) in begun.into_iter().filter(|(_, text)| !text.is_empty()) {
        line(pid, &String::from_utf8_lossy(&text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GLIB: &str = "GLib (gthread-posix.c): Unexpected error from C library during 'pthread_key_create': Resource \
                        temporarily unavailable.  Aborting.";

    #[test]
    fn the_last_words_of_a_process_tell_more_than_its_errors() {
        let book = LogBook::default();
        book.line(7, "guacd[7]: INFO:\tUser \"@u\" joined connection \"$a\" (1 users now present)");
        book.line(7, "Fontconfig warning: no default file");
        book.line(7, "guacd[7]: WARNING:\tSomething odd");
        book.line(7, "guacd[7]: ERROR:\tSSH handshake failed.");
        book.line(7, "guacd[7]: ERROR:\tUnable to connect.");
        assert_eq!(book.telling(Some("$a")).unwrap(), "ERROR:\tSSH handshake failed.");
        book.line(7, GLIB);
        assert_eq!(book.telling(Some("$a")).unwrap(), GLIB);
        assert_eq!(book.telling(Some("$b")), None);
    }

    #[test]
    fn a_process_that_crashes_without_a_word_is_counted_by_what_guacd_says_of_it() {
        let book = LogBook::default();
        book.set_parent(1);
        book.line(8, "guacd[8]: INFO:\tUser \"@u\" joined connection \"$a\" (1 users now present)");
        book.line(2, "guacd[2]: ERROR:\tConnection process 9 was ended by signal 9 (Killed).");
        assert_eq!(book.crashes(), 0);
        book.line(2, "guacd[2]: ERROR:\tConnection process 8 was ended by signal 11 (Segmentation fault).");
        assert_eq!(book.crashes(), 1);
        assert_eq!(book.telling(Some("$a")).unwrap(), "ended by signal 11 (Segmentation fault).");
    }

    #[test]
    fn a_process_with_the_id_of_one_that_crashed_is_another() {
        let book = LogBook::default();
        for crashes in 1..=3 {
            book.line(8, GLIB);
            book.line(2, "guacd[2]: ERROR:\tConnection process 8 was ended by signal 6 (Aborted).");
            assert_eq!(book.crashes(), crashes);
        }
    }

    #[test]
    fn a_process_that_dies_before_it_names_its_session_is_found_all_the_same() {
        let book = LogBook::default();
        book.set_parent(1);
        book.line(1, "guacd[1]: INFO:\tConnection ID is \"$a\"");
        book.line(8, GLIB);
        assert_eq!(book.telling(Some("$a")), None);
        book.line(1, "guacd[1]: INFO:\tConnection \"$a\" removed.");
        assert_eq!(book.telling(Some("$a")).unwrap(), GLIB);
    }

    #[test]
    fn lines_that_differ_in_ids_only_read_alike() {
        let id = "5ed43a10-5c5a-4a0e-8d3d-a3f9e9a7a7f2";
        let line = format!("guacd[12]: ERROR:\tUser \"@{id}\" could NOT join connection \"${id}\"");
        let (weight, text) = weigh(&line);
        assert_eq!(weight, Weight::Error);
        assert_eq!(without_ids(text), "ERROR:\tUser \"@...\" could NOT join connection \"$...\"");
        assert_eq!(
            weigh("(process:77): GLib-ERROR **: 12:00: Aborting.").1,
            "GLib-ERROR **: 12:00: Aborting."
        );
    }

    #[test]
    fn a_session_that_never_began_is_explained_by_the_parent() {
        let book = LogBook::default();
        book.set_parent(1);
        book.line(1, "guacd[1]: ERROR:\tError opening socket pair: Too many open files");
        assert_eq!(book.telling(None).unwrap(), "ERROR:\tError opening socket pair: Too many open files");
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let (reader, end) = Reader::start(tempfile::tempfile().unwrap()).unwrap();
        let mut end = File::from(end);
        end.write_all(&[b'x'; 3 * MAX_LINE]).unwrap();
        end.write_all(b"y\n").unwrap();
        drop(end);
        reader.finish();
        let lines = reader.book.last_lines().iter().map(String::len).collect::<Vec<_>>();
        assert_eq!(lines, [MAX_LINE, MAX_LINE, MAX_LINE, 1]);
    }

    #[test]
    fn lines_come_with_the_process_that_wrote_them() {
        let (reader, end) = Reader::start(tempfile::tempfile().unwrap()).unwrap();
        let write = |text: &str| {
            let mut child = std::process::Command::new("sh")
                .args(["-c", "printf '%s\\n' \"$0\" >&2; sleep 0", text])
                .stderr(end.try_clone().unwrap())
                .spawn()
                .unwrap();
            let pid = child.id() as i32;
            child.wait().unwrap();
            pid
        };
        let first = write("guacd[0]: INFO:\tUser \"@u\" joined connection \"$a\" (1 users now present)");
        write("Assertion failed: somebody else's");
        drop(end);
        reader.finish();
        assert_eq!(reader.book.lock().process["$a"], first);
        assert_eq!(reader.book.telling(Some("$a")), None);
        assert_eq!(reader.book.last_lines().len(), 2);
    }
}

//! What can a program that runs in a terminal do to its session by what it prints? Each test also shows the fault of stock.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::ZlibDecoder;

use crate::support::SOON;
use crate::support::c::run_c;
use crate::support::differences::stock_lacks;
use crate::support::guacd::Guacd;
use crate::support::processes::cpu_time;
use crate::support::sshd::{ED25519, Sshd};
use crate::support::target::{stay_silent, target, target_with_a_small_buffer};
use crate::support::user::{Instructions, User};

crate::tests! {
    Source:
        an_alignment_test_ends_no_session,
        numbers_in_control_sequences_end_no_session,
        unknown_control_sequences_print_and_do_nothing,
        a_title_goes_to_its_end_and_is_utf_8,
        queries_of_a_program_that_does_not_read_freeze_nothing,
        users_who_join_a_busy_terminal_miss_nothing,
        a_user_without_streams_is_sent_nothing_that_needs_one;
    SourceAndSshd:
        a_path_for_uploads_without_sftp_ends_no_session;
}

/// What the target prints last: it opens a pipe, writes a word into it, and closes it.
pub const PROOF: &[u8] = b"\x18\x1b]482202;0;proof\x07alive\x1b]482203;\x07";

/// The word as users receive it.
const PROVEN: &[u8] = b"8.YWxpdmU=;";

/// A session over telnet with a target that the test plays.
pub struct Session {
    guacd: Guacd,
    pub user: User,
    /// What the user has received since the handshake.
    received: Vec<u8>,
}

/// What becomes of a session.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The word arrived.
    Proven,
    /// The session's process has ended.
    Ended,
    /// The session's process uses no processor time any more, and the word has not arrived.
    Frozen,
}

impl Session {
    /// Connects a user to a telnet server which does what `target` says.
    pub fn start(
        variant: &str,
        target: impl FnOnce(TcpStream) -> std::io::Result<()> + Send + 'static,
    ) -> Result<Session> {
        Session::start_with(variant, &[], target)
    }

    /// The same, where the user has more arguments.
    pub fn start_with(
        variant: &str,
        arguments: &[(&str, &str)],
        target: impl FnOnce(TcpStream) -> std::io::Result<()> + Send + 'static,
    ) -> Result<Session> {
        let guacd = Guacd::start_with(variant, "export LC_ALL=C.UTF-8", "")?;
        let user = connect(&guacd, arguments, target)?;
        Ok(Session { guacd, user, received: Vec::new() })
    }

    /// Waits for the word, for the end of the session, or until neither can come any more.
    pub fn outcome(&mut self) -> Result<Outcome> {
        let mut busy = (Duration::MAX, Instant::now());
        let deadline = Instant::now() + 12 * SOON;
        let mut sent = Instant::now();
        let mut buffer = [0; 65536];
        loop {
            // guacd gives up a user who is silent for 15 s.
            if sent.elapsed() > Duration::from_secs(1) {
                let _ = self.user.send(&["nop"]);
                sent = Instant::now();
            }
            // `read` waits for 50 ms at most.
            let length = self.user.stream.read(&mut buffer).unwrap_or_default();
            self.received.extend_from_slice(&buffer[..length]);
            if self.received.windows(PROVEN.len()).any(|window| window == PROVEN) {
                return Ok(Outcome::Proven);
            }
            let Some(&process) = self.guacd.connections().first() else { return Ok(Outcome::Ended) };
            let time = cpu_time(process).unwrap_or_default();
            if time != busy.0 || length > 0 {
                busy = (time, Instant::now());
            }
            // An idle session takes 10 ms of CPU in 30 s.
            if busy.1.elapsed() > SOON / 2 {
                return Ok(Outcome::Frozen);
            }
            ensure!(Instant::now() < deadline, "the session neither ends nor proves itself");
        }
    }
}

/// Connects a user to a telnet server which does what `target` says with its first connection.
fn connect(
    guacd: &Guacd,
    arguments: &[(&str, &str)],
    target: impl FnOnce(TcpStream) -> std::io::Result<()> + Send + 'static,
) -> Result<User> {
    let port = target_with_a_small_buffer(|mut stream| {
        // IAC WILL ECHO. Otherwise guacd would print what is typed itself, its own answers to queries included.
        stream.write_all(&[255, 251, 1])?;
        target(stream)
    })?;
    let mut user = guacd.user("telnet")?;
    user.handshake_with(&[&[("hostname", "127.0.0.1"), ("port", &port)], arguments].concat())?;
    user.expect_id()?;
    Ok(user)
}

/// Prints something and the proof, and keeps the connection until the other end closes it.
fn print(output: Vec<u8>) -> impl FnOnce(TcpStream) -> std::io::Result<()> + Send + 'static {
    move |mut stream| {
        stream.write_all(&output)?;
        stream.write_all(PROOF)?;
        stay_silent(stream)
    }
}

/// What becomes of a session in which the target prints something.
fn outcome_of(variant: &str, output: &[u8]) -> Result<Outcome> {
    Session::start(variant, print(output.to_vec()))?.outcome()
}

fn an_alignment_test_ends_no_session() -> Result<()> {
    // What was left on the stack decides what becomes of it: colours, and a few rounds.
    let output = b"\x1b[1;33;44m\x1b[2Jguacd\x1b#8\r\n\x1b[38;5;200m\x1b#8".repeat(4);
    for _ in 0..3 {
        let outcome = outcome_of("patched", &output)?;
        ensure!(outcome == Outcome::Proven, "{outcome:?}");
    }
    if stock_lacks("0034")? {
        let outcomes: Vec<Outcome> = (0..12).map(|_| outcome_of("stock", &output)).collect::<Result<_>>()?;
        ensure!(outcomes.contains(&Outcome::Ended), "stock: {outcomes:?}");
    }
    Ok(())
}

fn numbers_in_control_sequences_end_no_session() -> Result<()> {
    let outputs: [&[u8]; 7] = [
        // Scroll by more rows than there are, up and down.
        b"\x1b[999S",
        b"\x1b[999T",
        b"\x1b[2147483647T",
        // A scrolling region that the terminal does not have, and a line feed at its end.
        b"\x1b[9999;9999r\x1b[99B\n\x1b[T",
        // Delete and insert rows below the scrolling region.
        b"\x1b[1;5r\x1b[20H\x1b[5M\x1b[5L",
        // Insert, delete and erase more characters than there are.
        b"guacd\x1b[2147483647@\x1b[2147483647P\x1b[2147483647X",
        b"\x1b]99999999999999999999;x\x07\x1b]4;99999999999999999999;red\x07\x1b[2147483647;2147483647H",
    ];
    let mut ended = Vec::new();
    for output in outputs {
        let outcome = outcome_of("patched", output)?;
        ensure!(outcome == Outcome::Proven, "{}: {outcome:?}", output.escape_ascii());
        if outcome_of("stock", output)? != Outcome::Proven {
            ended.push(output.escape_ascii().to_string());
        }
    }
    ensure!(ended.len() >= if stock_lacks("0035")? { 3 } else { 1 }, "stock: only {ended:?}");
    Ok(())
}

/// Sequences that the terminal does not know, and some that it knows, with ends of every kind.
fn sequences() -> Vec<Vec<u8>> {
    let long = "0123456789;ABCDEF ".repeat(10_000);
    let sequences: [&[u8]; 25] = [
        b"\x1bPqsixel\x1b\\",
        b"\x1bXstart of string\x1b\\",
        b"\x1b^privacy message\x1b\\",
        b"\x1b_application program command\x1b\\",
        b"\xc2\x90device control\xc2\x9c",
        b"\x1bP+q544e\x9c",
        b"\x1b]52;c;Z3VhY2Q=\x07",
        b"\x1b]8;;https://example.org/\x1b\\",
        b"\x1b]7;file://host/directory\x07",
        b"\x1b]133;A\x1b\\",
        b"\x1b]L label\x1b\\",
        b"\x1b]104\x07\x1b]52;c;AAAA\x07",
        b"\xc2\x9d1337;File=:AAAA\x07",
        b"\x1b]R",
        b"\x1b]P0123456",
        b"\x1b%G",
        b"\x1b F",
        b"\x1b(%5\x1b(B",
        b"\x1b*B\x1b+B",
        b"\x1b[?1;2;3$y",
        b"\x1b[>4;2m",
        b"\x1b[3 @",
        b"\x1b[12;\x18",
        b"\x1b[12;\x1b[m",
        b"\x1b]2;a title with a \\ in it\x07",
    ];
    let mut all: Vec<Vec<u8>> = sequences.iter().map(|sequence| sequence.to_vec()).collect();
    all.push(format!("\x1bP{long}\x1b\\").into_bytes());
    all.push(format!("\x1b]1337;{long}\x07").into_bytes());
    all.push(format!("\x1b]2;{long}\x07").into_bytes());
    all
}

fn unknown_control_sequences_print_and_do_nothing() -> Result<()> {
    // The target prints a letter on both sides of each, and asks for the position of the cursor.
    let wrong = |variant: &str| -> Result<Vec<String>> {
        let (sender, answers) = channel();
        let target = move |mut stream: TcpStream| {
            for sequence in sequences() {
                stream.write_all(b"\x18\x1b[m\x1b[5;10Hx")?;
                stream.write_all(&sequence)?;
                stream.write_all(b"y\x1b[m\x1b[6n")?;
                let mut answer = Vec::new();
                let mut byte = [0];
                while answer.last() != Some(&b'R') {
                    stream.read_exact(&mut byte)?;
                    answer.push(byte[0]);
                }
                let _ = sender.send((sequence, answer));
            }
            print(Vec::new())(stream)
        };
        let outcome = Session::start(variant, target)?.outcome()?;
        ensure!(outcome == Outcome::Proven, "{variant}: {outcome:?}");
        let answers: Vec<_> = answers.into_iter().collect();
        ensure!(answers.len() == sequences().len(), "{} answers", answers.len());
        let moved = answers.into_iter().filter(|(_, answer)| !answer.ends_with(b"\x1b[5;12R"));
        Ok(moved
            .map(|(sequence, answer)| {
                let start = &sequence[..sequence.len().min(40)];
                format!("{} -> {}", start.escape_ascii(), answer.escape_ascii())
            })
            .collect())
    };
    let patched = wrong("patched")?;
    ensure!(patched.is_empty(), "{patched:#?}");
    let stock = wrong("stock")?;
    ensure!(stock.len() >= 15, "stock: only {stock:#?}");
    Ok(())
}

fn a_title_goes_to_its_end_and_is_utf_8() -> Result<()> {
    let titles = |variant: &str| -> Result<Vec<u8>> {
        let output = "\x1b]2;Übung C:\\x\x1b\\\x1b]2;second\x07".as_bytes();
        let broken = b"\x1b]2;caf\xe9\x07\x1b]2;\xf0\x9f\x90\x07\x1b]482202;0;\xff\x07\x1b]482203;\x07";
        let mut session = Session::start(variant, print([output, broken].concat()))?;
        let outcome = session.outcome()?;
        ensure!(outcome == Outcome::Proven, "{variant}: {outcome:?}");
        Ok(session.received)
    };
    let patched = String::from_utf8(titles("patched")?).context("patched")?;
    let expected = [
        "4.name,10.Übung C:\\x;",
        "4.name,6.second;",
        "4.name,4.caf\u{FFFD};",
        "4.name,3.\u{FFFD}\u{FFFD}\u{FFFD};",
    ];
    for title in expected {
        ensure!(patched.contains(title), "{title} was not received, but {patched}");
    }
    let stock = titles("stock")?;
    ensure!(String::from_utf8(stock.clone()).is_err(), "stock sent UTF-8");
    let stock = String::from_utf8_lossy(&stock).into_owned();
    ensure!(!stock.contains(expected[0]), "stock sent the whole title");
    Ok(())
}

fn queries_of_a_program_that_does_not_read_freeze_nothing() -> Result<()> {
    let outcome = |variant: &str| {
        // Answers of 9 MB, more than what the pipe and the sockets hold.
        let target = |mut stream: TcpStream| {
            stream.write_all(&vec![0x05; 1_000_000])?;
            stream.write_all(PROOF)?;
            // The connection stays open.
            thread::sleep(10 * SOON);
            Ok(())
        };
        Session::start(variant, target)?.outcome()
    };
    let patched = outcome("patched").context("patched")?;
    ensure!(patched == Outcome::Proven, "{patched:?}");
    let stock = outcome("stock").context("stock")?;
    // It is frozen, or has ended.
    ensure!(stock != Outcome::Proven, "stock: {stock:?}");
    Ok(())
}

/// A telnet server that fills the screen with one color after another.
fn a_target_of_many_colors() -> Result<String> {
    target(|mut stream| {
        // The cursor is not where the first pixel is.
        stream.write_all(b"\x1b[5;5H")?;
        for color in 0_u32.. {
            write!(stream, "\x1b[48;2;{};{};{BLUE}m\x1b[2J", color >> 8 & 0xFF, color & 0xFF)?;
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    })
}

/// All of its colors have this much blue, and no other color has.
const BLUE: u8 = 119;

/// The colors of that target that a user is sent, in order.
#[derive(Default)]
struct Colors {
    instructions: Instructions,
    images: HashMap<String, Vec<u8>>,
    last: Option<u32>,
    all: Vec<u32>,
}

impl Colors {
    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        for parts in self.instructions.take(bytes)? {
            match parts[0].as_str() {
                "cfill" => {
                    let part = |index: usize| -> Result<u8> { Ok(parts[index].parse()?) };
                    self.add([part(3)?, part(4)?, part(5)?]);
                }
                "img" => {
                    self.images.insert(parts[1].clone(), Vec::new());
                }
                "blob" => {
                    if let Some(image) = self.images.get_mut(&parts[1]) {
                        image.extend(STANDARD.decode(&parts[2])?);
                    }
                }
                "end" => {
                    if let Some(image) = self.images.remove(&parts[1]) {
                        self.add_image(&image)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds the palette of a PNG, or the color of its first pixel if it has none.
    fn add_image(&mut self, png: &[u8]) -> Result<()> {
        let (mut compressed, mut rest) = (Vec::new(), &png[8..]);
        while let [l1, l2, l3, l4, k1, k2, k3, k4, data @ ..] = rest {
            let length = u32::from_be_bytes([*l1, *l2, *l3, *l4]) as usize;
            let data = data.get(..length).context("an incomplete image")?;
            match &[*k1, *k2, *k3, *k4] {
                b"PLTE" => {
                    data.chunks_exact(3).for_each(|color| self.add([color[0], color[1], color[2]]));
                    return Ok(());
                }
                b"IDAT" => compressed.extend_from_slice(data),
                _ => {}
            }
            rest = rest.get(12 + length..).unwrap_or_default();
        }
        // None of the filters, of which the first byte is one, changes the first pixel.
        let mut start = [0; 4];
        ZlibDecoder::new(&*compressed).read_exact(&mut start)?;
        self.add([start[1], start[2], start[3]]);
        Ok(())
    }

    fn add(&mut self, [red, green, blue]: [u8; 3]) {
        let color = u32::from(red) << 8 | u32::from(green);
        if blue == BLUE && self.last.replace(color) != Some(color) {
            self.all.push(color);
        }
    }
}

fn users_who_join_a_busy_terminal_miss_nothing() -> Result<()> {
    const GUESTS: usize = 8;
    let guacd = Guacd::start("patched")?;
    let mut owner = guacd.user("telnet")?;
    // It takes a while to encode such a screen.
    owner.size = ["1600", "1200"];
    owner.handshake_with(&[("hostname", "127.0.0.1"), ("port", &a_target_of_many_colors()?)])?;
    let id = owner.expect_id()?;
    let (done, finished) = channel::<()>();
    let owner = thread::spawn(move || -> Result<Vec<u32>> {
        let mut colors = Colors::default();
        let mut told = Instant::now();
        while finished.try_recv() == Err(TryRecvError::Empty) {
            if told.elapsed() > Duration::from_secs(1) {
                owner.send(&["nop"])?;
                told = Instant::now();
            }
            ensure!(owner.hear()?, "the connection ended");
            colors.take(std::mem::take(&mut owner.heard).as_bytes())?;
        }
        Ok(colors.all)
    });
    let mut pairs = Vec::new();
    for _ in 0..GUESTS {
        let mut guest = guacd.user(&id)?;
        guest.handshake(&[])?;
        let mut colors = Colors::default();
        let deadline = Instant::now() + SOON;
        while colors.all.len() < 2 {
            ensure!(Instant::now() < deadline, "a guest sees no colors");
            ensure!(guest.hear()?, "the connection of a guest ended");
            colors.take(std::mem::take(&mut guest.heard).as_bytes())?;
        }
        pairs.push([colors.all[0], colors.all[1]]);
    }
    // The owner is sent at least what the guests were.
    thread::sleep(Duration::from_millis(500));
    drop(done);
    let all = owner.join().ok().context("panicked")?.context("the owner")?;
    // Those who are not sent the color that follows the one which fills the screen when they join.
    let missing = pairs.iter().filter(|pair| !all.windows(2).any(|two| two == *pair)).count();
    ensure!(missing == 0, "{missing} of {GUESTS} guests miss what is drawn when they join");
    // With stock, guests miss something only now and then.
    Ok(())
}

fn a_user_without_streams_is_sent_nothing_that_needs_one() -> Result<()> {
    let said = run_c("streams", "patched")?;
    let expected = "all streams of the user: 1, of the client: 1\nwithout another: went on\n";
    ensure!(said == expected, "{said}");
    // Stock crashes. The error has what was printed before.
    let Err(crash) = run_c("streams", "stock") else { bail!("stock went on") };
    ensure!(crash.to_string().contains("all streams"), "stock: {crash:#}");
    Ok(())
}

fn a_path_for_uploads_without_sftp_ends_no_session() -> Result<()> {
    let sshd = Sshd::start(&[("key", ED25519)])?;
    let octal: String = PROOF.iter().map(|byte| format!("\\{byte:03o}")).collect();
    let command = format!("printf '\\033]482201;/x\\007{octal}'; exec sleep 60");
    let outcome = |variant: &str| -> Result<Outcome> {
        let guacd = Guacd::start(variant)?;
        let mut user = guacd.user("ssh")?;
        // The path of the root is not absolute, so there is no filesystem.
        let more = [("command", &*command), ("enable-sftp", "true"), ("sftp-root-directory", "none")];
        sshd.log_in(&mut user, &sshd.key("key")?, &more)?;
        user.expect_id()?;
        Session { guacd, user, received: Vec::new() }.outcome()
    };
    let patched = outcome("patched")?;
    ensure!(patched == Outcome::Proven, "{patched:?}");
    let stock = outcome("stock")?;
    ensure!(stock == Outcome::Ended, "stock: {stock:?}");
    Ok(())
}

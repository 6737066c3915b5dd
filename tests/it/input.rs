//! What can a client or a target do to a session by the numbers that it sends, and by what it sends too early? Each test also shows
//! the fault of stock.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::support::c::run_c;
use crate::support::differences::stock_lacks;
use crate::support::guacd::Guacd;
use crate::support::target::{a_target_that_says_nothing, stay_silent, target};
use crate::support::user::User;
use crate::support::{self, SOON};
use crate::terminal::{Outcome, PROOF, Session};
use crate::vnc;

crate::tests! {
    Source:
        instructions_without_arguments_do_nothing,
        sizes_end_no_session,
        a_user_needs_no_size,
        fonts_of_any_size_end_no_session,
        input_before_there_is_a_target_ends_no_session,
        formats_of_sound_end_no_session,
        desktops_of_absurd_size_are_refused,
        users_who_join_receive_the_last_frame_and_nothing_deadlocks of "0114",
        users_who_join_a_display_miss_nothing_and_receive_nothing_twice of "0114",
        users_who_join_see_what_is_selected,
        text_may_end_within_a_character,
        a_user_who_leaves_with_an_open_stream_silences_nobody,
        a_key_while_prompts_are_searched_for_ends_no_session,
        sizes_and_breaks_reach_a_telnet_server,
        names_of_pods_are_not_used_as_paths;
}

/// Asks for an answer that needs no target. A connection that has ended cannot be written to.
fn ask(user: &mut User) {
    let _ = user.send(&["argv", "63", "text/plain", "unknown"]);
}

/// Whether the session's process answers its user. Otherwise it has ended.
pub fn is_served(guacd: &Guacd, user: &mut User) -> Result<bool> {
    ask(user);
    let deadline = Instant::now() + SOON;
    loop {
        let _ = user.hear();
        if user.heard.contains("2.63,12.Not allowed.") {
            user.heard.clear();
            return Ok(true);
        }
        if guacd.connections().is_empty() {
            return Ok(false);
        }
        ensure!(Instant::now() < deadline, "the session neither answers nor ends: {:?}", user.heard);
    }
}

/// A session over telnet that is up, what its target receives, and its ID.
fn telnet(guacd: &Guacd) -> Result<(User, Receiver<Vec<u8>>, String)> {
    let (to, received) = channel();
    let port = target(move |mut stream| {
        // Opens a pipe, by which its user sees that the terminal is there.
        stream.write_all(b"\x1b]482202;1;ready\x07")?;
        let mut buffer = [0; 4096];
        loop {
            let length = stream.read(&mut buffer)?;
            if length == 0 || to.send(buffer[..length].to_vec()).is_err() {
                return Ok(());
            }
        }
    })?;
    let mut user = guacd.user("telnet")?;
    user.handshake_with(&[("hostname", "127.0.0.1"), ("port", &port)])?;
    let heard = user.expect("4.pipe,")?;
    let id = heard.split_once("5.ready,37.").and_then(|(_, rest)| rest.split_once(';')).context("no ID")?.0;
    Ok((user, received, id.to_owned()))
}

/// What a target receives until it has received nothing for a while.
fn take(received: &Receiver<Vec<u8>>) -> Vec<u8> {
    let mut all = Vec::new();
    while let Ok(bytes) = received.recv_timeout(Duration::from_millis(500)) {
        all.extend(bytes);
    }
    all
}

fn instructions_without_arguments_do_nothing() -> Result<()> {
    let typed = |variant| -> Result<Vec<u8>> {
        let guacd = Guacd::start(variant)?;
        let (mut user, received, _) = telnet(&guacd)?;
        // The parser still has these arguments when it reads what comes next.
        user.send(&["nop", "120", "1"])?;
        for opcode in ["key", "mouse", "touch", "size", "ack", "blob", "get", "put", "audio", "sync"] {
            user.send(&[opcode])?;
            user.send(&[opcode, "120"])?;
        }
        ensure!(is_served(&guacd, &mut user)?, "{variant}: the session ended");
        Ok(take(&received))
    };
    let patched = typed("patched")?;
    ensure!(patched.is_empty(), "typed: {:?}", String::from_utf8_lossy(&patched));
    let stock = typed("stock")?;
    ensure!(stock.starts_with(b"x"), "stock: {:?}", String::from_utf8_lossy(&stock));
    Ok(())
}

fn sizes_end_no_session() -> Result<()> {
    const SIZES: [[&str; 2]; 7] = [
        ["0", "0"],
        ["-1", "600"],
        ["800", "-2147483648"],
        ["abc", ""],
        ["99999999999999999999", "700"],
        ["700", "2147483648"],
        ["2147483647", "2147483647"],
    ];
    let guacd = Guacd::start("patched")?;
    let (mut user, _received, _) = telnet(&guacd)?;
    for [width, height] in SIZES {
        user.send(&["size", width, height])?;
        ensure!(is_served(&guacd, &mut user)?, "{width} x {height} ended the session");
    }
    let stock = Guacd::start("stock")?;
    let (mut user, _received, _) = telnet(&stock)?;
    // One of them ends stock's process, as soon as it draws.
    let mut sizes = SIZES.iter().cycle().take(10 * SIZES.len());
    let ends = sizes.any(|[width, height]| {
        user.send(&["size", width, height]).is_err() || !is_served(&stock, &mut user).unwrap_or(false)
    });
    ensure!(ends, "stock: the session has survived all sizes");
    Ok(())
}

fn a_user_needs_no_size() -> Result<()> {
    let is_up = |variant: &str, size: &[&str]| -> Result<bool> {
        let guacd = Guacd::start(variant)?;
        let port = target(|mut stream| {
            stream.write_all(b"\x1b]482202;1;ready\x07")?;
            stay_silent(stream)
        })?;
        let mut user = guacd.user("telnet")?;
        if !size.is_empty() {
            user.send(size)?;
        }
        let mut connect = vec!["connect", "VERSION_1_5_0", "127.0.0.1", &port];
        connect.resize(user.arguments + 1, "");
        user.send(&connect)?;
        let deadline = Instant::now() + SOON;
        while !user.heard.contains("4.pipe,") {
            let _ = user.hear();
            if guacd.connections().is_empty() {
                return Ok(false);
            }
            ensure!(Instant::now() < deadline, "{size:?}: no terminal, but {:?}", user.heard);
        }
        is_served(&guacd, &mut user)
    };
    let no_resolution = ["size", "800", "600", "0"];
    for size in [
        &[][..],
        &no_resolution,
        &["size", "0", "0", "96"],
        &["size", "-1", "-1", "-1"],
        &["size", "x", "", ""],
        &["size", "9999999999", "9999999999", "96"],
    ] {
        ensure!(is_up("patched", size)?, "{size:?} ended the session");
    }
    ensure!(!is_up("stock", &no_resolution)?, "stock: the session has survived a resolution of 0");
    Ok(())
}

fn fonts_of_any_size_end_no_session() -> Result<()> {
    // 1, 2147483647 and 12, in base64.
    const SIZES: [&str; 3] = ["MQ==", "MjE0NzQ4MzY0Nw==", "MTI="];
    let changed = |variant: &str, sizes: &[&str]| -> Result<bool> {
        let guacd = Guacd::start(variant)?;
        let (mut user, _received, _) = telnet(&guacd)?;
        user.send(&["size", "2000", "1000"])?;
        for size in sizes {
            user.send(&["argv", "1", "text/plain", "font-size"])?;
            user.send(&["blob", "1", size])?;
            user.send(&["end", "1"])?;
            if !is_served(&guacd, &mut user)? {
                return Ok(false);
            }
        }
        Ok(true)
    };
    ensure!(changed("patched", &SIZES)?, "the session ended");
    // With the first, there is room for more columns than a terminal has.
    let survives = changed("stock", &SIZES[..1])?;
    ensure!(survives != stock_lacks("0043")?, "stock: whether the session has survived it is {survives}");
    Ok(())
}

/// Whether a session whose target is silent outlives some instructions.
fn outlives(
    variant: &str,
    protocol: &str,
    arguments: &[(&str, &str)],
    instructions: &[&[&str]],
) -> Result<bool> {
    let guacd = Guacd::start(variant)?;
    let port = a_target_that_says_nothing()?;
    let mut user = guacd.user(protocol)?;
    user.handshake_with(&[&[("hostname", "127.0.0.1"), ("port", &port)], arguments].concat())?;
    user.expect_id()?;
    // The threads of the session need a moment to get as far as the target.
    for _ in 0..10 {
        ensure!(is_served(&guacd, &mut user)?, "the session ended by itself");
    }
    for instruction in instructions {
        // The session may have ended.
        let _ = user.send(instruction);
    }
    is_served(&guacd, &mut user)
}

fn input_before_there_is_a_target_ends_no_session() -> Result<()> {
    let clipboard: &[&[&str]] = &[&["clipboard", "1", "text/plain"], &["blob", "1", "YWJj"], &["end", "1"]];
    let sftp: &[(&str, &str)] = &[("username", "user"), ("password", "password"), ("enable-sftp", "true")];
    let none: &[(&str, &str)] = &[];
    let size: &[&[&str]] = &[&["size", "800", "600"]];
    let mouse: &[&[&str]] = &[&["mouse", "1", "1", "1"]];
    let file: &[&[&str]] = &[&["file", "1", "text/plain", "name"]];
    let resizes = vnc::resizes_desktops(&Guacd::start("stock")?)?;
    let cases = [
        ("vnc", none, size, resizes),
        ("vnc", none, mouse, true),
        ("vnc", none, clipboard, false),
        ("ssh", sftp, file, true),
        ("telnet", none, clipboard, false),
    ];
    for (protocol, arguments, instructions, ends_stock) in cases {
        ensure!(
            outlives("patched", protocol, arguments, instructions)?,
            "{protocol}: {:?} ended the session",
            instructions[0]
        );
        if ends_stock {
            ensure!(
                !outlives("stock", protocol, arguments, instructions)?,
                "stock: the session over {protocol} has survived {:?}",
                instructions[0]
            );
        }
    }
    Ok(())
}

fn formats_of_sound_end_no_session() -> Result<()> {
    // RDP is optional.
    if !support::built("patched")?.join("lib/libguac-client-rdp.so").exists() {
        return Ok(());
    }
    let outlives = |variant, format| {
        let instructions: &[&[&str]] = &[&["audio", "1", format], &["blob", "1", "AAAAAAAA"]];
        outlives(variant, "rdp", &[("enable-audio-input", "true")], instructions)
    };
    for format in [
        "audio/L8;rate=0",
        "audio/L16;rate=-1,channels=2",
        "audio/L16;rate=44100,channels=0",
        "audio/L16;rate=99999999999999999999",
        "audio/L16;rate=44100,channels=2",
    ] {
        ensure!(outlives("patched", format)?, "{format} ended the session");
    }
    ensure!(!outlives("stock", "audio/L8;rate=0")?, "stock: the session has survived a rate of 0");
    Ok(())
}

/// A VNC server without a password, with a desktop of one size and then, if there is one, of another.
fn vnc(mut stream: TcpStream, size: [u16; 2], then: Option<[u16; 2]>) -> std::io::Result<()> {
    vnc::greet(&mut stream, size)?;
    if let Some(size) = then {
        // FramebufferUpdate with one rectangle of the pseudo-encoding DesktopSize.
        let mut update = vec![0, 0, 0, 1, 0, 0, 0, 0];
        update.extend(size.map(u16::to_be_bytes).concat());
        update.extend((-223_i32).to_be_bytes());
        // And another update, as guacd shows nothing before.
        update.extend(vnc::PIXEL);
        stream.write_all(&update)?;
    }
    stay_silent(stream)
}

/// What becomes of a session with a desktop.
#[derive(Debug, PartialEq, Eq)]
enum Desktop {
    /// Its user sees it.
    Shown,
    /// Its user receives an error.
    Refused,
    /// The session's process has ended without an error.
    Crashed,
    /// The session's process has reserved gigabytes of memory.
    Reserved,
}

fn desktop(variant: &str, size: [u16; 2], then: Option<[u16; 2]>) -> Result<Desktop> {
    // It must not use up the memory of the machine.
    let guacd = Guacd::start_with(variant, "ulimit -v 6000000", "")?;
    let port = target(move |stream| vnc(stream, size, then))?;
    let mut user = guacd.user("vnc")?;
    user.handshake_with(&[("hostname", "127.0.0.1"), ("port", &port)])?;
    user.expect_id()?;
    let [width, height] = then.unwrap_or(size).map(|length| length.to_string());
    let shown = format!("4.size,1.0,{}.{width},{}.{height};", width.len(), height.len());
    let deadline = Instant::now() + 2 * SOON;
    while Instant::now() < deadline {
        let _ = user.hear();
        if user.heard.contains("5.error,") {
            return Ok(Desktop::Refused);
        }
        let Some(process) = guacd.connections().first().copied() else { return Ok(Desktop::Crashed) };
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let memory = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.strip_suffix(" kB"));
        if memory.is_some_and(|kib| kib.trim().parse::<u64>().is_ok_and(|kib| kib > 2 << 20)) {
            return Ok(Desktop::Reserved);
        }
        if user.heard.contains(&shown) {
            return Ok(Desktop::Shown);
        }
    }
    bail!("the desktop is neither shown nor refused: {:?}", user.heard)
}

fn desktops_of_absurd_size_are_refused() -> Result<()> {
    let (usual, absurd, larger) = ([800, 600], [65535, 65535], [24000, 24000]);
    for (size, then, expected) in [
        (usual, None, Desktop::Shown),
        (usual, Some([1024, 768]), Desktop::Shown),
        (absurd, None, Desktop::Refused),
        (usual, Some(absurd), Desktop::Refused),
        (larger, None, Desktop::Refused),
        (usual, Some([8193, 1]), Desktop::Refused),
    ] {
        let outcome = desktop("patched", size, then)?;
        ensure!(outcome == expected, "{size:?}, then {then:?}: {outcome:?}");
    }
    // Stock tries. Under a limit of memory it may also notice that it has too little, so it gets several chances.
    for _ in 0..10 {
        if let Desktop::Reserved | Desktop::Crashed = desktop("stock", larger, None)? {
            return Ok(());
        }
    }
    bail!("stock refuses a desktop of {larger:?}")
}

fn users_who_join_receive_the_last_frame_and_nothing_deadlocks() -> Result<()> {
    let (stock, patched) = (run_c("display_join", "stock")?, run_c("display_join", "patched")?);
    let sent = "the last frame is 64x64, and the user is sent";
    ensure!(patched == format!("{sent} that\njoins\n"), "patched: {patched}");
    match stock_lacks("0060")? {
        true => ensure!(stock == format!("{sent} 64x128\ndeadlocks\n"), "stock: {stock}"),
        false => ensure!(stock == patched, "stock: {stock}"),
    }
    Ok(())
}

fn users_who_join_a_display_miss_nothing_and_receive_nothing_twice() -> Result<()> {
    let (stock, patched) = (run_c("display_promotion", "stock")?, run_c("display_promotion", "patched")?);
    let [included, following] = ["a frame that the state includes:", "a frame that follows the state:"];
    ensure!(patched == format!("{included} not sent\n{following} sent\n"), "patched: {patched}");
    ensure!(stock.ends_with(&format!("{following} missed\n")), "stock: {stock}");
    Ok(())
}

fn users_who_join_see_what_is_selected() -> Result<()> {
    // What fills the layer of the selection of a user who joins, while something is selected and afterwards.
    let shown = |variant| -> Result<[Vec<Vec<String>>; 2]> {
        let guacd = Guacd::start(variant)?;
        let (mut owner, _, id) = telnet(&guacd)?;
        let mut drag = |from: [&str; 2], to: [&str; 2]| -> Result<()> {
            for (at, mask) in [(from, "0"), (from, "1"), (to, "1"), (to, "0")] {
                owner.send(&["mouse", at[0], at[1], mask])?;
            }
            Ok(())
        };
        drag(["20", "20"], ["200", "20"])?;
        owner.expect(",1.0,3.128,3.255,2.96;")?;
        let joined = || -> Result<Vec<Vec<String>>> {
            let mut guest = guacd.user(&id)?;
            guest.handshake(&[])?;
            guest.listen(Duration::from_secs(2))?;
            let filled = guest.instructions()?.into_iter().filter(|words| words[0] == "cfill");
            Ok(filled.map(|words| words[3..].to_vec()).collect())
        };
        let during = joined()?;
        owner.heard.clear();
        owner.send(&["mouse", "20", "100", "1"])?;
        owner.send(&["mouse", "20", "100", "0"])?;
        owner.expect(",1.0,1.0,1.0,1.0;")?;
        Ok([during, joined()?])
    };
    let selection = ["0", "128", "255", "96"].map(str::to_owned).to_vec();
    let nothing = ["0", "0", "0", "0"].map(str::to_owned).to_vec();
    let [during, afterwards] = shown("patched")?;
    ensure!(during.contains(&selection) && !during.contains(&nothing), "patched: {during:?}");
    ensure!(afterwards.contains(&nothing) && !afterwards.contains(&selection), "patched: {afterwards:?}");
    let [during, _] = shown("stock")?;
    ensure!(!during.contains(&selection), "stock: {during:?}");
    Ok(())
}

fn text_may_end_within_a_character() -> Result<()> {
    let pasted = |variant| -> Result<Vec<u8>> {
        let guacd = Guacd::start(variant)?;
        let (mut user, received, _) = telnet(&guacd)?;
        // "a", and the first byte of a letter.
        user.send(&["clipboard", "1", "text/plain"])?;
        user.send(&["blob", "1", "YcM="])?;
        user.send(&["end", "1"])?;
        // The middle button.
        user.send(&["mouse", "10", "10", "2"])?;
        user.send(&["mouse", "10", "10", "0"])?;
        Ok(take(&received))
    };
    let (patched, stock) = (pasted("patched")?, pasted("stock")?);
    // Some releases do not look for characters in it.
    if stock == b"a\xC3" {
        ensure!(patched == stock, "{:?}", String::from_utf8_lossy(&patched));
        return Ok(());
    }
    ensure!(patched == "a\u{FFFD}".as_bytes(), "{:?}", String::from_utf8_lossy(&patched));
    ensure!(stock.len() > 1000, "stock: {} bytes", stock.len());
    Ok(())
}

fn a_user_who_leaves_with_an_open_stream_silences_nobody() -> Result<()> {
    let is_heard = |variant| -> Result<bool> {
        let guacd = Guacd::start(variant)?;
        let (mut owner, received, id) = telnet(&guacd)?;
        let mut guest = guacd.user(&id)?;
        guest.handshake_with(&[])?;
        guest.expect_id()?;
        guest.send(&["pipe", "1", "text/plain", "STDIN"])?;
        guest.expect("Now reading STDIN from stream.")?;
        drop(guest);
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            owner.send(&["key", "120", "1"])?;
            owner.send(&["key", "120", "0"])?;
            owner.hear()?;
            if received.recv_timeout(Duration::from_millis(50)).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    };
    ensure!(is_heard("patched")?, "what the owner types is ignored");
    ensure!(!is_heard("stock")?, "stock ends the streams of those who leave");
    Ok(())
}

fn a_key_while_prompts_are_searched_for_ends_no_session() -> Result<()> {
    let outcome = |variant: &str| -> Result<Outcome> {
        let (typed, is_typed) = channel::<()>();
        let target = move |mut stream: TcpStream| {
            stream.write_all(b"\x1b]482202;1;ready\x07\n")?;
            // The search in these takes a second or more.
            stream.write_all(&[b'a'; 100])?;
            let _ = is_typed.recv();
            stream.write_all(b"\n")?;
            stream.write_all(PROOF)?;
            stay_silent(stream)
        };
        let arguments = [("username", "user"), ("username-regex", r"(a*)(a*)\2\1b")];
        let mut session = Session::start_with(variant, &arguments, target)?;
        session.user.expect("4.pipe,")?;
        // Until the search has begun.
        thread::sleep(Duration::from_millis(200));
        session.user.send(&["key", "120", "1"])?;
        drop(typed);
        session.outcome()
    };
    let patched = outcome("patched")?;
    ensure!(patched == Outcome::Proven, "{patched:?}");
    let stock = outcome("stock")?;
    ensure!(stock == Outcome::Ended, "stock: {stock:?}");
    Ok(())
}

fn sizes_and_breaks_reach_a_telnet_server() -> Result<()> {
    const DO_NAWS: &[u8] = &[255, 253, 31];
    let received = |variant: &str| -> Result<Vec<u8>> {
        let guacd = Guacd::start(variant)?;
        let (to, received) = channel();
        let port = target(move |mut stream| {
            stream.write_all(DO_NAWS)?;
            stream.write_all(b"\x1b]482202;1;ready\x07")?;
            let mut byte = [0];
            while stream.read(&mut byte)? > 0 && to.send(byte[0]).is_ok() {}
            Ok(())
        })?;
        let mut user = guacd.user("telnet")?;
        user.handshake_with(&[("hostname", "127.0.0.1"), ("port", &port)])?;
        user.expect("4.pipe,")?;
        let mut all = Vec::new();
        // Each is sent once the bytes that end the one before have arrived. guacd sends the first size by itself.
        let sent: [(&[&str], &[u8]); 5] = [
            (&["nop"], &[255, 240]),
            (&["size", "640", "480"], &[255, 240]),
            (&["key", "120", "1"], b"x"),
            (&["key", "65387", "1"], &[255, 243]),
            (&["key", "121", "1"], b"y"),
        ];
        for (parts, end) in sent {
            user.send(parts)?;
            loop {
                all.push(received.recv_timeout(SOON).with_context(|| format!("{parts:?} after {all:?}"))?);
                if all.ends_with(end) {
                    break;
                }
            }
        }
        Ok(all)
    };
    let (patched, stock) = (received("patched")?, received("stock")?);
    ensure!(patched == stock, "{patched:?} instead of {stock:?}");
    Ok(())
}

fn names_of_pods_are_not_used_as_paths() -> Result<()> {
    let requested = |variant: &str| -> Result<Option<String>> {
        let guacd = Guacd::start(variant)?;
        let (to, request) = channel();
        let port = target(move |mut stream| {
            let mut buffer = [0; 1024];
            let length = stream.read(&mut buffer)?;
            let _ = to.send(String::from_utf8_lossy(&buffer[..length]).into_owned());
            Ok(())
        })?;
        let mut user = guacd.user("kubernetes")?;
        user.handshake_with(&[("hostname", "127.0.0.1"), ("port", &port), ("pod", "..")])?;
        user.expect("5.error,")?;
        Ok(request.try_recv().ok())
    };
    let patched = requested("patched")?;
    ensure!(patched.is_none(), "{patched:?}");
    let stock = requested("stock")?.context("stock: requested nothing")?;
    ensure!(stock.starts_with("GET /api/v1/namespaces/default/pods/../attach"), "stock: {stock}");
    Ok(())
}

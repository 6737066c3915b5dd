//! What happens to input that a target does not read, or reads late? Most tests also show the fault of stock.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use crate::input::is_served;
use crate::support::guacd::Guacd;
use crate::support::processes::cpu_time;
use crate::support::sshd::{ED25519, Sshd};
use crate::support::target::{target, target_with_a_small_buffer};
use crate::support::tcp::connections;
use crate::support::user::{User, blobs, clipboard, instruction};
use crate::support::{SOON, wait_until};
use crate::terminal::{Outcome, PROOF, Session};

crate::tests! {
    Source:
        text_pasted_into_a_target_that_does_not_read_freezes_nothing,
        a_stream_to_a_target_that_does_not_read_freezes_nothing,
        a_break_for_a_target_that_does_not_read_blocks_nobody,
        text_pasted_into_a_pod_arrives_completely,
        a_pod_that_reads_late_learns_the_last_size;
    SourceAndSshd:
        a_stream_to_a_slow_target_arrives_completely,
        a_user_who_pastes_into_a_target_that_does_not_read_can_leave;
}

/// What becomes of a session whose target never reads. Once the user has sent `input`, the target prints the proof.
fn outcome_after(variant: &str, input: &[String]) -> Result<Outcome> {
    let (sent, is_sent) = channel::<()>();
    let target = move |mut stream: TcpStream| {
        stream.write_all(b"\x1b]482202;1;ready\x07")?;
        let _ = is_sent.recv();
        stream.write_all(&vec![b' '; 1_000_000])?;
        stream.write_all(PROOF)?;
        // The connection stays open.
        thread::sleep(10 * SOON);
        Ok(())
    };
    let mut session = Session::start(variant, target)?;
    session.user.expect("4.pipe,")?;
    // If guacd waits for the target, it stops reading.
    session.user.stream.set_write_timeout(Some(SOON / 5))?;
    for instruction in input {
        if session.user.stream.write_all(instruction.as_bytes()).is_err() {
            break;
        }
    }
    drop(sent);
    session.outcome()
}

fn freezes_only_stock(input: &[String]) -> Result<()> {
    let patched = outcome_after("patched", input).context("patched")?;
    ensure!(patched == Outcome::Proven, "{patched:?}");
    let stock = outcome_after("stock", input).context("stock")?;
    ensure!(stock != Outcome::Proven, "stock: {stock:?}");
    Ok(())
}

fn text_pasted_into_a_target_that_does_not_read_freezes_nothing() -> Result<()> {
    let mut input = vec![clipboard(240_000)];
    // Ctrl+Shift+V pastes 240 kB each time.
    input.push(instruction(&["key", "65507", "1"]));
    input.extend((0..40).map(|_| instruction(&["key", "86", "1"])));
    freezes_only_stock(&input)
}

fn a_stream_to_a_target_that_does_not_read_freezes_nothing() -> Result<()> {
    let mut input = vec![instruction(&["pipe", "1", "text/plain", "STDIN"])];
    input.extend(blobs(9_600_000));
    freezes_only_stock(&input)
}

fn a_user_who_pastes_into_a_target_that_does_not_read_can_leave() -> Result<()> {
    let sshd = Sshd::start(&[("key", ED25519)])?;
    let guacd = Guacd::start("patched")?;
    let mut user = guacd.user("ssh")?;
    let command = r"stty raw -echo; printf '\033]482202;1;ready\007'; exec sleep 60";
    // With this interval the session can wait for 60 s if nothing happens.
    let more = [("command", command), ("server-alive-interval", "60")];
    sshd.log_in(&mut user, &sshd.key("key")?, &more)?;
    user.expect("4.pipe,")?;
    user.stream.write_all(clipboard(240_000).as_bytes())?;
    // More than the window of the SSH channel.
    user.send(&["key", "65507", "1"])?;
    for _ in 0..40 {
        user.send(&["key", "86", "1"])?;
        user.hear()?;
    }
    let process = *guacd.connections().first().context("no session")?;
    // Once the window is full, the session uses no more processor time.
    let mut busy = (Duration::MAX, Instant::now());
    while busy.1.elapsed() < SOON / 5 {
        user.hear()?;
        let time = cpu_time(process)?;
        if time != busy.0 {
            busy = (time, Instant::now());
        }
    }
    drop(user);
    guacd.wait_for_the_end_of_connections(2 * SOON)?;
    // guacd kills a session that does not end within five seconds.
    let log = guacd.log()?;
    ensure!(!log.contains("did not terminate in a timely manner"), "{log}");
    Ok(())
}

/// How many bytes guacd has sent to the target on a port that the target has not read.
fn unread_bytes(port: u16) -> Result<usize> {
    let connections = connections()?;
    let sent = connections.iter().filter(|end| end.remote == port).map(|end| end.unsent);
    let received = connections.iter().filter(|end| end.local == port).map(|end| end.unread);
    Ok(sent.chain(received).sum())
}

/// Sends something, and returns whether guacd soon sends so many bytes more to a target that does not read them.
fn grows(port: u16, user: &mut User, sent: &str, bytes: usize) -> Result<bool> {
    let expected = unread_bytes(port)? + bytes;
    user.stream.write_all(sent.as_bytes())?;
    let has_grown = || unread_bytes(port).is_ok_and(|bytes| bytes >= expected);
    Ok(wait_until("guacd sends more", SOON / 5, has_grown).is_ok())
}

fn a_break_for_a_target_that_does_not_read_blocks_nobody() -> Result<()> {
    let is_free = |variant: &str| -> Result<bool> {
        let guacd = Guacd::start(variant)?;
        let (done, is_done) = channel::<()>();
        let port = target_with_a_small_buffer(move |mut stream| {
            // IAC WILL ECHO
            stream.write_all(b"\xff\xfb\x01\x1b]482202;1;ready\x07")?;
            let _ = is_done.recv();
            Ok(())
        })?;
        let mut user = guacd.user("telnet")?;
        user.handshake(&["127.0.0.1", &port])?;
        user.expect("4.pipe,")?;
        let port = port.parse()?;
        user.stream.write_all(clipboard(30_000).as_bytes())?;
        user.send(&["key", "65507", "1"])?;
        // Pastes until the sockets are full. The terminal has room for the rest of the last paste.
        let paste = instruction(&["key", "86", "1"]);
        while grows(port, &mut user, &paste, 30_000)? {}
        user.send(&["key", "65507", "0"])?;
        // The kernel can add some to packets that are not full.
        let breaks = instruction(&["key", "65387", "1"]).repeat(10_000);
        while grows(port, &mut user, &breaks, 20_000)? {}
        user.heard.clear();
        let served = is_served(&guacd, &mut user).unwrap_or_default();
        drop(done);
        Ok(served)
    };
    ensure!(is_free("patched")?, "the session does not answer its user");
    ensure!(!is_free("stock")?, "stock: the session answers its user");
    Ok(())
}

/// SHA-1, which the handshake of WebSocket needs.
fn sha1(message: &[u8]) -> [u8; 20] {
    let mut padded = message.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend((message.len() as u64 * 8).to_be_bytes());
    let mut state: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    for block in padded.chunks(64) {
        let mut words: Vec<u32> = block
            .chunks(4)
            .map(|word| word.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
            .collect();
        for i in 16..80 {
            words.push((words[i - 3] ^ words[i - 8] ^ words[i - 14] ^ words[i - 16]).rotate_left(1));
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (i, word) in words.iter().enumerate() {
            let (f, k) = match i / 20 {
                0 => ((b & c) | (!b & d), 0x5a82_7999),
                1 => (b ^ c ^ d, 0x6ed9_eba1),
                2 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6_u32),
            };
            let next = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k).wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (sum, part) in state.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(part);
        }
    }
    let mut digest = [0; 20];
    for (bytes, word) in digest.chunks_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

/// Accepts a WebSocket connection, and opens a pipe in the terminal.
fn accept_websocket(stream: &mut TcpStream) -> Result<()> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        request.push(byte[0]);
    }
    let request = String::from_utf8(request)?;
    let key = request
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"))
        .context("no key")?
        .1;
    let accept = STANDARD.encode(sha1(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes()));
    stream.write_all(
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        )
        .as_bytes(),
    )?;
    let output = b"\x01\x1b]482202;1;ready\x07";
    stream.write_all(&[&[0x82, output.len() as u8], &output[..]].concat())?;
    Ok(())
}

/// Reads a message of WebSocket, and unmasks it.
fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    let length = match head[1] & 0x7f {
        126 => {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            usize::from(u16::from_be_bytes(length))
        }
        length => usize::from(length),
    };
    let mut mask = [0; 4];
    stream.read_exact(&mut mask)?;
    let mut message = vec![0; length];
    stream.read_exact(&mut message)?;
    for (byte, mask) in message.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok(message)
}

fn text_pasted_into_a_pod_arrives_completely() -> Result<()> {
    let arrived = |variant: &str| -> Result<usize> {
        let guacd = Guacd::start(variant)?;
        let (to, received) = channel();
        let port = target(move |mut stream| {
            accept_websocket(&mut stream).map_err(std::io::Error::other)?;
            loop {
                let message = read_message(&mut stream)?;
                // Channel 0 is the pod's input.
                if message.first() == Some(&0) {
                    to.send(message.len() - 1).map_err(std::io::Error::other)?;
                }
            }
        })?;
        let mut user = guacd.user("kubernetes")?;
        user.handshake_with(&[("hostname", "127.0.0.1"), ("port", &port), ("pod", "pod")])?;
        user.expect("4.pipe,")?;
        user.stream.write_all(clipboard(240_000).as_bytes())?;
        user.send(&["key", "65507", "1"])?;
        user.send(&["key", "86", "1"])?;
        let mut sum = 0;
        while sum < 240_000 {
            let Ok(length) = received.recv_timeout(SOON / 2) else { break };
            sum += length;
        }
        Ok(sum)
    };
    let patched = arrived("patched")?;
    ensure!(patched == 240_000, "{patched} bytes arrived");
    let stock = arrived("stock")?;
    ensure!(stock < 240_000, "stock: {stock} bytes arrived");
    Ok(())
}

/// The last size of the terminal that a pod receives, which either reads at once, or only after all sizes were sent.
fn last_size(variant: &str, reads_late: bool) -> Result<String> {
    let guacd = Guacd::start(variant)?;
    let (to, received) = channel();
    let (sent, is_sent) = channel::<()>();
    let port = target_with_a_small_buffer(move |mut stream| {
        accept_websocket(&mut stream).map_err(std::io::Error::other)?;
        let _ = is_sent.recv();
        loop {
            to.send(read_message(&mut stream)?).map_err(std::io::Error::other)?;
        }
    })?;
    let mut user = guacd.user("kubernetes")?;
    user.handshake_with(&[("hostname", "127.0.0.1"), ("port", &port), ("pod", "pod")])?;
    user.expect("4.pipe,")?;
    if reads_late {
        user.stream.write_all(clipboard(30_000).as_bytes())?;
        user.send(&["key", "65507", "1"])?;
        // Pastes until the sockets are full.
        let paste = instruction(&["key", "86", "1"]);
        let port = port.parse()?;
        while grows(port, &mut user, &paste, 30_000)? {}
    } else {
        sent.send(())?;
    }
    for width in ["300", "400", "500", "600", "700"] {
        user.send(&["size", width, "500"])?;
        ensure!(is_served(&guacd, &mut user)?, "{variant}: the session ended");
    }
    drop(sent);
    let mut size = None;
    while let Ok(message) = received.recv_timeout(SOON / 5) {
        // Channel 4 is for sizes.
        if message.first() == Some(&4) {
            size = Some(message);
        }
    }
    Ok(String::from_utf8(size.context("no size arrived")?)?)
}

fn a_pod_that_reads_late_learns_the_last_size() -> Result<()> {
    let size = last_size("patched", false)?;
    let patched = last_size("patched", true)?;
    ensure!(patched == size, "{patched:?} instead of {size:?}");
    // Whether it arrives with stock depends on which of the messages that wait is dropped.
    Ok(())
}

/// Streams 9 MB to a program that starts to read after a second. Returns how many bytes of them it receives.
fn received(variant: &str, sshd: &Sshd) -> Result<usize> {
    let dir = TempDir::new()?;
    let path = dir.path().join("received");
    let command =
        format!("stty raw -echo; printf '\\033]482202;1;ready\\007'; sleep 1; exec cat > {}", path.display());
    let guacd = Guacd::start(variant)?;
    let mut user = guacd.user("ssh")?;
    sshd.log_in(&mut user, &sshd.key("key")?, &[("command", &command)])?;
    user.expect("4.pipe,")?;
    let mut to = user.stream.try_clone()?;
    let writer = thread::spawn(move || {
        to.write_all(instruction(&["pipe", "1", "text/plain", "STDIN"]).as_bytes())?;
        for blob in blobs(9_000_000) {
            to.write_all(blob.as_bytes())?;
        }
        to.write_all(instruction(&["end", "1"]).as_bytes())
    });
    // Then types a full stop until one arrives.
    let deadline = Instant::now() + 6 * SOON;
    let mut typed = Instant::now();
    loop {
        let _ = user.stream.read(&mut [0; 65536]);
        if writer.is_finished() && typed.elapsed() > Duration::from_millis(100) {
            user.send(&["key", "46", "1"])?;
            typed = Instant::now();
        }
        let received = fs::read(&path).unwrap_or_default();
        if received.last() == Some(&b'.') {
            return Ok(received.iter().filter(|byte| **byte == b'x').count());
        }
        ensure!(Instant::now() < deadline, "{variant}: {} bytes and no end arrived", received.len());
    }
}

fn a_stream_to_a_slow_target_arrives_completely() -> Result<()> {
    let sshd = Sshd::start(&[("key", ED25519)])?;
    let patched = received("patched", &sshd)?;
    ensure!(patched == 9_000_000, "{patched} bytes arrived");
    let stock = received("stock", &sshd);
    ensure!(!matches!(stock, Ok(9_000_000)), "stock lost nothing");
    Ok(())
}

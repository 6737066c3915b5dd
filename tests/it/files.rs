//! What becomes of files: those that users and targets name, and those that guacd writes? Most tests also show the fault of stock.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::c::run_c_with_sources;
use crate::support::guacd::Guacd;
use crate::support::sshd::{ED25519, Sshd};
use crate::support::target::{a_target_that_never_rests, stay_silent, target};
use crate::support::user::{Instructions, User};
use crate::support::{SOON, wait_until};

crate::tests! {
    SourceAndSshd:
        a_listing_over_sftp_is_json_whatever_the_names_are;
    Source:
        json_is_whole_without_assertions,
        a_title_in_any_encoding_is_sent_as_utf8,
        recordings_and_typescripts_stay_in_their_directories,
        a_recording_in_a_directory_below_is_written,
        a_long_name_of_a_recording_ends_no_session,
        without_room_a_recording_ends_and_its_session_goes_on,
        at_the_limit_of_files_a_recording_ends_and_its_session_goes_on,
        a_drive_is_listed_and_closed_as_it_should_be;
}

fn a_listing_over_sftp_is_json_whatever_the_names_are() -> Result<()> {
    let dir = TempDir::new()?;
    let names: [&[u8]; 7] = [
        b"new\nline",
        b"\x01\x1b\t\x7f",
        b"\"quotes\\",
        b"caf\xe9",
        b"cut off \xf0\x9f",
        b"\xed\xa0\x80",
        "\u{fc}\u{1f600}\u{fffd}".as_bytes(),
    ];
    for name in names {
        fs::write(dir.path().join(OsString::from_vec(name.to_vec())), "")?;
    }
    let sshd = Sshd::start(&[("key", ED25519)])?;
    let listing = |variant| -> Result<String> {
        let guacd = Guacd::start(variant)?;
        let mut user = Session::start(
            &guacd,
            "ssh",
            &[
                ("hostname", "127.0.0.1"),
                ("port", &sshd.port.to_string()),
                ("username", &sshd.user),
                ("private-key", &sshd.key("key")?),
                ("enable-sftp", "true"),
            ],
        )?;
        let object = user.expect("filesystem")?[1].clone();
        user.user.send(&["get", &object, &dir.path().to_string_lossy()])?;
        let stream = user.expect("body")?[2].clone();
        let mut listing = Vec::new();
        loop {
            user.user.send(&["ack", &stream, "OK", "0"])?;
            match user.expect_any(&["blob", "end"], |parts| parts[1] == stream)? {
                parts if parts[0] == "blob" => listing.extend(STANDARD.decode(&parts[2])?),
                _ => break,
            }
        }
        Ok(String::from_utf8_lossy(&listing).into_owned())
    };
    let patched = listing("patched")?;
    let parsed: Value = serde_json::from_str(&patched).with_context(|| patched.clone())?;
    let found: BTreeSet<String> = parsed.as_object().context("no object")?.keys().cloned().collect();
    let expected = [
        "new\nline",
        "\u{1}\u{1b}\t\u{7f}",
        "\"quotes\\",
        "caf\u{fffd}",
        "cut off \u{fffd}\u{fffd}",
        "\u{fffd}\u{fffd}\u{fffd}",
        "\u{fc}\u{1f600}\u{fffd}",
    ];
    let expected: BTreeSet<String> =
        expected.iter().map(|name| format!("{}/{name}", dir.path().display())).collect();
    ensure!(found == expected, "{found:?} instead of {expected:?}");

    let stock = listing("stock")?;
    ensure!(serde_json::from_str::<Value>(&stock).is_err(), "stock: {stock}");
    Ok(())
}

fn json_is_whole_without_assertions() -> Result<()> {
    let written = run_c_with_sources("no_assertions", "patched", &[])?;
    ensure!(written == r#"{"a\u000ab":"c"}"#, "patched: {written}");
    let written = run_c_with_sources("no_assertions", "stock", &[])?;
    ensure!(!written.starts_with('{'), "stock: {written}");
    Ok(())
}

fn a_title_in_any_encoding_is_sent_as_utf8() -> Result<()> {
    let title = |variant| -> Result<Vec<u8>> {
        let guacd = Guacd::start(variant)?;
        // An unfinished character, with whole ones after it and in it.
        let port = target(|mut stream| {
            stream.write_all(b"\x1b]2;caf\xe9 \xf0ab\xc3\xbc\x07")?;
            stay_silent(stream)
        })?;
        let mut user = guacd.user("telnet")?;
        user.handshake(&["127.0.0.1", &port])?;
        let mut heard = Vec::new();
        let deadline = Instant::now() + SOON;
        loop {
            ensure!(Instant::now() < deadline, "no title: {}", String::from_utf8_lossy(&heard));
            let mut buffer = [0; 4096];
            let length = std::io::Read::read(&mut user.stream, &mut buffer).unwrap_or_default();
            heard.extend_from_slice(&buffer[..length]);
            let start = heard.windows(7).position(|bytes| bytes == b"4.name,");
            let rest = start.map(|start| &heard[start + 7..]).unwrap_or_default();
            if let Some(end) = rest.iter().position(|byte| *byte == b';') {
                return Ok(rest[..end].to_vec());
            }
        }
    };
    let patched = title("patched")?;
    let expected = "9.caf\u{fffd} \u{fffd}ab\u{fc}";
    ensure!(patched == expected.as_bytes(), "patched: {}", String::from_utf8_lossy(&patched));
    let stock = title("stock")?;
    ensure!(std::str::from_utf8(&stock).is_err(), "stock: {}", String::from_utf8_lossy(&stock));
    Ok(())
}

fn recordings_and_typescripts_stay_in_their_directories() -> Result<()> {
    // What is outside of the directories after a session with such names, and guacd's log.
    let outside = |variant| -> Result<(BTreeSet<String>, String)> {
        let dir = TempDir::new()?;
        let inside = dir.path().join("inside");
        fs::create_dir_all(inside.join("below"))?;
        let inside = inside.to_string_lossy();
        let guacd = Guacd::start(variant)?;
        let target = a_target_that_never_rests()?;
        for (recording, typescript) in
            [("../recording-1", "../typescript-1"), ("below/../../recording-2", "below/../../typescript-2")]
        {
            let names = [
                ("recording-path", &*inside),
                ("recording-name", recording),
                ("typescript-path", &*inside),
                ("typescript-name", typescript),
            ];
            let mut user = Session::telnet(&guacd, &target, &names)?;
            user.frames(3)?;
        }
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(dir.path())? {
            names.insert(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok((names, guacd.log()?))
    };
    let (names, log) = outside("patched")?;
    ensure!(names == BTreeSet::from(["inside".to_owned()]), "patched: {names:?}");
    for (kind, name) in [("recording", "../recording-1"), ("typescript", "below/../../typescript-2")] {
        let words = format!("Creation of {kind} failed: The name \"{name}\" leaves the directory");
        ensure!(log.contains(&words), "{words} is not in {log}");
    }
    let (names, _) = outside("stock")?;
    ensure!(names.contains("recording-1") && names.contains("typescript-2"), "stock: {names:?}");
    Ok(())
}

fn a_recording_in_a_directory_below_is_written() -> Result<()> {
    let dir = TempDir::new()?;
    fs::create_dir(dir.path().join("a..b"))?;
    let guacd = Guacd::start("patched")?;
    let target = a_target_that_never_rests()?;
    let path = dir.path().to_string_lossy();
    for _ in 0..2 {
        let names = [("recording-path", &*path), ("recording-name", "a..b/...")];
        let mut user = Session::telnet(&guacd, &target, &names)?;
        user.frames(20)?;
    }
    // The second recording gets another name. Both are whole once their processes have ended.
    for name in ["...", "....1"] {
        let file = dir.path().join("a..b").join(name);
        let is_written = || recorded(&file).is_ok_and(|names| names.contains("sync"));
        wait_until("a recording is written", SOON, is_written)
            .with_context(|| format!("{}: {:?}", file.display(), recorded(&file)))?;
    }
    Ok(())
}

fn a_long_name_of_a_recording_ends_no_session() -> Result<()> {
    let overflows = |variant| -> Result<bool> {
        let guacd = Guacd::start(variant)?;
        let target = a_target_that_never_rests()?;
        // Around the size of the buffer, one of these hits what the compiler keeps behind it.
        for length in (2040..2064).step_by(2) {
            let name = "x".repeat(length);
            let names = [("recording-path", "/tmp"), ("recording-name", &*name)];
            let mut user = Session::telnet(&guacd, &target, &names)?;
            if user.frames(1).is_err() {
                break;
            }
        }
        let log = guacd.log()?;
        ensure!(log.contains("Creation of recording failed: File name too long"), "{variant}: {log}");
        Ok(log.contains("stack smashing detected"))
    };
    ensure!(!overflows("patched")?, "patched: a name is written beyond its buffer");
    ensure!(overflows("stock")?, "stock: no name is written beyond its buffer");
    Ok(())
}

fn without_room_a_recording_ends_and_its_session_goes_on() -> Result<()> {
    let log = |variant| -> Result<String> {
        let dir = TempDir::new()?;
        // A full disk.
        symlink("/dev/full", dir.path().join("recording"))?;
        symlink("/dev/full", dir.path().join("typescript"))?;
        let guacd = Guacd::start(variant)?;
        let mut user = recorded_session(&guacd, dir.path())?;
        user.frames(30)?;
        guacd.log()
    };
    let patched = log("patched")?;
    let words = "Recording of session is incomplete, and ends here: No space left on device";
    ensure!(patched.matches(words).count() == 1, "{patched}");
    let words = "Creation of typescript failed: No space left on device";
    ensure!(patched.matches(words).count() == 1, "{patched}");
    let stock = log("stock")?;
    ensure!(!stock.contains("No space left"), "stock: {stock}");
    Ok(())
}

fn at_the_limit_of_files_a_recording_ends_and_its_session_goes_on() -> Result<()> {
    // The shell counts in blocks of 512 bytes.
    let (limit, bytes) = ("ulimit -f 64", 64 * 512);
    let dir = TempDir::new()?;
    let guacd = Guacd::start_with("patched", limit, "")?;
    let mut user = recorded_session(&guacd, dir.path())?;
    for kind in ["Recording of session", "Typescript of terminal session"] {
        let words = format!("{kind} is incomplete, and ends here: File too large");
        let deadline = Instant::now() + 4 * SOON;
        while !guacd.log()?.contains(&words) {
            ensure!(Instant::now() < deadline, "{words} is not in {}", guacd.log()?);
            user.frames(5)?;
        }
        user.frames(5)?;
        ensure!(guacd.log()?.matches(&words).count() == 1, "{}", guacd.log()?);
    }
    // What was written has no gaps.
    let file = dir.path().join("recording");
    ensure!(fs::metadata(&file)?.len() == bytes, "{} bytes", fs::metadata(&file)?.len());
    let recorded = recorded(&file)?;
    ensure!(recorded.contains("sync"), "{recorded}");

    let guacd = Guacd::start_with("stock", limit, "")?;
    let dir = TempDir::new()?;
    let mut user = recorded_session(&guacd, dir.path())?;
    ensure!((0..200).any(|_| user.frames(5).is_err()), "stock: the session goes on");
    Ok(())
}

fn a_drive_is_listed_and_closed_as_it_should_be() -> Result<()> {
    let dir = TempDir::new()?;
    let said = run_c_with_sources("drive", "patched", &[dir.path()])?;
    let expected = "listed: 300\nclosed twice: 0\nwritten to another file: 0\ncharacters of a name of 200: 200\n\
                    behind the buffer: ---\ndownloaded: 200\n";
    ensure!(said == expected, "patched: {said}");
    let dir = TempDir::new()?;
    let said = run_c_with_sources("drive", "stock", &[dir.path()])?;
    for line in expected.lines() {
        ensure!(!said.contains(&format!("{line}\n")), "stock: {said}");
    }
    Ok(())
}

/// A session over telnet with a recording and a typescript in a directory, where files of these names may be already.
fn recorded_session(guacd: &Guacd, dir: &Path) -> Result<Session> {
    let path = dir.to_string_lossy();
    let names = [
        ("recording-path", &*path),
        ("recording-name", "recording"),
        ("recording-write-existing", "true"),
        ("typescript-path", &*path),
        ("typescript-name", "typescript"),
        ("typescript-write-existing", "true"),
    ];
    Session::telnet(guacd, &a_target_that_never_rests()?, &names)
}

/// The names of the instructions in a recording. None of them may be torn, except the last.
fn recorded(file: &Path) -> Result<String> {
    let bytes = fs::read(file).with_context(|| file.display().to_string())?;
    let names: Vec<_> =
        Instructions::default().take(&bytes)?.into_iter().map(|mut parts| parts.remove(0)).collect();
    Ok(names.join(" "))
}

/// A user's session, whose frames are answered.
struct Session {
    user: User,
    instructions: Instructions,
    heard: Vec<Vec<String>>,
}

impl Session {
    /// Starts a session with these arguments of its protocol.
    fn start(guacd: &Guacd, protocol: &str, arguments: &[(&str, &str)]) -> Result<Session> {
        let mut user = guacd.user(protocol)?;
        user.handshake_with(arguments)?;
        let mut session = Session { user, instructions: Instructions::default(), heard: Vec::new() };
        session.expect("ready")?;
        Ok(session)
    }

    /// Starts a session over telnet to a target on this port, with more arguments.
    fn telnet(guacd: &Guacd, port: &str, more: &[(&str, &str)]) -> Result<Session> {
        Session::start(guacd, "telnet", &[&[("hostname", "127.0.0.1"), ("port", port)], more].concat())
    }

    /// Waits for an instruction.
    fn expect(&mut self, name: &str) -> Result<Vec<String>> {
        self.expect_any(&[name], |_| true)
    }

    /// Waits for one of these instructions for which `is_it` is true.
    fn expect_any(&mut self, names: &[&str], is_it: impl Fn(&[String]) -> bool) -> Result<Vec<String>> {
        let deadline = Instant::now() + SOON;
        loop {
            while !self.heard.is_empty() {
                let parts = self.heard.remove(0);
                if parts[0] == "sync" {
                    self.user.send(&["sync", &parts[1]])?;
                }
                if names.contains(&parts[0].as_str()) && is_it(&parts) {
                    return Ok(parts);
                }
                if parts[0] == "error" || parts[0] == "disconnect" {
                    bail!("{parts:?} instead of {names:?}");
                }
            }
            ensure!(Instant::now() < deadline, "none of {names:?} came");
            ensure!(self.user.hear()?, "the connection ended before any of {names:?}");
            let heard = std::mem::take(&mut self.user.heard);
            self.heard.extend(self.instructions.take(heard.as_bytes())?);
        }
    }

    /// Waits for so many frames.
    fn frames(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            self.expect("sync")?;
        }
        Ok(())
    }
}

//! What becomes of files: those that users and targets name, and those that guacd writes? Most tests also show the fault of stock.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::c::{Preloaded, run_c_with_sources};
use crate::support::differences::stock_lacks;
use crate::support::guacd::Guacd;
use crate::support::processes::{descriptors, kill};
use crate::support::sshd::{ED25519, Sshd};
use crate::support::target::{a_target_that_never_rests, stay_silent, target};
use crate::support::user::{Instructions, User, instruction};
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
        without_room_a_recording_ends_and_its_session_goes_on of "0067",
        at_the_limit_of_files_a_recording_ends_and_its_session_goes_on,
        fifos_in_place_of_recordings_block_no_session of "0067",
        a_drive_is_listed_and_closed_as_it_should_be,
        a_file_of_a_drive_that_somebody_has_a_lease_of_is_opened,
        a_file_of_a_drive_that_is_one_too_many_ends_no_session,
        users_who_join_receive_the_color_scheme_as_it_was_set;
    SourceAndSshd:
        two_users_can_upload_at_once,
        a_cancelled_download_leaves_no_open_file,
        a_download_freezes_nothing_while_the_sftp_server_is_silent,
        a_fifo_on_the_server_is_not_downloaded,
        downloads_that_a_program_requests_are_opened_one_by_one,
        a_download_for_which_there_is_no_memory_ends_no_session,
        with_keep_alives_slow_answers_over_sftp_are_waited_for;
    Minutes:
        a_user_who_waits_for_a_silent_sftp_server_can_leave;
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
        let mut user = Session::ssh(&guacd, &sshd, &[])?;
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
            let length = user.stream.read(&mut buffer).unwrap_or_default();
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
    let leaves = stock_lacks("0030")?;
    for (kind, name) in [("recording", "../recording-1"), ("typescript", "below/../../typescript-2")] {
        let reason = match leaves {
            true => &*format!("The name \"{name}\" leaves the directory"),
            false => "Filename refers to another directory",
        };
        let words = format!("Creation of {kind} failed: {reason}");
        ensure!(log.contains(&words), "{words} is not in {log}");
    }
    let (names, log) = outside("stock")?;
    if leaves {
        ensure!(names.contains("recording-1") && names.contains("typescript-2"), "stock: {names:?}");
    } else {
        // It gives another reason, or none.
        let is_refused = log.contains("Creation of recording failed") && !log.contains("another directory");
        ensure!(is_refused && names == BTreeSet::from(["inside".to_owned()]), "stock: {names:?}, {log}");
    }
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
    if !stock_lacks("0030")? {
        // Upstream's own mend refuses directories altogether.
        let (log, inside) = (guacd.log()?, fs::read_dir(dir.path().join("a..b"))?.count());
        let refused =
            log.matches("Creation of recording failed: Filename refers to another directory").count();
        ensure!(refused == 2 && inside == 0, "{inside} files, {log}");
        return Ok(());
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
    let lacks = stock_lacks("0030")?;
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
        let reason = if lacks { "File name too long" } else { "Insufficient space in provided buffer" };
        ensure!(log.contains(&format!("Creation of recording failed: {reason}")), "{variant}: {log}");
        Ok(log.contains("stack smashing detected"))
    };
    ensure!(!overflows("patched")?, "patched: a name is written beyond its buffer");
    ensure!(
        overflows("stock")? == lacks,
        "stock: whether a name is written beyond its buffer is not {lacks}"
    );
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
    let fails = |line: &&str| {
        line.contains("Creation of typescript failed: ") && line.ends_with("No space left on device")
    };
    ensure!(patched.lines().filter(fails).count() == 1, "{patched}");
    let stock = log("stock")?;
    ensure!(!stock.contains("No space left"), "stock: {stock}");
    Ok(())
}

fn at_the_limit_of_files_a_recording_ends_and_its_session_goes_on() -> Result<()> {
    // The shell counts in blocks of 512 bytes.
    let (limit, bytes) = ("ulimit -f 256", 256 * 512);
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

fn fifos_in_place_of_recordings_block_no_session() -> Result<()> {
    // Nobody has opened the FIFOs, or a reader has that does not read.
    let is_served = |variant, has_reader: bool| -> Result<bool> {
        let dir = TempDir::new()?;
        let mut readers = Vec::new();
        for name in ["recording", "typescript", "typescript.timing"] {
            let path = dir.path().join(name);
            let made = Command::new("mkfifo").arg(&path).status()?;
            ensure!(made.success(), "mkfifo {}", path.display());
            if has_reader {
                // Opening a FIFO for reading only waits for a writer.
                readers.push(fs::File::options().read(true).write(true).open(&path)?);
            }
        }
        let guacd = Guacd::start(variant)?;
        let mut user = recorded_session(&guacd, dir.path())?;
        // More than a FIFO holds.
        Ok(user.frames(if has_reader { 100 } else { 10 }).is_ok())
    };
    for has_reader in [false, true] {
        ensure!(is_served("patched", has_reader)?, "with a reader: {has_reader}");
        ensure!(!is_served("stock", has_reader)?, "stock, with a reader: {has_reader}");
    }
    Ok(())
}

fn a_drive_is_listed_and_closed_as_it_should_be() -> Result<()> {
    let dir = TempDir::new()?;
    let said = run_c_with_sources("drive", "patched", &[dir.path()])?;
    let expected = "listed: 300\nclosed twice: 0\nwritten to another file: 0\ncharacters of a name of 200: 200\n\
                    behind the buffer: ---\ndownloaded: 200\na FIFO is listed: 0, opening it: -6\n";
    ensure!(said == expected, "patched: {said}");
    let dir = TempDir::new()?;
    let said = run_c_with_sources("drive", "stock", &[dir.path()])?;
    for line in expected.lines() {
        ensure!(!said.contains(&format!("{line}\n")), "stock: {said}");
    }
    Ok(())
}

fn a_file_of_a_drive_that_somebody_has_a_lease_of_is_opened() -> Result<()> {
    let dir = TempDir::new()?;
    let said = run_c_with_sources("drive", "patched", &[dir.path(), Path::new("lease")])?;
    // Not all file systems have leases.
    let expected =
        ["written to a file with a lease: 7\nreplaced\nopened as a FIFO: 0\n", "a lease cannot be had\n"];
    ensure!(expected.contains(&said.as_str()), "{said}");
    Ok(())
}

fn a_file_of_a_drive_that_is_one_too_many_ends_no_session() -> Result<()> {
    let dir = TempDir::new()?;
    let said = run_c_with_sources("drive", "patched", &[dir.path(), Path::new("limit")])?;
    ensure!(said == "taken for open: 0\nsomebody else: opened\nat the limit: refused\n", "{said}");
    // Stock crashes, or writes behind its list of files. The error has what was printed before.
    match run_c_with_sources("drive", "stock", &[dir.path(), Path::new("limit")]) {
        Ok(said) => ensure!(said.ends_with("at the limit: opened\n"), "stock: {said}"),
        Err(crash) => ensure!(crash.to_string().contains("somebody else: opened\n"), "stock: {crash}"),
    }
    Ok(())
}

fn users_who_join_receive_the_color_scheme_as_it_was_set() -> Result<()> {
    const LENGTH: usize = 16_000;
    // The owner sets a color scheme of `A` and one of `B` in turn. Returns the first that a guest receives which is neither.
    let corrupt = |variant: &str, time: Duration| -> Result<Option<String>> {
        let guacd = Guacd::start(variant)?;
        // Opens a pipe, by which its user sees that the terminal is there.
        let port = target(|mut stream| {
            stream.write_all(b"\x1b]482202;1;ready\x07")?;
            stay_silent(stream)
        })?;
        let mut owner = Session::telnet(&guacd, &port, &[])?;
        owner.expect("pipe")?;
        let schemes = ["A", "B"].map(|letter| {
            let blobs = letter.repeat(LENGTH).into_bytes();
            let blobs = blobs.chunks(6000).map(|chunk| instruction(&["blob", "1", &STANDARD.encode(chunk)]));
            let blobs: String = blobs.collect();
            let argv = instruction(&["argv", "1", "text/plain", "color-scheme"]);
            format!("{argv}{blobs}{}", instruction(&["end", "1"]))
        });
        owner.user.stream.write_all(schemes[0].as_bytes())?;
        owner.expect_any(&["argv"], |parts| parts[3] == "color-scheme")?;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut from = &owner.user.stream;
                // `read` waits for 50 ms at most.
                while !done.load(Relaxed) {
                    let _ = from.read(&mut [0; 65536]);
                }
            });
            scope.spawn(|| {
                let mut to = &owner.user.stream;
                for scheme in schemes.iter().cycle() {
                    if done.load(Relaxed) || to.write_all(scheme.as_bytes()).is_err() {
                        break;
                    }
                }
            });
            let join = || -> Result<Option<String>> {
                let deadline = Instant::now() + time;
                while Instant::now() < deadline {
                    let mut guest = Session::start(&guacd, &owner.id, &[])?;
                    let stream = guest.expect_any(&["argv"], |parts| parts[3] == "color-scheme")?[1].clone();
                    let mut value = Vec::new();
                    loop {
                        let parts = guest.expect_any(&["blob", "end"], |parts| parts[1] == stream)?;
                        if parts[0] == "end" {
                            break;
                        }
                        value.extend(STANDARD.decode(&parts[2])?);
                    }
                    if value.len() != LENGTH || value.iter().any(|byte| *byte != value[LENGTH - 1]) {
                        let start = &value[..value.len().min(40)];
                        return Ok(Some(format!("{} bytes: {}...", value.len(), start.escape_ascii())));
                    }
                }
                Ok(None)
            };
            let corrupt = join();
            done.store(true, Relaxed);
            corrupt
        })
    };
    let patched = corrupt("patched", SOON)?;
    ensure!(patched.is_none(), "{patched:?}");
    // Stock's process may also crash, which is an error here.
    let stock = corrupt("stock", 12 * SOON);
    ensure!(!matches!(stock, Ok(None)), "stock: every guest received what was set");
    Ok(())
}

/// Uploads files over SFTP, one after another. Their names are `name` and a number, and each has `content` twice.
fn upload(user: &mut Session, name: &str, count: usize, content: &str) -> Result<()> {
    for i in 0..count {
        let name = format!("{name}{i}");
        let instructions: [&[&str]; 4] = [
            &["file", "1", "text/plain", &name],
            &["blob", "1", content],
            &["blob", "1", content],
            &["end", "1"],
        ];
        for instruction in instructions {
            user.user.send(instruction)?;
            let ack = user.expect("ack")?;
            ensure!(ack[3] == "0", "{name}: {ack:?} after {}", instruction[0]);
        }
    }
    Ok(())
}

fn two_users_can_upload_at_once() -> Result<()> {
    let sshd = Sshd::start(&[("key", ED25519)])?;
    let content = "x".repeat(6000);
    let encoded = STANDARD.encode(&content);
    let uploaded = |variant: &str| -> Result<()> {
        let (dir, guacd) = (TempDir::new()?, Guacd::start(variant)?);
        // Makes this the directory for uploads, and then opens a pipe.
        let command = format!(
            "printf '\\033]482201;{}\\007\\033]482202;0;ready\\007'; exec sleep 60",
            dir.path().display()
        );
        let mut owner = Session::ssh(&guacd, &sshd, &[("command", &command)])?;
        owner.expect("pipe")?;
        let mut guest = Session::start(&guacd, &owner.id, &[("enable-sftp", "true")])?;
        let count = 100;
        thread::scope(|scope| -> Result<()> {
            let guest = scope.spawn(|| upload(&mut guest, "guest", count, &encoded));
            let owner = upload(&mut owner, "owner", count, &encoded);
            let guest = guest.join().ok().context("panicked")?;
            owner.context("the owner")?;
            guest.context("the guest")
        })?;
        for name in ["owner", "guest"] {
            for i in 0..count {
                let file = fs::read_to_string(dir.path().join(format!("{name}{i}")))?;
                ensure!(file == content.repeat(2), "{name}{i} has {} bytes", file.len());
            }
        }
        Ok(())
    };
    uploaded("patched")?;
    ensure!(uploaded("stock").is_err(), "stock: all files arrived");
    Ok(())
}

fn a_cancelled_download_leaves_no_open_file() -> Result<()> {
    let sshd = Sshd::start(&[("key", ED25519)])?;
    let file = tempfile::NamedTempFile::new()?;
    let path = file.path().to_string_lossy().into_owned();
    // How often sshd has the file open after three cancelled downloads, while another one has begun.
    let open = |variant: &str| -> Result<usize> {
        let guacd = Guacd::start(variant)?;
        let mut user = Session::ssh(&guacd, &sshd, &[])?;
        let object = user.expect("filesystem")?[1].clone();
        for _ in 0..3 {
            user.user.send(&["get", &object, &path])?;
            let stream = user.expect("body")?[2].clone();
            // With a status of 256 or more, clients cancel a download.
            user.user.send(&["ack", &stream, "Cancelled", "256"])?;
        }
        user.user.send(&["get", &object, &path])?;
        user.expect("body")?;
        let descriptors = sshd.processes().into_iter().flat_map(descriptors);
        Ok(descriptors.filter(|open| *open == path).count())
    };
    let (patched, stock) = (open("patched")?, open("stock")?);
    ensure!(patched == 1, "{patched} files are open");
    ensure!(stock == 4, "stock: {stock} files are open");
    Ok(())
}

fn a_download_freezes_nothing_while_the_sftp_server_is_silent() -> Result<()> {
    let sshd = Sshd::start(&[("key", ED25519)])?;
    // Once the user has typed Enter, requests a download, sets the directory for uploads while that is waited for, and opens a
    // pipe.
    let command = "printf '\\033]482202;0;ready\\007'; read line; printf '\\033]482200;/etc/passwd\\007'; sleep 1; \
                   printf '\\033]482201;/tmp\\007\\033]482202;0;shown\\007'; exec sleep 60";
    let is_shown = |variant: &str| -> Result<bool> {
        let guacd = Guacd::start(variant)?;
        let mut user = Session::ssh(&guacd, &sshd, &[("command", command)])?;
        user.expect("pipe")?;
        let servers = sshd.sftp_servers();
        servers.iter().for_each(|pid| kill(*pid, Signal::STOP));
        user.user.send(&["key", "65293", "1"])?;
        let is_shown = user.expect_any(&["pipe"], |parts| parts[3] == "shown").is_ok();
        servers.iter().for_each(|pid| kill(*pid, Signal::CONT));
        if is_shown {
            let file = user.expect("file")?;
            ensure!(file[3] == "passwd", "{file:?}");
        }
        Ok(is_shown)
    };
    ensure!(is_shown("patched")?, "nothing is shown until the SFTP server answers");
    ensure!(!is_shown("stock")?, "stock: something is shown before the SFTP server answers");
    Ok(())
}

/// Forwards connections to a port, each byte after a while. Returns the port on which it listens.
fn a_slow_way_to(port: u16, delay: Duration) -> Result<String> {
    target(move |stream| {
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let forward = move |mut from: TcpStream, mut to: TcpStream| -> std::io::Result<()> {
            let mut buffer = [0; 65536];
            while let length @ 1.. = from.read(&mut buffer)? {
                sleep(delay);
                to.write_all(&buffer[..length])?;
            }
            to.shutdown(Shutdown::Write)
        };
        let (from, to) = (server.try_clone()?, stream.try_clone()?);
        thread::spawn(move || forward(from, to));
        forward(stream, server)
    })
}

fn downloads_that_a_program_requests_are_opened_one_by_one() -> Result<()> {
    const FILES: usize = 20;
    let (guacd, sshd) = (Guacd::start("patched")?, Sshd::start(&[("key", ED25519)])?);
    let dir = TempDir::new()?;
    let names: Vec<String> = (0..FILES).map(|number| format!("file-{number}")).collect();
    for name in &names {
        fs::write(dir.path().join(name), name)?;
    }
    // What a program prints to request all these files, and then to open a pipe once another line was typed.
    let command = |names: &[String]| -> Result<String> {
        let path = dir.path().join("requests");
        let request = |name| format!("\x1b]482200;{}/{name}\x07", dir.path().display());
        fs::write(&path, names.iter().map(request).collect::<String>())?;
        Ok(format!(
            "printf '\\033]482202;0;ready\\007'; read line; cat {}; \
             read line; printf '\\033]482202;0;typed\\007'; exec sleep 60",
            path.display()
        ))
    };
    // All of them arrive, though the program draws nothing more.
    let requests = command(&names)?;
    let mut user = Session::ssh(&guacd, &sshd, &[("command", &requests)])?;
    user.expect("pipe")?;
    user.user.send(&["key", "65293", "1"])?;
    let begun = Instant::now();
    for name in &names {
        let file = user.expect("file")?;
        ensure!(file[3] == *name, "{file:?} instead of {name}");
    }
    ensure!(begun.elapsed() < 2 * SOON, "{FILES} files take {:?}", begun.elapsed());
    drop(user);

    // The server is far away, and none of the files exists.
    let missing: Vec<String> = (0..500).map(|number| format!("missing-{number}")).collect();
    let requests = command(&missing)?;
    let port = a_slow_way_to(sshd.port, Duration::from_millis(20))?;
    let key = sshd.key("key")?;
    let arguments = [
        ("hostname", "127.0.0.1"),
        ("port", &*port),
        ("username", &*sshd.user),
        ("private-key", &*key),
        ("enable-sftp", "true"),
        ("command", &*requests),
    ];
    let mut user = Session::start(&guacd, "ssh", &arguments)?;
    user.expect("pipe")?;
    user.user.send(&["key", "65293", "1"])?;
    user.expect_any(&["sync"], |_| guacd.log().is_ok_and(|log| log.contains("missing-0\"")))?;
    user.user.send(&["key", "65293", "1"])?;
    let typed = user.expect_any(&["pipe"], |parts| parts[3] == "typed");
    let opened = guacd.log()?.matches("missing-").count();
    typed.with_context(|| format!("what the owner types is handled only after {opened} requests"))?;
    ensure!(opened < missing.len() / 4, "it is handled after {opened} requests");
    Ok(())
}

fn a_fifo_on_the_server_is_not_downloaded() -> Result<()> {
    let (guacd, sshd) = (Guacd::start("patched")?, Sshd::start(&[("key", ED25519)])?);
    let dir = TempDir::new()?;
    let fifo = dir.path().join("fifo").display().to_string();
    let command = format!(
        "mkfifo {fifo}; printf '\\033]482202;0;ready\\007'; read line; \
         printf '\\033]482200;{fifo}\\007\\033]482200;/etc/passwd\\007'; exec sleep 60"
    );
    let mut user = Session::ssh(&guacd, &sshd, &[("command", &command)])?;
    let object = user.expect("filesystem")?[1].clone();
    user.expect("pipe")?;
    // An owner who asks for it receives as little as a program in the terminal that has it sent. What is asked for next is received.
    user.user.send(&["get", &object, &fifo])?;
    user.user.send(&["get", &object, "/etc/passwd"])?;
    let body = user.expect("body")?;
    ensure!(body[4] == "/etc/passwd", "{body:?}");
    user.user.send(&["key", "65293", "1"])?;
    let file = user.expect("file")?;
    ensure!(file[3] == "passwd", "{file:?}");
    let log = guacd.log()?;
    let refused = log.matches(&format!("Unable to read file \"{fifo}\"")).count();
    ensure!(refused == 2, "{log}");
    Ok(())
}

fn a_download_for_which_there_is_no_memory_ends_no_session() -> Result<()> {
    let sshd = Sshd::start(&[("key", ED25519)])?;
    let shortage = Preloaded::compile("shortage")?;
    let guacd = shortage.start("patched")?;
    let copies = shortage.file(&format!("copies-below-{}", guacd.fork_server().context("no fork server")?));
    let download = "read line; printf '\\033]482200;/etc/passwd\\007'; ";
    let command = format!("printf '\\033]482202;0;ready\\007'; {download}{download}exec sleep 60");
    let mut user = Session::ssh(&guacd, &sshd, &[("command", &command)])?;
    user.expect("pipe")?;
    fs::write(&copies, "")?;
    user.user.send(&["key", "65293", "1"])?;
    guacd.expect_in_log("Unable to send file \"/etc/passwd\": Insufficient memory")?;
    user.frames(1)?;
    fs::remove_file(&copies)?;
    user.user.send(&["key", "65293", "1"])?;
    let file = user.expect("file")?;
    ensure!(file[3] == "passwd", "{file:?}");
    Ok(())
}

fn with_keep_alives_slow_answers_over_sftp_are_waited_for() -> Result<()> {
    let sshd = Sshd::start(&[("key", ED25519)])?;
    let is_answered = |variant: &str| -> Result<bool> {
        let guacd = Guacd::start(variant)?;
        let mut user = Session::ssh(&guacd, &sshd, &[("server-alive-interval", "2")])?;
        let object = user.expect("filesystem")?[1].clone();
        let servers = sshd.sftp_servers();
        ensure!(!servers.is_empty(), "no process serves SFTP");
        servers.iter().for_each(|pid| kill(*pid, Signal::STOP));
        user.user.send(&["get", &object, "/etc/passwd"])?;
        sleep(Duration::from_secs(4));
        servers.iter().for_each(|pid| kill(*pid, Signal::CONT));
        Ok(user.expect("body").is_ok())
    };
    ensure!(is_answered("patched")?, "the answer was not waited for");
    ensure!(!is_answered("stock")?, "stock: the answer was waited for");
    Ok(())
}

fn a_user_who_waits_for_a_silent_sftp_server_can_leave() -> Result<()> {
    let ends = |variant: &str| -> Result<bool> {
        let (guacd, sshd) = (Guacd::start(variant)?, Sshd::start(&[("key", ED25519)])?);
        let mut user = Session::ssh(&guacd, &sshd, &[])?;
        let object = user.expect("filesystem")?[1].clone();
        // Before the shell runs, the terminal also waits for the server.
        user.frames(3)?;
        let servers = sshd.processes();
        servers.iter().for_each(|pid| kill(*pid, Signal::STOP));
        user.user.send(&["get", &object, "/etc/passwd"])?;
        drop(user);
        let ends = guacd.wait_for_the_end_of_connections(9 * SOON).is_ok();
        servers.iter().for_each(|pid| kill(*pid, Signal::KILL));
        Ok(ends)
    };
    ensure!(ends("patched")?, "the session does not end");
    ensure!(!ends("stock")?, "stock: the session ends");
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
    // Not every release can write to files that are there.
    let known = guacd.user("telnet")?.names;
    let names = names.into_iter().filter(|(name, _)| known.iter().any(|known| known == name));
    Session::telnet(guacd, &a_target_that_never_rests()?, &names.collect::<Vec<_>>())
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
    /// The ID of the connection.
    id: String,
    instructions: Instructions,
    heard: Vec<Vec<String>>,
}

impl Session {
    /// Starts a session with these arguments of its protocol.
    fn start(guacd: &Guacd, protocol: &str, arguments: &[(&str, &str)]) -> Result<Session> {
        let mut user = guacd.user(protocol)?;
        user.handshake_with(arguments)?;
        Session::ready(user)
    }

    /// Starts a session over SSH, with SFTP and with more arguments.
    fn ssh(guacd: &Guacd, sshd: &Sshd, more: &[(&str, &str)]) -> Result<Session> {
        let mut user = guacd.user("ssh")?;
        sshd.log_in(&mut user, &sshd.key("key")?, &[&[("enable-sftp", "true")], more].concat())?;
        Session::ready(user)
    }

    /// Waits until a user who has finished the handshake is in the session.
    fn ready(user: User) -> Result<Session> {
        let mut session =
            Session { user, id: String::new(), instructions: Instructions::default(), heard: Vec::new() };
        session.id = session.expect("ready")?[1].clone();
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
        // While nothing happens, a terminal sends a frame every 5 seconds.
        let deadline = Instant::now() + 2 * SOON;
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

//! Do desktops of real RDP servers work: FreeRDP's own, and xrdp? FreeRDP's has no clipboard and no drives, and neither prints.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;
use toolkit::build::guacd::freerdp_plugin_dir;
use toolkit::host::digest;

use crate::rdp::{connect, error_within};
use crate::support::SOON;
use crate::support::desktop::{DESKTOP, PASSWORD, Shadow, USER, Xrdp};
use crate::support::guacd::{Guacd, has_freerdp3};
use crate::support::processes::left_of;
use crate::support::rdp::{Security, activate, negotiate, open_channels, print};
use crate::support::target::target;
use crate::support::user::{Instructions, User};

crate::tests! {
    SourceAndShadow:
        users_see_and_type_on_a_desktop_of_freerdps_server of "0132",
        users_learn_that_freerdps_server_refuses_them,
        users_learn_that_freerdps_server_was_killed of "0132";
    SourceAndXrdp:
        a_desktop_of_xrdp_has_a_clipboard_and_sound_and_a_drive,
        users_see_that_xrdp_refuses_a_password;
    SourceAndGhostscript:
        what_an_rdp_server_prints_arrives_as_pdf;
}

/// What a program writes to fill a terminal with red or green.
const FILL: [(&str, [u8; 3]); 2] = [("41", [205, 0, 0]), ("42", [0, 205, 0])];

/// A stream that guacd has opened.
#[derive(Debug, Default)]
struct Stream {
    /// The instruction that opened it.
    opened: Vec<String>,
    content: Vec<u8>,
    is_whole: bool,
}

/// A user's session, whose frames and files are acknowledged.
struct Session {
    user: User,
    instructions: Instructions,
    open: BTreeMap<String, Stream>,
    /// Clipboards and files that have arrived.
    arrived: Vec<Stream>,
    /// How much sound has arrived.
    sound: usize,
    /// The colors that areas were filled with.
    fills: Vec<[u8; 3]>,
    images: usize,
    acks: usize,
    /// The object of the drive.
    drive: Option<String>,
    error: Option<String>,
    has_ended: bool,
}

impl Session {
    /// A session with a server on this port.
    fn start(guacd: &Guacd, port: &str, arguments: &[(&str, &str)]) -> Result<Session> {
        let mut user = guacd.user("rdp")?;
        user.audio = &["audio/L16"];
        let all = [&[("hostname", "127.0.0.1"), ("port", port), ("ignore-cert", "true")], arguments].concat();
        user.handshake_with(&all)?;
        Ok(Session {
            user,
            instructions: Instructions::default(),
            open: BTreeMap::new(),
            arrived: Vec::new(),
            sound: 0,
            fills: Vec::new(),
            images: 0,
            acks: 0,
            drive: None,
            error: None,
            has_ended: false,
        })
    }

    /// Handles what has arrived.
    fn hear(&mut self) -> Result<()> {
        // guacd may close the connection with something unread in it.
        self.has_ended |= !self.user.hear().unwrap_or_default();
        let heard = std::mem::take(&mut self.user.heard);
        for parts in self.instructions.take(heard.as_bytes())? {
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            match parts[..] {
                ["sync", time, ..] => self.user.send(&["sync", time])?,
                ["clipboard" | "file", stream, ..] => {
                    let opened = parts.iter().map(|part| (*part).to_owned()).collect();
                    self.open.insert(stream.to_owned(), Stream { opened, ..Stream::default() });
                    self.user.send(&["ack", stream, "OK", "0"])?;
                }
                ["audio", stream, ..] => {
                    self.open.insert(
                        stream.to_owned(),
                        Stream { opened: vec!["audio".into()], ..Stream::default() },
                    );
                }
                ["img", stream, ..] => {
                    self.open.remove(stream);
                    self.images += 1;
                }
                ["blob", stream, data] => {
                    if let Some(open) = self.open.get_mut(stream) {
                        open.content.extend(STANDARD.decode(data)?);
                        match open.opened[0].as_str() {
                            "audio" => self.sound += std::mem::take(&mut open.content).len(),
                            "file" => self.user.send(&["ack", stream, "OK", "0"])?,
                            _ => {}
                        }
                    }
                }
                ["end", stream] => {
                    if let Some(mut whole) = self.open.remove(stream) {
                        whole.is_whole = true;
                        self.arrived.push(whole);
                    }
                }
                ["cfill", _, _, red, green, blue, _] => {
                    self.fills.push([red, green, blue].map(|shade| shade.parse().unwrap_or_default()));
                }
                ["filesystem", object, ..] => self.drive = Some(object.to_owned()),
                ["ack", _, _, "0"] => self.acks += 1,
                ["error", _, status] => self.error = Some(status.to_owned()),
                ["disconnect"] => self.has_ended = true,
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits until this returns something.
    fn wait<T>(
        &mut self,
        what: &str,
        time: Duration,
        mut found: impl FnMut(&mut Session) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + time;
        let mut told = Instant::now();
        loop {
            if let Some(found) = found(self) {
                return Ok(found);
            }
            ensure!(Instant::now() < deadline, "{what}: not within {time:?}");
            ensure!(!self.has_ended, "{what}: the session ended with {:?}", self.error);
            self.hear()?;
            if told.elapsed() > Duration::from_secs(1) {
                let _ = self.user.send(&["nop"]);
                told = Instant::now();
            }
        }
    }

    /// Waits for a stream that is whole.
    fn arrival(&mut self, what: &str, is_it: impl Fn(&Stream) -> bool) -> Result<Stream> {
        self.wait(what, 2 * SOON, |session| {
            let at = session.arrived.iter().position(&is_it)?;
            Some(session.arrived.remove(at))
        })
    }

    /// Types a line.
    fn type_line(&mut self, line: &str) -> Result<()> {
        // Enter has a key symbol of its own.
        let keys = line.chars().map(u32::from).chain([0xFF0D]);
        for key in keys {
            self.user.send(&["key", &key.to_string(), "1"])?;
            self.user.send(&["key", &key.to_string(), "0"])?;
        }
        Ok(())
    }

    /// Types a command, and returns what it prints, which the desktop puts onto the clipboard.
    fn run(&mut self, command: &str) -> Result<String> {
        self.arrived.retain(|stream| stream.opened[0] != "clipboard");
        self.type_line(command)?;
        let printed = self.arrival(command, |stream| stream.opened[0] == "clipboard")?;
        Ok(String::from_utf8(printed.content)?)
    }

    /// Types a line until something happens: what is typed before there is a terminal is lost.
    fn insist(&mut self, line: &str, mut happens: impl FnMut(&Session) -> bool) -> Result<()> {
        let mut typed: Option<Instant> = None;
        self.wait(line, DESKTOP, |session| {
            if happens(session) {
                return Some(());
            }
            if typed.is_none_or(|typed| typed.elapsed() > SOON / 2) {
                let _ = session.type_line(line);
                typed = Some(Instant::now());
            }
            None
        })
    }
}

fn users_see_and_type_on_a_desktop_of_freerdps_server() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    let login = [("username", USER), ("password", PASSWORD)];
    // Without a login, and with one.
    for (options, security) in [("-auth", "tls"), ("/sec:nla", "nla"), ("/sec:nla", "any")] {
        let server = Shadow::start(&[options])?;
        let mut session =
            Session::start(&guacd, &server.port, &[&login[..], &[("security", security)]].concat())?;
        for (code, color) in FILL {
            // RemoteFX may change it by one.
            let is_it = |fill: &[u8; 3]| (0..3).all(|i| fill[i].abs_diff(color[i]) <= 2);
            session
                .insist(&format!("printf '\\033[{code}m\\033[2J'"), |session| session.fills.iter().any(is_it))
                .with_context(|| format!("{options}, {security}: {}", server.log()))?;
        }
    }
    Ok(())
}

fn users_learn_that_freerdps_server_refuses_them() -> Result<()> {
    let server = Shadow::start(&["/sec:nla"])?;
    let told = |guacd: &Guacd, port: &str, security, login: [&str; 2]| -> Result<_> {
        let arguments = [("security", security), ("username", login[0]), ("password", login[1])];
        let mut user = guacd.user("rdp")?;
        let server = [("hostname", "127.0.0.1"), ("port", port), ("ignore-cert", "true")];
        user.handshake_with(&[&server[..], &arguments].concat())?;
        Ok(error_within(&mut user, 2 * SOON))
    };
    let guacd = Guacd::start("patched")?;
    for (security, login) in [
        ("nla", [USER, "wrong"]),
        ("any", [USER, "wrong"]),
        ("nla", ["somebody", PASSWORD]),
        // The server accepts only NLA.
        ("tls", [USER, PASSWORD]),
        ("rdp", [USER, PASSWORD]),
    ] {
        let status = told(&guacd, &server.port, security, login)?;
        ensure!(status.as_deref() == Some("769"), "{security}, {login:?}: {status:?}, {}", guacd.log()?);
    }
    // FreeRDP 3 knows by itself.
    let stock = Guacd::start("stock")?;
    let status = told(&stock, &server.port, "nla", [USER, "wrong"])?;
    ensure!((status.as_deref() == Some("769")) == has_freerdp3()?, "stock: {status:?}");

    // Over TLS, this server closes the connection without a reason, once it has asked PAM.
    let server = Shadow::start(&["/sec:tls", "+auth"])?;
    let status = told(&guacd, &server.port, "tls", [USER, "wrong"])?;
    ensure!(status.as_deref() == Some("520"), "TLS: {status:?}, {}", guacd.log()?);
    Ok(())
}

fn users_learn_that_freerdps_server_was_killed() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    let mut server = Shadow::start(&["-auth"])?;
    let (mut user, process) = connect(&guacd, &server.port, &[("security", "tls")])?;
    user.expect("3.img,")?;
    server.kill();
    let status = error_within(&mut user, SOON);
    ensure!(status.as_deref() == Some("520"), "{status:?}");
    drop(user);
    ensure!(left_of(&[process], SOON).is_empty(), "the session lives on");
    Ok(())
}

fn a_desktop_of_xrdp_has_a_clipboard_and_sound_and_a_drive() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    let xrdp = Xrdp::start("sh")?;
    let drive = TempDir::new()?;
    let path = drive.path().to_string_lossy();
    let arguments =
        [("username", &*xrdp.user), ("password", PASSWORD), ("enable-drive", "true"), ("drive-path", &path)];
    let mut session = Session::start(&guacd, &xrdp.port, &arguments)?;
    let is_ready = |session: &Session| session.arrived.iter().any(|stream| stream.content == b"ready");
    session.insist("printf ready", is_ready).with_context(|| xrdp.log())?;
    ensure!(session.images > 0, "no picture");

    // What a program copies, and what the user copies.
    let text = session.run("printf 'W\\303\\251lcome'")?;
    ensure!(text == "Wélcome", "out: {text:?}");
    session.user.send(&["clipboard", "1", "text/plain"])?;
    session.user.send(&["blob", "1", &STANDARD.encode("frôm the user")])?;
    session.user.send(&["end", "1"])?;
    let mut pasted = String::new();
    session
        .wait("the clipboard", 2 * SOON, |session| {
            pasted = session.run("xclip -o -selection clipboard").ok()?;
            (pasted == "frôm the user").then_some(())
        })
        .with_context(|| format!("in: {pasted:?}"))?;

    // A file of the user's, and one for the user.
    let content: Vec<u8> = (0..100_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let object = session.wait("a drive", SOON, |session| session.drive.clone())?;
    session.user.send(&["put", &object, "2", "application/octet-stream", "/up.bin"])?;
    for (count, part) in content.chunks(6000).enumerate() {
        session.wait("an ack", SOON, |session| (session.acks > count).then_some(()))?;
        session.user.send(&["blob", "2", &STANDARD.encode(part)])?;
    }
    session.user.send(&["end", "2"])?;
    let up = drive.path().join("up.bin");
    session.wait("the file", SOON, |_| (fs::read(&up).ok()? == content).then_some(()))?;
    // guacd creates the directory for downloads once the drive is listed.
    let listed = session.run("ls ~/thinclient_drives/GUACFS")?;
    ensure!(listed == "Download\nup.bin\n", "{listed}");
    let sum = session.run("sha256sum < ~/thinclient_drives/GUACFS/up.bin")?;
    ensure!(sum.starts_with(&digest::file(&up)?), "up: {sum}");
    let sum = session.run(
        "head -c 50000 /dev/urandom > ~/down.bin; cp ~/down.bin ~/thinclient_drives/GUACFS/Download/; \
         sha256sum < ~/down.bin",
    )?;
    let down = session.arrival("a file", |stream| stream.opened[0] == "file")?;
    ensure!(down.opened[3] == "down.bin", "{:?}", down.opened);
    fs::write(drive.path().join("down"), &down.content)?;
    ensure!(
        sum.starts_with(&digest::file(&drive.path().join("down"))?),
        "down: {} bytes",
        down.content.len()
    );

    // What PulseAudio's module for xrdp does with sound: a type, the length with this header, and samples.
    fs::write(
        drive.path().join("play.pl"),
        "use IO::Socket::UNIX;\n\
         my ($path) = grep { -S } glob('/run/xrdp/sockdir/xrdp_chansrv_audio_out_socket_* ' .\n\
         '/run/xrdp/sockdir/*/xrdp_chansrv_audio_out_socket_*');\n\
         my $socket = IO::Socket::UNIX->new(Peer => $path) or die \"$path: $!\";\n\
         for (1 .. 10) {\n\
         my $samples = pack('s<*', map { 9000 * sin($_ / 20) } 1 .. 8820);\n\
         $socket->print(pack('VV', 0, 8 + length $samples) . $samples);\n\
         $socket->flush;\n\
         select(undef, undef, undef, 0.1);\n\
         }\n\
         print 'played';\n",
    )?;
    let before = session.sound;
    let played = session.run("perl ~/thinclient_drives/GUACFS/play.pl")?;
    ensure!(played == "played", "{played}");
    // Half of 10 times 0.1 seconds of 44,100 samples of two bytes for two channels.
    session.wait("sound", SOON, |session| (session.sound > before + 88_200).then_some(()))?;

    // Logging out ends the session.
    session.type_line("kill $PPID; pkill xterm")?;
    session.wait("the end", 2 * SOON, |session| session.has_ended.then_some(()))?;
    ensure!(session.error.is_none(), "{:?}", session.error);
    guacd.wait_for_the_end_of_connections(SOON)
}

fn users_see_that_xrdp_refuses_a_password() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    let xrdp = Xrdp::start("sh")?;
    let login = [("username", &*xrdp.user), ("password", "wrong")];
    let mut session = Session::start(&guacd, &xrdp.port, &login)?;
    session.wait("a picture", DESKTOP, |session| (session.images > 0).then_some(()))?;
    // It logs what it draws, and the session goes on: the user closes the window, and may log in there.
    // xrdp 0.10 has another text.
    let is_refused =
        |log: &str| log.contains("login failed for user") || log.contains("could not be authenticated");
    session.wait("the refusal", SOON, |_| is_refused(&xrdp.log()).then_some(()))?;
    session.wait("more pictures", SOON, |session| (session.images > 2).then_some(()))?;
    ensure!(session.error.is_none(), "{:?}", session.error);
    Ok(())
}

fn what_an_rdp_server_prints_arrives_as_pdf() -> Result<()> {
    let port = target(|mut stream| {
        negotiate(&mut stream, Security::Rdp)?;
        let channels = open_channels(&mut stream)?;
        activate(&mut stream, [800, 600])?;
        let devices = channels.iter().find(|(name, _)| name == "rdpdr");
        print(&mut stream, devices.map_or(0, |(_, number)| *number))
    })?;
    let arguments =
        [("security", "rdp"), ("enable-printing", "true"), ("username", USER), ("password", PASSWORD)];
    let guacd = Guacd::start("patched")?;
    let mut session = Session::start(&guacd, &port, &arguments)?;
    let file = session
        .arrival("a file", |stream| stream.opened[0] == "file")
        .with_context(|| guacd.log().unwrap_or_default())?;
    ensure!(file.opened[2..] == ["application/pdf", "A letter.pdf"], "{:?}", file.opened);
    let content = String::from_utf8_lossy(&file.content);
    ensure!(file.is_whole && content.starts_with("%PDF-"), "{content:?}");
    ensure!(content.trim_end().ends_with("%%EOF") && content.contains("/Page"), "{content:?}");

    // FreeRDP finds the plugin of stock only in its own directory.
    let installed = freerdp_plugin_dir().map(|dir| Path::new(&dir).join("libguac-common-svc-client.so"));
    if !installed.is_some_and(|plugin| plugin.exists()) {
        let stock = Guacd::start("stock")?;
        let _session = Session::start(&stock, &port, &arguments)?;
        stock.expect_in_log("failed to load \"guac-common-svc\" plugin")?;
    }
    Ok(())
}

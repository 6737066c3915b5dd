//! What do users learn of an RDP server that refuses, ends or falls silent, and what does their session cost? Each test also
//! shows the fault of stock.

use std::fs;
use std::io::{Read, Result as IoResult, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::net::sockopt::set_socket_linger;
use tempfile::TempDir;

use crate::support::c::run_c_with_sources;
use crate::support::differences::stock_lacks;
use crate::support::guacd::{Guacd, free_port, has_freerdp3, wait_until_it_listens};
use crate::support::processes::{cpu_time, left_of};
use crate::support::rdp::{
    Security, activate, activate_late, deactivate, draw, draw_with_nscodec, end_frame, negotiate,
    open_channels,
};
use crate::support::target::{deaf_time, stay_silent, target};
use crate::support::tls::Certificate;
use crate::support::user::User;
use crate::support::{SOON, built, root, wait_until};

crate::tests! {
    Source:
        users_learn_that_an_rdp_server_was_killed,
        users_learn_that_an_rdp_server_ends_while_guacd_connects,
        users_learn_that_an_rdp_server_is_gone_when_guacd_connects_again,
        users_learn_that_an_rdp_server_says_nothing,
        users_learn_that_an_rdp_server_refuses_a_password,
        an_rdp_session_has_few_threads_however_many_processors of "0125",
        the_first_picture_of_an_rdp_session_comes_soon,
        an_idle_rdp_session_gives_back_its_memory,
        an_rdp_server_may_use_a_codec_late of "0132",
        an_rdp_server_may_end_a_frame_early of "0138",
        freerdp_calls_the_functions_that_replace_its_own_however_it_is_linked,
        a_desktop_that_the_server_resizes_shows_what_was_drawn of "0132",
        a_desktop_can_be_resized_while_another_thread_draws of "0131",
        an_rdp_server_that_does_not_give_a_size_is_not_asked_forever,
        a_session_connects_again_once_for_a_size,
        all_of_the_clipboard_is_passed_on,
        an_rdp_desktop_has_the_size_that_its_server_chooses;
}

/// Where the server stops.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// It has accepted the connection.
    Tcp,
    /// It has received the first message of TLS.
    InTls,
    /// It has received the first message over TLS.
    AfterTls,
    /// It has agreed to go without TLS.
    Negotiated,
    /// It has opened the channels.
    Channels,
    /// It shares a desktop.
    Idle,
    /// It draws.
    Drawing,
    /// It is about to resize the desktop.
    Resizing,
}

/// How it stops.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stop {
    Closes,
    Resets,
    IsSilent,
}

/// An RDP server that gets so far with each connection, and then stops. Returns its port.
fn stops(phase: Phase, stop: Stop, tls: &Arc<TlsServer>) -> Result<String> {
    let tls = Arc::clone(tls);
    target(move |mut stream| {
        let mut server = None;
        match phase {
            Phase::Tcp => {}
            Phase::InTls => {
                negotiate(&mut stream, Security::Tls)?;
                stream.read_exact(&mut [0])?;
            }
            Phase::AfterTls => {
                negotiate(&mut stream, Security::Tls)?;
                let mut secured = tls.serve(&stream).map_err(std::io::Error::other)?;
                secured.read_one()?;
                server = Some(secured);
            }
            _ => {
                negotiate(&mut stream, Security::Rdp)?;
                if phase != Phase::Negotiated {
                    open_channels(&mut stream)?;
                }
                if matches!(phase, Phase::Idle | Phase::Drawing | Phase::Resizing) {
                    activate(&mut stream, [800, 600])?;
                    draw(&mut stream, [160, 160], [0, 0, 255])?;
                    // Until the users see it.
                    let since = Instant::now();
                    while since.elapsed() < Duration::from_secs(1) {
                        if phase == Phase::Drawing {
                            let shade = since.elapsed().as_millis() as u8;
                            draw(&mut stream, [16 * u16::from(shade % 50), 0], [shade, 0, 0])?;
                        }
                        sleep(Duration::from_millis(10));
                    }
                    if phase == Phase::Resizing {
                        deactivate(&mut stream)?;
                    }
                }
            }
        }
        match stop {
            Stop::Closes => stream.shutdown(Shutdown::Both)?,
            Stop::Resets => set_socket_linger(&stream, Some(Duration::ZERO))?,
            Stop::IsSilent => return stay_silent(stream),
        }
        drop(stream);
        drop(server);
        Ok(())
    })
}

/// OpenSSL's server, and its port.
struct TlsServer {
    certificate: Certificate,
}

/// A connection that OpenSSL's server decrypts.
struct Secured {
    server: Child,
}

impl TlsServer {
    fn new() -> Result<Arc<TlsServer>> {
        Ok(Arc::new(TlsServer { certificate: Certificate::new()? }))
    }

    /// Has OpenSSL's server go on with this connection.
    fn serve(&self, stream: &TcpStream) -> Result<Secured> {
        let port = free_port()?;
        let server = Command::new("openssl")
            .args(["s_server", "-quiet", "-accept", &format!("127.0.0.1:{port}")])
            .arg("-key")
            .arg(self.certificate.key())
            .arg("-cert")
            .arg(self.certificate.file())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let secured = Secured { server };
        wait_until_it_listens(port)?;
        let inner = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        for (mut from, mut to) in
            [(stream.try_clone()?, inner.try_clone()?), (inner.try_clone()?, stream.try_clone()?)]
        {
            thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
        Ok(secured)
    }
}

impl Secured {
    /// Waits for something from the client.
    fn read_one(&mut self) -> IoResult<()> {
        self.server.stdout.as_mut().ok_or_else(|| std::io::Error::other("no output"))?.read_exact(&mut [0])
    }

    fn write(&mut self, bytes: &[u8]) -> IoResult<()> {
        self.server.stdin.as_mut().ok_or_else(|| std::io::Error::other("no input"))?.write_all(bytes)
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A user of a session with the server on this port, and the process of the session.
pub fn connect(guacd: &Guacd, port: &str, more: &[(&str, &str)]) -> Result<(User, i32)> {
    let before = guacd.connections();
    let mut user = guacd.user("rdp")?;
    let arguments = [
        &[("hostname", "127.0.0.1"), ("port", port), ("ignore-cert", "true"), ("username", "user")],
        more,
        &[("disable-audio", "true"), ("password", "password")],
    ];
    user.handshake_with(&arguments.concat())?;
    let mut process = None;
    wait_until("there is a process", SOON, || {
        process = guacd.connections().into_iter().find(|pid| !before.contains(pid));
        process.is_some()
    })?;
    Ok((user, process.context("no process")?))
}

/// The status of the error that the user receives within this time.
pub fn error_within(user: &mut User, time: Duration) -> Option<String> {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        let error = user.heard.split("5.error,").nth(1).and_then(|rest| rest.split_once(';'));
        if let Some((error, _)) = error {
            return Some(error.rsplit('.').next()?.to_owned());
        }
        if !user.hear().ok()? {
            return None;
        }
        let _ = user.send(&["nop"]);
    }
    None
}

fn users_learn_that_an_rdp_server_was_killed() -> Result<()> {
    let tls = TlsServer::new()?;
    // What the user learns, whether the session keeps a processor busy, and whether it ends by itself.
    let killed = |variant, phase, stop| -> Result<(Option<String>, bool, bool)> {
        let guacd = Guacd::start(variant)?;
        let (timeout, limit) = guacd.user("rdp")?.shortest_timeout();
        let security = [("security", "rdp")];
        let (mut user, process) =
            connect(&guacd, &stops(phase, stop, &tls)?, &[&security, timeout].concat())?;
        user.expect("3.img,").with_context(|| format!("{variant}: no picture"))?;
        let error = error_within(&mut user, limit + SOON);
        let before = cpu_time(process).unwrap_or_default();
        // Other work leaves little of a processor to stock.
        let time = if variant == "stock" { SOON } else { Duration::from_millis(500) };
        let is_busy = || cpu_time(process).is_ok_and(|now| now - before > Duration::from_millis(100));
        let is_busy = wait_until("it is busy", time, is_busy).is_ok();
        drop(user);
        Ok((error, is_busy, left_of(&[process], SOON).is_empty()))
    };
    let told = (Some("520".to_owned()), false, true);
    for phase in [Phase::Idle, Phase::Drawing, Phase::Resizing] {
        for stop in [Stop::Closes, Stop::Resets] {
            let patched = killed("patched", phase, stop)?;
            ensure!(patched == told, "{phase:?}, {stop:?}: {patched:?}");
        }
    }
    // It has the time of the parameter "timeout" to resize the desktop.
    let patched = killed("patched", Phase::Resizing, Stop::IsSilent)?;
    ensure!(patched == told, "silent while it resizes: {patched:?}");
    let stock = killed("stock", Phase::Idle, Stop::Closes)?;
    match stock_lacks("0121")? {
        true => ensure!(stock == (None, true, false), "stock: {stock:?}"),
        // Whether the session then ends by itself is left to chance.
        false => ensure!((&stock.0, stock.1) == (&told.0, false), "stock: {stock:?}"),
    }
    Ok(())
}

/// Each phase of connecting, and the security with which it is reached.
const WHILE_CONNECTING: [(Phase, &str); 5] = [
    (Phase::Tcp, "any"),
    (Phase::InTls, "tls"),
    (Phase::AfterTls, "tls"),
    (Phase::Negotiated, "rdp"),
    (Phase::Channels, "rdp"),
];

fn users_learn_that_an_rdp_server_ends_while_guacd_connects() -> Result<()> {
    let tls = TlsServer::new()?;
    let guacd = Guacd::start("patched")?;
    for (phase, security) in WHILE_CONNECTING {
        for stop in [Stop::Closes, Stop::Resets] {
            let (mut user, process) = connect(&guacd, &stops(phase, stop, &tls)?, &[("security", security)])?;
            let status = error_within(&mut user, SOON);
            ensure!(status.as_deref() == Some("519"), "{phase:?}, {stop:?}: {status:?}, {}", guacd.log()?);
            drop(user);
            ensure!(left_of(&[process], SOON).is_empty(), "{phase:?}, {stop:?}: the session lives on");
        }
    }
    // Nobody listens there. Stock, which measures FreeRDP for a third of a second first, tells it as well.
    let mut user = guacd.user("rdp")?;
    user.handshake_with(&[("hostname", "127.0.0.1"), ("port", "1")])?;
    let status = error_within(&mut user, SOON);
    ensure!(status.as_deref() == Some("519"), "refused: {status:?}");
    Ok(())
}

fn users_learn_that_an_rdp_server_is_gone_when_guacd_connects_again() -> Result<()> {
    // A session connects again for another size.
    let is_first = AtomicBool::new(true);
    let port = target(move |mut stream| {
        if !is_first.swap(false, Ordering::Relaxed) {
            return stream.shutdown(Shutdown::Both);
        }
        negotiate(&mut stream, Security::Rdp)?;
        open_channels(&mut stream)?;
        activate(&mut stream, [800, 600])?;
        draw(&mut stream, [0, 0], [0, 0, 255])?;
        stay_silent(stream)
    })?;
    let guacd = Guacd::start("patched")?;
    let (mut user, process) = connect(&guacd, &port, &[("security", "rdp"), ("resize-method", "reconnect")])?;
    user.expect("3.img,").context("no picture")?;
    user.send(&["size", "640", "480"])?;
    let status = error_within(&mut user, SOON);
    ensure!(status.as_deref() == Some("519"), "{status:?}, {}", guacd.log()?);
    drop(user);
    ensure!(left_of(&[process], SOON).is_empty(), "the session lives on");
    Ok(())
}

fn users_learn_that_an_rdp_server_says_nothing() -> Result<()> {
    let tls = TlsServer::new()?;
    let guacd = Guacd::start("patched")?;
    let stock = Guacd::start("stock")?;
    let (timeout, limit) = guacd.user("rdp")?.shortest_timeout();
    let told = |guacd: &Guacd, phase, security| -> Result<_> {
        let security = [("security", security)];
        let (mut user, process) =
            connect(guacd, &stops(phase, Stop::IsSilent, &tls)?, &[&security, timeout].concat())?;
        Ok(thread::spawn(move || {
            // Once the protocol has begun, it has 20 seconds more.
            let status = error_within(&mut user, limit + 4 * SOON + SOON);
            let before = cpu_time(process).unwrap_or_default();
            sleep(Duration::from_millis(500));
            let is_busy = cpu_time(process).is_ok_and(|now| now - before > Duration::from_millis(100));
            drop(user);
            // guacd gives it some seconds to free what it has.
            (status, is_busy, left_of(&[process], 3 * SOON).is_empty())
        }))
    };
    let mut silent = Vec::new();
    for (phase, security) in WHILE_CONNECTING {
        silent.push((phase, told(&guacd, phase, security)?));
    }
    let stocks = told(&stock, Phase::Tcp, "any")?;
    for (phase, user) in silent {
        let patched = user.join().ok().context("a user panicked")?;
        ensure!(patched == (Some("514".to_owned()), false, true), "{phase:?}: {patched:?}, {}", guacd.log()?);
    }
    let stock = stocks.join().ok().context("a user panicked")?;
    ensure!(stock.0.is_none(), "stock: {stock:?}");
    Ok(())
}

fn users_learn_that_an_rdp_server_refuses_a_password() -> Result<()> {
    // The answer of a server with network level authentication, whose error is STATUS_LOGON_FAILURE.
    const REFUSAL: &[u8] = &[0x30, 13, 0xA0, 3, 2, 1, 6, 0xA4, 6, 2, 4, 0xC0, 0, 0, 0x6D];
    let tls = TlsServer::new()?;
    let port = target(move |mut stream| {
        negotiate(&mut stream, Security::Nla)?;
        let mut secured = tls.serve(&stream).map_err(std::io::Error::other)?;
        secured.read_one()?;
        secured.write(REFUSAL)?;
        stay_silent(stream)
    })?;
    let guacd = Guacd::start("patched")?;
    let (mut user, process) = connect(&guacd, &port, &[("security", "nla")])?;
    let status = error_within(&mut user, SOON);
    ensure!(status.as_deref() == Some("769"), "{status:?}, {}", guacd.log()?);
    drop(user);
    ensure!(left_of(&[process], SOON).is_empty(), "the session lives on");
    Ok(())
}

/// A session whose server draws something once, and its process.
fn idle_session(guacd: &Guacd, tls: &Arc<TlsServer>) -> Result<(User, i32)> {
    let (mut user, process) =
        connect(guacd, &stops(Phase::Idle, Stop::IsSilent, tls)?, &[("security", "rdp")])?;
    // An image may also be that of the pointer, or of an empty desktop. This has what was drawn, or the part around it.
    user.expect_one_of(&["9.image/png,3.160,3.160;", "9.image/png,3.128,3.128;"]).context("no picture")?;
    Ok((user, process))
}

fn an_rdp_session_has_few_threads_however_many_processors() -> Result<()> {
    let tls = TlsServer::new()?;
    let logs = TempDir::new()?;
    let library = toolkit::stress::compile(logs.path(), false)?.with_file_name("libpretend_cores.so");
    let cores = format!("export PRETEND_CORES=64 LD_PRELOAD={}", library.display());
    let threads = |variant, shell: &str, options| -> Result<usize> {
        let guacd = Guacd::start_with(variant, &format!("{cores} {shell}"), options)?;
        let (_user, process) = idle_session(&guacd, &tls)?;
        // Those that only connect have ended a moment later.
        let count = || fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count);
        let mut last = 0;
        wait_until("the threads have started", SOON, || {
            let before = std::mem::replace(&mut last, count());
            sleep(Duration::from_millis(100));
            before == last
        })?;
        Ok(last)
    };
    let patched = threads("patched", "", "")?;
    ensure!(patched <= 14, "{patched} threads");
    for (shell, options, display) in [
        ("", "-T 1", 1),
        ("GUACD_DISPLAY_THREADS=6", "", 6),
        ("GUACD_DISPLAY_THREADS=6", "-T 2", 2),
        ("", "-T 256", 64),
    ] {
        let count = threads("patched", shell, options)?;
        ensure!(count + 4 == patched + display, "{shell} {options}: {count} threads, by default {patched}");
    }
    let stock = threads("stock", "", "")?;
    ensure!(stock > 64 + 2 * 64, "stock: {stock} threads");

    for (variable, option) in [("", "-T0"), ("", "-Tmany"), ("257", "-v")] {
        let guacd = Command::new(built("patched")?.join("sbin/guacd"))
            .env("LD_LIBRARY_PATH", built("patched")?.join("lib"))
            .envs((!variable.is_empty()).then_some(("GUACD_DISPLAY_THREADS", variable)))
            .arg(option)
            .output()?;
        let said = String::from_utf8_lossy(&guacd.stderr);
        ensure!(!guacd.status.success() && said.contains("between 1 and 256"), "{variable} {option}: {said}");
    }
    Ok(())
}

fn the_first_picture_of_an_rdp_session_comes_soon() -> Result<()> {
    let tls = TlsServer::new()?;
    let soonest = |variant, tries| -> Result<Duration> {
        let guacd = Guacd::start(variant)?;
        let mut soonest = Duration::MAX;
        for _ in 0..tries {
            let since = Instant::now();
            let _session = idle_session(&guacd, &tls)?;
            soonest = soonest.min(since.elapsed().saturating_sub(deaf_time()?));
        }
        Ok(soonest)
    };
    // Beside other work, most of them may take long.
    let patched = soonest("patched", 15)?;
    let stock = soonest("stock", 2)?;
    if has_freerdp3()? {
        // It waits without sleeping, and does not measure itself.
        ensure!(patched < stock * 2, "{patched:?}, stock {stock:?}");
    } else {
        // FreeRDP 2 measures itself for 0.3 seconds, and sleeps several times.
        ensure!(stock > Duration::from_millis(400), "stock: {stock:?}");
        ensure!(patched < stock / 2, "{patched:?}, stock {stock:?}");
    }
    Ok(())
}

fn an_idle_rdp_session_gives_back_its_memory() -> Result<()> {
    let tls = TlsServer::new()?;
    let (patched, stock) = (Guacd::start("patched")?, Guacd::start("stock")?);
    let memory = |guacd| -> Result<_> {
        let (mut user, process) = idle_session(guacd, &tls)?;
        Ok(thread::spawn(move || -> Result<u64> {
            // A session counts as idle after 15 seconds.
            user.listen(Duration::from_secs(18))?;
            let smaps = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
            let line = smaps.lines().find_map(|line| line.strip_prefix("Private_Dirty:"));
            Ok(line.context("no size")?.trim().trim_end_matches(" kB").parse()?)
        }))
    };
    // What is loaded once for all counts as their own while there is one session.
    let _others = (idle_session(&patched, &tls)?, idle_session(&stock, &tls)?);
    let (patched, stock) = (memory(&patched)?, memory(&stock)?);
    let patched = patched.join().ok().context("a user panicked")??;
    let stock = stock.join().ok().context("a user panicked")??;
    ensure!(patched + 3 * 1024 < stock, "{patched} KiB, stock {stock} KiB");
    Ok(())
}

fn an_rdp_server_may_use_a_codec_late() -> Result<()> {
    let port = target(|mut stream| {
        negotiate(&mut stream, Security::Rdp)?;
        open_channels(&mut stream)?;
        activate(&mut stream, [800, 600])?;
        draw(&mut stream, [0, 0], [0, 0, 255])?;
        // The codecs that were allocated while guacd connected have been freed by then.
        sleep(Duration::from_secs(1));
        draw_with_nscodec(&mut stream, [160, 320], 200)?;
        stay_silent(stream)
    })?;
    // Stock has them all the time, with FreeRDP 2. With FreeRDP 3, it ignores one that it has not asked for.
    let variants = if has_freerdp3()? { &["patched"][..] } else { &["patched", "stock"] };
    for &variant in variants {
        let guacd = Guacd::start(variant)?;
        let (mut user, _) = connect(&guacd, &port, &[("security", "rdp")])?;
        user.expect("9.image/png,1.0,1.0;").with_context(|| format!("{variant}: bitmap"))?;
        user.expect_one_of(&["9.image/png,3.160,3.320;", "4.rect,1.0,3.160,3.320,"])
            .with_context(|| format!("{variant}: NSCodec"))?;
    }
    Ok(())
}

fn an_rdp_server_may_end_a_frame_early() -> Result<()> {
    let port = target(|mut stream| {
        negotiate(&mut stream, Security::Rdp)?;
        open_channels(&mut stream)?;
        activate_late(&mut stream, [800, 600], end_frame)?;
        draw(&mut stream, [0, 0], [0, 0, 255])?;
        stay_silent(stream)
    })?;
    let is_drawn = |variant| -> Result<bool> {
        let guacd = Guacd::start(variant)?;
        let (mut user, _) = connect(&guacd, &port, &[("security", "rdp")])?;
        Ok(user.expect("3.img,").is_ok())
    };
    ensure!(is_drawn("patched")?, "no picture");
    // FreeRDP 3 ignores it by itself.
    ensure!(is_drawn("stock")? == has_freerdp3()?, "stock crashes with FreeRDP 2 alone");
    Ok(())
}

/// How FreeRDP, of which `c/replacements.c` has what is needed, becomes part of the process that loads the plugin.
fn calls_of_replacements(cc: &str, how: &str, flags: &str) -> Result<String> {
    let dir = TempDir::new()?;
    let build = built("patched")?.with_file_name("build");
    // The headers of libraries are the same for any libc.
    let mut compile = format!("{cc} -w -fPIC -D_GNU_SOURCE -idirafter /usr/include {flags}");
    for include in [
        build.clone(),
        build.join("src/libguac"),
        build.join("src/protocols/rdp"),
        built("patched")?.join("include"),
    ] {
        compile.push_str(&format!(" -I {}", include.display()));
    }
    let mut steps = vec![
        format!("{compile} -DWINPR -c -o winpr.o $source"),
        format!("{compile} -DFREERDP -c -o freerdp.o $source"),
        format!("{compile} -c -o plugin.o {}", build.join("src/protocols/rdp/freerdp2.c").display()),
    ];
    let shared = |flags: &str| {
        vec![
            format!("{cc} -shared {flags} -o libwinpr.so winpr.o"),
            format!("{cc} -shared {flags} -o libfreerdp.so freerdp.o -L. -lwinpr"),
            format!("{cc} -shared -o plugin.so plugin.o -L. -lwinpr -lfreerdp -ldl"),
        ]
    };
    steps.extend(match how {
        "versioned" => {
            fs::write(dir.path().join("map"), "VERSION_2 { *; };")?;
            shared("-Wl,--version-script=map")
        }
        "symbolic" => shared("-Wl,-Bsymbolic"),
        "static" => vec![
            "ar rc libwinpr.a winpr.o".to_owned(),
            "ar rc libfreerdp.a freerdp.o".to_owned(),
            format!("{cc} -shared -o plugin.so plugin.o -L. -Wl,-u,use -lfreerdp -lwinpr -ldl"),
        ],
        _ => shared(""),
    });
    steps.push(format!("{compile} -o main $source -ldl"));
    steps.push("LD_LIBRARY_PATH=. ./main ./plugin.so".to_owned());
    let mut shell = Command::new("sh");
    shell.args(["-c", &steps.join(" && ")]).current_dir(dir.path());
    let output = shell.env("source", root().join("tests/it/c/replacements.c")).output()?;
    ensure!(output.status.success(), "{cc}, {how}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

fn freerdp_calls_the_functions_that_replace_its_own_however_it_is_linked() -> Result<()> {
    const ALL: &str =
        "slept 0, waited 1, threads 0, key 5, no key 1, contexts given back, given back, given back";
    // Functions of the same library are called as it has them.
    const OTHERS: &str = "slept 0, waited 1, threads 0, key 5, no key 1, contexts kept, kept, kept";
    const NONE: &str = "slept 1, waited 0, threads 1, key 5, no key 1, contexts kept, kept, kept";
    let makefile = built("patched")?.with_file_name("build").join("src/protocols/rdp/Makefile");
    let makefile = fs::read_to_string(makefile)?;
    let flags = makefile.lines().find_map(|line| line.strip_prefix("RDP_CFLAGS = ")).unwrap_or_default();
    // There is nothing to replace in FreeRDP 3.
    if flags.contains("freerdp3") {
        return Ok(());
    }
    for cc in ["cc", "musl-gcc"] {
        for (how, expected) in [("shared", ALL), ("versioned", ALL), ("symbolic", OTHERS), ("static", NONE)] {
            let called = calls_of_replacements(cc, how, flags)?;
            ensure!(called == expected, "{cc}, {how}: {called}");
        }
    }
    Ok(())
}

/// What a program prints that does with FreeRDP what a session does with its desktop.
fn rdp_desktop(variant: &str, what: &str) -> Result<String> {
    run_c_with_sources("rdp_desktop", variant, &[Path::new(what)])
}

fn a_desktop_that_the_server_resizes_shows_what_was_drawn() -> Result<()> {
    let patched = rdp_desktop("patched", "resize")?;
    ensure!(
        patched.ends_with(
            "begins with zeroes, keeps what was drawn, goes on with zeroes, shows what is new as black\n"
        ),
        "{patched}"
    );
    let stock = rdp_desktop("stock", "resize")?;
    ensure!(
        stock.ends_with(
            "begins with what was there, loses what was drawn, goes on with what was there, does not show what is new as black\n"
        ),
        "stock: {stock}"
    );
    Ok(())
}

fn a_desktop_can_be_resized_while_another_thread_draws() -> Result<()> {
    let patched = rdp_desktop("patched", "race")?;
    ensure!(patched.ends_with("resizes to 256x256\n"), "{patched}");
    let stock = rdp_desktop("stock", "race");
    // Stock checks that nobody draws, but not with FreeRDP 3.8 and later.
    let is_refused = stock.as_ref().is_err_and(|error| error.to_string().contains("GUAC_ASSERT"));
    ensure!(is_refused != has_freerdp3()?, "stock: {stock:?}");
    Ok(())
}

fn an_rdp_server_that_does_not_give_a_size_is_not_asked_forever() -> Result<()> {
    let patched = rdp_desktop("patched", "sizes")?;
    // The first size is asked for before the server has opened the channel.
    let expected = "asks 4 times for 700x500\nasks 4 times for 640x480\nasks 1 times for 800x600\n";
    ensure!(patched.ends_with(expected), "{patched}");
    let stock = rdp_desktop("stock", "sizes")?;
    ensure!(
        stock.ends_with("asks 0 times for 0x0\nasks 101 times for 640x480\nasks 1 times for 800x600\n"),
        "stock: {stock}"
    );
    Ok(())
}

fn a_session_connects_again_once_for_a_size() -> Result<()> {
    // How often a session has connected, some seconds after its user asked for a size that the server does not give.
    let connections = |variant| -> Result<usize> {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let port = target(move |mut stream| {
            counted.fetch_add(1, Ordering::Relaxed);
            negotiate(&mut stream, Security::Rdp)?;
            open_channels(&mut stream)?;
            activate(&mut stream, [800, 600])?;
            draw(&mut stream, [0, 0], [0, 0, 255])?;
            stay_silent(stream)
        })?;
        let guacd = Guacd::start(variant)?;
        let (mut user, process) =
            connect(&guacd, &port, &[("security", "rdp"), ("resize-method", "reconnect")])?;
        user.expect("3.img,").context("no picture")?;
        user.send(&["size", "640", "480"])?;
        wait_until("the session connects again", 2 * SOON, || count.load(Ordering::Relaxed) > 1)?;
        // Stock connects again after half a second, which it takes to connect, too.
        user.listen(Duration::from_secs(6))?;
        drop(user);
        ensure!(left_of(&[process], 3 * SOON).is_empty(), "the session lives on");
        Ok(count.load(Ordering::Relaxed))
    };
    let patched = connections("patched")?;
    ensure!(patched == 2, "{patched} connections");
    let stock = connections("stock")?;
    ensure!(stock > 2, "stock: {stock} connections");
    Ok(())
}

fn all_of_the_clipboard_is_passed_on() -> Result<()> {
    // Line breaks take two or four bytes, and what is kept of text is 262,144 bytes of UTF-8.
    let patched = rdp_desktop("patched", "clipboard")?;
    let expected = "to the server: D83D DE00\nto the server: 524288 bytes\nto the server: 1048576 bytes\n\
                    from the server: 262144 bytes\nfrom the server: 262143 bytes\n";
    ensure!(patched.ends_with(expected), "{patched}");
    let stock = rdp_desktop("stock", "clipboard")?;
    let expected = "to the server: D83D DE00\nto the server: 262144 bytes\nto the server: 262144 bytes\n\
                    from the server: 0 bytes\nfrom the server: 262143 bytes\n";
    ensure!(stock.ends_with(expected), "stock: {stock}");
    Ok(())
}

fn an_rdp_desktop_has_the_size_that_its_server_chooses() -> Result<()> {
    let port = target(|mut stream| {
        negotiate(&mut stream, Security::Rdp)?;
        open_channels(&mut stream)?;
        activate(&mut stream, [1024, 770])?;
        draw(&mut stream, [1008, 754], [0, 0, 255])?;
        stay_silent(stream)
    })?;
    let sees = |variant| -> Result<()> {
        let guacd = Guacd::start(variant)?;
        let (mut user, _) = connect(&guacd, &port, &[("security", "rdp")])?;
        user.expect("4.size,1.0,4.1024,3.770;")?;
        // The part of the desktop in which the square is.
        user.expect_one_of(&["9.image/png,3.960,3.704;", "9.image/png,4.1008,3.754;"])?;
        Ok(())
    };
    sees("patched")?;
    // FreeRDP 2 says so by itself.
    let stock = sees("stock");
    ensure!(stock.is_err() == has_freerdp3()?, "stock: {stock:?}");
    Ok(())
}

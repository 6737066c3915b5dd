//! Desktops that are drawn without a pause: can users leave, join and be told that the server is gone? And what several threads
//! do with one display at a time.

use std::fs;
use std::io::{Read, Result as IoResult, Write, copy, sink};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::support::c::{run_c_sanitized, run_c_with, run_c_with_sources};
use crate::support::differences::stock_lacks;
use crate::support::guacd::Guacd;
use crate::support::processes::left_of;
use crate::support::rdp::{Security, activate, draw, negotiate, open_channels, resize};
use crate::support::sanitized::Sanitized;
use crate::support::target::{stay_silent, target};
use crate::support::user::User;
use crate::support::{SOON, built, wait_until};
use crate::vnc::{PIXEL, greet};

crate::tests! {
    Source:
        several_threads_can_use_one_display of "0114",
        layers_with_transparency_are_cleared_before_workers_draw of "0116",
        users_who_join_do_not_wait_for_a_display_that_is_stopped of "0117",
        a_thread_that_renders_stops_at_once of "0119",
        a_frame_may_have_more_operations_than_fit_into_the_queue of "0137",
        sessions_that_draw_end_at_once,
        users_can_join_while_a_desktop_is_drawn,
        users_are_told_that_a_vnc_server_is_gone,
        users_are_told_that_a_vnc_server_says_nothing,
        users_can_leave_while_a_vnc_server_says_nothing;
    Minutes:
        the_sanitizers_find_nothing_in_a_display of "0114",
        the_sanitizers_find_nothing_in_a_guacd_whose_desktops_are_drawn;
}

/// The size that a desktop has at first, and the largest one.
const SIZE: [u16; 2] = [640, 480];
const MAX_SIZE: [u16; 2] = [800, 600];

/// The messages of a VNC server that draws: noise, colors, copies, cursors, and sometimes another size.
struct Drawing {
    random: u32,
    size: [u16; 2],
    resizes: bool,
}

impl Drawing {
    fn new(seed: u32, resizes: bool) -> Drawing {
        Drawing { random: seed, size: SIZE, resizes }
    }

    fn below(&mut self, limit: u16) -> u16 {
        self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((self.random >> 8) % u32::from(limit.max(1))) as u16
    }

    /// A rectangle's position, size and encoding.
    fn head(rect: [u16; 4], encoding: i32) -> Vec<u8> {
        [rect.map(u16::to_be_bytes).concat(), encoding.to_be_bytes().to_vec()].concat()
    }

    /// Some FramebufferUpdates.
    fn next(&mut self) -> Vec<u8> {
        let mut messages = Vec::new();
        for _ in 0..5 {
            messages.extend([0, 0, 0, 1]);
            let [width, height] = self.size.map(|side| 1 + self.below(side.min(160)));
            let [x, y] = [self.below(self.size[0] - width + 1), self.below(self.size[1] - height + 1)];
            match self.below(20) {
                0..=9 => {
                    messages.extend(Drawing::head([x, y, width, height], 0));
                    let color = u32::from(self.below(4)) * 0x0040_8040;
                    let is_noise = self.below(4) != 0;
                    for _ in 0..usize::from(width) * usize::from(height) {
                        self.below(1);
                        messages.extend((if is_noise { self.random >> 8 } else { color }).to_le_bytes());
                    }
                }
                10..=16 => {
                    // CopyRect.
                    messages.extend(Drawing::head([x, y, width, height], 1));
                    messages.extend(self.below(self.size[0] - width + 1).to_be_bytes());
                    messages.extend(self.below(self.size[1] - height + 1).to_be_bytes());
                }
                17 | 18 => {
                    // RichCursor: its pixels, and its mask.
                    let size = 1 + self.below(32);
                    messages.extend(Drawing::head([0, 0, size, size], -239));
                    messages.extend(
                        self.below(255).to_be_bytes().repeat(usize::from(size) * usize::from(size) * 2),
                    );
                    messages.extend(vec![0xFF; usize::from(size).div_ceil(8) * usize::from(size)]);
                }
                _ => {
                    // NewFBSize, or nothing new.
                    if self.resizes {
                        // One in four is small.
                        let limit = if self.below(4) == 0 { [70, 70] } else { MAX_SIZE };
                        self.size = limit.map(|side| 1 + self.below(side));
                    }
                    messages.extend(Drawing::head([0, 0, self.size[0], self.size[1]], -223));
                }
            }
        }
        messages
    }
}

/// A server to connect to.
struct Desktop {
    protocol: &'static str,
    port: String,
}

/// A VNC server that draws, this often a second, until guacd closes the connection.
fn a_vnc_desktop_that_never_rests(resizes: bool, rate: u32) -> Result<Desktop> {
    let port = target(move |mut stream| {
        greet(&mut stream, SIZE)?;
        stream.write_all(&PIXEL)?;
        let mut reading = stream.try_clone()?;
        thread::spawn(move || copy(&mut reading, &mut sink()));
        let mut drawing = Drawing::new(u32::from(stream.peer_addr()?.port()), resizes);
        loop {
            stream.write_all(&drawing.next())?;
            sleep(Duration::from_secs(1) / rate);
        }
    })?;
    Ok(Desktop { protocol: "vnc", port })
}

/// The same over RDP.
fn an_rdp_desktop_that_never_rests(resizes: bool, rate: u32) -> Result<Desktop> {
    let port = target(move |mut stream| {
        negotiate(&mut stream, Security::Rdp)?;
        open_channels(&mut stream)?;
        activate(&mut stream, SIZE)?;
        let mut reading = stream.try_clone()?;
        thread::spawn(move || copy(&mut reading, &mut sink()));
        let mut random = Drawing::new(u32::from(stream.peer_addr()?.port()), false);
        let mut size = SIZE;
        for i in 1.. {
            let at = size.map(|side| random.below(side - 15));
            draw(&mut stream, at, [0; 3].map(|_| random.below(256) as u8))?;
            if resizes && i % (rate / 2) == 0 {
                size = MAX_SIZE.map(|side| 200 + random.below(side - 199));
                resize(&mut stream, size)?;
            }
            sleep(Duration::from_secs(1) / rate);
        }
        Ok(())
    })?;
    Ok(Desktop { protocol: "rdp", port })
}

/// A user who acknowledges each frame, how many there have been, and how often the desktop got another size.
struct Viewer {
    stream: TcpStream,
    frames: Arc<AtomicUsize>,
    sizes: Arc<AtomicUsize>,
}

impl Viewer {
    /// Reads what the user is sent from now on, and acknowledges each frame.
    fn watch(user: User) -> Result<Viewer> {
        let (mut reading, mut writing) = (user.stream.try_clone()?, user.stream.try_clone()?);
        reading.set_read_timeout(None)?;
        let viewer = Viewer { stream: user.stream, frames: Arc::default(), sizes: Arc::default() };
        let (frames, sizes) = (Arc::clone(&viewer.frames), Arc::clone(&viewer.sizes));
        let mut heard = user.heard;
        thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            loop {
                // The last instruction may be incomplete.
                let end = heard.rfind(';').map_or(0, |end| end + 1);
                for instruction in heard[..end].split(';') {
                    if let Some(sync) = instruction.strip_prefix("4.sync,") {
                        frames.fetch_add(1, Ordering::Relaxed);
                        let timestamp = sync.split(',').next().unwrap_or_default();
                        let _ = write!(writing, "4.sync,{timestamp};");
                    } else if instruction.starts_with("4.size,1.0,") {
                        sizes.fetch_add(1, Ordering::Relaxed);
                    }
                }
                heard.drain(..end);
                match reading.read(&mut buffer) {
                    Ok(length) if length > 0 => heard.push_str(&String::from_utf8_lossy(&buffer[..length])),
                    _ => break,
                }
            }
        });
        Ok(viewer)
    }

    fn frames(&self) -> usize {
        self.frames.load(Ordering::Relaxed)
    }

    /// Waits until so many frames are shown.
    fn expect_frames(&self, count: usize) -> Result<()> {
        wait_until("a frame is shown", 2 * SOON, || self.frames() >= count)
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// The owner of a new session, who has seen the desktop, and the ID of the session.
fn open(guacd: &Guacd, desktop: &Desktop) -> Result<(Viewer, String)> {
    let mut owner = guacd.user(desktop.protocol)?;
    let arguments = [("hostname", "127.0.0.1"), ("port", desktop.port.as_str())];
    let more: &[_] = if desktop.protocol == "rdp" {
        &[("security", "rdp"), ("username", "user"), ("password", "password"), ("disable-audio", "true")]
    } else {
        &[]
    };
    owner.handshake_with(&[&arguments[..], more].concat())?;
    let id = owner.expect_id()?;
    let viewer = Viewer::watch(owner)?;
    viewer.expect_frames(2)?;
    Ok((viewer, id))
}

fn several_threads_can_use_one_display() -> Result<()> {
    let said = run_c_with("display_threads", "patched", &["-lcairo"], &["10", "0"])?;
    ensure!(said.is_empty(), "{said}");
    // Stock aborts, crashes, or freezes.
    let stock = run_c_with("display_threads", "stock", &["-lcairo"], &["10", "0"]);
    ensure!(stock.map_or(true, |said| !said.is_empty()), "stock finds nothing wrong");
    Ok(())
}

/// What a program prints in which threads use a display in turn.
fn display_turns(variant: &str, what: &str) -> Result<String> {
    Ok(run_c_with_sources("display_turns", variant, &[Path::new(what)])?.trim_end().to_owned())
}

fn layers_with_transparency_are_cleared_before_workers_draw() -> Result<()> {
    let (patched, stock) = (display_turns("patched", "clear")?, display_turns("stock", "clear")?);
    if stock_lacks("0116")? {
        ensure!(patched == "the thread that ends the frame clears", "{patched}");
        // What one worker of stock clears, another one may be about to fill. A machine with one processor has one worker.
        ensure!(
            ["workers clear at once", "one worker clears at a time"].contains(&&*stock),
            "stock: {stock}"
        );
    } else {
        ensure!([&*patched, &*stock] == ["one worker clears at a time"; 2], "{patched}, stock: {stock}");
    }
    Ok(())
}

fn users_who_join_do_not_wait_for_a_display_that_is_stopped() -> Result<()> {
    ensure!(display_turns("patched", "stop")? == "joins at once");
    ensure!(display_turns("stock", "stop")? == "waits");
    Ok(())
}

fn a_thread_that_renders_stops_at_once() -> Result<()> {
    // The shortest of several times, and their median.
    let times = |variant| -> Result<(u32, u32)> {
        let said = display_turns(variant, "render")?;
        let (best, median) = said.split_once(' ').context("no times")?;
        Ok((best.parse()?, median.parse()?))
    };
    // Other work takes time, too, but hardly each time. Stock waits for the end of the longest frame, 100 ms.
    let (patched, stock) = (times("patched")?, times("stock")?);
    ensure!(patched.0 < 50 && stock.1 > 50, "{patched:?} ms, stock {stock:?} ms");
    Ok(())
}

fn a_frame_may_have_more_operations_than_fit_into_the_queue() -> Result<()> {
    ensure!(display_turns("patched", "many")? == "draws");
    ensure!(display_turns("stock", "many")? == "freezes");
    Ok(())
}

fn the_sanitizers_find_nothing_in_a_display() -> Result<()> {
    // Plugins use these members of a guac_client as they are, and each is read and written in one piece: state,
    // last_sent_timestamp, and whether there has been a thread that promotes users.
    let dir = TempDir::new()?;
    let known = dir.path().join("suppressions");
    let functions =
        ["guac_client_stop", "guac_client_end_multiple_frames", "guac_client_pending_users_thread"];
    fs::write(&known, functions.map(|function| format!("race_top:{function}\n")).concat())?;
    for (sanitizers, known) in [("thread", Some(known.as_path())), ("address,undefined", None)] {
        let said = run_c_sanitized("display_threads", sanitizers, known, &["10", "0"])?;
        ensure!(said.is_empty(), "{sanitizers}: {said}");
    }
    Ok(())
}

/// How many of some sessions that draw are still there a second after all users have left at the same time.
fn left_of_sessions_that_draw(variant: &str, desktop: &Desktop) -> Result<usize> {
    const COUNT: usize = 12;
    let guacd = Guacd::start(variant)?;
    let viewers = (0..COUNT).map(|_| Ok(open(&guacd, desktop)?.0)).collect::<Result<Vec<_>>>()?;
    let processes = guacd.connections();
    ensure!(processes.len() == COUNT, "{processes:?}");
    drop(viewers);
    Ok(left_of(&processes, Duration::from_secs(1)).len())
}

/// Whether stock goes on with what memory contained before, once a desktop or a cursor has another size, and crashes some time.
pub fn stock_crashes() -> Result<bool> {
    let surface = built("stock")?.with_file_name("build").join("src/common/surface.c");
    Ok(fs::read_to_string(surface).is_ok_and(|code| code.contains("surface->heat_map = guac_mem_alloc(")))
}

/// Fails unless all sessions of a patched guacd are gone a second after their users, and some of stock are not.
fn expect_sessions_to_end_at_once(desktop: &Desktop) -> Result<()> {
    // Other work on the machine can make a second too short, and luck can make it long enough for stock.
    let mut patched = usize::MAX;
    for _ in 0..3 {
        patched = left_of_sessions_that_draw("patched", desktop)?;
        if patched == 0 {
            break;
        }
    }
    ensure!(patched == 0, "{patched} are left");
    if stock_crashes()? {
        return Ok(());
    }
    for _ in 0..3 {
        if left_of_sessions_that_draw("stock", desktop)? > 0 {
            return Ok(());
        }
    }
    bail!("the sessions of stock end at once")
}

fn sessions_that_draw_end_at_once() -> Result<()> {
    expect_sessions_to_end_at_once(&a_vnc_desktop_that_never_rests(false, 10)?).context("VNC")?;
    expect_sessions_to_end_at_once(&an_rdp_desktop_that_never_rests(false, 10)?).context("RDP")
}

/// Has guests join a session whose desktop is drawn, three at a time. Fails if a guest sees no frame, or the owner no further one.
fn join_while_it_is_drawn(guacd: &Guacd, desktop: &Desktop, joins: usize) -> Result<()> {
    let (owner, id) = open(guacd, desktop)?;
    let processes = guacd.connections();
    for i in 0..joins / 3 {
        let guests = (0..3)
            .map(|_| {
                let mut guest = guacd.user(&id)?;
                guest.handshake_with(&[])?;
                Viewer::watch(guest)
            })
            .collect::<Result<Vec<_>>>()?;
        for guest in &guests {
            guest.expect_frames(1).with_context(|| format!("a guest, after {} joins", 3 * i))?;
        }
        owner
            .expect_frames(owner.frames() + 1)
            .with_context(|| format!("the owner, after {} joins", 3 * i))?;
    }
    let sizes = owner.sizes.load(Ordering::Relaxed);
    ensure!(sizes > joins / 10, "the desktop has changed its size {sizes} times");
    drop(owner);
    let left = left_of(&processes, SOON);
    ensure!(left.is_empty(), "{left:?} are left");
    Ok(())
}

fn users_can_join_while_a_desktop_is_drawn() -> Result<()> {
    let join = |variant, desktop: &Desktop, joins| {
        join_while_it_is_drawn(&Guacd::start(variant)?, desktop, joins).context(desktop.protocol)
    };
    let vnc = a_vnc_desktop_that_never_rests(true, 100)?;
    join("patched", &vnc, 60)?;
    let should_fail = stock_lacks("0060")? || stock_crashes()?;
    // Stock freezes after about fifty joins, and now and then after many more.
    let attempts = if should_fail { 4 } else { 1 };
    let freezes = (0..attempts).any(|_| join("stock", &vnc, 300).is_err());
    ensure!(freezes == should_fail, "stock: whether it freezes or crashes is {freezes}");
    // What freezes is the same.
    join("patched", &an_rdp_desktop_that_never_rests(true, 100)?, 60)
}

fn the_sanitizers_find_nothing_in_a_guacd_whose_desktops_are_drawn() -> Result<()> {
    // As in the test of a display, each of these reads or writes a member in one piece: the state and the time of a socket, the
    // lag of a user, and how many users there are, for the log. FreeRDP is compiled as always.
    let known = [
        "guac_client_stop",
        "guac_client_end_multiple_frames",
        "guac_client_pending_users_thread",
        "__guac_socket_keep_alive_thread",
        "__calculate_lag",
        "guac_user_handle_connection",
        "libfreerdp",
        "libwinpr",
    ];
    let known = known.map(|function| format!("race_top:{function}\n")).concat();
    for sanitizers in ["thread", "address,undefined"] {
        let sanitized = Sanitized::compile(sanitizers)?;
        for desktop in [a_vnc_desktop_that_never_rests(true, 20)?, an_rdp_desktop_that_never_rests(true, 20)?]
        {
            let guacd = sanitized.start(&known)?;
            let joined = join_while_it_is_drawn(&guacd, &desktop, 60);
            let log = guacd.log()?;
            ensure!(!log.contains("Sanitizer"), "{sanitizers}, {}: {log}", desktop.protocol);
            joined.with_context(|| format!("{sanitizers}, {}", desktop.protocol))?;
        }
    }
    Ok(())
}

/// How far a VNC server gets.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Accepted,
    VersionSent,
    SecuritySent,
    Greeted,
    /// It has sent a part of its first picture.
    WithinThePicture,
    /// It has drawn for a while.
    Drawing,
}

const PHASES: [Phase; 6] = [
    Phase::Accepted,
    Phase::VersionSent,
    Phase::SecuritySent,
    Phase::Greeted,
    Phase::WithinThePicture,
    Phase::Drawing,
];

/// Behaves as a VNC server until this phase.
fn serve_until(phase: Phase, stream: &mut TcpStream) -> IoResult<()> {
    match phase {
        Phase::Accepted => Ok(()),
        Phase::VersionSent | Phase::SecuritySent => {
            stream.write_all(b"RFB 003.008\n")?;
            stream.read_exact(&mut [0; 12])?;
            if matches!(phase, Phase::SecuritySent) {
                stream.write_all(&[1, 1])?;
                stream.read_exact(&mut [0])?;
            }
            Ok(())
        }
        Phase::Greeted => greet(stream, SIZE),
        Phase::WithinThePicture => {
            greet(stream, SIZE)?;
            stream.write_all(&PIXEL[..18])
        }
        Phase::Drawing => {
            greet(stream, SIZE)?;
            let mut drawing = Drawing::new(1, true);
            (0..50).try_for_each(|_| {
                sleep(Duration::from_millis(10));
                stream.write_all(&drawing.next())
            })
        }
    }
}

/// The owner of a new session with the server on this port, and the processes of that session.
fn begin(guacd: &Guacd, port: &str) -> Result<(User, Vec<i32>)> {
    let before = guacd.connections();
    let mut user = guacd.user("vnc")?;
    user.handshake_with(&[("hostname", "127.0.0.1"), ("port", port)])?;
    user.expect_id()?;
    let mut processes = guacd.connections();
    processes.retain(|pid| !before.contains(pid));
    Ok((user, processes))
}

/// Waits until a user is told that the server on this port has failed, and then until the session has ended.
fn expect_error(guacd: &Guacd, port: &str, patience: Duration) -> Result<()> {
    let (mut user, processes) = begin(guacd, port)?;
    let (start, mut told) = (Instant::now(), 0);
    while !user.heard.contains("5.error,") {
        ensure!(start.elapsed() < patience, "nothing is told within {patience:?}");
        // Only the last instruction may be incomplete.
        let end = user.heard.rfind(';').map_or(0, |end| end + 1);
        user.heard.drain(..end);
        ensure!(user.hear()?, "the connection ended without an error");
        // A user who sends nothing is disconnected with another error.
        if start.elapsed().as_secs() > told {
            told = start.elapsed().as_secs();
            user.send(&["nop"])?;
        }
    }
    let error = user.expect("5.error,")?;
    ensure!(error.ends_with("3.519;") || error.ends_with("3.515;"), "{error}");
    drop(user);
    let left = left_of(&processes, SOON);
    ensure!(left.is_empty(), "{left:?} are left");
    Ok(())
}

fn users_are_told_that_a_vnc_server_is_gone() -> Result<()> {
    let guacd = Guacd::start("patched")?;
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    expect_error(&guacd, &closed.to_string(), SOON).context("refused")?;
    for phase in PHASES {
        for reset in [false, true] {
            let port = target(move |mut stream| {
                serve_until(phase, &mut stream)?;
                if reset {
                    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
                }
                Ok(())
            })?;
            expect_error(&guacd, &port, SOON).with_context(|| format!("{phase:?}, reset: {reset}"))?;
        }
    }
    Ok(())
}

fn users_are_told_that_a_vnc_server_says_nothing() -> Result<()> {
    let tell = |variant| -> Result<()> {
        let guacd = Guacd::start(variant)?;
        // guacd waits 15 seconds for the greeting.
        expect_error(&guacd, &target(stay_silent)?, 5 * SOON)
    };
    tell("patched")?;
    ensure!(tell("stock").is_err(), "stock tells it, too");
    Ok(())
}

fn users_can_leave_while_a_vnc_server_says_nothing() -> Result<()> {
    let leave = |variant, phase| -> Result<bool> {
        let guacd = Guacd::start(variant)?;
        let (to, silent) = channel();
        let port = target(move |mut stream| {
            serve_until(phase, &mut stream)?;
            let _ = to.send(());
            stay_silent(stream)
        })?;
        let (user, processes) = begin(&guacd, &port)?;
        silent.recv_timeout(2 * SOON)?;
        drop(user);
        let has_ended = left_of(&processes, 2 * SOON).is_empty();
        Ok(has_ended && !guacd.log()?.contains("did not terminate in a timely manner"))
    };
    for phase in PHASES {
        ensure!(leave("patched", phase)?, "{phase:?}: the session has to be killed");
    }
    ensure!(!leave("stock", Phase::VersionSent)?, "stock ends by itself");
    Ok(())
}

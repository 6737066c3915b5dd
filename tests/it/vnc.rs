//! What can a VNC server do to a session by when it reads and sends, and what does it receive? Each test also shows the fault of
//! stock.

use std::io::{Read, Result as IoResult, Write, copy, sink};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::input::is_served;
use crate::support::guacd::Guacd;
use crate::support::processes::left_of;
use crate::support::target::{stay_silent, target};
use crate::support::tcp::{Connection, connections};
use crate::support::user::{User, clipboard, instruction};
use crate::support::{SOON, wait_until};

crate::tests! {
    Source:
        users_can_leave_while_a_vnc_server_stops_within_a_message,
        users_are_served_even_if_a_vnc_server_does_not_read,
        a_session_ends_even_if_its_vnc_server_floods,
        a_vnc_server_receives_whole_messages,
        the_kernel_notices_a_vnc_server_that_vanishes,
        a_vnc_login_works_without_credentials,
        a_user_who_leaves_when_asked_for_a_password_is_not_logged_in_over_vnc;
}

/// A FramebufferUpdate with a pixel at 0,0. guacd shows nothing before the first one.
pub const PIXEL: [u8; 20] = [0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];

/// The last key that each user presses.
const LAST_KEY: &str = "65307";

fn skip(stream: &mut impl Read, length: usize) -> IoResult<()> {
    stream.read_exact(&mut vec![0; length])
}

/// Greets a client as a VNC server without a password and with a desktop of this size does.
pub fn greet(stream: &mut TcpStream, size: [u16; 2]) -> IoResult<()> {
    stream.write_all(b"RFB 003.008\n")?;
    skip(stream, 12)?;
    // One security type, 1: none.
    stream.write_all(&[1, 1])?;
    skip(stream, 1)?;
    stream.write_all(&[0; 4])?;
    skip(stream, 1)?;
    let mut hello = size.map(u16::to_be_bytes).concat();
    hello.extend([32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]);
    hello.extend([0, 0, 0, 1, b'x']);
    stream.write_all(&hello)
}

/// A session with two users who see the desktop.
struct Session {
    guacd: Guacd,
    port: String,
    owner: User,
    guest: User,
    process: i32,
}

impl Session {
    /// Starts a server and a session with it. Once the desktop is shown, the server does what `serve` says. The test signals the
    /// server with the `Sender`.
    fn start(
        variant: &str,
        serve: impl Fn(TcpStream, &Receiver<()>) -> IoResult<()> + Send + Sync + 'static,
    ) -> Result<(Session, Sender<()>)> {
        let guacd = Guacd::start(variant)?;
        let (signal, signals) = channel();
        let signals = Mutex::new(signals);
        let port = target(move |mut stream| {
            greet(&mut stream, [800, 600])?;
            stream.write_all(&PIXEL)?;
            let signals = signals.lock().map_err(|_| std::io::Error::other("panicked"))?;
            serve(stream, &signals)
        })?;
        let mut owner = guacd.user("vnc")?;
        owner.handshake_with(&[("hostname", "127.0.0.1"), ("port", &port)])?;
        let id = owner.expect_id()?;
        owner.expect("4.size,1.0,3.800,3.600;")?;
        let mut guest = guacd.user(&id)?;
        guest.handshake_with(&[])?;
        guest.expect("4.size,1.0,3.800,3.600;")?;
        let processes = guacd.connections();
        ensure!(processes.len() == 1, "{processes:?}");
        let session = Session { guacd, port, owner, guest, process: processes[0] };
        Ok((session, signal))
    }

    /// Guacd's end of its connection to the server.
    fn connection(&self) -> Result<Connection> {
        let port: u16 = self.port.parse()?;
        let ours = connections()?.into_iter().find(|end| end.remote == port);
        ours.context("guacd has no connection to the server")
    }

    /// Whether the process ends by itself once its users have left.
    fn ends(self) -> Result<bool> {
        drop((self.owner, self.guest));
        let has_ended = left_of(&[self.process], SOON).is_empty();
        Ok(has_ended && !self.guacd.log()?.contains("did not terminate in a timely manner"))
    }
}

fn users_can_leave_while_a_vnc_server_stops_within_a_message() -> Result<()> {
    let leave = |variant| -> Result<(bool, bool)> {
        let (session, signal) = Session::start(variant, |mut stream, signals| {
            let _ = signals.recv();
            // A FramebufferUpdate with a part of a rectangle.
            stream.write_all(&PIXEL[..18])?;
            stay_silent(stream)
        })?;
        signal.send(())?;
        // Once guacd has read that, it waits for the rest.
        sleep(Duration::from_millis(50));
        let has_read = || session.connection().is_ok_and(|ours| ours.unread == 0);
        wait_until("guacd reads", SOON, has_read)?;
        let _ = session.guest.stream.shutdown(Shutdown::Both);
        let has_left = session.guacd.expect_in_log("disconnected (1 users remain)").is_ok();
        Ok((has_left, session.ends()?))
    };
    let patched = leave("patched")?;
    ensure!(patched == (true, true), "a guest has left, the session ends: {patched:?}");
    let stock = leave("stock")?;
    ensure!(stock == (false, false), "stock: a guest has left, the session ends: {stock:?}");
    Ok(())
}

/// Sends so many bytes of text, which guacd puts into the server's clipboard.
fn paste(user: &mut User, length: usize) -> Result<()> {
    Ok(user.stream.write_all(clipboard(length).as_bytes())?)
}

fn users_are_served_even_if_a_vnc_server_does_not_read() -> Result<()> {
    let serve = |variant| -> Result<(bool, bool)> {
        let (mut session, signal) = Session::start(variant, |stream, signals| {
            let _ = signals.recv();
            drop(stream);
            Ok(())
        })?;
        for user in [&session.owner, &session.guest] {
            // Stock stops reading from its users when the server does not read.
            user.stream.set_write_timeout(Some(SOON))?;
        }
        // More than the kernel buffers.
        let mut is_served_all = true;
        for i in 0..16 {
            for user in [&mut session.guest, &mut session.owner] {
                is_served_all = is_served_all && paste(user, 250_000).is_ok();
                is_served_all = is_served_all && user.send(&["mouse", &i.to_string(), "1", "0"]).is_ok();
            }
        }
        is_served_all = is_served_all && is_served(&session.guacd, &mut session.owner).unwrap_or(false);
        ensure!(session.connection()?.unsent > 0, "the server has read everything");
        let ends = session.ends()?;
        drop(signal);
        Ok((is_served_all, ends))
    };
    let patched = serve("patched")?;
    ensure!(patched == (true, true), "the users are served, the session ends: {patched:?}");
    let stock = serve("stock")?;
    ensure!(stock == (false, false), "stock: the users are served, the session ends: {stock:?}");
    Ok(())
}

fn a_session_ends_even_if_its_vnc_server_floods() -> Result<()> {
    let ends = |variant| -> Result<bool> {
        let (session, signal) = Session::start(variant, |mut stream, signals| {
            let _ = signals.recv();
            let mut reading = stream.try_clone()?;
            thread::spawn(move || copy(&mut reading, &mut sink()));
            // Bells.
            while stream.write_all(&[2; 65536]).is_ok() {}
            Ok(())
        })?;
        signal.send(())?;
        let is_flooded = || session.connection().is_ok_and(|ours| ours.unread >= 65536);
        wait_until("the server is faster than guacd", SOON, is_flooded)?;
        session.ends()
    };
    ensure!(ends("patched")?, "the session has to be killed");
    ensure!(!ends("stock")?, "stock ends by itself");
    Ok(())
}

/// Reads the messages that guacd sends until both users have pressed the last key. Fails if something is no message. Returns how
/// many sizes and how many texts were received.
fn parse(stream: &mut TcpStream) -> IoResult<[usize; 2]> {
    let (mut sizes, mut texts, mut keys) = (0, 0, 0);
    while keys < 2 {
        let mut kind = [0];
        stream.read_exact(&mut kind)?;
        match kind[0] {
            // SetPixelFormat, FramebufferUpdateRequest and PointerEvent.
            0 => skip(stream, 19)?,
            3 => skip(stream, 9)?,
            5 => skip(stream, 5)?,
            // SetEncodings.
            2 => {
                let mut head = [0; 3];
                stream.read_exact(&mut head)?;
                skip(stream, 4 * usize::from(u16::from_be_bytes([head[1], head[2]])))?;
            }
            // KeyEvent.
            4 => {
                let mut key = [0; 7];
                stream.read_exact(&mut key)?;
                if u32::from_be_bytes([key[3], key[4], key[5], key[6]]).to_string() == LAST_KEY {
                    keys += 1;
                }
            }
            // ClientCutText.
            6 => {
                let mut head = [0; 7];
                stream.read_exact(&mut head)?;
                let mut text =
                    vec![0; u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize % (1 << 20)];
                stream.read_exact(&mut text)?;
                if text.iter().any(|byte| *byte != b'x') {
                    return Err(std::io::Error::other("torn text"));
                }
                texts += 1;
            }
            // SetDesktopSize, with one screen, whose ID is 1.
            251 => {
                let mut size = [0; 23];
                stream.read_exact(&mut size)?;
                if size[5] != 1 || size[7..11] != [1, 0, 0, 0] {
                    return Err(std::io::Error::other("torn size"));
                }
                sizes += 1;
            }
            other => return Err(std::io::Error::other(format!("a message of type {other}"))),
        }
    }
    Ok([sizes, texts])
}

/// Whether users can ask VNC servers for a size, which not every release can.
pub fn resizes_desktops(guacd: &Guacd) -> Result<bool> {
    Ok(guacd.user("vnc")?.names.iter().any(|name| name == "disable-display-resize"))
}

fn a_vnc_server_receives_whole_messages() -> Result<()> {
    const ROUNDS: usize = 300;
    let received = |variant| -> Result<IoResult<[usize; 2]>> {
        let (to, parsed) = channel();
        let (mut session, signal) = Session::start(variant, move |mut stream, signals| {
            // One rectangle of the pseudo-encoding ExtendedDesktopSize, with one screen.
            let mut update = vec![0, 0, 0, 1, 0, 0, 0, 0];
            update.extend([801, 600].map(u16::to_be_bytes).concat());
            update.extend((-308_i32).to_be_bytes());
            update.extend([1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
            update.extend([801, 600].map(u16::to_be_bytes).concat());
            update.extend([0; 4]);
            // guacd asks for another update after each of them.
            update.extend(PIXEL.repeat(20));
            let _ = signals.recv();
            let mut sending = stream.try_clone()?;
            thread::spawn(move || {
                while sending.write_all(&update).is_ok() {
                    sleep(Duration::from_millis(1));
                }
            });
            let result = parse(&mut stream);
            let _ = stream.shutdown(Shutdown::Both);
            let _ = to.send(result);
            Ok(())
        })?;
        signal.send(())?;
        // Then guacd knows that the server takes sizes.
        session.owner.expect("4.size,1.0,3.801,3.600;")?;
        for user in [&session.owner, &session.guest] {
            let mut stream = user.stream.try_clone()?;
            stream.set_read_timeout(None)?;
            user.stream.set_write_timeout(Some(SOON))?;
            thread::spawn(move || copy(&mut stream, &mut sink()));
        }
        let mut guest = session.guest;
        let guest = thread::spawn(move || {
            // The session may end.
            let _ = (0..ROUNDS).try_for_each(|i| {
                // Sometimes the largest text that guacd takes, for which the kernel may not have room at once.
                paste(&mut guest, if i % 100 == 0 { 250_000 } else { 100 })?;
                (0..10).try_for_each(|j| guest.send(&["mouse", &(10 * (i % 50) + j).to_string(), "1", "0"]))
            });
            let _ = guest.send(&["key", LAST_KEY, "1"]);
            guest
        });
        let _ = (0..ROUNDS).try_for_each(|i| {
            session.owner.send(&["size", &(700 + i % 2).to_string(), "500"])?;
            paste(&mut session.owner, 100)
        });
        let _guest = guest.join().ok().context("a guest panicked")?;
        let _ = session.owner.send(&["key", LAST_KEY, "1"]);
        parsed.recv_timeout(2 * SOON).context("the server waits for a message")
    };
    let [sizes, texts] = received("patched")??;
    let resizes = resizes_desktops(&Guacd::start("patched")?)?;
    ensure!((sizes > 1) == resizes && texts == 2 * ROUNDS, "{sizes} sizes and {texts} texts");
    // Whether a message of stock is torn depends on chance.
    for _ in 0..10 {
        if received("stock")?.is_err() {
            return Ok(());
        }
    }
    bail!("stock sends only whole messages")
}

fn the_kernel_notices_a_vnc_server_that_vanishes() -> Result<()> {
    // Whether it is asked now and then if it is there. To take a machine away needs a network that a test cannot have.
    let is_asked = |variant| -> Result<bool> {
        let (session, _signal) = Session::start(variant, |stream, _| stay_silent(stream))?;
        // Another timer has precedence while something is not acknowledged.
        let asked = || session.connection().is_ok_and(|ours| ours.is_kept_alive);
        Ok(wait_until("it is asked", SOON, asked).is_ok())
    };
    ensure!(is_asked("patched")?, "nobody asks");
    ensure!(!is_asked("stock")?, "stock asks, too");
    Ok(())
}

/// Greets a client as a VNC server that wants a name and a password, and returns whether they come.
fn receive_credentials(stream: &mut TcpStream) -> IoResult<bool> {
    stream.write_all(b"RFB 003.008\n")?;
    skip(stream, 12)?;
    // One security type, 30: Apple Remote Desktop. Its generator, the length of its prime, and its key.
    stream.write_all(&[1, 30])?;
    skip(stream, 1)?;
    stream.write_all(&[0, 5, 0, 16])?;
    stream.write_all(&[0xFF; 16])?;
    stream.write_all(&[0x11; 16])?;
    // The encrypted credentials, and the client's key.
    Ok(skip(stream, 128 + 16).is_ok())
}

fn a_vnc_login_works_without_credentials() -> Result<()> {
    let logs_in = |variant| -> Result<bool> {
        let guacd = Guacd::start(variant)?;
        let (to, answered) = channel();
        let port = target(move |mut stream| {
            let _ = to.send(receive_credentials(&mut stream)?);
            stay_silent(stream)
        })?;
        let mut user = guacd.user("vnc")?;
        user.send(&["size", "800", "600", "96"])?;
        // guacd cannot ask a client of this version for credentials.
        let mut connect = vec!["connect", "VERSION_1_1_0"];
        connect.extend(user.names.iter().map(|name| match name.as_str() {
            "hostname" => "127.0.0.1",
            "port" => &port,
            _ => "",
        }));
        user.stream.write_all(instruction(&connect).as_bytes())?;
        Ok(answered.recv_timeout(2 * SOON)?)
    };
    ensure!(logs_in("patched")?, "guacd does not log in");
    ensure!(!logs_in("stock")?, "stock logs in");
    Ok(())
}

fn a_user_who_leaves_when_asked_for_a_password_is_not_logged_in_over_vnc() -> Result<()> {
    // Stock crashes in the same place.
    let guacd = Guacd::start("patched")?;
    let (to, answered) = channel();
    let port = target(move |mut stream| {
        let _ = to.send(receive_credentials(&mut stream)?);
        stay_silent(stream)
    })?;
    let mut user = guacd.user("vnc")?;
    user.handshake_with(&[("hostname", "127.0.0.1"), ("port", &port), ("username", "user")])?;
    user.expect("8.required,8.password;")?;
    user.send(&["disconnect"])?;
    ensure!(!answered.recv_timeout(2 * SOON)?, "guacd logs in for a user who has left");
    Ok(())
}

//! Servers that guacd connects to.

use std::fs;
use std::io::{Read, Result as IoResult, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::Result;

use super::built;

/// Starts a server on the loopback interface that does what `serve` says with each connection. Returns its port, as users name
/// it to guacd.
pub fn target(serve: impl Fn(TcpStream) -> IoResult<()> + Send + Sync + 'static) -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let serve = Arc::new(serve);
    let deaf_time = deaf_time()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || {
                sleep(deaf_time);
                serve(stream)
            });
        }
    });
    Ok(port.to_string())
}

/// How long what a target sends does not reach a user who has just joined: until a timer of stock has run, in releases that have
/// one. A pipe that the target opens before is never announced to its user.
pub fn deaf_time() -> Result<Duration> {
    let client = fs::read_to_string(built("stock")?.join("include/guacamole/client.h"))?;
    let has_timer = client.contains("timer_t __pending_users_timer;");
    Ok(if has_timer { Duration::from_secs(1) } else { Duration::ZERO })
}

/// The same for one connection, of which the kernel buffers little: guacd soon has to wait if the server does not read.
pub fn target_with_a_small_buffer(
    serve: impl FnOnce(TcpStream) -> IoResult<()> + Send + 'static,
) -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 4096)?;
    let port = listener.local_addr()?.port();
    let deaf_time = deaf_time()?;
    thread::spawn(move || {
        let stream = listener.accept()?.0;
        sleep(deaf_time);
        serve(stream)
    });
    Ok(port.to_string())
}

/// Reads, and says nothing, until the other end closes the connection.
pub fn stay_silent(mut stream: TcpStream) -> IoResult<()> {
    while stream.read(&mut [0; 4096])? > 0 {}
    Ok(())
}

/// A server that says nothing.
pub fn a_target_that_says_nothing() -> Result<String> {
    target(stay_silent)
}

/// A telnet server that fills the screen, over and over.
pub fn a_target_that_never_rests() -> Result<String> {
    target(|mut stream| {
        for number in 0_u64.. {
            // Each line in another colour, so that no two frames are alike.
            write!(stream, "\x1b[3{}m{number} {}\r\n", number % 8, "guacd ".repeat(10))?;
            sleep(Duration::from_micros(500));
        }
        Ok(())
    })
}

/// A telnet server that sends as much as it can.
pub fn a_target_that_floods() -> Result<String> {
    a_target_that_fills_the_screen_every(Duration::ZERO)
}

/// A telnet server that fills the screen, over and over. All characters and colors are random, so that no image format makes
/// the frames small.
pub fn a_target_that_fills_the_screen_every(pause: Duration) -> Result<String> {
    target(move |mut stream| {
        let mut random = 1_u32;
        loop {
            let mut screen = String::from("\x1b[H");
            for _ in 0..24 * 80 {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let (color, character) = (random >> 24, char::from(33 + (random >> 16) as u8 % 94));
                screen += &format!("\x1b[38;5;{color}m\x1b[48;5;{}m{character}", 255 - color);
            }
            stream.write_all(screen.as_bytes())?;
            sleep(pause);
        }
    })
}

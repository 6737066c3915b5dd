//! Servers that guacd connects to.

use std::io::{Read, Result as IoResult, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::Result;

/// Starts a server on the loopback interface that does what `serve` says with each connection. Returns its port, as users name
/// it to guacd.
pub fn target(serve: impl Fn(TcpStream) -> IoResult<()> + Send + Sync + 'static) -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream));
        }
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

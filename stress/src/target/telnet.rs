//! A telnet server within this process: a terminal, without any login, and a program that echoes.

use std::{net::Ipv4Addr, sync::Arc};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    connections::{Connections, listen},
    drawing::{Film, Player, next_frame},
    echo::Echo,
};

// RFC 854, and the options of RFC 857 and RFC 858.
const IAC: u8 = 255;
const WILL: u8 = 251;
const DONT: u8 = 254;
const SB: u8 = 250;
const SE: u8 = 240;
const ECHO: u8 = 1;
const SUPPRESS_GO_AHEAD: u8 = 3;

/// Starts the server on the loopback interface, and gives its port. It runs as long as the async runtime does.
///
/// # Errors
///
/// When it cannot listen.
pub fn start(echo: Echo, film: Option<Arc<Film>>, connections: &Arc<Connections>) -> Result<u16> {
    let serve = move |stream| serve(stream, echo.clone(), film.as_ref().map(Player::new));
    listen(Ipv4Addr::LOCALHOST, connections, serve).context("start the embedded telnet server")
}

async fn serve(mut stream: TcpStream, mut echo: Echo, mut player: Option<Player>) -> Option<()> {
    // We echo, and not the client.
    stream.write_all(&[IAC, WILL, ECHO, IAC, WILL, SUPPRESS_GO_AHEAD]).await.ok()?;
    stream.write_all(&echo.greet()).await.ok()?;
    let mut greetings = Echo::greetings();
    let mut stripper = Stripper::default();
    let mut buffer = [0; 1024];
    loop {
        tokio::select! {
            length = stream.read(&mut buffer) => {
                let length = length.ok().filter(|&length| length > 0)?;
                let typed = buffer[..length].iter().filter_map(|&byte| stripper.text(byte)).collect::<Vec<_>>();
                if !typed.is_empty() {
                    greetings.stop();
                }
                stream.write_all(&echo.take(&typed)).await.ok()?;
            }
            true = greetings.is_due() => stream.write_all(&echo.greet()).await.ok()?,
            frame = next_frame(&mut player) => {
                stream.write_all(&frame.content).await.ok()?;
                stream.write_all(&frame.mark).await.ok()?;
            }
        }
    }
}

/// Takes commands out of what a client sends. They need no answer: the client accepts or refuses what we will do, or offers what
/// we did not ask for.
#[derive(Default)]
enum Stripper {
    #[default]
    Text,
    Command,
    Option,
    Subnegotiation,
    CommandInSubnegotiation,
}

impl Stripper {
    fn text(&mut self, byte: u8) -> Option<u8> {
        let (next, text) = match (&self, byte) {
            (Self::Text, IAC) => (Self::Command, None),
            // The second half of an end of line.
            (Self::Text, 0) => (Self::Text, None),
            (Self::Text, text) => (Self::Text, Some(text)),
            // A byte of this value, and no command: no text that is typed here has one.
            (Self::Command, IAC) => (Self::Text, None),
            (Self::Command, SB) => (Self::Subnegotiation, None),
            (Self::Command, WILL..=DONT) => (Self::Option, None),
            (Self::Command | Self::Option, _) => (Self::Text, None),
            (Self::Subnegotiation, IAC) => (Self::CommandInSubnegotiation, None),
            (Self::Subnegotiation, _) => (Self::Subnegotiation, None),
            (Self::CommandInSubnegotiation, SE) => (Self::Text, None),
            (Self::CommandInSubnegotiation, _) => (Self::Subnegotiation, None),
        };
        *self = next;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_taken_out_of_what_is_typed() {
        let mut stripper = Stripper::default();
        let sent = b"a\xff\xfd\x01b\xff\xfa\x1f\x00\x50\xff\xff\x18\xff\xf0c\xff\xf1d\xff\xff\r\x00e\r\n";
        let text = sent.iter().filter_map(|&byte| stripper.text(byte)).collect::<Vec<_>>();
        assert_eq!(text, b"abcd\re\r\n");
    }
}

//! A minimal RDP server within this process: TLS without a login, a desktop whose corner changes with each key, and a clipboard
//! that gets each line that is typed.
//!
//! It draws uncompressed bitmaps and has no graphics pipeline, so it costs little, and so does the client's decoding. What
//! guacd does with the picture is the same as with another server.

use std::{net::Ipv4Addr, sync::Arc};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use self::messages::{Clip, MAX_SIDE, Request, TPKT};
use super::connections::{Connections, listen};

mod certificate;
mod messages;

/// The size of the desktop. No other server is likely to have it.
pub const SIZE: [u16; 2] = [1024, 770];

/// The square that changes with each key.
const CURSOR: u16 = 16;

/// The scancode of the Enter key.
const ENTER: u8 = 0x1c;

/// The rows of a US keyboard, which is guacd's default, with the scancode of the first key of each.
const ROWS: [(u8, &[u8]); 4] =
    [(0x02, b"1234567890-"), (0x10, b"qwertyuiop"), (0x1e, b"asdfghjkl"), (0x2c, b"zxcvbnm")];

/// Starts the server on the loopback interface, and gives its port. It runs as long as the async runtime does.
///
/// # Errors
///
/// When it cannot listen, or there is no certificate for it.
pub fn start(connections: &Arc<Connections>) -> Result<u16> {
    let acceptor = certificate::acceptor().context("make a certificate for the embedded RDP server")?;
    let serve = move |stream| serve(stream, acceptor.clone());
    listen(Ipv4Addr::LOCALHOST, connections, serve).context("start the embedded RDP server")
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor) -> Option<()> {
    let mut desktop = Desktop::open(stream, &acceptor).await?;
    loop {
        desktop.message().await?;
    }
}

struct Desktop {
    stream: BufReader<TlsStream<TcpStream>>,
    /// The security protocols that the client has offered.
    protocols: u32,
    /// The channel of the clipboard, if the client has one.
    clipboard: Option<u16>,
    /// How many keys were pressed.
    keys: u32,
    line: String,
}

impl Desktop {
    /// Does the TLS handshake. None, here and below, if the client has gone or does not speak the protocol.
    async fn open(mut stream: TcpStream, acceptor: &TlsAcceptor) -> Option<Self> {
        let (_, request) = read(&mut stream).await?;
        let protocols = messages::offered_protocols(&request)?;
        stream.write_all(&messages::connection_confirm()).await.ok()?;
        // Boxed, because the future of a session stays as large as its largest state.
        let stream = Box::pin(acceptor.accept(stream)).await.ok()?;
        let stream = BufReader::with_capacity(256, stream);
        Some(Self { stream, protocols, clipboard: None, keys: 0, line: String::new() })
    }

    /// Takes one message, and answers it.
    async fn message(&mut self) -> Option<()> {
        let (first, content) = read(&mut self.stream).await?;
        if first != TPKT {
            for key in messages::pressed_keys(first, &content)? {
                self.key(key).await?;
            }
            return Some(());
        }
        match messages::request(&content)? {
            Request::Connect(channels) => {
                self.clipboard = messages::find_channel(&channels, b"cliprdr\0");
                self.send(&messages::connect_response(self.protocols, channels.len())).await
            }
            Request::AttachUser => self.send(&messages::attach_user_confirm()).await,
            Request::JoinChannel(channel) => self.send(&messages::channel_join_confirm(channel)).await,
            Request::Info => {
                self.send(&messages::no_license()).await?;
                self.send(&messages::demand_active(SIZE)).await
            }
            Request::FontList => {
                self.send(&messages::activation()).await?;
                if let Some(channel) = self.clipboard {
                    self.send(&messages::clipboard(channel)).await?;
                }
                self.draw(SIZE).await
            }
            Request::Virtual(channel, [kind, ..]) if self.clipboard == Some(channel) => {
                self.clip(channel, *kind).await
            }
            Request::ErectDomain | Request::Virtual(..) | Request::Other => Some(()),
        }
    }

    /// Answers a message on the channel of the clipboard.
    async fn clip(&mut self, channel: u16, kind: u8) -> Option<()> {
        if kind == Clip::FormatList as u8 {
            self.send(&messages::clip(channel, Clip::FormatListResponse, &[])).await
        } else if kind == Clip::FormatDataRequest as u8 {
            let line = std::mem::take(&mut self.line);
            self.send(&messages::text(channel, &line)).await
        } else {
            Some(())
        }
    }

    async fn key(&mut self, scancode: u8) -> Option<()> {
        self.keys = self.keys.wrapping_add(1);
        self.draw([CURSOR; 2]).await?;
        if scancode == ENTER {
            if let Some(channel) = self.clipboard {
                self.send(&messages::text_is_there(channel)).await?;
            }
        } else if let Some(character) = character(scancode) {
            // An endless line must not fill the memory.
            if self.line.len() < 1024 {
                self.line.push(character);
            }
        }
        Some(())
    }

    /// Draws a part of the desktop from its upper left corner, in tiles.
    async fn draw(&mut self, [width, height]: [u16; 2]) -> Option<()> {
        for y in (0..height).step_by(MAX_SIDE.into()) {
            for x in (0..width).step_by(MAX_SIDE.into()) {
                let size = [MAX_SIDE.min(width - x), MAX_SIDE.min(height - y)];
                let tile = tile([x, y], size, self.keys);
                self.send(&messages::picture([x, y], size, &tile)).await?;
            }
        }
        Some(())
    }

    async fn send(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).await.ok()?;
        self.stream.flush().await.ok()
    }
}

/// Reads a message: its first byte, and what follows its length.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<(u8, Vec<u8>)> {
    let first = stream.read_u8().await.ok()?;
    let rest = if first == TPKT {
        stream.read_u8().await.ok()?;
        stream.read_u16().await.ok()?.checked_sub(4)?
    } else {
        match stream.read_u8().await.ok()? {
            high @ 0x80.. => {
                (u16::from(high & 0x7f) << 8 | u16::from(stream.read_u8().await.ok()?)).checked_sub(3)?
            }
            low => u16::from(low).checked_sub(2)?,
        }
    };
    let mut content = vec![0; rest.into()];
    stream.read_exact(&mut content).await.ok()?;
    Some((first, content))
}

fn character(scancode: u8) -> Option<char> {
    let key = |(first, keys): &(u8, &'static [u8])| keys.get(usize::from(scancode.checked_sub(*first)?));
    ROWS.iter().find_map(key).map(|&character| character.into())
}

/// The pixels of a tile, with the lowest row first. No area of this pattern has one colour, which guacd would send without an
/// image.
fn tile([left, top]: [u16; 2], [width, height]: [u16; 2], keys: u32) -> Vec<u8> {
    let rows = (top..top + height).rev();
    let pixels = rows.flat_map(|y| (left..left + width).map(move |x| u32::from(x ^ y)));
    pixels.flat_map(|pixel| (pixel.wrapping_add(keys).wrapping_mul(0x0003_0509)).to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn every_key_changes_the_square_to_another_pattern() {
        let squares = (0..64).map(|keys| tile([0, 0], [CURSOR; 2], keys)).collect::<HashSet<_>>();
        assert_eq!(squares.len(), 64);
        for square in squares {
            let colours = square.chunks(4).map(|pixel| &pixel[..3]).collect::<HashSet<_>>();
            assert!(colours.len() > 8, "{} colours", colours.len());
        }
    }

    #[test]
    fn keys_have_their_characters() {
        let typed = [0x22, 0x16, 0x1e, 0x2e, 0x0c, 0x02, 0x0b].map(|scancode| character(scancode).unwrap());
        assert_eq!(typed, ['g', 'u', 'a', 'c', '-', '1', '0']);
        // Escape, Backspace, Enter, the left Control and Shift keys, and the comma.
        for other in [0x01, 0x0e, ENTER, 0x1d, 0x2a, 0x33, 0xff] {
            assert_eq!(character(other), None);
        }
    }

    #[test]
    fn a_pixel_has_four_bytes() {
        assert_eq!(tile([64, 64], [3, 2], 0).len(), 4 * 3 * 2);
    }

    #[tokio::test]
    async fn a_client_without_tls_is_not_served() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\x01\0\x08\0\0\0\0\0").await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        assert_eq!(serve(stream, certificate::acceptor().unwrap()).await, None);
    }
}

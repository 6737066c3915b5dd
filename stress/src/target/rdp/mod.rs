//! A minimal RDP server within this process: TLS without a login, a desktop whose corner changes with each key, and a clipboard
//! that gets each line that is typed.
//!
//! It draws uncompressed bitmaps and has no graphics pipeline, so it costs little, and so does the client's decoding. What
//! guacd does with the picture is the same as with another server.

use std::{net::Ipv4Addr, sync::Arc};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, ReadHalf, WriteHalf, split},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use self::messages::{Clip, MAX_SIDE, Request, TPKT};
use super::{
    connections::{Connections, listen},
    drawing::{Film, Picture, Player, next_frame},
};
use crate::{
    load::meter::Meter,
    wire::link::{MARK_AREA, MARK_SIDE},
};

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
pub fn start(meter: &Arc<Meter>, connections: &Arc<Connections>) -> Result<u16> {
    let acceptor = certificate::acceptor().context("make a certificate for the embedded RDP server")?;
    let film = Film::of_desktop(meter, picture, mark);
    let serve = move |stream| serve(stream, acceptor.clone(), film.clone());
    listen(Ipv4Addr::LOCALHOST, connections, serve).context("start the embedded RDP server")
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, film: Option<Arc<Film>>) -> Option<()> {
    let (reader, mut desktop) = Desktop::open(stream, &acceptor).await?;
    let message = message(reader);
    tokio::pin!(message);
    // Begins when the desktop is there.
    let mut player = None;
    loop {
        tokio::select! {
            read = &mut message => {
                let (reader, first, content) = read?;
                desktop.answer(first, &content).await?;
                if desktop.is_there && player.is_none() {
                    player = film.as_ref().map(Player::new);
                }
                message.set(self::message(reader));
            }
            frame = next_frame(&mut player) => {
                desktop.send(&frame.content).await?;
                desktop.send(&frame.mark).await?;
            }
        }
    }
}

type Reader = BufReader<ReadHalf<TlsStream<TcpStream>>>;

/// Reads the next message.
async fn message(mut reader: Reader) -> Option<(Reader, u8, Vec<u8>)> {
    let (first, content) = read(&mut reader).await?;
    Some((reader, first, content))
}

struct Desktop {
    writer: WriteHalf<TlsStream<TcpStream>>,
    /// The security protocols that the client has offered.
    protocols: u32,
    /// The channel of the clipboard, if the client has one.
    clipboard: Option<u16>,
    /// Whether it was drawn.
    is_there: bool,
    /// How many keys were pressed.
    keys: u32,
    line: String,
}

impl Desktop {
    /// Does the TLS handshake. None, here and below, if the client has gone or does not speak the protocol.
    async fn open(mut stream: TcpStream, acceptor: &TlsAcceptor) -> Option<(Reader, Self)> {
        let (_, request) = read(&mut stream).await?;
        let protocols = messages::offered_protocols(&request)?;
        stream.write_all(&messages::connection_confirm()).await.ok()?;
        // Boxed, because the future of a session stays as large as its largest state.
        let (reader, writer) = split(Box::pin(acceptor.accept(stream)).await.ok()?);
        let desktop =
            Self { writer, protocols, clipboard: None, is_there: false, keys: 0, line: String::new() };
        Some((BufReader::with_capacity(256, reader), desktop))
    }

    /// Answers a message: its first byte, and what follows its length.
    async fn answer(&mut self, first: u8, content: &[u8]) -> Option<()> {
        if first != TPKT {
            for key in messages::pressed_keys(first, content)? {
                self.key(key).await?;
            }
            return Some(());
        }
        match messages::request(content)? {
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
                self.is_there = true;
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

    /// Draws a part of the desktop from its upper left corner.
    async fn draw(&mut self, size: [u16; 2]) -> Option<()> {
        self.send(&picture(&pattern(size, self.keys))).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Option<()> {
        self.writer.write_all(bytes).await.ok()?;
        self.writer.flush().await.ok()
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

/// A pattern from the upper left corner on. No area of it has one colour, which guacd would send without an image.
fn pattern(size: [u16; 2], keys: u32) -> Picture {
    let [width, height] = size;
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| u32::from(x ^ y)));
    let pixels =
        pixels.flat_map(|pixel| (pixel.wrapping_add(keys).wrapping_mul(0x0003_0509)).to_le_bytes()).collect();
    Picture { at: [0, 0], size, pixels }
}

/// The messages that draw a picture, in tiles.
fn picture(Picture { at, size, pixels }: &Picture) -> Vec<u8> {
    let [width, height] = *size;
    let mut messages = Vec::with_capacity(pixels.len() + pixels.len() / 64);
    for y in (0..height).step_by(MAX_SIDE.into()) {
        for x in (0..width).step_by(MAX_SIDE.into()) {
            let size = [MAX_SIDE.min(width - x), MAX_SIDE.min(height - y)];
            // The lowest row comes first.
            let rows = (y..y + size[1]).rev().map(|row| {
                let start = (usize::from(row) * usize::from(width) + usize::from(x)) * 4;
                &pixels[start..start + usize::from(size[0]) * 4]
            });
            let tile = rows.collect::<Vec<_>>().concat();
            messages.extend(messages::picture([at[0] + x, at[1] + y], size, &tile));
        }
    }
    messages
}

/// The mark of a frame.
fn mark(colour: u32) -> Vec<u8> {
    let [x, y, ..] = MARK_AREA;
    let pixels = colour.to_le_bytes().repeat(usize::from(MARK_SIDE) * usize::from(MARK_SIDE));
    messages::picture([x, y], [MARK_SIDE; 2], &pixels)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn every_key_changes_the_square_to_another_pattern() {
        let squares = (0..64).map(|keys| pattern([CURSOR; 2], keys).pixels).collect::<HashSet<_>>();
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
    fn a_picture_is_drawn_in_tiles_whose_rows_are_turned_around() {
        let pixels = (0..65 * 2_u32).flat_map(u32::to_le_bytes).collect();
        let picture = picture(&Picture { at: [5, 9], size: [65, 2], pixels });
        let row = |numbers: std::ops::Range<u32>| numbers.flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
        let first = messages::picture([5, 9], [64, 2], &[row(65..129), row(0..64)].concat());
        let second = messages::picture([69, 9], [1, 2], &[row(129..130), row(64..65)].concat());
        assert_eq!(picture, [first, second].concat());
    }

    #[tokio::test]
    async fn a_client_without_tls_is_not_served() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\x01\0\x08\0\0\0\0\0").await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        assert_eq!(serve(stream, certificate::acceptor().unwrap(), None).await, None);
    }
}

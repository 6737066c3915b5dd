//! A minimal VNC server within this process (RFC 6143): no password, a screen that changes with each key, and a clipboard
//! that gets each line that is typed.

use std::{net::Ipv4Addr, sync::Arc};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::{
    connections::{Connections, listen},
    drawing::{Film, Frame, Picture, Player, next_frame},
};
use crate::{
    load::meter::Meter,
    wire::link::{MARK_AREA, MARK_SIDE},
};

/// The size of the screen. No other server is likely to have it.
pub const SIZE: [u16; 2] = [803, 601];

/// The keysym of the Enter key.
const ENTER: u32 = 0xFF0D;

/// The square that changes with each key.
const CURSOR: u16 = 16;

/// Starts the server on the loopback interface, and gives its port. It runs as long as the async runtime does.
///
/// # Errors
///
/// When it cannot listen.
pub fn start(meter: &Arc<Meter>, connections: &Arc<Connections>) -> Result<u16> {
    let film = Film::of_desktop(meter, picture, mark);
    let serve = move |stream| serve(stream, film.as_ref().map(Player::new));
    listen(Ipv4Addr::LOCALHOST, connections, serve).context("start the embedded VNC server")
}

async fn serve(stream: TcpStream, mut player: Option<Player>) -> Option<()> {
    let (reader, mut screen) = Screen::open(stream).await?;
    let message = message(reader);
    tokio::pin!(message);
    loop {
        tokio::select! {
            read = &mut message => {
                let (reader, read) = read?;
                screen.answer(read).await?;
                message.set(self::message(reader));
            }
            frame = next_frame(&mut player) => screen.frame = Some(frame),
        }
        screen.update().await?;
    }
}

type Reader = BufReader<OwnedReadHalf>;

/// What a client sends.
enum Message {
    /// It wants pixels of so many bytes.
    PixelFormat(usize),
    /// It asks for the whole screen, or for what is new on it.
    Update { is_incremental: bool },
    /// A key was pressed.
    Key(u32),
    /// It needs no answer.
    Other,
}

/// Reads the next message. None, here and below, if the client has gone or does not speak the protocol.
async fn message(mut reader: Reader) -> Option<(Reader, Message)> {
    let message = match reader.read_u8().await.ok()? {
        // SetPixelFormat.
        0 => {
            skip(&mut reader, 3).await?;
            let bits = reader.read_u8().await.ok()?;
            skip(&mut reader, 15).await?;
            Message::PixelFormat(usize::from(bits / 8))
        }
        // SetEncodings.
        2 => {
            skip(&mut reader, 1).await?;
            let encodings = reader.read_u16().await.ok()?;
            skip(&mut reader, 4 * u64::from(encodings)).await?;
            Message::Other
        }
        // FramebufferUpdateRequest.
        3 => {
            let is_incremental = reader.read_u8().await.ok()? != 0;
            skip(&mut reader, 8).await?;
            Message::Update { is_incremental }
        }
        // KeyEvent.
        4 => {
            let is_down = reader.read_u8().await.ok()? != 0;
            skip(&mut reader, 2).await?;
            let key = reader.read_u32().await.ok()?;
            if is_down { Message::Key(key) } else { Message::Other }
        }
        // PointerEvent.
        5 => {
            skip(&mut reader, 5).await?;
            Message::Other
        }
        // ClientCutText.
        6 => {
            skip(&mut reader, 3).await?;
            let length = reader.read_u32().await.ok()?;
            skip(&mut reader, length.into()).await?;
            Message::Other
        }
        _ => return None,
    };
    Some((reader, message))
}

async fn skip(reader: &mut Reader, bytes: u64) -> Option<()> {
    let skipped = tokio::io::copy(&mut reader.take(bytes), &mut tokio::io::sink()).await.ok()?;
    (skipped == bytes).then_some(())
}

struct Screen {
    writer: OwnedWriteHalf,
    bytes_per_pixel: usize,
    colour: u8,
    line: String,
    /// Whether a key has changed the screen.
    is_stale: bool,
    /// The latest frame, as two rectangles, if the client does not have it.
    frame: Option<Frame>,
    /// Whether the client has asked for what is new, and has not had it.
    is_asked: bool,
}

impl Screen {
    /// Does the handshake.
    async fn open(stream: TcpStream) -> Option<(Reader, Self)> {
        let (reader, writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let mut screen = Self {
            writer,
            bytes_per_pixel: 4,
            colour: 0,
            line: String::new(),
            is_stale: false,
            frame: None,
            is_asked: false,
        };
        screen.send(b"RFB 003.008\n").await?;
        skip(&mut reader, 12).await?;
        // One security type, 1: none.
        screen.send(&[1, 1]).await?;
        skip(&mut reader, 1).await?;
        screen.send(&[0; 4]).await?;
        skip(&mut reader, 1).await?;
        let name = b"guac-stress";
        let mut hello = SIZE.map(u16::to_be_bytes).concat();
        // 32 bits per pixel, of which 24 count; little-endian; true colour; 255 for the most of each, and their shifts.
        hello.extend([32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]);
        hello.extend((name.len() as u32).to_be_bytes());
        hello.extend(name);
        screen.send(&hello).await?;
        Some((reader, screen))
    }

    async fn answer(&mut self, message: Message) -> Option<()> {
        match message {
            Message::PixelFormat(bytes) => self.bytes_per_pixel = bytes,
            Message::Update { is_incremental: true } => self.is_asked = true,
            Message::Update { is_incremental: false } => {
                self.send_update(1, &solid([0, 0], SIZE, &self.gray())).await?;
            }
            Message::Key(key) => self.key(key).await?,
            Message::Other => {}
        }
        Some(())
    }

    async fn key(&mut self, key: u32) -> Option<()> {
        self.colour = self.colour.wrapping_add(37);
        self.is_stale = true;
        if key == ENTER {
            // ServerCutText.
            let mut message = vec![3, 0, 0, 0];
            message.extend((self.line.len() as u32).to_be_bytes());
            message.extend(std::mem::take(&mut self.line).bytes());
            self.send(&message).await?;
        } else if let Some(ascii) = u8::try_from(key).ok().filter(u8::is_ascii_graphic) {
            // An endless line must not fill the memory.
            if self.line.len() < 1024 {
                self.line.push(ascii.into());
            }
        }
        Some(())
    }

    /// Sends what is new, if the client has asked for that and there is anything.
    async fn update(&mut self) -> Option<()> {
        if !self.is_asked {
            return Some(());
        }
        let square = std::mem::take(&mut self.is_stale).then(|| solid([0, 0], [CURSOR; 2], &self.gray()));
        // Frames have 32 bits per pixel, which is what guacd asks for.
        let frame = self.frame.take().filter(|_| self.bytes_per_pixel == 4);
        let count = u16::from(square.is_some()) + 2 * u16::from(frame.is_some());
        if count == 0 {
            return Some(());
        }
        self.is_asked = false;
        self.send_update(count, &square.unwrap_or_default()).await?;
        if let Some(Frame { content, mark }) = frame {
            self.send(&content).await?;
            self.send(&mark).await?;
        }
        Some(())
    }

    /// A pixel of the colour that the keys have made.
    fn gray(&self) -> Vec<u8> {
        vec![self.colour; self.bytes_per_pixel]
    }

    /// Sends a FramebufferUpdate, or the beginning of one.
    async fn send_update(&mut self, count: u16, rectangles: &[u8]) -> Option<()> {
        self.send(&[&[0, 0], &count.to_be_bytes()[..], rectangles].concat()).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Option<()> {
        self.writer.write_all(bytes).await.ok()
    }
}

/// A rectangle in an encoding.
fn rectangle(at: [u16; 2], size: [u16; 2], encoding: u32, content: &[u8]) -> Vec<u8> {
    let place = [at, size].concat();
    [&place.into_iter().flat_map(u16::to_be_bytes).collect::<Vec<_>>(), &encoding.to_be_bytes()[..], content]
        .concat()
}

/// A rectangle of one colour, in the encoding that takes least: RRE, without rectangles within it.
fn solid(at: [u16; 2], size: [u16; 2], pixel: &[u8]) -> Vec<u8> {
    rectangle(at, size, 2, &[&[0; 4], pixel].concat())
}

/// A picture, in the encoding Raw.
fn picture(Picture { at, size, pixels }: &Picture) -> Vec<u8> {
    rectangle(*at, *size, 0, pixels)
}

/// The mark of a frame.
fn mark(colour: u32) -> Vec<u8> {
    let [x, y, ..] = MARK_AREA;
    solid([x, y], [MARK_SIDE; 2], &colour.to_le_bytes())
}

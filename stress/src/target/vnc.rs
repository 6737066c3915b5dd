//! A minimal VNC server within this process (RFC 6143): no password, a screen that changes with each key, and a clipboard
//! that gets each line that is typed.

use std::{net::Ipv4Addr, sync::Arc};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use super::connections::{Connections, listen};

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
pub fn start(connections: &Arc<Connections>) -> Result<u16> {
    listen(Ipv4Addr::LOCALHOST, connections, serve).context("start the embedded VNC server")
}

async fn serve(stream: TcpStream) -> Option<()> {
    let mut screen = Screen::open(stream).await?;
    loop {
        screen.message().await?;
    }
}

struct Screen {
    stream: BufReader<TcpStream>,
    bytes_per_pixel: usize,
    colour: u8,
    line: String,
    /// Whether there is something new on the screen.
    is_stale: bool,
    /// Whether the client has asked for what is new, and has not had it.
    is_asked: bool,
}

impl Screen {
    /// Does the handshake. None, here and below, if the client has gone or does not speak the protocol.
    async fn open(stream: TcpStream) -> Option<Self> {
        let stream = BufReader::new(stream);
        let mut screen = Self {
            stream,
            bytes_per_pixel: 4,
            colour: 0,
            line: String::new(),
            is_stale: false,
            is_asked: false,
        };
        screen.send(b"RFB 003.008\n").await?;
        screen.skip(12).await?;
        // One security type, 1: none.
        screen.send(&[1, 1]).await?;
        screen.skip(1).await?;
        screen.send(&[0; 4]).await?;
        screen.skip(1).await?;
        let name = b"guac-stress";
        let mut hello = SIZE.map(u16::to_be_bytes).concat();
        // 32 bits per pixel, of which 24 count; little-endian; true colour; 255 for the most of each, and their shifts.
        hello.extend([32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]);
        hello.extend((name.len() as u32).to_be_bytes());
        hello.extend(name);
        screen.send(&hello).await?;
        Some(screen)
    }

    /// Takes one message, and answers it.
    async fn message(&mut self) -> Option<()> {
        match self.stream.read_u8().await.ok()? {
            // SetPixelFormat.
            0 => {
                self.skip(3).await?;
                self.bytes_per_pixel = usize::from(self.stream.read_u8().await.ok()? / 8);
                self.skip(15).await?;
            }
            // SetEncodings.
            2 => {
                self.skip(1).await?;
                let encodings = self.stream.read_u16().await.ok()?;
                self.skip(4 * u64::from(encodings)).await?;
            }
            // FramebufferUpdateRequest.
            3 => {
                let is_incremental = self.stream.read_u8().await.ok()? != 0;
                self.skip(8).await?;
                if is_incremental {
                    self.is_asked = true;
                } else {
                    self.draw(SIZE).await?;
                }
            }
            // KeyEvent.
            4 => {
                let is_down = self.stream.read_u8().await.ok()? != 0;
                self.skip(2).await?;
                let key = self.stream.read_u32().await.ok()?;
                if is_down {
                    self.key(key).await?;
                }
            }
            // PointerEvent.
            5 => self.skip(5).await?,
            // ClientCutText.
            6 => {
                self.skip(3).await?;
                let length = self.stream.read_u32().await.ok()?;
                self.skip(length.into()).await?;
            }
            _ => return None,
        }
        if self.is_asked && self.is_stale {
            (self.is_asked, self.is_stale) = (false, false);
            self.draw([CURSOR; 2]).await?;
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

    /// Fills a part of the screen from its upper left corner, in the encoding that takes least: RRE.
    async fn draw(&mut self, [width, height]: [u16; 2]) -> Option<()> {
        // FramebufferUpdate with one rectangle, at 0,0.
        let mut message = vec![0, 0, 0, 1, 0, 0, 0, 0];
        message.extend(width.to_be_bytes());
        message.extend(height.to_be_bytes());
        message.extend(2_u32.to_be_bytes());
        // No rectangles within it.
        message.extend([0; 4]);
        message.extend(std::iter::repeat_n(self.colour, self.bytes_per_pixel));
        self.send(&message).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).await.ok()
    }

    async fn skip(&mut self, bytes: u64) -> Option<()> {
        let skipped =
            tokio::io::copy(&mut (&mut self.stream).take(bytes), &mut tokio::io::sink()).await.ok()?;
        (skipped == bytes).then_some(())
    }
}

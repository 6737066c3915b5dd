//! An RDP server without encryption, which has no more than FreeRDP needs to show a desktop.

use std::io::{Error, Read, Result as IoResult, Write};
use std::net::TcpStream;

/// The ID that the server gives to its client.
const USER: u16 = 1007;
/// The channel of everything but virtual channels.
const CHANNEL: u16 = 1003;
/// The ID of the server itself.
const SERVER: u16 = 1002;

/// What the server accepts of what the client offers to secure the connection with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Security {
    /// Nothing but the protocol itself.
    Rdp,
    Tls,
    Nla,
}

/// Reads a message, with its header of 4 bytes.
fn read(stream: &mut TcpStream) -> IoResult<Vec<u8>> {
    let mut message = vec![0; 4];
    stream.read_exact(&mut message)?;
    message.resize(usize::from(u16::from_be_bytes([message[2], message[3]])).max(4), 0);
    stream.read_exact(&mut message[4..])?;
    Ok(message)
}

fn write(stream: &mut TcpStream, body: &[u8]) -> IoResult<()> {
    let mut message = vec![3, 0];
    message.extend(length(body.len() + 4)?.to_be_bytes());
    message.extend(body);
    stream.write_all(&message)
}

fn length(length: usize) -> IoResult<u16> {
    u16::try_from(length).map_err(Error::other)
}

/// Sends data in the channel of the session.
fn send(stream: &mut TcpStream, data: &[u8]) -> IoResult<()> {
    let mut body = vec![2, 0xF0, 0x80, 0x68];
    body.extend((SERVER - 1001).to_be_bytes());
    body.extend(CHANNEL.to_be_bytes());
    body.push(0x70);
    body.extend((length(data.len())? | 0x8000).to_be_bytes());
    body.extend(data);
    write(stream, &body)
}

/// Sends a PDU of this type to share the desktop.
fn share(stream: &mut TcpStream, kind: u16, body: &[u8]) -> IoResult<()> {
    let mut data = length(body.len() + 6)?.to_le_bytes().to_vec();
    data.extend([kind, SERVER].map(u16::to_le_bytes).concat());
    data.extend(body);
    send(stream, &data)
}

/// Sends a data PDU of this type.
fn share_data(stream: &mut TcpStream, kind: u8, body: &[u8]) -> IoResult<()> {
    let mut data = 0x0001_03EA_u32.to_le_bytes().to_vec();
    data.extend([0, 1]);
    data.extend(length(body.len() + 4)?.to_le_bytes());
    data.extend([kind, 0, 0, 0]);
    data.extend(body);
    share(stream, 0x17, &data)
}

/// Agrees with the client how to secure the connection.
pub fn negotiate(stream: &mut TcpStream, security: Security) -> IoResult<()> {
    read(stream)?;
    let selected = match security {
        Security::Rdp => return write(stream, &[6, 0xD0, 0, 0, 0x12, 0x34, 0]),
        Security::Tls => 1,
        Security::Nla => 2,
    };
    write(stream, &[14, 0xD0, 0, 0, 0x12, 0x34, 0, 2, 0, 8, 0, selected, 0, 0, 0])
}

/// Gives the client the channels that it asks for.
pub fn open_channels(stream: &mut TcpStream) -> IoResult<()> {
    let request = read(stream)?;
    // The list of virtual channels: a type, the length, and as many names of 12 bytes as it says.
    let is_list = |block: &&[u8]| {
        block[..2] == [3, 0xC0]
            && usize::from(block[2]) + (usize::from(block[3]) << 8) == 8 + 12 * usize::from(block[4])
    };
    let channels = request.windows(8).find(is_list).map_or(0, |block| u16::from(block[4]));

    let mut blocks = vec![1, 0x0C, 12, 0, 4, 0, 8, 0, 0, 0, 0, 0];
    // No encryption.
    blocks.extend([2, 0x0C, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let padding = 2 * (channels % 2);
    blocks.extend([0x0C03, 8 + 2 * channels + padding, CHANNEL, channels].map(u16::to_le_bytes).concat());
    blocks.extend((0..channels).flat_map(|i| (CHANNEL + 1 + i).to_le_bytes()));
    blocks.resize(blocks.len() + usize::from(padding), 0);

    let mut conference = vec![0, 5, 0, 0x14, 0x7C, 0, 1, 0x2A, 0x14, 0x76, 0x0A, 1, 1, 0, 1, 0xC0, 0];
    conference.extend(b"McDn");
    conference.extend((length(blocks.len())? | 0x8000).to_be_bytes());
    conference.extend(blocks);

    let mut response = vec![0x0A, 1, 0, 2, 1, 0];
    response.extend([0x30, 0x1A, 2, 1, 34, 2, 1, 3, 2, 1, 0, 2, 1, 1, 2, 1, 0, 2, 1, 1]);
    response.extend([2, 3, 0, 0xFF, 0xF8, 2, 1, 2, 4, 0x82]);
    response.extend(length(conference.len())?.to_be_bytes());
    response.extend(conference);

    let mut body = vec![2, 0xF0, 0x80, 0x7F, 0x66, 0x82];
    body.extend(length(response.len())?.to_be_bytes());
    body.extend(response);
    write(stream, &body)?;

    loop {
        let request = read(stream)?;
        match request.get(7).map(|byte| byte >> 2) {
            // A domain is made.
            Some(1) => {}
            // The user is attached.
            Some(10) => write(stream, &[2, 0xF0, 0x80, 0x2E, 0, 0, 6])?,
            // A channel is joined.
            Some(14) => {
                let channel = &request[10..12];
                let mut body = vec![2, 0xF0, 0x80, 0x3E, 0, 0, 6];
                body.extend([channel, channel].concat());
                write(stream, &body)?;
            }
            // What the client says about itself.
            _ => return Ok(()),
        }
    }
}

/// Shares a desktop of this size with the client.
pub fn activate(stream: &mut TcpStream, size: [u16; 2]) -> IoResult<()> {
    activate_late(stream, size, |_| Ok(()))
}

/// The same for a server that does something before the client has been granted the desktop.
pub fn activate_late(
    stream: &mut TcpStream,
    size: [u16; 2],
    before: impl FnOnce(&mut TcpStream) -> IoResult<()>,
) -> IoResult<()> {
    // No license is needed.
    send(stream, &[0x80, 0, 0, 0, 0xFF, 3, 16, 0, 7, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0])?;
    share_desktop(stream, size, before)
}

/// Takes the desktop back that the client has.
pub fn deactivate(stream: &mut TcpStream) -> IoResult<()> {
    let mut deactivate = 0x0001_03EA_u32.to_le_bytes().to_vec();
    deactivate.extend([1, 0, 0]);
    share(stream, 0x16, &deactivate)
}

/// Gives the desktop that the client has another size.
pub fn resize(stream: &mut TcpStream, size: [u16; 2]) -> IoResult<()> {
    deactivate(stream)?;
    share_desktop(stream, size, |_| Ok(()))
}

fn share_desktop(
    stream: &mut TcpStream,
    size: [u16; 2],
    before: impl FnOnce(&mut TcpStream) -> IoResult<()>,
) -> IoResult<()> {
    // General capabilities: output in a shorter form, without headers of compression.
    let general = [1, 24, 1, 3, 0x200, 0, 0, 0x405, 0, 0, 0, 0_u16];
    let [width, height] = size;
    // Capabilities of bitmaps.
    let bitmap = [2, 28, 32, 1, 1, 1, width, height, 0, 1, 1, 0, 1, 0_u16];
    let mut capabilities = [2, 0_u16].map(u16::to_le_bytes).concat();
    capabilities.extend(general.map(u16::to_le_bytes).concat());
    capabilities.extend(bitmap.map(u16::to_le_bytes).concat());

    let mut demand = 0x0001_03EA_u32.to_le_bytes().to_vec();
    demand.extend([4, length(capabilities.len())?].map(u16::to_le_bytes).concat());
    demand.extend(b"RDP\0");
    demand.extend(capabilities);
    demand.extend([0; 4]);
    share(stream, 0x11, &demand)?;
    before(stream)?;

    // The desktop is synchronized, controlled, and granted to the client. Then there are no fonts.
    share_data(stream, 31, &[1, USER].map(u16::to_le_bytes).concat())?;
    share_data(stream, 20, &[4, 0, 0, 0].map(u16::to_le_bytes).concat())?;
    share_data(stream, 20, &[2, USER, SERVER, 0].map(u16::to_le_bytes).concat())?;
    share_data(stream, 40, &[0, 0, 3, 4].map(u16::to_le_bytes).concat())
}

/// Draws a square of 16 by 16 pixels.
pub fn draw(stream: &mut TcpStream, [x, y]: [u16; 2], color: [u8; 3]) -> IoResult<()> {
    const SIDE: u16 = 16;
    let pixels = [&color[..], &[0]].concat().repeat(usize::from(SIDE * SIDE));
    let mut update =
        [1, 1, x, y, x + SIDE - 1, y + SIDE - 1, SIDE, SIDE, 32, 0].map(u16::to_le_bytes).concat();
    update.extend(length(pixels.len())?.to_le_bytes());
    update.extend(pixels);
    fast_path(stream, 1, &update)
}

/// Draws a gray square of 16 by 16 pixels, compressed by NSCodec.
pub fn draw_with_nscodec(stream: &mut TcpStream, [x, y]: [u16; 2], shade: u8) -> IoResult<()> {
    const SIDE: u16 = 16;
    let size = usize::from(SIDE * SIDE);
    // The sizes of the planes. One that is as long as the square is not compressed.
    let mut data = [size as u32, size as u32, size as u32, 0].map(u32::to_le_bytes).concat();
    data.extend([1, 0, 0, 0]);
    data.extend(vec![shade; size]);
    data.extend(vec![0; 2 * size]);
    let mut update = [1, x, y, x + SIDE, y + SIDE].map(u16::to_le_bytes).concat();
    // 32 bits per pixel, and the ID of NSCodec.
    update.extend([32, 0, 0, 1]);
    update.extend([SIDE, SIDE].map(u16::to_le_bytes).concat());
    update.extend(u32::from(length(data.len())?).to_le_bytes());
    update.extend(data);
    fast_path(stream, 4, &update)
}

/// Ends a frame.
pub fn end_frame(stream: &mut TcpStream) -> IoResult<()> {
    fast_path(stream, 4, &[4, 0, 1, 0, 0, 0, 0, 0])
}

/// Sends an update of this type in the shorter form of output.
fn fast_path(stream: &mut TcpStream, kind: u8, update: &[u8]) -> IoResult<()> {
    let mut message = vec![0];
    message.extend((length(update.len() + 6)? | 0x8000).to_be_bytes());
    message.push(kind);
    message.extend(length(update.len())?.to_le_bytes());
    message.extend(update);
    stream.write_all(&message)
}

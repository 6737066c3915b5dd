//! An RDP server without encryption, which has no more than FreeRDP needs to show a desktop.

use std::io::{Error, ErrorKind, Read, Result as IoResult, Write};
use std::net::TcpStream;
use std::time::Duration;

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
    send_in(stream, CHANNEL, data)
}

/// Sends data in a channel.
fn send_in(stream: &mut TcpStream, channel: u16, data: &[u8]) -> IoResult<()> {
    let mut body = vec![2, 0xF0, 0x80, 0x68];
    body.extend((SERVER - 1001).to_be_bytes());
    body.extend(channel.to_be_bytes());
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

/// Gives the client the channels that it asks for. Returns their names, each with its number.
pub fn open_channels(stream: &mut TcpStream) -> IoResult<Vec<(String, u16)>> {
    let request = read(stream)?;
    // The list of virtual channels: a type, the length, and as many names of 12 bytes as it says.
    let is_list = |block: &&[u8]| {
        block[..2] == [3, 0xC0]
            && usize::from(block[2]) + (usize::from(block[3]) << 8) == 8 + 12 * usize::from(block[4])
    };
    let list = request.windows(8).position(|block| is_list(&block)).map_or(&[][..], |at| &request[at..]);
    let channels = list.get(4).map_or(0, |count| u16::from(*count));
    let names = list
        .get(8..)
        .unwrap_or_default()
        .chunks_exact(12)
        .map(|channel| String::from_utf8_lossy(&channel[..8]).trim_end_matches('\0').to_owned());
    let names = names.zip(CHANNEL + 1..CHANNEL + 1 + channels).collect();

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
            _ => return Ok(names),
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

/// What a server prints through the client that shares its printer.
pub const DOCUMENT: &str = "%!PS\n%%Title: A letter\n/Helvetica findfont 24 scalefont setfont\n\
                            72 700 moveto (guacd) show\nshowpage\n%%EOF\n";

/// Messages about the client's devices, in the channel "rdpdr". See [MS-RDPEFS].
mod devices {
    pub const SERVER_ANNOUNCE: u16 = 0x496E;
    pub const CLIENT_ID_CONFIRM: u16 = 0x4343;
    pub const CLIENT_NAME: u16 = 0x434E;
    pub const SERVER_CAPABILITY: u16 = 0x5350;
    pub const CLIENT_CAPABILITY: u16 = 0x4350;
    pub const USER_LOGGED_ON: u16 = 0x554C;
    pub const LIST: u16 = 0x4441;
    pub const REPLY: u16 = 0x6472;
    pub const REQUEST: u16 = 0x4952;
    pub const COMPLETION: u16 = 0x4943;

    /// The type of a printer.
    pub const PRINTER: u32 = 4;

    /// What is requested of a device.
    pub const CREATE: u32 = 0;
    pub const CLOSE: u32 = 2;
    pub const WRITE: u32 = 4;
}

/// Sends a message about devices.
fn send_about_devices(stream: &mut TcpStream, channel: u16, kind: u16, body: &[u8]) -> IoResult<()> {
    // The first and last part.
    let mut message = [u32::from(length(body.len() + 4)?), 3].map(u32::to_le_bytes).concat();
    message.extend([0x4472, kind].map(u16::to_le_bytes).concat());
    message.extend(body);
    send_in(stream, channel, &message)
}

/// Reads until there is a message about devices in this channel, and returns its type and its body.
fn read_about_devices(stream: &mut TcpStream, channel: u16) -> IoResult<(u16, Vec<u8>)> {
    loop {
        let mut first = [0; 2];
        stream.read_exact(&mut first)?;
        // Input has a header of its own: a byte, and the length in one or two.
        if first[0] & 3 == 0 {
            let rest = if first[1] & 0x80 == 0 {
                usize::from(first[1]).saturating_sub(2)
            } else {
                let mut low = [0];
                stream.read_exact(&mut low)?;
                (usize::from(first[1] & 0x7F) << 8 | usize::from(low[0])).saturating_sub(3)
            };
            stream.read_exact(&mut vec![0; rest])?;
            continue;
        }
        let mut size = [0; 2];
        stream.read_exact(&mut size)?;
        let mut body = vec![0; usize::from(u16::from_be_bytes(size)).saturating_sub(4)];
        stream.read_exact(&mut body)?;
        // Data of the client in this channel, in one part.
        if body.get(3) != Some(&0x64) || body.get(6..8) != Some(&channel.to_be_bytes()) {
            continue;
        }
        let data = if body[9] & 0x80 == 0 { &body[10..] } else { &body[11..] };
        if let Some(message) = data.get(8..).filter(|message| message.len() >= 4) {
            return Ok((u16::from_le_bytes([message[2], message[3]]), message[4..].to_vec()));
        }
    }
}

/// Prints [`DOCUMENT`] on the client's printer, and reads until the client goes.
pub fn print(stream: &mut TcpStream, channel: u16) -> IoResult<()> {
    // The client ignores the first ones, if it is not ready.
    let mut announce = [1, 12].map(u16::to_le_bytes).concat();
    announce.extend(7_u32.to_le_bytes());
    let mut pieces = DOCUMENT.as_bytes().chunks(40);
    let mut printer = None;
    let request = |stream: &mut TcpStream, printer: u32, kind: u32, more: &[u8]| {
        let mut body = [printer, 0, 1, kind, 0].map(u32::to_le_bytes).concat();
        body.extend(more);
        send_about_devices(stream, channel, devices::REQUEST, &body)
    };
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut message = loop {
        send_about_devices(stream, channel, devices::SERVER_ANNOUNCE, &announce)?;
        match read_about_devices(stream, channel) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            message => break message?,
        }
    };
    stream.set_read_timeout(None)?;
    loop {
        let (kind, body) = &message;
        match (*kind, printer) {
            (devices::CLIENT_NAME, None) => {
                // General capabilities, of version 2.
                let mut capabilities = [1, 0, 1, 44].map(u16::to_le_bytes).concat();
                capabilities
                    .extend([2, 0, 0, 0x000C_0001, 0xFFFF, 0, 7, 0, 0, 0].map(u32::to_le_bytes).concat());
                send_about_devices(stream, channel, devices::SERVER_CAPABILITY, &capabilities)?;
                send_about_devices(stream, channel, devices::CLIENT_ID_CONFIRM, &announce)?;
            }
            (devices::CLIENT_CAPABILITY, None) => {
                send_about_devices(stream, channel, devices::USER_LOGGED_ON, &[])?;
            }
            (devices::LIST, None) => {
                // The count, and then the first device: its type, and its number.
                let word = |at: usize| Some(u32::from_le_bytes(body.get(at..at + 4)?.try_into().ok()?));
                if word(4) != Some(devices::PRINTER) {
                    return Err(Error::other("the client shares no printer"));
                }
                let id = word(8).unwrap_or_default();
                printer = Some(id);
                send_about_devices(stream, channel, devices::REPLY, &[id, 0].map(u32::to_le_bytes).concat())?;
                request(stream, id, devices::CREATE, &[0; 32])?;
            }
            (devices::COMPLETION, Some(id)) => match pieces.next() {
                Some(piece) => {
                    let mut more = u32::from(length(piece.len())?).to_le_bytes().to_vec();
                    more.extend([0; 28]);
                    more.extend(piece);
                    request(stream, id, devices::WRITE, &more)?;
                }
                None => {
                    request(stream, id, devices::CLOSE, &[0; 32])?;
                    while read_about_devices(stream, channel).is_ok() {}
                    return Ok(());
                }
            },
            _ => {}
        }
        message = read_about_devices(stream, channel)?;
    }
}
